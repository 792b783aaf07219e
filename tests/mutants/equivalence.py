"""Which mutants are the same program, by means that share nothing with the checks under test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants.kernels import Unbroken
from mutants.operators import Mutant
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.serialize import to_json


@dataclass(frozen=True)
class Reason:
    """Why an operator's edits of some statements may leave the program as it was.

    `found`: a regular expression, of the statement or of the edited line.
    """

    operators: tuple[str, ...]
    found: str
    why: str
    rounds: bool = False  # whether outputs may differ, by rounding


REASONS = (  # the first that fits
    Reason(("near relative of a function",), r"= tl\.cdiv\(", "tiles of one element"),
    Reason(("constant changed",), r"tl\.swizzle2d\(", "the programs run in another order"),
    Reason(
        ("bound shifted", "tile skipped or added", "near relative of a function"),
        r"^for \w+ in range\(|_end = ",
        "as many turns, or one more whose lanes are all masked",
    ),
    Reason(
        ("another operator", "constant changed"),
        r"_full_end = ",
        "a tile is tested that need not be",
    ),
    Reason(
        ("another operator", "number of programs", "constant changed"),
        r"^programs = ",
        "as many programs, or one more whose lanes are all masked",
    ),
    Reason(
        ("other value of masked lanes", "constant changed", "start of an accumulator"),
        r"tl\.load\(",
        "the lanes are masked again",
    ),
    Reason(
        ("near relative of a function",),
        r"\b(max|min)(imum|_along)\(|tl\.reduce\(",
        "a NaN reaches the result by another operand",
    ),
    Reason(
        ("constant changed", "condition dropped", "start of an accumulator"),
        r"tl\.where\((\w+) != \1,|== float\(\W-inf\W\), 1\.0,",
        "a shift of sums may be any number",
    ),
    Reason(
        ("start of an accumulator", "constant changed", "condition dropped"),
        r"^\w+ = tl\.(zeros|full)\(|\* tl\.where\(isnan, ",
        "it is multiplied by 0 before it counts",
    ),
    Reason(("operands swapped",), r"^difference\w* = ", "the square of a difference has no sign"),
    Reason(
        ("condition dropped", "start of an accumulator", "another axis"),
        r"tl\.where\(in_",
        "the lanes hold nothing that counts, masked or not",
    ),
    Reason(
        ("comparison with or without its bound", "bound shifted", "constant changed"),
        r"tl\.where\(.*[<>]",
        "both values are the same at the bound",
    ),
    Reason(("another axis",), r"\[:, None\]", "a tile of one element"),
    Reason(
        (
            "another operator",
            "constant changed",
            "sign dropped",
            "operands swapped",
            "condition dropped",
            "start of an accumulator",
            "rescale dropped or reversed",
            "accumulate dropped",
            "value not carried over",
        ),
        r"difference_sum [*+] |^difference_sum = ",
        "deviations from the running mean add up to 0, but for rounding",
        rounds=True,
    ),
    Reason(("constant changed",), r"^M=2, (N=16, )?H=", "the kernel does not use this extent"),
    Reason(
        ("condition dropped", "start of an accumulator", "constant changed"),
        r"^safe\w* = tl\.where\(",
        "each turn has an element: its maximum is -inf only where inputs are",
    ),
)


@dataclass(frozen=True)
class Finding:
    """Of a mutant that every check accepts: by what `means` it is the same program.

    Else empty.
    """

    means: str
    says: str


class Process:
    """A script of this folder that answers lines of JSON; started when first asked."""

    def __init__(self, script: str, interpret: bool) -> None:
        self.script, self.interpret = script, interpret
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(self.script))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=os.environ | {"TRITON_INTERPRET": str(int(self.interpret))},
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.script} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


class Classifier:
    """The processes; use as a context manager."""

    def __enter__(self) -> Classifier:
        self.launches = Process("launches.py", interpret=False)
        self.runs = Process("runs.py", interpret=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.launches.stop()
        self.runs.stop()

    def finding(self, kernel: Unbroken, unbroken: Path, path: Path, mutant: Mutant) -> Finding:
        calls = list(calls_of(kernel))
        first, second = (
            self.launches.ask({"path": str(p), "calls": calls}) for p in (unbroken, path)
        )
        if first == second and first["ir"]:
            return Finding("same IR", "")
        job = {
            "unbroken": str(unbroken),
            "mutant": str(path),
            "program": to_json(kernel.traced.program),
            "arguments": kernel.traced.parameters,
            "sizes": run_sizes(kernel),
        }
        found = self.runs.ask(job)
        if found["differs"]:
            return Finding(reason(mutant, rounds=True), f"differs: {found['differs']}")
        means, says = reason(mutant), f"same values in {found['runs']} runs"
        return Finding(means, says)


def reason(mutant: Mutant, rounds: bool = False) -> str:
    """Why equal values are no accident, or values that differ by rounding; empty where nothing
    on the list says so.
    """
    for r in (r for r in REASONS if r.rounds or not rounds):
        edited = mutant.text.splitlines()[mutant.line - 1].strip()
        if mutant.operator in r.operators and any(
            re.search(r.found, text) for text in (mutant.statement, edited)
        ):
            return r.why
    return ""


def run_sizes(kernel: Unbroken) -> list[dict[str, int]]:
    """Small sizes; at the first, loops with short tiles take several turns."""
    symbols = kernel.traced.program.symbols
    last = {s: 2 if s is not symbols[-1] else 41 if len(symbols) > 1 else 5 for s in symbols}
    first = {s: 17 if s is symbols[0] else 3 for s in symbols}
    one = dict.fromkeys(symbols, 1)
    return [{s.name: max(n, s.low) for s, n in sizes.items()} for sizes in (last, first, one)]


def calls_of(kernel: Unbroken) -> Iterator[list[tuple[list[int], str]]]:
    """Shapes and element types of the arguments of several calls, large ones among them."""
    program = kernel.traced.program
    inputs = {t.name: t for t in program.inputs}
    large = [{s.name: min(s.high, 1 + 977 * n) for s in program.symbols} for n in (1, 3, 50)]
    for sizes in [*run_sizes(kernel), *large]:
        yield [
            (
                [extent_value(e, dict(sizes)) for e in inputs[a].shape],
                DTYPES[inputs[a].dtype].torch,
            )
            for a in kernel.traced.parameters
        ]
