"""Seconds that the proofs of the examples take, and replaying their certificates by two solvers.

    python benchmarks/verify_time.py [--out DIR] [NAME ...]

Each example is searched into DIR (a new folder by default), unless it is there. 'prove' is a cold
process: imports, Triton's IR, Z3. Exits 1 where a proof takes longer than `LIMIT`, all of them
longer than `TOTAL`, something is not proved, or the solvers disagree.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from superopt.mugraph.trace import trace
from superopt.spec import load_specs
from superopt.verify import Proving, SpecShape, replay
from superopt.verify.certificate import SOLVERS

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT, TOTAL = 20.0, 600.0  # seconds


def searched(name: str, out: Path) -> Path:
    folder = out / name
    if not (folder / "proof.json").exists():
        command = [sys.executable, "-m", "superopt.cli", "search", str(EXAMPLES / f"{name}.py")]
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.names or sorted(p.stem for p in EXAMPLES.glob("*.py"))
    failed, total = False, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        print(
            f"{'':20}{'prove s':>9}{'claims':>8}  verdict   "
            + "".join(f"{s + ' s':>9}" for s in SOLVERS)
        )
        for name in names:
            folder = searched(name, options.out or Path(temporary))
            (spec,) = load_specs(EXAMPLES / f"{name}.py")
            with Proving() as proving:
                ranges = SpecShape.of(spec).ranges
                proving.ask(folder / "kernel.py", trace(spec).program, ranges)
                proof = proving.result()
            seconds = []
            for solver in SOLVERS:
                start = time.monotonic()
                failed |= not all(r.passed for r in replay(folder, solver))
                seconds.append(time.monotonic() - start)
            total += proof.seconds
            failed |= proof.seconds > LIMIT or not proof.complete
            claims = len(proof.addresses.obligations) + len(proof.values.obligations)
            verdict = "proved" if proof.complete else "not proved"
            row = f"{name:20}{proof.seconds:9.2f}{claims:8}  {verdict:10}"
            print(row + "".join(f"{s:9.2f}" for s in seconds), flush=True)
    print(f"{'all':20}{total:9.2f}")
    return int(failed or total > TOTAL)


if __name__ == "__main__":
    sys.exit(main())
