"""A prediction in words: what each resource takes, which one binds, how far from its peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from superopt.cost_model import features as ft
from superopt.cost_model.features import Numbers
from superopt.cost_model.model import Costs, KernelModel, Made, Space
from superopt.mugraph.program import Config


def explain(model: KernelModel, config: Config, made: Made, loop: Mapping[str, int]) -> list[str]:
    """Lines on one kernel's launch: microseconds of each resource, occupancy, the inner loop.

    `made`: what the compiler made of the configuration; `loop`: instructions of a turn of the inner
    loop by kind, or {}. The launch, the busiest resource and what it does not hide add up to the
    predicted time.
    """
    space = Space.of(config)
    costs = model.costs(space, made)
    prediction = model.prediction(costs, 0)
    lines = [f"predicted {prediction.time_us:.1f} us, bound by {prediction.bound}"]
    said = _reasons(model, space, costs)
    for name, seconds in prediction.resources.items():
        if seconds > 0:
            lines.append(f"  {name:<8} {seconds * 1e6:9.2f} us  {said[name]}")
    lines += _occupancy(model, space, made, costs)
    if loop:
        counts = ", ".join(f"{n} {kind}" for kind, n in loop.items() if n)
        lines.append(f"  inner loop, instructions of a turn: {counts}")
    return lines


def _reasons(model: KernelModel, space: Space, costs: Costs) -> dict[str, str]:
    p = model.profile
    at_peak = _dots_at_peak(model, space)
    dram, l2, tensor = (_first(costs.times[name]) for name in ("dram", "l2", "tensor"))
    moved = _first(costs.moved)
    peak = costs.distinct / p.dram_bytes_per_s
    return {
        "launch": f"of which {p.launch_s * 1e6:.1f} us for any launch; first bytes of each pass",
        "dram": f"{_amount(costs.distinct)}B of addresses; {_share(peak, dram)} of the peak",
        "l2": f"{_amount(moved)}B in sectors at {_amount(moved / l2) if l2 else 0}B/s;"
        f" {_share(moved / p.l2_bytes_per_s, l2)} of the peak",
        "tensor": f"dots; {_share(at_peak, tensor)} of the peak",
        "issue": f"instructions of all kinds at {_amount(p.scalar_per_s)} lanes/s",
        "special": f"special functions at {_amount(p.special_per_s)} lanes/s",
        "latency": f"one program's steps one by one; {np.ceil(_first(costs.waves)):.0f} in turn",
        "unhidden": "of the others, not hidden behind the busiest",
    }


def _dots_at_peak(model: KernelModel, space: Space) -> float:
    """Seconds that the dots' real elements take at the tensor cores' peak."""
    total = 0.0
    for f, extents in zip(model.parts, model.extents, strict=True):
        s = ft.shape(f, extents, space.tiles)
        for w in f.work:
            if w.dot is not None:
                flops = _first(ft.elements(f, s, w.free, w.context)) * w.amount
                total += flops / model.profile.dot_rate(w.dot.operand)
    return total


def _occupancy(model: KernelModel, space: Space, made: Made, costs: Costs) -> Iterator[str]:
    registers, shared = float(made.registers), float(made.shared)
    limits = model.occupancy_limits(space.warps, np.full(1, shared), np.full(1, registers))
    least = min(limits, key=lambda name: _first(limits[name]))
    programs, resident = _first(costs.programs), _first(costs.resident)
    p = model.profile
    used = resident * _first(space.warps) / p.warps_per_multiprocessor
    yield (
        f"  {programs:.0f} programs on {p.multiprocessors:.0f} multiprocessors,"
        f" {resident:.0f} at once on each ({least}), {used:.0%} of its warps;"
        f" {_first(costs.waves):.2f} waves"
    )
    yield f"  {made.registers} registers a thread, {made.shared} bytes of shared memory a program"


def _first(x: Numbers) -> float:
    return float(np.ravel(x)[0])


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _amount(x: float) -> str:
    """1.23 G, with a space before the unit's prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:.3g} {prefix}"
    return f"{x:.3g} "
