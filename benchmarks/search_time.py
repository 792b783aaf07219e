"""Seconds of the search on the workloads that peers report, and of the whole command, cold.

    python benchmarks/search_time.py [--table] [--jobs N] [NAME ...]

A NAME is an example; with `--table` a row of the table of dependent reductions (all of them where
none is named), searched with the Python API. 'search' runs from the traced program to ranked
µGraphs, 'command' from the process's start to the written folder. 'MiB' is the peak of all its
processes together (proportional set size, sampled). Triton's cache is a new folder each time.
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
ROW_LIMITS = {"attention": 10.0, "gqa": 10.0, "qk_norm": 15.0}  # of rows by how they begin, else:
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


def row_limit(name: str) -> float:
    return next((v for start, v in ROW_LIMITS.items() if name.startswith(start)), ROW_LIMIT)


def command_of(name: str, table: bool, folder: str, jobs: int) -> list[str]:
    if table:
        row = f"online_programs.BY_NAME[{name!r}].spec()"
        search = f"superopt.search({row}, out={folder!r}, jobs={jobs})"
        return [sys.executable, "-c", f"import online_programs, superopt; {search}"]
    command = [sys.executable, "-m", "superopt.cli", "search", str(EXAMPLES / f"{name}.py")]
    return [*command, "--out", folder, "--jobs", str(jobs)]


def measure(name: str, table: bool, jobs: int) -> dict[str, float]:
    """One cold run, from the process's start; times in seconds, memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = command_of(name, table, folder, jobs)
        environment = os.environ | {"TRITON_CACHE_DIR": f"{folder}/cache"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *sys.path[1:]])
        start, peak = time.monotonic(), 0.0
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - start
        reports = list(Path(folder).glob("*/report.json"))
        if not reports:
            raise SystemExit(f"{name}: the command ended with {process.returncode}")
        search = json.loads(reports[0].read_text())["search"]
    counts = search["counts"]
    return {
        "search s": search["seconds"],
        "command s": seconds,
        "MiB": peak,
        "enumerated": search["enumerated"],
        "pruned": counts["dominated"] + counts["cuts_pruned"],
        "duplicate": counts["duplicate"],
        "kept": counts["kept"],
        "limit s": row_limit(name) if table else LIMITS.get(name, float("inf")),
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
        row = measure(name, table, options.jobs)
        most = float("inf") if table else COMMAND_LIMITS.get(name, COMMAND_LIMIT)
        failed |= row["search s"] > row["limit s"]
        failed |= row["command s"] > most or row["MiB"] > most_memory
        print(f"{name:{width}}" + "".join(f"{row[c]:12.4g}" for c in COLUMNS), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
