"""A small search of 33 tasks, and what must not depend on who does them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import programs
import torch
from programs import traced

from superopt.cost_model.profile import load_profile
from superopt.search.driver import Options, Outcome, search_program
from superopt.search.executor import Executor
from superopt.search.scheduler import TASK_LIMIT_S, Progress

LAYERS = {"dtype": torch.float16, "x": (64, 512), "a": (512, 2048), "b": (2048, 512)}


def run(
    executor: Executor | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
    resume: bool = False,
    task_limit: float = TASK_LIMIT_S,
) -> Outcome:
    options = Options(
        load_profile("h200"),
        ((),),
        journal=journal,
        resume=resume,
        task_limit=task_limit,
    )
    return search_program(traced(programs.two_layers, **LAYERS), options, progress, executor)


def kept(outcome: Outcome) -> list[object]:
    """What is kept, in order: µGraphs, configurations, predictions."""
    return [(c.text, c.at) for c in outcome.candidates]


@cache
def expected() -> Outcome:
    return run()


def assert_same(outcome: Outcome, reason: str = "exhausted") -> None:
    assert outcome.stop_reason == reason
    assert kept(outcome) == kept(expected())
