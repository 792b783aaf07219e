"""Executors and the scheduler: whoever does the tasks, whatever befalls them, the same is found."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from typing import Any

import faults
import programs
import pytest
import searches
import torch
from programs import traced

import superopt
from superopt.cost_model.profile import load_profile
from superopt.errors import TaskFailed, UsageError
from superopt.search import frontier, scheduler
from superopt.search.driver import Options, Outcome, search_program
from superopt.search.executor import Batch, InProcess, Reply
from superopt.search.frontier import Frontier
from superopt.search.pool import ProcessPool
from superopt.search.scheduler import Scheduler, Status
from superopt.search.tasks import EXPLORE, Kind, Task


def misbehaving(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    searches.expected()  # what is compared with is found without it
    monkeypatch.setattr(frontier, "EXPLORE", Kind("explore", f"faults:{how}", 0.2))


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one task."""
    monkeypatch.setattr(scheduler, "COARSE_S", 0.0001)


def assert_set_aside(outcome: Any, why: str, kills: int = 3) -> None:
    searches.assert_same(outcome, "tasks set aside")  # the winner does not need the one that is
    ((task, reason),) = outcome.set_aside.items()
    assert task.startswith(faults.VICTIM)
    assert reason == f"{why}, {kills} times"


def test_a_pool_finds_the_same_and_looks_at_as_much() -> None:
    with ProcessPool(2) as pool:
        outcome = searches.run(pool)
    searches.assert_same(outcome)
    assert outcome.enumerated == searches.expected().enumerated
    assert outcome.refused == searches.expected().refused


def test_workers_killed_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one(monkeypatch)
    killed: list[int] = []
    seen = [0]

    def kill(now: Status) -> None:
        pids = sorted(p.pid for p in active_children() if p.pid not in killed)
        if len(killed) < 5 and now.done >= seen[0] + 4 and pids:
            killed.append(pids[0])
            seen[0] = now.done
            os.kill(pids[0], signal.SIGKILL)

    with ProcessPool(2) as pool:
        outcome = searches.run(pool, kill)
    assert len(killed) == 5
    searches.assert_same(outcome)


def test_a_task_that_always_crashes_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    misbehaving(monkeypatch, "crash")
    with ProcessPool(2) as pool:
        assert_set_aside(searches.run(pool), "its worker was killed by signal 9")


def test_a_task_that_never_returns_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two tries here, which are as many waits; three on Ray."""
    misbehaving(monkeypatch, "hang")
    monkeypatch.setattr(scheduler, "MOST_KILLS", 2)
    with ProcessPool(2) as pool:
        assert_set_aside(searches.run(pool, task_limit=10.0), "did not end in 10 s", kills=2)


def test_a_worker_out_of_memory_counts_as_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    misbehaving(monkeypatch, "hoard")
    with ProcessPool(2, memory=2 << 30) as pool:
        assert_set_aside(searches.run(pool), "its worker ran out of its 2048 MiB")


def test_what_a_task_raises_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a defect of ours: not to be passed over in silence."""
    misbehaving(monkeypatch, "fail")
    with ProcessPool(2) as pool, pytest.raises(TaskFailed, match="ZeroDivisionError: of the test"):
        searches.run(pool)


def test_progress_tells_of_tasks_and_workers() -> None:
    told: list[Status] = []
    with ProcessPool(2) as pool:
        searches.run(pool, told.append)
    last = told[-1]
    assert (last.queued, last.running, last.workers) == (0, 0, 2)
    assert last.done > 20
    assert f"tasks: 0 queued, 0 running, {last.done} done; 2 workers" in str(last)
    assert "s left" in str(last)
    assert told[0].left_s is None


def test_a_search_from_python_takes_an_executor() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    with InProcess() as executor:
        result = superopt.search(scaled, (torch.ones(4, 32),), executor=executor)
    assert result.report["search"]["stop_reason"] == "exhausted"
    assert superopt.RayExecutor("auto").address == "auto"


def test_closing_a_pool_leaves_no_process() -> None:
    before = set(active_children())
    with ProcessPool(2) as pool:
        pool.start()
        assert len(set(active_children()) - before) == 2
    assert set(active_children()) == before


# -- the scheduler, on tasks that do nothing ------------------------------------------------------


class Numbers:
    """A source of so many tasks."""

    gpu = False

    def __init__(self, count: int, name: str = "") -> None:
        self.left = list(range(count))
        self.done: list[int] = []
        self.count = count
        self.name = name

    @property
    def waiting(self) -> int:
        return len(self.left)

    @property
    def over(self) -> bool:
        return len(self.done) == self.count

    def take(self) -> Task | None:
        return Task(EXPLORE, (self.left.pop(0),), self.gpu) if self.left else None

    def setup(self, task: Task) -> str:
        return ""

    def argument(self, task: Task) -> Any:
        return task.detail[0]

    def finish(self, results: Any) -> None:
        self.done += [task.detail[0] for task, _ in results]

    def status(self) -> Any:
        return scheduler.Progressed(0, "", self.count, len(self.done))


class Recorder(InProcess):
    """Workers that take a hundredth of a second, on paper; remembers the batches."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.count = workers
        self.batches: list[list[Any]] = []
        self.running: list[Batch] = []

    def workers(self) -> int:
        return self.count

    def idle(self) -> int:
        return self.count - len(self.running)

    def submit(self, batch: Batch) -> None:
        self.batches.append([argument for _, _, argument in batch.calls])
        self.running.append(batch)

    def wait(self, seconds: float) -> list[Reply]:
        if not self.running:
            return []
        batch = self.running.pop(0)
        return [Reply(batch.number, [(None, 0.01, 0.01)] * len(batch.calls))]


def test_small_tasks_travel_together_and_the_last_alone() -> None:
    source, recorder = Numbers(200), Recorder(2)
    Scheduler(recorder).run([source])
    sizes = [len(b) for b in recorder.batches]
    assert sorted(source.done) == list(range(200))
    assert max(sizes) > 10  # once it is known that they are short
    assert sizes[-1] == 1
    assert len(sizes) < 60


class Chain(Numbers):
    """Tasks that come one after another."""

    @property
    def waiting(self) -> int:
        return int(len(self.left) > 0 and len(self.done) + len(self.left) == self.count)

    def take(self) -> Task | None:
        return super().take() if self.waiting else None


def test_sources_that_are_open_have_equal_shares() -> None:
    order: list[str] = []

    class Noted(Chain):
        def finish(self, results: Any) -> None:
            order.append(self.name)
            super().finish(results)

    names = ("one", "two", "three")
    Scheduler(Recorder(2)).run([Noted(20, name) for name in names])
    counts = [order[:30].count(name) for name in names]
    assert max(counts) - min(counts) <= 3, order


class OneGpu(Recorder):
    """`most`: how many batches wanted it at once. It is gone after so many batches."""

    most = 0
    gone_after = 1000

    def submit(self, batch: Batch) -> None:
        super().submit(batch)
        self.most = max(self.most, sum(b.gpu for b in self.running))

    def require_gpu(self) -> None:
        if len(self.batches) >= self.gone_after:
            raise UsageError("it is gone")


class OnGpu(Numbers):
    gpu = True


def test_tasks_that_want_a_gpu_run_one_at_a_time_beside_others() -> None:
    timed, plain, executor = OnGpu(5), Numbers(200), OneGpu(3)
    Scheduler(executor).run([timed, plain])
    assert sorted(timed.done) == list(range(5))
    assert sorted(plain.done) == list(range(200))
    assert executor.most == 1


def test_a_gpu_that_goes_is_not_waited_for() -> None:
    executor = OneGpu(1)
    executor.gone_after = 2
    with pytest.raises(UsageError, match="gone"):
        Scheduler(executor).run([OnGpu(5)])


# -- the frontier: what is dropped ----------------------------------------------------------------


def test_a_bound_that_comes_late_changes_counts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no bound at all, also none from the uncut program, the same is kept."""

    def search() -> Outcome:
        shapes = {"a": (2048, 64), "b": (64, 2048), "c": (2048, 64)}
        program = traced(programs.three_factors, dtype=torch.float16, **shapes)
        return search_program(program, Options(load_profile("h200"), ((),), top=1))

    one_by_one(monkeypatch)
    monkeypatch.setattr(Frontier, "_first_bar", lambda self, times: float("inf"))
    bounded = search()
    monkeypatch.setattr(Frontier, "_bar", lambda self, sizes: float("inf"))
    unbounded = search()
    assert bounded.tasks_pruned > unbounded.tasks_pruned
    assert bounded.enumerated < unbounded.enumerated
    assert searches.kept(bounded) == searches.kept(unbounded)


def test_groups_are_explored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    real = Frontier.take

    def take(self: Frontier) -> Task | None:
        task = real(self)
        if task is not None:
            taken.append(task.key)
        return task

    monkeypatch.setattr(Frontier, "take", take)
    searches.run()
    assert len(taken) == len(set(taken)) > 20
