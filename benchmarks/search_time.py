"""Seconds of the search on the workloads that peers report, and of the whole command, cold.

    python benchmarks/search_time.py [--jobs N] [NAME ...]

'search' runs from the traced program to ranked µGraphs, 'command' from the process's start to the
written folder. 'MiB' is the peak of all its processes together (proportional set size, sampled).
Triton's cache is a new folder each time. Exits 1 where a limit is exceeded.
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

EXAMPLES = Path(__file__).parents[1] / "examples"
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


def measure(name: str, jobs: int) -> dict[str, float]:
    """One cold run of the command; times in seconds, memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "superopt.cli", "search", str(EXAMPLES / f"{name}.py")]
        command += ["--out", folder, "--jobs", str(jobs)]
        environment = os.environ | {"TRITON_CACHE_DIR": f"{folder}/cache"}
        start, peak = time.monotonic(), 0.0
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - start
        path = Path(folder) / name / "report.json"
        if not path.exists():
            raise SystemExit(f"{name}: the command ended with {process.returncode}")
        search = json.loads(path.read_text())["search"]
    counts = search["counts"]
    return {
        "search s": search["seconds"],
        "command s": seconds,
        "MiB": peak,
        "enumerated": search["enumerated"],
        "pruned": counts["dominated"] + counts["cuts_pruned"],
        "duplicate": counts["duplicate"],
        "kept": counts["kept"],
        "limit s": LIMITS.get(name, float("inf")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(LIMITS), help="examples")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    print(f"{'':16}" + "".join(f"{c:>12}" for c in COLUMNS))
    failed = False
    for name in options.names:
        row = measure(name, options.jobs)
        failed |= row["search s"] > row["limit s"]
        failed |= row["command s"] > COMMAND_LIMITS.get(name, COMMAND_LIMIT)
        failed |= row["MiB"] > MEMORY_LIMIT + WORKER_LIMIT * (options.jobs - 1)
        print(f"{name:16}" + "".join(f"{row[c]:12.4g}" for c in COLUMNS), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
