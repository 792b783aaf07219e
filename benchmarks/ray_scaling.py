"""What Ray costs and gains: one large search on each executor, and many specs together.

    python benchmarks/ray_scaling.py                  large_search.py, in turn: stopped at 10 s,
                                                      in this process, pool of 2, Ray of 1 and 2
    python benchmarks/ray_scaling.py --specs 20       so many specs together, on Ray of 2
    python benchmarks/ray_scaling.py --record FOLDER  its journal and each task's seconds, for
                                                      cluster_simulation.py: nothing is pruned

'seconds' run from workers that are up to ranked µGraphs; 'start' is what getting them up took;
'task s' and 'task cpu' sum what tasks took in the workers, 'driver cpu' what this process took.
Every row is a process of its own. Exits 1 where winners differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from superopt.cost_model.profile import load_profile
from superopt.mugraph.trace import trace
from superopt.pipeline import tuned_sizes
from superopt.process import ONE_THREAD
from superopt.search.driver import Options, choices, conclude, open_frontier
from superopt.search.executor import Executor, InProcess
from superopt.search.frontier import Frontier
from superopt.search.journal import Journal
from superopt.search.pool import ProcessPool
from superopt.search.ray_cluster import RayExecutor
from superopt.search.scheduler import Scheduler
from superopt.search.tasks import setup_of
from superopt.spec import load_specs

HERE = Path(__file__).parent
LARGE = HERE / "large_search.py"
ROWS = {  # executor, workers, time limit
    "stopped at 10 s": ("here", 1, 10.0),
    "in process": ("here", 1, None),
    "pool of 2": ("pool", 2, None),
    "Ray of 1": ("ray", 1, None),
    "Ray of 2": ("ray", 2, None),
}
TICKS = os.sysconf("SC_CLK_TCK")
EXAMPLES = sorted((HERE.parent / "examples").glob("*.py"))


def executor(kind: str, workers: int) -> Executor:
    if kind == "here":
        return InProcess()
    return ProcessPool(workers) if kind == "pool" else RayExecutor("local", workers)


def started(runs: Executor, workers: int) -> float:
    """Seconds until all workers are up."""
    start = time.monotonic()
    runs.start()
    while runs.idle() < workers:
        runs.wait(0.1)
    return time.monotonic() - start


def measure(row: str) -> dict[str, Any]:
    """One search, in this process; its figures."""
    kind, workers, limit = ROWS[row]
    (spec,) = load_specs(LARGE)
    program = trace(spec).program
    sizes = tuned_sizes(program, spec)
    options = Options(load_profile("h200"), sizes, limit)
    with executor(kind, workers) as runs:
        start = started(runs, workers)
        begin = time.monotonic()
        frontier, scheduler = open_frontier(program, options), Scheduler(runs)
        scheduler.run([frontier])
        outcome = conclude(program, options, frontier)
        seconds = time.monotonic() - begin
    winners = [(s, c.text, c.at[s][0]) for s, c in choices(outcome.candidates, sizes)]
    return {
        "start": start,
        "seconds": seconds,
        "task s": sum(s for _, s, _ in scheduler.durations),
        "task cpu": sum(used for *_, used in scheduler.durations),
        "tasks": len(scheduler.durations),
        "longest cpu": max(used for *_, used in scheduler.durations),
        "driver cpu": time.process_time(),
        "winner": hashlib.sha256(repr(winners).encode()).hexdigest()[:12],
        "us": [round(c.at[s][1].time_us, 2) for s, c in choices(outcome.candidates, sizes)],
    }


class Unbounded(Frontier):
    """Looks at all that others may look at, whenever they learn of the best found."""

    def _bar(self, sizes: Any) -> float:
        return float("inf")


def record(folder: Path) -> int:
    (spec,) = load_specs(LARGE)
    program = trace(spec).program
    setup = setup_of(program, load_profile("h200"), False, False)
    sizes = tuned_sizes(program, spec)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(folder / "journal.jsonl", (program, sizes), resume=False)
    scheduler = Scheduler(InProcess())
    scheduler.run([Unbounded(setup, sizes, 8, None, journal)])
    (folder / "durations.json").write_text(json.dumps(scheduler.durations))
    used = sum(used for *_, used in scheduler.durations)
    print(f"{len(scheduler.durations)} tasks, {used:.1f} s of CPU time")
    return 0


def large() -> int:
    results = {}
    for row in ROWS:
        command = [sys.executable, __file__, "--row", row]
        done = subprocess.run(
            command, env=ONE_THREAD | os.environ, stdout=subprocess.PIPE, check=True, text=True
        )
        found = results[row] = json.loads(done.stdout.splitlines()[-1])
        print(f"{row:16}", *(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}"
                             for k, v in found.items()), flush=True)  # fmt: skip
    one, two, here = (results[r]["seconds"] for r in ("Ray of 1", "Ray of 2", "in process"))
    print(f"Ray of 2 over Ray of 1: {two / one:.2f} of the time")
    print(f"Ray of 1 over in process: {one / here:.2f} of the time")
    whole = {r["winner"] for name, r in results.items() if name != "stopped at 10 s"}
    stopped = results["stopped at 10 s"]["winner"]
    print(f"stopped at 10 s the winner is another: {stopped not in whole}")
    return int(len(whole) != 1)


def together(count: int) -> int:
    """So many specs in one search, on Ray of 2: the examples, and as many copies as it takes."""
    with tempfile.TemporaryDirectory() as folder:
        specs = []
        for n in range(count):
            source, turn = EXAMPLES[n % len(EXAMPLES)], n // len(EXAMPLES)
            name = load_specs(source)[0].name
            path = Path(folder) / f"{name}_{turn}.py"
            path.write_text(source.read_text().replace(f"def {name}(", f"def {name}_{turn}("))
            specs.append(str(path))
        command = [sys.executable, "-m", "superopt.cli", "search", *specs, "--ray", "local"]
        command += ["--jobs", "2", "--out", f"{folder}/out"]
        mark = {"SUPEROPT_BENCHMARK": f"{os.getpid()}"}
        start, used = time.monotonic(), dict[str, float]()
        environment = ONE_THREAD | os.environ | mark
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            look(used, f"SUPEROPT_BENCHMARK={os.getpid()}".encode())
            time.sleep(0.2)
        seconds = time.monotonic() - start
        cpu = sum(used.values())
        print(f"{count} specs: {seconds:.1f} s, exit {process.returncode}; {cpu:.1f} s of CPU time"
              f" in {len(used)} processes; {seconds / (cpu / 2):.2f} of half of it")  # fmt: skip
    return process.returncode


def look(used: dict[str, float], mark: bytes) -> None:
    """CPU seconds of each process that has the mark in its environment, as far as they have got."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            if process.name in used or mark in (process / "environ").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                used[process.name] = (int(fields[11]) + int(fields[12])) / TICKS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--row", choices=ROWS)
    parser.add_argument("--specs", type=int)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(options.row)))
        return 0
    if options.record is not None:
        return record(options.record)
    return large() if options.specs is None else together(options.specs)


if __name__ == "__main__":
    sys.exit(main())
