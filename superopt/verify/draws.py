"""Random tensors that are never stored: an element is a function of its index and a seed.

So a (4096, 6144) weight of which a check reads a few columns costs those columns. Elements come
from splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014),
run as a counter-based generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.evaluate import Array
from superopt.mugraph.expr import Symbol, Tensor
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.ops import PRIME

BLOCK = 1 << 16  # elements: what is computed on the way to them stays in a cache
PRIMES = (2, 3, 5, 7, 11, 13, 17, 23, 29, 37, 47, 61)


def splitmix(counter: Array, seed: int) -> Array:
    """64 random bits for each counter."""
    z = counter.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def seed_of(*parts: object) -> int:
    """A 64-bit seed, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def uniform(bits: Array) -> Array:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(bits: Array) -> Array:
    """Close to normal, mean 0 and deviation 1: the sum of four 16-bit uniforms (Irwin-Hall)."""
    total = sum(
        ((bits >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.float64) for s in (0, 16, 32, 48)
    )
    return np.asarray((total / 65536.0 - 2.0) * 3.0**0.5)


def positive(bits: Array) -> Array:
    return 0.5 + uniform(bits)


def negative(bits: Array) -> Array:
    return -positive(bits)


def few(bits: Array) -> Array:
    """Whole numbers from -2 to 2: zeros and ties."""
    return (bits % np.uint64(5)).astype(np.float64) - 2.0


def residue(bits: Array) -> Array:
    return (bits % np.uint64(PRIME)).astype(np.int64)


class Indexed:
    """An array given by a function of its indices: as much of one as the evaluator needs."""

    def __init__(
        self, shape: Sequence[int], dtype: Any, element: Callable[[tuple[Array, ...]], Array]
    ) -> None:
        self.shape, self.dtype, self.element = tuple(shape), np.dtype(dtype), element
        self.size = int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, indices: tuple[Array, ...]) -> Array:
        return self.element(indices)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        whole = self.element(tuple(np.ix_(*(np.arange(n) for n in self.shape))))
        return np.asarray(whole, dtype or self.dtype)


def drawn(shape: Sequence[int], dtype: Any, seed: int, make: Callable[[Array], Array]) -> Any:
    """A random array whose elements are `make(bits)`, made some thousands at a time."""

    def some(indices: Sequence[Array]) -> Array:
        flat: Any = np.zeros((), np.int64)
        for i, n in zip(indices, shape, strict=True):
            flat = flat * n + np.asarray(i, np.int64)
        with np.errstate(over="ignore"):
            return np.asarray(make(splitmix(flat, seed)), dtype)

    def element(indices: Sequence[Array]) -> Array:
        wanted = np.broadcast_shapes(*map(np.shape, indices))
        if prod(wanted) <= BLOCK:
            return some(indices)
        made = np.empty(wanted, dtype)
        whole = [
            np.broadcast_to(i, (*wanted[:1], *np.shape(i)[1:])) if np.ndim(i) == len(wanted) else i
            for i in indices
        ]
        rows = BLOCK // prod(wanted[1:])
        for n in range(0, wanted[0], max(1, rows)):
            own = slice(n, n + rows) if rows else n
            made[own] = element([i[own] if np.ndim(i) == len(wanted) else i for i in whole])
        return made

    lazy = Indexed(shape, dtype, element)
    return lazy if shape else np.asarray(lazy)


def integers(tensor: Tensor, sizes: Mapping[str, int]) -> Callable[[Array], Array]:
    """Values within the tensor's declared bounds; without them, small and not negative."""
    low, high = 0, 4
    if tensor.bounds is not None:
        low, high = (extent_value(e, dict(sizes)) for e in tensor.bounds)
    return lambda bits: low + (bits % np.uint64(max(high - low, 1))).astype(np.int64)


def draw(
    tensor: Tensor, sizes: Mapping[str, int], seed: int, floats: Callable[[Array], Array]
) -> Any:
    """A random value of an input; `floats` makes the elements of a float tensor from bits."""
    shape = [extent_value(e, dict(sizes)) for e in tensor.shape]
    key = seed_of(seed, tensor.name)
    match DTYPES[tensor.dtype].kind:
        case "float":
            return drawn(shape, np.int64 if floats is residue else np.float64, key, floats)
        case "bool":
            return drawn(shape, np.bool_, key, lambda bits: (bits & np.uint64(1)).astype(bool))
    return drawn(shape, np.int64, key, integers(tensor, sizes))


def sample_sizes(symbols: Sequence[Symbol], zero: bool = True) -> Iterator[dict[str, int]]:
    """Small sizes: the least, 1, primes, an exact tile multiple and one past it.

    Symbols differ. Values outside a range move to its nearest end. Without symbols: one, the empty.
    """
    rows = (1, 7, 17, 64, 65) if symbols else (1,)
    seen = []
    least = {s.name: s.low for s in symbols}
    if zero and 0 in least.values():
        seen.append(least)
        yield least
    for n, size in enumerate(rows):
        sizes = {}
        for m, s in enumerate(symbols):
            value = size if m == 0 else PRIMES[(n + 3 * m) % 6] if n % 2 else rows[(n + m) % 5]
            sizes[s.name] = min(max(value, s.low, 1), s.high)
        if sizes not in seen:
            seen.append(sizes)
            yield sizes
