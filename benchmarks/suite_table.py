"""The suite's predicted times, from configurations that were really compiled for each GPU.

    python benchmarks/suite_table.py [--target NAME ...] [--write FILE] [NAME ...]

Every entry is searched for each target (h200, h100 and a100 where none is named) and its
configurations are compiled, twice: with an empty cache and with what that left. µGraphs are
checked; gate and proof, which may still refuse a kernel, are `superopt search`'s. `--write` puts the table between the marks of FILE. Exits 1 where choosing takes more than COLD_SECONDS, or
WARM_SECONDS with the cache, or where something spills.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import suite

from superopt.compiler import Compiler
from superopt.pipeline import Draft, Run, Settings, at_sizes, configure, searched
from superopt.search.driver import Candidate
from superopt.spec import Spec

TARGETS = ("h200", "h100", "a100")
COLD_SECONDS, WARM_SECONDS = 30.0, 2.0  # on 2 cores, to choose configurations of an entry
MARKS = ("<!-- suite -->", "<!-- /suite -->")


@dataclass(frozen=True)
class Chosen:
    """An entry's configurations for a target, and the seconds that choosing them took."""

    run: Run
    search_s: float
    cold_s: float
    warm_s: float

    @property
    def picks(self) -> Sequence[Draft]:
        return self.run.picks

    @property
    def compiled(self) -> int:
        return sum(len(d.compiled) + len(d.skipped) + d.in_contention for d in self.picks)

    @property
    def spills(self) -> int:
        return max(stats.spilled_bytes for d in self.picks for stats in d.compiled)


def choose(spec: Spec, target: str, compiler: Compiler) -> Chosen:
    """Search, and choose configurations with an empty cache and then with a full one."""
    start = time.monotonic()
    run = searched(spec, Settings(target))
    search_s = time.monotonic() - start
    seconds = []
    kept = [dict(c.at) for c in run.outcome.candidates]
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"SUPEROPT_CACHE": cache, "TRITON_CACHE_DIR": cache}
        for _ in ("cold", "warm"):
            again = [
                Candidate(c.graph, dict(at))
                for c, at in zip(run.outcome.candidates, kept, strict=True)
            ]
            run = replace(run, outcome=replace(run.outcome, candidates=again), drafts={}, left=[])
            start = time.monotonic()
            configure(run, compiler)
            seconds.append(time.monotonic() - start)
    return Chosen(run, search_s, *seconds)


def row(run: Run, sizes: tuple[tuple[str, int], ...]) -> str:
    """Microseconds, what binds, and the roofline's time over it."""
    pick = next((d for d in run.picks if d.sizes == sizes), None)
    if pick is None:
        return "none fits"
    found, bound = pick.prediction(run.profile), run.baselines[sizes]["roofline"]
    return f"{found.time_us:.1f} | {found.bound} | {bound.time_us / found.time_us:.2f}"


def table(found: dict[str, dict[str, Chosen]], targets: Sequence[str]) -> str:
    """Markdown: a line a size, three columns a GPU."""
    head = "".join(f" {t} µs | bound | of roofline |" for t in targets)
    lines = [f"| predicted |{head}", "|---|" + "---:|---|---:|" * len(targets)]
    for name, runs in found.items():
        for sizes in next(iter(runs.values())).run.sizes:
            cells = " | ".join(row(runs[t].run, sizes) for t in targets)
            lines.append(f"| {name}{at_sizes(sizes)} | {cells} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    before, _, rest = path.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> int:
    known = suite.suite()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--target", action="append", metavar="NAME")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    targets = options.target or TARGETS
    found: dict[str, dict[str, Chosen]] = {}
    bad = 0
    print(f"{'':22} {'target':7} {'search s':>9} {'cold s':>7} {'warm s':>7} {'compiled':>9}")
    with Compiler() as compiler:
        for name in options.names or known:
            for target in targets:
                c = choose(known[name], target, compiler)
                found.setdefault(name, {})[target] = c
                wrong = c.cold_s > COLD_SECONDS or c.warm_s > WARM_SECONDS or c.spills
                bad += bool(wrong)
                print(
                    f"{name:22} {target:7} {c.search_s:9.1f} {c.cold_s:7.1f} {c.warm_s:7.2f}"
                    f" {c.compiled:9}{'  MISSED' if wrong else ''}",
                    flush=True,
                )
    text = table(found, targets)
    print(text)
    if options.write:
        write(options.write, text)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
