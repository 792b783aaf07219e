"""The search of one program as tasks: which cuts are still worth it, and what each needs.

The uncut program is searched first. Its best times decide which cuts are looked at: those whose
launches and bytes alone take no longer than what is worth keeping. Where the best of these has as
many temporaries as any, the cuts that differ from it by one are next, and so on from the best of
all. Groups of stores that several cuts share are explored once. The best found so far, whoever
found it, drops what is still to do and cannot be among those kept: as that is judged by a bound
from below, it changes how much is enumerated, never what is kept.
"""

from __future__ import annotations

import json
import time
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Any

from superopt.search.found import (
    ALIKE,
    VARIANTS,
    WORTH_A_LAUNCH,
    Found,
    Json,
    Sizes,
    decode_found,
    decode_sizes,
)
from superopt.search.journal import Journal
from superopt.search.partition import MOST_TEMPORARIES, Candidate, cuts, neighbours
from superopt.search.rules import Saturation
from superopt.search.scheduler import Progressed
from superopt.search.tasks import ASSEMBLE, EXPLORE, PLAN, Seen, Task

WORTH_KEEPING = 1.1  # times the uncut program's time: what takes longer is not worth a place
FIRST = {ASSEMBLE.name: 0, EXPLORE.name: 1, PLAN.name: 2}  # what is ready: nearest its end first

Numbers = tuple[int, ...]
Named = tuple[tuple[str, ...], Numbers]  # a group, as plain data


@dataclass
class Cut:
    """Where the search of a cut stands. `missing`: groups to explore yet, at each open size."""

    classes: Numbers
    rank: int  # in the order of bounds; the uncut program's is 0
    bounds: dict[Sizes, float]
    plans: Any = None
    groups: list[Named] = field(default_factory=list)
    missing: dict[Sizes, set[Named]] = field(default_factory=dict)
    found: dict[Sizes, list[Json]] = field(default_factory=dict)


class Frontier:
    """A `Source` of the tasks of one program's search.

    `set_asides`: tasks that could not be done, and why.
    """

    gpu = False

    def __init__(
        self,
        setup: str,
        sizes: Sequence[Sizes],
        top: int,
        time_limit: float | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._setup = setup
        self.sizes = tuple(sizes)
        self.top = top
        self.journal = journal
        self.set_asides: dict[str, str] = {}
        self.enumerated = 0
        self.stop_reason = ""
        self._start = time.monotonic()
        self._limit = time_limit
        self._seen: dict[str, Seen] = {}
        self._cuts: dict[Numbers, Cut] = {(): Cut((), 0, dict.fromkeys(self.sizes, 0.0))}
        self._closed = deque[Cut]()  # cuts that nobody has planned yet, most promising first
        self._pruned: dict[Numbers, None] = {}  # cuts not looked at, or not at every size
        self._left = 1  # cuts that are not done with
        self._queue: list[tuple[int, int, int, Task]] = []
        self._pushed = 0
        self._options: dict[tuple[Named, Sizes], list[Any]] = {}  # of groups, so far
        self._parts: dict[Named, int] = {}
        self._unexplored: dict[tuple[Named, Sizes], set[int]] = {}  # parts not done yet
        self._users: dict[tuple[Named, Sizes], list[Cut]] = {}  # cuts that a group was missing to
        self._partial: set[tuple[Named, Sizes]] = set()  # groups of which a part was set aside
        self._dropped: dict[tuple[Named, Sizes], list[Task]] = {}  # parts not wanted so far
        self.saturation = Saturation("not run", 0, 0, 0, {})
        self._candidates: list[Candidate] = []  # of which cuts are made
        self._least: list[Any] = []  # by size: microseconds of any cut, and of each candidate
        self._first: dict[Sizes, list[float]] = {}  # the uncut program's shortest times
        self._times: dict[Sizes, list[tuple[float, tuple[str, ...]]]] = {s: [] for s in self.sizes}
        self._push(Task(PLAN, ((),)), 0)

    # -- what the scheduler asks ------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._closed)

    @property
    def over(self) -> bool:
        """Whether no cut is left, or the time is up; the uncut program is always searched."""
        if self._left == 0:
            return True
        late = self._limit is not None and time.monotonic() - self._start > self._limit
        if late and self.tried:
            self.stop_reason = "time limit"
        return bool(self.stop_reason)

    def take(self) -> Task | None:
        """The next task that is worth doing and not in the journal."""
        while self._queue or self._closed:
            if self._queue:
                *_, task = heappop(self._queue)
            else:
                task = Task(PLAN, (self._closed.popleft().classes,))
            if not self._wanted(task):
                continue
            if self.journal is not None and task.key in self.journal.done:
                self._settle(task, json.loads(self.journal.done[task.key]))
                continue
            return task
        return None

    def setup(self, task: Task) -> str:
        return self._setup

    def argument(self, task: Task) -> Json:
        limit = self._limit
        left = None if limit is None else max(0.0, limit - (time.monotonic() - self._start))
        if task.kind is PLAN:
            return {"cut": task.detail[0], "sizes": self.sizes}
        if task.kind is EXPLORE:
            stores, known, part, sizes = task.detail
            return {
                "stores": stores,
                "known": known,
                "part": part,
                "sizes": sizes,
                "seconds": left,
            }
        classes, sizes = task.detail
        cut = self._cuts[classes]
        options = [(g, self._options[g, sizes]) for g in cut.groups]
        plan: Json = {"plans": cut.plans, "options": options, "top": self.top}
        return plan | {"sizes": sizes, "seconds": left}

    def finish(self, results: Sequence[tuple[Task, str]]) -> None:
        read = [(task, text, json.loads(text)) for task, text in results]
        if self.journal is not None:
            self.journal.record((t.key, text) for t, text, result in read if self._lasts(t, result))
        for task, _, result in read:
            self._settle(task, result)

    def set_aside(self, task: Task, why: str) -> None:
        self.set_asides[describe(task)] = why
        if task.kind is EXPLORE:
            stores, known, part, sizes = task.detail
            self._partial.add(((stores, known), sizes))
            self._explored((stores, known), part, sizes, [])
            return
        cut = self._cuts[task.detail[0]]
        for sizes in self.sizes if task.kind is PLAN else (task.detail[1],):
            self._close(cut, sizes, [])

    def fail(self, error: Exception) -> None:
        raise error

    def status(self) -> Progressed:
        best = min((rows[0][0] for rows in self._times.values() if rows), default=inf)
        cuts = len(self._cuts)
        return Progressed(self.enumerated, f"{best:.2f} us", cuts, cuts - self._left)

    # -- what the search asks ---------------------------------------------------------------------

    @property
    def tried(self) -> bool:
        """Whether the uncut program's search is at an end."""
        return len(self._cuts[()].found) == len(self.sizes)

    @property
    def cuts(self) -> int:
        return len(self._cuts)

    @property
    def pruned(self) -> int:
        return len(self._pruned)

    def found(self) -> Iterator[Found]:
        """What may be kept, in an order that does not depend on the workers."""
        bars = {s: round(self._bar(s), 4) for s in self.sizes}
        for cut in sorted(self._cuts.values(), key=lambda c: c.rank):
            for sizes in self.sizes:
                for f in cut.found.get(sizes, ()):
                    if round(f["weighed"], 4) <= bars[sizes]:
                        yield decode_found(f)

    def seen(self) -> Seen:
        total = Seen()
        for key in sorted(self._seen):
            total.add(self._seen[key])
        return total

    # -- results ----------------------------------------------------------------------------------

    def _lasts(self, task: Task, result: Json) -> bool:
        """Whether a result may stand in the journal: not where something was cut short."""
        if task.kind is ASSEMBLE:
            classes, sizes = task.detail
            if any((g, sizes) in self._partial for g in self._cuts[classes].groups):
                return False
        return all(spent for *_, spent in result["seen"]["runs"])

    def _settle(self, task: Task, result: Json) -> None:
        seen = self._seen[task.key] = Seen.from_json(result["seen"])
        self.enumerated += seen.enumerated
        if task.kind is PLAN:
            self._planned(self._cuts[task.detail[0]], result)
        elif task.kind is EXPLORE:
            stores, known, part, sizes = task.detail
            self._explored((stores, known), part, sizes, result["options"])
        else:
            cut, sizes = self._cuts[task.detail[0]], task.detail[1]
            if not cut.classes:
                self._first[sizes] = result["times"]
            self._close(cut, sizes, result["found"])

    def _planned(self, cut: Cut, result: Json) -> None:
        cut.plans = result["plans"]
        if not cut.classes:
            self._candidates = [Candidate(**c) for c in result["candidates"]]
            self._least = result["least_us"]
            self.saturation = Saturation(**result["saturation"])
        for (stores, known), parts in result["parts"]:
            group = tuple(stores), tuple(known)
            cut.groups.append(group)
            self._parts[group] = parts
        for sizes in self.sizes:
            cut.missing[sizes] = set()
            for group in cut.groups:
                self._want(cut, group, sizes)
            if not cut.groups:
                self._close(cut, sizes, [])
            elif not cut.missing[sizes]:
                self._push(Task(ASSEMBLE, (cut.classes, sizes)), cut.rank)

    def _want(self, cut: Cut, group: Named, sizes: Sizes) -> None:
        """A group of a cut is to be explored, unless some other cut has had it explored."""
        todo = self._unexplored.get((group, sizes))
        if todo is None:
            todo = self._unexplored[group, sizes] = set(range(self._parts[group]))
            self._options[group, sizes] = []
            for part in sorted(todo):
                self._push(Task(EXPLORE, (*group, part, sizes)), cut.rank)
        for task in self._dropped.pop((group, sizes), ()):
            self._push(task, cut.rank)
        if todo:
            cut.missing[sizes].add(group)
            self._users.setdefault((group, sizes), []).append(cut)

    def _explored(self, group: Named, part: int, sizes: Sizes, options: list[Any]) -> None:
        key = group, sizes
        merged = [*self._options[key], *options]
        self._options[key] = sorted(merged, key=lambda o: (o[0], o[1]))[:VARIANTS]
        self._unexplored[key].discard(part)
        if self._unexplored[key]:
            return
        for cut in self._missing(group, sizes):
            cut.missing[sizes].discard(group)
            if not cut.missing[sizes]:
                self._push(Task(ASSEMBLE, (cut.classes, sizes)), cut.rank)

    def _missing(self, group: Named, sizes: Sizes) -> list[Cut]:
        """The cuts that wait for a group at a size."""
        users = self._users.get((group, sizes), ())
        return [c for c in users if group in c.missing.get(sizes, ())]

    def _close(self, cut: Cut, sizes: Sizes, found: list[Json]) -> None:
        """The search of a cut at a size is at an end."""
        cut.found[sizes] = found
        cut.missing.pop(sizes, None)
        for f in found:
            insort(self._times[sizes], (f["weighed"], tuple(f["values"])))
        if len(cut.found) < len(self.sizes):
            return
        self._left -= 1
        if not cut.classes:
            bars = {s: self._first_bar(self._first.get(s, [])) for s in self.sizes}
            self._open(cuts(self._candidates), bars)
        elif not self._left:
            bars = {s: self._bar(s) for s in self.sizes}
            self._open([n for s in self.sizes for n in self._beside_best(s)], bars)

    # -- bounds -----------------------------------------------------------------------------------

    def _open(self, fresh: Iterable[Numbers], bars: Mapping[Sizes, float]) -> None:
        """The cuts that may still earn a place beside those looked at, cheapest bound first."""
        todo = []
        for cut in dict.fromkeys(fresh):
            if cut in self._cuts or cut in self._pruned:
                continue
            bounds = self._bounds(cut)
            if any(bounds[s] < bars[s] for s in self.sizes):
                todo.append((sum(bounds.values()), cut, bounds))
            else:
                self._pruned[cut] = None
        first = len(self._cuts)
        for rank, (_, cut, bounds) in enumerate(sorted(todo, key=lambda row: row[:2]), first):
            self._cuts[cut] = Cut(cut, rank, bounds)
            self._closed.append(self._cuts[cut])
        self._left += len(todo)

    def _bounds(self, cut: Numbers) -> dict[Sizes, float]:
        """What a cut takes at least, by size, as `weighed` for its fewest launches."""
        at = [n for n, c in enumerate(self._candidates) if c.number in cut]
        worth = WORTH_A_LAUNCH ** (2 if cut else 1)
        least = (worth * (any_cut + sum(added[n] for n in at)) for any_cut, added in self._least)
        return dict(zip(self.sizes, least, strict=True))

    def _beside_best(self, sizes: Sizes) -> list[Numbers]:
        """Cuts beside the best at a size, where it has as many temporaries as the small sets."""
        times = [
            (min(round(f["weighed"], 4) for f in cut.found[sizes]), cut.rank, cut.classes)
            for cut in self._cuts.values()
            if cut.found[sizes]
        ]
        best = min(times, default=(0.0, 0, ()))[-1]
        return neighbours(best, self._candidates) if len(best) >= MOST_TEMPORARIES else []

    def _first_bar(self, times: list[float]) -> float:
        """What the uncut program's shortest times leave worth a look."""
        if not times:
            return inf
        kept = times[-1] if len(times) == self.top else inf
        return min(kept, times[0] * WORTH_KEEPING)

    def _bar(self, sizes: Sizes) -> float:
        """Of the last candidate that would be kept now, `weighed`: later ones are no better."""
        kept, alike = 0, dict[tuple[str, ...], int]()
        for weight, values in self._times[sizes]:
            alike[values] = alike.get(values, 0) + 1
            kept += alike[values] <= ALIKE
            if kept == self.top:
                return weight
        return inf

    def _hopeless(self, cut: Cut, sizes: Sizes) -> bool:
        return round(cut.bounds[sizes], 4) > round(self._bar(sizes), 4)

    def _wanted(self, task: Task) -> bool:
        """Whether a task may still lead to what is kept; cuts that may not are closed."""
        at = self.sizes if task.kind is PLAN else (task.detail[-1],)
        if task.kind is EXPLORE:
            stores, known, _, sizes = task.detail
            group = stores, known
            users = self._missing(group, sizes)
        else:
            users = [self._cuts[task.detail[0]]]
        if not all(self._hopeless(c, s) for c in users for s in at):
            return True
        if task.kind is EXPLORE:  # another cut may ask for it later
            self._dropped.setdefault((group, at[0]), []).append(task)
        for cut in users:
            self._pruned[cut.classes] = None
            for sizes in at:
                self._close(cut, sizes, [])
        return False

    def _push(self, task: Task, rank: int) -> None:
        self._pushed += 1
        heappush(self._queue, (FIRST[task.kind.name], rank, self._pushed, task))


def describe(task: Task) -> str:
    """`explore part 1 of out from @14, @19 at S=4096`."""
    *what, last = task.detail
    if task.kind is PLAN:
        return f"plan cut {list(last)}"
    sizes = ", ".join(f"{name}={value}" for name, value in decode_sizes(last))
    at = f" at {sizes}" if sizes else ""
    if task.kind is ASSEMBLE:
        return f"assemble cut {list(what[0])}{at}"
    stores, known, part = what
    loaded = f" from {', '.join(f'@{k}' for k in known)}" if known else ""
    return f"explore part {part} of {', '.join(stores)}{loaded}{at}"
