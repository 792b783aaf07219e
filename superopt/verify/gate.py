"""The numeric gate: the emitted kernel itself, run in Triton's interpreter on hostile inputs.

The kernel runs in a process of its own, which several gates share: it needs TRITON_INTERPRET=1
before triton is imported, and a kernel that crashes or hangs must not take the search with it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from superopt.errors import CheckFailed
from superopt.mugraph.program import Program, Traced
from superopt.mugraph.serialize import to_json
from superopt.process import helper
from superopt.verify.draws import sample_sizes

SECONDS = 3.0  # about what a gate may take on one core, start of the process aside
PATIENCE = 30.0  # times that, and the process is taken to hang
BUSY = 5.0  # times longer that may take on a machine that does other work too


@dataclass(frozen=True)
class GateResult:
    """`worst`: the largest error over what is allowed; the gate passes up to 1.

    `witness`, where it failed: the row of hostile inputs, the sizes, and either output, index,
    got, want and eager, or what the kernel `raised`. `eager`: how eager's own error was found,
    `run` or `emulated`. `left_out`: sets of inputs for which there was no time.
    """

    passed: bool
    worst: float = 0.0
    worst_at: str = ""
    witness: Mapping[str, Any] = field(default_factory=dict)
    eager: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    scope: str = ""

    def __str__(self) -> str:
        if self.passed:
            return (
                f"passed: worst {self.worst:.2f} of what is allowed ({self.worst_at}); {self.scope}"
            )
        w = self.witness
        at = ", ".join(f"{k}={v}" for k, v in w.get("sizes", {}).items())
        inputs = f"{w.get('inputs', '')}" + (f" at {at}" if at else "")
        if "raised" in w:
            return f"refused: {inputs}: {w['raised']}"
        what = f"{w['output']}{w['index']}: got {w['got']:.9g}, want {w['want']:.9g}"
        beyond = f"{self.worst:.3g} of what is allowed"
        return f"refused: {inputs}: {what}, eager {w['eager']:.9g} ({beyond})"

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities and NaN as text, which JSON can hold."""
        data: dict[str, Any] = _finite(asdict(self) | {"text": str(self)})
        return data


def _finite(value: Any) -> Any:
    match value:
        case float() if value - value != 0:
            return repr(value)
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
    return value


class WorkerDied(CheckFailed):
    """The process that runs kernels ended, or was ended because it hung."""


class Worker:
    """The process; started on first use, and again after a death. Use as a context manager."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.errors = TemporaryFile("w+")  # noqa: SIM115

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin loading torch and triton (2 to 3 seconds), in the background."""
        if self.process is not None and self.process.poll() is None:
            return
        self.process = helper("superopt.verify.worker", interpret=True, errors=self.errors)

    def call(self, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The result of one job. Raises TimeoutError after `timeout` seconds, WorkerDied."""
        self.start()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        if not _answered(process, timeout):
            self.close()
            raise TimeoutError(f"the kernel did not finish in {timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise self._death()
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise WorkerDied(f"the gate itself failed:\n{result['error']}")
        return result

    def _death(self) -> WorkerDied:
        code = self.process.wait() if self.process else None
        self.errors.seek(0)
        tail = "".join(self.errors.readlines()[-5:])
        self.close()
        return WorkerDied(f"the process running kernels ended with code {code}\n{tail}".rstrip())

    def close(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.communicate()
        self.process = None


def _answered(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it answers before it has run for so many seconds, however busy the machine is.

    One that waits is given up after `BUSY` times as long.
    """
    assert process.stdout is not None
    begun, end = _ran(process), time.monotonic() + BUSY * seconds
    while not select.select([process.stdout], [], [], 1.0)[0]:
        if _ran(process) - begun > seconds or time.monotonic() > end:
            return False
    return True


def _ran(process: subprocess.Popen[str]) -> float:
    """Seconds of a core that it has spent; proc(5), fields 14 and 15. 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gate_sizes(program: Program, limits: Sequence[Mapping[str, int]] = ()) -> list[dict[str, int]]:
    """Small sizes, and ones that reach each choice of a kernel.py (its `limits`, in order)."""
    sizes = list(sample_sizes(program.symbols))
    for row in range(len(limits)):
        if all(_row(limits, s) != row for s in sizes):
            sizes += _reaching(program, limits, row)
    return sizes


def _row(limits: Sequence[Mapping[str, int]], sizes: Mapping[str, int]) -> int:
    """The row of its table that a kernel.py takes: the first whose limits hold, else the last."""
    fits = (n for n, row in enumerate(limits) if all(sizes[k] <= v for k, v in row.items()))
    return next(fits, len(limits) - 1)


def _reaching(
    program: Program, limits: Sequence[Mapping[str, int]], row: int
) -> list[dict[str, int]]:
    """The smallest sizes that take a row: one symbol just beyond earlier rows, others small."""
    found = []
    for s in program.symbols:
        sizes = {o.name: min(max(o.low, 3), o.high) for o in program.symbols}
        beyond = 1 + max((earlier.get(s.name, s.high) for earlier in limits[:row]), default=0)
        sizes[s.name] = min(max(beyond, s.low), s.high)
        if _row(limits, sizes) == row:
            within = all(sizes[k] <= v for k, v in limits[row].items())
            found.append((not within, prod(sizes.values()), sizes))
    return [min(found, key=lambda f: f[:2])[2]] if found else []


def gate(
    original: Program | Traced,
    kernel: Path,
    *,
    worker: Worker,
    name: str | None = None,
    sizes: Sequence[Mapping[str, int]] | None = None,
    seed: int = 0,
    full: bool = False,
    seconds: float = SECONDS,
) -> GateResult:
    """Run function `name` (the program's by default) of a kernel.py on the table of hostile inputs.

    `full` runs every program of every launch and asks that each element be written; else some
    programs of the last launch run. A kernel that raises, hangs or crashes fails, with that as its
    witness.
    """
    program = original.program if isinstance(original, Traced) else original
    first = original.parameters if isinstance(original, Traced) else ()
    others = [t.name for t in program.inputs if t.name not in first]  # a module's parameters
    job = {
        "kernel": str(kernel),
        "name": name or program.name,
        "program": to_json(program),
        "sizes": list(sizes if sizes is not None else gate_sizes(program)),
        "arguments": [*first, *others],
        "reference": not isinstance(original, Traced)
        or bool(original.source.text and not original.captured),
        "seed": seed,
        "seconds": seconds,
        "full": full,
    }
    try:
        result = worker.call(job, timeout=PATIENCE * max(seconds, 2.0))
    except (TimeoutError, WorkerDied) as error:
        return GateResult(
            False, float("inf"), witness={"inputs": "", "sizes": {}, "raised": str(error)}
        )
    result["eager"], result["left_out"] = tuple(result["eager"]), tuple(result["left_out"])
    return GateResult(**result)
