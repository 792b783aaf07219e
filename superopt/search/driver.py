"""The search from a traced program to ranked µGraphs: cuts, in tasks, over one executor interface.

A task is a cut. The uncut program is searched first, in this process; its best times bound the others: a
cut whose launches and bytes alone take longer than the K-th best is not searched. What is kept
depends on neither the number of workers nor the order in which they finish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from typing import Any

from superopt.cost_model.configs import ranked
from superopt.cost_model.model import KernelModel, Prediction, total
from superopt.cost_model.profile import Profile
from superopt.errors import CheckFailed
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.program import Choice, Config, KernelGraph, Program, symbols_of
from superopt.mugraph.text import print_graph
from superopt.search.egraph import EGraph
from superopt.search.extract import Counts
from superopt.search.fingerprint import merge_equal
from superopt.search.naming import rename_axes
from superopt.search.normalise import normalise
from superopt.search.partition import candidates, cuts, temporary
from superopt.search.rules import Saturation, saturate
from superopt.search.space import Exhaustive, Found, Sizes, Space, Target

SAME = 1.05  # two µGraphs whose predictions differ by less are not worth two kernels


@dataclass(frozen=True)
class Options:
    """How to search. `sizes`: what to tune for. Seconds for `time_limit`; `top`: candidates kept."""

    profile: Profile
    sizes: tuple[Sizes, ...]
    time_limit: float | None = None
    jobs: int = 1
    top: int = 8
    exhaustive: bool = False


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
    merged = merge_equal(g)
    outputs = tuple(Target(s, g.find(n)) for s, n in zip(normal.stores, numbers, strict=True))
    space = Space(normal, g, outputs, profile)
    space.counts.duplicate += merged
    return space, saturation


def search_program(program: Program, options: Options, progress: Progress | None = None) -> Outcome:
    """Rank µGraphs for a program. Ctrl-C and the time limit keep what was found until then."""
    start = time.monotonic()
    space, saturation = build_space(program, options.profile)
    if options.exhaustive:
        limit = options.time_limit
        space.exhaustive = Exhaustive(None if limit is None else start + limit)
    found: list[Found] = []
    outcome = Outcome([], 0.0, "exhausted", saturation, space.counts)

    def report() -> None:
        if progress is not None:
            best = min((f.prediction.time_us for f in found), default=float("inf"))
            seen = space.counts.built + space.assigned + space.configured
            progress(time.monotonic() - start, seen, f"{best:.2f} us")

    def late() -> bool:
        return options.time_limit is not None and time.monotonic() - start > options.time_limit

    with suppress(KeyboardInterrupt):
        outcome.stop_reason = "interrupted"
        for sizes in options.sizes:
            for f in space.search_cut((), sizes):
                found.append(f)
                report()
        tasks, outcome.tasks_pruned = _tasks(space, found, options)
        outcome.tasks = len(tasks) + 1
        outcome.stop_reason = "exhausted"
        for results, counts in _execute(tasks, space, program, options, late, outcome):
            found.extend(results)
            if counts is not None:
                space.counts.add(counts[0])
                space.assigned += counts[1]
                space.configured += counts[2]
            report()
    if not found:
        raise CheckFailed(
            f"{program.name}: nothing was found before the search was "
            f"{'stopped' if outcome.stop_reason != 'exhausted' else 'exhausted'}; "
            "give it more time, or a smaller program"
        )
    if space.exhaustive is not None:
        _note_exhaustive(space.exhaustive, outcome)
    outcome.candidates = _rank(found, options)
    outcome.counts, outcome.assigned = space.counts, space.assigned
    outcome.configured = space.configured
    outcome.seconds = time.monotonic() - start
    return outcome


def _note_exhaustive(done: Exhaustive, outcome: Outcome) -> None:
    outcome.counts.built += sum(r.enumerated for r in done.runs)
    outcome.bound = max(r.bound for r in done.runs)
    if not all(r.spent for r in done.runs):
        outcome.stop_reason = "time limit"


def _tasks(space: Space, found: list[Found], options: Options) -> tuple[list[tuple[int, ...]], int]:
    """The cuts that may still beat the K-th best of the uncut program, cheapest bound first."""
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
            kept.append(len(times) < options.top or bound < times[options.top - 1])
        if any(kept):
            todo.append((sum(bounds), cut))
        else:
            pruned += 1
    return [cut for _, cut in sorted(todo)], pruned


def _lower_bound(space: Space, cut: tuple[int, ...], sizes: Sizes) -> float:
    """Microseconds that a cut takes at least: two launches, and its bytes at full bandwidth."""
    p = space.profile
    moved = ideal_bytes(space.program, dict(sizes))
    for n, c in enumerate(cut):
        tensor = temporary(space.graph, c, n, None, ()).tensor
        elements = prod(ix.value(e, dict(sizes)) for e in tensor.shape)
        moved += 2 * elements * 2  # written and read once, in half precision at least
    return (2 * p.launch_s + moved / p.dram_bytes_per_s) * 1e6


def ideal_bytes(program: Program, sizes: dict[str, int]) -> float:
    """Bytes of every input read once and every output written once."""
    return float(
        sum(
            prod(ix.value(e, sizes) for e in t.shape) * DTYPES[t.dtype].bytes
            for t in (*program.inputs, *program.outputs)
        )
    )


# -- executors ------------------------------------------------------------------------------------

TaskCounts = tuple[Counts, int, int]
_worker_space: Space | None = None


def _start_worker(program: Any, profile: Profile) -> None:
    global _worker_space
    from superopt.mugraph.serialize import from_json

    decoded = from_json(program)
    assert isinstance(decoded, Program)
    _worker_space, _ = build_space(decoded, profile)
    _worker_space.counts = Counts()


def _run_task(cut: tuple[int, ...], sizes: tuple[Sizes, ...]) -> tuple[list[Any], TaskCounts]:
    from superopt.mugraph.serialize import to_json

    assert _worker_space is not None
    space = _worker_space
    space.counts, space.assigned, space.configured = Counts(), 0, 0
    results = [
        (to_json(f.graph), f.sizes, f.configs, f.parts)
        for s in sizes
        for f in space.search_cut(cut, s)
    ]
    return results, (space.counts, space.assigned, space.configured)


def _execute(
    tasks: Sequence[tuple[int, ...]],
    space: Space,
    program: Program,
    options: Options,
    late: Callable[[], bool],
    outcome: Outcome,
) -> Iterator[tuple[list[Found], TaskCounts | None]]:
    """Results of the tasks in their order; stops early at the limit or at Ctrl-C, saying so."""
    try:
        if options.jobs == 1 or len(tasks) < 2:
            for cut in tasks:
                if late():
                    outcome.stop_reason = "time limit"
                    return
                yield [f for s in options.sizes for f in space.search_cut(cut, s)], None
            return
        yield from _pool(tasks, program, options, late, outcome)
    except KeyboardInterrupt:
        outcome.stop_reason = "interrupted"


def _pool(
    tasks: Sequence[tuple[int, ...]],
    program: Program,
    options: Options,
    late: Callable[[], bool],
    outcome: Outcome,
) -> Iterator[tuple[list[Found], TaskCounts | None]]:
    from superopt.mugraph.serialize import from_json, to_json

    arguments = (to_json(program), options.profile)
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, _start_worker, arguments) as pool:
        waiting: list[Future[tuple[list[Any], TaskCounts]]] = [
            pool.submit(_run_task, cut, options.sizes) for cut in tasks
        ]
        try:
            for future in waiting:
                if late():
                    outcome.stop_reason = "time limit"
                    return
                results, counts = future.result()
                found = []
                for data, sizes, configs, parts in results:
                    graph = from_json(data)
                    assert isinstance(graph, KernelGraph)
                    found.append(Found(graph, sizes, configs, parts))
                yield found, counts
        finally:
            for future in waiting:
                future.cancel()


# -- ranking --------------------------------------------------------------------------------------


def _rank(found: list[Found], options: Options) -> list[Candidate]:
    """The K best graphs of each size, each predicted at every size; best over all sizes first."""
    chosen: dict[KernelGraph, None] = {}
    for sizes in options.sizes:
        here = [f for f in found if f.sizes == sizes]
        texts = {f.graph: print_graph(f.graph) for f in here}
        here.sort(key=lambda f: (round(f.prediction.time_us, 4), texts[f.graph]))
        chosen.update(dict.fromkeys(rename_axes(f.graph) for f in here[: options.top]))
    result = []
    for graph in chosen:
        at = {}
        for sizes in options.sizes:
            if (best := _predict_at(graph, sizes, options.profile)) is not None:
                at[sizes] = best
        result.append(Candidate(graph, at))
    best_at = {
        s: min((c.at[s][1].time_us for c in result if s in c.at), default=1.0) for s in options.sizes
    }

    def score(c: Candidate) -> tuple[float, str]:
        ratios = [c.at[s][1].time_us / best_at[s] if s in c.at else 100.0 for s in options.sizes]
        return round(sum(ratios), 4), c.text

    return sorted(result, key=score)


def _predict_at(
    graph: KernelGraph, sizes: Sizes, profile: Profile
) -> tuple[tuple[Config, ...], Prediction] | None:
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


def to_choice(sizes: Sizes, candidate: Candidate, configs: tuple[Config, ...] | None = None) -> Choice:
    names = {s.name for s in symbols_of(candidate.graph.inputs)}
    limits = tuple(sorted((n, v) for n, v in sizes if n in names))
    return Choice(limits, candidate.graph, configs or candidate.at[sizes][0])
