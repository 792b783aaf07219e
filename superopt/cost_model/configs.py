"""Tile sizes, warps and stages for a kernel at given sizes, best first by the model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import inf, prod

from superopt.cost_model.features import power_of_two
from superopt.cost_model.model import KernelModel, Prediction, axes_of
from superopt.mugraph.expr import Axis
from superopt.mugraph.program import Config

STAGES = (4, 3, 2)  # deepest pipeline first: the first that fits is taken
LARGEST_TILE = 16384
INDIFFERENT = 1.05  # the model cannot tell times apart below this ratio: fewer bytes decide
FULL_SPACE = 400  # tile choices tried one by one; beyond, coordinate descent

Ranked = list[tuple[Config, Prediction]]
Point = tuple[int, ...]


def _options(model: KernelModel, a: Axis) -> list[int]:
    dotted = any(a in f.dot_axes for f in model.parts)
    looped = any(f.roles.get(a) == "loop" for f in model.parts)
    top = power_of_two(max(e[a] for e in model.extents if a in e))
    if dotted:
        sizes = (32, 64, 128) if looped else (16, 32, 64, 128, 256)
        return [t for t in sizes if t <= max(top, sizes[0])]
    least = min(top, 256) if looped else 1
    return [t for t in (1 << n for n in range(15)) if least <= t <= min(top, LARGEST_TILE)]


def ranked(model: KernelModel) -> Ranked:
    """Configurations that fit, fastest predicted first; of equals the one that requests least."""
    axes = axes_of(model)
    names = [a.name for a in axes]
    piped = any(f.dots and f.passes for f in model.parts)
    dotted = any(f.dots for f in model.parts)
    tried: dict[Point, tuple[Config, Prediction] | None] = {}

    def attempt(point: Point) -> float:
        if point not in tried:
            tiles = tuple(sorted(zip(names, point[:-1], strict=True)))
            configs = (Config(tiles, point[-1], st) for st in (STAGES if piped else (2,)))
            fitting = next((c for c in configs if model.fits(c)), None)
            tried[point] = (fitting, model.predict(fitting)) if fitting else None
        found = tried[point]
        return inf if found is None else found[1].time_us

    spaces = [[*_options(model, a)] for a in axes]
    spaces.append([4, 8] if dotted else [4, 8, 16, 2, 1])
    if prod(map(len, spaces)) <= FULL_SPACE:
        for point in product(*spaces):
            attempt(point)
    else:
        for fraction in (0.0, 0.3, 0.5, 0.8):
            _descend(attempt, spaces, tuple(s[int(fraction * (len(s) - 1))] for s in spaces))
    found = [f for f in tried.values() if f is not None]
    best = min((q.time_us for _, q in found), default=0.0)

    def order(item: tuple[Config, Prediction]) -> tuple[object, ...]:
        config, q = item
        close = q.time_us <= best * INDIFFERENT
        return (not close, q.bytes if close else round(q.time_us, 3), round(q.time_us, 3),
                config.warps, config.tiles)  # fmt: skip

    return sorted(found, key=order)


def _descend(score: Callable[[Point], float], spaces: list[list[int]], start: Point) -> None:
    """Improve one coordinate at a time, or two, until nothing improves."""
    best, value = start, score(start)
    improved = True
    while improved:
        improved = False
        for n, m in ((n, m) for n in range(len(spaces)) for m in range(n, len(spaces))):
            here = range(len(spaces[n])), range(len(spaces[m]))
            at_n, at_m = spaces[n].index(best[n]), spaces[m].index(best[m])
            for i, j in product(*here):
                if n != m and (abs(i - at_n) > 1 or abs(j - at_m) > 1):
                    continue  # pairs move to neighbours only; single coordinates anywhere
                point = list(best)
                point[m] = spaces[m][j]
                point[n] = spaces[n][i]
                if (v := score(tuple(point))) < value - 1e-9:
                    best, value, improved = tuple(point), v, True
