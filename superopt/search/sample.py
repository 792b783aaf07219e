"""Terms at a few index values of a looped axis, a part of them at a time, as a loop meets them.

Worlds beyond the ordinary ones hold what breaks careless loops: infinities in some places or in
all, NaN, ties, huge values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import MARKERS, Axis, Expr
from superopt.search.fingerprint import Array, Contents, Fingerprints, Floats, _seed

# where axes are sampled, the same places on all: what a band around a diagonal lets through is met
PLACES = (0.11, 0.34, 0.73)
NEAR = ((1, -9), (1, -4), (1, -1), (1, 0), (2, -3), (2, -1), (2, 0), (2, 1))  # of the looped axis
NOMINAL = 4096  # extents that are not known are about that
ORDINARY = 12  # worlds
Special = Callable[[Array, Array], Array]
SPECIAL: tuple[Special, ...] = (
    lambda v, chance: np.round(v * 2) / 2,  # ties
    lambda v, chance: np.round(v),
    lambda v, chance: np.clip(np.round(4 * v), -1, 1),  # sums are what some values are
    lambda v, chance: np.maximum(v, 0),  # zero until something is larger
    lambda v, chance: np.minimum(v, 0),
    lambda v, chance: np.where(chance < 0.4, -np.inf, v),
    lambda v, chance: np.where(chance < 0.7, -np.inf, v),
    lambda v, chance: np.full_like(v, -np.inf),
    lambda v, chance: np.where(chance < 0.1, np.inf, v),
    lambda v, chance: np.full_like(v, np.inf),
    lambda v, chance: np.where(chance < 0.1, np.nan, v),
    lambda v, chance: np.zeros_like(v),
    lambda v, chance: v * 3e3,
    lambda v, chance: v * 3e3 - 1e4,
)
BITS = 3  # of tensors' numbers: what is special in some tensors only tells these apart
ONLY = [(special, bit, value) for special in SPECIAL for bit in range(BITS) for value in (0, 1)]
WORLDS = ORDINARY + len(SPECIAL) + len(ONLY)


def _ordinary(name: str) -> Floats:
    return Floats(np.resize([1.0, 3.0, 1.0, 0.3], WORLDS), np.zeros(WORLDS))


def _places(extent: int) -> Array:
    return np.asarray([int(p * extent) for p in PLACES])


class Sample(Fingerprints):
    """Terms where axis k takes some of its sampled indices, by their numbers `chosen`.

    `light`: the worlds, in turn, in which those are all the indices of k that there are.
    """

    def __init__(
        self,
        k: Axis,
        chosen: tuple[int, ...] | None = None,
        precision: type[np.floating[Any]] = np.float64,
        worlds: int = WORLDS,
        contents: Contents = _ordinary,
        dims: dict[Axis, int] | None = None,
        seed: int = 0,
        light: tuple[bool, ...] = (False,),
    ) -> None:
        super().__init__(seed, precision, worlds, contents)
        self.k, self.chosen = k, chosen
        self.light = light
        self.lit = np.resize(light, worlds)
        self.hostile = contents is _ordinary  # else the worlds are the caller's
        if dims is not None:
            self.dims = dims
        self.parent: Sample | None = None
        self.plain: dict[Expr, bool] = {}
        self.numbers: dict[str, int] = {}  # of tensors, in the order met

    def part(self, chosen: tuple[int, ...] | None, known: Mapping[Expr, Array]) -> Sample:
        """The same worlds at some indices of k, where the values of some nodes are given."""
        kept = self.worlds, self.contents, self.dims, self.seed, self.light
        other = Sample(self.k, chosen, self.precision, *kept)
        other.values.update(known)
        other.parent = self
        return other

    def _plain(self, root: Expr) -> bool:
        """Whether a value at an index of k does not depend on what other indices there are."""
        if root not in self.plain:
            self.plain[root] = (
                root.op not in (*MARKERS, "online")
                and not (root.op == "reduce" and self.k in root.attr.axes)
                and all(map(self._plain, root.args))
            )
        return self.plain[root]

    def _node(self, node: Expr) -> Array:
        if node.op == "sym":
            return np.asarray(NOMINAL + _seed("sym", node.attr.name) % 97)
        if self.parent is None or not self.parent._plain(node):
            return super()._node(node)
        v = np.asarray(self.parent.value(node))
        position = v.ndim - 1 - self._dim(self.k)
        if self.chosen is None or self.k not in node.free or position < 0 or v.shape[position] == 1:
            return v
        return np.take(v, self.chosen, axis=position)

    def extent(self, a: Axis) -> int:
        return int(self.value(a.extent))

    def all_points(self) -> Array:
        extent = self.extent(self.k)
        if extent <= 2 * len(NEAR):
            return np.arange(min(extent, len(NEAR)))
        return np.asarray([int(PLACES[n] * extent) + near for n, near in NEAR])

    def points(self, a: Axis) -> Array:
        if a != self.k:
            extent = self.extent(a)
            return np.arange(extent) if extent <= len(PLACES) + 1 else _places(extent)
        every = self.all_points()
        return every if self.chosen is None else every[list(self.chosen)]

    def weight(self, a: Axis) -> Any:
        if a != self.k:
            return super().weight(a)
        weight = self.extent(a) / len(self.all_points())
        return np.where(self.lit, 1.0, weight) if any(self.light) else weight

    def _load(self, node: Expr) -> Array:
        v = np.asarray(super()._load(node))
        if DTYPES[node.attr.dtype].kind != "float" or not self.hostile:
            return v
        v = np.broadcast_to(v, np.broadcast_shapes(v.shape, (self.worlds,))).copy()
        guard = np.broadcast_to(self.values[node.args[-1]].astype(bool), v.shape)
        chance = np.abs(v * 9973.0) % 1.0
        with np.errstate(all="ignore"):
            for n, special in self._special(node.attr.name):
                changed = special(v[..., n], chance[..., n])
                v[..., n] = np.where(guard[..., n], changed, v[..., n])
        return v

    def _integers(self, state: Array, node: Expr) -> Array:
        if node.attr.bounds is None:
            return super()._integers(state, node)
        low, high = (int(self.value(e)) for e in node.attr.bounds)
        return np.asarray(low + (np.asarray(PLACES)[state % 3] * (high - low)).astype(int))

    def _special(self, name: str) -> Iterator[tuple[int, Special]]:
        """The worlds in which a tensor's values are special, and how."""
        number = self.numbers.setdefault(name, len(self.numbers))
        yield from enumerate(SPECIAL, start=ORDINARY)
        for n, (special, bit, value) in enumerate(ONLY, start=ORDINARY + len(SPECIAL)):
            if number >> bit & 1 == value:
                yield n, special

    def rows(self, *arrays: Array) -> list[Array]:
        """Arrays over all axes as (rows, indices of k); of one column where k does not matter."""
        joint = np.broadcast_shapes(*(np.shape(a) for a in arrays))
        position = len(joint) - 1 - self._dim(self.k)
        result = []
        for a in arrays:
            full = np.broadcast_to(np.asarray(a, np.float64), joint)
            if position >= 0:
                full = np.moveaxis(full, position, -1)
            else:
                full = full[..., None]
            result.append(full.reshape(-1, full.shape[-1]))
        return result
