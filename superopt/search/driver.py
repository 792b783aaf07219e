"""The search from a traced program to ranked µGraphs.

What is kept depends on neither the executor, the number of its workers nor the order in which they
finish.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from superopt.cost_model.configs import ranked
from superopt.cost_model.model import KernelModel, Prediction, total
from superopt.cost_model.profile import Profile
from superopt.errors import CheckFailed
from superopt.mugraph.program import Choice, Config, KernelGraph, Program, symbols_of
from superopt.mugraph.serialize import from_json, to_json
from superopt.mugraph.text import print_graph
from superopt.search.executor import Executor, InProcess
from superopt.search.extract import Counts
from superopt.search.found import Found, Json, Sizes, decode_sizes, varied, weighed
from superopt.search.frontier import Frontier
from superopt.search.journal import Journal
from superopt.search.naming import rename_axes
from superopt.search.rules import Saturation
from superopt.search.scheduler import TASK_LIMIT_S, Progress, Scheduler
from superopt.search.tasks import setup_of

WORTH_OF_WORK = 0.15  # of flops times bytes in the ranking: twice as much must be a tenth faster
SAME = 1.05  # µGraphs whose predictions differ by less are as fast: not worth two kernels


@dataclass(frozen=True)
class Options:
    """How to search. `sizes`: what to tune for. Seconds for the limits; `top`: candidates kept."""

    profile: Profile
    sizes: tuple[Sizes, ...]
    time_limit: float | None = None
    top: int = 8
    exhaustive: bool = False
    allow_unsafe: bool = False  # keep forms that lose precision where the program does not
    journal: Path | None = None  # where finished tasks are kept
    resume: bool = False  # take up the journal's results instead of starting anew
    task_limit: float = TASK_LIMIT_S  # a task that takes longer is stopped
    algebra: bool = True  # rewrite what is computed; else only how


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
    set_aside: dict[str, str] = field(default_factory=dict)  # tasks not done, and why

    @property
    def enumerated(self) -> int:
        return self.counts.built + self.assigned + self.configured


def search_program(
    program: Program,
    options: Options,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Rank µGraphs for a program. Ctrl-C and the time limit keep what was found until then.

    `executor`: what runs the tasks, this process by default; it stays open.
    Raises CheckFailed where nothing was found.
    """
    start = time.monotonic()
    executor = executor or InProcess()
    frontier = open_frontier(program, options)
    try:
        Scheduler(executor, options.task_limit, progress).run([frontier])
    except KeyboardInterrupt:
        frontier.stop_reason = "interrupted"
    outcome = conclude(program, options, frontier)
    outcome.seconds = time.monotonic() - start
    return outcome


def open_frontier(program: Program, options: Options) -> Frontier:
    """The tasks of a search."""
    how = options.allow_unsafe, options.exhaustive, options.algebra
    setup = setup_of(program, options.profile, *how)
    journal = None
    if options.journal is not None:
        journal = Journal.open(
            options.journal,
            (program, options.profile, options.sizes, options.allow_unsafe, options.exhaustive),
            options.resume,
        )
    limit = options.time_limit
    return Frontier(setup, options.sizes, options.top, limit, journal)


def conclude(program: Program, options: Options, frontier: Frontier) -> Outcome:
    """What a search has found, ranked, at its end or where it was stopped."""
    found, seen = list(frontier.found()), frontier.seen()
    reason = frontier.stop_reason or ("time limit" if not seen.spent else "exhausted")
    if reason == "exhausted" and frontier.set_asides:
        reason = "tasks set aside"
    if not found:
        named = "; ".join(f"{task}: {why}" for task, why in frontier.set_asides.items())
        raise CheckFailed(
            f"{program.name}: nothing was found before the search was "
            f"{'stopped' if reason != 'exhausted' else 'exhausted'}; "
            f"give it more time, or a smaller program{named and f' (set aside: {named})'}"
        )
    seen.counts.built += sum(count for _, count, _ in seen.runs)
    return Outcome(
        _rank(found, options),
        0.0,
        reason,
        frontier.saturation,
        seen.counts,
        frontier.cuts,
        frontier.pruned,
        seen.assigned,
        seen.configured,
        max((bound for bound, _, _ in seen.runs), default=None),
        seen.refused,
        seen.laws,
        dict(sorted(frontier.set_asides.items())),
    )


# -- as plain data --------------------------------------------------------------------------------


def encode_outcome(outcome: Outcome) -> Json:
    plain = {f.name: getattr(outcome, f.name) for f in fields(outcome)}
    plain |= {"saturation": asdict(outcome.saturation), "counts": asdict(outcome.counts)}
    plain["candidates"] = [
        {
            "graph": to_json(c.graph),
            "at": [[s, [to_json(x) for x in xs], asdict(p)] for s, (xs, p) in c.at.items()],
        }
        for c in outcome.candidates
    ]
    return plain


def decode_outcome(data: Json) -> Outcome:
    candidates = [
        Candidate(
            from_json(row["graph"]),
            {
                decode_sizes(s): (tuple(map(from_json, xs)), Prediction(**p))
                for s, xs, p in row["at"]
            },
        )
        for row in data["candidates"]
    ]
    saturation, counts = Saturation(**data["saturation"]), Counts(**data["counts"])
    changed = {"candidates": candidates, "saturation": saturation, "counts": counts}
    return Outcome(**{**data, **changed})


# -- ranking --------------------------------------------------------------------------------------


def _rank(found: list[Found], options: Options) -> list[Candidate]:
    """The K best graphs of each size, each predicted at every size; best over all sizes first."""
    chosen: dict[KernelGraph, None] = {}
    for sizes in options.sizes:
        here = varied([f for f in found if f.sizes == sizes], options.top)
        chosen.update(dict.fromkeys(rename_axes(f.graph) for f in here))
    result = []
    for graph in chosen:
        at = {}
        for sizes in options.sizes:
            if (best := predict_at(graph, sizes, options.profile)) is not None:
                at[sizes] = best
        result.append(Candidate(graph, at))
    best_at = {
        s: min((merit(c.at[s][1]) for c in result if s in c.at), default=1.0) for s in options.sizes
    }

    def score(c: Candidate) -> float:
        ratios = [merit(c.at[s][1]) / best_at[s] if s in c.at else 100.0 for s in options.sizes]
        return round(sum(ratios), 4)

    return sorted(result, key=lambda c: (score(c), c.text))


def merit(p: Prediction) -> float:
    """What µGraphs are ranked by, least first: predictions err less where less is to be done."""
    return float(weighed(p) * (max(p.flops, 1.0) * max(p.bytes, 1.0)) ** WORTH_OF_WORK)


def as_good(p: Prediction, best: Prediction) -> bool:
    """Whether a µGraph is not worth replacing by the best of a size: in rank, or as fast."""
    return merit(p) <= merit(best) * SAME or weighed(p) <= weighed(best) * SAME


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
            winners[s] = min(able, key=lambda c: merit(c.at[s][1]))
    result: list[tuple[Sizes, Candidate]] = []
    for s, best in winners.items():
        used = [c for _, c in result] + list(winners.values())
        able = [c for c in used if s in c.at and as_good(c.at[s][1], best.at[s][1])]
        counted = max(able, key=lambda c: (sum(w is c for w in winners.values()), -kept.index(c)))
        result.append((s, counted))
    return result


def to_choice(
    sizes: Sizes, candidate: Candidate, configs: tuple[Config, ...] | None = None
) -> Choice:
    names = {s.name for s in symbols_of(candidate.graph.inputs)}
    limits = tuple(sorted((n, v) for n, v in sizes if n in names))
    return Choice(limits, candidate.graph, configs or candidate.at[sizes][0])
