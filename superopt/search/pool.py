"""An executor of processes on this machine. A killed worker is replaced; others go on."""

from __future__ import annotations

import ctypes
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from superopt.search.executor import (
    OUT_OF_MEMORY,
    WORKER_MEMORY,
    Batch,
    Executor,
    Reply,
    guarded,
    prepare_worker,
    to_reply,
)

CONTEXT = get_context("spawn")
PR_SET_PDEATHSIG = 1  # of prctl(2)


def _serve(pipe: Connection, memory: int) -> None:
    """Answer batches until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent leaves nobody
    prepare_worker(memory)
    state: dict[str, Any] = {}
    try:
        while True:
            pipe.send(guarded(state, pipe.recv()))
    except (EOFError, OSError):
        return


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    batch: int | None = None  # the number of the one that it has


class ProcessPool(Executor):
    """`jobs` processes, each of which may allocate `memory` bytes."""

    def __init__(self, jobs: int, memory: int = WORKER_MEMORY) -> None:
        self.jobs = jobs
        self.memory = memory
        self._workers: list[_Worker] = []

    def start(self) -> None:
        while len(self._workers) < self.jobs:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs, self.memory), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))

    def workers(self) -> int:
        return len(self._workers)

    def idle(self) -> int:
        return sum(w.batch is None for w in self._workers)

    def submit(self, batch: Batch) -> None:
        worker = next(w for w in self._workers if w.batch is None)
        worker.batch = batch.number
        with suppress(OSError):  # it has died since: `wait` sees that its pipe is at an end
            worker.pipe.send(batch)

    def wait(self, seconds: float) -> list[Reply]:
        ready = wait([w.pipe for w in self._workers], seconds)
        replies = [self._reply(w) for w in list(self._workers) if w.pipe in ready]
        self.start()  # in place of those that were lost
        return [r for r in replies if r is not None]

    def _reply(self, worker: _Worker) -> Reply | None:
        number = worker.batch
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            lost = self._bury(worker)
            return None if number is None else Reply(number, lost=lost)
        assert number is not None
        if answer == OUT_OF_MEMORY:  # what it holds is of no more use
            self._bury(worker)
            return Reply(number, lost=f"ran out of its {self.memory >> 20} MiB")
        worker.batch = None
        return to_reply(number, answer)

    def _bury(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        code = worker.process.exitcode
        return f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"

    def stop(self, number: int) -> None:
        for worker in self._workers:
            if worker.batch == number:
                worker.process.kill()

    def close(self) -> None:
        for worker in list(self._workers):
            self._bury(worker)
