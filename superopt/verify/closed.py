"""Programs as one expression an output, so that a check evaluates just the elements it samples.

A load of a temporary is replaced by the value stored there:

    t[i] = sum[k] x[i, k];  out[i, j] = t[i] * w[j]      ->      out[i, j] = (sum[k] x[i, k]) * w[j]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isinf

import numpy as np

from superopt.errors import IllFormed
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.evaluate import Array
from superopt.mugraph.expr import (
    BINDERS,
    TRUE,
    Axis,
    Expr,
    Tensor,
    axis,
    cast,
    const,
    in_one_turn,
    index,
    is_const,
    op,
    rewrite,
    substitute,
    toposort,
)
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import KernelGraph, Program, Store

STEPS = ("sign", "floor", "ceil", "trunc", "round", "floordiv", "mod", "fmod")
PASSED = {  # operators that are sums of products of these operands and others
    **dict.fromkeys(("add", "sub", "mul", "neg", "cast", "reduce"), slice(None)),
    "div": slice(1),
    "where": slice(1, None),
}
MOST_WORK = 8_000_000  # scalar operations a check spends on one output at one size


class NotClosed(IllFormed):
    """A tensor is stored in pieces, so that no single expression gives all of it."""


@dataclass(frozen=True)
class Pair:
    """One store of a candidate beside what the original has there, over the same `axes`."""

    tensor: Tensor
    axes: tuple[Axis, ...]
    indices: tuple[Expr, ...]
    want: Expr
    got: Expr


def as_program(candidate: Program | KernelGraph) -> Program:
    """A µGraph's stores, kernels in order; a program as it is."""
    if isinstance(candidate, Program):
        return candidate
    stores = tuple(s for k in candidate.kernels for s in k.stores)
    return Program(candidate.name, candidate.inputs, stores, candidate.outputs)


def _is_plain(s: Store) -> bool:
    """Whether the store writes the whole tensor, an axis a dimension."""
    own = [i.attr for i in s.indices if i.op == "axis"]
    whole = all(
        i.attr.extent is e if i.op == "axis" else is_const(i, 0) and is_const(e, 1)
        for i, e in zip(s.indices, s.tensor.shape, strict=True)
    )
    return whole and len(set(own)) == len(own) and set(own) == set(s.axes)


def _at(s: Store, indices: Sequence[Expr], guard: Expr) -> Expr:
    """The value that a plain store puts at `indices`; 0 where the guard is false."""
    if guard is not TRUE:  # an index may be out of range there
        indices = [op("where", guard, i, index(0)) for i in indices]
    binding = {at.attr: i for at, i in zip(s.indices, indices, strict=True) if at.op == "axis"}
    value = cast(substitute(s.value, binding), s.tensor.dtype)
    return value if guard is TRUE else op("where", guard, value, const(0, s.tensor.dtype))


def close(program: Program) -> list[Store]:
    """The stores of the outputs, all temporaries replaced by what is stored in them.

    Online loops take one turn: where statistics have no value, guards decide, as in the kernel.

    Raises NotClosed where a temporary that is loaded is stored in pieces.
    """
    known: dict[Tensor, Store] = {}
    stores: list[Store] = []
    pieces = {s.tensor for n, s in enumerate(program.stores) if not _is_plain(s)}

    def inline(node: Expr) -> Expr | None:
        if node.op != "load":
            return None
        if node.attr in pieces:
            raise NotClosed(f"{program.name}: {node.attr.name} is stored in pieces")
        return _at(known[node.attr], node.args[:-1], node.args[-1]) if node.attr in known else None

    for s in program.stores:
        closed = Store(
            s.tensor,
            s.axes,
            s.indices,
            cast(rewrite(in_one_turn(s.value), inline), s.tensor.dtype),
        )
        known[s.tensor] = closed
        stores.append(closed)
    return [s for s in stores if s.tensor in program.outputs]


def plain_stores(program: Program) -> dict[Tensor, Store]:
    """Each output's value in terms of the inputs; NotClosed where one is stored in pieces."""
    stores = {s.tensor: s for s in close(program)}
    if any(not _is_plain(s) for s in stores.values()):
        raise NotClosed(f"{program.name}: an output is stored in pieces")
    return stores


def pair(original: Program, candidate: Program) -> list[Pair]:
    """Each store of the candidate's outputs beside the original's value at the same elements.

    Raises NotClosed where the original stores an output in pieces, IllFormed where outputs differ.
    """
    if [(t.shape, t.dtype) for t in original.outputs] != [
        (t.shape, t.dtype) for t in candidate.outputs
    ]:
        raise IllFormed(f"{candidate.name}: its outputs are not those of {original.name}")
    same = dict(zip(candidate.outputs, original.outputs, strict=True))
    wanted = plain_stores(original)
    return [_pair(wanted[same[s.tensor]], s) for s in close(candidate)]


def _pair(want: Store, got: Store) -> Pair:
    """Axes get names of their own: a bound axis of either side must not be one of them."""
    own = {a: Axis(f"at.{n}", a.extent) for n, a in enumerate(got.axes)}
    renaming = {a: axis(b) for a, b in own.items()}
    indices = tuple(substitute(i, renaming) for i in got.indices)
    value = substitute(got.value, renaming)
    return Pair(got.tensor, tuple(own.values()), indices, _at(want, indices, TRUE), value)


def continuous(roots: Iterable[Expr]) -> bool:
    """Whether no rounding of a value can decide between two results: no float is compared, but with
    infinity, or made a whole number."""

    def steps(e: Expr) -> bool:
        if not any(is_float(a.dtype) for a in e.args) or e.op in ("load", "isnan", "isinf"):
            return False
        extreme = any(a.op == "const" and is_float(a.dtype) and isinf(a.attr) for a in e.args)
        return e.op in STEPS or (not is_float(e.dtype) and not extreme)

    return not any(map(steps, toposort(*roots)))


def factors(roots: Iterable[Expr]) -> frozenset[Tensor]:
    """The tensors that all roots are made of by products and sums alone, other factors aside."""
    found: set[Tensor] = set()
    others: set[Tensor] = set()
    seen, stack = set(), list(roots)
    while stack:
        e = stack.pop()
        if e in seen:
            continue
        seen.add(e)
        if e.op == "load":
            found.add(e.attr)
        sums = e.op in PASSED and (e.op != "reduce" or e.attr.monoid == "sum")
        below = e.args[PASSED[e.op]] if sums else ()
        stack.extend(below)
        rest = [a for a in e.args if a not in below]
        others.update(n.attr for n in toposort(*rest) if n.op == "load")
    return frozenset(found - others)


def work(roots: Iterable[Expr], count: Mapping[Axis, int], sizes: Mapping[str, int]) -> int:
    """Scalar operations to evaluate `roots` where the axes of `count` take so many values each.

    Where a reduction binds an axis of that name it takes all.
    """
    total = 0
    stack: list[tuple[Expr, frozenset[Axis]]] = [(root, frozenset()) for root in roots]
    seen = set(stack)
    while stack:
        node, whole = stack.pop()
        bound = frozenset(node.attr.axes) if node.op in BINDERS else frozenset()
        whole |= bound & count.keys()
        extents = (
            count[a] if a in count and a not in whole else extent_value(a.extent, dict(sizes))
            for a in node.free | bound
        )
        total += int(np.prod([float(n) for n in extents]))
        below = {(a, whole & a.free) for a in node.args} - seen
        seen |= below
        stack.extend(below)
    return total


def choose_points(
    roots: Sequence[Expr],
    axes: Sequence[Axis],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    most: int = MOST_WORK,
) -> dict[Axis, Array]:
    """Index values for each axis: all where that is cheap, else its ends and random ones."""
    full = {a: extent_value(a.extent, dict(sizes)) for a in axes}
    count = dict(full)
    while work(roots, count, sizes) > most and max(count.values(), default=1) > 1:
        widest = max(count, key=lambda a: (count[a], a.name))
        count[widest] = -(-count[widest] // 2)
    points = {}
    for a, n in full.items():
        inner = rng.permutation(n)[: max(count[a] - 2, 0)] if n > 2 else np.arange(0)
        ends = [n - 1, 0][: count[a]] if n else []
        chosen = np.unique(np.concatenate([np.asarray(ends, np.int64), inner]))
        points[a] = np.arange(n) if count[a] == n else chosen
    return points


def covered(stores: Sequence[Pair], sizes: Mapping[str, int], shape: Sequence[int]) -> str | None:
    """Why the stores of one tensor do not write each of its elements once; None where they do."""
    from superopt.mugraph.evaluate import Evaluator

    if int(np.prod(shape)) > MOST_WORK:
        return None if len(stores) == 1 else "too large to see that its pieces make up the whole"
    times = np.zeros(tuple(shape), np.int64)
    evaluator = Evaluator({}, sizes)
    for p in stores:
        full = evaluator.shape(p.axes)
        at = tuple(np.broadcast_to(evaluator.align(i, p.axes), full) for i in p.indices)
        np.add.at(times, at, 1)
    if not np.all(times == 1):
        where = tuple(int(i) for i in np.argwhere(times != 1)[0])
        return f"element {where} is stored {int(times[where])} times"
    return None
