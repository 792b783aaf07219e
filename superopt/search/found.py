"""What tasks pass on, and as plain data: groups of stores, branches for them, µGraphs."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from superopt.cost_model.model import Prediction, total
from superopt.mugraph.program import Branch, Config, Kernel, KernelGraph
from superopt.mugraph.serialize import from_json, to_json
from superopt.mugraph.text import print_graph

Json = dict[str, Any]
Sizes = tuple[tuple[str, int], ...]
VARIANTS = 4  # branches of a group that become candidates of their own
WORTH_A_LAUNCH = 1.67  # times as fast: kernels of other kinds are predicted off by as much
ALIKE = 3  # candidates kept that compute the same values: a check that refuses one refuses all


@dataclass(frozen=True)
class Found:
    """A µGraph with the configurations and predictions for one size, kernel by kernel."""

    graph: KernelGraph
    sizes: Sizes
    configs: tuple[Config, ...]
    parts: tuple[Prediction, ...]

    @property
    def prediction(self) -> Prediction:
        return total(self.parts)


@dataclass(frozen=True)
class Group:
    """Stores that make one branch, by the names that `Space` gives them, and what it may load."""

    stores: tuple[str, ...]
    known: tuple[int, ...]


Plan = tuple[tuple[Group, ...], ...]  # stage by stage: one way to group a cut's stores


@dataclass(frozen=True)
class Option:
    """A branch for a group. `divisible`: the form of it whose loops may be split over programs."""

    time_us: float
    branch: Branch
    divisible: Branch

    @property
    def order(self) -> tuple[float, str]:
        return round(self.time_us, 4), _text(self.branch)


def _text(branch: Branch) -> str:
    return repr((branch.roles, [s.value.digest for s in branch.stores]))


def fastest(found: Iterable[Option]) -> list[Option]:
    return sorted(found, key=lambda o: o.order)[:VARIANTS]


def values_of(found: Found) -> tuple[str, ...]:
    """What is computed, however it is split over programs and loops."""
    return tuple(sorted(s.value.digest for k in found.graph.kernels for s in k.stores))


def weighed(p: Prediction) -> float:
    """Microseconds, as µGraphs are compared: one with a launch more must be much faster."""
    return p.time_us * WORTH_A_LAUNCH**p.launches


def varied(found: Sequence[Found], top: int) -> list[Found]:
    """The best `top`, at most ALIKE of which differ only in cuts, roles and grouping.

    What is dropped of a part of the candidates would be dropped of all of them.
    """
    texts = {f.graph: print_graph(f.graph) for f in found}
    seen: dict[tuple[str, ...], int] = {}
    kept = []
    for f in sorted(found, key=lambda f: (round(weighed(f.prediction), 4), texts[f.graph])):
        values = values_of(f)
        seen[values] = seen.get(values, 0) + 1
        if seen[values] <= ALIKE:
            kept.append(f)
    return kept[:top]


# -- as plain data --------------------------------------------------------------------------------


def packed(data: Any) -> str:
    """Data that the driver only passes on: a string costs it little, a tree of lists much."""
    return base64.b64encode(zlib.compress(json.dumps(data).encode(), 1)).decode()


def unpacked(text: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(text)))


def encode_group(group: Group) -> list[Any]:
    return [list(group.stores), list(group.known)]


def decode_group(data: Sequence[Any]) -> Group:
    stores, known = data
    return Group(tuple(stores), tuple(known))


def decode_plan(data: Sequence[Any]) -> Plan:
    return tuple(tuple(decode_group(g) for g in stage) for stage in data)


def decode_sizes(data: Sequence[Any]) -> Sizes:
    return tuple((str(name), int(value)) for name, value in data)


def encode_option(option: Option) -> list[Any]:
    """Its order, then itself as kernels of one graph: they share most nodes."""
    kernels = (Kernel("branch", (option.branch,)), Kernel("divisible", (option.divisible,)))
    graph = to_json(KernelGraph("option", (), kernels, ()))
    return [*option.order, option.time_us, packed(graph)]


def decode_option(data: Sequence[Any]) -> Option:
    *_, time_us, graph = data
    branch, divisible = (_only(k) for k in from_json(unpacked(graph)).kernels)
    return Option(time_us, branch, divisible)


def _only(kernel: Kernel) -> Branch:
    (branch,) = kernel.branches
    return branch


def encode_found(found: Found) -> Json:
    """With what it is ranked by, so that only those kept are read back."""
    rest = {
        "graph": to_json(found.graph),
        "sizes": found.sizes,
        "configs": [to_json(c) for c in found.configs],
        "parts": [asdict(p) for p in found.parts],
    }
    weight = weighed(found.prediction)
    return {"weighed": weight, "values": values_of(found), "rest": packed(rest)}


def decode_found(data: Json) -> Found:
    rest = unpacked(data["rest"])
    graph, configs = from_json(rest["graph"]), tuple(map(from_json, rest["configs"]))
    assert isinstance(graph, KernelGraph)
    assert all(isinstance(c, Config) for c in configs)
    parts = tuple(Prediction(**p) for p in rest["parts"])
    return Found(graph, decode_sizes(rest["sizes"]), configs, parts)
