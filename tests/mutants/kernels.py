"""The unbroken kernels: µGraphs that a search found, kept as text, and emitted anew each time.

So what is broken is what the emitter writes today, though a search for all takes minutes. To search
again, after a change of the programs or of the search:

    PYTHONPATH=tests python -m mutants.kernels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from superopt.emit import Notes, emit
from superopt.mugraph.program import Choice, Config, Traced
from superopt.mugraph.text import parse_graph, print_graph
from superopt.mugraph.trace import trace
from superopt.pipeline import Settings, find_kernel
from superopt.spec import Spec, load_specs
from superopt.verify import SpecShape

PROGRAMS = Path(__file__).parent / "programs.py"
FOUND = Path(__file__).parent / "found"


@dataclass(frozen=True)
class Unbroken:
    """A kernel.py's text, with the program that it is checked against."""

    name: str
    shape: SpecShape
    traced: Traced
    text: str


@cache
def specs() -> dict[str, Spec]:
    return {s.name: s for s in load_specs(PROGRAMS, None)}


@cache
def unbroken(name: str) -> Unbroken:
    spec = specs()[name]
    traced = trace(spec)
    notes = Notes("h200", "a µGraph found before")
    return Unbroken(name, SpecShape.of(spec), traced, emit(traced, [read(name)], notes))


def read(name: str) -> Choice:
    """The µGraph and its configurations: after the graph's text, a line each launch."""
    graph, _, rows = (FOUND / f"{name}.txt").read_text().partition("\nconfigurations\n")
    return Choice((), parse_graph(graph), tuple(map(_config, rows.splitlines())))


def _config(row: str) -> Config:
    """`b=16 n=64, 4 warps, 3 stages` as a configuration."""
    tiles, warps, stages = row.split(", ")
    pairs = (tile.split("=") for tile in tiles.split())
    split = tuple((name, int(length)) for name, length in pairs)
    return Config(split, int(warps.split()[0]), int(stages.split()[0]))


def search() -> None:
    """Search each program, and keep what is found."""
    FOUND.mkdir(exist_ok=True)
    for name, spec in specs().items():
        pick = find_kernel(spec, Settings()).picks[0]
        rows = [
            " ".join(f"{axis}={length}" for axis, length in c.tiles)
            + f", {c.warps} warps, {c.stages} stages"
            for c in pick.configs
        ]
        text = "\n".join([print_graph(pick.candidate.graph), "configurations", *rows])
        (FOUND / f"{name}.txt").write_text(text + "\n")
        print(f"{name}: {', '.join(rows)}")


if __name__ == "__main__":
    search()
