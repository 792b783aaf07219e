"""Compiling for the target, also where this process cannot: not under TRITON_INTERPRET=1.

There a helper process does it, which takes jobs and gives results as lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from superopt.emit.compile import CompileStats, Sizes, compile_all
from superopt.errors import SuperoptError
from superopt.process import helper


class Compiler:
    """`compile_all`, here or in a helper process. Use as a context manager."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __call__(
        self, source: str, sizes: Sizes, arch: str, loop: bool = False
    ) -> list[CompileStats]:
        """Every launch of a kernel.py's text, compiled for `arch`; see `compile_for`."""
        return self.all([(source, sizes)], arch, loop)[0]

    def all(
        self, calls: Sequence[tuple[str, Sizes]], arch: str, loop: bool = False
    ) -> list[list[CompileStats]]:
        """Every launch of each call, side by side; see `compile_all`."""
        if os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
            return compile_all(calls, arch, loop)
        plain = [(source, dict(sizes)) for source, sizes in calls]
        return self._elsewhere({"calls": plain, "arch": arch, "loop": loop})

    def _elsewhere(self, job: dict[str, object]) -> list[list[CompileStats]]:
        process = self.process = self.process or helper("superopt.compiler", interpret=False)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SuperoptError(f"the process that compiles ended with code {process.wait()}")
        return [[CompileStats.from_json(s) for s in own] for own in json.loads(line)]


def serve() -> None:
    """Answer jobs until the input ends. What compiling prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        stats = compile_all(job["calls"], job["arch"], job["loop"])
        answers.write(json.dumps([[asdict(s) for s in own] for own in stats]) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
