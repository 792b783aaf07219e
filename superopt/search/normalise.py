"""Rewrites of a program that every candidate profits from, done once before the search.

- What a selection keeps stands first, under comparisons of axes where it can (`conditions`);
  operands of commutative operators stand in one order.
- Axes are named by their extents, bound ones apart from all stored ones: what is equal up to such
  names is one node, and factors move past sums without capture.
- An axis that is used as `i // d` and `i % d` is split into its digits.
- An axis along which a value is pieced together is cut at the joints, and the comparisons vanish:
  a store becomes several where the parts are equal, a reduction several that are combined.
- A selection by what does not vary along a sum leaves it, where one side is zero.

    out[i] = where(i < 64, -x[i + 64], x[i - 64])        i: 128
    out[i] = -x[i + 64];  out[i + 64] = x[i]             i: 64
    max[j] where(j < N, x[j], y)                         j: N + 1
    maximum(max[j] x[j], y)                              j: N
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import (
    FALSE,
    TRUE,
    Axis,
    Expr,
    axis,
    const,
    find,
    fresh,
    index,
    is_const,
    make,
    op,
    rebuild,
    reduce,
    rewrite,
    substitute,
    toposort,
)
from superopt.mugraph.ops import MONOIDS, OPS
from superopt.mugraph.program import Program, Store
from superopt.search.increasing import share_extremes

MOST_PARTS = 4
OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


def normalise(program: Program) -> Program:
    named = _stored_by_extent([replace(s, value=conditions(s.value)) for s in program.stores])
    pieces = [part for s in _named_apart(named) for part in _unroll(_split_axes(s))]
    settled = [replace(s, value=_settle_reductions(s.value)) for s in pieces]
    shared = share_extremes(_sharing(_named_apart(settled)))
    return replace(
        program, stores=tuple(replace(s, value=rewrite(s.value, _ordered)) for s in shared)
    )


# -- conditions ---------------------------------------------------------------------------------


def conditions(root: Expr) -> Expr:
    """Selections by what is kept, constants last, so that a mask shows where it lets through.

    where(!(j <= i), -inf, s)  ->  where(j <= i, s, -inf)
    """
    return rewrite(root, lambda node: _condition(node) or _ordered(node))


def _ordered(node: Expr) -> Expr | None:
    if node.op in OPS and OPS[node.op].commutative and node.dtype != "index":
        return make(node.op, tuple(sorted(node.args)), None, node.dtype)
    return None


def _condition(node: Expr) -> Expr | None:
    if node.op == "not" and node.dtype == "bool":
        return _negation(node.args[0])
    if node.op != "where":
        return None
    c, yes, no = node.args
    if c.op == "not":  # where(!c, x, y) -> where(c, y, x)
        return _condition(op("where", c.args[0], no, yes)) or op("where", c.args[0], no, yes)
    if node.dtype == "bool" and no is FALSE:  # where(c, x, false) -> c & x
        return op("and", c, yes)
    if node.dtype == "bool" and yes is FALSE and no is TRUE:
        return _negation(c)
    if yes.op == "const" and no.op != "const" and _exact(c):
        return op("where", _negation(c) or op("not", c), no, yes)
    return None


def _exact(c: Expr) -> bool:
    """Whether a condition is made of comparisons of integers, and perhaps of other truths."""
    if c.op in ("and", "or", "not"):
        return any(map(_exact, c.args))
    return c.op in OPPOSITE and not is_float(c.args[0].dtype)


def _negation(c: Expr) -> Expr | None:
    """The opposite without a `not` around it; None where it needs one. Floats may be NaN."""
    if c is TRUE or c is FALSE:
        return FALSE if c is TRUE else TRUE
    if c.op == "not":
        return c.args[0]
    if c.op in ("and", "or") and c.dtype == "bool" and _exact(c):
        sides = (_negation(a) or op("not", a) for a in c.args)
        return op("or" if c.op == "and" else "and", *sides)
    return op(OPPOSITE[c.op], *c.args) if c.op in OPPOSITE and _exact(c) else None


# -- names --------------------------------------------------------------------------------------


def _stored_by_extent(stores: Sequence[Store]) -> list[Store]:
    """Stored axes in the order of the dimensions they index, named by their extents.

    An axis that several stores have keeps one name.
    """
    new: dict[Axis, Axis] = {}
    for s in stores:
        for a in _in_order(s):
            new.setdefault(a, fresh(Axis(_stem(a.extent, "n"), a.extent), new.values()))
    binding = {a: axis(to) for a, to in new.items()}
    return [
        Store(
            s.tensor,
            tuple(new[a] for a in _in_order(s)),
            tuple(substitute(i, binding) for i in s.indices),
            substitute(s.value, binding),
        )
        for s in stores
    ]


def _in_order(s: Store) -> list[Axis]:
    met = (n.attr for i in s.indices for n in find(i, "axis"))
    return list(dict.fromkeys([*met, *s.axes]))


def _named_apart(stores: Sequence[Store]) -> list[Store]:
    stored = frozenset(a for s in stores for a in s.axes)
    return [replace(s, value=canonical(s.value, stored)) for s in stores]


def canonical(root: Expr, stored: frozenset[Axis], outermost: Axis | None = None) -> Expr:
    """Bound axes named by extent, each the first name that is free below and not in `stored`.

    A reduction that is inside no other binds `outermost` where that has the extent of its axis.
    """
    memo: dict[tuple[Expr, Axis | None], Expr] = {}

    def visit(node: Expr, first: Axis | None) -> Expr:
        if (node, first) in memo:
            return memo[node, first]
        if node.op == "reduce":
            body, axes = _renamed(node, stored, first)
            spec = replace(node.attr, axes=axes)
            result = make("reduce", (visit(body, None),), spec, node.dtype)
        else:
            result = rebuild(node, tuple(visit(a, first) for a in node.args))
        memo[node, first] = result
        return result

    return visit(root, outermost)


def _renamed(
    node: Expr, stored: frozenset[Axis], first: Axis | None
) -> tuple[Expr, tuple[Axis, ...]]:
    """A reduction's body and axes under their canonical names."""
    body, taken = node.args[0], set(node.free | stored)
    met = [n.attr for n in find(body, "axis") if n.attr in node.attr.axes]
    binding: dict[Axis, Axis] = {}
    for a in dict.fromkeys([*met, *node.attr.axes]):
        if first is not None and first.extent is a.extent and first not in node.free:
            new, first = first, None
        else:
            new = fresh(Axis(_stem(a.extent, "r"), a.extent), taken)
        taken.add(new)
        binding[a] = new
    body = substitute(body, {a: axis(new) for a, new in binding.items() if a != new})
    return body, tuple(sorted(binding.values(), key=lambda a: a.name))


def _stem(extent: Expr, kind: str) -> str:
    """`r4096`, `rb` for Dim B, and a name of its own for each composite extent."""
    if extent.op == "const":
        return f"{kind}{extent.attr}"
    if extent.op == "sym":
        return f"{kind}{extent.attr.name.lower().replace('_', '')}"
    return f"{kind}m{extent.digest[:6]}"


def _sharing(stores: list[Store]) -> list[Store]:
    """Let a store's outermost reduction run over another's stored axis, where values then agree.

    out0[i] = ... sum[r] f(i, r);  out1[j] = sum[r] g(r, j) / sum[r_1] f(r, r_1)
    out0[i] = ... sum[r] f(i, r);  out1[j] = sum[i] g(i, j) / sum[r] f(i, r)
    """
    stored = frozenset(a for s in stores for a in s.axes)
    for n, s in enumerate(stores):
        others = {r for t in stores if t is not s for r in find(t.value, "reduce")}
        mine = frozenset(a for i in s.indices for a in i.free) | frozenset(s.axes)
        foreign = dict.fromkeys(a for t in stores for a in t.axes if a not in mine)
        best = len(others.intersection(find(s.value, "reduce")))
        for a in foreign:
            value = canonical(s.value, stored, a)
            common = len(others.intersection(find(value, "reduce")))
            if common > best:
                best, stores[n] = common, replace(s, value=value)
    return stores


# -- digits -------------------------------------------------------------------------------------


def _digits(roots: Sequence[Expr], a: Axis) -> list[Axis]:
    """The axes that stand for the digits by which expressions use an axis; one where it is whole.

    k // 1024, k // 32 % 32, k % 32 with 16384 of k: axes of 16, 32 and 32.
    """
    if a.extent.op != "const":
        return [a]
    radices = {1, a.extent.attr}
    for n in toposort(*roots):
        if n.op not in ("floordiv", "mod") or n.dtype != "index" or n.args[1].op != "const":
            continue
        whole, by = n.args
        if whole is axis(a):
            radices.add(by.attr)
        elif whole.op == "floordiv" and whole.args[0] is axis(a) and whole.args[1].op == "const":
            radices |= {whole.args[1].attr, whole.args[1].attr * by.attr}
    steps = sorted(radices)
    if len(steps) < 3 or any(big % small for small, big in pairwise(steps)):
        return [a]
    sizes = [big // small for small, big in pairwise(steps)]
    return [Axis(a.name, index(size)) for size in reversed(sizes)]


def _joined(digits: Sequence[Axis]) -> Expr:
    """The index of which the axes are the digits, the most significant first."""
    total = index(0)
    for d in digits:
        total = op("add", op("mul", total, d.extent), axis(d))
    return total


def _named(digits: Sequence[Axis], taken: Sequence[Axis]) -> list[Axis]:
    """Digits with names that differ: of an axis i, io and ii."""
    made: list[Axis] = []
    for n, d in enumerate(digits):
        suffix = "i" if n else "o"
        made.append(fresh(Axis(d.name + suffix, d.extent), [*taken, *made]))
    return made


def _split_axes(s: Store) -> Store:
    """A stored axis i of which `i // d` and `i % d` are used becomes several."""
    for a in s.axes:
        digits = _digits([s.value], a)
        if len(digits) > 1:
            named = _named(digits, s.axes)
            s = _substitute_axis(s, a, tuple(named), _joined(named))
    return s


def _substitute_axis(s: Store, old: Axis, new: tuple[Axis, ...], by: Expr) -> Store:
    axes: list[Axis] = []
    for a in s.axes:
        axes.extend(new if a == old else (a,))
    indices = tuple(substitute(i, {old: by}) for i in s.indices)
    return Store(s.tensor, tuple(axes), indices, substitute(s.value, {old: by}))


# -- pieces -------------------------------------------------------------------------------------


def _cuts(root: Expr, a: Axis) -> list[Expr] | None:
    """Where guards of loads change along an axis: sizes within it, in order; None if unclear."""
    guards = [n.args[-1] for n in find(root, "load") if a in n.args[-1].free]
    found: dict[Expr, None] = {}
    for n in toposort(*guards):
        if n.op in OPPOSITE and n.args[0].dtype == n.args[1].dtype == "index" and a in n.free:
            found.update(dict.fromkeys(_changes(n, a)))
    inside: list[Expr] = []
    for at in found:
        if ix.less(index(0), at) is False or ix.less(at, a.extent) is False:
            continue
        if not (ix.at_least_zero(at) and ix.at_least_zero(op("sub", a.extent, at))):
            return None
        place = sum(ix.at_least_zero(op("sub", at, other)) for other in inside)
        if any(not ix.at_least_zero(op("sub", other, at)) for other in inside[place:]):
            return None
        inside.insert(place, at)
    return inside


def _changes(n: Expr, a: Axis) -> Iterator[Expr]:
    """The sizes at which a comparison of an axis alone changes its value."""
    p = ix.poly(op("sub", *n.args))
    scale = p.pop((axis(a),), 0)
    rest = ix.from_poly(p)
    if scale not in (1, -1) or rest.free or next(find(rest, "load"), None) is not None:
        return
    at = op("mul", rest, index(-scale))
    beyond = op("add", at, index(1))
    if n.op in ("eq", "ne"):
        yield from (at, beyond)
    else:
        inclusive = (n.op in ("le", "gt")) == (scale > 0)
        yield beyond if inclusive else at


def _parts(root: Expr, a: Axis) -> int:
    """Into how many equal parts an axis is cut where values are joined; 1 leaves it."""
    cuts = _cuts(root, a)
    if not cuts or a.extent.op != "const" or any(c.op != "const" for c in cuts):
        return 1
    extent = a.extent.attr
    for parts in range(2, MOST_PARTS + 1):
        if extent % parts == 0 and all(c.attr % (extent // parts) == 0 for c in cuts):
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


# -- reductions ---------------------------------------------------------------------------------


def _settle_reductions(root: Expr) -> Expr:
    return rewrite(root, lambda node: _settled(node) if node.op == "reduce" else None)


def _settled(node: Expr) -> Expr | None:
    """A reduction cut at joints, its axes split into digits, invariant selections outside."""
    if node.attr.monoid == "sum" and is_const(node.args[0], 0):
        return const(0, node.dtype)
    for step in (_cut_reduction, _split_reduction, _leave_selection):
        changed = step(node)
        if changed is not None:
            return _settle_reductions(changed)
    return None


def _split_reduction(node: Expr) -> Expr | None:
    body, spec = node.args[0], node.attr
    for a in spec.axes:
        digits = _digits([body], a)
        if len(digits) > 1:
            others = tuple(b for b in spec.axes if b != a)
            named = _named(digits, [*body.free, *others])
            body = substitute(body, {a: _joined(named)})
            return reduce(spec.monoid, (*others, *named), body, spec.operand, node.dtype)
    return None


def _cut_reduction(node: Expr) -> Expr | None:
    """The combination of reductions over the pieces of an axis, which may differ in length."""
    body, spec = node.args[0], node.attr
    for a in spec.axes:
        cuts = _cuts(body, a)
        if not cuts or len(cuts) >= MOST_PARTS:
            continue
        others = tuple(b for b in spec.axes if b != a)
        total: Expr | None = None
        for begin, end in zip([index(0), *cuts], [*cuts, a.extent], strict=True):
            piece = fresh(Axis(f"{a.name}u", op("sub", end, begin)), body.free)
            at = op("add", axis(piece), begin)
            part = substitute(body, {a: at})
            term = reduce(spec.monoid, (*others, piece), part, spec.operand, node.dtype)
            total = term if total is None else op(MONOIDS[spec.monoid].combine, total, term)
        return total
    return None


def _leave_selection(node: Expr) -> Expr | None:
    """sum[k] x*where(c, 0, y) -> where(c, 0, sum[k] x*y): c does not vary along k, x is finite."""
    body, spec = node.args[0], node.attr
    if spec.monoid != "sum":
        return None
    bound = frozenset(spec.axes)
    for selection in find(body, "where"):
        c = selection.args[0]
        if c.free & bound or not selection.free & bound or not is_float(selection.dtype):
            continue
        sides = [_with_side(body, c, n) for n in (1, 2)]
        empty = [_is_zero(side) for side in sides]
        if any(empty):
            sums = [
                const(0, node.dtype) if zero
                else reduce(spec.monoid, spec.axes, side, spec.operand, node.dtype)
                for zero, side in zip(empty, sides, strict=True)
            ]  # fmt: skip
            return op("where", c, *sums)
    return None


def _with_side(root: Expr, c: Expr, side: int) -> Expr:
    """The expression where `c` is known: the first side of its selections if so, or the second."""
    return rewrite(root, lambda n: n.args[side] if n.op == "where" and n.args[0] is c else None)


def _is_zero(e: Expr) -> bool:
    """Whether a value is zero as long as what a zero is multiplied with is finite."""
    match e.op:
        case "const":
            return is_const(e, 0)
        case "cast" | "neg" | "square" | "abs":
            return _is_zero(e.args[0])
        case "mul":
            return any(map(_is_zero, e.args))
        case "add" | "sub":
            return all(map(_is_zero, e.args))
        case "div":
            return _is_zero(e.args[0])
    return False
