"""Masks as algebra: which conditions, where they are false, leave nothing for a loop to add.

`max[k] where(k <= i, s, -inf)` takes nothing from k > i, nor does `sum[k] exp(where(k <= i, s,
-inf) - m)`: each condition is put to false in what a reduction adds, and the result simplified.

The simplifier takes values from memory to be finite: 0 * x -> 0, x + -inf -> -inf. A NaN or an
infinity in a masked element is then not propagated. Statistics of the row are not taken to be so:
the maximum of a row that is masked whole is -inf, and `-inf - m` NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import (
    BINDERS,
    FALSE,
    MARKERS,
    TRUE,
    Axis,
    Expr,
    body_of,
    cast,
    const,
    is_const,
    op,
    rebuild,
    toposort,
)
from superopt.mugraph.index import conjunction
from superopt.mugraph.ops import identity

OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}
_DUAL = {"and": "or", "or": "and"}


# -- conditions ---------------------------------------------------------------------------------


@cache
def normal(e: Expr, truth: bool = True) -> Expr:
    """The condition that e is `truth`, with negation pushed down to its comparisons.

    >>> normal(not(i < j | p))      # i >= j & not(p)
    """
    if e.op == "const":
        return TRUE if bool(e.attr) == truth else FALSE
    if e.op == "not":
        return normal(e.args[0], not truth)
    if e.op in _DUAL and e.dtype == "bool":
        return op(e.op if truth else _DUAL[e.op], *(normal(a, truth) for a in e.args))
    if e.op == "where" and any(a.op == "const" for a in e.args[1:]):
        c, a, b = e.args  # (c & a) | (not c & b), of which a constant leaves one half
        if b.op == "const":
            one = (normal(c), normal(a)) if not b.attr else (normal(c, False), normal(a))
            return normal(op("or" if b.attr else "and", *one), truth)
        one = (normal(c), normal(b)) if a.attr else (normal(c, False), normal(b))
        return normal(op("or" if a.attr else "and", *one), truth)
    if truth:
        return e
    if e.op in OPPOSITE and not is_float(e.args[0].dtype):
        return op(OPPOSITE[e.op], *e.args)
    return op("not", e)


def parts(e: Expr, name: str) -> tuple[Expr, ...]:
    """The operands of nested `and` or `or` nodes."""
    if e.op != name:
        return (e,)
    return tuple(p for a in e.args for p in parts(a, name))


def conjuncts(e: Expr, truth: bool = True) -> tuple[Expr, ...]:
    """Conditions that all hold where e is `truth`, and only there."""
    return parts(normal(e, truth), "and")


def without(e: Expr, holds: frozenset[Expr]) -> Expr:
    """A condition, or a value chosen by one, where conditions in normal form are known to hold.

    >>> without(where(i < j & p, x, y), {i < j})      # where(p, x, y)
    """
    if e.dtype == "bool":
        for truth in (True, False):
            of = conjuncts(e, truth)
            left = [c for c in of if c not in holds]
            if len(left) < len(of):
                return normal(conjunction(*left), truth)
        return e
    if e.op == "where" and (c := without(e.args[0], holds)) is not e.args[0]:
        return op("where", c, *e.args[1:])
    if e.op == "cast" and e.args[0].dtype == "bool":
        return cast(without(e.args[0], holds), e.dtype)
    return e


def below(root: Expr, axis: Axis) -> list[Expr]:
    """The nodes that one index of the axis makes up, operands first: none inside a reduction over
    it, nor inside conditions."""
    order: dict[Expr, None] = {}
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            if not _is_opaque(node, axis):
                stack.extend((a, False) for a in reversed(node.args))
    return list(order)


def _is_opaque(node: Expr, axis: Axis) -> bool:
    if node.op in BINDERS:
        return node.op == "online" or axis in node.attr.axes
    return node.op in MARKERS or node.dtype == "bool"


def conditions(bodies: Iterable[Expr], axis: Axis) -> Iterator[Expr]:
    """The conditions that values, which are no conditions, depend on."""
    found = (n for body in bodies for n in below(body, axis) if n.dtype == "bool")
    return (c for c in dict.fromkeys(found) if c.op != "const")


# -- simplification -----------------------------------------------------------------------------


class Simplifier:
    """Simplifies what a reduction over `axis` adds, for one index of it.

    `fragile` tells whether the result took a statistic of the row to be finite. `statistic` is what
    stands in for reductions over the axis; without it they stay.
    """

    def __init__(
        self, axis: Axis, false: Expr = FALSE, statistic: Callable[[Expr], Expr] | None = None
    ) -> None:
        self.axis, self.statistic = axis, statistic
        self.fragile = False
        self.known: dict[Expr, Expr] = {}
        stack = [false] if false is not FALSE else []
        while stack:
            e = stack.pop()
            self.known |= {e: FALSE, normal(e, False): TRUE}
            if e.op == "or":
                stack.extend(e.args)

    def __call__(self, root: Expr) -> Expr:
        done: dict[Expr, Expr] = {}
        for node in below(root, self.axis):
            if node.dtype == "bool" and node.op not in BINDERS:
                done[node] = self.decided(normal(node))
            elif _is_opaque(node, self.axis):
                done[node] = self.statistic(node) if self.statistic else node
            else:
                args = tuple(done[a] for a in node.args)
                done[node] = self.infinite(node, args) or self.plain(node, args)
        return done[root]

    def decided(self, e: Expr) -> Expr:
        """A condition in normal form, given what is known."""
        if e in self.known:
            return self.known[e]
        if e.op in _DUAL:
            return op(e.op, *(self.decided(a) for a in e.args))
        return e

    def infinite(self, node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        """Rules that hold where the other operand is finite: it is, but for statistics."""
        match node.op, args:
            case ("add", (a, b)) if is_infinite(a) != is_infinite(b):  # inf + x -> inf
                kept, other = (a, b) if is_infinite(a) else (b, a)
            case ("sub", (a, b)) if is_infinite(a) and not is_infinite(b):  # inf - x -> inf
                kept, other = a, b
            case ("sub", (a, b)) if is_infinite(b) and not is_infinite(a):  # x - inf -> -inf
                kept, other = const(-b.attr, node.dtype), a
            case ("mul", (a, b)) if is_const(a, 0) or is_const(b, 0):  # 0 * x -> 0
                kept, other = (a, b) if is_const(a, 0) else (b, a)
            case ("div", (a, b)) if is_const(a, 0) and b.op != "const":  # 0 / x -> 0
                kept, other = a, b
            case _:
                return None
        if other.op == "const" and not math.isfinite(other.attr):
            return None
        self.fragile |= is_float(node.dtype) and self.may_be_infinite(other)
        return kept

    def plain(self, node: Expr, args: tuple[Expr, ...]) -> Expr:
        """Rules that hold always, NaN included."""
        match node.op, args:
            case ("maximum" | "minimum", (a, b)) if is_infinite(a) or is_infinite(b):
                bound, other = (a, b) if is_infinite(a) else (b, a)
                return other if (bound.attr < 0) == (node.op == "maximum") else bound
            case ("reduce", (a,)) if a.op == "const" and _keeps(node, a):  # sum[d] 0 -> 0
                return a
            case ("add" | "sub" | "mul" | "div" | "neg" | "exp", _) if any(map(_is_nan, args)):
                return const(math.nan, node.dtype)
        return rebuild(node, args)

    def may_be_infinite(self, root: Expr) -> bool:
        """Whether a value is made of statistics of the row, with no guard against infinities.

        Statistics are reductions over the axis, and floats from memory that do not vary along it.
        """
        stack, seen = [root], set()
        while stack:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            if e.op in MARKERS or (e.op in BINDERS and _is_opaque(e, self.axis)):
                return True
            if e.op == "load" and is_float(e.dtype) and self.axis not in e.free:
                return True
            if e.op == "where":
                stack.append(e.args[1] if guards(e.args[0], e.args[2]) else e.args[2])
                if not guards(e.args[0], e.args[2]):
                    stack.append(e.args[1])
            elif e.op not in (*BINDERS, "load"):
                stack.extend(a for a in e.args if a.dtype != "bool")
        return False


def is_infinite(e: Expr) -> bool:
    """Whether e is the constant inf or -inf."""
    return e.op == "const" and is_float(e.dtype) and math.isinf(e.attr)


def _is_nan(e: Expr) -> bool:
    return e.op == "const" and is_float(e.dtype) and math.isnan(e.attr)


def _keeps(node: Expr, value: Expr) -> bool:
    """Whether a reduction of one value over and over is that value."""
    return _is_nan(value) or value.attr == identity(node.attr.monoid, node.dtype)


def guards(condition: Expr, value: Expr) -> bool:
    """Whether the condition holds wherever the value is infinite: m == -inf, isinf(m)."""
    if condition.op == "isinf":
        return condition.args[0] is value
    if condition.op != "eq":
        return False
    a, b = condition.args if is_infinite(condition.args[0]) else condition.args[::-1]
    sized = b.args[0] if b.op == "abs" else b
    return is_infinite(a) and sized is value


# -- what may be skipped ------------------------------------------------------------------------


class Skipping:
    """Which conditions leave nothing to add to any of a loop's reductions where they are false."""

    def __init__(self, axis: Axis, reductions: tuple[Expr, ...]) -> None:
        self.axis, self.reductions = axis, reductions

    def conjuncts(self) -> list[Expr]:
        """Every conjunct of a condition or of its negation."""
        bodies = [body_of(r) for r in self.reductions]
        found: dict[Expr, None] = {}
        for c in conditions(bodies, self.axis):
            found.update(dict.fromkeys((*conjuncts(c), *conjuncts(c, False))))
        return [c for c in found if c.op != "const"]

    def skips(self, conjunct: Expr) -> tuple[bool, bool]:
        """Whether nothing is left, and whether that holds only in rows not masked whole."""
        simplify = Simplifier(self.axis, conjunct)
        for r in self.reductions:
            left = simplify(body_of(r))
            if left.op != "const" or left.attr != identity(r.attr.monoid, r.dtype):
                return False, False
        return True, simplify.fragile


def neutral(node: Expr) -> Expr:
    """A reduction's value where it has taken nothing."""
    return const(identity(node.attr.monoid, node.dtype), node.dtype)


def nan_where_empty(values: Iterable[Expr], axis: Axis) -> bool:
    """Whether all values are NaN in a row for which the reductions over the axis took nothing."""

    def empty(node: Expr) -> Expr:
        return neutral(node) if node.op in BINDERS and axis in node.attr.axes else node

    return all(_is_nan(Simplifier(axis, statistic=empty)(v)) for v in values)


def as_index(e: Expr) -> Expr | None:
    """An integer expression in index arithmetic, where it means the same; else None.

    Arithmetic narrower than 64 bits on values from memory might wrap around.
    """
    if e.dtype == "index":
        return e
    if DTYPES[e.dtype].kind != "int":
        return None
    match e.op:
        case "const":
            return const(e.attr, "index")
        case "load":
            return cast(e, "index")
        case "cast":
            (of,) = e.args
            exact = DTYPES[of.dtype].bytes < DTYPES[e.dtype].bytes
            return as_index(of) if exact else None
    wraps = e.dtype != "i64" and any(n.op == "load" for n in toposort(e))
    if wraps or e.op not in ("add", "sub", "mul", "neg", "floordiv"):
        return None
    args = [as_index(a) for a in e.args]
    if any(a is None for a in args) or (e.op == "floordiv" and not _positive(args[1])):
        return None
    return op(e.op, *(a for a in args if a is not None))


def _positive(e: Expr | None) -> bool:
    return e is not None and e.op == "const" and e.attr > 0
