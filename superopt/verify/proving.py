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

from superopt.mugraph.program import Program
from superopt.mugraph.serialize import to_json
from superopt.process import helper
from superopt.verify.verdict import Obligation, Verdict

SECONDS = 60.0


@dataclass(frozen=True)
class Claims:
    """Claims of one kind, what became of them, and the laws of `laws.LAWS` that they rest on.

    The verdict is `proved` where all were; `refused` where one is false, with a counterexample;
    else `unknown` or `timeout`.
    """

    verdict: Verdict
    obligations: tuple[Obligation, ...] = ()
    laws: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.to_json(),
            "laws": list(self.laws),
            "obligations": [asdict(o) for o in self.obligations],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Claims:
        obligations = tuple(Obligation(**o) for o in data["obligations"])
        return cls(Verdict.from_json(data["verdict"]), obligations, tuple(data["laws"]))

    def __str__(self) -> str:
        return ", ".join(filter(None, [str(self.verdict), self.verdict.scope, *self.verdict.notes]))


@dataclass(frozen=True)
class Proof:
    """What was claimed of a kernel's addresses and of its values, and the seconds that took."""

    addresses: Claims
    values: Claims
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the kernel is proved to compute its spec."""
        return self.addresses.verdict.passed and self.values.verdict.passed

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "assumes": list(ASSUMES),
            "addresses": self.addresses.to_json(),
            "values": self.values.to_json(),
        }


ASSUMES = (
    "the elements of integer inputs lie in the ranges that the spec declares",
    "calls go through the file's own guard, `_fits`, and its host code, `_launch`",
    "Triton's IR is what runs: what the compiler makes of it is not looked at",
    "an offset is the number whose digits, in the mixed radix of the extents, are its indices",
    "the quotients and remainders of a range by a divisor of its length are all pairs, once each",
    "of values: all are real numbers, infinities only where a mask puts them; no divisor is 0, no "
    "root's or logarithm's argument negative, no maximum or minimum is over nothing",
    "of values: constants that differ by less than 2^-21 of themselves are one, rounded",
    "of values: functions that Triton lacks are what the emitter's own text of them computes",
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

    def ask(
        self, kernel: Path, program: Program, ranges: Mapping[str, Sequence[int | str]]
    ) -> None:
        """Begin with a kernel.py. It is read before long, but may be gone when `result` is called.

        `program`: what it must compute. `ranges`: the least and first too large value of integer
        tensors, as their spec declares them: ints, or texts such as "B" and "2*B+1".
        """
        if self.asked is not None:
            self.stop()
        self.asked = time.monotonic()
        job = {
            "source": kernel.read_text(),
            "program": to_json(program),
            "ranges": {n: list(r) for n, r in ranges.items()},
        }
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
            return _failed(Verdict("timeout", f"not decided in {seconds:.0f} s"))
        line = self.process.stdout.readline()
        spent, self.asked = time.monotonic() - self.asked, None
        if not line:
            code = self.process.wait()
            self.stop()
            return _failed(Verdict("unknown", f"the proof's process ended with {code}"))
        answer = json.loads(line)
        addresses, values = (Claims.from_json(answer[k]) for k in ("addresses", "values"))
        return Proof(addresses, values, spent)


def _failed(verdict: Verdict) -> Proof:
    return Proof(Claims(verdict), Claims(verdict))
