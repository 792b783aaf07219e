"""Rewrites of a program that every candidate profits from, done once before the search.

- Bound axes get names that no stored axis has, so that factors move past sums without capture.
- A stored axis that is only used as `i // d` and `i % d` is split into two.
- An axis compared with constants is unrolled at these points, where they cut it into a few equal
  parts: a store becomes several, a sum a sum of several, and the comparisons vanish.

    out[i] = where(i < 64, -x[i + 64], x[i - 64])        i: 128
    out[i] = -x[i + 64];  out[i + 64] = x[i]             i: 64
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from superopt.mugraph import index as ix
from superopt.mugraph.expr import (
    Axis,
    Expr,
    axis,
    find,
    fresh,
    index,
    make,
    op,
    rebuild,
    reduce,
    rewrite,
    substitute,
    toposort,
)
from superopt.mugraph.ops import MONOIDS
from superopt.mugraph.program import Program, Store

MOST_PARTS = 4


def normalise(program: Program) -> Program:
    stored = frozenset(a for s in program.stores for a in s.axes)
    stores: list[Store] = []
    for s in program.stores:
        split = _split_axes(s)
        for part in _unroll(split):
            taken = stored | frozenset(part.axes)
            stores.append(replace(part, value=_apart(_unroll_reductions(part.value), taken)))
    return replace(program, stores=tuple(stores))


def _apart(root: Expr, taken: frozenset[Axis]) -> Expr:
    """Rename bound axes so that none has a name in `taken`."""
    names = {a.name for a in taken}
    memo: dict[Expr, Expr] = {}

    def visit(node: Expr) -> Expr:
        if node in memo:
            return memo[node]
        if node.op == "reduce" and any(a.name in names for a in node.attr.axes):
            body, bound = node.args[0], []
            for a in node.attr.axes:
                new = a
                if a.name in names:
                    inner = {n.attr for n in find(body, "axis")} | set(node.attr.axes)
                    new = fresh(Axis(f"r{a.name}", a.extent), taken | body.free | inner)
                    body = substitute(body, {a: axis(new)})
                bound.append(new)
            spec = replace(node.attr, axes=tuple(sorted(bound, key=lambda a: a.name)))
            result = make("reduce", (visit(body),), spec, node.dtype)
        else:
            result = rebuild(node, tuple(visit(a) for a in node.args))
        memo[node] = result
        return result

    return visit(root)


def _split_axes(s: Store) -> Store:
    """Replace an axis i of which only `i // d`, `i % d` (one constant d) matter by two axes."""
    for a in s.axes:
        divisors = {
            n.args[1].attr
            for n in toposort(s.value)
            if n.op in ("floordiv", "mod")
            and n.dtype == "index"
            and n.args[0] is axis(a)
            and n.args[1].op == "const"
        }
        if len(divisors) != 1 or a.extent.op != "const":
            continue
        (d,) = divisors
        if a.extent.attr % d:
            continue
        outer = fresh(Axis(f"{a.name}o", index(a.extent.attr // d)), s.axes)
        inner = fresh(Axis(f"{a.name}i", index(d)), (*s.axes, outer))
        s = _substitute_axis(
            s, a, (outer, inner), op("add", op("mul", axis(outer), index(d)), axis(inner))
        )
    return s


def _substitute_axis(s: Store, old: Axis, new: tuple[Axis, ...], by: Expr) -> Store:
    axes: list[Axis] = []
    for a in s.axes:
        axes.extend(new if a is old or a == old else (a,))
    indices = tuple(substitute(i, {old: by}) for i in s.indices)
    return Store(s.tensor, tuple(axes), indices, substitute(s.value, {old: by}))


def _cuts(root: Expr, a: Axis) -> set[int]:
    """The constants at which comparisons of `a` alone change their value."""
    found: set[int] = set()
    for n in find(root, "lt", "le", "gt", "ge", "eq", "ne"):
        left, right = n.args
        if left.dtype != "index" or right.dtype != "index" or a not in n.free:
            continue
        p = ix.poly(ix.sub(left, right))
        scale = p.pop((axis(a),), 0)
        offset = p.pop((), 0)
        if p or scale not in (1, -1):
            continue
        at = -offset * scale
        if n.op in ("eq", "ne"):
            found |= {at, at + 1}
        else:
            inclusive = (n.op in ("le", "gt")) == (scale > 0)
            found.add(at + 1 if inclusive else at)
    return found


def _parts(root: Expr, a: Axis) -> int:
    """Into how many equal parts the axis is unrolled; 1 leaves it."""
    if a.extent.op != "const":
        return 1
    extent = a.extent.attr
    cuts = {c for c in _cuts(root, a) if 0 < c < extent}
    for parts in range(2, MOST_PARTS + 1):
        if cuts and extent % parts == 0 and all(c % (extent // parts) == 0 for c in cuts):
            return parts
    return 1


def _unroll(s: Store) -> Iterator[Store]:
    for a in s.axes:
        parts = _parts(s.value, a)
        if parts == 1:
            continue
        size = a.extent.attr // parts
        short = fresh(Axis(f"{a.name}u", index(size)), s.axes)
        for t in range(parts):
            at = op("add", axis(short), index(t * size)) if size > 1 else index(t)
            yield from _unroll(_substitute_axis(s, a, (short,) if size > 1 else (), at))
        return
    yield s


def _unroll_reductions(root: Expr) -> Expr:
    def change(node: Expr) -> Expr | None:
        if node.op != "reduce":
            return None
        for a in node.attr.axes:
            parts = _parts(node.args[0], a)
            if parts == 1:
                continue
            size = a.extent.attr // parts
            short = fresh(Axis(f"{a.name}u", index(size)), node.args[0].free)
            others = tuple(b for b in node.attr.axes if b != a)
            spec = node.attr
            total: Expr | None = None
            for t in range(parts):
                at = op("add", axis(short), index(t * size)) if size > 1 else index(t)
                body = _unroll_reductions(substitute(node.args[0], {a: at}))
                axes = (*others, short) if size > 1 else others
                term = reduce(spec.monoid, axes, body, spec.operand, node.dtype)
                total = term if total is None else op(MONOIDS[spec.monoid].combine, total, term)
            return total
        return None

    return rewrite(root, change)
