"""Fingerprints: what makes two terms observationally equal, without looking at real extents.

Every axis, whatever its extent, is sampled at a few index values; a load is a pseudo-random
function of
its tensor and indices, in many worlds side by side; a reduction runs over the sampled values only.
What holds of terms for all
extents holds of their samples, so equal terms have equal fingerprints; different ones differ with
high probability (float64, rounded to 9 digits). Nothing is trusted on this evidence alone: the
kernel
that is kept is checked against the program at real extents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Axis, Expr
from superopt.mugraph.ops import MONOIDS, OPS

POINTS = 5  # index values an axis is sampled at: the first, the last, both sides of a comparison,
OWN = 3  # and one of its own; the others are the same for all, so that equal indices are met
SMALL = 3  # of the smallest numbers that an integer takes
TRUTH = (2, 4, 2, 0)  # fourths of a world's bools that are true: some masks hide nothing, or all
SCALES = (4.0, 4.0, 60.0, 0.3, 4.0, 0.0, 60.0, 1e-9)  # of a world's floats: far apart, as
# thresholds are; clamps by an epsilon matter where all is zero, or nearly
ONE_SIGNED = 4  # of these, in turn: a row's maximum is hardly ever negative otherwise
CUBED = 3  # the power of uniform numbers: most are small, some are not
WORLDS = 32  # contents of memory: comparisons fall both ways in some of them
MOST_HELD = 1 << 27  # bytes of values, beyond which they are forgotten
Array = np.ndarray[Any, Any]


class Floats(NamedTuple):
    """What a float input holds, a world each: scale * u ** power + offset with u of [-1, 1]."""

    scale: Array
    offset: Array
    power: Array | int = CUBED


Contents = Callable[[str], Floats]  # of a float input, by its name


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


class Fingerprints:
    """Values of terms at sampled axis points; equal keys mean observationally equal terms.

    `precision`: the float type to compute in; at fp32, operands of dots are rounded as the dots
    take them. `compared`: numbers that indices take too.
    """

    def __init__(
        self,
        seed: int = 0,
        precision: type[np.floating[Any]] = np.float64,
        worlds: int = WORLDS,
        contents: Contents | None = None,
        compared: Sequence[int] = (),
    ) -> None:
        self.seed = seed
        self.precision = precision
        self.worlds = worlds
        self.contents = contents or self._ordinary
        self.compared = compared
        self.values: dict[Expr, Array] = {}
        self.dims: dict[Axis, int] = {}  # an axis's dimension from the right, in all arrays
        self._held: list[Expr] = []  # what can be computed again,
        self._bytes = 0  # and takes so much

    def _ordinary(self, name: str) -> Floats:
        """In some worlds all floats are negative, or positive, or all of a tensor."""
        scales, offsets = np.resize(SCALES, self.worlds), np.zeros(self.worlds)
        own = np.arange(ONE_SIGNED, self.worlds, len(SCALES))
        signs = np.random.default_rng(_seed(self.seed, "signs", name)).choice((-1, 1), len(own))
        signs[:2] = (-1, 1)[: len(own)]
        offsets[own] = signs * scales[own]
        return Floats(scales, offsets)

    def points(self, a: Axis) -> Array:
        extent = int(self.value(a.extent))
        if extent <= POINTS + 1:
            return np.arange(extent)
        found = self._shared(extent)
        rng = np.random.default_rng(_seed(self.seed, "axis", a.name))
        found[OWN] = int((OWN + rng.random()) * extent / POINTS)
        return np.union1d(found, [n for n in self.compared if 0 <= n < extent]).astype(np.int64)

    def _shared(self, extent: int) -> Array:
        """0, two neighbours of the second and third fifth, one of the fourth, the last."""
        first, other = np.random.default_rng(_seed(self.seed, "axes")).random(2)
        low, high = int((1 + 2 * first) * extent / POINTS), int((3 + other) * extent / POINTS)
        return np.asarray([0, low, low + 1, high, extent - 1])

    def value(self, root: Expr) -> Array:
        """An array over all axis names known so far; size 1 where the term does not vary."""
        if root in self.values:
            return self.values[root]
        stack = [root]
        with np.errstate(all="ignore"):
            while stack:
                node = stack[-1]
                below = node.args[:1] if node.op == "online" else node.args  # what it equals
                missing = [a for a in below if a not in self.values]
                if node in self.values or not missing:
                    stack.pop()
                if node not in self.values:
                    stack.extend(missing)
                    if not missing:
                        made = self.values[node] = self._node(node)
                        self._held.append(node)
                        self._bytes += made.nbytes
        return self.values[root]

    def trim(self) -> None:
        """Forget what was computed where it is too much; not within `value`."""
        if self._bytes > MOST_HELD:
            for node in self._held:
                del self.values[node]
            self._held.clear()
            self._bytes = 0

    def key(self, root: Expr) -> bytes:
        """Equal for terms of equal value, free axes and kind."""
        v = np.asarray(self.value(root))
        dims = tuple(sorted(a.name for a in root.free))
        if DTYPES[root.dtype].kind == "float":
            v = v.astype(np.float64)
            scale = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(v), 1e-300))) - 8)
            with np.errstate(all="ignore"):
                v = np.where(np.isfinite(v), np.round(v / scale) * scale, v) + 0.0
                v = np.where(np.isnan(v), np.nan, v)  # of one sign
        shape = tuple((n, s) for n, s in enumerate(reversed(v.shape)) if s > 1)
        return (
            repr((dims, shape, DTYPES[root.dtype].kind)).encode()
            + np.ascontiguousarray(v).tobytes()
        )

    def _dim(self, a: Axis) -> int:
        return self.dims.setdefault(a, len(self.dims) + 1)  # the last dimension: worlds

    def _node(self, node: Expr) -> Array:
        match node.op:
            case "const":
                kind = DTYPES[node.dtype].kind
                return np.asarray(node.attr, self.precision if kind == "float" else None)
            case "sym":
                return np.asarray(_seed(self.seed, "sym", node.attr.name) % 9973 + 7)
            case "axis":
                dim = self._dim(node.attr)
                return self.points(node.attr).reshape([-1] + [1] * dim)
            case "load":
                return self._load(node)
            case "cast":
                return self._cast(self.values[node.args[0]], node)
            case "reduce":
                return self._reduce(node)
            case "online":
                return self.values[node.args[0]]
        result = np.asarray(OPS[node.op].numpy(*(self.values[a] for a in node.args)))
        return self._float(result, node.dtype) if DTYPES[node.dtype].kind == "float" else result

    def _float(self, v: Array, dtype: str) -> Array:
        """At working precision a node is rounded to its type, as the program itself rounds it."""
        return _rounded(v, dtype) if self.precision is np.float32 else v.astype(self.precision)

    def _cast(self, v: Array, node: Expr) -> Array:
        kind = DTYPES[node.dtype].kind
        if kind == "float":
            return self._float(np.asarray(v), node.dtype)
        if kind == "bool":
            return np.asarray(v != 0)
        return np.nan_to_num(np.trunc(v), posinf=2.0**40, neginf=-(2.0**40)).astype(np.int64)

    def _load(self, node: Expr) -> Array:
        seed = _seed(self.seed, "tensor", node.attr.name) & 0x7FFFFFFF
        state = np.random.default_rng(seed).integers(0, 1 << 31, self.worlds)
        for e in node.args[:-1]:
            state = (state * 1000003 + self.values[e].astype(np.int64) * 7919 + 12345) & 0x7FFFFFFF
            state = (state ^ (state >> 13)) * 1274126177 & 0x7FFFFFFF
        kind = DTYPES[node.attr.dtype].kind
        v: Array
        if kind == "bool":
            v = (state >> 7) % 4 < np.resize(TRUTH, self.worlds)
        elif kind == "int":
            v = self._integers(state >> 7, node)
        else:
            scale, offset, power = self.contents(node.attr.name)
            v = scale * ((state % 100003) / 50001.5 - 1.0) ** power + offset
            v = _rounded(v, node.dtype).astype(self.precision)
        return np.where(self.values[node.args[-1]].astype(bool), v, np.zeros((), v.dtype))

    def _integers(self, state: Array, node: Expr) -> Array:
        """Small numbers and those at which axes are sampled, in half of the worlds; else all.

        What has no bounds is compared with indices, or is an index: they are as large as axes are.
        """
        low, high = 0, 1 << 12
        if node.attr.bounds is not None:
            low, high = (int(self.value(e)) for e in node.attr.bounds)
        few = np.union1d(low + np.arange(SMALL), [*self._shared(high), *self.compared])
        few = few[(few >= low) & (few < max(high, low + 1))].astype(np.int64)
        large = np.arange(self.worlds) % 2 == 1
        v: Array = np.where(large, low + state % max(high - low, 1), few[state % len(few)])
        return v

    def _product(self, body: Expr, operand: str) -> Array:
        """The body of a dot: a product of operands rounded to their type, which may overflow."""
        factors = body.args if body.op == "mul" else (body,)
        product = np.ones((), np.float32)
        for f in factors:
            product = product * _rounded(self.values[f], operand)
        return product

    def _reduce(self, node: Expr) -> Array:
        v = np.asarray(self.values[node.args[0]])
        if self.precision is np.float32 and node.attr.operand in ("f16", "bf16"):
            v = self._product(node.args[0], node.attr.operand)
        row = MONOIDS[node.attr.monoid]
        for a in node.attr.axes:
            position = v.ndim - 1 - self._dim(a)
            varies = position >= 0 and v.shape[position] > 1
            if varies:
                v = row.numpy.reduce(v, axis=position, keepdims=True)
            times = self.weight(a) * (1 if varies else len(self.points(a)))
            if node.attr.monoid == "sum":  # the samples stand for all: a mean of them is a mean
                v = v * self.precision(times)
            elif node.attr.monoid == "prod" and not varies:
                v = v**times
        return v

    def weight(self, a: Axis) -> float:
        """How many index values each sampled one stands for."""
        extent = float(a.extent.attr if a.extent.op == "const" else self.value(a.extent))
        return extent / len(self.points(a))


def _rounded(v: Array, dtype: str) -> Array:
    """fp32 values as an element type holds them; bf16 keeps the upper half of the bits."""
    with np.errstate(over="ignore"):
        v = np.asarray(v, np.float32)
        if dtype == "f16":
            return v.astype(np.float16).astype(np.float32)
        if dtype == "bf16":
            bits = v.view(np.uint32)
            even = (bits >> 16) & 1
            return ((bits + 0x7FFF + even) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return v


LEAST_ERROR = 2e-6  # below which nothing is refused
TOLERANCE = 4.0  # times the reference's error; the gate, on the kernel itself, is stricter
KINDS = (  # scale, offset, power of data, of weights: ordinary, shifted, large, tiny, all of it
    ((4.0, 0.0, 3), (4.0, 0.0, 3)), ((1.0, 100.0, 3), (1.0, 0.0, 3)),
    ((1.0, 1000.0, 3), (1.0, 0.0, 3)), ((1.0, -1000.0, 3), (1.0, 1.0, 3)),
    ((400.0, 0.0, 3), (1.0, 0.0, 3)), ((1e-4, 0.0, 3), (1.0, 0.0, 3)),
    ((2e4, 0.0, 3), (8.0, 0.0, 3)), ((1.0, 0.0, 3), (8.0, 0.0, 3)),
    ((255.0, 0.0, 9),) * 2,  # the product of two is a number in half precision, as in the gate
)  # fmt: skip
DRAWS = 4  # worlds of each kind: in one of them a term may be right by luck
HOSTILE = tuple(kind for kind in KINDS for _ in range(DRAWS))


class Accuracy:
    """The error of terms at working precision (fp32) on hostile inputs, against float64."""

    def __init__(self, weights: frozenset[str] = frozenset(), seed: int = 0) -> None:
        data, fixed = (np.asarray(rows).T for rows in zip(*HOSTILE, strict=True))

        def contents(name: str) -> Floats:
            return Floats(*(fixed if name in weights else data))

        self.exact = Fingerprints(seed, np.float64, len(HOSTILE), contents)
        self.working = Fingerprints(seed, np.float32, len(HOSTILE), contents)
        self.known: dict[tuple[Expr, Expr], Array] = {}
        self._finite: dict[Expr, int] = {}

    def define(self, loaded: Expr, term: Expr) -> None:
        """A load of a temporary has the value of what is stored there, rounded to its type."""
        if loaded not in self.exact.values:
            self.exact.values[loaded] = self.exact.value(term)
            self.working.values[loaded] = _rounded(self.working.value(term), loaded.dtype)

    def errors(self, term: Expr, reference: Expr) -> Array:
        """A kind of world each: the largest error, relative to the largest value in its world.

        `reference`: an equal term, of which float64 holds what it may not hold of this one.
        """
        key = (term, reference)
        if key not in self.known:
            self.known[key] = relative_errors(self.exact.value(reference), self.working.value(term))
            self.exact.trim()
            self.working.trim()
        return self.known[key]

    def finite(self, term: Expr) -> int:
        """How many of a term's values are numbers in float64."""
        if term not in self._finite:
            self._finite[term] = int(np.isfinite(self.exact.value(term)).sum())
        return self._finite[term]

    def safe(self, terms: Sequence[Expr]) -> list[bool]:
        """Which of some equal terms are in worlds of every kind about as accurate as the best.

        The best of a kind may be another's worst: where no term is that good, the nearest to it.
        """
        reference = max(terms, key=lambda t: (self.finite(t), t.digest))
        errors = np.asarray([self.errors(t, reference) for t in terms])
        bound = np.broadcast_to(allowed(errors.min(axis=0)), errors.shape)
        beyond = np.divide(errors, bound, out=np.zeros_like(errors), where=errors > bound)
        worst_of = beyond.max(axis=1)
        return [bool(b) for b in worst_of <= worst_of.min()]

    def as_good(self, terms: Sequence[Expr], reference: Expr) -> list[bool]:
        """Which terms are in worlds of every kind about as accurate as a reference."""
        return self._within(terms, self.errors(reference, reference), reference)

    def _within(self, terms: Sequence[Expr], errors: Array, reference: Expr) -> list[bool]:
        return [bool(within(self.errors(t, reference), errors).all()) for t in terms]


def relative_errors(want: Array, got: Array) -> Array:
    """A kind of world each: the largest error of `got`, relative to a world's largest value."""
    want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
    shape = np.broadcast_shapes(want.shape, got.shape, (len(HOSTILE),))
    want = np.broadcast_to(want, shape).reshape(-1, len(HOSTILE))
    got = np.broadcast_to(got, shape).reshape(-1, len(HOSTILE))
    fits = np.abs(want) < np.finfo(np.float32).max  # else fp32 cannot hold the value either
    compared = fits & np.isfinite(want)
    with np.errstate(all="ignore"):
        largest = np.where(compared, np.abs(want), 0.0).max(axis=0) + 1e-30
        error = np.where(compared, np.abs(got - want), 0.0) / largest
    error = np.where(compared & ~np.isfinite(got), np.inf, error)
    return np.asarray(error.reshape(-1, len(KINDS), DRAWS).max(axis=(0, 2)))


def worst(errors: Array) -> str:
    """`relative error inf where data are 400 * u + 0, weights 1 * u + 0, |u| <= 1`."""
    kind = int(np.argmax(errors))
    data, weights = (f"{s:g} * u ** {p:g} + {offset:g}" for s, offset, p in KINDS[kind])
    inputs = f"data are {data}, weights {weights}, |u| <= 1"
    return f"relative error {float(errors[kind]):.2g} where {inputs}"


def within(errors: Array, reference: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Where errors are about as small as a reference's, or too small to matter."""
    return np.asarray(errors <= allowed(reference))


def allowed(reference: Array) -> Array:
    """The errors that are about as small as a reference's, or too small to matter."""
    return np.maximum(TOLERANCE * reference, LEAST_ERROR)
