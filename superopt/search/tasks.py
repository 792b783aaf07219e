"""What workers do: plan a cut, explore a group of stores in one way, assemble a cut's µGraphs.

Arguments and results are plain data: they travel to other processes and into the journal. What a
task gives depends on its arguments alone, not on the worker or on what ran there before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from superopt.cost_model.profile import Profile
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.program import Program, weights
from superopt.mugraph.serialize import from_json, to_json
from superopt.mugraph.text import inline
from superopt.search.egraph import EGraph
from superopt.search.extract import Counts
from superopt.search.found import (
    Json,
    Sizes,
    decode_group,
    decode_option,
    decode_plan,
    decode_sizes,
    encode_found,
    encode_group,
    encode_option,
    varied,
    weighed,
)
from superopt.search.normalise import normalise
from superopt.search.observe import merge_equal
from superopt.search.online import LoopAccuracy
from superopt.search.partition import Candidate, candidates
from superopt.search.rules import Saturation, saturate
from superopt.search.space import Space, Tally, Target

State = dict[str, Any]  # what a worker keeps between its tasks
MOST_SPACES = 4  # programs whose search a worker remembers


@dataclass(frozen=True)
class Kind:
    """A kind of task: the function that does it (`module:name`), and about how long that takes."""

    name: str
    function: str
    seconds: float


@dataclass(frozen=True)
class Task:
    """One piece of work. `detail` is its identity, as plain data; `gpu`: it wants one, alone."""

    kind: Kind
    detail: tuple[Any, ...]
    gpu: bool = False

    @cached_property
    def key(self) -> str:
        return json.dumps([self.kind.name, self.detail])


PLAN = Kind("plan", "superopt.search.tasks:plan", 0.05)  # (cut,)
EXPLORE = Kind("explore", "superopt.search.tasks:explore", 0.2)  # (stores, known, part, sizes)
ASSEMBLE = Kind("assemble", "superopt.search.tasks:assemble", 0.05)  # (cut, sizes)


@dataclass
class Seen:
    """What a task looked at, for the report."""

    counts: Counts = field(default_factory=Counts)
    assigned: int = 0
    configured: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    laws: dict[str, int] = field(default_factory=dict)
    runs: list[tuple[int, int, bool]] = field(default_factory=list)  # bound, enumerated, spent

    @staticmethod
    def of(tally: Tally) -> Seen:
        refused = {inline(term): why for term, why in tally.refused.items()}
        runs = [(r.bound, r.enumerated, r.spent) for r in tally.runs]
        return Seen(tally.counts, tally.assigned, tally.configured, refused, tally.laws, runs)

    @staticmethod
    def from_json(data: Json) -> Seen:
        runs = [(bound, count, spent) for bound, count, spent in data["runs"]]
        return Seen(**{**data, "counts": Counts(**data["counts"]), "runs": runs})

    @property
    def enumerated(self) -> int:
        own = self.counts.built + self.assigned + self.configured
        return own + sum(count for _, count, _ in self.runs)

    @property
    def spent(self) -> bool:
        """Whether nothing was cut short."""
        return all(spent for _, _, spent in self.runs)

    def add(self, other: Seen) -> None:
        self.counts.add(other.counts)
        self.assigned += other.assigned
        self.configured += other.configured
        self.refused.update(other.refused)
        self.laws.update(other.laws)
        self.runs.extend(other.runs)


# -- what a worker searches -----------------------------------------------------------------------


def setup_of(
    program: Program, profile: Profile, allow_unsafe: bool, exhaustive: bool, algebra: bool = True
) -> str:
    """All that a worker needs to know of a search."""
    return json.dumps([to_json(program), asdict(profile), allow_unsafe, exhaustive, algebra])


def build_space(
    program: Program, profile: Profile, algebra: bool = True
) -> tuple[Space, Saturation]:
    """Normalise, saturate, merge what is observationally equal; without algebra only the first."""
    normal = normalise(program)
    g = EGraph()
    numbers = [g.insert(s.value) for s in normal.stores]
    saturation = Saturation("not run", 0, len(g.of), len(g.classes), {})
    if algebra:
        saturation = saturate(g)
        saturation.merged = merge_equal(g)
    outputs = tuple(
        Target(s, g.find(n), s.value) for s, n in zip(normal.stores, numbers, strict=True)
    )
    accuracy = LoopAccuracy(frozenset(t.name for t in weights(program)))
    return Space(normal, g, outputs, profile, accuracy), saturation


def space_of(state: State, setup: str) -> tuple[Space, Saturation]:
    """The space of a search, built once a worker."""
    spaces: dict[str, tuple[Space, Saturation]] = state.setdefault("spaces", {})
    built = spaces.pop(setup, None)
    if built is None:
        program, profile, allow_unsafe, exhaustive, algebra = json.loads(setup)
        built = build_space(from_json(program), Profile(**profile), algebra)
        built[0].allow_unsafe = allow_unsafe
        built[0].exhaustive = exhaustive
    spaces[setup] = built
    while len(spaces) > MOST_SPACES:
        del spaces[next(iter(spaces))]  # the one not used for longest
    return built


def worth_storing(space: Space, sizes: Sequence[Sizes]) -> list[Candidate]:
    """The classes of which cuts are made."""
    largest = dict(max(sizes, key=lambda s: prod(v for _, v in s)))
    outputs = [t.number for t in space.outputs]
    most = ideal_bytes(space.program, largest) / 2
    found = candidates(space.graph, outputs, largest, most, space.twins)
    return [
        c
        for n, c in enumerate(found)
        if not any(c.number in space.twins(o.number) for o in found[:n])
    ]


def least_us(space: Space, sizes: Sizes, found: Sequence[Candidate]) -> tuple[float, list[float]]:
    """Microseconds that any cut takes at least, and what each class that is stored adds.

    Two launches, and the bytes of inputs and outputs at full bandwidth; a temporary is written and
    read once, in half precision at least.
    """
    p = space.profile
    least = 2 * (p.launch_s + p.dram_latency_s)
    least += ideal_bytes(space.program, dict(sizes)) / p.dram_bytes_per_s
    added = []
    for c in found:
        elements = prod(ix.value(a.extent, dict(sizes)) for a in space.graph[c.number].free)
        added.append(4 * elements / p.dram_bytes_per_s * 1e6)
    return least * 1e6, added


def ideal_bytes(program: Program, sizes: dict[str, int]) -> float:
    """Bytes of every input read once and every output written once."""
    return float(
        sum(
            prod(ix.value(e, sizes) for e in t.shape) * DTYPES[t.dtype].bytes
            for t in (*program.inputs, *program.outputs)
        )
    )


# -- the tasks ------------------------------------------------------------------------------------


def plan(state: State, setup: str, argument: Json) -> Json:
    """The ways to group a cut's stores, and into how many parts each group's search falls.

    Of the uncut program also the classes of which cuts are made, and by size what these take least.
    """
    space, saturation = space_of(state, setup)
    plans = space.plans(tuple(argument["cut"]))
    groups = dict.fromkeys(g for p in plans for stage in p for g in stage)
    whole: Json = {}
    if not argument["cut"]:
        sizes = [decode_sizes(s) for s in argument["sizes"]]
        found = worth_storing(space, sizes)
        whole = {
            "candidates": [asdict(c) for c in found],
            "least_us": [least_us(space, s, found) for s in sizes],
            "saturation": asdict(saturation),
        }
    return whole | {
        "plans": [[[encode_group(g) for g in stage] for stage in p] for p in plans],
        "parts": [[encode_group(g), len(space.splits(g))] for g in groups],
        "seen": asdict(Seen()),
    }


def explore(state: State, setup: str, argument: Json) -> Json:
    """The fastest branches of a group, split over programs in one way."""
    group = decode_group([argument["stores"], argument["known"]])
    sizes = decode_sizes(argument["sizes"])

    def work(space: Space) -> Json:
        options = space.explore(group, argument["part"], sizes)
        return {"options": [encode_option(o) for o in options]}

    return _counted(state, setup, argument, work)


def assemble(state: State, setup: str, argument: Json) -> Json:
    """The µGraphs of all plans of a cut at one size, from the options of its groups.

    `found` are those that may be among the `top` kept of the search; `times` the best of all,
    `weighed`.
    """
    sizes = decode_sizes(argument["sizes"])
    rows = [(decode_group(g), list(map(decode_option, o))) for g, o in argument["options"]]
    options = dict(rows)

    def work(space: Space) -> Json:
        plans = [decode_plan(p) for p in argument["plans"]]
        found = [f for p in plans for f in space.assemble(p, options, sizes)]
        times = sorted(weighed(f.prediction) for f in found)[: argument["top"]]
        kept = varied(found, argument["top"])
        return {"found": [encode_found(f) for f in kept], "times": times}

    return _counted(state, setup, argument, work)


def _counted(state: State, setup: str, argument: Json, work: Callable[[Space], Json]) -> Json:
    space, _ = space_of(state, setup)
    seconds = argument["seconds"]
    space.deadline = None if seconds is None else time.monotonic() + seconds
    space.forget()
    result = work(space)
    return result | {"seen": asdict(Seen.of(space.tally))}
