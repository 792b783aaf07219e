"""An executor on a Ray cluster: one started here, or one that is there.

A worker is an actor with a CPU and a bound on its memory, both asked for from Ray; it asks for no
GPU, so that a cluster without one serves. A batch that wants a GPU has an actor of its own, which
asks for that alone: workers that fill the CPUs do not keep it waiting. The package travels in Ray's
runtime environment: nodes need the pinned packages only. Whatever kills a worker (a signal, its
node's end, its memory) loses its batch, no more; another takes its place where there is room, and
nodes that join are used.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from superopt.errors import RayUnavailable, UsageError
from superopt.process import ONE_THREAD
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

PACKAGE = Path(__file__).resolve().parents[1]
REACH_S = 5.0  # for a cluster's head to answer
START_S = 180.0  # for the first worker to start: its node unpacks the package
LOOK_S = 2.0  # between looks at which nodes there are


class _Worker:
    """The actor. Its class is imported where it runs."""

    def __init__(self, memory: int | None) -> None:
        prepare_worker(memory)
        self.state: dict[str, Any] = {}

    def pid(self) -> int:
        return os.getpid()

    def run(self, batch: Batch) -> tuple[str, Any]:
        return guarded(self.state, batch)


class RayExecutor(Executor):
    """Workers on Ray.

    `address`: `local` starts Ray on this machine; `auto` joins the cluster that this machine or
    RAY_ADDRESS belongs to; `HOST:PORT` joins that one. `workers`: how many, by default as many as
    all nodes have CPUs and memory for. `memory`: bytes that each may allocate, and asks Ray for.

    `start` raises RayUnavailable where Ray is not installed, not there or too small.
    """

    def __init__(
        self, address: str = "local", workers: int | None = None, memory: int = WORKER_MEMORY
    ) -> None:
        self.address = address
        self.count = workers
        self.memory = memory
        self.pids: dict[Any, int] = {}  # by actor, of those that are alive
        self._ray: Any = None
        self._ours = False  # whether the connection is
        self._starting: dict[Any, Any] = {}  # the call that says that it is up -> actor
        self._busy: dict[Any, tuple[Any, int]] = {}  # a batch's call -> actor, number
        self._idle: list[Any] = []
        self._gpus = 0  # of all nodes, when last looked
        self._looked = 0.0
        self._alone_since = 0.0  # without a worker

    def start(self) -> None:
        if self._ray is None:
            self._ray = self._connect()
            self._alone_since = time.monotonic()
        self._grow()

    def workers(self) -> int:
        return len(self.pids)

    def idle(self) -> int:
        return len(self._idle)

    def gpus(self) -> int:
        return self._gpus

    def require_gpu(self) -> None:
        if not self._gpus:
            raise UsageError(
                f"no node of the Ray cluster at {self.address!r} has a GPU, and several specs are "
                "timed in workers: leave --measure out, or add a node with a GPU"
            )

    def submit(self, batch: Batch) -> None:
        if batch.gpu:  # what CUDA maps and never uses would count as its memory
            actor = self._ray.remote(num_cpus=0, num_gpus=1)(_Worker).remote(None)
        else:
            actor = self._idle.pop()
        self._busy[actor.run.remote(batch)] = actor, batch.number

    def wait(self, seconds: float) -> list[Reply]:
        calls = [*self._starting, *self._busy]
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        for call in ready:
            if call in self._starting:
                self._started(call)
        replies = [self._ended(call) for call in ready if call in self._busy]
        if time.monotonic() - self._looked > LOOK_S or any(r.lost for r in replies):
            self._grow()
        if not self.workers() and time.monotonic() - self._alone_since > START_S:
            raise RayUnavailable(f"no worker has started on Ray in {START_S:.0f} s")
        return replies

    def stop(self, number: int) -> None:
        for actor, has in self._busy.values():
            if has == number:
                self._ray.kill(actor)

    def close(self) -> None:
        if self._ray is None:
            return
        for actor in (*self._starting.values(), *self._idle, *(a for a, _ in self._busy.values())):
            self._ray.kill(actor)
        for known in (self._starting, self._busy, self._idle, self.pids):
            known.clear()
        if self._ours:
            self._ray.shutdown()
        self._ray = None

    # -- the cluster ------------------------------------------------------------------------------

    def _connect(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise RayUnavailable("Ray is not installed: pip install 'superopt[ray]'") from error
        if ray.is_initialized():
            return ray  # the program that calls us has joined a cluster
        options: dict[str, Any] = {"address": self.address}
        if self.address == "local":
            options |= {"num_cpus": self.count, "include_dashboard": False}
        elif self.address != "auto":
            self._reach()
        environment = {"py_modules": [str(PACKAGE)], "env_vars": ONE_THREAD}
        try:
            ray.init(log_to_driver=False, runtime_env=environment, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise RayUnavailable(f"no Ray cluster at {self.address!r}: {first}") from error
        self._ours = True
        return ray

    def _reach(self) -> None:
        """Ray itself waits for minutes for a head that is not there."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), REACH_S).close()
        except (OSError, ValueError) as error:
            raise RayUnavailable(
                f"no Ray cluster at {self.address!r}: {error}; give local, auto or HOST:PORT"
            ) from error

    def _room(self, nodes: list[dict[str, float]]) -> int:
        """Workers that the nodes have CPUs and memory for."""
        return sum(int(min(n.get("CPU", 0), n.get("memory", 0) // self.memory)) for n in nodes)

    def _grow(self) -> None:
        """Ask for as many workers as there is room for; unasked ones of a lost node go."""
        self._looked = time.monotonic()
        nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        self._gpus = sum(int(n.get("GPU", 0)) for n in nodes)
        wanted = self._room(nodes) if self.count is None else self.count
        if wanted == 0 and not self.workers():
            self.close()
            raise RayUnavailable(
                f"no node of the Ray cluster at {self.address!r} has a CPU and "
                f"{self.memory >> 20} MiB of memory for a worker"
            )
        make = self._ray.remote(num_cpus=1, memory=self.memory)(_Worker)
        for _ in range(wanted - self.workers() - len(self._starting)):
            actor = make.remote(self.memory)
            self._starting[actor.pid.remote()] = actor
        while self._starting and self.workers() + len(self._starting) > wanted:
            _, actor = self._starting.popitem()
            self._ray.kill(actor)

    # -- calls that have ended --------------------------------------------------------------------

    def _started(self, call: Any) -> None:
        actor = self._starting.pop(call)
        with suppress(self._ray.exceptions.RayError):  # where it died, `_grow` asks for another
            self.pids[actor] = self._ray.get(call)
            self._idle.append(actor)

    def _ended(self, call: Any) -> Reply:
        actor, number = self._busy.pop(call)
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayError:
            return Reply(number, lost=self._bury(actor, "was killed, or its node"))
        if answer == OUT_OF_MEMORY:  # what it holds is of no more use
            return Reply(number, lost=self._bury(actor, f"ran out of its {self.memory >> 20} MiB"))
        if actor in self.pids:
            self._idle.append(actor)
        else:
            self._ray.kill(actor)  # it had a GPU for this batch
        return to_reply(number, answer)

    def _bury(self, actor: Any, why: str) -> str:
        self._ray.kill(actor)
        self.pids.pop(actor, None)
        if not self.workers():
            self._alone_since = time.monotonic()
        return why
