"""One cut, searched: the best kernels for its temporaries and outputs at every tuned size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import prod

from superopt.cost_model.configs import Ranked, ranked, size_of_space
from superopt.cost_model.model import KernelModel, Prediction, total
from superopt.cost_model.profile import Profile
from superopt.errors import UsageError
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import Axis, Expr, cast, toposort, without_online
from superopt.mugraph.program import (
    Branch,
    Config,
    Kernel,
    KernelGraph,
    Program,
    Store,
    illegal,
)
from superopt.search.division import divide as divided
from superopt.search.egraph import EGraph
from superopt.search.exhaustive import LARGEST, Exhausted, enumerate_all, operators
from superopt.search.extract import KEEP, Coster, Counts, Extractor, Weights
from superopt.search.fingerprint import within, worst
from superopt.search.online import LoopAccuracy, Online
from superopt.search.partition import operand_type, temporary
from superopt.search.roles import branches

VARIANTS = 4  # branches of a group that become candidates of their own
NOMINAL_TILE = 64
WORTH_MORE_PARTS = 0.95  # of the time with fewer parts: each adds partial results to move
MOST_EARLY = 3  # outputs of a program of which subsets are tried
WORTH_SPLITTING = 0.6  # of the unsplit time: predictions must promise much for a second launch
Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Target:
    """What a kernel must store: a store without its value, and the value's class."""

    shape: Store
    number: int
    written: Expr | None = None  # as the program computes it, where it is an output


@dataclass(frozen=True)
class Found:
    """A µGraph with the configurations and predictions for one size, kernel by kernel."""

    graph: KernelGraph
    sizes: Sizes
    configs: tuple[Config, ...]
    parts: tuple[Prediction, ...]

    @property
    def prediction(self) -> Prediction:
        return total(self.parts)


@dataclass
class Exhaustive:
    """Asks for enumeration without the guide, until `deadline` (monotonic seconds); what it did."""

    deadline: float | None = None
    runs: list[Exhausted] = field(default_factory=list)


Stages = list[tuple[list[Target], dict[int, Expr]]]


@dataclass
class Tally:
    """What a task looked at: the same where an earlier task had done the work."""

    counts: Counts = field(default_factory=Counts)
    assigned: int = 0  # role assignments looked at
    models: dict[object, int] = field(default_factory=dict)  # configurations predicted for each
    refused: dict[Expr, str] = field(default_factory=dict)  # inaccurate terms and their witnesses
    laws: dict[str, int] = field(default_factory=dict)  # shifts in use, terms tried for each
    parts: dict[object, None] = field(default_factory=dict)  # tallies that this one includes

    @property
    def configured(self) -> int:
        return sum(self.models.values())

    def include(self, key: object, other: Tally) -> None:
        if key in self.parts:
            return
        self.parts[key] = None
        self.counts.add(other.counts)
        self.assigned += other.assigned
        self.models.update(other.models)
        self.refused.update(other.refused)
        self.laws.update(other.laws)


@dataclass
class Space:
    """A program's e-graph and outputs, and the machine for which it is searched."""

    program: Program
    graph: EGraph
    outputs: tuple[Target, ...]
    profile: Profile
    accuracy: LoopAccuracy
    exhaustive: Exhaustive | None = None
    allow_unsafe: bool = False
    online: Online = field(default_factory=Online)
    tally: Tally = field(default_factory=lambda: Tally())  # of the task at hand
    _grouped: dict[object, tuple[list[tuple[float, Branch]], Tally]] = field(default_factory=dict)
    _models: dict[object, tuple[Ranked, int]] = field(default_factory=dict)
    _pairs: dict[object, tuple[tuple[Branch, Branch] | None, Tally]] = field(default_factory=dict)
    _splittable: dict[Branch, Branch] = field(default_factory=dict)  # online -> what may be split
    _terms_of: dict[int, Expr] = field(default_factory=dict)
    _uses: dict[object, set[int] | None] = field(default_factory=dict)

    def search_cut(self, cut: tuple[int, ...], sizes: Sizes) -> Iterator[Found]:
        """Complete µGraphs for a cut, one for each way to group its stores into kernels."""
        for early in self._early(cut):
            stages = self._plan(cut, early)
            if stages is not None:
                yield from self._search_stages(stages, sizes)

    def _early(self, cut: tuple[int, ...]) -> Iterator[frozenset[int]]:
        """Sets of what is computed beside temporaries instead of from them.

        Some of the outputs, if there are several; all temporaries, if there are several.
        """
        outputs = [t.number for t in self.outputs]
        most = len(outputs) - 1 if cut and len(outputs) <= MOST_EARLY else 0
        for count in range(most + 1):
            for chosen in combinations(outputs, count):
                yield frozenset(chosen)
                if len(cut) > 1:
                    yield frozenset((*chosen, *cut))

    def _search_stages(self, stages: Stages, sizes: Sizes) -> Iterator[Found]:
        seen: list[object] = []
        for together in TOGETHER:
            split_up = [together(stage) for stage, _ in stages]
            if split_up in seen:
                continue
            seen.append(split_up)
            grouped = [
                [[b for _, b in self._group(tuple(g), known, sizes)] for g in groups]
                for groups, (_, known) in zip(split_up, stages, strict=True)
            ]
            if any(not options for stage in grouped for options in stage):
                continue
            for pick in _variants(grouped):
                for apart in (False, True):
                    for divide in (False, True):
                        if (f := self._assemble(pick, sizes, apart, divide)) is not None:
                            yield f
                    if all(len(stage) == 1 for stage in pick):
                        break  # one branch a stage: nothing to part

    def _assemble(
        self, pick: Sequence[Sequence[Branch]], sizes: Sizes, apart: bool, divide: bool
    ) -> Found | None:
        """A µGraph of chosen branches: a stage's in one kernel, or a kernel each.

        `divide`: split reductions over programs where that pays; None where it pays nowhere.
        """
        kernels: list[Kernel] = []
        configs: list[Config] = []
        parts: list[Prediction] = []
        chosen = [b for stage in pick for b in ([(b,) for b in stage] if apart else [tuple(stage)])]
        launches = [part for b in chosen for part in (self._launches(b, sizes) if divide else (b,))]
        if divide and len(launches) == len(chosen):
            return None
        for branch_set in launches:
            options = self._ranked(branch_set, sizes)
            if not options:
                return None
            kernels.append(Kernel(f"k{len(kernels)}", branch_set))
            configs.append(options[0][0])
            parts.append(options[0][1])
        p = self.program
        graph = KernelGraph(p.name, p.inputs, tuple(kernels), p.outputs)
        return Found(graph, sizes, tuple(configs), tuple(parts))

    def _launches(
        self, branches: tuple[Branch, ...], sizes: Sizes
    ) -> tuple[tuple[Branch, ...], ...]:
        if len(branches) > 1 or not self._ranked(branches, sizes):
            return (branches,)
        pair = self._divided(branches[0], sizes)
        return (branches,) if pair is None else ((pair[0],), (pair[1],))

    def forget(self) -> None:
        """Start a task's tally; what earlier tasks computed stays known."""
        self.tally = Tally()

    # -- stages ---------------------------------------------------------------------------------

    def _plan(self, cut: tuple[int, ...], early: frozenset[int]) -> Stages | None:
        """The stages of a cut: what each stores, and the temporaries that it may load.

        None where a temporary would have no reader. `early`: what loads none.
        """
        g = self.graph
        rows = [a for t in self.outputs for a in t.shape.axes]
        todo = [temporary(g, c, operand_type(g, c), rows) for c in cut]
        given: dict[int, Expr] = {}
        targets = {}
        for t in todo:
            value = t.load
            self.accuracy.define(value, self._representative(t.number))
            given[t.number] = cast(value, g.classes[t.number].dtype)
            store = Store(t.tensor, t.axes, value.args[:-1], value)
            targets[t.number] = Target(store, t.number)
        level: dict[int, int] = {}
        ready = sorted(todo, key=lambda t: t.number)
        while ready:
            progress = []
            for t in ready:
                allowed = {k: v for k, v in given.items() if k in level and t.number not in early}
                used = self._used([t.number], allowed, exclude=t.number)
                if used is not None:
                    level[t.number] = 1 + max((level[u] for u in used), default=-1)
                    progress.append(t)
                    break
            if not progress:
                return None
            ready = [t for t in ready if t not in progress]
        stages: list[list[Target]] = []
        placed = [(level[t.number], targets[t.number]) for t in todo]
        used_at_all: set[int] = set()
        for out in self.outputs:
            used = self._used([out.number], {} if out.number in early else given, exclude=None)
            if used is None:
                return None
            used_at_all |= used
            placed.append((1 + max((level[u] for u in used), default=-1), out))
        for t in todo:
            others = {k: v for k, v in given.items() if k != t.number and t.number not in early}
            used_at_all |= self._used([t.number], others, exclude=t.number) or set()
        if used_at_all != set(given):
            return None  # a temporary that nobody loads
        for stage, target in placed:
            while len(stages) <= stage:
                stages.append([])
            stages[stage].append(target)
        known = [{k: v for k, v in given.items() if level[k] < n} for n in range(len(stages))]
        return list(zip(stages, known, strict=True))

    def _used(
        self, roots: list[int], given: Mapping[int, Expr], exclude: int | None
    ) -> set[int] | None:
        """The temporaries that the cheapest terms load; kept for other cuts, and not counted."""
        allowed = {k: v for k, v in given.items() if k != exclude}
        key = (tuple(roots), tuple((k, v) for k, v in allowed.items()))
        if key not in self._uses:
            self._uses[key] = self._loaded(roots, allowed)
        return self._uses[key]

    def _loaded(self, roots: list[int], allowed: Mapping[int, Expr]) -> set[int] | None:
        g = self.graph
        split = frozenset().union(*(g[r].free for r in roots))
        terms = self._peek(tuple(roots), split, allowed)
        if any(not t for t in terms):
            return None
        loaded = {n.attr for t in terms for n in toposort(t[0]) if n.op == "load"}
        return {
            k
            for k, v in allowed.items()
            for n in toposort(v)
            if n.op == "load" and n.attr in loaded
        }

    def _representative(self, c: int) -> Expr:
        """A term of a class, the program's own where it has one."""
        if c not in self._terms_of:
            own = next((e for e, k in self.graph.of.items() if self.graph.find(k) == c), None)
            free = self.graph[c].free
            self._terms_of[c] = own or self._peek((c,), free, {})[0][0]
        return self._terms_of[c]

    def _peek(
        self, roots: tuple[int, ...], split: frozenset[Axis], given: Mapping[int, Expr]
    ) -> list[list[Expr]]:
        """Terms at nominal sizes, for planning: their results are kept, so they are not counted."""
        tally, self.tally = self.tally, Tally()
        exhaustive, self.exhaustive = self.exhaustive, None
        terms = self._terms(roots, split, given, dict(self._nominal_sizes()))
        self.tally, self.exhaustive = tally, exhaustive
        return terms

    def _nominal_sizes(self) -> Sizes:
        return tuple((s.name, max(s.low, min(s.high, 4096))) for s in self.program.symbols)

    # -- terms ----------------------------------------------------------------------------------

    def _terms(
        self,
        roots: tuple[int, ...],
        split: frozenset[Axis],
        given: Mapping[int, Expr],
        sizes: dict[str, int],
    ) -> list[list[Expr]]:
        p = self.profile
        extent: dict[Axis, int] = {}

        def size(a: Axis) -> int:
            if a not in extent:
                extent[a] = ix.value(a.extent, sizes)
            return extent[a]

        memo: dict[frozenset[Axis], float] = {}

        def volume(free: frozenset[Axis]) -> float:
            known = memo.get(free)
            if known is None:
                inside = prod(size(a) for a in free)
                repeated = prod(-(-size(a) // NOMINAL_TILE) for a in split - free)
                known = memo[free] = float(inside * repeated)
            return known

        weights = Weights(1 / p.dram_bytes_per_s, 1 / p.scalar_per_s, 1 / p.dot_f16 / 0.6)
        coster = Coster(volume, weights)
        extractor = Extractor(self.graph, coster, given, self.accuracy)
        extractor.run(list(roots))
        self.tally.counts.add(extractor.counts)
        terms = [extractor.terms.get(self.graph.find(r), []) for r in roots]
        terms = [_kept([*t, *map(extractor.unified, t)], coster) for t in terms]
        if self.exhaustive is not None and not given:
            terms = [self._without_guide(t, coster) for t in terms]
        return terms

    def _without_guide(self, guided: list[Expr], coster: Coster) -> list[Expr]:
        """The cheapest terms of a value among all terms of as many operators as the guided ones."""
        assert self.exhaustive is not None
        bound = max(map(operators, guided))
        if bound > LARGEST:
            raise UsageError(
                f"{self.program.name}: --exhaustive takes programs of at most {LARGEST} operators; "
                f"this one has {bound}"
            )
        done = enumerate_all(self.graph, guided[0], coster, bound, self.exhaustive.deadline)
        self.exhaustive.runs.append(done)
        merged = dict.fromkeys([*guided, *done.terms])
        return _ordered(merged, coster)[:KEEP]

    # -- kernels --------------------------------------------------------------------------------

    def _group(
        self, group: tuple[Target, ...], given: Mapping[int, Expr], sizes: Sizes
    ) -> list[tuple[float, Branch]]:
        """Branches that compute a group of stores, fastest predicted first."""
        key = (tuple(t.number for t in group), tuple(t.shape for t in group), tuple(given), sizes)
        if key not in self._grouped:
            outer, self.tally = self.tally, Tally()
            found = []
            for branch in dict.fromkeys(self._branches(group, given, sizes)):
                self.tally.assigned += 1
                configs = self._ranked((branch,), sizes)
                if configs:
                    found.append((configs[0][1].time_us, branch))
            found.sort(key=lambda f: (round(f[0], 4), _text(f[1])))
            self._grouped[key] = found[:VARIANTS], self.tally
            self.tally = outer
        best, tally = self._grouped[key]
        self.tally.include(key, tally)
        return best

    def _branches(
        self, group: tuple[Target, ...], given: Mapping[int, Expr], sizes: Sizes
    ) -> Iterator[Branch]:
        stored = frozenset(a for t in group for a in t.shape.axes)
        numbers = tuple(t.number for t in group)
        below = {k: v for k, v in given.items() if k not in numbers}
        common = stored.intersection(*(t.shape.axes for t in group))
        for split in dict.fromkeys(s & common for s in self._splits(stored)):
            terms = self._terms(numbers, split, below, dict(sizes))
            if any(not t for t in terms):
                continue
            cut = bool(below)
            terms = [self._accurate(t, e, cut) for t, e in zip(group, terms, strict=True)]
            if any(not t for t in terms):
                continue
            for choice in _choices(terms):
                stores = tuple(
                    replace(t.shape, value=_stored(e, t.shape.tensor.dtype))
                    for t, e in zip(group, choice, strict=True)
                )
                for branch in branches(stores, split, dict(sizes)):
                    yield branch
                    yield from self._one_pass(branch)

    def _one_pass(self, branch: Branch) -> Iterator[Branch]:
        """The branch with fewer passes over its looped axes, where shifts are found for that."""
        stores = robust = branch.stores
        yield from self._without_statistics(branch)
        for name, role in branch.roles:
            if role != "loop":
                continue
            k = next(a for a in branch.axes if a.name == name)
            forms = [
                f for f in self.online.forms(stores, k) if self._as_accurate(f.stores, stores, k)
            ]
            if forms:
                robust = forms[-1].stores if forms[-1].splits else robust
                stores = forms[0].stores
                self.tally.laws.update({law.text: law.tried for law in forms[0].laws})
        if stores is not branch.stores:
            online = replace(branch, stores=stores)
            if illegal(online) is None:
                self._splittable[online] = replace(branch, stores=robust)
                yield online

    def _without_statistics(self, branch: Branch) -> Iterator[Branch]:
        """The branch with a constant for a statistic that cancels out of its values."""
        for name, role in branch.roles:
            k = next(a for a in branch.axes if a.name == name)
            for stores in self.online.without_statistic(branch.stores, k) if role == "loop" else ():
                if self._as_accurate(stores, branch.stores, k):
                    bare = Branch(stores, ())
                    names = {a.name for a in bare.axes}
                    roles = tuple((n, r) for n, r in branch.roles if n in names)
                    yield replace(bare, roles=roles)

    def _divided(self, branch: Branch, sizes: Sizes) -> tuple[Branch, Branch] | None:
        """The branch as a kernel a part and one that merges, if that is predicted to be faster."""
        key = (branch, sizes)
        if key not in self._pairs:
            outer, self.tally = self.tally, Tally()
            self._pairs[key] = self._best_split(branch, sizes), self.tally
            self.tally = outer
        pair, tally = self._pairs[key]
        self.tally.include(key, tally)
        return pair

    def _best_split(self, branch: Branch, sizes: Sizes) -> tuple[Branch, Branch] | None:
        (_, whole), *_ = self._ranked((branch,), sizes)
        best, least = None, whole.time_us * WORTH_SPLITTING
        source = self._splittable.get(branch, branch)
        looped = [a for a in source.axes if source.role(a) == "loop"]
        for k, parts in product(looped, _parts(whole.programs, int(self.profile.multiprocessors))):
            pair = divided(source, k, parts)
            if pair is None:
                continue
            self.tally.assigned += 1
            ranks = [self._ranked((b,), sizes) for b in pair]
            time = sum(r[0][1].time_us for r in ranks) if all(ranks) else float("inf")
            if time < least * (1.0 if best is None else WORTH_MORE_PARTS):
                best, least = pair, time
        return best

    def _as_accurate(self, found: tuple[Store, ...], stores: tuple[Store, ...], k: Axis) -> bool:
        """Whether a form loses no precision against the plain one; noted where it does."""
        if self.allow_unsafe:
            return True
        for new, old in zip(found, stores, strict=True):
            plain = without_online(old.value)
            errors = self.accuracy.loop_errors(new.value, k, plain)
            if not within(errors, self.accuracy.loop_errors(old.value, k, plain)).all():
                self.tally.refused[new.value] = worst(errors)
                return False
        return True

    def _accurate(self, target: Target, terms: list[Expr], cut: bool) -> list[Expr]:
        """An output's terms but those that lose precision where the program does not; note these.

        The program's own form stays among them: sums that the algebra has regrouped may round to
        the other side of a comparison.
        """
        if target.written is None or self.allow_unsafe:
            return terms
        verdicts = list(zip(terms, self.accuracy.as_good(terms, target.written), strict=True))
        lossy = [t for t, safe in verdicts if not safe]
        self.tally.refused.update(
            {t: worst(self.accuracy.errors(t, target.written)) for t in lossy}
        )
        kept = [t for t, safe in verdicts if safe]
        return kept if cut else [*kept, target.written]

    def _splits(self, stored: frozenset[Axis]) -> Iterator[frozenset[Axis]]:
        """Which stored axes are split over programs: all, or all but those as long as a bound
        axis."""
        bound = {
            a.extent
            for k in self.graph.classes.values()
            for n in k.nodes
            if n.op == "reduce"
            for a in n.attr.axes
        }
        may_hold = sorted((a for a in stored if a.extent in bound), key=lambda a: a.name)[:3]
        for n in range(len(may_hold) + 1):
            for held in combinations(may_hold, n):
                yield stored - frozenset(held)

    def _ranked(self, branch_set: tuple[Branch, ...], sizes: Sizes) -> Ranked:
        key = (branch_set, sizes)
        if key not in self._models:
            model = KernelModel(Kernel("k", branch_set), dict(sizes), self.profile)
            self._models[key] = ranked(model), size_of_space(model)
        options, size = self._models[key]
        self.tally.models[key] = size
        return options


def _same_axes(stage: Sequence[Target]) -> list[list[Target]]:
    groups: dict[frozenset[Axis], list[Target]] = {}
    for t in stage:
        groups.setdefault(frozenset(t.shape.axes), []).append(t)
    return list(groups.values())


def _within_axes(stage: Sequence[Target]) -> list[list[Target]]:
    """Stores with those that have all of their axes, and some more, which are then held whole."""
    groups: list[list[Target]] = []
    for t in sorted(stage, key=lambda t: -len(t.shape.axes)):
        home = next((g for g in groups if set(t.shape.axes) <= set(g[0].shape.axes)), None)
        if home is None:
            groups.append([t])
        else:
            home.append(t)
    return groups


def _each(stage: Sequence[Target]) -> list[list[Target]]:
    return [[t] for t in stage]


TOGETHER = (_same_axes, _within_axes, _each)  # which stores of a stage make one branch


def _parts(programs: int, multiprocessors: int) -> list[int]:
    """Into how many parts a reduction may be split so that its programs fill the machine."""
    wanted = multiprocessors / max(programs, 1)
    return [p for p in (2, 4, 8, 16, 32, 64) if wanted / 2 <= p <= 32 * wanted and wanted > 1]


def _stored(value: Expr, dtype: str) -> Expr:
    return cast(value, dtype) if is_float(dtype) or value.dtype != dtype else value


def _ordered(terms: Iterable[Expr], cost: Coster) -> list[Expr]:
    return sorted(dict.fromkeys(terms), key=lambda t: (cost(t), t.size, t.digest))


def _kept(terms: list[Expr], cost: Coster) -> list[Expr]:
    """The cheapest terms, and for each number of passes below these the cheapest."""
    ordered = _ordered(terms, cost)
    kept = ordered[:KEEP]
    fewer: dict[int, Expr] = {}
    for t in ordered:
        fewer.setdefault(cost.passes(t), t)
    least = min(map(cost.passes, kept), default=0)
    return [*kept, *(t for n, t in sorted(fewer.items()) if n < least)]


def _choices(terms: list[list[Expr]]) -> Iterator[tuple[Expr, ...]]:
    """The best term of each target; then one target's next best at a time."""
    base = tuple(t[0] for t in terms)
    yield base
    for position, options in enumerate(terms):
        for other in options[1:]:
            yield (*base[:position], other, *base[position + 1 :])


def _variants(grouped: Sequence[Sequence[Sequence[Branch]]]) -> Iterator[list[list[Branch]]]:
    """The best branch of every group; then one group's next best at a time."""
    base = [[options[0] for options in stage] for stage in grouped]
    yield base
    for i, stage in enumerate(grouped):
        for j, options in enumerate(stage):
            for other in options[1:VARIANTS]:
                changed = [list(s) for s in base]
                changed[i][j] = other
                yield changed


def _text(branch: Branch) -> str:
    return repr((branch.roles, [s.value.digest for s in branch.stores]))
