"""The search on more cores than there are: our scheduler, recorded tasks, virtual time.

    python benchmarks/ray_scaling.py --record FOLDER
    python benchmarks/cluster_simulation.py FOLDER [--copies K] [--workers N ...] [--journal DIR]

A discrete-event simulation: what runs is the real scheduler over K real searches, as a model's K
programs would be. Only workers are simulated: a task takes the CPU seconds that were recorded for
it and gives its recorded result. The driver's own time is really spent here and counts, with its
journals and their syncs, plus CALL_S a batch for what Ray takes. A worker that meets a program for
the first time builds its space first. Times leave out the start of the cluster.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from superopt.search.executor import Batch, Executor, Reply
from superopt.search.frontier import Frontier
from superopt.search.journal import Journal
from superopt.search.scheduler import Scheduler
from superopt.search.tasks import MOST_SPACES

CALL_S = 0.001  # to submit a call to an actor and get its result, measured with a small one
BUILD_S = 0.15  # of a space, measured for large_search.py


class Simulated(Executor):
    """Workers in virtual time. `clock`: seconds; `driver`: of these, in which the driver worked."""

    def __init__(self, workers: int, results: dict[str, Any], seconds: dict[str, float]) -> None:
        self.count = workers
        self.results = results
        self.seconds = seconds
        self.clock = self.driver = self.building = 0.0
        self._idle = list(range(workers))
        self._spaces: list[dict[str, None]] = [{} for _ in range(workers)]
        self._events: list[tuple[float, int, int, Reply]] = []
        self._real = time.perf_counter()

    def start(self) -> None: ...

    def workers(self) -> int:
        return self.count

    def idle(self) -> int:
        return len(self._idle)

    def _pass(self, extra: float = 0.0) -> None:
        """What the driver has really taken since it was last looked at."""
        now = time.perf_counter()
        self.clock += now - self._real + extra
        self.driver += now - self._real + extra
        self._real = now

    def submit(self, batch: Batch) -> None:
        self._pass(CALL_S)
        worker = self._idle.pop()
        end = self.clock
        rows = []
        for _, setup, key in batch.calls:
            known = self._spaces[worker]
            if setup not in known:
                end += BUILD_S
                self.building += BUILD_S
            known.pop(setup, None)
            known[setup] = None
            if len(known) > MOST_SPACES:
                del known[next(iter(known))]
            end += self.seconds[key]
            rows.append((self.results[key], self.seconds[key], self.seconds[key]))
        heappush(self._events, (end, batch.number, worker, Reply(batch.number, rows)))
        self._real = time.perf_counter()

    def wait(self, seconds: float) -> list[Reply]:
        self._pass()
        replies = []
        if self._events:
            self.clock = max(self.clock, self._events[0][0])
        while self._events and self._events[0][0] <= self.clock:
            *_, worker, reply = heappop(self._events)
            self._idle.append(worker)
            replies.append(reply)
        self._real = time.perf_counter()
        return replies

    def stop(self, number: int) -> None: ...

    def close(self) -> None: ...


class Replayed(Frontier):
    """A recorded search: a task's argument is its key."""

    def argument(self, task: Any) -> Any:
        return task.key


def simulate(
    folder: Path, workers: int, copies: int, journals: Path
) -> tuple[Simulated, float, int]:
    results, seconds = recorded(folder)
    sizes = list(dict.fromkeys(_sizes(k) for k in results if json.loads(k)[0] == "assemble"))
    executor = Simulated(workers, results, seconds)
    sources = []
    for n in range(copies):
        journal = Journal.open(journals / f"{n}.jsonl", ("simulated", n), resume=False)
        sources.append(Replayed(str(n), sizes, 8, None, journal))
    scheduler = Scheduler(executor)
    scheduler.run(sources)
    return executor, sum(s for _, s, _ in scheduler.durations), len(scheduler.durations)


def _sizes(key: str) -> Any:
    return tuple((name, value) for name, value in json.loads(key)[1][-1])


def recorded(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    results = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        row = json.loads(line.partition(" ")[2])
        results[row["task"]] = row["result"]
    return results, {
        key: used for key, _, used in json.loads((folder / "durations.json").read_text())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 16, 128, 1000])
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--journal", type=Path, help="where journals go: a real disk")
    options = parser.parse_args()
    print("workers  seconds  efficiency  driver busy  building  batches' tasks")
    for workers in options.workers:
        with tempfile.TemporaryDirectory(dir=options.journal) as journals:
            run, work, tasks = simulate(options.folder, workers, options.copies, Path(journals))
        print(
            f"{workers:7} {run.clock:8.1f} {work / workers / run.clock:10.0%} "
            f"{run.driver / run.clock:11.0%} {run.building / workers / run.clock:9.0%} {tasks:9}",
            flush=True,
        )


if __name__ == "__main__":
    main()
