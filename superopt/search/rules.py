"""The algebra: rules that saturate the e-graph around reductions, a row each.

Each row has a name, what it rewrites to what, its precondition, and a function that yields classes
equal to the one in which it was found. All hold over the reals where both
sides are defined; casts between floats are hints (see `egraph`). At most three operators stand on
a left side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isfinite

from superopt.mugraph.expr import Axis, cast
from superopt.mugraph.index import mul as index_mul
from superopt.search.egraph import EGraph, ENode

MOST_TERMS = 5  # of a sum whose exp is parted
Apply = Callable[[EGraph, int, ENode], Iterator[int]]


@dataclass(frozen=True)
class Rule:
    """`apply(graph, class, node)` yields classes equal to `class`, in which `node` was found."""

    name: str
    rewrite: str
    when: str
    apply: Apply


def _products(g: EGraph, c: int) -> list[ENode]:
    """The class's product forms; a class without one is the product of itself."""
    found = [n for n in g[c].nodes if n.op == "*"]
    return found or [ENode("*", 1.0, (g.find(c),))]


def _sums(g: EGraph, n: ENode) -> Iterator[tuple[tuple[Axis, ...], ENode]]:
    if n.op == "reduce" and n.attr.monoid == "sum":
        for body in _products(g, n.children[0]):
            yield n.attr.axes, body


def _extent(g: EGraph, axes: tuple[Axis, ...], dtype: str) -> int:
    count = axes[0].extent
    for a in axes[1:]:
        count = index_mul(count, a.extent)
    return g.add(ENode("leaf", cast(count, dtype), ()), dtype)


def _factor_leaves_sum(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for axes, body in _sums(g, n):
        dtype = g[c].dtype
        outside = [f for f in body.children if not g[f].free & set(axes)]
        inside = [f for f in body.children if g[f].free & set(axes)]
        if not outside and body.attr == 1.0:
            continue
        if inside:
            rest = g.reduction(n.attr, axes, g.product(1.0, inside, dtype))
        else:
            rest = _extent(g, axes, dtype)
        yield g.product(body.attr, [*outside, rest], dtype)


def _sum_nests(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for axes, body in _sums(g, n):
        for a in axes if len(axes) > 1 else ():
            outside = [f for f in body.children if a not in g[f].free]
            inside = [f for f in body.children if a in g[f].free]
            if not outside or not inside:
                continue
            inner = g.reduction(n.attr, (a,), g.product(1.0, inside, g[c].dtype))
            others = tuple(b for b in axes if b != a)
            yield g.reduction(n.attr, others, g.product(body.attr, [*outside, inner], g[c].dtype))


def _sum_splits(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for axes, body in _sums(g, n):
        free = [g[f].free for f in body.children]
        whole = frozenset().union(*free)
        if not all(f < whole for f in free):
            continue
        for a in axes if len(axes) > 1 else ():
            if all(a in f for f in free):
                inner = g.reduction(n.attr, (a,), g.product(1.0, [*body.children], g[c].dtype))
                others = tuple(b for b in axes if b != a)
                yield g.reduction(n.attr, others, g.product(body.attr, [inner], g[c].dtype))


def _sums_exchange(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for axes, body in _sums(g, n):
        for position, factor in enumerate(body.children):
            others = [f for i, f in enumerate(body.children) if i != position]
            taken = frozenset(axes).union(*(g[f].free for f in others))
            for inner in [m for m in g[factor].nodes if m.op == "reduce"]:
                if inner.attr.monoid != "sum" or taken & set(inner.attr.axes):
                    continue
                for product in _products(g, inner.children[0]):
                    stay = [f for f in product.children if not g[f].free & set(axes)]
                    move = [f for f in product.children if g[f].free & set(axes)]
                    if not stay or not move:
                        continue
                    scale = body.attr * product.attr
                    new = g.reduction(n.attr, axes, g.product(scale, [*others, *move], g[c].dtype))
                    # a dot rounds an operand only where the program itself does
                    kept = g[new].rounded is not None
                    outer = inner.attr if kept else replace(inner.attr, operand=None)
                    yield g.reduction(
                        outer, inner.attr.axes, g.product(1.0, [*stay, new], g[c].dtype)
                    )


def _sum_distributes(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for axes, body in _sums(g, n):
        for position, factor in enumerate(body.children):
            others = [f for i, f in enumerate(body.children) if i != position]
            for plus in [m for m in g[factor].nodes if m.op == "+"]:
                if len(plus.children) + bool(plus.attr) > 3 or g[c].dtype not in ("f32", "f64"):
                    continue
                terms = [g.product(body.attr, [*others, t], g[c].dtype) for t in plus.children]
                if plus.attr:
                    terms.append(g.product(body.attr * plus.attr, others, g[c].dtype))
                sums = [g.reduction(n.attr, axes, t) for t in terms]
                yield g.total(0.0, sums, g[c].dtype)


def _extreme_shifts(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op != "reduce" or n.attr.monoid not in ("max", "min"):
        return
    for plus in [m for m in g[n.children[0]].nodes if m.op == "+"]:
        outside = [t for t in plus.children if not g[t].free & set(n.attr.axes)]
        inside = [t for t in plus.children if g[t].free & set(n.attr.axes)]
        if inside and (outside or plus.attr):
            rest = g.reduction(n.attr, n.attr.axes, g.total(0.0, inside, g[c].dtype))
            yield g.total(plus.attr, [*outside, rest], g[c].dtype)


def _extreme_scales(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op != "reduce" or n.attr.monoid not in ("max", "min"):
        return
    for product in [m for m in g[n.children[0]].nodes if m.op == "*"]:
        if 0 < product.attr < inf and product.attr != 1.0:
            body = g.product(1.0, list(product.children), g[c].dtype)
            rest = g.reduction(n.attr, n.attr.axes, body)
            yield g.product(product.attr, [rest], g[c].dtype)


def _inverse_of_product(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op != "inverse":
        return
    for product in [m for m in g[n.children[0]].nodes if m.op == "*"]:
        if product.attr and isfinite(1.0 / product.attr) and len(product.children) < 4:
            parts = [g.inverse(f, g[c].dtype) for f in product.children]
            yield g.product(1.0 / product.attr, parts, g[c].dtype)


def _inverse_of_root(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op == "inverse":
        for root in [m for m in g[n.children[0]].nodes if m.op == "sqrt"]:
            yield g.add(ENode("rsqrt", root.attr, root.children), g[c].dtype)


def _product_flattens(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op != "*" or len(n.children) > 6:
        return
    for position, factor in enumerate(n.children):
        others = [f for i, f in enumerate(n.children) if i != position]
        for product in [m for m in g[factor].nodes if m.op == "*"]:
            children = tuple(sorted([*others, *product.children]))
            if len(children) <= 8:
                yield g.add(ENode("*", n.attr * product.attr, children), g[c].dtype)


def _factor_leaves_total(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op != "+" or len(n.children) > 4 or g[c].dtype not in ("f32", "f64"):
        return
    dtype = g[c].dtype
    forms = [[m for m in g[t].nodes if m.op == "*"] for t in n.children]
    for common in sorted({f for own in forms for m in own for f in m.children}):
        having = [next((m for m in own if common in m.children), None) for own in forms]
        products = [m for m in having if m is not None]
        if len(products) < 2 or all(len(m.children) == 1 for m in products):
            continue
        rests = [_without(g, m, common, dtype) for m in products]
        gathered = g.product(1.0, [common, g.total(0.0, rests, dtype)], dtype)
        others = [t for t, m in zip(n.children, having, strict=True) if m is None]
        yield g.add(ENode("+", n.attr, tuple(sorted([*others, gathered]))), dtype)


def _constant_leaves_total(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    dtype = g[c].dtype
    if n.op != "+" or n.attr or len(n.children) != 2:
        return
    if ENode("exp", dtype, (g.find(c),)) not in g.number:
        return
    one, two = ([m for m in g[t].nodes if m.op == "*"] for t in n.children)
    for a in one:
        for b in two if a.attr != 1.0 and 0 < a.attr < inf else ():
            if b.attr == -a.attr:
                rests = [g.product(k, list(m.children), dtype) for k, m in ((1.0, a), (-1.0, b))]
                yield g.product(a.attr, [g.total(0.0, rests, dtype)], dtype)


def _constant_leaves_where(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    if n.op != "where":
        return
    dtype = g[c].dtype
    for side in (1, 2):
        if g.constant(n.children[3 - side]) not in (0.0, inf, -inf):
            continue
        for product in [m for m in g[n.children[side]].nodes if m.op == "*"]:
            if 0 < product.attr < inf and product.attr != 1.0:
                children = list(n.children)
                children[side] = g.product(1.0, list(product.children), dtype)
                rest = g.add(ENode("where", n.attr, tuple(children)), dtype)
                yield g.product(product.attr, [rest], dtype)


def _exp_of_total(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for plus in [m for m in g[n.children[0]].nodes if m.op == "+"] if n.op == "exp" else ():
        terms, dtype = plus.children, g[c].dtype
        for count in range(1, len(terms)) if len(terms) <= MOST_TERMS else ():
            for part in combinations(range(len(terms)), count):
                rest = [t for i, t in enumerate(terms) if i not in part]
                known = _there(g, [terms[i] for i in part], n)
                free = frozenset().union(*(g[t].free for t in rest))
                if known is not None and free < g[c].free:
                    own = g.add(ENode("exp", n.attr, (g.total(plus.attr, rest, dtype),)), dtype)
                    yield g.product(1.0, [known, own], dtype)


def _there(g: EGraph, terms: list[int], exp: ENode) -> int | None:
    """The class of an exp of a sum of terms, where the graph has it."""
    total = g.number.get(ENode("+", 0.0, tuple(sorted(terms)))) if len(terms) > 1 else terms[0]
    known = None if total is None else g.number.get(ENode("exp", exp.attr, (g.find(total),)))
    return None if known is None else g.find(known)


def _exp_of_log(g: EGraph, c: int, n: ENode) -> Iterator[int]:
    for product in _products(g, n.children[0]) if n.op == "exp" else ():
        for log in g[product.children[0]].nodes if product.attr == -1.0 else ():
            if log.op == "log" and len(product.children) == 1 and _positive(g, log.children[0]):
                yield g.inverse(log.children[0], g[c].dtype)


def _positive(g: EGraph, c: int) -> bool:
    """Whether a class is an exp, or a reduction of some."""
    stack, seen = [g.find(c)], set[int]()
    while stack:
        k = stack.pop()
        if any(n.op == "exp" for n in g[k].nodes):
            return True
        seen.add(k)
        below = {g.find(n.children[0]) for n in g[k].nodes if n.op == "reduce"}
        stack.extend(below - seen)
    return False


def _without(g: EGraph, product: ENode, factor: int, dtype: str) -> int:
    left = list(product.children)
    left.remove(factor)
    return g.product(product.attr, left, dtype)


RULES: tuple[Rule, ...] = (
    Rule("factor-leaves-sum", "sum[k] c*e -> c * sum[k] e",
         "c does not vary along k; c finite, or k not empty: assumed", _factor_leaves_sum),
    Rule("sum-nests", "sum[j,k] a*b -> sum[j] a * sum[k] b", "a does not vary along k", _sum_nests),
    Rule("sum-splits", "sum[j,k] a*b -> sum[j] sum[k] a*b",
         "a and b each lack an axis of the other", _sum_splits),
    Rule("sums-exchange", "sum[k] c * sum[j] a*b -> sum[j] a * sum[k] c*b",
         "a does not vary along k, c not along j", _sums_exchange),
    Rule("sum-distributes", "sum[k] c*(a+b) -> sum[k] c*a + sum[k] c*b",
         "all sums are finite: assumed", _sum_distributes),
    Rule("factor-leaves-total", "c*a + c*b -> c*(a+b)", "c finite: assumed", _factor_leaves_total),
    Rule("constant-leaves-total", "c*a - c*b -> c*(a-b)",
         "c is a positive constant, exp of it is computed: as a power of two of c log2(e) (a-b)",
         _constant_leaves_total),
    Rule("constant-leaves-where", "where(p, c*a, b) -> c * where(p, a, b)",
         "c is a positive constant, b is 0 or infinite", _constant_leaves_where),
    Rule("extreme-shifts", "max[k] c+e -> c + max[k] e",
         "c does not vary along k; c finite: assumed", _extreme_shifts),
    Rule("extreme-scales", "max[k] c*e -> c * max[k] e", "c is a positive constant",
         _extreme_scales),
    Rule("inverse-of-product", "1/(a*b) -> 1/a * 1/b", "a and b not 0 with infinity: assumed",
         _inverse_of_product),
    Rule("inverse-of-root", "1/sqrt(a) -> rsqrt(a)", "none", _inverse_of_root),
    Rule("product-flattens", "a*(b*c) -> a*b*c", "none", _product_flattens),
    Rule("exp-of-total", "exp(a+b) -> exp(a) * exp(b)",
         "exp(a) is computed anyway, b does not vary along all axes", _exp_of_total),
    Rule("exp-of-log", "exp(-log(a)) -> 1/a", "a is positive: an exp, or a reduction of some",
         _exp_of_log),
)  # fmt: skip


@dataclass
class Saturation:
    """How a saturation ended ('saturated', 'node limit' or 'round limit'), with counts by rule."""

    stop_reason: str
    rounds: int
    nodes: int
    classes: int
    applied: dict[str, int]
    merged: int = 0  # classes that no rule, but their fingerprints, found equal


def saturate(g: EGraph, node_limit: int = 4000, round_limit: int = 12) -> Saturation:
    """Apply all rules until nothing new is found or a limit is met."""
    applied = {r.name: 0 for r in RULES}
    reason, rounds = "round limit", 0
    while rounds < round_limit:
        rounds += 1
        changed = False
        for c in sorted(g.classes):
            if c not in g.classes or g.size > node_limit:
                continue
            for n in list(g.classes[c].nodes):
                for rule in RULES:
                    for new in list(rule.apply(g, g.find(c), n)):
                        if g.union(c, new):
                            applied[rule.name] += 1
                            changed = True
        g.rebuild()
        if g.size > node_limit:
            reason = "node limit"
            break
        if not changed:
            reason = "saturated"
            break
    return Saturation(reason, rounds, g.size, len(g.classes), applied)
