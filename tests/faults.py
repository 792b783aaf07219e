"""Tasks that misbehave, for the tests of executors: those of one group of `two_layers`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

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
