"""Compiling side by side before anything is timed: what processes of their own leave in the caches
of Triton and torch.compile is found there by the one that times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

WORKERS = 12
ALONE = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}


@cache
def _compilers() -> ProcessPoolExecutor:
    """Fresh processes: a CUDA context does not survive a fork."""
    workers = min(WORKERS, max(1, (os.cpu_count() or 2) - 2))
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin)


def _begin() -> None:
    os.environ.update(ALONE)


def beforehand(tasks: Iterable[Callable[[], str]]) -> list[Future[str]]:
    """Start tasks that compile; each returns what failed, or nothing. They must pickle."""
    return [_compilers().submit(task) for task in tasks]
