"""The reference meaning of a program, on numpy arrays: float64, or a finite field.

Expressions are evaluated whole (no tiles) at small sizes: an array whose dimensions are the
expression's free axes, ordered by name. This is the oracle that every check compares with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from superopt.errors import IllFormed
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Axis, Expr, toposort
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.ops import MONOIDS, OPS, PRIME, field_inverse, identity
from superopt.mugraph.program import Program

Array = np.ndarray[Any, Any]
_STORAGE = {"float": np.float64, "int": np.int64, "index": np.int64, "bool": np.bool_}


class NoFieldMeaning(IllFormed):
    """An operator of the program has no exact meaning over a finite field."""


def field_const(x: float) -> int:
    """The residue of a float, which is a rational number: numerator / denominator mod p."""
    if not np.isfinite(x):
        raise NoFieldMeaning(f"the constant {x} has no meaning over a finite field")
    top, bottom = float(x).as_integer_ratio()
    return int(top * pow(bottom, -1, PRIME) % PRIME)


class Evaluator:
    """Evaluates expressions over fixed sizes and inputs; keeps what it has computed.

    `field`: float values are residues mod `PRIME`; comparisons and logic of integers stay exact.
    """

    def __init__(
        self, tensors: Mapping[str, Array], sizes: Mapping[str, int], field: bool = False
    ) -> None:
        self.tensors = dict(tensors)
        self.sizes = dict(sizes)
        self.field = field
        self.done: dict[Expr, Array] = {}

    def extent(self, a: Axis) -> int:
        return extent_value(a.extent, self.sizes)

    def __call__(self, root: Expr) -> Array:
        """The value of `root`; dimension n runs over its n-th free axis by name."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
                continue
            needs = [a for a in self._operands(node) if a not in self.done]
            if needs:
                stack.extend(needs)
                continue
            stack.pop()
            with np.errstate(all="ignore"):
                self.done[node] = self._node(node)
        return self.done[root]

    def align(self, e: Expr, axes: tuple[Axis, ...]) -> Array:
        """The value of `e` with a dimension for each of `axes`, of size 1 where it does not vary."""
        own = sorted(e.free, key=lambda a: a.name)
        array = self(e)
        present = [a for a in axes if a in e.free]
        array = np.transpose(array, [own.index(a) for a in present])
        return array.reshape([self.extent(a) if a in e.free else 1 for a in axes])

    def _operands(self, node: Expr) -> list[Expr]:
        if node.op == "reduce" and (factors := self._product(node)):
            return factors
        return list(node.args)

    def _product(self, node: Expr) -> list[Expr] | None:
        """The factors of a sum of products, which einsum evaluates without the full product."""
        if node.attr.monoid != "sum" or not DTYPES[node.dtype].kind == "float" or self.field:
            return None
        factors, stack = [], [node.args[0]]
        while stack:
            e = stack.pop()
            if e.op == "mul":
                stack.extend(e.args)
            elif e.op == "cast" and DTYPES[e.args[0].dtype].kind == "float":
                stack.append(e.args[0])
            else:
                factors.append(e)
        return factors if len(factors) > 1 else None

    def _node(self, node: Expr) -> Array:
        kind = DTYPES[node.dtype].kind
        match node.op:
            case "const":
                if self.field and kind == "float":
                    return np.asarray(field_const(node.attr), np.int64)
                return np.asarray(node.attr, _STORAGE[kind])
            case "sym":
                return np.asarray(self.sizes[node.attr.name], np.int64)
            case "axis":
                return np.arange(self.extent(node.attr), dtype=np.int64)
            case "load":
                return self._load(node)
            case "reduce":
                return self._reduce(node)
        axes = tuple(sorted(node.free, key=lambda a: a.name))
        operands = [self.align(a, axes) for a in node.args]
        if node.op == "cast":
            result = self._cast(operands[0], node.args[0].dtype, node.dtype)
        elif self.field and any(DTYPES[a.dtype].kind == "float" for a in node.args[-1:]):
            result = self._field_op(node, operands)
        else:
            result = OPS[node.op].numpy(*operands)
        return np.broadcast_to(
            np.asarray(result, np.int64 if self.field and kind == "float" else _STORAGE[kind]),
            [self.extent(a) for a in axes],
        )

    def _field_op(self, node: Expr, operands: list[Array]) -> Array:
        if node.op == "where":
            return np.where(*operands)
        if node.op == "pow" and node.args[1].op == "const" and float(node.args[1].attr).is_integer():
            return self._field_power(operands[0], int(node.args[1].attr))
        meaning = OPS[node.op].field
        if meaning is None:
            raise NoFieldMeaning(f"operator {node.op} has no exact meaning over a finite field")
        return meaning(*operands)  # type: ignore[no-any-return]

    def _field_power(self, base: Array, exponent: int) -> Array:
        result = np.ones_like(base)
        for _ in range(abs(exponent)):
            result = result * base % PRIME
        return field_inverse(result) if exponent < 0 else result  # type: ignore[no-any-return]

    def _cast(self, x: Array, source: str, target: str) -> Array:
        to, of = DTYPES[target].kind, DTYPES[source].kind
        if self.field and "float" in (to, of):
            if to == of:
                return x
            if to == "float":
                return x.astype(np.int64) % PRIME
            raise NoFieldMeaning(f"a cast from {source} to {target} has no field meaning")
        if to == "bool":
            return x != 0
        if to == "int" and of == "float":
            x = np.nan_to_num(np.trunc(x), nan=0.0, posinf=2.0**62, neginf=-(2.0**62))
        if to == "int":
            bits = DTYPES[target].bytes * 8
            wide = x.astype(np.int64)
            if bits == 64:
                return wide
            if target == "u8":
                return wide & 255
            return ((wide + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))
        return x.astype(_STORAGE[to])

    def _load(self, node: Expr) -> Array:
        axes = tuple(sorted(node.free, key=lambda a: a.name))
        tensor = self.tensors[node.attr.name]
        guard = self.align(node.args[-1], axes).astype(bool)
        indices = []
        for e, extent in zip(node.args[:-1], tensor.shape, strict=True):
            i = np.asarray(self.align(e, axes), np.int64)
            if np.any(guard & ((i < 0) | (i >= extent))):
                raise IndexError(f"{node}: index out of range 0..{extent - 1}")
            indices.append(np.clip(i, 0, max(extent - 1, 0)))
        shape = [self.extent(a) for a in axes]
        if tensor.size == 0:
            return np.zeros(shape, tensor.dtype)
        value = tensor[tuple(indices)] if indices else tensor
        return np.broadcast_to(np.where(guard, value, np.zeros((), tensor.dtype)), shape)

    def _reduce(self, node: Expr) -> Array:
        monoid, bound = node.attr.monoid, node.attr.axes
        keep = tuple(sorted(node.free, key=lambda a: a.name))
        factors = self._product(node)
        if factors is not None:
            return self._einsum(factors, bound, keep)
        axes = (*keep, *bound)
        shape = [self.extent(a) for a in axes]
        body = np.broadcast_to(self.align(node.args[0], axes), shape)
        dims = tuple(range(len(keep), len(axes)))
        row = MONOIDS[monoid]
        if self.field and DTYPES[node.dtype].kind == "float":
            if row.field is None:
                raise NoFieldMeaning(f"a reduction by {monoid} has no field meaning")
            for _ in dims:
                body = row.field(body, body.ndim - 1)
            return body
        if monoid in ("max", "min"):
            return row.numpy.reduce(body, axis=dims, initial=identity(monoid, node.dtype))  # type: ignore[no-any-return]
        return row.numpy.reduce(body, axis=dims)  # type: ignore[no-any-return]

    def _einsum(self, factors: list[Expr], bound: tuple[Axis, ...], keep: tuple[Axis, ...]) -> Array:
        axes = (*keep, *bound)
        number = {a: n for n, a in enumerate(axes)}
        used: set[Axis] = set().union(*(f.free for f in factors))
        operands: list[Any] = []
        for f in factors:
            own = sorted(f.free, key=lambda a: a.name)
            operands += [self(f).astype(np.float64), [number[a] for a in own]]
        for a in axes:
            if a not in used:
                operands += [np.ones(self.extent(a)), [number[a]]]
        return np.einsum(*operands, [number[a] for a in keep], optimize=len(factors) > 2)  # type: ignore[no-any-return]


def run_program(
    program: Program, inputs: Mapping[str, Array], sizes: Mapping[str, int], field: bool = False
) -> dict[str, Array]:
    """Every stored tensor's value. Elements that no store writes are NaN (floats) or -1."""
    tensors: dict[str, Array] = dict(inputs)
    evaluator = Evaluator(tensors, sizes, field)
    for s in program.stores:
        shape = [extent_value(e, evaluator.sizes) for e in s.tensor.shape]
        kind = DTYPES[s.tensor.dtype].kind
        if s.tensor.name not in evaluator.tensors:
            empty = np.nan if kind == "float" and not field else -1 if kind != "bool" else 0
            dtype = np.int64 if field and kind == "float" else _STORAGE[kind]
            evaluator.tensors[s.tensor.name] = np.full(shape, empty, dtype)
        value = evaluator.align(s.value, s.axes)
        index = tuple(evaluator.align(e, s.axes) for e in s.indices)
        full = [evaluator.extent(a) for a in s.axes]
        target = evaluator.tensors[s.tensor.name]
        if index:
            target[index] = np.broadcast_to(value, full)
        else:
            target[...] = value
    return {s.tensor.name: evaluator.tensors[s.tensor.name] for s in program.stores}
