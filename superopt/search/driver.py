"""The search from a traced program to ranked µGraphs: cuts, in tasks, over one executor interface.

A task is a cut. The uncut program is searched first, in this process; its best times bound the
others: a
cut whose launches and bytes alone take longer than the K-th best is not searched. What is kept
depends on neither the number of workers nor the order in which they finish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from superopt.cost_model.configs import ranked
from superopt.cost_model.model import KernelModel, Prediction, total
from superopt.cost_model.profile import Profile
from superopt.errors import CheckFailed
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.program import (
    Choice,
    Config,
    KernelGraph,
    Program,
    symbols_of,
    weights,
)
from superopt.mugraph.text import print_graph
from superopt.search.egraph import EGraph
from superopt.search.executor import Journal, Result, Task, run_tasks
from superopt.search.extract import Counts
from superopt.search.naming import rename_axes
from superopt.search.normalise import normalise
from superopt.search.observe import merge_equal
from superopt.search.online import LoopAccuracy
from superopt.search.partition import candidates, cuts, temporary
from superopt.search.rules import Saturation, saturate
from superopt.search.space import Exhaustive, Found, Sizes, Space, Target

WORTH_KEEPING = 1.1  # times the uncut program's time: what takes longer is not worth a place
ALIKE = 3  # candidates kept that compute the same values: a check that refuses one refuses all
SAME = 1.05  # two µGraphs whose predictions differ by less are not worth two kernels


@dataclass(frozen=True)
class Options:
    """How to search. `sizes`: what to tune for. Seconds for `time_limit`; `top`: candidates
    kept."""

    profile: Profile
    sizes: tuple[Sizes, ...]
    time_limit: float | None = None
    jobs: int = 1
    top: int = 8
    exhaustive: bool = False
    allow_unsafe: bool = False  # keep forms that lose precision where the program does not
    journal: Path | None = None  # where finished tasks are kept
    resume: bool = False  # take up the journal's results instead of starting anew


@dataclass
class Candidate:
    """A µGraph with its best configurations and prediction at each size at which it fits."""

    graph: KernelGraph
    at: dict[Sizes, tuple[tuple[Config, ...], Prediction]]

    @property
    def text(self) -> str:
        return print_graph(self.graph)


@dataclass
class Outcome:
    """What a search found and how it went."""

    candidates: list[Candidate]
    seconds: float
    stop_reason: str
    saturation: Saturation
    counts: Counts
    tasks: int = 0
    tasks_pruned: int = 0
    assigned: int = 0
    configured: int = 0
    bound: int | None = None  # operators, of an exhaustive enumeration
    refused: dict[str, str] = field(default_factory=dict)  # inaccurate forms and their witnesses
    laws: dict[str, int] = field(default_factory=dict)  # shifts found, and terms tried for each

    @property
    def enumerated(self) -> int:
        return self.counts.built + self.assigned + self.configured


Progress = Callable[[float, int, str], None]  # seconds, candidates so far, best so far


def build_space(program: Program, profile: Profile) -> tuple[Space, Saturation]:
    """Normalise, saturate, merge what is observationally equal."""
    normal = normalise(program)
    g = EGraph()
    numbers = [g.insert(s.value) for s in normal.stores]
    saturation = saturate(g)
    saturation.merged = merge_equal(g)
    outputs = tuple(
        Target(s, g.find(n), s.value) for s, n in zip(normal.stores, numbers, strict=True)
    )
    accuracy = LoopAccuracy(frozenset(t.name for t in weights(program)))
    return Space(normal, g, outputs, profile, accuracy), saturation


def _space_only(program: Program, profile: Profile) -> Space:
    return build_space(program, profile)[0]


def _unsafe_space(program: Program, profile: Profile) -> Space:
    space = _space_only(program, profile)
    space.allow_unsafe = True
    return space


def search_program(program: Program, options: Options, progress: Progress | None = None) -> Outcome:
    """Rank µGraphs for a program. Ctrl-C and the time limit keep what was found until then.

    Raises CheckFailed where nothing was found.
    """
    start = time.monotonic()
    space, saturation = build_space(program, options.profile)
    space.allow_unsafe = options.allow_unsafe
    outcome = Outcome([], 0.0, "exhausted", saturation, Counts())
    if options.exhaustive:
        limit = options.time_limit
        space.exhaustive = Exhaustive(None if limit is None else start + limit)
    found: list[Found] = []
    try:
        for result in _results(program, space, options, outcome):
            found.extend(result.found)
            outcome.counts.add(result.counts)
            outcome.assigned += result.assigned
            outcome.configured += result.configured
            outcome.refused.update(result.refused)
            outcome.laws.update(result.laws)
            seconds = time.monotonic() - start
            if progress is not None:
                best = min((f.prediction.time_us for f in found), default=float("inf"))
                progress(seconds, outcome.enumerated, f"{best:.2f} us")
            if options.time_limit is not None and seconds > options.time_limit:
                outcome.stop_reason = "time limit"
                break
    except KeyboardInterrupt:
        outcome.stop_reason = "interrupted"
    if not found:
        raise CheckFailed(
            f"{program.name}: nothing was found before the search was "
            f"{'stopped' if outcome.stop_reason != 'exhausted' else 'exhausted'}; "
            "give it more time, or a smaller program"
        )
    if space.exhaustive is not None:
        _note_exhaustive(space.exhaustive, outcome)
    outcome.candidates = _rank(found, options)
    outcome.seconds = time.monotonic() - start
    return outcome


def _results(
    program: Program, space: Space, options: Options, outcome: Outcome
) -> Iterator[Result]:
    """The uncut program's result, then those of the cuts that may beat it."""
    journal = None
    if options.journal is not None:
        journal = Journal.open(
            options.journal,
            (program, options.profile, options.sizes, options.allow_unsafe, options.exhaustive),
            options.resume,
        )
    uncut: list[Found] = []

    def run(tasks: list[Task], jobs: int) -> Iterator[Result]:
        build = _unsafe_space if options.allow_unsafe else _space_only
        return run_tasks(tasks, space, program, options.sizes, jobs, journal, build)

    for result in run([()], 1):
        uncut = result.found
        yield result
    tasks, outcome.tasks_pruned = _tasks(space, uncut, options)
    outcome.tasks = len(tasks) + 1
    yield from run(tasks, 1 if options.exhaustive else options.jobs)  # its record is kept here


def _note_exhaustive(done: Exhaustive, outcome: Outcome) -> None:
    outcome.counts.built += sum(r.enumerated for r in done.runs)
    outcome.bound = max((r.bound for r in done.runs), default=None)
    if not all(r.spent for r in done.runs):
        outcome.stop_reason = "time limit"


def _tasks(space: Space, found: list[Found], options: Options) -> tuple[list[tuple[int, ...]], int]:
    """The cuts that may still earn a place beside the uncut program, cheapest bound first."""
    largest = max(options.sizes, key=lambda s: prod(v for _, v in s))
    outputs = [t.number for t in space.outputs]
    most = ideal_bytes(space.program, dict(largest)) / 2
    classes = candidates(space.graph, outputs, dict(largest), most)
    todo, pruned = [], 0
    for cut in cuts(classes)[1:]:
        bounds = [_lower_bound(space, cut, s) for s in options.sizes]
        kept = []
        for s, bound in zip(options.sizes, bounds, strict=True):
            times = sorted(f.prediction.time_us for f in found if f.sizes == s)
            bar = times[: options.top][-1] if len(times) >= options.top else float("inf")
            kept.append(not times or bound < min(bar, times[0] * WORTH_KEEPING))
        if any(kept):
            todo.append((sum(bounds), cut))
        else:
            pruned += 1
    return [cut for _, cut in sorted(todo)], pruned


def _lower_bound(space: Space, cut: tuple[int, ...], sizes: Sizes) -> float:
    """Microseconds that a cut takes at least: two launches, and its bytes at full bandwidth."""
    p = space.profile
    moved = ideal_bytes(space.program, dict(sizes))
    for c in cut:
        tensor = temporary(space.graph, c, None, ()).tensor
        elements = prod(ix.value(e, dict(sizes)) for e in tensor.shape)
        moved += 2 * elements * 2  # written and read once, in half precision at least
    return (2 * (p.launch_s + p.dram_latency_s) + moved / p.dram_bytes_per_s) * 1e6


def ideal_bytes(program: Program, sizes: dict[str, int]) -> float:
    """Bytes of every input read once and every output written once."""
    return float(
        sum(
            prod(ix.value(e, sizes) for e in t.shape) * DTYPES[t.dtype].bytes
            for t in (*program.inputs, *program.outputs)
        )
    )


# -- ranking --------------------------------------------------------------------------------------


def _rank(found: list[Found], options: Options) -> list[Candidate]:
    """The K best graphs of each size, each predicted at every size; best over all sizes first."""
    chosen: dict[KernelGraph, None] = {}
    for sizes in options.sizes:
        here = [f for f in found if f.sizes == sizes]
        texts = {f.graph: print_graph(f.graph) for f in here}
        here.sort(key=lambda f: (round(f.prediction.time_us, 4), texts[f.graph]))
        chosen.update(dict.fromkeys(rename_axes(f.graph) for f in _varied(here, options.top)))
    result = []
    for graph in chosen:
        at = {}
        for sizes in options.sizes:
            if (best := predict_at(graph, sizes, options.profile)) is not None:
                at[sizes] = best
        result.append(Candidate(graph, at))
    best_at = {
        s: min((c.at[s][1].time_us for c in result if s in c.at), default=1.0)
        for s in options.sizes
    }

    def score(c: Candidate) -> tuple[float, str]:
        ratios = [c.at[s][1].time_us / best_at[s] if s in c.at else 100.0 for s in options.sizes]
        return round(sum(ratios), 4), c.text

    return sorted(result, key=score)


def _varied(ranked_found: list[Found], top: int) -> list[Found]:
    """The first `top`, at most ALIKE of which differ only in cuts, roles and grouping."""
    seen: dict[tuple[str, ...], int] = {}
    kept = []
    for f in ranked_found:
        values = tuple(sorted(s.value.digest for k in f.graph.kernels for s in k.stores))
        seen[values] = seen.get(values, 0) + 1
        if seen[values] <= ALIKE:
            kept.append(f)
    return kept[:top]


def predict_at(
    graph: KernelGraph, sizes: Sizes, profile: Profile
) -> tuple[tuple[Config, ...], Prediction] | None:
    """The model's best configurations at some sizes; None where a kernel has none that fits."""
    configs, parts = [], []
    for kernel in graph.kernels:
        options = ranked(KernelModel(kernel, dict(sizes), profile))
        if not options:
            return None
        configs.append(options[0][0])
        parts.append(options[0][1])
    return tuple(configs), total(parts)


def choices(kept: Sequence[Candidate], sizes: Sequence[Sizes]) -> list[tuple[Sizes, Candidate]]:
    """Which candidate serves each size: the best, or one that serves another and is as good."""
    winners: dict[Sizes, Candidate] = {}
    for s in sizes:
        able = [c for c in kept if s in c.at]
        if able:
            winners[s] = min(able, key=lambda c: c.at[s][1].time_us)
    result: list[tuple[Sizes, Candidate]] = []
    for s, best in winners.items():
        bar = best.at[s][1].time_us * SAME
        used = [c for _, c in result] + list(winners.values())
        able = [c for c in used if s in c.at and c.at[s][1].time_us <= bar]
        counted = max(able, key=lambda c: (sum(w is c for w in winners.values()), -kept.index(c)))
        result.append((s, counted))
    return result


def to_choice(
    sizes: Sizes, candidate: Candidate, configs: tuple[Config, ...] | None = None
) -> Choice:
    names = {s.name for s in symbols_of(candidate.graph.inputs)}
    limits = tuple(sorted((n, v) for n, v in sizes if n in names))
    return Choice(limits, candidate.graph, configs or candidate.at[sizes][0])
