"""Seconds of the search on the workloads that peers report, and of the whole command, cold.

    python benchmarks/search_time.py [--table] [--jobs N] [NAME ...]

A NAME is an example. 'search' runs from the traced program to ranked µGraphs, 'command' from the
process's start to the written folder. 'MiB' is the peak of all its processes together (proportional
set size, sampled). Triton's cache is a new folder each time. With `--table` a NAME is a row of the
table of dependent reductions, all of them where none is named; those are only searched.
Exits 1 where a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from online_programs import BY_NAME  # noqa: E402

EXAMPLES = ROOT / "examples"
LIMITS = {
    "rmsnorm_linear": 1.0,
    "gated_mlp": 2.0,
    "lora": 5.0,
    "ngpt_update": 3.0,
    "attention": 10.0,
    "gqa_decode": 10.0,
}  # search seconds
COMMAND_LIMIT = 30.0  # seconds, but for:
COMMAND_LIMITS = {"rmsnorm_linear": 20.0}
MEMORY_LIMIT = 1024.0  # MiB with --jobs 1, and for each further worker:
WORKER_LIMIT = 400.0
ROW_LIMITS = {
    **dict.fromkeys(("attention", "attention_float", "attention_sdpa"), 10.0),
    **dict.fromkeys(("gqa_interleave", "gqa_expand", "gqa_sdpa"), 10.0),
    "qk_norm": 15.0,
}  # of rows, by name without sizes; of others:
ROW_LIMIT = 60.0
ROW_MEMORY_LIMIT = 1536.0  # MiB
COLUMNS = ("search s", "command s", "MiB", "enumerated", "pruned", "duplicate", "kept", "limit s")


def memory(pid: int) -> float:
    """MiB of a process and all below it; processes that end meanwhile count as nothing."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory(int(child))
    except OSError:
        pass
    return total


SEARCH_ROW = """
import json, sys
from online_programs import BY_NAME
from superopt.cost_model.profile import load_profile
from superopt.mugraph.trace import trace
from superopt.pipeline import Settings, tuned_sizes
from superopt.search.driver import Options, search_program
spec = BY_NAME[sys.argv[1]].spec()
program = trace(spec).program
options = Options(load_profile("h200"), tuned_sizes(program, spec))
with Settings(jobs=int(sys.argv[3])).executor() as executor:
    found = search_program(program, options, executor=executor)
counts = {"dominated": found.counts.dominated, "duplicate": found.counts.duplicate,
          "kept": len(found.candidates), "cuts_pruned": found.tasks_pruned}
row = {"seconds": found.seconds, "enumerated": found.enumerated, "counts": counts}
json.dump(row, open(sys.argv[2], "w"))
"""


def run(command: list[str], folder: str) -> tuple[float, float]:
    """Seconds that a command takes, and the peak of its processes in MiB."""
    environment = os.environ | {"TRITON_CACHE_DIR": f"{folder}/cache"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *sys.path[1:]])
    start, peak = time.monotonic(), 0.0
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{command}: ended with {process.returncode}")
    return time.monotonic() - start, peak


def measure(name: str, jobs: int) -> dict[str, float]:
    """One cold run of the command; times in seconds, memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "superopt.cli", "search", str(EXAMPLES / f"{name}.py")]
        seconds, peak = run([*command, "--out", folder, "--jobs", str(jobs)], folder)
        search = json.loads((Path(folder) / name / "report.json").read_text())["search"]
    return _numbers(search, seconds, peak, LIMITS.get(name, float("inf")))


def measure_row(name: str, jobs: int) -> dict[str, float]:
    """One cold search of a row of the table; nothing is checked or emitted."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        seconds, peak = run([sys.executable, "-c", SEARCH_ROW, name, str(found), str(jobs)], folder)
        search = json.loads(found.read_text())
    limit = ROW_LIMITS.get(name.split("-")[0], ROW_LIMIT)
    return _numbers(search, seconds, peak, limit)


def _numbers(search: dict[str, Any], seconds: float, peak: float, limit: float) -> dict[str, float]:
    counts = search["counts"]
    return {
        "search s": search["seconds"],
        "command s": seconds,
        "MiB": peak,
        "enumerated": search["enumerated"],
        "pruned": counts["dominated"] + counts["cuts_pruned"],
        "duplicate": counts["duplicate"],
        "kept": counts["kept"],
        "limit s": limit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="examples, or rows of the table")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="NAMEs are rows of the table")
    options = parser.parse_args()
    table, names = options.table, options.names
    names = names or list(BY_NAME if table else LIMITS)
    most_memory = ROW_MEMORY_LIMIT if table else MEMORY_LIMIT
    most_memory += WORKER_LIMIT * (options.jobs - 1)
    width = max(map(len, names)) + 1
    print(f"{'':{width}}" + "".join(f"{c:>12}" for c in COLUMNS))
    failed = False
    for name in names:
        row = measure_row(name, options.jobs) if table else measure(name, options.jobs)
        most = float("inf") if table else COMMAND_LIMITS.get(name, COMMAND_LIMIT)
        failed |= row["search s"] > row["limit s"]
        failed |= row["command s"] > most or row["MiB"] > most_memory
        print(f"{name:{width}}" + "".join(f"{row[c]:12.4g}" for c in COLUMNS), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
