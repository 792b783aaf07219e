"""Break every kernel in every way of the table, and see which check refuses it.

    make mutants                                    all of them; writes docs/mutants.md
    PYTHONPATH=tests python -m mutants.run NAME:7   one of them, with its diff

A mutant goes through the checks of `superopt verify` until one fails: proofs first, they take
least. One that passes all must be the same program, by other means (`equivalence`).
"""

from __future__ import annotations

import argparse
import atexit
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, count, zip_longest
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from mutants.equivalence import Classifier
from mutants.kernels import Unbroken, specs, unbroken
from mutants.operators import Mutant, mutants
from mutants.table import page
from superopt.verify import Proving, Worker
from superopt.verify.folder import CheckResult, load_kernel, proof_checks, run_checks

T = TypeVar("T")
CHUNK = 12  # mutants of one kernel, a task
PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"


@dataclass(frozen=True)
class Outcome:
    """Of one mutant: the `check` that refused it, or by what `means` it is the same program.

    With neither it is a false accept. `says`: the check's own words, or what was seen.
    """

    kernel: str
    operator: str
    number: int
    line: int
    check: str = ""
    means: str = ""
    says: str = ""
    diff: str = ""
    seconds: float = 0.0

    @property
    def accepted(self) -> bool:
        return not (self.check or self.means)

    def __str__(self) -> str:
        fate = self.check or (f"the same program: {self.means}" if self.means else "ACCEPTED")
        said = f" ({self.says})" if self.says else ""
        return f"{self.kernel}:{self.number}, line {self.line}, {self.operator}: {fate}{said}"


class Checker:
    """The checks of `superopt verify` with warm processes; use as a context manager."""

    def __enter__(self) -> Checker:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.worker = self.stack.enter_context(Worker())
        self.proving = self.stack.enter_context(Proving())
        self.classifier = self.stack.enter_context(Classifier())
        self.worker.start()
        self.proving.start()
        self.files: dict[str, Path] = {}
        self.modules: dict[Path, ModuleType] = {}
        self.numbers = count()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def results(self, kernel: Unbroken, text: str) -> Iterator[CheckResult]:
        """The results of the checks of a text, one at a time."""
        path, original = self.write(text), self.unbroken(kernel)
        self.proving.ask(path, kernel.traced.program, kernel.shape.ranges)
        runs = run_checks(kernel.traced, path, self.modules[original], self.worker)
        return chain(proof_checks(self.proving), runs)

    def unbroken(self, kernel: Unbroken) -> Path:
        if kernel.name not in self.files:
            path = self.files[kernel.name] = self.write(kernel.text)
            self.modules[path] = load_kernel(path)
        return self.files[kernel.name]

    def write(self, text: str) -> Path:
        path = self.folder / f"{next(self.numbers)}" / "kernel.py"
        path.parent.mkdir()
        path.write_text(text)
        return path

    def outcome(self, kernel: Unbroken, mutant: Mutant) -> Outcome:
        start = time.monotonic()
        found = Outcome(kernel.name, mutant.operator, mutant.number, mutant.line)
        failed = next((r for r in self.results(kernel, mutant.text) if not r.passed), None)
        if failed is not None:
            said = " ".join(failed.text.split())[:160]
            found = replace(found, check=_check(failed), says=said)
        else:
            path = self.write(mutant.text)
            seen = self.classifier.finding(kernel, self.unbroken(kernel), path, mutant)
            diff = mutant.diff(kernel.text)
            found = replace(found, **asdict(seen), diff=diff)
        return replace(found, seconds=round(time.monotonic() - start, 2))


def _check(failed: CheckResult) -> str:
    """The name of a check that failed; of kernels that do not compile, that."""
    if "Triton refuses it" in failed.text:
        return "compiling"
    if failed.check == "addresses" and not failed.text.startswith("refused"):
        return "addresses, undecided"
    return failed.check


# -- all of them ----------------------------------------------------------------------------------


@cache
def broken(name: str) -> list[Mutant]:
    return mutants(unbroken(name).text)


@cache
def checker() -> Checker:
    """This process's own, until it ends."""
    made = Checker().__enter__()
    atexit.register(made.__exit__)
    return made


def run_task(name: str, numbers: Sequence[int]) -> list[Outcome]:
    return [checker().outcome(unbroken(name), broken(name)[n]) for n in numbers]


def refused_unbroken(name: str) -> list[str]:
    """What fails of a kernel that is not broken: a false reject."""
    kernel = unbroken(name)
    failed = [r for r in checker().results(kernel, kernel.text) if not r.passed]
    return [f"{name}: {r.check}: {r.text}" for r in failed]


def tasks(name: str) -> Iterator[tuple[str, range]]:
    """A kernel's mutants in parts, each spread over the whole of it."""
    of = range(len(broken(name)))
    parts = -(-len(of) // CHUNK)
    return ((name, of[n::parts]) for n in range(parts))


def spread(rows: Iterable[Sequence[T]]) -> list[T]:
    """The first of each row, then the second of each: what is done at any time is a fair sample."""
    return [x for group in zip_longest(*rows) for x in group if x is not None]


def run_all(jobs: int, log: Path) -> None:
    """Run the suite, write each outcome as a line of JSON, and then the page."""
    with ProcessPoolExecutor(jobs) as pool, log.open("w") as lines:
        whole = [pool.submit(refused_unbroken, name) for name in specs()]
        todo = [pool.submit(run_task, *t) for t in spread([*tasks(n)] for n in specs())]
        rejected = [r for w in whole for r in w.result()]
        print(f"unbroken kernels: {len(rejected)} refused", *rejected, sep="\n")
        outcomes = []
        for done in as_completed(todo):
            for o in done.result():
                outcomes.append(o)
                lines.write(json.dumps(asdict(o)) + "\n")
                lines.flush()
                print(f"{len(outcomes)} {o}", flush=True)
    all_of = sum(len(broken(name)) for name in specs())
    PAGE.write_text(page(outcomes, rejected, len(specs()), all_of))
    accepted = [o for o in outcomes if o.accepted]
    print("\n".join([f"{o}\n{o.diff}" for o in accepted] + rejected))
    raise SystemExit(bool(accepted or rejected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutant", nargs="?", help="NAME:NUMBER: this one alone")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--log", type=Path, default=Path("results/mutants.jsonl"))
    options = parser.parse_args()
    if options.mutant is None:
        run_all(options.jobs, options.log)
    name, _, number = options.mutant.partition(":")
    mutant = broken(name)[int(number)]
    print(mutant.diff(unbroken(name).text))
    print(checker().outcome(unbroken(name), mutant))


if __name__ == "__main__":
    main()
