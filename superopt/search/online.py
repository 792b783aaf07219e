"""Loops in one pass: reductions that use others over the same axis are brought up to date online.

From stores whose values reduce over a looped axis in several passes, one after another, to stores
of the same values in fewer: wherever a shift is found (`shift`), the reduction joins the pass of
the statistics that it uses. How a loop starts is a part of what is searched: before the first index
a statistic is the neutral element (-inf, 0), a mean of nothing is 0/0. The forms below differ in
what they put in its place, and in whether a mean is that of the indices so far. Each is run on
sample inputs, infinities and rows that are wholly masked among them, and must give what the
program gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

import numpy as np

from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import (
    MARKERS,
    Axis,
    Expr,
    body_of,
    cast,
    const,
    index,
    make,
    online,
    op,
    plain_of,
    prior,
    rebuild,
    reduce,
    rewrite,
    running,
    substitute,
    toposort,
)
from superopt.mugraph.ops import MONOIDS, OPS, identity
from superopt.mugraph.program import Store
from superopt.search.fingerprint import (
    HOSTILE,
    Accuracy,
    Array,
    Fingerprints,
    relative_errors,
)
from superopt.search.sample import ORDINARY, Sample
from superopt.search.shift import Law, Shifts, after, before, combined, replaced

Tiles = tuple[tuple[int, ...], ...]
TILES: Tiles = ((0,), (1, 2), (3, 4, 5), (6, 7))  # the sampled indices, as a loop may meet them
HIDDEN: Tiles = ((),)  # one tile, of which a mask hides all: a part may lie past the range's end
PARTS: tuple[Tiles, ...] = (TILES[:2], TILES[2:], HIDDEN)
MOST_FORMS = 2  # sets of auxiliaries, beside that of them all
MOST_SUBSETS = 16  # of auxiliaries that are tried to be zero
CLOSE = 1e-6  # of float64 runs of the loop and of the plain reductions


@dataclass(frozen=True)
class Guard:
    """How an accumulator treats statistics that have no value yet.

    `new`: in what a tile adds, a statistic that still is what it was before the loop is replaced by
    a plain number. `old`: the accumulator is left as it is where the statistic was still that.
    `lost`: a statistic, and what the accumulator is where that has become NaN, whatever the data.
    """

    new: bool
    old: bool
    lost: tuple[Expr, Expr] | None = None


PLAIN = ((False, False), (True, False), (True, True), (False, True))  # `new` and `old`


def guards(r: Expr, law: Law, k: Axis) -> Iterator[Guard]:
    """The guards of a reduction's accumulator, simplest first."""
    yield from (Guard(new, old) for new, old in PLAIN)
    for s in () if is_float(r.dtype) else law.statistics:  # a float becomes NaN by itself
        if (value := _lost(r, s, k)) is not None:
            yield from (Guard(new, old, (s, value)) for new, old in PLAIN)


def _lost(r: Expr, s: Expr, k: Axis) -> Expr | None:
    """What a reduction is where a statistic is NaN: that of a part of its body without data."""
    if not is_float(s.dtype):
        return None
    view = Sample(k).part(None, {s: np.asarray(np.nan)})
    body = np.asarray(view.value(r.args[0]))
    for e in sorted(toposort(r.args[0])):
        if e.dtype == r.dtype and _of_indices(e) and np.all(view.value(e) == body):
            whole = reduce(r.attr.monoid, r.attr.axes, e)
            return None if _from_first(whole) is None else running(whole)
    return None


@dataclass(frozen=True)
class Form:
    """Stores with online reductions, and the laws behind them.

    `splits`: parts of the loop's range, each run on its own, can be merged by the same updates.
    """

    stores: tuple[Store, ...]
    laws: tuple[Law, ...]
    splits: bool


Builders = dict[tuple[Axis, tuple[Law, ...], bool, bool], "_Builder"]  # whatever stores use them


@dataclass
class Online:
    """Finds online forms; remembers what it found."""

    shifts: Shifts = field(default_factory=Shifts)
    known: dict[tuple[tuple[Store, ...], Axis], tuple[Form, ...]] = field(default_factory=dict)
    _without: dict[object, tuple[tuple[Store, ...], ...]] = field(default_factory=dict)
    _builders: Builders = field(default_factory=dict)

    def forms(self, stores: tuple[Store, ...], k: Axis) -> tuple[Form, ...]:
        """Forms of the stores with fewer passes over axis k, simplest first; often there is one."""
        key = (stores, k)
        if key not in self.known:
            laws = self._laws(stores, k)
            checked = _checked(stores, k, laws, self._builders)
            self.known[key] = tuple(checked) if laws else ()
        return self.known[key]

    def without_statistic(
        self, stores: tuple[Store, ...], k: Axis
    ) -> tuple[tuple[Store, ...], ...]:
        """Stores whose values do not depend on a statistic, with a constant in its place.

        Where U cancels out of a value, the statistic only guards its precision: exp(x - m) over its
        sum is exp(x) over its own over the reals, and cheaper without m.
        """
        key = (stores, k)
        if key not in self._without:
            self._without[key] = tuple(_cancelled(stores, k))
        return self._without[key]

    def _laws(self, stores: tuple[Store, ...], k: Axis) -> tuple[Law, ...]:
        """A law for each reduction that can join the pass of those it uses."""
        level: dict[Expr, int] = {}
        found: dict[Expr, Law] = {}
        reductions = over(stores, k)
        for r in reductions:
            below = _used(r, k, set(reductions))
            last = max((level[u] for u in below), default=-1)
            active = frozenset(u for u in below if level[u] == last)
            law = self.shifts.law(r, k, active) if below else None
            level[r] = last + 1 if law is None and below else max(last, 0)
            if law is not None:
                found[r] = law
                if not self._auxiliaries(law, k, level, found):
                    del found[r]
                    level[r] = last + 1
        return tuple(found.values())

    def _auxiliaries(
        self, law: Law, k: Axis, level: dict[Expr, int], found: dict[Expr, Law]
    ) -> bool:
        """Laws for the accumulators that a law brings in."""
        for a in law.auxiliaries:
            if a in level:
                continue
            used = _used(a, k, set(level))
            at = max((level[u] for u in used), default=level[law.reduction])
            level[a] = at
            if not used:
                continue
            own = self.shifts.law(a, k, frozenset(u for u in used if level[u] == at))
            if own is None or at != level[law.reduction]:
                return False
            found[a] = own
            if not self._auxiliaries(own, k, level, found):
                return False
        return True


def over(stores: tuple[Store, ...], k: Axis) -> list[Expr]:
    """The reductions over k that are not inside another one over k, those used first."""
    nodes = toposort(*(s.value for s in stores))
    return [n for n in nodes if n.op == "reduce" and k in n.attr.axes]


def _used(r: Expr, k: Axis, known: set[Expr]) -> set[Expr]:
    """The reductions that the body uses, but those inside others."""
    found: set[Expr] = set()
    stack = [r.args[0]]
    seen = set(stack)
    while stack:
        e = stack.pop()
        if e in known:
            found.add(e)
            continue
        below = [a for a in e.args if a not in seen]
        seen.update(below)
        stack.extend(below)
    return found


class LoopAccuracy(Accuracy):
    """Errors of values whose loop meets its indices tile by tile, on hostile inputs."""

    def __init__(self, weights: frozenset[str] = frozenset(), seed: int = 0) -> None:
        super().__init__(weights, seed)
        self._loops: dict[tuple[Expr, Expr, Axis], Array] = {}
        self._wanted: dict[tuple[Expr, Axis], Array] = {}
        self._samples: dict[tuple[Axis, object], Sample] = {}
        self._dims: dict[Axis, int] = {}  # one order of axes, so that values compare

    def loop_errors(self, value: Expr, k: Axis, plain: Expr) -> Array:
        """A kind of world each, against `plain` in float64: what the value is over the reals."""
        key = (value, plain, k)
        if key not in self._loops:
            if (plain, k) not in self._wanted:
                self._wanted[plain, k] = self._sample(k, np.float64).value(plain)
            got = run(value, self._sample(k, np.float32))
            self._loops[key] = relative_errors(self._wanted[plain, k], got)
        return self._loops[key]

    def _sample(self, k: Axis, precision: type[np.floating[Any]]) -> Sample:
        key = (k, precision)
        if key not in self._samples:
            contents = self.exact.contents
            self._samples[key] = Sample(k, None, precision, len(HOSTILE), contents, self._dims)
        return self._samples[key]


# -- building -------------------------------------------------------------------------------------


@dataclass
class _Builder:
    """Online nodes for some laws. `counted`: a mean is that of the indices so far."""

    k: Axis
    laws: dict[Expr, Law]
    counted: bool
    guards: dict[Expr, Guard] = field(default_factory=dict)
    made: dict[Expr, Expr] = field(default_factory=dict)

    def node(self, r: Expr) -> Expr:
        if r in self.made:
            return self.made[r]
        law = self.laws[r]
        current = {s: after(s) for s in law.statistics}
        body = self.current(replaced(r.args[0], current), law)
        update = self.current(self.update(law), law)
        used = [a for s in law.statistics for a in _outermost(s, self.k)]
        used += [a for a in law.auxiliaries if a not in used]
        others = [self.node(a) for a in used if a in self.laws]
        self.made[r] = online(r, body, update, *others)
        return self.made[r]

    def current(self, e: Expr, law: Law) -> Expr:
        """With statistics spelt as what the loop's accumulators are, before and after a turn."""
        mapping: dict[Expr, Expr] = {}
        for s in law.statistics:
            mapping[after(s)] = self.spelt(s, running)
            if self.guards[law.reduction].new:
                mapping[after(s)] = self.guarded(mapping[after(s)], s)
            mapping[before(s)] = self.spelt(s, prior)
        return _substituted(e, mapping)

    def spelt(self, s: Expr, mark: Callable[[Expr], Expr]) -> Expr:
        source = self.source(s)
        return replaced(source, {a: mark(a) for a in _outermost(source, self.k)})

    def source(self, s: Expr) -> Expr:
        return _counted(s, self.k) if self.counted else s

    def start(self, s: Expr) -> float:
        source = self.source(s)
        return _neutral_value(source, _outermost(source, self.k))

    def update(self, law: Law) -> Expr:
        """The law's update, with what a guard puts where a statistic is not a number."""
        update, lost = self.guarded_update(law), self.guards[law.reduction].lost
        if lost is None:
            return update
        s, value = lost
        return op("where", op("isnan", after(s)), value, update)

    def guarded_update(self, law: Law) -> Expr:
        """The law's update; the accumulator itself where a statistic had no value yet."""
        conditions = [c for s in law.statistics for c in self.unset(s)]
        if not self.guards[law.reduction].old or not conditions:
            return law.update
        empty = conditions[0]
        for c in conditions[1:]:
            empty = op("or", empty, c)
        if not law.terms:
            return op("where", empty, prior(law.reduction), law.update)
        terms = []
        for accumulator, coefficient in law.terms:
            left = const(1.0 if accumulator is law.reduction else 0.0, coefficient.dtype)
            terms.append((accumulator, op("where", empty, left, coefficient)))
        return combined(terms, law.reduction)

    def unset(self, s: Expr) -> list[Expr]:
        """Conditions under which a statistic had no value before the turn."""
        start, extremes = self.start(s), self.extremes(s)
        if not np.isfinite(start) or not extremes:
            tests = [_unset(before(s), start)]
        else:
            tests = [_unset(prior(a), float(identity(a.attr.monoid, a.dtype))) for a in extremes]
        return [c for c in tests if c is not None]

    def extremes(self, s: Expr) -> list[Expr]:
        """The maxima and minima of a statistic: infinite only where they have no value yet."""
        return [a for a in _outermost(self.source(s), self.k) if a.attr.monoid in ("max", "min")]

    def guarded(self, value: Expr, s: Expr) -> Expr:
        """A statistic, harmless where it has no value; 0 is one of those that extremes take."""
        start = self.start(s)
        return value if start == 0 and self.extremes(s) else _guarded(value, start)

    def final(self, r: Expr, moved: bool) -> Expr:
        """The reduction's value after the loop.

        `moved`: from the plain number that a guard has put to what the statistic then is.
        """
        node = self.node(r)
        if not moved:
            return node
        law = self.laws[r]
        mapping: dict[Expr, Expr] = {}
        for s in law.statistics:
            end = replaced(s, {a: self._whole(a) for a in _outermost(s, self.k)})
            mapping[after(s)] = end
            mapping[before(s)] = self.guarded(end, s) if self.guards[r].new else end
        for a in (r, *law.auxiliaries):
            mapping[prior(a)] = self.node(a) if a in self.laws else a
        return _substituted(law.update, mapping)

    def _whole(self, r: Expr) -> Expr:
        return self.node(r) if r in self.laws else r


def _of_indices(e: Expr) -> bool:
    """Whether a value is a number, or an index as one."""
    return e.op == "const" or (e.op == "cast" and e.args[0].dtype == "index")


def _from_first(r: Expr) -> Expr | None:
    """A minimum of indices: what it is from the first one on. None for other reductions."""
    body, first = r.args[0], {a: index(0) for a in r.attr.axes}
    if r.attr.monoid not in ("max", "min") or not _of_indices(body):
        return None
    if body.op == "const":
        return body
    least = substitute(body.args[0], first)
    grows = ix.at_least_zero(op("sub", body.args[0], least))
    return cast(least, body.dtype) if grows and r.attr.monoid == "min" else None


def _settled_minima(root: Expr) -> Expr:
    """With the minima of indices so far as what they are from the first index on."""
    return rewrite(root, lambda e: _from_first(e.args[0]) if e.op == "running" else None)


def _outermost(s: Expr, k: Axis) -> list[Expr]:
    """The reductions over k that a statistic is computed from."""
    found: dict[Expr, None] = {}
    stack = [s]
    seen = {s}
    while stack:
        e = stack.pop()
        if e.op == "reduce" and k in e.attr.axes:
            found[e] = None
            continue
        below = [a for a in e.args if a not in seen]
        seen.update(below)
        stack.extend(below)
    return list(found)


def _substituted(root: Expr, mapping: dict[Expr, Expr]) -> Expr:
    return rewrite(root, lambda e: mapping.get(e)) if mapping else root


def _counted(s: Expr, k: Axis) -> Expr:
    """A statistic with the extent of k, where it divides or multiplies, as the count so far."""
    extent = float(k.extent.attr) if k.extent.op == "const" else None
    count = reduce("sum", (k,), const(1.0, "f32"))

    def change(e: Expr) -> Expr | None:
        if e.op not in ("div", "mul"):
            return None
        scale = e.args[1]
        if scale.op == "const" and extent is not None:
            whole = scale.attr == (extent if e.op == "div" else 1 / extent)
        else:
            whole = e.op == "div" and scale.op == "cast" and scale.args[0] is k.extent
        return op("div", e.args[0], count) if whole else None

    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:  # not inside the reductions themselves
        if e.op == "reduce":
            return e
        if e not in memo:
            changed = change(e)
            memo[e] = changed if changed is not None else rebuild(e, tuple(map(visit, e.args)))
        return memo[e]

    return visit(s)


def _neutral_value(s: Expr, active: list[Expr]) -> float:
    """What a statistic is before the loop; NaN also where that depends on the data."""
    start = Fingerprints(worlds=4)
    for r in active:
        start.values[r] = np.asarray(identity(r.attr.monoid, r.dtype), np.float64)
    with np.errstate(all="ignore"):
        v = np.asarray(start.value(s), np.float64)
    return float(v.flat[0]) if np.all(v == v.flat[0]) else float("nan")


def _guarded(s: Expr, start: float) -> Expr:
    """The statistic; where it is still what it was before the loop, a number that is harmless."""
    unset = _unset(s, start)
    if unset is None:
        return s
    return op("where", unset, const(0.0 if np.isinf(start) else 1.0, s.dtype), s)


def _unset(s: Expr, start: float) -> Expr | None:
    """Whether a statistic still is what it was before the loop, where that may do harm."""
    if not is_float(s.dtype) or (np.isfinite(start) and start != 0):
        return None
    return op("isnan", s) if np.isnan(start) else op("eq", s, const(start, s.dtype))


# -- checking -------------------------------------------------------------------------------------


def _checked(
    stores: tuple[Store, ...], k: Axis, laws: tuple[Law, ...], builders: Builders
) -> Iterator[Form]:
    """Forms that compute what the stores do, those with fewer accumulators first.

    For each set of auxiliaries the simplest, and the simplest of which parts can be merged. The
    last keeps them all, which rounding may ask for. Where a law holds only with an auxiliary, what
    does without it takes another pass: it comes last.
    """
    extras = list(dict.fromkeys(a for law in laws for a in law.auxiliaries))
    full = Sample(k)
    subsets = [frozenset(d) for n in range(len(extras), -1, -1) for d in combinations(extras, n)]
    partial: dict[tuple[Store, ...], Form] = {}
    kept = 0
    for dropped in dict.fromkeys([*subsets[: MOST_SUBSETS - 1], frozenset[Expr]()]):
        if dropped and kept == MOST_FORMS:
            continue
        own = {law.reduction: law.without(dropped) for law in laws}
        used = {r: own[r] for r in _reached(stores, k, own)}
        forms = [_form(stores, full, used, splits, builders) for splits in (False, True)]
        found = {f.stores: f for f in forms if f is not None}  # one that also splits wins
        whole = [f for f in found.values() if len(f.laws) == len(used)]
        partial.update({new: f for new, f in found.items() if f not in whole})
        yield from whole
        kept += bool(whole)
    if partial and not kept:
        yield from list(partial.values())[:MOST_FORMS]
    elif not kept and len(laws) > 1:  # what the last one gives takes another pass
        yield from _checked(stores, k, laws[:-1], builders)


def _form(
    stores: tuple[Store, ...], full: Sample, laws: dict[Expr, Law], splits: bool, builders: Builders
) -> Form | None:
    """The simplest form that is right; `splits`: also in parts that are merged."""
    parts = ((TILES,), PARTS) if splits else ((TILES,),)
    wanted = [np.asarray(full.value(s.value), np.float64) for s in stores] * len(parts)
    ran: dict[tuple[bool, bool], tuple[tuple[Store, ...], list[Array]]] = {}
    for strict, moved, counted in product((True, False), (False, True), (True, False)):
        key = full.k, tuple(laws.values()), counted, splits
        if key not in builders:
            builders[key] = _settled(full, laws, _Builder(full.k, {}, counted), parts)
        builder = builders[key]
        if (moved, counted) not in ran:
            values = {r: builder.final(r, moved) for r in builder.laws}
            new = tuple(replace(s, value=replaced(s.value, values)) for s in stores)
            runs = [run(s.value, full, p) for p in parts for s in new] if new != stores else []
            ran[moved, counted] = new, runs
        new, runs = ran[moved, counted]
        if runs and all(agrees(got, w, strict) for got, w in zip(runs, wanted, strict=True)):
            final = tuple(replace(s, value=_settled_minima(s.value)) for s in new)
            return Form(final, tuple(builder.laws.values()), splits)
    return None


def _settled(
    full: Sample, laws: dict[Expr, Law], builder: _Builder, parts: Sequence[tuple[Tiles, ...]]
) -> _Builder:
    """The laws that hold from the loop's start on; what uses the others takes a later pass."""
    lost: set[Expr] = set()
    for r, law in laws.items():
        active = {a for s in law.statistics for a in _outermost(s, full.k)} | set(law.auxiliaries)
        builder.laws[r] = law
        if active & lost or not _settle(builder, r, full, parts):
            lost.add(r)
            del builder.laws[r]
            builder.made.pop(r, None)
    return builder


def _settle(builder: _Builder, r: Expr, full: Sample, parts: Sequence[tuple[Tiles, ...]]) -> bool:
    """Choose the simplest guard with which an accumulator ends right wherever it is a number.

    If none does that: wherever its statistics are numbers too. What the stores make of the rest is
    checked with the whole form.
    """
    want, size = np.asarray(full.value(r), np.float64), _sum_of_sizes(r, full)
    ends = [np.isfinite(full.value(s)) for s in builder.laws[r].statistics]
    for asked in (want, np.where(np.all(np.broadcast_arrays(*ends), axis=0), want, np.nan)):
        for guard in guards(r, builder.laws[r], full.k):
            builder.guards[r] = guard
            builder.made.pop(r, None)
            node = builder.node(r)
            if all(_right(run(node, full, p), asked, size) for p in parts):
                return True
    return False


def _right(found: Array, wanted: Array, size: Array) -> bool:
    """Whether an accumulator ends right wherever that is a number; `size`: of what it adds up."""
    got, want = np.broadcast_arrays(np.asarray(found, np.float64), wanted)
    with np.errstate(all="ignore"):
        near = np.abs(got - want) <= CLOSE * np.abs(want) + 1e-10 * size
        infinite = np.isinf(want) & ((got == want) | np.isnan(got))
    return bool((near | infinite | np.isnan(want)).all())


def _sum_of_sizes(r: Expr, full: Sample) -> Array:
    """The sum of what a reduction takes, without signs; a bound of it, per world."""
    with np.errstate(all="ignore"):
        body = np.abs(np.asarray(full.value(r.args[0]), np.float64))
        body = np.where(np.isfinite(body), body, 0.0)
        most = body.max(axis=tuple(range(body.ndim - 1)))
        return np.asarray(most * full.weight(full.k) * len(full.all_points()))


def _cancelled(stores: tuple[Store, ...], k: Axis) -> Iterator[tuple[Store, ...]]:
    full = Sample(k)
    reductions = over(stores, k)
    used = {u for r in reductions for u in _used(r, k, set(reductions))}
    for r in reductions:
        if r not in used or not is_float(r.dtype):
            continue
        new = tuple(replace(s, value=replaced(s.value, {r: const(0.0, r.dtype)})) for s in stores)
        pairs = (
            (full.value(a.value), full.value(b.value)) for a, b in zip(new, stores, strict=True)
        )
        if all(_same_numbers(got, want) for got, want in pairs):
            yield new


def _same_numbers(found: Array, wanted: Array) -> bool:
    """Whether values agree in the ordinary worlds."""
    pair = np.broadcast_arrays(*np.atleast_1d(found, wanted))
    got, want = (np.asarray(v, np.float64)[..., :ORDINARY] for v in pair)
    if np.isnan(want).all():
        return False
    with np.errstate(all="ignore"):
        near = np.abs(got - want) <= CLOSE * np.abs(want) + 1e-12 * np.nanmax(np.abs(want))
    return bool((near | np.isnan(want)).all())


def _reached(stores: tuple[Store, ...], k: Axis, laws: dict[Expr, Law]) -> list[Expr]:
    """The laws' reductions that the stores use, directly or through others."""
    nodes = set(toposort(*(s.value for s in stores)))
    found = [r for r in laws if r in nodes]
    for r in found:
        statistics = [a for s in laws[r].statistics for a in _outermost(s, k)]
        below = dict.fromkeys([*statistics, *laws[r].auxiliaries])
        found += [a for a in below if a in laws and a not in found]
    return sorted(found, key=lambda r: r.size)


def agrees(found: Array, wanted: Array, strict: bool) -> bool:
    """Whether what a loop gave is what it should be, in every world.

    Not `strict`: where it should be infinite, because inputs are, it may be NaN.
    """
    got, want = np.broadcast_arrays(np.asarray(found, np.float64), wanted)
    with np.errstate(all="ignore"):
        scale = np.where(np.isfinite(want), np.abs(want), 0.0)
        axes = tuple(range(want.ndim - 1))
        largest = scale.max(axis=axes, keepdims=True) if axes else scale
        near = np.abs(got - want) <= CLOSE * scale + 1e-9 * largest + 1e-12
        same = near | (got == want) | (np.isnan(got) & (np.isnan(want) | ~_required(want, strict)))
    return bool(same.all())


def _required(want: Array, strict: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    ordinary = np.arange(want.shape[-1]) < ORDINARY if want.ndim else np.ones((), bool)
    return np.isfinite(want) | ordinary | strict


def run(value: Expr, full: Sample, parts: tuple[Tiles, ...] = (TILES,)) -> Array:
    """The value where loops over parts of the sample's axis meet its indices tile by tile."""
    nodes = toposort(value)
    own = [n for n in nodes if full.k in (n.args[0].attr.axes if n.op in MARKERS else _axes(n))]
    forms = {n.args[0]: n for n in own if n.op == "online"}
    marked = {n.args[0] for n in own if n.op in MARKERS}
    group = sorted({*forms, *marked}, key=lambda e: e.size)
    group = [forms.get(p, p) for p in group]
    states = [_looped(group, full, tiles) for tiles in parts]
    state = states[0] if len(states) == 1 else _merged(group, full, states)
    return full.part(None, {g: state[plain_of(g)] for g in group}).value(value)


def _axes(n: Expr) -> tuple[Axis, ...]:
    return n.attr.axes if n.op == "online" else ()


State = dict[Expr, Array]  # the accumulators by the reductions that they are


def _looped(group: list[Expr], full: Sample, tiles: Tiles) -> State:
    indices = len(full.all_points())
    state: State = {plain_of(g): _start(g, full) for g in group}
    for tile in tiles:
        chosen = tuple(n for n in tile if n < indices)
        if tile and not chosen:
            break
        known: dict[Expr, Array] = {prior(p): v for p, v in state.items()}
        part = full.part(chosen or (0,), known)
        for g in group:
            added = _added(g, part) if tile else _start(g, full)
            state[plain_of(g)] = part.values[running(plain_of(g))] = _turn(g, part, added)
    return state


def _merged(group: list[Expr], full: Sample, states: list[State]) -> State:
    """The accumulators of parts joined: each moved to the statistics of all, then combined."""
    total: State = {}
    for g in group:
        joined = _start(g, full)
        for state in states:
            known = {prior(p): v for p, v in state.items()}
            known |= {running(p): v for p, v in total.items()}
            view = full.part((0,), known)
            moved = view.value(g.args[2]) if g.op == "online" else state[g]
            with np.errstate(all="ignore"):
                joined = OPS[MONOIDS[g.attr.monoid].combine].numpy(joined, moved)
        total[plain_of(g)] = np.asarray(joined)
    return total


def _start(g: Expr, full: Sample) -> Array:
    kind = full.precision if is_float(g.dtype) else None
    return np.asarray(identity(g.attr.monoid, g.dtype), kind)


def _added(g: Expr, part: Sample) -> Array:
    """What a tile's indices add to an accumulator."""
    return part.value(make("reduce", (body_of(g),), g.attr, g.dtype))


def _turn(g: Expr, part: Sample, added: Array) -> Array:
    """An accumulator after a tile."""
    before = part.value(g.args[2]) if g.op == "online" else part.values[prior(g)]
    with np.errstate(all="ignore"):
        return np.asarray(OPS[MONOIDS[g.attr.monoid].combine].numpy(before, added))
