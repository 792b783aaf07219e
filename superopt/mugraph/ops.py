"""The operator table: one row an operator, with all that the other parts know of it.

Columns: arity; result type; meaning on numpy float64 arrays; meaning over a finite field where
it has an exact one; cost in instructions an element, of which by the special-function unit (counted
in what Triton compiles for sm_90; sin, cos, tan and atan2 are estimated); spelling in Triton;
whether it maps zeros to zero (masked lanes then stay neutral in a sum); whether larger operands
give larger results, rounded ones too (tanh(50) is 1, as tanh(60) is).
Over the field `None` means that no exact meaning exists: a program that uses it cannot claim a
field check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

PRIME = 2**31 - 1  # Mersenne; products of two residues fit in int64


def field_inverse(x: Any) -> Any:
    """x**(p-2) mod p, elementwise; the inverse of 0 is 0 (callers resample where that matters)."""
    result, base, exponent = np.ones_like(x), x % PRIME, PRIME - 2
    while exponent:
        if exponent & 1:
            result = result * base % PRIME
        base = base * base % PRIME
        exponent >>= 1
    return result


def _erf(x: Any) -> Any:
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x) if np.size(x) else np.asarray(x, np.float64)


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _divide(a: Any, b: Any) -> Any:
    return np.true_divide(a, b)


@dataclass(frozen=True)
class Op:
    """A row: a scalar function. `result` is 'float', 'same' or 'bool'."""

    name: str
    arity: int
    result: str
    numpy: Callable[..., Any]
    triton: str
    field: Callable[..., Any] | None = None
    cost: float = 1.0
    special: int = 0  # of these, by the special-function unit
    keeps_zero: bool = False  # f(0, ...) = 0 when every varying operand is 0
    commutative: bool = False
    increasing: bool = False


def _rows() -> list[Op]:
    n, p = np, PRIME
    f1, same, boolean = "float", "same", "bool"
    return [
        # arithmetic
        Op("add", 2, same, n.add, "{0} + {1}", lambda a, b: (a + b) % p, 1, 0, True, True),
        Op("sub", 2, same, n.subtract, "{0} - {1}", lambda a, b: (a - b) % p, 1, 0, True),
        Op("mul", 2, same, n.multiply, "{0} * {1}", lambda a, b: a * b % p, 1, 0, True, True),
        Op("div", 2, f1, _divide, "{0} / {1}", lambda a, b: a * field_inverse(b) % p, 8, 1),
        Op("neg", 1, same, n.negative, "-{0}", lambda a: -a % p, 1, 0, True),
        Op("square", 1, same, n.square, "{0} * {0}", lambda a: a * a % p, 1, 0, True),
        Op("floordiv", 2, same, n.floor_divide, "floor_divide({0}, {1})", cost=53, special=2),
        Op("mod", 2, same, n.mod, "remainder({0}, {1})", cost=28, special=1),
        Op("fmod", 2, same, n.fmod, "fmod({0}, {1})", cost=22, special=1),
        Op("pow", 2, same, n.power, "power({0}, {1})", cost=200, special=2),
        Op("abs", 1, same, n.abs, "tl.abs({0})", keeps_zero=True),
        Op("sign", 1, same, n.sign, "sign({0})", cost=4, keeps_zero=True),
        Op("maximum", 2, same, n.maximum, "maximum({0}, {1})", cost=1, commutative=True),
        Op("minimum", 2, same, n.minimum, "minimum({0}, {1})", cost=1, commutative=True),
        # transcendental
        Op("exp", 1, f1, n.exp, "tl.exp({0})", cost=5, special=1, increasing=True),
        Op("exp2", 1, f1, n.exp2, "tl.exp2({0})", cost=1, special=1, increasing=True),
        Op("expm1", 1, f1, n.expm1, "expm1({0})", cost=18, special=1, keeps_zero=True),
        Op("log", 1, f1, n.log, "tl.log({0})", cost=25),
        Op("log2", 1, f1, n.log2, "tl.log2({0})", cost=27),
        Op("log10", 1, f1, n.log10, "tl.log({0}) * 0.4342944819032518", cost=26),
        Op("log1p", 1, f1, n.log1p, "log1p({0})", cost=50, special=1, keeps_zero=True),
        Op("sqrt", 1, f1, n.sqrt, "tl.sqrt_rn({0})", cost=16, special=1, keeps_zero=True),
        Op("rsqrt", 1, f1, lambda a: 1 / n.sqrt(a), "tl.rsqrt({0})", cost=1, special=1),
        Op("sin", 1, f1, n.sin, "tl.sin({0})", cost=25, keeps_zero=True),
        Op("cos", 1, f1, n.cos, "tl.cos({0})", cost=25),
        Op("tan", 1, f1, n.tan, "tl.sin({0}) / tl.cos({0})", cost=58, special=1),
        Op("asin", 1, f1, n.arcsin, "asin({0})", cost=17, special=1, keeps_zero=True),
        Op("acos", 1, f1, n.arccos, "acos({0})", cost=68, special=5),
        Op("atan", 1, f1, n.arctan, "atan({0})", cost=32, special=2, keeps_zero=True),
        Op("atan2", 2, f1, n.arctan2, "atan2({0}, {1})", cost=40, special=2),
        Op("sinh", 1, f1, n.sinh, "sinh({0})", cost=37, special=3, keeps_zero=True),
        Op("cosh", 1, f1, n.cosh, "cosh({0})", cost=27, special=3),
        Op("tanh", 1, f1, n.tanh, "tanh({0})", cost=18, special=2, keeps_zero=True),
        Op("asinh", 1, f1, n.arcsinh, "asinh({0})", cost=96, special=3, keeps_zero=True),
        Op("acosh", 1, f1, n.arccosh, "acosh({0})", cost=85, special=2),
        Op("atanh", 1, f1, n.arctanh, "atanh({0})", cost=66, special=2, keeps_zero=True),
        Op("erf", 1, f1, _erf, "tl.erf({0})", cost=28, special=1, keeps_zero=True),
        Op("erfc", 1, f1, lambda a: 1 - _erf(a), "1.0 - tl.erf({0})", cost=29, special=1),
        Op("sigmoid", 1, f1, _sigmoid, "tl.sigmoid({0})", cost=12, special=2),
        # rounding
        Op("floor", 1, same, n.floor, "tl.floor({0})", keeps_zero=True),
        Op("ceil", 1, same, n.ceil, "tl.ceil({0})", keeps_zero=True),
        Op("trunc", 1, same, n.trunc, "trunc({0})", cost=3, keeps_zero=True),
        Op("round", 1, same, n.round, "round_even({0})", cost=14, keeps_zero=True),
        # comparison, logic
        Op("lt", 2, boolean, n.less, "{0} < {1}"),
        Op("le", 2, boolean, n.less_equal, "{0} <= {1}"),
        Op("gt", 2, boolean, n.greater, "{0} > {1}"),
        Op("ge", 2, boolean, n.greater_equal, "{0} >= {1}"),
        Op("eq", 2, boolean, n.equal, "{0} == {1}", commutative=True),
        Op("ne", 2, boolean, n.not_equal, "{0} != {1}", commutative=True),
        Op("and", 2, same, n.bitwise_and, "{0} & {1}", keeps_zero=True, commutative=True),
        Op("or", 2, same, n.bitwise_or, "{0} | {1}", keeps_zero=True, commutative=True),
        Op("xor", 2, same, n.bitwise_xor, "{0} ^ {1}", keeps_zero=True, commutative=True),
        Op("not", 1, same, n.invert, "~{0}"),
        Op("shl", 2, same, n.left_shift, "{0} << {1}"),
        Op("shr", 2, same, n.right_shift, "{0} >> {1}"),
        Op("isnan", 1, boolean, n.isnan, "{0} != {0}"),
        Op("isinf", 1, boolean, n.isinf, 'tl.abs({0}) == float("inf")', cost=2),
        Op("where", 3, same, n.where, "tl.where({0}, {1}, {2})"),
    ]


OPS: dict[str, Op] = {row.name: row for row in _rows()}


@dataclass(frozen=True)
class Monoid:
    """A row: an associative, commutative reduction. `identity` is its neutral element (a float)."""

    name: str
    identity: float
    numpy: Any  # a ufunc
    combine: str  # the operator of OPS that joins two partial results
    triton: str
    field: Callable[..., Any] | None = None


def _field_sum(values: Any, axis: Any) -> Any:
    return np.sum(values, axis=axis) % PRIME  # up to 2**32 terms of 31 bits: no overflow


def _field_prod(values: Any, axis: Any) -> Any:
    result = np.moveaxis(values, axis, 0)
    total = np.ones(result.shape[1:], np.int64)
    for row in result:
        total = total * row % PRIME
    return total


MONOIDS: dict[str, Monoid] = {
    row.name: row
    for row in (
        Monoid("sum", 0.0, np.add, "add", "tl.sum({0}, axis={1})", _field_sum),
        Monoid("prod", 1.0, np.multiply, "mul", "tl.reduce({0}, {1}, multiply)", _field_prod),
        Monoid("max", -np.inf, np.maximum, "maximum", "tl.reduce({0}, {1}, maximum)"),
        Monoid("min", np.inf, np.minimum, "minimum", "tl.reduce({0}, {1}, minimum)"),
    )
}


def identity(monoid: str, dtype: str) -> float | int:
    """The neutral element of a monoid in an element type: -inf for a maximum of floats.

    >>> identity("max", "i32"), identity("sum", "f16")
    (-2147483648, 0.0)
    """
    value = MONOIDS[monoid].identity
    if dtype.startswith(("f", "bf")):
        return value
    if np.isinf(value):
        if dtype in ("u8", "bool"):
            return (1 if dtype == "bool" else 255) if value > 0 else 0
        bits = 63 if dtype in ("i64", "index") else int(dtype.strip("i")) - 1
        return (1 << bits) - 1 if value > 0 else -(1 << bits)
    return int(value)
