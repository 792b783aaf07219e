"""Shift synthesis: how an accumulator moves when a statistic that its body uses changes.

For R_n body(n; s) the law sought is a function U with

    R_n body(n; s_new) = U(R_n body(n; s_old), s_old, s_new, ...)

over a part of the indices. With s_old the statistic so far it rescales an online accumulator; with
s_old a constant it moves the statistic out of the loop; between partial results it merges them.

Where R is a sum, U is linear in the accumulators: the body at s_new is, index by index, a
combination of a few bodies at s_old (itself, and products of its factors: auxiliaries, with a sum
of their own each). Least squares gives the coefficients at sample rows; each is then enumerated
alone as a term over (s_old, s_new). A maximum or minimum takes the same path with one auxiliary,
the constant 1, and a positive coefficient. What is not of this form is enumerated whole. Several
statistics are moved one after another. Nothing is looked up: what is kept is a memory of what was
found for a body before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import (
    MARKERS,
    Axis,
    Expr,
    Reduction,
    Symbol,
    cast,
    const,
    is_const,
    make,
    op,
    prior,
    rebuild,
    toposort,
)
from superopt.mugraph.ops import OPS, identity
from superopt.mugraph.text import inline
from superopt.search.fingerprint import Array
from superopt.search.sample import Sample
from superopt.search.terms import Alphabet, Chosen, Terms

PREFIX = (0, 2, 3, 5, 6)  # the sampled indices that a loop has met before the statistic changes
CHECKED = ((0,), (5,), (1, 4), PREFIX)  # such indices on which a law is run
MOST_AUXILIARIES = 3  # of one body
MOST_FACTORS = 5
GLANCE = 16  # rows of a first fit
ROWS = 48  # sample rows at which terms are compared
FEWEST_ROWS = 6
EXACT = 1e-8  # relative residual of a fit
CLOSE = 1e-6  # of a law's value and the reduction's
DISTINCT = 1e-8  # least over largest singular value of bodies that are told apart
PRECISE = 1e-11  # relative error of a coefficient, as rounding leaves it
NOISE = 1e-13  # what rounding leaves of the values that a body is computed from
UNDERFLOW = 1e-200  # what is smaller may have lost its digits on the way
MODERATE = 50.0  # at rows with such values at most, terms are compared, where there are enough
INVERSE = {"exp": "log", "exp2": "log2"}
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


@dataclass(frozen=True)
class Law:
    """U for one reduction. `update` is over prior(r) and statistics `before` and `after`.

    `terms` are what `update` sums: (accumulator, coefficient); empty where it is no such sum.
    """

    reduction: Expr
    statistics: tuple[Expr, ...]
    update: Expr
    auxiliaries: tuple[Expr, ...]
    tried: int
    terms: tuple[tuple[Expr, Expr], ...] = ()

    @property
    def text(self) -> str:
        """`acc*exp(s_old - s_new)`: the update with the accumulator and statistics named so."""
        names: dict[Expr, Expr] = {prior(self.reduction): _named("acc")}
        for a in self.auxiliaries:
            count = is_const(a.args[0], 1.0)
            names[prior(a)] = _named("count" if count else f"sum({inline(a.args[0], 60)})")
        for n, s in enumerate(self.statistics):
            number = str(n) if len(self.statistics) > 1 else ""
            names[before(s)], names[after(s)] = _named(f"s{number}_old"), _named(f"s{number}_new")
        return inline(replaced(self.update, names), limit=400)

    def without(self, dropped: frozenset[Expr]) -> Law:
        """The law with some auxiliaries taken to be zero."""
        if not dropped or not self.terms:
            return self
        left = tuple(t for t in self.terms if t[0] not in dropped)
        kept = tuple(a for a in self.auxiliaries if a not in dropped)
        update = combined(left, self.reduction)
        return Law(self.reduction, self.statistics, update, kept, self.tried, left)


def before(s: Expr) -> Expr:
    """A statistic's old value, in a law."""
    return make("prior", (s,), "statistic", s.dtype)


def after(s: Expr) -> Expr:
    """A statistic's new value, in a law."""
    return make("running", (s,), "statistic", s.dtype)


def _named(name: str) -> Expr:
    return make("sym", (), Symbol(name, 0, 0), "f32")


def statistics(r: Expr, k: Axis, active: frozenset[Expr]) -> tuple[Expr, ...]:
    """The largest parts of a reduction's body that do not vary along k and use `active` ones."""
    found: dict[Expr, None] = {}
    memo: dict[Expr, bool] = {}

    def uses(e: Expr) -> bool:
        if e not in memo:
            memo[e] = e in active or any(uses(a) for a in e.args)
        return memo[e]

    stack = [r.args[0]]
    seen = set(stack)
    while stack:
        e = stack.pop()
        if not uses(e):
            continue
        if k not in e.free:
            found[e] = None
            continue
        args = e.args[:1] if e.op == "online" else e.args
        below = [a for a in reversed(args) if a not in seen]
        seen.update(below)
        stack.extend(below)
    return tuple(found)


def replaced(root: Expr, mapping: dict[Expr, Expr]) -> Expr:
    """The expression with some nodes replaced, the outermost first; below these it is left."""
    memo: dict[Expr, Expr] = dict(mapping)
    stack = [root]
    while stack:
        node = stack[-1]
        if node in memo or node.op in MARKERS:
            memo.setdefault(node, node)
            stack.pop()
            continue
        kept = node.args[:1] if node.op == "online" else ()  # the reduction that markers name
        below = node.args[len(kept) :]
        if missing := [a for a in below if a not in memo]:
            stack.extend(missing)
            continue
        memo[node] = rebuild(node, (*kept, *(memo[a] for a in below)))
        stack.pop()
    return memo[root]


def combined(terms: Sequence[tuple[Expr, Expr]], r: Expr) -> Expr:
    """The sum of accumulators times coefficients, in the reduction's type."""
    total: Expr | None = None
    for accumulator, coefficient in terms:
        value = prior(accumulator)
        if is_const(coefficient, 1.0):
            term = value
        elif is_const(accumulator.args[0], 1.0) and r.attr.monoid in ("max", "min"):
            term = coefficient  # the auxiliary 1 of an extreme is no accumulator
        else:
            term = op("mul", value, coefficient)
        total = term if total is None else op("add", total, term)
    return cast(total if total is not None else const(0, r.dtype), r.dtype)


@dataclass
class Shifts:
    """Synthesises laws; remembers them by reduction."""

    known: dict[tuple[Expr, Axis, frozenset[Expr]], Law | None] = field(default_factory=dict)
    tried: int = 0  # terms, over all questions

    def law(self, r: Expr, k: Axis, active: frozenset[Expr]) -> Law | None:
        """U for reduction r over k, whose body uses the `active` reductions over k; or None."""
        key = (r, k, active)
        if key not in self.known and any(e.op in MARKERS for e in _outside_markers(r.args[0])):
            self.known[key] = None  # it is a part of another loop's turn
        if key not in self.known:
            found = _Question(r, k, statistics(r, k, active))
            self.known[key] = found.answer()
            self.tried += found.tried
        return self.known[key]


class _States:
    """Some indices of k, the prefix, as statistics move from its own values to those of all."""

    def __init__(self, full: Sample, stats: tuple[Expr, ...], prefix: tuple[int, ...]) -> None:
        self.prefix = tuple(n for n in prefix if n < len(full.all_points()))
        bare = full.part(self.prefix, {})
        self.new = {s: np.asarray(full.value(s), np.float64) for s in stats}
        self.old = {s: np.asarray(bare.value(s), np.float64) for s in stats}
        self.samples = []
        for count in range(len(stats) + 1):  # how many have their new values
            known = {s: (self.new if n < count else self.old)[s] for n, s in enumerate(stats)}
            self.samples.append(full.part(self.prefix, known))


def law_holds(law: Law, states: _States) -> bool:
    """Whether a law gives what the reduction is, wherever that is a finite number.

    It may fail to be a number itself in a few rows (a statistic may have been 0), but not in most
    of those where one of its statistics has changed.
    """
    then, now = states.samples[0], states.samples[-1]
    r, moving = law.reduction, {before(s): v for s, v in states.old.items()}
    moving |= {after(s): v for s, v in states.new.items()}
    known = {prior(a): then.value(_bare(a)) for a in (r, *law.auxiliaries)}
    view = then.part(states.prefix, moving | known)
    got, want, value = view.value(law.update), now.value(_bare(r)), known[prior(r)]
    size = np.abs(want)
    with np.errstate(all="ignore"):
        if r.attr.monoid == "sum":
            size = size + now.value(_bare(r, op("abs", r.args[0])))
    told = np.isfinite(size) & np.ones(np.shape(got), bool)
    told = told & ((value == 0) | (np.abs(value) >= UNDERFLOW))
    for s in law.statistics:  # not so large that a body vanishes
        told = told & (np.abs(states.old[s]) < MODERATE) & (np.abs(states.new[s]) < MODERATE)
    usable = told & np.isfinite(got)
    with np.errstate(all="ignore"):
        size = size + np.abs(got) + NOISE / CLOSE * _passed(law, now)
        for accumulator, coefficient in law.terms:
            size = size + np.abs(known.get(prior(accumulator), 1.0) * view.value(coefficient))
        lost = moving | {p: v + UNDERFLOW for p, v in known.items()}
        slack = UNDERFLOW + np.abs(then.part(states.prefix, lost).value(law.update) - got)
        near = np.abs(got - want) <= CLOSE * size + slack
        if r.attr.monoid in ("max", "min"):  # U of a larger value is none smaller
            larger = moving | known | {prior(r): value + np.abs(value) + 1}
            near = near & ~(then.part(states.prefix, larger).value(law.update) < got)
    moved = [told & (states.old[s] != states.new[s]) for s in law.statistics]
    mostly = all(2 * (m & usable).sum() >= m.sum() for m in moved)
    return bool(mostly and (near | ~usable).all() and usable.any())


def _changes(comparison: Expr, states: _States) -> bool:
    """Whether its truth changes anywhere as statistics move; else a law was not put to the test."""
    then, now = states.samples[0], states.samples[-1]
    found = np.asarray(then.value(comparison) != now.value(comparison))
    for s in states.old:
        found = found & (np.abs(states.old[s]) < MODERATE) & (np.abs(states.new[s]) < MODERATE)
    return bool(found.any())


def _passed(law: Law, sample: Sample) -> Array:
    """The largest numbers from which a body is computed: rounding leaves a part of these in it."""
    spec = Reduction("max", law.reduction.attr.axes, None)
    largest: Array = np.zeros(())
    for e in _outside_markers(law.reduction.args[0], law.statistics):
        if is_float(e.dtype):
            v = sample.value(make("reduce", (op("abs", e),), spec, e.dtype))
            largest = np.maximum(largest, np.where(np.isfinite(v), v, 0.0))
    return largest


class _Question:
    """The search for one law."""

    def __init__(self, r: Expr, k: Axis, stats: tuple[Expr, ...]) -> None:
        self.r, self.k, self.stats = r, k, stats
        self.tried = 0
        # a product is one of the sampled values; a sum may be so large that what it moves vanishes
        self.light = (True,) if r.attr.monoid == "prod" else (False, True, True)
        self.states = _States(Sample(k, light=self.light), stats, PREFIX)
        self.old, self.new, self.samples = self.states.old, self.states.new, self.states.samples

    def answer(self) -> Law | None:
        if not self.stats or len(self.states.prefix) < 2:
            return None
        monoid = self.r.attr.monoid
        if monoid in ("sum", "max", "min") and is_float(self.r.dtype):
            found = self._linear()
            if found is not None and self._holds(found):
                return found
            if monoid == "sum":
                return None  # what moves a sum of any part of the indices is linear in it
        found = self._power() if monoid == "prod" else self._whole()
        return found if found is not None and self._holds(found) else None

    def _holds(self, law: Law) -> bool:
        """Whether a law is right on other data, from the first index on, whatever is compared."""
        full = Sample(self.k, seed=1, light=self.light)
        states = [s for s in (_States(full, self.stats, p) for p in CHECKED) if s.prefix]
        body = _outside_markers(self.r.args[0], self.stats)
        compared = [e for e in body if e.op in COMPARISONS and self.k in e.free and self._moves(e)]
        seen = all(any(_changes(e, s) for s in states) for e in compared)
        return seen and all(law_holds(law, s) for s in states)

    def _moves(self, e: Expr) -> bool:
        return any(s in self.stats for s in _outside_markers(e, self.stats))

    # -- laws that are linear in the accumulators -------------------------------------------------

    def _linear(self) -> Law | None:
        """Move the statistics one by one; every auxiliary used must be moved as well."""
        extreme = self.r.attr.monoid != "sum"
        body = self.r.args[0]
        basis = [body]
        steps: dict[tuple[Expr, int], dict[Expr, Expr]] = {}
        work = [body]
        candidates = [const(1.0, "f32")] if extreme else self._candidates(body)
        while work:
            b = work.pop(0)
            for step in range(len(self.stats)):
                if extreme and b is not body:
                    steps[b, step] = {b: const(1.0, "f32")}
                    continue
                found = self._step(b, step, basis, candidates)
                if found is None:
                    return None
                steps[b, step] = found
                fresh = [x for x in found if x not in basis]
                basis += fresh
                work += fresh
                if len(basis) > MOST_AUXILIARIES + 1:
                    return None
        return self._composed(body, basis, steps)

    def _composed(
        self, body: Expr, basis: list[Expr], steps: dict[tuple[Expr, int], dict[Expr, Expr]]
    ) -> Law:
        """All steps as one: coefficients of the accumulators before."""
        state: dict[Expr, dict[Expr, Expr]] = {b: {b: const(1.0, "f32")} for b in basis}
        for step in range(len(self.stats)):
            moved: dict[Expr, dict[Expr, Expr]] = {}
            for b in basis:
                total: dict[Expr, Expr] = {}
                for through, coefficient in steps.get((b, step), {b: const(1.0, "f32")}).items():
                    for source, before in state[through].items():
                        part = _times(coefficient, before)
                        total[source] = op("add", total[source], part) if source in total else part
                moved[b] = total
            state = moved
        sums = {b: self.r if b is body else self._sum(b) for b in basis}
        terms = tuple((sums[b], c) for b, c in state[body].items() if not is_const(c, 0.0))
        extreme = self.r.attr.monoid != "sum"
        extra = () if extreme else tuple(a for a, _ in terms if a is not self.r)
        return Law(self.r, self.stats, combined(terms, self.r), extra, self.tried, terms)

    def _sum(self, body: Expr) -> Expr:
        spec = Reduction("sum", self.r.attr.axes, None)
        return make("reduce", (body,), spec, self.r.dtype)

    def _candidates(self, body: Expr) -> list[Expr]:
        """Products of some of the body's factors that vary along k, smallest first; 1 first."""
        varying = [f for f in _factors(body) if self.k in f.free][:MOST_FACTORS]
        found: dict[Expr, None] = {const(1.0, "f32"): None}
        for count in range(1, len(varying) + 1):
            for chosen in combinations(varying, count):
                product = chosen[0]
                for f in chosen[1:]:
                    product = op("mul", product, f)
                found[cast(product, "f32") if product.dtype != "f64" else product] = None
        return [e for e in found if e is not body]

    def _step(
        self, b: Expr, step: int, basis: list[Expr], candidates: list[Expr]
    ) -> dict[Expr, Expr] | None:
        """b after one statistic has moved, as coefficients of bodies before it moved."""
        old, new = self.samples[step], self.samples[step + 1]
        target = new.value(b)
        own = [x for x in basis if x is not b]
        extra = [x for x in candidates if x is not b and x not in own]
        options = [b, *own, *extra]
        arrays = old.rows(target, *(old.value(x) for x in options), *self._atoms(step)[1])
        columns, atoms = arrays[1 : 1 + len(options)], arrays[1 + len(options) :]
        finite = np.isfinite(np.asarray([a[:, 0] for a in atoms])).all(axis=0)
        y = np.where(finite[:, None], arrays[0], np.nan)
        moved = np.broadcast_to(atoms[0] != atoms[1], y.shape)[:, 0]
        told = np.asarray(np.isfinite(y).all(axis=1))
        fitted_by = [_Column.of(c, y.shape) for c in columns]
        for count in range(MOST_AUXILIARIES + 1):
            for others in combinations(range(1, len(options)), count):
                used = [0, *others]
                fitted = _fit(y, [fitted_by[n] for n in used], told, moved)
                if fitted is None:
                    continue
                rows, values = fitted
                known = [np.broadcast_to(a, y.shape)[rows, 0] for a in atoms]
                terms = self._terms(step, known, list(values.T))
                if terms is None:
                    continue
                named = dict(zip([options[n] for n in used], terms, strict=True))
                if self.r.attr.monoid in ("max", "min") and (values[:, 0] < 0).any():
                    return None  # a maximum of the negated body would be a minimum
                return {x: c for x, c in named.items() if not is_const(c, 0.0)}
        return None

    # -- coefficients as terms --------------------------------------------------------------------

    def _atoms(self, step: int) -> tuple[list[Expr], list[Array]]:
        """What coefficients are made of: the statistic before and after, others, parameters."""
        s = self.stats[step]
        exprs: list[Expr] = [before(s), after(s)]
        values: list[Array] = [self.old[s], self.new[s]]
        if is_float(s.dtype):
            exprs.append(op("sub", before(s), after(s)))
            with np.errstate(all="ignore"):
                values.append(self.old[s] - self.new[s])
        for n, other in enumerate(self.stats):
            if n != step:
                exprs.append(after(other) if n < step else before(other))
                values.append(self.new[other] if n < step else self.old[other])
        for p in self._parameters():
            exprs.append(p)
            values.append(np.asarray(self.samples[0].value(p), np.float64))
        return exprs, values

    def _parameters(self) -> list[Expr]:
        """Loads that the body uses beside its statistics and that do not vary along k."""
        inner = replaced(self.r.args[0], {s: after(s) for s in self.stats})
        found = [
            e
            for e in _outside_markers(inner)
            if e.op in ("load", "cast") and is_float(e.dtype) and self.k not in e.free
        ]
        loads = [e for e in found if e.op == "load"]
        widened = [e for e in found if e.op == "cast" and e.args[0] in loads]
        return [*widened, *(e for e in loads if all(w.args[0] is not e for w in widened))][:2]

    def _terms(self, step: int, atoms: list[Array], targets: list[Array]) -> list[Expr] | None:
        exprs, _ = self._atoms(step)
        rows = _spread(atoms, targets, atoms[0] != atoms[1])
        if rows is None:
            return None
        alphabet = self._alphabet(step, exprs, [a[rows] for a in atoms])
        search = Terms(alphabet)
        first, *others = (t[rows] for t in targets)
        with np.errstate(all="ignore"):  # a coefficient is often a simple multiple of the first
            ratios = [t / first for t in others]
        found = search.find([first, *others, *(r for r in ratios if np.isfinite(r).all())])
        self.tried += search.tried
        count = len(targets)
        terms = found[:count]
        if found[0] is not None and len(found) == 2 * count - 1:
            scaled = (None if f is None else _times(found[0], f) for f in found[count:])
            terms = [found[0], *(a or b for a, b in zip(found[1:count], scaled, strict=True))]
        return None if any(t is None for t in terms) else [t for t in terms if t is not None]

    def _alphabet(self, step: int, exprs: list[Expr], values: list[Array]) -> Alphabet:
        body = _outside_markers(self.r.args[0])
        names = {e.op for e in body if e.op in OPS and OPS[e.op].arity == 1 and is_float(e.dtype)}
        names |= {INVERSE[n] for n in names if n in INVERSE}
        numbers = {float(e.attr) for e in body if e.op == "const" and is_float(e.dtype)}
        constants = [0.0, 1.0, 2.0, *sorted(n for n in numbers if np.isfinite(n))[:3]]
        width = len(values[0])
        atoms = list(zip(exprs, values, strict=True))
        atoms += [(const(n, "f32"), np.full(width, n)) for n in dict.fromkeys(constants)]
        return Alphabet(atoms, sorted(names - {"neg"}), self._choices(step, values))

    def _choices(self, step: int, values: list[Array]) -> list[Chosen]:
        """`where(the statistic has not changed, t, neutral)`, where the body compares."""
        body = _outside_markers(self.r.args[0])
        if not any(e.op == "where" or e.dtype == "bool" for e in body):
            return []
        s = self.stats[step]
        condition = op("eq", before(s), after(s))
        if is_float(s.dtype):
            condition = op("or", condition, op("isnan", before(s)))
        own, kind = self.r.dtype, DTYPES[self.r.dtype].kind
        neutral = {const(identity(self.r.attr.monoid, own), own), const(0, own)}
        neutral |= {e for e in body if e.op == "const" and DTYPES[e.dtype].kind == kind}
        neutral |= {e for e in body if e.op == "sym" and kind == "int"}
        holds = (values[0] == values[1]) | np.isnan(values[0])
        worth = {e: float(self.samples[0].value(e)) for e in neutral}
        return [Chosen(condition, holds, cast(e, own), worth[e]) for e in sorted(neutral)]

    # -- other laws -------------------------------------------------------------------------------

    def _power(self) -> Law | None:
        """A product whose body is scaled by c: the accumulator times c to the count's power."""
        count = self._sum(const(1.0, "f32"))
        update = prior(self.r)
        for step in range(len(self.stats)):
            body = self.r.args[0]
            found = self._step(body, step, [body], [])
            if found is None or body not in found:
                return None
            update = op("mul", update, op("pow", found[body], prior(count)))
        return Law(self.r, self.stats, update, (count,), self.tried)

    def _whole(self) -> Law | None:
        """U as a term of the accumulator itself: one statistic after another, or all at once."""
        last = len(self.stats)
        for path in ([(n, n + 1) for n in range(last)], [(0, last)]):
            update = prior(self.r)
            for first, then in path:
                found = self._leap(first, then)
                if found is None:
                    break
                update = replaced(found, {prior(self.r): update})
            else:
                return Law(self.r, self.stats, cast(update, self.r.dtype), (), self.tried)
        return None

    def _leap(self, first: int, then: int) -> Expr | None:
        """The accumulator after statistics first..then have moved, as a term of what it was."""
        old, new = (self.samples[n].value(_bare(self.r)) for n in (first, then))
        exprs, values = self._atoms(first)
        moved = range(first, then)
        for n in moved[1:]:
            exprs.append(after(self.stats[n]))
            values.append(self.new[self.stats[n]])
        changed = sum(self.old[self.stats[n]] != self.new[self.stats[n]] for n in moved)
        flat = self.samples[0].rows(new, old, *values, np.asarray(changed))
        target, *known, changed = (a[:, 0] for a in flat)
        rows = _spread(known, [target], changed > 0)
        if rows is None or len(np.unique(target[rows])) < 3:
            return None
        known = [a[rows] for a in known]
        alphabet = self._alphabet(first, exprs, known[1:])
        for n in moved[1:]:
            pair = [known[1 + exprs.index(e)] for e in (before(self.stats[n]), exprs[n - then])]
            alphabet.choices = [*alphabet.choices, *self._choices(n, pair)]
        alphabet.atoms.insert(0, (prior(self.r), known[0]))
        search = Terms(alphabet)
        (found,) = search.find([target[rows]])
        self.tried += search.tried
        return found if found is not None and prior(self.r) in toposort(found) else None


def _bare(r: Expr, body: Expr | None = None) -> Expr:
    """The reduction of its body, or of another, with no operands of a dot."""
    spec = Reduction(r.attr.monoid, r.attr.axes, None)
    return make("reduce", (r.args[0] if body is None else body,), spec, r.dtype)


def _times(a: Expr, b: Expr) -> Expr:
    return b if is_const(a, 1.0) else a if is_const(b, 1.0) else op("mul", a, b)


def _outside_markers(root: Expr, stop: Sequence[Expr] = ()) -> list[Expr]:
    """The nodes of an expression, but those within markers and within any of `stop`.

    Of an online reduction only the reduction that it equals is looked at.
    """
    found: dict[Expr, None] = {}
    stack = [root]
    while stack:
        e = stack.pop()
        if e not in found:
            found[e] = None
            below = e.args[:1] if e.op == "online" else e.args
            stack.extend(() if e.op in MARKERS or e in stop else below)
    return list(found)


def _factors(e: Expr) -> Iterator[Expr]:
    """What a body multiplies; a square is its operand twice."""
    match e.op:
        case "mul":
            yield from _factors(e.args[0])
            yield from _factors(e.args[1])
        case "square":
            yield from _factors(e.args[0])
            yield from _factors(e.args[0])
        case "div":
            yield from _factors(e.args[0])
        case "neg":
            yield from _factors(e.args[0])
        case "cast" if is_float(e.args[0].dtype) and e.args[0].op != "load":
            yield from _factors(e.args[0])
        case _:
            yield e


@dataclass(frozen=True)
class _Column:
    """What a fit may combine: a row of values each, its size, whether that is in range."""

    values: Array
    size: Array
    usable: Array

    @staticmethod
    def of(values: Array, shape: tuple[int, ...]) -> _Column:
        values = np.broadcast_to(values, shape)
        size = np.abs(values).max(axis=1)
        return _Column(values, size, (size > 1e-100) & (size < 1e100))


def _fit(
    y: Array, columns: Sequence[_Column], told: Array, moved: Array
) -> tuple[Array, Array] | None:
    """Coefficients of columns that give y, row by row; None where some row has none.

    Rows that are not `told`, or with too small or large values to tell the coefficients, are left
    out; so are those where rounding leaves little of a coefficient, but for a few.
    """
    if y.shape[1] < len(columns) + 1:
        return None
    rows = np.flatnonzero(np.logical_and.reduce([told, *(c.usable for c in columns)]))
    if moved[rows].sum() < FEWEST_ROWS:
        return None
    for first in (rows[:GLANCE], rows):  # most columns fail at once
        size = np.stack([c.size[first] for c in columns], axis=-1)[:, None, :]
        x = np.stack([c.values[first] for c in columns], axis=-1)
        u, s, vt = np.linalg.svd(x / size, full_matrices=False)
        projected = np.einsum("rkm,rk->rm", u, y[first])
        left = y[first] - np.einsum("rkm,rm->rk", u, projected)
        scale = np.abs(y[first]).max(axis=1) + np.abs(projected).max(axis=1)
        clear = s[:, -1] > DISTINCT * s[:, 0]
        if (np.abs(left).max(axis=1) > EXACT * scale)[clear].any():
            return None
    with np.errstate(all="ignore"):
        inverse = vt / s[:, :, None] / size
        values = np.einsum("rmc,rm->rc", inverse, projected)
        error = np.finfo(np.float64).eps * scale[:, None] * np.abs(inverse).max(axis=1)
        values = np.where(np.abs(values) < 10 * error, 0.0, values)
        worst = (error / np.where(values == 0, 1.0, np.abs(values))).max(axis=1)
    telling = clear & moved[rows]
    if telling.sum() < FEWEST_ROWS:
        return None
    enough = np.sort(worst[telling])[: 2 * FEWEST_ROWS][-1]
    kept = clear & (worst <= max(PRECISE, enough))
    return rows[kept], values[kept]


def _spread(atoms: list[Array], targets: list[Array], moved: Array) -> Array | None:
    """Up to ROWS sample rows where all is finite, of moderate size if possible.

    Those where the statistic has moved come first; None where these are too few to tell.
    """
    largest = np.max(np.abs([*atoms, *targets]), axis=0)
    rows = np.flatnonzero(np.isfinite(largest))
    moderate = rows[largest[rows] < MODERATE]
    if moved[moderate].sum() >= FEWEST_ROWS:
        rows = moderate
    if moved[rows].sum() < FEWEST_ROWS:
        return None
    picked = np.random.default_rng(0).permutation(rows)[:ROWS]
    return np.asarray(picked[np.argsort(~moved[picked], kind="stable")])
