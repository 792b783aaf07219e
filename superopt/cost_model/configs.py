"""Tile sizes, warps and stages for a kernel at given sizes, best first by the model."""

from __future__ import annotations

from math import prod

import numpy as np

from superopt.cost_model.features import power_of_two
from superopt.cost_model.model import Costs, KernelModel, Prediction, Space
from superopt.mugraph.expr import Axis
from superopt.mugraph.program import Config

LARGEST_TILE = 16384
MOST_CONFIGS = 20_000  # of one kernel, predicted at once; options are thinned beyond
KEPT = 24
INDIFFERENT = 1.1  # the model cannot tell times apart below this ratio: how seldom an accumulator
# is rounded decides, then bytes * flops

Ranked = list[tuple[Config, Prediction]]


def _options(model: KernelModel, a: Axis) -> list[int]:
    dotted = any(a in f.dot_axes for f in model.parts)
    looped = any(f.roles.get(a) == "loop" for f in model.parts)
    top = _longest(model, a)
    if dotted:
        sizes = (32, 64, 128, 256) if looped else (16, 32, 64, 128, 256)
        return [t for t in sizes if t <= max(top, sizes[0])]
    least = min(top, _least_beside(model, a)) if looped else 1
    return [t for t in (1 << n for n in range(15)) if least <= t <= min(top, LARGEST_TILE)]


def _least_beside(model: KernelModel, a: Axis) -> int:
    """The smallest tile worth a try of a looped axis: small where it lies beside others."""
    beside = {
        other
        for f in model.parts
        for free in ({x.free for x in f.accesses} | {w.free for w in f.work})
        if a in free
        for other in free
        if other != a and f.roles.get(other) in ("whole", "loop")
    }
    if not beside:
        return 256
    looped = {o for o in beside for f in model.parts if f.roles.get(o) == "loop"}
    held = prod(_longest(model, o) for o in beside - looped)
    return max(1, min(16, LARGEST_TILE // held))


def _longest(model: KernelModel, a: Axis) -> int:
    """The length of an axis, up to a power of two."""
    return power_of_two(max(e[a] for e in model.extents if a in e))


def _spaces(model: KernelModel, axes: list[Axis]) -> list[list[int]]:
    spaces = [_options(model, a) for a in axes]
    dotted = any(f.dots for f in model.parts)
    piped = any(f.dots and f.passes for f in model.parts)
    spaces.append([4, 8] if dotted else [4, 8, 16, 2])
    spaces.append([4, 3, 2] if piped else [2])
    while prod(map(len, spaces)) > MOST_CONFIGS:
        longest = max(range(len(spaces)), key=lambda n: len(spaces[n]))
        spaces[longest] = spaces[longest][::-2][::-1]  # every other, the largest kept
    return spaces


def size_of_space(model: KernelModel) -> int:
    """How many configurations `ranked` predicts."""
    return prod(map(len, _spaces(model, model.axes())))


def tile_work(config: Config) -> float:
    """Elements of a tile on all of its axes, a warp: what a thread is given to do."""
    return prod(size for _, size in config.tiles) / config.warps


def ranked(model: KernelModel, most: float = float("inf"), kept: int = KEPT) -> Ranked:
    """The best configurations that fit, fastest predicted first; of equals, least work first.

    `most`: of `tile_work`; `kept`: how many, at most.
    """
    axes = model.axes()
    spaces = _spaces(model, axes)
    columns = [c.ravel() for c in np.meshgrid(*map(np.asarray, spaces), indexing="ij")]
    light = np.prod(columns[:-2], axis=0, dtype=np.float64) / columns[-2] <= most
    if not light.any():
        return []
    columns = [c[light] for c in columns]
    numbers = [c.astype(np.float64) for c in columns]
    space = Space(
        {a.name: n for a, n in zip(axes, numbers, strict=False)}, numbers[-2], numbers[-1]
    )
    costs = model.costs(space)
    result = []
    for n in _order(costs, len(columns[0]))[:kept]:
        tiles = tuple(sorted((a.name, int(c[n])) for a, c in zip(axes, columns, strict=False)))
        config = Config(tiles, int(columns[-2][n]), int(columns[-1][n]))
        result.append((config, model.prediction(costs, n)))
    return result


def _order(costs: Costs, size: int) -> list[int]:
    fits = np.flatnonzero(np.broadcast_to(costs.fits, (size,)))
    if not len(fits):
        return []
    seconds = np.broadcast_to(costs.seconds, (size,))[fits]
    work = np.broadcast_to(costs.moved * np.maximum(costs.flops, 1), (size,))[fits]
    turns = np.broadcast_to(costs.turns, (size,))[fits]
    close = seconds <= seconds.min() * INDIFFERENT
    work = np.where(close, np.round(np.log(np.maximum(work, 1.0)) / np.log(INDIFFERENT)), 0.0)
    keys = (fits, np.round(seconds, 12), work, np.where(close, turns, 0.0), ~close)
    return [int(fits[n]) for n in np.lexsort(keys)]  # the last key is the first to decide
