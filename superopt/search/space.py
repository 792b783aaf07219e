"""One cut, searched: the best kernels for its temporaries and outputs at every tuned size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, islice, product
from math import prod

from superopt.cost_model.configs import Ranked, ranked, size_of_space
from superopt.cost_model.model import KernelModel, Prediction
from superopt.cost_model.profile import Profile
from superopt.errors import UsageError
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import Axis, Expr, axis, cast, substitute, toposort, without_online
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
from superopt.search.found import Found, Group, Option, Plan, Sizes, fastest
from superopt.search.observe import Observer, renaming
from superopt.search.online import MOST_FORMS, LoopAccuracy, Online
from superopt.search.partition import operand_type, reducing, temporary
from superopt.search.roles import branches

NOMINAL_TILE = 64
PARTS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of a split reduction
WORTH_MORE_PARTS = 0.95  # of the time with fewer parts: each adds partial results to move
MOST_EARLY = 3  # outputs of a program of which subsets are tried
WORTH_SPLITTING = 0.5  # of the unsplit time: predictions must promise much for a second launch


@dataclass(frozen=True)
class Target:
    """What a kernel must store: a store without its value, and the value's class."""

    shape: Store
    number: int
    written: Expr  # a form of it to judge others by: the program's own where it has one


Stages = list[tuple[list[Target], list[int]]]


@dataclass
class Tally:
    """What a task looked at: the same where an earlier task had done the work."""

    counts: Counts = field(default_factory=Counts)
    assigned: int = 0  # role assignments looked at
    models: dict[object, int] = field(default_factory=dict)  # configurations predicted for each
    refused: dict[Expr, str] = field(default_factory=dict)  # inaccurate terms and their witnesses
    laws: dict[str, int] = field(default_factory=dict)  # shifts in use, terms tried for each
    runs: list[Exhausted] = field(default_factory=list)  # enumerations without the guide
    parts: dict[object, None] = field(default_factory=dict)  # tallies that this one includes

    @property
    def configured(self) -> int:
        return sum(self.models.values())

    def include(self, key: object, other: Tally) -> None:
        if key not in self.parts:
            self.parts[key] = None
            self.assigned += other.assigned
            self.models.update(other.models)


@dataclass
class Space:
    """A program's e-graph and outputs, and the machine for which it is searched."""

    program: Program
    graph: EGraph
    outputs: tuple[Target, ...]
    profile: Profile
    accuracy: LoopAccuracy
    exhaustive: bool = False  # enumerate without the guide,
    deadline: float | None = None  # until then, in monotonic seconds
    allow_unsafe: bool = False
    online: Online = field(default_factory=Online)
    tally: Tally = field(default_factory=lambda: Tally())  # of the task at hand
    _models: dict[object, tuple[Ranked, int]] = field(default_factory=dict)
    _pairs: dict[object, tuple[tuple[Branch, Branch] | None, Tally]] = field(default_factory=dict)
    _targets: dict[str, tuple[Target, Expr]] = field(default_factory=dict)
    _terms_of: dict[int, Expr] = field(default_factory=dict)
    _uses: dict[object, set[int] | None] = field(default_factory=dict)
    _observer: Observer = field(default_factory=Observer)
    _twins: dict[int, dict[int, dict[Axis, Axis]]] = field(default_factory=dict)

    def plans(self, cut: tuple[int, ...]) -> list[Plan]:
        """The ways to group a cut's stores into branches; none where a temporary has no reader."""
        found: dict[Plan, None] = {}
        for early in self._early(cut):
            stages = self._plan(cut, early)
            for together in TOGETHER if stages is not None else ():
                plan = tuple(
                    tuple(self._group(g, known) for g in together(stage))
                    for stage, known in stages or ()
                )
                found[plan] = None
        return list(found)

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

    def _group(self, stores: Sequence[Target], known: Sequence[int]) -> Group:
        """Stores, with those of the known temporaries that some form of them may load."""
        given = self._given(known)
        found, stack = set[int](), [self.graph.find(t.number) for t in stores]
        while stack:
            c = stack.pop()
            if c not in found:
                found.add(c)
                nodes = self.graph.classes[c].nodes if c not in given else ()
                stack.extend(self.graph.find(x) for n in nodes for x in n.children)
        loaded = tuple(c for c in known if not found.isdisjoint((c, *self.twins(c))))
        return Group(tuple(map(self._name, stores)), loaded)

    def assemble(
        self, plan: Plan, options: Mapping[Group, Sequence[Option]], sizes: Sizes
    ) -> Iterator[Found]:
        """Complete µGraphs of a plan, from the fastest branches of its groups."""
        grouped = [[options[g] for g in groups] for groups in plan]
        if any(not found for stage in grouped for found in stage):
            return
        for pick in _variants(grouped):
            for apart in (False, True):
                for divide in (False, True):
                    if (f := self._assembled(pick, sizes, apart, divide)) is not None:
                        yield f
                if all(len(stage) == 1 for stage in pick):
                    break  # one branch a stage: nothing to part
        for found in (o for stage in grouped for group in stage for o in group):
            self.tally.models.pop(((found.branch,), sizes), None)  # counted where it was found

    def _assembled(
        self, pick: Sequence[Sequence[Option]], sizes: Sizes, apart: bool, divide: bool
    ) -> Found | None:
        """A µGraph of chosen branches: a stage's in one kernel, or a kernel each.

        `divide`: split reductions over programs where that pays; None where it pays nowhere.
        """
        kernels: list[Kernel] = []
        configs: list[Config] = []
        parts: list[Prediction] = []
        chosen = [o for stage in pick for o in ([(o,) for o in stage] if apart else [tuple(stage)])]
        launches = [part for o in chosen for part in self._launches(o, sizes, divide)]
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
        self, options: tuple[Option, ...], sizes: Sizes, divide: bool
    ) -> tuple[tuple[Branch, ...], ...]:
        branches = tuple(o.branch for o in options)
        if not divide or len(branches) > 1 or not self._ranked(branches, sizes):
            return (branches,)
        pair = self._divided(options[0], sizes)
        return (branches,) if pair is None else ((pair[0],), (pair[1],))

    def forget(self) -> None:
        """Start a task's tally; what earlier tasks computed stays known."""
        self.tally = Tally()

    # -- stages ---------------------------------------------------------------------------------

    def _plan(self, cut: tuple[int, ...], early: frozenset[int]) -> Stages | None:
        """The stages of a cut: what each stores, and the temporaries that it may load.

        None where a temporary would have no reader. `early`: what loads none.
        """
        todo = [self._target(f"@{c}")[0] for c in cut]
        level: dict[int, int] = {}
        ready = sorted(todo, key=lambda t: t.number)
        while ready:
            progress = []
            for t in ready:
                allowed = [c for c in cut if c in level and t.number not in early]
                used = self._used(t.number, allowed)
                if used is not None:
                    level[t.number] = 1 + max((level[u] for u in used), default=-1)
                    progress.append(t)
                    break
            if not progress:
                return None
            ready = [t for t in ready if t not in progress]
        stages: list[list[Target]] = []
        placed = [(level[t.number], t) for t in todo]
        used_at_all: set[int] = set()
        for out in self.outputs:
            used = self._used(out.number, () if out.number in early else cut)
            if used is None:
                return None
            used_at_all |= used
            placed.append((1 + max((level[u] for u in used), default=-1), out))
        for t in todo:
            others = [c for c in cut if c != t.number and t.number not in early]
            used_at_all |= self._used(t.number, others) or set()
        if used_at_all != set(cut):
            return None  # a temporary that nobody loads
        for stage, target in placed:
            while len(stages) <= stage:
                stages.append([])
            stages[stage].append(target)
        known = [[c for c in cut if level[c] < n] for n in range(len(stages))]
        return list(zip(stages, known, strict=True))

    def _name(self, target: Target) -> str:
        """`@14` of a temporary, `out#1` of an output's store: several may have one tensor."""
        name = target.shape.tensor.name
        if target not in self.outputs:
            return name
        return f"{name}#{self.outputs.index(target)}"

    def _target(self, name: str) -> tuple[Target, Expr]:
        """A store by its name, with what loads it where it is a temporary."""
        if not self._targets:
            self._targets = {self._name(t): (t, t.shape.value) for t in self.outputs}
        if name not in self._targets:
            g, c = self.graph, int(name[1:])
            t = temporary(g, c, operand_type(g, c), [a for t in self.outputs for a in t.shape.axes])
            written = self._representative(c)
            self.accuracy.define(t.load, written)
            store = Store(t.tensor, t.axes, t.load.args[:-1], t.load)
            self._targets[name] = Target(store, c, written), cast(t.load, g.classes[c].dtype)
        return self._targets[name]

    def _given(self, known: Iterable[int]) -> dict[int, Expr]:
        """Loads of temporaries, by the class that each holds, or that it holds by other names."""
        given: dict[int, Expr] = {}
        for c in known:
            target, given[c] = self._target(f"@{c}")
            for twin, names in self.twins(c).items():
                load = substitute(target.shape.value, {a: axis(b) for a, b in names.items()})
                self.accuracy.define(load, self._representative(twin))
                given.setdefault(twin, cast(load, self.graph[twin].dtype))
        return given

    @cached_property
    def _reducing(self) -> set[int]:
        return reducing(self.graph)

    def twins(self, c: int) -> dict[int, dict[Axis, Axis]]:
        """The classes that are class `c` but for the names of axes, and what these are there."""
        if c not in self._twins:
            found = self._twins[c] = {}
            for other in sorted(self._reducing - {c}):
                if len(self.graph[other].free) == len(self.graph[c].free) > 1:
                    terms = self._representative(c), self._representative(other)
                    names = renaming(*terms, self._observer)
                    if names is not None:
                        found[other] = names
        return self._twins[c]

    def _used(self, root: int, known: Sequence[int]) -> set[int] | None:
        """The temporaries that the cheapest terms load; kept for other cuts, and not counted."""
        key = root, tuple(known)
        if key not in self._uses:
            self._uses[key] = self._loaded(root, known)
        return self._uses[key]

    def _loaded(self, root: int, known: Sequence[int]) -> set[int] | None:
        terms = self._peek((root,), self.graph[root].free, self._given(known))
        if terms is None:
            return None
        loaded = {n.attr.name for n in toposort(*terms) if n.op == "load"}
        return {c for c in known if self._target(f"@{c}")[0].shape.tensor.name in loaded}

    def _representative(self, c: int) -> Expr:
        """A term of a class, the program's own where it has one."""
        if c not in self._terms_of:
            own = next((e for e, k in self.graph.of.items() if self.graph.find(k) == c), None)
            if own is None:
                terms = self._peek((c,), self.graph[c].free, {})
                assert terms is not None, "every class has a term"
                own = terms[0]
            self._terms_of[c] = own
        return self._terms_of[c]

    def _peek(
        self, roots: Sequence[int], split: frozenset[Axis], given: Mapping[int, Expr]
    ) -> list[Expr] | None:
        """The cheapest terms at nominal sizes, for planning; not counted."""
        coster = self._coster(split, dict(self._nominal_sizes()))
        extractor = Extractor(self.graph, coster, given, None)
        extractor.run(list(roots))
        terms = [extractor.terms.get(self.graph.find(r), []) for r in roots]
        return [t[0] for t in terms] if all(terms) else None

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
        coster = self._coster(split, sizes)
        extractor = Extractor(self.graph, coster, given, self.accuracy)
        extractor.run(list(roots))
        self.tally.counts.add(extractor.counts)
        terms = [extractor.terms.get(self.graph.find(r), []) for r in roots]
        terms = [_kept([*t, *map(extractor.unified, t)], coster) for t in terms]
        if self.exhaustive and not given:
            terms = [self._without_guide(t, coster) for t in terms]
        return terms

    def _coster(self, split: frozenset[Axis], sizes: dict[str, int]) -> Coster:
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
        return Coster(volume, weights)

    def _without_guide(self, guided: list[Expr], coster: Coster) -> list[Expr]:
        """The cheapest terms of a value among all terms of as many operators as the guided ones."""
        bound = max(map(operators, guided))
        if bound > LARGEST:
            raise UsageError(
                f"{self.program.name}: --exhaustive takes programs of at most {LARGEST} operators; "
                f"this one has {bound}"
            )
        done = enumerate_all(self.graph, guided[0], coster, bound, self.deadline)
        self.tally.runs.append(done)
        merged = dict.fromkeys([*guided, *done.terms])
        return _ordered(merged, coster)[:KEEP]

    # -- kernels --------------------------------------------------------------------------------

    def splits(self, group: Group) -> list[frozenset[Axis]]:
        """Which axes of a group's stores are split over programs: the parts of its search."""
        axes = [frozenset(self._target(name)[0].shape.axes) for name in group.stores]
        common = frozenset.intersection(*axes)
        return list(dict.fromkeys(s & common for s in self._splits(frozenset().union(*axes))))

    def explore(self, group: Group, part: int, sizes: Sizes) -> list[Option]:
        """Branches for a group, split over programs in one way, fastest predicted first."""
        split = self.splits(group)[part]
        found = []
        branches_of: dict[Branch, Branch] = {}
        for branch, divisible in self._branches(group, split, sizes):
            branches_of.setdefault(branch, divisible)
        for branch, divisible in branches_of.items():
            self.tally.assigned += 1
            configs = self._ranked((branch,), sizes)
            if configs:
                found.append(Option(configs[0][1].time_us, branch, divisible))
        return fastest(found)

    def _branches(
        self, group: Group, split: frozenset[Axis], sizes: Sizes
    ) -> Iterator[tuple[Branch, Branch]]:
        """Branches, each with the form of it that may be divided."""
        targets = [self._target(name)[0] for name in group.stores]
        known = self._given(group.known)
        terms = self._terms(tuple(t.number for t in targets), split, known, dict(sizes))
        if any(not t for t in terms):
            return
        terms = [self._accurate(t, e, bool(known)) for t, e in zip(targets, terms, strict=True)]
        if any(not t for t in terms):
            return
        for choice in _choices(terms):
            stores = tuple(
                replace(t.shape, value=_stored(e, t.shape.tensor.dtype))
                for t, e in zip(targets, choice, strict=True)
            )
            for branch in branches(stores, split, dict(sizes)):
                yield branch, branch
                yield from self._one_pass(branch)

    def _one_pass(self, branch: Branch) -> Iterator[tuple[Branch, Branch]]:
        """The branch with fewer passes over its looped axes, where shifts are found for that."""
        stores = robust = branch.stores
        yield from ((bare, bare) for bare in self._without_statistics(branch))
        for name, role in branch.roles:
            if role != "loop":
                continue
            k = next(a for a in branch.axes if a.name == name)
            found = self.online.forms(stores, k)
            accurate = (f for f in found if self._as_accurate(f.stores, stores, k))
            if forms := list(islice(accurate, MOST_FORMS)):
                robust = forms[-1].stores if forms[-1].splits else robust
                stores = forms[0].stores
                self.tally.laws.update({law.text: law.tried for law in forms[0].laws})
        if stores is not branch.stores:
            online = replace(branch, stores=stores)
            if illegal(online) is None:
                yield online, replace(branch, stores=robust)

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

    def _divided(self, option: Option, sizes: Sizes) -> tuple[Branch, Branch] | None:
        """The branch as a kernel a part and one that merges, if that is predicted to be faster."""
        key = (option.branch, option.divisible, sizes)
        if key not in self._pairs:
            outer, self.tally = self.tally, Tally()
            self._pairs[key] = self._best_split(option, sizes), self.tally
            self.tally = outer
        pair, tally = self._pairs[key]
        self.tally.include(key, tally)
        return pair

    def _best_split(self, option: Option, sizes: Sizes) -> tuple[Branch, Branch] | None:
        (_, whole), *_ = self._ranked((option.branch,), sizes)
        best, least = None, whole.time_us * WORTH_SPLITTING
        source = option.divisible
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
        """A target's terms but those that lose precision where the program does not; note these.

        The program's own form stays among them: sums that the algebra has regrouped may round to
        the other side of a comparison.
        """
        if self.allow_unsafe:
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
    most = min(32 * wanted, max(64, 8 * wanted))
    return [p for p in PARTS if wanted / 2 <= p <= most and wanted > 1]


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


def _variants(grouped: Sequence[Sequence[Sequence[Option]]]) -> Iterator[list[list[Option]]]:
    """The best branch of every group; then one group's next best at a time."""
    base = [[options[0] for options in stage] for stage in grouped]
    yield base
    for i, stage in enumerate(grouped):
        for j, options in enumerate(stage):
            for other in options[1:]:
                changed = [list(s) for s in base]
                changed[i][j] = other
                yield changed
