"""The search on more cores than there are: our scheduler, recorded tasks, virtual time.

    python benchmarks/ray_scaling.py --record FOLDER
    python benchmarks/cluster_simulation.py FOLDER [--copies K] [--workers N ...] [--journal DIR]

A discrete-event simulation: what runs is the real scheduler over K real searches, as a model's K
programs would be. Only workers are simulated: a task takes the CPU seconds that were recorded for
it and gives its recorded result. The driver's own time is really spent here and counts, with its
journals and their syncs and with pickling what travels, plus CALL_S a batch for what Ray takes. A
worker that meets a program for the first time builds its space first. Times leave out the start of
the cluster.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
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
BUILD_S = 0.06  # of a space, measured for large_search.py; the first of a worker takes 0.2


class Simulated(Executor):
    """Workers in virtual time. `clock`: seconds; `driver`: of these, in which the driver worked."""

    def __init__(self, workers: int, results: dict[str, str], seconds: dict[str, float]) -> None:
        self.count = workers
        self.results = {key: pickle.dumps(result) for key, result in results.items()}
        self.seconds = seconds
        self.clock = self.driver = self.building = 0.0
        self._idle = list(range(workers))
        self._spaces: list[dict[str, None]] = [{} for _ in range(workers)]
        self._events: list[tuple[float, int, int, list[str]]] = []
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
        pickle.dumps(batch)
        self._pass(CALL_S)
        worker = self._idle.pop()
        end = self.clock
        for _, setup, (key, _) in batch.calls:
            known = self._spaces[worker]
            if setup not in known:
                end += BUILD_S
                self.building += BUILD_S
            known.pop(setup, None)
            known[setup] = None
            if len(known) > MOST_SPACES:
                del known[next(iter(known))]
            end += self.seconds[key]
        keys = [key for _, _, (key, _) in batch.calls]
        heappush(self._events, (end, batch.number, worker, keys))
        self._real = time.perf_counter()

    def wait(self, seconds: float) -> list[Reply]:
        self._pass()
        if self._events:
            self.clock = max(self.clock, self._events[0][0])
        self._real = time.perf_counter()
        replies = []
        while self._events and self._events[0][0] <= self.clock:
            _, number, worker, keys = heappop(self._events)
            self._idle.append(worker)
            rows = [(pickle.loads(self.results[k]), self.seconds[k], self.seconds[k]) for k in keys]
            replies.append(Reply(number, rows))
        return replies

    def stop(self, number: int) -> None: ...

    def close(self) -> None: ...


class Replayed(Frontier):
    """A recorded search: a task's argument comes with its key."""

    def argument(self, task: Any) -> Any:
        return task.key, super().argument(task)


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


def recorded(folder: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Results and CPU seconds by task."""
    rows = [line.split("\t") for line in (folder / "journal.jsonl").read_text().splitlines()]
    durations = json.loads((folder / "durations.json").read_text())
    return {task: result for _, task, result in rows}, {key: used for key, _, used in durations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 16, 128, 1000])
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--journal", type=Path, help="where journals go: a real disk")
    options = parser.parse_args()
    gc.set_threshold(100_000, 10, 10)  # as the command has it
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
