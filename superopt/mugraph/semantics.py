"""The meaning of one node on numpy arrays, in a chosen arithmetic.

The reference evaluator (whole tensors) and the µGraph interpreter (tiles) both apply nodes through
this module, so that they can differ only in where values live, never in what an operator does.
An array's dimensions are an expression's free axes, ordered by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from superopt.errors import IllFormed
from superopt.mugraph.dtypes import DTYPES, accumulator, is_float
from superopt.mugraph.expr import Axis, Expr
from superopt.mugraph.ops import MONOIDS, OPS, PRIME, field_inverse, identity

Array = np.ndarray[Any, Any]
_STORAGE: dict[str, Any] = {
    "float": np.float64,
    "int": np.int64,
    "index": np.int64,
    "bool": np.bool_,
}


class NoFieldMeaning(IllFormed):
    """An operator of the program has no exact meaning over a finite field."""


def field_const(x: float) -> int:
    """The residue of a float, which is a rational number: numerator / denominator mod p."""
    if not np.isfinite(x):
        raise NoFieldMeaning(f"the constant {x} has no meaning over a finite field")
    top, bottom = float(x).as_integer_ratio()
    return int(top * pow(bottom, -1, PRIME) % PRIME)


def own_axes(e: Expr) -> tuple[Axis, ...]:
    """The axes of the dimensions of e's array."""
    return tuple(sorted(e.free, key=lambda a: a.name))


def spread(array: Array, own: Sequence[Axis], axes: Sequence[Axis]) -> Array:
    """The array with a dimension for each of `axes`, of size 1 for those that are not its own."""
    number = {a: n for n, a in enumerate(own)}
    present = [number[a] for a in axes if a in number]
    moved = np.transpose(array, present)
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if a in number else 1 for a in axes])


def rounded(x: Array, dtype: str) -> Array:
    """x, in float64, rounded to the nearest value of a float type (ties to even)."""
    if dtype == "f64":
        return x
    with np.errstate(over="ignore"):
        if dtype == "f16":
            return x.astype(np.float16).astype(np.float64)
        single = np.asarray(x, np.float32)
    if dtype == "bf16":  # the upper half of a float32
        bits = single.view(np.uint32).astype(np.int64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        single = np.where(np.isnan(single), single, bits.astype(np.uint32).view(np.float32))
    return single.astype(np.float64)


def _wrap(x: Array, dtype: str) -> Array:
    """Integers of dtype's width, in two's complement."""
    bits = DTYPES[dtype].bytes * 8
    if bits == 64:
        return x
    if dtype == "u8":
        return x & 255
    return ((x + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))


EXACT = ("neg", "abs", "maximum", "minimum", "where")  # operators that round nothing


@dataclass(frozen=True)
class Arithmetic:
    """float64; or residues mod `PRIME` for floats (`field`), integers and logic staying exact;
    or float64 rounded to each node's own type after every operator (`rounding`).

    `chance`: each float result is off by up to one unit in its last place, at random, which shows
    the error that any order of rounding may have (Parker, Monte Carlo Arithmetic, UCLA CSD-970002,
    1997)."""

    field: bool = False
    rounding: bool = False
    chance: np.random.Generator | None = None

    def storage(self, dtype: str) -> Any:
        """The numpy type that values of `dtype` are held in."""
        return np.int64 if self._residues(dtype) else _STORAGE[DTYPES[dtype].kind]

    def _residues(self, dtype: str) -> bool:
        return self.field and is_float(dtype)

    def held(self, x: Any, dtype: str) -> Array:
        """x in its storage type, rounded where this arithmetic rounds."""
        array = np.asarray(x, self.storage(dtype))
        return rounded(array, dtype) if self.rounding and is_float(dtype) else array

    def constant(self, node: Expr) -> Array:
        """A constant. Rounding keeps it at the type that eager computes in, as torch's scalars."""
        if self._residues(node.dtype):
            return np.asarray(field_const(node.attr), np.int64)
        return self.held(node.attr, accumulator(node.dtype))

    def apply(self, node: Expr, operands: Sequence[Array]) -> Array:
        """A cast or an operator of the table, elementwise."""
        if node.op == "cast":
            result = self._cast(operands[0], node.args[0].dtype, node.dtype)
        elif self._residues(node.args[-1].dtype):
            result = self._field_op(node, operands)
        else:
            result = OPS[node.op].numpy(*operands)
        return self.result(result, node)

    def result(self, x: Any, node: Expr) -> Array:
        """What a node computed, as it is held."""
        if self.chance is not None and is_float(node.dtype) and node.op not in EXACT:
            unit = DTYPES[node.dtype if self.rounding else "f64"].epsilon
            with np.errstate(invalid="ignore"):
                x = x * (1 + unit * self.chance.uniform(-1, 1, np.shape(x)))
        return self.held(x, node.dtype)

    def _field_op(self, node: Expr, operands: Sequence[Array]) -> Any:
        if node.op == "where":
            return np.where(*operands)
        right = node.args[-1]
        if node.op == "pow" and right.op == "const" and float(right.attr).is_integer():
            return _field_power(operands[0], int(right.attr))
        meaning = OPS[node.op].field
        if meaning is None:
            raise NoFieldMeaning(f"operator {node.op} has no exact meaning over a finite field")
        return meaning(*operands)

    def _cast(self, x: Array, source: str, target: str) -> Array:
        to, of = DTYPES[target].kind, DTYPES[source].kind
        if self.field and "float" in (to, of):
            if to == of:
                return x
            if to == "float":
                return x.astype(np.int64) % PRIME
            raise NoFieldMeaning(f"a cast from {source} to {target} has no field meaning")
        if to == "bool":
            return np.asarray(x != 0)
        if to == "int" and of == "float":
            x = np.nan_to_num(np.trunc(x), nan=0.0, posinf=2.0**62, neginf=-(2.0**62))
        return x if to != "int" else _wrap(np.asarray(x, np.int64), target)

    # -- reductions -----------------------------------------------------------------------------

    def neutral(self, node: Expr) -> Array:
        """The identity of a reduce node's monoid."""
        row = MONOIDS[node.attr.monoid]
        if self._residues(node.dtype):
            if row.field is None:
                raise NoFieldMeaning(f"a reduction by {row.name} has no field meaning")
            return np.asarray(int(row.identity), np.int64)
        return np.asarray(identity(row.name, node.dtype), self.storage(node.dtype))

    def reduce(self, node: Expr, body: Array, count: int) -> Array:
        """Reduce the last `count` dimensions of `body` by a reduce node's monoid."""
        neutral = self.neutral(node)
        row = MONOIDS[node.attr.monoid]
        kept = body.shape[: body.ndim - count]
        flat = body.reshape((*kept, int(np.prod(body.shape[body.ndim - count :]))))
        if self._residues(node.dtype):
            assert row.field is not None  # `neutral` has seen to it
            return np.asarray(row.field(flat, flat.ndim - 1))
        if self.rounding and row.name in ("sum", "prod") and accumulator(node.dtype) == "f32":
            flat = flat.astype(np.float32)  # numpy adds pairwise along a contiguous last dimension
        found = row.numpy.reduce(flat, axis=-1, initial=neutral.item())
        return (
            self.result(found, node)
            if row.name in ("sum", "prod")
            else self.held(found, node.dtype)
        )

    def combine(self, node: Expr, a: Array, b: Array) -> Array:
        """Join two partial results of a reduce node."""
        row = OPS[MONOIDS[node.attr.monoid].combine]
        if self._residues(node.dtype):
            assert row.field is not None
            return np.asarray(row.field(a, b))
        return self.held(row.numpy(a, b), node.dtype)


def _field_power(base: Array, exponent: int) -> Array:
    result = np.ones_like(base)
    for _ in range(abs(exponent)):
        result = result * base % PRIME
    return np.asarray(field_inverse(result)) if exponent < 0 else result
