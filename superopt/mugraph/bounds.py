"""Which tiles of a loop a program visits, and which of them need no mask: masks as loop bounds.

A conjunct of a mask that leaves nothing to add where it is false (`masks.Skipping`), and compares
the looped axis with something known before the loop, bounds the loop:

    sum[k] exp(where(k <= i & p[k], s, -inf) - m), i in tiles of T from i_start:

        tiles before   i_start + 1          hold k <= i in all lanes: no test
        tiles before   i_start + T          hold it in some: tested
        later tiles                         are not visited

A bound is an index expression for one element, `k < i + 1`; from it follow scalars for a program,
the extremes over its lanes. What stands in them for a tile's start, its size, or the extreme of a
loaded vector is a `Known` symbol, so that the emitter, the interpreter and the cost model read the
same expressions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np

from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import (
    BINDERS,
    MARKERS,
    Axis,
    Expr,
    Symbol,
    axis,
    body_of,
    index,
    make,
    toposort,
)
from superopt.mugraph.masks import (
    Skipping,
    as_index,
    conditions,
    conjuncts,
    nan_where_empty,
)
from superopt.mugraph.program import Branch
from superopt.mugraph.schedule import Item, Loop, Write

LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Known(Symbol):
    """A number that a program knows before a loop.

    `kind`: 'start' or 'tile' of an axis; 'least' or 'greatest' of a load's valid lanes, or its one
    'value'.
    """

    kind: str
    of: Axis | Expr


@dataclass(frozen=True)
class Pick:
    """The least or the largest of several bounds."""

    largest: bool
    among: tuple[Bound, ...]


Bound = Expr | Pick


@dataclass(frozen=True)
class Range:
    """begin <= index < end is visited, in tiles from `begin`, a multiple of the tile.

    The whole tiles from `full_begin` to `full_end` need no test; begin <= full_begin <= full_end.
    """

    begin: Any
    end: Any
    full_begin: Any
    full_end: Any


@dataclass(frozen=True)
class Bounds:
    """What a loop over `axis` visits. `tested` holds in all lanes between the `full` bounds.

    Where a bound of a side is None, so is its `full` bound.
    """

    axis: Axis
    lower: Bound | None  # nothing before it matters
    upper: Bound | None  # nothing from it on does
    full_lower: Bound | None
    full_upper: Bound | None
    tested: tuple[Expr, ...]

    @cached_property
    def known(self) -> tuple[Known, ...]:
        """What the bounds are made of, besides sizes."""
        ends = (self.lower, self.upper, self.full_lower, self.full_upper)
        found = [n.attr for b in ends for e in _leaves(b) for n in toposort(e) if n.op == "sym"]
        return tuple(dict.fromkeys(k for k in found if isinstance(k, Known)))

    def range(self, values: Mapping[str, Any], tile: Any, extent: Any) -> Range:
        """The range, given sizes and `known` numbers by name; those missing forbid nothing.

        Numbers may be numpy arrays.
        """
        begin = _number(self.lower, values, 0.0) // tile * tile
        end = np.minimum(_number(self.upper, values, float("inf")), extent)
        full_begin = -(-_number(self.full_lower, values, 0.0) // tile) * tile
        full_end = np.minimum(_number(self.full_upper, values, float("inf")), extent)
        return Range(begin, end, full_begin, np.maximum(full_end // tile * tile, full_begin))


def _leaves(bound: Bound | None) -> Iterator[Expr]:
    if isinstance(bound, Pick):
        for b in bound.among:
            yield from _leaves(b)
    elif bound is not None:
        yield bound


def _number(bound: Bound | None, values: Mapping[str, Any], unbounded: float) -> Any:
    """A bound's value, at least 0."""
    if bound is None:
        return unbounded
    if isinstance(bound, Pick):
        numbers = [_number(b, values, unbounded) for b in bound.among]
        return (np.maximum if bound.largest else np.minimum).reduce(np.broadcast_arrays(*numbers))
    if any(n.op == "sym" and n.attr.name not in values for n in toposort(bound)):
        return unbounded
    return np.maximum(ix.value(bound, dict(values)), 0)


# -- one element --------------------------------------------------------------------------------

Sides = tuple[Expr | None, Expr | None]  # lower <= index < upper


@cache
def sides(condition: Expr, a: Axis) -> Sides | None:
    """What a comparison says of an axis's index; None where it says something else.

    >>> sides(j <= i + 3, j), sides(j // 8 == i // 8, j)
    ((None, i + 4), (i // 8 * 8, i // 8 * 8 + 8))
    """
    if condition.op not in ("lt", "le", "gt", "ge", "eq"):
        return None
    left, right = (as_index(e) for e in condition.args)
    if left is None or right is None:
        return None
    swapped = condition.op in ("gt", "ge")
    difference = ix.poly(ix.sub(right, left) if swapped else ix.sub(left, right))
    own = {m: c for m, c in difference.items() if any(a in atom.free for atom in m)}
    if len(own) != 1:
        return None
    ((monomial, sign),) = own.items()
    scale = _scale(monomial, a)
    if scale is None or abs(sign) != 1:
        return None
    rest = ix.from_poly({m: c for m, c in difference.items() if m != monomial})
    most = ix.sub(index(0), rest) if sign == 1 else rest  # index <= most, or >= where sign is -1
    strict = index(int(condition.op in ("lt", "gt")))
    after = ix.mul(ix.add(most, index(1)), scale)
    if condition.op == "eq":
        return ix.mul(most, scale), after
    if sign == 1:
        return None, ix.sub(after, ix.mul(strict, scale))
    return ix.mul(ix.add(most, strict), scale), None


def _scale(monomial: tuple[Expr, ...], a: Axis) -> Expr | None:
    """The k for which the monomial is a's index // k."""
    if len(monomial) != 1:
        return None
    (atom,) = monomial
    if atom is axis(a):
        return index(1)
    if atom.op == "floordiv" and atom.args[0] is axis(a) and atom.args[1].op == "const":
        return atom.args[1]
    return None


def _literals(condition: Expr) -> Iterator[Expr]:
    """The comparisons of a condition in normal form."""
    if condition.op in ("and", "or"):
        for e in condition.args:
            yield from _literals(e)
    else:
        yield condition


def _is_exact(condition: Expr, a: Axis) -> bool:
    """Whether a condition in normal form says no more of the axis's index than its bounds do."""
    found = [sides(e, a) for e in _literals(condition)]
    if len(found) == 1:
        return found[0] is not None
    return any(all(s is not None and s[n] is None for s in found) for n in (0, 1))


# -- all lanes of a program ---------------------------------------------------------------------


class _Lanes:
    """The extremes of index expressions over the lanes of a program's tiles."""

    def __init__(self, branch: Branch, around: frozenset[Axis]) -> None:
        self.branch = branch
        self.around = around  # axes whose place is known where the loop stands

    def extreme(self, e: Expr, largest: bool) -> Expr | None:
        """The least or the largest value of e, or beyond it; None where none is known."""
        total = index(0)
        for monomial, c in ix.poly(e).items():
            term = self.monomial(monomial, largest == (c > 0))
            if term is None:
                return None
            total = ix.add(total, ix.mul(index(c), term))
        return total

    def monomial(self, atoms: tuple[Expr, ...], largest: bool) -> Expr | None:
        product, varying = index(1), 0
        for atom in atoms:
            end, other = self.atom(atom, largest), self.atom(atom, not largest)
            if end is None or other is None:
                return None
            varying += end is not other
            if len(atoms) > 1 and end is other and not ix.at_least_zero(end):
                return None  # the sign of a factor is not known
            product = ix.mul(product, end)
        return product if varying < 2 else None

    def atom(self, e: Expr, largest: bool) -> Expr | None:
        if e.op in ("const", "sym"):
            return e
        if e.op == "axis":
            return self.place(e.attr, largest)
        if e.op == "cast" and e.args[0].op == "load":
            return self.loaded(e.args[0], largest)
        if e.op not in ("floordiv", "mod"):
            return None
        inner, other = self.extreme(e.args[0], largest), self.extreme(e.args[0], not largest)
        divisor = self.extreme(e.args[1], True)
        if inner is None or divisor is None or divisor is not self.extreme(e.args[1], False):
            return None
        if e.op == "floordiv":
            return ix.floordiv(inner, divisor)
        if inner is other:
            return ix.mod(inner, divisor)
        return ix.sub(divisor, index(1)) if largest else index(0)

    def place(self, a: Axis, largest: bool) -> Expr | None:
        role = self.branch.role(a)
        if role == "whole":
            return ix.sub(a.extent, index(1)) if largest else index(0)
        if a not in self.around:
            return None
        start = _known(f"start of {a.name}", 0, LIMIT, "start", a)
        if role == "program" or not largest:
            return start
        tile = _known(f"tile of {a.name}", 1, LIMIT, "tile", a)
        return ix.sub(ix.add(start, tile), index(1))

    def loaded(self, e: Expr, largest: bool) -> Expr | None:
        if any(self.branch.role(a) != "whole" and a not in self.around for a in e.free):
            return None
        vector = any(self.branch.role(a) != "program" for a in e.free)
        kind = ("greatest" if largest else "least") if vector else "value"
        bits = 8 * DTYPES[e.dtype].bytes
        low, high = (-(1 << bits), 1 << bits) if bits < 32 else (-LIMIT, LIMIT)
        if e.attr.bounds is not None:
            low = min(0, ix._interval(e.attr.bounds[0])[0])
            high = max(0, ix._interval(e.attr.bounds[1])[1])
        return _known(f"{kind} of {e.attr.name} {e.digest}", low, high, kind, e)


def _known(name: str, low: int, high: int, kind: str, of: Axis | Expr) -> Expr:
    return make("sym", (), Known(name, low, high, kind, of), "index")


@dataclass(frozen=True)
class _Reader:
    """Turns conditions on an axis's index into bounds that hold for a program."""

    axis: Axis
    lanes: _Lanes

    def bound(self, condition: Expr, upper: bool, everywhere: bool) -> Bound | None:
        """A bound beyond which no lane satisfies the condition, or (`everywhere`) within which all
        lanes do, as far as this side is concerned."""
        if condition.op in ("and", "or"):
            found = [self.bound(e, upper, everywhere) for e in condition.args]
            given = [b for b in found if b is not None]
            if not given or (condition.op == "or" and len(given) < len(found)):
                return None
            return pick(upper == (condition.op == "or"), given)
        one = (sides(condition, self.axis) or (None, None))[upper]
        return None if one is None else self.lanes.extreme(one, upper != everywhere)


def pick(largest: bool, among: Iterable[Bound]) -> Bound | None:
    """The largest or the least of some bounds; None where there are none."""
    flat: dict[Bound, None] = {}
    for b in among:
        same = isinstance(b, Pick) and b.largest == largest
        flat.update(dict.fromkeys(b.among if same and isinstance(b, Pick) else (b,)))
    if len(flat) <= 1:
        return next(iter(flat), None)
    return Pick(largest, tuple(flat))


# -- a loop -------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def loop_bounds(branch: Branch, loop: Loop) -> Bounds | None:
    """What the loop visits of its axis; None where it visits all and tests nothing on the way."""
    if not loop.reductions or any(isinstance(i, Write) for i in _inside(loop)):
        return None
    around = frozenset().union(*(r.free for r in loop.reductions)) - {loop.axis}
    reader = _Reader(loop.axis, _Lanes(branch, around))
    kept = [c for c in _skipping(branch, loop) if _bounds_some(reader, c)]
    if not kept:
        return None
    exact = {c for c in kept if _is_exact(c, loop.axis)}
    ends: list[Bound | None] = []
    for upper in (False, True):
        for everywhere in (False, True):
            found = [reader.bound(c, upper, everywhere and c in exact) for c in kept]
            ends.append(pick(not upper, [b for b in found if b is not None]))
    lower, full_lower, upper_, full_upper = ends
    return Bounds(
        loop.axis, lower, upper_, full_lower, full_upper, tuple(c for c in kept if c in exact)
    )


def _inside(loop: Loop) -> Iterator[Item]:
    for item in loop.body:
        yield item
        if isinstance(item, Loop):
            yield from _inside(item)


def _bounds_some(reader: _Reader, condition: Expr) -> bool:
    return any(reader.bound(condition, upper, False) is not None for upper in (False, True))


def _skipping(branch: Branch, loop: Loop) -> list[Expr]:
    """The conditions without which no reduction of the loop has anything to take.

    Some are so only because statistics of the row are finite: then the row must not be masked
    whole, or what is stored of it must be NaN anyway.
    """
    skipping = Skipping(loop.axis, loop.reductions)
    about = {c: any(loop.axis in e.free for e in _literals(c)) for c in skipping.conjuncts()}
    if not any(about.values()):
        return []
    found = {c: skipping.skips(c) for c in about}
    kept = [c for c in found if found[c][0]]
    if not any(found[c][1] for c in kept):
        return kept
    if _never_masked_whole(loop, kept) or _nan_where_empty(branch, loop):
        return kept
    return [c for c in kept if not found[c][1]]


def _nan_where_empty(branch: Branch, loop: Loop) -> bool:
    """Whether all that depends on the loop is stored as NaN where the loop takes nothing."""
    own = set(loop.reductions)
    values = [s.value for s in branch.stores if own & set(toposort(s.value))]
    return nan_where_empty(values, loop.axis)


def _never_masked_whole(loop: Loop, kept: list[Expr]) -> bool:
    """Whether an index satisfies all conditions of the loop, for each element of its result."""
    known = set(kept)
    for c in conditions([body_of(r) for r in loop.reductions], loop.axis):
        if _about_statistics(c, loop.axis):
            continue
        if not (known.issuperset(conjuncts(c)) or known.issuperset(conjuncts(c, False))):
            return False
    lows, highs = [index(0)], [[loop.axis.extent]]
    for c in kept:
        found = [sides(e, loop.axis) for e in _literals(c)]
        if not _is_exact(c, loop.axis):
            return False
        if len(found) == 1 and found[0] is not None and found[0][0] is not None:
            lows.append(found[0][0])
        above = [s[1] for s in found if s is not None and s[1] is not None]
        if above and "and" not in {e.op for e in (c, *c.args)}:
            highs.append(above)
        elif above or len(found) > 1:
            return False
    return all(
        any(ix.at_least_zero(ix.sub(ix.sub(high, low), index(1))) for high in choice)
        for low in lows
        for choice in highs
    )


def _about_statistics(condition: Expr, a: Axis) -> bool:
    """Whether a condition is a test of a statistic of the row, such as m == -inf."""
    return condition.op in ("eq", "ne", "isinf", "not") and any(
        n.op in MARKERS or (n.op in BINDERS and a in n.attr.axes) for n in toposort(condition)
    )
