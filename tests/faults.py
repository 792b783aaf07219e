"""Tasks that misbehave, for the tests of executors: those of one group of `two_layers`; and tasks
that say where they run."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from superopt import portfolio
from superopt.report import REPORT
from superopt.search import tasks

VICTIM = "explore part 0 of out#0 from @"  # how its description begins; it loads two temporaries


def _chosen(argument: dict[str, Any]) -> bool:
    stores, known = list(argument["stores"]), argument["known"]
    return stores == ["out#0"] and len(known) == 2 and argument["part"] == 0


def crash(state: Any, setup: str, argument: dict[str, Any]) -> Any:
    if _chosen(argument):
        os.kill(os.getpid(), signal.SIGKILL)
    return tasks.explore(state, setup, argument)


def hang(state: Any, setup: str, argument: dict[str, Any]) -> Any:
    while _chosen(argument):
        time.sleep(1.0)
    return tasks.explore(state, setup, argument)


def hoard(state: Any, setup: str, argument: dict[str, Any]) -> Any:
    if _chosen(argument):
        state["hoard"] = bytearray(64 << 30)  # more than any worker may have
    return tasks.explore(state, setup, argument)


def fail(state: Any, setup: str, argument: dict[str, Any]) -> Any:
    if _chosen(argument):
        raise ZeroDivisionError("of the test")
    return tasks.explore(state, setup, argument)


# -- where a task runs ----------------------------------------------------------------------------


def traced(state: Any, setup: str, argument: Any) -> Any:
    import ray

    assert ray.get_gpu_ids() == []
    return portfolio.traced(state, setup, argument)


def settled(state: Any, setup: str, argument: Any) -> Any:
    """A report that says which GPUs it had, and when."""
    import ray

    place = {"gpus": ray.get_gpu_ids(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    start = time.time()
    time.sleep(1.0)
    report = {"search": {"stop_reason": "exhausted"}, "span": [start, time.time()]} | place
    return {"files": {REPORT: json.dumps(report)}, "failed": ""}
