"""Which tasks run next, and what becomes of those whose worker is gone.

Tasks come from sources, one a program, which are opened in their order as workers need them: few
open ones keep what workers remember of programs small. Of the open ones, that which has had least
of the workers' time goes first. Small tasks travel together, so that sending them costs little; the
fewer are left, the smaller the batches, down to single tasks, so that workers end together. Sources
must not care which of their tasks end first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from superopt.search.executor import Batch, Executor, Reply
from superopt.search.tasks import Kind, Task

COARSE_S = 0.5  # a batch is expected to take no longer, with few workers
FEW = 100  # workers whose batches of this length one driver can send, with time left
MOST_KILLS = 3  # a task that has ended so many workers is set aside
WAIT_S = 0.25  # between looks at the clock
TASK_LIMIT_S = 1800.0
SMOOTHING = 0.2  # weight of the newest duration in the mean of its kind


class Source(Protocol):
    """A search as the scheduler sees it: tasks in order of promise, and what to do with results."""

    @property
    def waiting(self) -> int:
        """How many tasks could be taken now."""

    @property
    def gpu(self) -> bool:
        """Whether the next task wants a GPU; such tasks are taken one by one."""

    @property
    def over(self) -> bool:
        """Whether it wants no more: all done, or stopped."""

    def take(self) -> Task | None: ...

    def setup(self, task: Task) -> str:
        """What a worker must know beside the task's argument, the same for many tasks."""

    def argument(self, task: Task) -> Any: ...

    def finish(self, results: Sequence[tuple[Task, str]]) -> None:
        """Take in what tasks gave, as JSON."""

    def set_aside(self, task: Task, why: str) -> None: ...

    def fail(self, error: Exception) -> None:
        """A task raised `error`: end, or raise it."""

    def status(self) -> Progressed: ...


@dataclass(frozen=True)
class Progressed:
    """What a source has done: of `cuts`, `cuts_done`; `best` names the best found so far."""

    enumerated: int
    best: str
    cuts: int
    cuts_done: int


@dataclass(frozen=True)
class Status:
    """How a search goes, for people. `left_s`: an estimate, None before there is one."""

    seconds: float
    enumerated: int
    best: str
    queued: int
    running: int
    done: int
    workers: int
    left_s: float | None

    def __str__(self) -> str:
        text = (
            f"{self.seconds:.1f} s, {self.enumerated} candidates, best {self.best}; "
            f"tasks: {self.queued} queued, {self.running} running, {self.done} done; "
            f"{self.workers} workers"
        )
        return text if self.left_s is None else f"{text}; about {self.left_s:.0f} s left"


Progress = Callable[[Status], None]


@dataclass
class _Running:
    source: Source
    tasks: list[Task]
    since: float
    stopped: bool = False  # for taking too long


@dataclass
class Scheduler:
    """Runs sources' tasks on an executor. `durations`: each task's key, seconds, CPU seconds."""

    executor: Executor
    task_limit: float = TASK_LIMIT_S
    progress: Progress | None = None
    durations: list[tuple[str, float, float]] = field(default_factory=list)
    _spent: dict[int, float] = field(default_factory=dict)  # seconds of workers, by source
    _mean: dict[str, float] = field(default_factory=dict)  # seconds, by kind
    _usual: float = COARSE_S  # seconds of a task of any kind
    _again: list[tuple[Source, Task]] = field(default_factory=list)  # one batch each
    _kills: dict[tuple[int, Task], int] = field(default_factory=dict)
    _running: dict[int, _Running] = field(default_factory=dict)
    _batches: int = 0
    _open: list[Source] = field(default_factory=list)
    _closed: list[Source] = field(default_factory=list)  # not yet opened

    def run(self, sources: Sequence[Source]) -> None:
        """Until all sources are over. Their batches that still run are then stopped."""
        start = time.monotonic()
        self.executor.start()
        self._closed = list(sources)
        try:
            while self._fill():
                for reply in self.executor.wait(WAIT_S):
                    self._take_in(reply)
                self._stop_late()
                if self.progress is not None:
                    self.progress(self._status(sources, time.monotonic() - start))
        finally:
            for number in list(self._running):
                self.executor.stop(number)
            self._running.clear()

    # -- sending --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Give idle workers what there is; False where all sources are over."""
        self._open = [s for s in self._open if not s.over]
        self._fill_gpus()
        waiting = sum(s.waiting for s in self._open if not s.gpu)
        enough = max(1.0, self._coarse() / self._usual) * self.executor.idle()
        while self._closed and waiting < enough:
            self._open.append(self._closed.pop(0))
            waiting += self._open[-1].waiting
        share = max(1, waiting // max(1, self.executor.workers()))
        while self.executor.idle() and (chosen := self._next(share)) is not None:
            self._send(*chosen)
        return bool(self._open) or bool(self._closed)

    def _fill_gpus(self) -> None:
        """Give GPUs the tasks that want one, each alone."""
        running = sum(r.tasks[0].gpu for r in self._running.values())
        waits = any(s.gpu for s in self._open) or any(t.gpu for _, t in self._again)
        if running or waits:
            self.executor.require_gpu()
        while running < self.executor.gpus() and (chosen := self._next(1, gpu=True)) is not None:
            self._send(*chosen)
            running += 1

    def _send(self, source: Source, tasks: list[Task]) -> None:
        calls = tuple((t.kind.function, source.setup(t), source.argument(t)) for t in tasks)
        self._batches += 1
        self._running[self._batches] = _Running(source, tasks, time.monotonic())
        self.executor.submit(Batch(self._batches, calls, tasks[0].gpu))

    def _next(self, share: int, gpu: bool = False) -> tuple[Source, list[Task]] | None:
        for again in [a for a in self._again if a[1].gpu == gpu]:
            self._again.remove(again)
            source, task = again
            if not source.over:
                return source, [task]
        ready = [s for s in self._open if s.waiting and s.gpu == gpu]
        for source in sorted(ready, key=lambda s: self._spent.get(id(s), 0.0)):
            if not source.over and (tasks := self._batch(source, share)):
                return source, tasks
        return None

    def _batch(self, source: Source, share: int) -> list[Task]:
        tasks: list[Task] = []
        expected = 0.0
        coarse = self._coarse()
        gpu = source.gpu
        while len(tasks) < share and expected < coarse and source.gpu == gpu:
            if (task := source.take()) is None:
                break
            tasks.append(task)
            expected += self._expected(task.kind)
        return tasks

    def _coarse(self) -> float:
        """Seconds of a batch: in as many batches a second as it can send, the driver serves all."""
        return COARSE_S * max(1.0, self.executor.workers() / FEW)

    def _expected(self, kind: Kind) -> float:
        return self._mean.get(kind.name, kind.seconds)

    # -- receiving ------------------------------------------------------------------------------

    def _take_in(self, reply: Reply) -> None:
        running = self._running.pop(reply.number, None)
        if running is None:
            return  # of a search that is over
        source = running.source
        spent = sum(seconds for _, seconds, _ in reply.results)
        self._spent[id(source)] = self._spent.get(id(source), 0.0) + spent
        if source.over:
            return
        if reply.error is not None:
            source.fail(reply.error)
        elif reply.lost:
            late = f"did not end in {self.task_limit:g} s" if running.stopped else ""
            for task in running.tasks:
                self._lost(source, task, late or f"its worker {reply.lost}")
        else:
            pairs = list(zip(running.tasks, reply.results, strict=True))
            for task, (_, seconds, used) in pairs:
                mean = self._expected(task.kind)
                self._mean[task.kind.name] = mean + SMOOTHING * (seconds - mean)
                self._usual += SMOOTHING / 4 * (seconds - self._usual)
                self.durations.append((task.key, seconds, used))
            source.finish([(task, result) for task, (result, *_) in pairs])

    def _lost(self, source: Source, task: Task, why: str) -> None:
        kills = self._kills[id(source), task] = self._kills.get((id(source), task), 0) + 1
        if kills < MOST_KILLS:
            self._again.append((source, task))  # alone: the others of its batch may be innocent
        else:
            source.set_aside(task, f"{why}, {kills} times")

    def _stop_late(self) -> None:
        now = time.monotonic()
        for number, running in self._running.items():
            if not running.stopped and now - running.since > self.task_limit:
                running.stopped = True
                self.executor.stop(number)

    # -- saying ---------------------------------------------------------------------------------

    def _status(self, sources: Sequence[Source], seconds: float) -> Status:
        told = [s.status() for s in sources]
        cuts, cuts_done = sum(t.cuts for t in told), sum(t.cuts_done for t in told)
        best = told[0].best if len(told) == 1 else f"of {cuts_done} of {cuts} cuts"
        return Status(
            seconds,
            sum(t.enumerated for t in told),
            best,
            sum(s.waiting for s in sources) + len(self._again),
            sum(len(r.tasks) for r in self._running.values()),
            len(self.durations),
            self.executor.workers(),
            seconds / cuts_done * (cuts - cuts_done) if cuts_done else None,
        )
