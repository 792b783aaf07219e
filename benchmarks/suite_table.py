"""The suite's predicted times, from configurations that were really compiled for each GPU.

    python benchmarks/suite_table.py [--target NAME ...] [--write FILE] [NAME ...]

Every entry is searched for the first target (h200, h100 and a100 where none is named) and its
configurations are compiled, with an empty cache and with what that left; for the other targets the
same µGraphs are configured and compiled. µGraphs are checked; gate and proof, which may still
refuse a kernel, are `superopt search`'s. `--write` puts the rows into the table between the marks
of FILE, where those of other entries stay as they are. Exits with 1 where choosing takes over
COLD_SECONDS, or WARM_SECONDS with the cache, or something spills.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import suite

from superopt.compiler import Compiler
from superopt.cost_model.baselines import baselines
from superopt.cost_model.profile import Profile, load_profile
from superopt.pipeline import Run, Settings, at_sizes, configure, searched
from superopt.search.driver import Candidate, predict_at

TARGETS = ("h200", "h100", "a100")
COLD_SECONDS, WARM_SECONDS = 30.0, 2.0  # on 2 cores, to choose configurations of an entry
MARKS = ("<!-- suite -->", "<!-- /suite -->")


def with_candidates(run: Run, profile: Profile) -> Run:
    """A run with the same µGraphs, none of them configured yet, for a GPU."""
    again = []
    for c in run.outcome.candidates:
        at = {s: found for s in run.sizes if (found := predict_at(c.graph, s, profile))}
        again.append(Candidate(c.graph, at))
    known = {s: baselines(run.program, dict(s), profile) for s in run.sizes}
    outcome = replace(run.outcome, candidates=again)
    return replace(
        run, profile=profile, outcome=outcome, left=list(again), baselines=known, drafts={},
        refusals=[], picks=(), seconds={},
    )  # fmt: skip


def configured(run: Run, target: str, compiler: Compiler) -> tuple[Run, float]:
    """A run with configurations for a target, and the seconds that choosing them took.

    Without those in which the µGraphs were checked, which reports give apart too.
    """
    run = with_candidates(run, load_profile(target))
    start = time.monotonic()
    configure(run, compiler)
    return run, time.monotonic() - start - run.seconds.get("check", 0.0)


def compiled(run: Run) -> int:
    return sum(len(d.compiled) + len(d.skipped) + d.in_contention for d in run.picks)


def spills(run: Run) -> int:
    return max(stats.spilled_bytes for d in run.picks for stats in d.compiled)


def row(run: Run, sizes: tuple[tuple[str, int], ...]) -> str:
    """Microseconds, what binds, and the roofline's time over it."""
    pick = next((d for d in run.picks if d.sizes == sizes), None)
    if pick is None:
        return "none fits"
    found, bound = pick.prediction(run.profile), run.baselines[sizes]["roofline"]
    return f"{found.time_us:.1f} | {found.bound} | {bound.time_us / found.time_us:.2f}"


def head(targets: Sequence[str]) -> list[str]:
    columns = "".join(f" {t} µs | bound | of roofline |" for t in targets)
    return [f"| predicted |{columns}", "|---|" + "---:|---|---:|" * len(targets)]


def rows(name: str, runs: dict[str, Run], targets: Sequence[str]) -> list[str]:
    """A line a size, three columns a GPU."""
    sizes = next(iter(runs.values())).sizes
    cells = (" | ".join(row(runs[t], s) for t in targets) for s in sizes)
    return [f"| {name}{at_sizes(s)} | {c} |" for s, c in zip(sizes, cells, strict=True)]


def written(path: Path, columns: list[str]) -> dict[str, list[str]]:
    """The rows of a table that a file has, by entry; none where its columns are others."""
    table = path.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]
    lines = table.strip().split("\n")
    found: dict[str, list[str]] = {}
    for line in lines[2:] if lines[:2] == columns else ():
        found.setdefault(line.split(" ")[1], []).append(line)
    return found


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
    columns = head(targets)
    found = written(options.write, columns) if options.write else {}
    bad = 0
    print(f"{'':22} {'search s':>9} {'cold s':>7} {'warm s':>7} {'compiled':>9}, on {targets[0]}")
    for name in options.names or known:
        with Compiler() as compiler, tempfile.TemporaryDirectory() as cache:
            os.environ |= {"SUPEROPT_CACHE": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
            start = time.monotonic()
            run = searched(known[name], Settings(targets[0]))
            search_s = time.monotonic() - start
            first, cold_s = configured(run, targets[0], compiler)
            _, warm_s = configured(run, targets[0], compiler)
            runs = {t: configured(run, t, compiler)[0] for t in targets[1:]}
        runs = {targets[0]: first} | runs
        found[name] = rows(name, runs, targets)
        wrong = cold_s > COLD_SECONDS or warm_s > WARM_SECONDS
        wrong |= any(spills(r) for r in runs.values())
        bad += wrong
        times = f"{search_s:9.1f} {cold_s:7.1f} {warm_s:7.2f}"
        print(f"{name:22} {times} {compiled(first):9}{'  MISSED' if wrong else ''}", flush=True)
        lines = [*columns, *(line for n in known if n in found for line in found[n])]
        if options.write:
            write(options.write, "\n".join(lines))
    print("\n".join(lines))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
