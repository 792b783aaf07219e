"""The reference meaning of a program, on numpy arrays: float64, a finite field, or as eager rounds.

Expressions are evaluated whole (no tiles) at small sizes: an array whose dimensions are the
expression's free axes, ordered by name. This is the oracle that every check compares with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from superopt.errors import IllFormed
from superopt.mugraph.dtypes import DTYPES, accumulator, is_float
from superopt.mugraph.expr import Axis, Expr
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import Program
from superopt.mugraph.semantics import (
    Arithmetic,
    Array,
    NoFieldMeaning,
    field_const,
    own_axes,
    spread,
)

__all__ = ["Array", "Evaluator", "NoFieldMeaning", "field_const", "run_program"]

At = frozenset[Axis]  # the axes that run over chosen points only


class Evaluator:
    """Evaluates expressions over fixed sizes and inputs; keeps what it has computed.

    `field`: float values are residues mod `PRIME`; comparisons and logic of integers stay exact.
    `rounding`: every float result is rounded to its type and sums accumulate in float32, as eager
    does, so that its own error against float64 can be measured.
    `chance`: a seed; every float result is off by a random part of a unit in its last place.
    `points`: index values that a free axis takes instead of all of 0 <= i < extent; where a
    reduction binds that axis, it runs over all of it.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        sizes: Mapping[str, int],
        field: bool = False,
        *,
        points: Mapping[Axis, Array] | None = None,
        rounding: bool = False,
        chance: int | None = None,
    ) -> None:
        self.tensors = dict(tensors)
        self.sizes = dict(sizes)
        generator = None if chance is None else np.random.default_rng(chance)
        self.arithmetic = Arithmetic(field, rounding, generator)
        self.points = {a: np.asarray(i, np.int64) for a, i in (points or {}).items()}
        self.done: dict[tuple[Expr, At], Array] = {}

    def extent(self, a: Axis) -> int:
        return extent_value(a.extent, self.sizes)

    def __call__(self, root: Expr) -> Array:
        """The value of `root`; dimension n runs over its n-th free axis by name."""
        return self._value(root, frozenset(self.points))

    def align(self, e: Expr, axes: tuple[Axis, ...]) -> Array:
        """The value of `e` with a dimension for each of `axes`, of size 1 where it is constant."""
        return self._align(e, axes, frozenset(self.points))

    def indices(self, a: Axis, at: At) -> Array:
        return self.points[a] if a in at else np.arange(self.extent(a), dtype=np.int64)

    def shape(self, axes: tuple[Axis, ...]) -> list[int]:
        """The size of each of a store's axes, as `align` gives them: its points or its extent."""
        return self._shape(axes, frozenset(self.points))

    def _shape(self, axes: tuple[Axis, ...], at: At) -> list[int]:
        return [len(self.points[a]) if a in at else self.extent(a) for a in axes]

    def _align(self, e: Expr, axes: tuple[Axis, ...], at: At) -> Array:
        return spread(self._value(e, at), own_axes(e), axes)

    def _value(self, root: Expr, at: At) -> Array:
        stack = [(root, at & root.free)]
        while stack:
            node, here = stack[-1]
            if (node, here) in self.done:
                stack.pop()
                continue
            needs = [(a, here & a.free) for a in self._operands(node)]
            missing = [n for n in needs if n not in self.done]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            with np.errstate(all="ignore"):
                self.done[node, here] = self._node(node, here)
        return self.done[root, at & root.free]

    def _operands(self, node: Expr) -> list[Expr]:
        if node.op == "reduce" and (factors := self._product(node)):
            return factors
        return list(node.args)

    def _product(self, node: Expr) -> list[Expr] | None:
        """The factors of a sum of products, which einsum evaluates without the full product.

        Rounding, only a matrix product is one: the program rounds the products of other sums.
        """
        if node.attr.monoid != "sum" or not is_float(node.dtype) or self.arithmetic.field:
            return None
        if self.arithmetic.rounding and node.attr.operand is None:
            return None
        body = node.args[0]
        while body.op == "cast" and is_float(body.args[0].dtype):
            body = body.args[0]
        factors, stack = [], [body]
        while stack:
            e = stack.pop()
            exact = not self.arithmetic.rounding  # else eager rounds products within factors
            if e.op == "mul" and is_float(e.dtype) and (exact or e is body):
                stack.extend(e.args)
            elif e.op == "cast" and is_float(e.args[0].dtype) and (exact or _widens(e)):
                stack.append(e.args[0])
            else:
                factors.append(e)
        return factors if len(factors) > 1 else None

    def _node(self, node: Expr, at: At) -> Array:
        # `at` has free axes of the node alone: what a reduce binds is not among them
        match node.op:
            case "const":
                return self.arithmetic.constant(node)
            case "sym":
                return np.asarray(self.sizes[node.attr.name], np.int64)
            case "axis":
                return self.indices(node.attr, at)
            case "load":
                return self._load(node, at)
            case "reduce":
                return self._reduce(node, at)
        axes = own_axes(node)
        operands = [self._align(a, axes, at) for a in node.args]
        return np.broadcast_to(self.arithmetic.apply(node, operands), self._shape(axes, at))

    def _load(self, node: Expr, at: At) -> Array:
        axes = own_axes(node)
        tensor = self.tensors[node.attr.name]
        guard = self._align(node.args[-1], axes, at).astype(bool)
        indices = []
        for e, extent in zip(node.args[:-1], tensor.shape, strict=True):
            i = np.asarray(self._align(e, axes, at), np.int64)
            if np.any(guard & ((i < 0) | (i >= extent))):
                raise IndexError(f"{node}: index out of range 0..{extent - 1}")
            indices.append(np.clip(i, 0, max(extent - 1, 0)))
        shape = self._shape(axes, at)
        if tensor.size == 0:
            return np.zeros(shape, self.arithmetic.storage(node.dtype))
        value = tensor[tuple(indices)] if indices else tensor
        if not guard.all():
            value = np.where(guard, value, np.zeros((), tensor.dtype))
        return np.broadcast_to(self.arithmetic.held(value, node.dtype), shape)

    def _reduce(self, node: Expr, at: At) -> Array:
        bound, keep = node.attr.axes, own_axes(node)
        axes = (*keep, *bound)
        if (factors := self._product(node)) is not None:
            return self._einsum(node, factors, axes, at)
        body = np.broadcast_to(self._align(node.args[0], axes, at), self._shape(axes, at))
        return self.arithmetic.reduce(node, body, len(bound))

    def _einsum(self, node: Expr, factors: list[Expr], axes: tuple[Axis, ...], at: At) -> Array:
        number = {a: n for n, a in enumerate(axes)}
        used: set[Axis] = set().union(*(f.free for f in factors))
        single = self.arithmetic.rounding and accumulator(node.dtype) == "f32"
        width = np.float32 if single else np.float64
        operands: list[Any] = []
        for f in factors:
            value = self._value(f, at).astype(width, copy=False)
            operands += [value, [number[a] for a in own_axes(f)]]
        for a in axes:
            if a not in used:
                operands += [np.ones(self._shape((a,), at), width), [number[a]]]
        keep = [number[a] for a in own_axes(node)]
        return self.arithmetic.result(np.einsum(*operands, keep, optimize=True), node)


def _widens(cast: Expr) -> bool:
    return DTYPES[cast.dtype].epsilon <= DTYPES[cast.args[0].dtype].epsilon


def run_program(
    program: Program,
    inputs: Mapping[str, Array],
    sizes: Mapping[str, int],
    field: bool = False,
    *,
    rounding: bool = False,
    chance: int | None = None,
) -> dict[str, Array]:
    """Every stored tensor's value. Elements that no store writes are NaN (floats) or -1."""
    evaluator = Evaluator(inputs, sizes, field, rounding=rounding, chance=chance)
    for s in program.stores:
        if s.tensor.name not in evaluator.tensors:
            shape = [extent_value(e, evaluator.sizes) for e in s.tensor.shape]
            kind = DTYPES[s.tensor.dtype].kind
            empty = np.nan if kind == "float" and not field else -1 if kind != "bool" else 0
            storage = evaluator.arithmetic.storage(s.tensor.dtype)
            evaluator.tensors[s.tensor.name] = np.full(shape, empty, storage)
        value = np.broadcast_to(evaluator.align(s.value, s.axes), evaluator.shape(s.axes))
        index = tuple(evaluator.align(e, s.axes) for e in s.indices)
        if any(np.any(i < 0) for i in index):  # numpy would count from the end
            raise IllFormed(f"store to {s.tensor.name}: a negative index")
        target = evaluator.tensors[s.tensor.name]
        target[index if index else ...] = value
    return {s.tensor.name: evaluator.tensors[s.tensor.name] for s in program.stores}
