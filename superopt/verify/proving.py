"""Proofs of an emitted kernel, in a process of their own with a limit of time.

The process reads a kernel.py as it is: Triton must not be in its interpreter there, and a query
that never ends must not take the caller with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """A proof under way; use as a context manager.

    `ranges`: the least and first too large value of integer tensors, as their spec declares them:
    ints, or texts such as "B" and "2*B+1".
    """

    def __init__(self, kernel: Path, ranges: Mapping[str, Sequence[int | str]]) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "superopt.verify.prover"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the caller's to handle
            env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path},
        )
        assert self.process.stdin is not None
        json.dump({"kernel": str(kernel), "ranges": dict(ranges)}, self.process.stdin)
        self.process.stdin.close()
        self.process.stdin = None

    def __enter__(self) -> Proving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def result(self, seconds: float = SECONDS) -> Proof:
        """Wait until it is done, or has taken so many seconds since its start."""
        left = seconds - (time.monotonic() - self.started)
        try:
            out, _ = self.process.communicate(timeout=max(left, 0.1))
        except subprocess.TimeoutExpired:
            return Proof(Verdict("timeout", f"addresses: not decided in {seconds:.0f} s"))
        spent = time.monotonic() - self.started
        if not out:
            code = self.process.returncode
            return Proof(Verdict("unknown", f"addresses: the proof's process ended with {code}"))
        answer = json.loads(out)
        obligations = tuple(Obligation(**o) for o in answer["obligations"])
        return Proof(Verdict.from_json(answer["verdict"]), obligations, spent)
