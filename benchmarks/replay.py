"""What today's model says of configurations that a GPU has timed.

    python benchmarks/replay.py results/h200/compiled.json
    python benchmarks/replay.py FILE --regret REGRET.json --kernels DIR/NAME...

The second makes FILE of what benchmarks/regret.py measured and of the folders of its kernels: their
µGraphs, and each configuration's registers and shared memory, compiled here. Kernels that are in no
folder are left out, as are configurations that failed. Printed is, for each kernel and size, the
model's error (ln(predicted / measured): mean and deviation), Spearman's correlation, and the regret
of its first and best of its first eight; then medians. `--registers` leaves the model to estimate
registers and shared memory, as it does for what is not compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from ast import literal_eval
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import regret

from superopt.cost_model.model import KernelModel, Made
from superopt.cost_model.profile import load_profile
from superopt.cost_model.timing import write_json
from superopt.emit.compile import compile_all
from superopt.mugraph.program import Config
from superopt.mugraph.text import parse_graph
from superopt.report import KERNEL, chosen, read_report

ENTRY = r'\{"(?:BLOCK_\w+|num_warps)": [^}]*\}'  # of a kernel.py's table


def compiled(measured: dict[str, Any], folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The pairs of a regret study with what the replay needs."""
    known = {folder.name: folder for folder in folders}
    for pair in measured["pairs"]:
        folder = known.get(pair["kernel"])
        rows = [r for r in pair["rows"] if r.get("measured_us")]
        if folder is None or not rows:
            continue
        report = read_report(folder)
        sizes = literal_eval(pair["at"].split(" at ")[1])
        row = next((r for r in report["sizes"] if r["sizes"] == sizes), report["sizes"][0])
        source = (folder / KERNEL).read_text()
        calls = [(configured(source, r["config"]), sizes) for r in rows]
        made = [own[0] for own in compile_all(calls, report["target"]["arch"])]
        kept = [
            {
                "config": r["config"],
                "measured_us": r["measured_us"],
                "registers": m.registers,
                "shared_bytes": m.shared_bytes,
            }
            for r, m in zip(rows, made, strict=True)
            if m.ok
        ]
        yield {
            "kernel": pair["kernel"],
            "sizes": sizes,
            "graph": chosen(report, row),
            "rows": kept,
        }


def configured(source: str, entry: dict[str, int]) -> str:
    """A kernel.py with `entry` for all configurations of its kind."""

    def put(found: re.Match[str]) -> str:
        return json.dumps(entry) if literal_eval(found[0]).keys() == entry.keys() else found[0]

    return re.sub(ENTRY, put, source)


def replayed(pair: dict[str, Any], target: str, estimated: bool) -> list[dict[str, Any]]:
    """A pair's rows with the model's predictions, best first."""
    (kernel,) = parse_graph(pair["graph"].rstrip()).kernels
    model = KernelModel(kernel, pair["sizes"], load_profile(target))
    rows = []
    for row in pair["rows"]:
        entry = row["config"]
        tiles = tuple((a.name, entry[f"BLOCK_{a.name.upper()}"]) for a in model.axes())
        config = Config(tiles, entry["num_warps"], entry["num_stages"])
        made = None if estimated else Made(row["registers"], row["shared_bytes"])
        rows.append(row | {"predicted_us": model.predict(config, made).time_us})
    return sorted(rows, key=lambda r: r["predicted_us"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--regret", type=Path, metavar="FILE")
    parser.add_argument("--kernels", nargs="+", type=Path, default=(), metavar="DIR/NAME")
    parser.add_argument("--profile", default="h200", metavar="TARGET")
    parser.add_argument("--registers", action="store_true")
    options = parser.parse_args()
    if options.regret:
        measured = json.loads(options.regret.read_text())
        pairs = list(compiled(measured, options.kernels))
        write_json(options.file, {"environment": measured["environment"], "pairs": pairs})
    squares, found = [], []
    for pair in json.loads(options.file.read_text())["pairs"]:
        rows = replayed(pair, options.profile, options.registers)
        errors = [math.log(r["predicted_us"] / r["measured_us"]) for r in rows]
        squares.append(statistics.fmean(e * e for e in errors))
        found.append(regret.figures(rows))
        f, at = found[-1], ", ".join(f"{k}={v}" for k, v in pair["sizes"].items())
        rank = "   -" if f["spearman"] is None else f"{f['spearman']:4.2f}"
        print(
            f"{pair['kernel'] + ' ' + at:32} {len(rows):3} configurations, error"
            f" {statistics.fmean(errors):+.2f} ± {statistics.pstdev(errors):.2f}, Spearman {rank},"
            f" regret {f['top_1']:.0%} and {f['top_8']:.0%}"
        )
    for line in regret.summary(found):
        print(line)
    print(f"error: {math.sqrt(statistics.fmean(squares)):.2f} of the logarithm, root mean square")
    return 0


if __name__ == "__main__":
    sys.exit(main())
