"""Configurations for the sizes between those that are tuned: a lattice, merged where one will do.

A kernel.py's table has a row for the sizes up to some limits. Beside the rows that were tuned, a
point of the lattice gets one where what the table holds for it is predicted more than WITHIN slower
than its own best. A size never compiles more than its row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from superopt.cost_model.model import predict
from superopt.cost_model.profile import Profile
from superopt.mugraph.expr import Symbol
from superopt.mugraph.program import Config, KernelGraph
from superopt.search.driver import Candidate, predict_at
from superopt.search.found import Sizes

WITHIN = 1.03  # times a size's best: nearer is the same bucket
STEP = 4  # between neighbours of the lattice


def lattice(
    symbols: Sequence[Symbol], tuned: Sequence[Sizes], lines: Sequence[Sizes] = ()
) -> list[Sizes]:
    """Sizes between the least of the range and the largest tuned, but for the tuned, in order.

    B in 1..4096, tuned for 16 and 4096, gives B=1, 4, 64, 256 and 1024; of several symbols, all
    pairs of their sizes, and of those of `lines`.
    """
    if not symbols:
        return []
    along = []
    for s in sorted(symbols, key=lambda s: s.name):
        most = max(dict(sizes)[s.name] for sizes in tuned)
        own = {most, *_powers(max(s.low, 1), most), *(dict(sizes)[s.name] for sizes in lines)}
        along.append([(s.name, size) for size in own])
    return sorted((p for p in product(*along) if p not in tuned), key=by_volume)


def _powers(low: int, most: int) -> list[int]:
    found = []
    while low < most:
        found.append(low)
        low *= STEP
    return found


def by_volume(sizes: Sizes) -> tuple[int, Sizes]:
    """The order of a table's rows."""
    return prod(size for _, size in sizes), sizes


def row_for(sizes: Sizes, rows: Iterable[Sizes]) -> Sizes:
    """The row that a call of these sizes takes: the first whose limits hold, else the last."""
    return _first(sizes, sorted(rows, key=by_volume))


def _first(sizes: Sizes, ordered: Sequence[Sizes]) -> Sizes:
    wanted = dict(sizes)
    for row in ordered:
        if all(wanted.get(name, 0) <= limit for name, limit in row):
            return row
    return ordered[-1]


def needed(
    points: Sequence[Sizes], tuned: Sequence[Sizes], time: Callable[[Sizes, Sizes], float]
) -> list[Sizes]:
    """The lattice's points that keep a row. `time(p, row)`: microseconds of p as `row` runs it.

    Rows go, the smallest first, where all that they serve stays within WITHIN of its best, until
    none can: with several limits, one may be in the way of another.
    """
    rows, before = sorted([*points, *tuned], key=by_volume), 0
    while len(rows) != before:
        before = len(rows)
        for candidate in [r for r in rows if r not in tuned]:
            rest = [r for r in rows if r != candidate]
            served = [p for p in points if _first(p, rows) == candidate]
            if all(time(p, _first(p, rest)) <= WITHIN * time(p, p) for p in served):
                rows = rest
    return [r for r in rows if r not in tuned]


@dataclass(frozen=True)
class Row:
    """What a kernel.py runs for sizes up to some limits."""

    sizes: Sizes
    candidate: Candidate
    configs: tuple[Config, ...]

    def time_us(self, sizes: Sizes, profile: Profile) -> float:
        return _time_us(self.candidate.graph, self.configs, sizes, profile)


@lru_cache(maxsize=1 << 16)  # most rows stay as they are from one settling to the next
def _time_us(
    graph: KernelGraph, configs: tuple[Config, ...], sizes: Sizes, profile: Profile
) -> float:
    return predict(graph, configs, dict(sizes), profile).time_us


def more_rows(
    tuned: Sequence[Row],
    symbols: Sequence[Symbol],
    profile: Profile,
    refused: Collection[tuple[int, Sizes]],
) -> list[tuple[Sizes, Candidate]]:
    """Rows beside the tuned, each with the fastest of their µGraphs there, configured in its `at`.

    `refused`: µGraphs, by id of the candidate, that no configuration was found for at some sizes.
    """
    known = [r.sizes for r in tuned]
    if any(s.name not in dict(sizes) for s in symbols for sizes in known):
        return []
    candidates = list({id(r.candidate): r.candidate for r in tuned}.values())
    rows = {r.sizes: r for r in tuned}
    lines = known if len(candidates) > 1 else []  # one µGraph may end where another is tuned
    for point in lattice(symbols, known, lines):
        for c in candidates:
            if point not in c.at and (found := predict_at(c.graph, point, profile)) is not None:
                c.at[point] = found
        able = [c for c in candidates if point in c.at and (id(c), point) not in refused]
        if able:
            best = min(able, key=lambda c: c.at[point][1].time_us)
            rows[point] = Row(point, best, best.at[point][0])

    points = [sizes for sizes in rows if sizes not in known]
    kept = needed(points, known, lambda point, row: rows[row].time_us(point, profile))
    return [(sizes, rows[sizes].candidate) for sizes in kept]
