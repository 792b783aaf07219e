"""Where tasks run: one interface; in this process, in a pool of processes, on a Ray cluster.

An executor knows nothing of the search. It is given batches of calls and gives back their results,
or says that the worker which had a batch is gone. It neither repeats nor orders anything: that is
the scheduler's.
"""

from __future__ import annotations

import gc
import json
import resource
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import superopt.errors
from superopt.errors import SuperoptError, TaskFailed

WORKER_MEMORY = 3 << 30  # bytes that a worker may allocate
OUT_OF_MEMORY: tuple[str, Any] = ("out of memory", None)  # an answer


@dataclass(frozen=True)
class Batch:
    """Calls for one worker, in order. A call: `module:function`, its setup and its argument.

    `gpu`: they want one that nobody else uses.
    """

    number: int
    calls: tuple[tuple[str, str, Any], ...]
    gpu: bool = False


@dataclass(frozen=True)
class Reply:
    """A batch's results as JSON, each with its seconds and the CPU's, or why there are none.

    `lost`: what became of the worker. `error`: what a call raised.
    """

    number: int
    results: list[tuple[str, float, float]] = field(default_factory=list)
    lost: str = ""
    error: Exception | None = None


class Executor(ABC):
    """Runs batches. Use as a context manager."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Get workers, unless they are there. Raises a SuperoptError where there are none."""

    @abstractmethod
    def workers(self) -> int:
        """How many workers are alive."""

    @abstractmethod
    def idle(self) -> int:
        """How many batches would start now."""

    def gpus(self) -> int:
        """How many batches that want a GPU may run at once; by default one, on an idle worker."""
        return min(1, self.idle())

    def require_gpu(self) -> None:
        """Raises UsageError where batches that want a GPU would wait for one for ever."""
        return

    @abstractmethod
    def submit(self, batch: Batch) -> None:
        """Start a batch on an idle worker, or on a GPU."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Reply]:
        """The batches that have ended, after at most so many seconds."""

    @abstractmethod
    def stop(self, number: int) -> None:
        """Kill the worker that has this batch, if one has it still: the batch is then lost."""

    @abstractmethod
    def close(self) -> None:
        """End all workers at once, and whatever was started for them."""


def run_calls(state: dict[str, Any], batch: Batch) -> list[tuple[str, float, float]]:
    """Do a batch's calls. `state` is the worker's own.

    What the calls return becomes JSON here: the driver need not encode it for its journal.
    """
    results = []
    for function, setup, argument in batch.calls:
        module, _, name = function.partition(":")
        start, used = time.monotonic(), time.thread_time()
        result = json.dumps(getattr(import_module(module), name)(state, setup, argument))
        results.append((result, time.monotonic() - start, time.thread_time() - used))
    return results


class InProcess(Executor):
    """Runs batches here, one after another. A task that hangs or crashes takes us along."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self._batch: Batch | None = None

    def start(self) -> None:
        pass

    def workers(self) -> int:
        return 1

    def idle(self) -> int:
        return int(self._batch is None)

    def submit(self, batch: Batch) -> None:
        self._batch = batch

    def wait(self, seconds: float) -> list[Reply]:
        batch, self._batch = self._batch, None
        return [] if batch is None else [Reply(batch.number, run_calls(self.state, batch))]

    def stop(self, number: int) -> None:
        self._batch = None

    def close(self) -> None:
        self._batch = None
        self.state.clear()


# -- in worker processes --------------------------------------------------------------------------


def prepare_worker(memory: int | None) -> None:
    """A process that does nothing but tasks, and may allocate so many bytes, if that is bounded."""
    gc.set_threshold(100_000, 10, 10)  # a search makes many objects and few cycles
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def guarded(state: dict[str, Any], batch: Batch) -> tuple[str, Any]:
    """("done", results), OUT_OF_MEMORY, or ("raised", what): exceptions do not all pickle."""
    try:
        return "done", run_calls(state, batch)
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:
        own = type(error).__name__ if isinstance(error, SuperoptError) else ""
        return "raised", (own, str(error) if own else traceback.format_exc())


def to_reply(number: int, answer: tuple[str, Any]) -> Reply:
    kind, value = answer
    if kind == "done":
        return Reply(number, value)
    name, text = value
    error: Exception = TaskFailed(text)
    if name:  # ours: the message says all, whatever its class takes to be made
        error = Exception.__new__(getattr(superopt.errors, name))
        Exception.__init__(error, text)
    return Reply(number, error=error)
