"""Timing candidates for real, within a budget, in a process that may be lost to one of them."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from superopt.process import helper

MOST = 8  # configurations of a size, best first by the model
PATIENCE = 60.0  # seconds for one: a compilation, the comparison and the rounds
ROUNDS = 0.25  # seconds of rounds of one, at most

Row = dict[str, Any]


class Measuring:
    """Times kernel.py texts until `budget` seconds are over. Use as a context manager.

    `rehearse`: on the CPU in Triton's interpreter, at toy sizes, with a stubbed clock.
    """

    def __init__(self, budget: float, rehearse: bool) -> None:
        self.budget, self.rehearse = budget, rehearse
        self.process: subprocess.Popen[str] | None = None
        self.seed = 0

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> int:
        """Stop the process, if there is one; returns its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        ended = process.poll()
        process.kill()
        process.communicate()
        return process.returncode if ended is None else ended

    def __call__(
        self, source: str, name: str, tensors: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> Row:
        """A row with `median_us`, `low_us`, `high_us`, `rounds` and the error over what is allowed,
        or with a `note` that says what became of it. Each call has inputs of its own.
        """
        start = time.monotonic()
        self.seed += 1
        with tempfile.TemporaryDirectory(prefix="superopt-") as folder:
            path = Path(folder) / "kernel.py"
            path.write_text(source)
            job: Row = {"path": str(path), "name": name, "tensors": tensors, "sizes": dict(sizes)}
            job |= {"seed": self.seed, "seconds": ROUNDS, "rehearse": self.rehearse}
            row = self._answer(job)
        if row.pop("lost", False):
            self.end()
        self.budget -= time.monotonic() - start
        return row

    def _answer(self, job: Row) -> Row:
        process = self.process = self.process or helper("superopt.measure", self.rehearse)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            self.end()
            return {"note": f"it did not end in {PATIENCE:.0f} s"}
        line = process.stdout.readline()
        if not line:
            process.wait()
            return {"note": f"the process that ran it ended with code {self.end()}"}
        row: Row = json.loads(line)
        return row
