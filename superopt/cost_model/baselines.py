"""What the search is compared with: the program unfused, greedily fused, and the roofline bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from superopt.cost_model.model import Prediction, total
from superopt.cost_model.profile import Profile
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Tensor, toposort
from superopt.mugraph.program import Program, SourceOp

Sizes = Mapping[str, int]


def baselines(program: Program, sizes: Sizes, profile: Profile) -> dict[str, Prediction]:
    """The three baselines of a report, predicted by the same machine facts.

    `unfused`: a kernel an operator. `greedy`: producers fused into consumers as a tensor compiler
    does; both at the bandwidth that copies reach and the peak rate of arithmetic. `roofline`: one
    launch that moves once what is read of inputs, and outputs, and computes what was written, all
    at the peak.
    """
    ops = [o for o in program.source_ops if o.kind != "view"]
    alias = _Alias(program.source_ops)
    read = _read(program, sizes)

    def launched(groups: Sequence[Sequence[SourceOp]]) -> Prediction:
        parts = [_group(g, program, alias, read, sizes, profile) for g in groups]
        return total(parts or [_empty()])

    return {
        "unfused": launched([[o] for o in ops]),
        "greedy": launched(greedy_groups(program)),
        "roofline": _roofline(program, read, sizes, profile),
    }


def greedy_groups(program: Program) -> list[list[SourceOp]]:
    """Producer-consumer fusion: a matrix product takes what is pointwise behind it; pointwise
    operators
    and reductions of one row space join; nothing is fused into a product's operands."""
    ops = [o for o in program.source_ops if o.kind != "view"]
    alias = _Alias(program.source_ops)
    group_of: dict[str, int] = {}
    groups: list[list[SourceOp]] = []
    for o in ops:
        producers = sorted({group_of[alias(t)] for t in o.reads if alias(t) in group_of})
        home = next(
            (g for g in reversed(producers) if _joins(o, groups[g]) and g >= max(producers)), None
        )
        if home is None:
            home = len(groups)
            groups.append([])
        groups[home].append(o)
        for t in o.writes:
            group_of[alias(t)] = home
    return groups


def _joins(o: SourceOp, group: list[SourceOp]) -> bool:
    if o.kind == "contraction":
        return False
    if any(x.kind == "contraction" for x in group):
        return o.kind == "pointwise" and _numel(o) == _numel(group[0])
    return True


def _numel(o: SourceOp) -> tuple[object, ...]:
    return tuple(o.writes[0].shape)


class _Alias:
    """The value that a view chain starts from, by name."""

    def __init__(self, ops: Sequence[SourceOp]) -> None:
        self.base: dict[str, str] = {}
        for o in ops:
            if o.kind == "view" and o.reads:
                for t in o.writes:
                    self.base[t.name] = self(o.reads[0])

    def __call__(self, t: Tensor) -> str:
        return self.base.get(t.name, t.name)


def _bytes(t: Tensor, sizes: Sizes) -> float:
    return float(prod(ix.value(e, dict(sizes)) for e in t.shape) * DTYPES[t.dtype].bytes)


def _group(
    group: Sequence[SourceOp],
    program: Program,
    alias: _Alias,
    read: Mapping[Tensor, float],
    sizes: Sizes,
    profile: Profile,
) -> Prediction:
    """One kernel: reads from outside the group once, writes what is used outside it."""
    made = {alias(t) for o in group for t in o.writes}
    outside = [o for o in program.source_ops if o not in group]
    users = [o for o in outside if o.kind != "view" or not o.writes]  # a view is read by its users
    wanted = {alias(t) for o in users for t in o.reads}
    inside = {alias(t) for o in group for t in o.reads}
    reads: dict[str, float] = {}
    writes: dict[str, float] = {}
    flops = 0.0
    for o in group:
        for t in o.reads:
            if alias(t) not in made:
                size = read[t] if t in read else _bytes(t, sizes)
                reads[alias(t)] = max(reads.get(alias(t), 0.0), size)
        for t in o.writes:
            if alias(t) in wanted or alias(t) not in inside:
                writes[alias(t)] = _bytes(t, sizes)
        flops += ix.value(o.flops, dict(sizes))
    moved = sum(reads.values()) + sum(writes.values())
    dots = [o for o in group if o.kind == "contraction"]
    rate = profile.dot_rate(dots[0].reads[0].dtype) if dots else profile.scalar_per_s
    return _whole(moved, flops, rate, profile)


def _whole(moved: float, flops: float, rate: float, profile: Profile) -> Prediction:
    memory = moved / (profile.dram_bytes_per_s * profile.dram_fraction)
    compute = flops / rate
    seconds = profile.launch_s + max(memory, compute)
    bound = "dram" if memory >= compute else "compute"
    return Prediction(seconds * 1e6, 1, moved, moved, flops, bound)


def _roofline(
    program: Program, read: Mapping[Tensor, float], sizes: Sizes, profile: Profile
) -> Prediction:
    moved = sum(read.values()) + sum(_bytes(t, sizes) for t in program.outputs)
    flops = float(sum(ix.value(o.flops, dict(sizes)) for o in program.source_ops))
    dots = [o for o in program.source_ops if o.kind == "contraction"]
    contraction_flops = float(sum(ix.value(o.flops, dict(sizes)) for o in dots))
    rate = profile.dot_rate(dots[0].reads[0].dtype) if dots else profile.scalar_per_s
    compute = contraction_flops / rate + (flops - contraction_flops) / profile.scalar_per_s
    memory = moved / profile.dram_bytes_per_s
    seconds = profile.launch_s + max(memory, compute)
    return Prediction(
        seconds * 1e6, 1, moved, moved, flops, "dram" if memory >= compute else "compute"
    )


def _read(program: Program, sizes: Sizes) -> dict[Tensor, float]:
    """Bytes of inputs that are read: of a table, no more rows than there are indices."""
    elements = dict.fromkeys((t.name for t in program.inputs), 0.0)
    for e in toposort(*(s.value for s in program.stores)):
        if e.op == "load" and e.attr.name in elements:
            elements[e.attr.name] += prod(ix.value(a.extent, dict(sizes)) for a in e.free)
    return {
        t: min(_bytes(t, sizes), elements[t.name] * DTYPES[t.dtype].bytes) for t in program.inputs
    }


def _empty() -> Prediction:
    return Prediction(0.0, 0, 0.0, 0.0, 0.0, "none")
