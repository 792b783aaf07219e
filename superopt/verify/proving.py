"""Proofs of an emitted kernel, in a process of their own with a limit of time.

Triton must not be in its interpreter there, and a query that never ends must not take the caller
with it.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from superopt.process import helper
from superopt.verify.verdict import Obligation, Verdict

SECONDS = 60.0


@dataclass(frozen=True)
class Proof:
    """What was claimed of a kernel's addresses, claim by claim, and the seconds it took.

    The verdict is `proved` where all were; `refused` where one is false, with a counterexample;
    else `unknown` or `timeout`.
    """

    verdict: Verdict
    obligations: tuple[Obligation, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.to_json(),
            "seconds": round(self.seconds, 3),
            "assumes": list(ASSUMES),
            "obligations": [asdict(o) for o in self.obligations],
        }


ASSUMES = (
    "the elements of integer inputs lie in the ranges that the spec declares",
    "calls go through the file's own guard, `_fits`, and its host code, `_launch`",
    "Triton's IR is what runs: what the compiler makes of it is not looked at",
    "an offset is the number whose digits, in the mixed radix of the extents, are its indices",
    "the quotients and remainders of a range by a divisor of its length are all pairs, once each",
)


class Proving:
    """The process; use as a context manager. One kernel at a time: what is asked last is answered.

    `start` it early, where there is something else to do: it loads Triton and Z3.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.asked: float | None = None  # when, of what has not been answered

    def __enter__(self) -> Proving:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> subprocess.Popen[str]:
        if self.process is None:
            self.process = helper("superopt.verify.prover", interpret=False)
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = self.asked = None

    def ask(self, kernel: Path, ranges: Mapping[str, Sequence[int | str]]) -> None:
        """Begin with a kernel.py. It is read before long, but may be gone when `result` is called.

        `ranges`: the least and first too large value of integer tensors, as their spec declares
        them: ints, or texts such as "B" and "2*B+1".
        """
        if self.asked is not None:
            self.stop()
        self.asked = time.monotonic()
        job = {"source": kernel.read_text(), "ranges": {n: list(r) for n, r in ranges.items()}}
        stream = self.start().stdin
        assert stream is not None
        with suppress(BrokenPipeError):  # it has ended: `result` says so
            stream.write(json.dumps(job) + "\n")

    def result(self, seconds: float = SECONDS) -> Proof:
        """Wait until it is done, or so many seconds have passed since it was asked."""
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.asked is not None
        left = self.asked + seconds - time.monotonic()
        if not select.select([self.process.stdout], [], [], max(left, 0.1))[0]:
            self.stop()
            return Proof(Verdict("timeout", f"addresses: not decided in {seconds:.0f} s"))
        line = self.process.stdout.readline()
        spent, self.asked = time.monotonic() - self.asked, None
        if not line:
            code = self.process.wait()
            self.stop()
            return Proof(Verdict("unknown", f"addresses: the proof's process ended with {code}"))
        answer = json.loads(line)
        obligations = tuple(Obligation(**o) for o in answer["obligations"])
        return Proof(Verdict.from_json(answer["verdict"]), obligations, spent)
