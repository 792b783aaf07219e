"""What a kernel moves and computes, counted from its schedule as functions of tile sizes.

Counts are exact for the µGraph (masked lanes of loads and stores are not requested); tile padding
counts as work for arithmetic, as the machine does it. Tile sizes are numpy arrays, an element a
configuration, so that a whole space of configurations is counted at once. Of a loop the tiles are
counted that its bounds leave, on average over the programs; bounds from data leave all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from superopt.mugraph import index as ix
from superopt.mugraph.bounds import Bounds, loop_bounds
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import BINDERS, Axis, Expr, Tensor, body_of, toposort
from superopt.mugraph.ops import OPS
from superopt.mugraph.program import Branch, Store
from superopt.mugraph.schedule import Accumulate, Compute, Item, Loop, Write, schedule
from superopt.mugraph.threads import MIN_TILE, Dot, core, dot_of, power_of

Sizes = Mapping[str, int]
Numbers = NDArray[np.float64]  # an element a configuration


class Context(tuple[Axis, ...]):
    """The axes looped around something, outermost first; `bounds` of each loop, None for all.

    `place`: which of its branch's loops the innermost is, counted in the order of the program.
    """

    bounds: tuple[Bounds | None, ...] = ()
    place: int = 0

    def inside(self, a: Axis, bounds: Bounds | None, place: int) -> Context:
        inner = Context((*self, a))
        inner.bounds = (*self.bounds, bounds)
        inner.place = place
        return inner


@dataclass(frozen=True)
class Access:
    """A load or store: how many elements of which tensor, inside which loops."""

    tensor: Tensor
    node: Expr | Store
    free: frozenset[Axis]
    context: Context
    is_store: bool


@dataclass(frozen=True)
class Work:
    """Scalar operations, special functions or a dot over the lanes of a tile."""

    amount: float  # instructions a lane (a dot: flops a multiply)
    free: frozenset[Axis]
    context: Context
    dot: Dot | None = None
    chained: bool = False  # a dot of what another dot gave
    special: int = 0  # of which by the special-function unit
    words: int = 1  # registers that a lane's result takes


@dataclass
class Features:
    """All accesses and work of one branch."""

    branch: Branch
    accesses: list[Access] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    casts: list[tuple[float, frozenset[Axis], Context]] = field(default_factory=list)  # slots each
    accumulators: list[tuple[frozenset[Axis], tuple[Axis, ...]]] = field(default_factory=list)
    loops: list[Context] = field(default_factory=list)  # all, in the order of the program
    passes: int = 0  # loops one after another, at the outermost level
    online: bool = False  # whether accumulators use one another in a loop

    @cached_property
    def roles(self) -> dict[Axis, str]:
        return {a: self.branch.role(a) for a in self.branch.axes}

    @cached_property
    def split(self) -> list[Axis]:
        """The axes split over programs."""
        stored = dict.fromkeys(a for s in self.branch.stores for a in s.axes)
        return [a for a in stored if self.roles[a] in ("program", "grid")]

    @cached_property
    def dots(self) -> list[Dot]:
        return [w.dot for w in self.work if w.dot is not None]

    @cached_property
    def dot_axes(self) -> set[Axis]:
        return {a for d in self.dots for a in (d.m, d.n, d.k)}


@lru_cache(maxsize=256)
def features(branch: Branch) -> Features:
    """Walk the branch's schedule once; the result is shared, and not to be changed."""
    out = Features(branch)
    items = schedule(branch)
    _walk(items, Context(), out, set())
    out.passes = sum(isinstance(i, Loop) for i in items)
    return out


def _walk(items: tuple[Item, ...], context: Context, out: Features, fused: set[Expr]) -> None:
    for item in items:  # a dot's product is part of the dot, as a factor is of an exp: find these
        nodes = item.reductions if isinstance(item, Loop) else ()
        power = power_of(item.value) if isinstance(item, Compute) else None
        if isinstance(item, Compute) and power is not None:
            fused.update({core(item.value.args[0])} - {power[0]})
        if isinstance(item, Compute) and item.value.op == "reduce":
            nodes = (item.value,)
        for node in nodes:
            if dot_of(out.branch, node) is not None:
                product = core(body_of(node))
                fused.add(product)
                fused.update(x for x in product.args if x.op == "cast" and core(x).op == "load")
    for item in items:
        if isinstance(item, Loop):
            inner = context.inside(item.axis, loop_bounds(out.branch, item), len(out.loops) + 1)
            out.loops.append(inner)
            dotted = any(dot_of(out.branch, node) is not None for node in item.reductions)
            online = any(node.op == "online" for node in item.reductions)
            out.online |= online
            for node in item.reductions:
                tile = frozenset(
                    a for a in node.free if out.branch.role(a) != "loop" or a in context
                )
                if not dotted and not online:  # it keeps the tile's shape until the loop has ended
                    tile |= frozenset(node.attr.axes)
                out.accumulators.append((tile, inner))
            _walk(item.body, inner, out, fused)
        elif isinstance(item, Accumulate):
            _reduction(item.reduction, context, out)
        elif isinstance(item, Write):
            s = item.store
            out.accesses.append(Access(s.tensor, s, frozenset(s.axes), context, True))
        else:
            _compute(item.value, context, out, fused)


def _compute(node: Expr, context: Context, out: Features, fused: set[Expr]) -> None:
    if node.op == "load":
        out.accesses.append(Access(node.attr, node, node.free, context, False))
    elif node.op in BINDERS:
        _reduction(node, context, out)
    elif node.op == "cast" and node not in fused:
        narrows = DTYPES[node.dtype].bytes < DTYPES[node.args[0].dtype].bytes
        out.casts.append((0.5 if narrows else 1.0, node.free, context))  # two narrow at once
    elif node.op in OPS and node.dtype != "index" and node not in fused:
        row = OPS[node.op]
        words = 2 if DTYPES[node.dtype].bytes == 8 else 1
        if power_of(node) is not None:  # a multiplication, then the unit's own
            one = Work(2, node.free, context, special=1, words=words)
        else:
            one = Work(row.cost, node.free, context, special=row.special, words=words)
        out.work.append(one)


def _reduction(node: Expr, context: Context, out: Features) -> None:
    dot = dot_of(out.branch, node)
    free = body_of(node).free | frozenset(node.attr.axes)
    chained = dot is not None and any(
        x.op in BINDERS and dot_of(out.branch, x) is not None for x in toposort(dot.a, dot.b)
    )
    out.work.append(Work(1.0 if dot is None else 2.0, free, context, dot, chained))


@dataclass(frozen=True)
class Shape:
    """Extents and tiles of a branch's axes at given sizes, for an array of configurations."""

    extent: Extents
    tile: Mapping[Axis, Numbers]
    roles: Mapping[Axis, str]
    visits: dict[Bounds, tuple[Numbers, Numbers]] = field(default_factory=dict)

    def count(self, a: Axis) -> Numbers:
        """How many tiles the axis has."""
        return np.ceil(self.extent[a] / self.tile[a])

    def visited(self, a: Axis, bounds: Bounds | None) -> tuple[Numbers, Numbers]:
        """How many tiles a loop over the axis visits, and elements, on average over programs."""
        if bounds is None:
            return self.count(a), np.full(1, float(self.extent[a]))
        if bounds not in self.visits:
            axes = tuple(
                dict.fromkeys([a, *(k.of for k in bounds.known if isinstance(k.of, Axis))])
            )
            tiles = np.stack(np.broadcast_arrays(*(self.tile[x] for x in axes)), axis=1)
            distinct, place = np.unique(tiles, axis=0, return_inverse=True)
            sizes = tuple(sorted(self.extent.sizes.items()))
            means = [mean_visits(bounds, axes, tuple(map(int, t)), sizes) for t in distinct]
            found = np.array(means)[place.reshape(-1)]
            self.visits[bounds] = found[:, 0], found[:, 1]
        return self.visits[bounds]

    def turns(self, loop: Context) -> Numbers:
        """How often a program goes through the innermost of the loops, on average."""
        total = np.ones(1)
        for a, bounds in zip(loop, loop.bounds, strict=True):
            total = total * self.visited(a, bounds)[0]
        return total


SAMPLES = 1024  # programs that a mean is taken over, where there are more


@lru_cache(maxsize=1 << 16)
def mean_visits(
    bounds: Bounds,
    axes: tuple[Axis, ...],
    tiles: tuple[int, ...],
    sizes: tuple[tuple[str, int], ...],
) -> tuple[float, float]:
    """Tiles and elements that a loop over the first of `axes` visits, on average over the tiles of
    the others that its bounds depend on."""
    extent = {a: ix.value(a.extent, dict(sizes)) for a in axes}
    tile = dict(zip(axes, tiles, strict=True))
    places = [k for k in bounds.known if k.kind == "start" and isinstance(k.of, Axis)]
    most = int(SAMPLES ** (1 / max(len(places), 1)))
    starts = []
    for k in places:
        assert isinstance(k.of, Axis)
        count = max(-(-extent[k.of] // tile[k.of]), 1)
        chosen = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
        starts.append(chosen * tile[k.of])
    grids = np.meshgrid(*starts, indexing="ij") if starts else []
    values = dict(sizes) | {k.name: grid for k, grid in zip(places, grids, strict=True)}
    values |= {k.name: tile[k.of] for k in bounds.known if k.kind == "tile"}  # type: ignore[index]
    r = bounds.range(values, tile[axes[0]], extent[axes[0]])
    visited = np.maximum(np.ceil((r.end - r.begin) / tile[axes[0]]), 0)
    last = np.minimum(r.begin + visited * tile[axes[0]], extent[axes[0]])
    return float(np.mean(visited)), float(np.mean(np.maximum(last - r.begin, 0)))


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


class Extents(dict[Axis, int]):
    """The extents of a branch's axes, and the sizes that they follow from."""

    sizes: Sizes


def extents(f: Features, sizes: Sizes) -> Extents:
    found = Extents({a: ix.value(a.extent, dict(sizes)) for a in f.roles})
    found.sizes = sizes
    return found


def shape(f: Features, extent: Extents, tiles: Mapping[str, Numbers]) -> Shape:
    tile: dict[Axis, Numbers] = {}
    for a, role in f.roles.items():
        if role == "program":
            tile[a] = np.ones(1)
        elif role == "whole":
            whole = max(power_of_two(extent[a]), MIN_TILE if a in f.dot_axes else 1)
            tile[a] = np.full(1, float(whole))
        else:
            tile[a] = tiles[a.name]
    return Shape(extent, tile, f.roles)


def programs(f: Features, s: Shape) -> Numbers:
    total = np.ones(1)
    for a in f.split:
        total = total * s.count(a)
    return total


def elements(f: Features, s: Shape, free: frozenset[Axis], context: Context) -> Numbers:
    """Elements touched by a whole launch: real lanes only."""
    total = np.ones(1)
    for a in f.split:
        total = total * (s.extent[a] if a in free else s.count(a))
    for a in free:
        if s.roles[a] == "whole" or (s.roles[a] == "loop" and a not in context):
            total = total * s.extent[a]
    for a, bounds in zip(context, context.bounds, strict=True):
        tiles, inside = s.visited(a, bounds)
        total = total * (inside if a in free else tiles)
    return total


def lanes(f: Features, s: Shape, free: frozenset[Axis], context: Context) -> Numbers:
    """Lanes computed by a whole launch: tiles are whole, padding included."""
    total = np.ones(1)
    for a in f.split:
        total = total * s.count(a) * (s.tile[a] if a in free else 1)
    for a in free:
        if s.roles[a] == "whole":
            total = total * s.tile[a]
        elif s.roles[a] == "loop" and a not in context:
            total = total * s.count(a) * s.tile[a]
    for a, bounds in zip(context, context.bounds, strict=True):
        total = total * s.visited(a, bounds)[0] * (s.tile[a] if a in free else 1)
    return total


def tile_elements(s: Shape, free: frozenset[Axis]) -> Numbers:
    """Elements of one tile of a value."""
    total = np.ones(1)
    for a in free:
        total = total * s.tile[a]
    return total


def tile_bytes(s: Shape, a: Access) -> Numbers:
    """Bytes of one tile that is loaded or stored."""
    return tile_elements(s, a.free) * bytes_of(a.tensor)


SECTOR = 32  # bytes of a memory transaction


def sector_overhead(a: Access, s: Shape) -> Numbers:
    """Bytes that memory moves for each byte requested: short contiguous runs waste their sectors.

    A run is the tile along the tensor's last dimension, longer where it covers that whole
    dimension, by an axis or a digit of one; of every second element it spans twice as much. A
    little is charged for each run, as addresses are computed by run.
    """
    indices = a.node.indices if isinstance(a.node, Store) else a.node.args[:-1]
    size = float(bytes_of(a.tensor))
    run = span = np.full(1, size)
    reached: dict[Axis, float] = {}  # by the digits of an axis that dimensions hold so far
    for e, extent in zip(reversed(indices), reversed(a.tensor.shape), strict=True):
        digits = [(_digit(m[0], s), c) for m, c in ix.poly(e).items() if len(m) == 1]
        steps = [(d, c) for d, c in digits if d is not None and c > 0]
        least = min((c for _, c in steps), default=0)
        own = [d for d, c in steps if c == least]
        if len(own) != 1 or least < 1 or (least > 1 and run is not span):
            break
        ((x, over, count),) = own
        if over != reached.get(x, 1.0):
            break
        inside = np.minimum(np.maximum(s.tile[x] // over, 1), max(count, 1))
        run, span = run * inside, span * inside * least
        whole = extent.op == "const" and count * least == extent.attr
        if not whole or np.all(inside < count):
            break
        reached[x] = over * count
    moved = np.minimum(np.ceil(span / SECTOR) * SECTOR, run / size * SECTOR)
    return np.asarray(np.maximum(moved, run) / run + 4 / run)


def _digit(e: Expr, s: Shape) -> tuple[Axis, float, float] | None:
    """Of an axis, x // over % count: how far apart its values are, and how many there are."""
    count, over = float("inf"), 1.0
    if e.op == "mod" and e.args[1].op == "const":
        e, count = e.args[0], float(e.args[1].attr)
    if e.op == "floordiv" and e.args[1].op == "const":
        e, over = e.args[0], float(e.args[1].attr)
    if e.op != "axis" or e.attr not in s.roles:
        return None
    return e.attr, over, min(count, float(np.ceil(s.extent[e.attr] / over)))


def at_once(a: Access, most: int) -> int:
    """Bytes that a thread may load in one instruction: of a digit, as many as surely are near."""
    last = a.node.indices[-1:] if isinstance(a.node, Store) else a.node.args[-2:-1]
    for e in last:
        for m, step in ix.poly(e).items():
            if step == 1 and len(m) == 1 and m[0].op == "mod" and m[0].args[1].op == "const":
                count = int(m[0].args[1].attr)
                return min(most, (count & -count) * bytes_of(a.tensor))
    return most


def tensor_elements(t: Tensor, sizes: Sizes) -> float:
    total = 1.0
    for e in t.shape:
        total *= ix.value(e, dict(sizes))
    return total


def bytes_of(t: Tensor) -> int:
    return DTYPES[t.dtype].bytes
