"""Seconds of the search on Mirage's own workloads, and of the whole command, cold, in a new process.

    python benchmarks/search_time.py [--jobs N] [NAME ...]

'search' runs from the traced program to ranked µGraphs; 'command' is everything from the interpreter's
start to the written folder. Peak memory is that of the largest process (a worker's counts apart).
Exits 1 where a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import resource
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
}  # search seconds
COMMAND_LIMIT = 20.0  # seconds
MEMORY_LIMIT = 1024.0  # MiB, of the process with --jobs 1
COLUMNS = ("search s", "command s", "MiB", "enumerated", "pruned", "duplicate", "kept", "limit s")


def measure(name: str, jobs: int) -> dict[str, float]:
    """One cold run of the command; times in seconds, memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "superopt.cli", "search", str(EXAMPLES / f"{name}.py")]
        command += ["--out", folder, "--jobs", str(jobs)]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        path = Path(folder) / name / "report.json"
        if not path.exists():
            raise SystemExit(f"{name}: {done.stderr}")
        search = json.loads(path.read_text())["search"]
    counts = search["counts"]
    return {
        "search s": search["seconds"],
        "command s": seconds,
        "MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "enumerated": search["enumerated"],
        "pruned": counts["pruned"] + counts["dominated"] + counts["cuts_pruned"],
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
        failed |= row["search s"] > row["limit s"] or row["command s"] > COMMAND_LIMIT
        failed |= options.jobs == 1 and row["MiB"] > MEMORY_LIMIT
        print(f"{name:16}" + "".join(f"{row[c]:12.4g}" for c in COLUMNS), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
