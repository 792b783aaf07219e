"""The numeric gate's criterion, on numpy arrays.

A row of the output is its last axis. In each row the kernel's error against float64 may not exceed

    max(2 * eager's own error in the row, 1 ulp of the output's type at its largest |reference|)

Rows shorter than `SHORT` are judged with their neighbours, errors counted in ulps: a single element
of eager may be right by luck. Where the reference is NaN or overflows the output's type the kernel
must agree, unless eager itself does not: there nothing is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.evaluate import Array

FACTOR = 2.0
SHORT = 32
LARGEST = {"f16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127, "f32": (2 - 2.0**-23) * 2.0**127}
LEAST_EXPONENT = {"f16": -14, "bf16": -126, "f32": -126, "f64": -1022}


@dataclass(frozen=True)
class Judgement:
    """`ratio`: the worst error over what is allowed (inf for a wrong NaN); at most 1 passes.
    `at`: where that is, None where nothing was compared. `compared`: how many elements were."""

    ratio: float
    at: tuple[int, ...] | None
    compared: int


def largest(dtype: str) -> float:
    return LARGEST.get(dtype, float(np.finfo(np.float64).max))


def ulp(x: Array, dtype: str) -> Array:
    """The distance between neighbouring values of a float type at |x|; 0 for exact types.

    >>> ulp(np.array([1.0, 3.0, 0.0]), "f16")
    array([9.76562500e-04, 1.95312500e-03, 5.96046448e-08])
    """
    if not is_float(dtype):
        return np.zeros_like(x)
    least = LEAST_EXPONENT[dtype]
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.minimum(np.abs(x), largest(dtype))))
    return np.asarray(DTYPES[dtype].epsilon * 2.0 ** np.maximum(exponent, least))


def stored(x: Array, dtype: str) -> Array:
    """What becomes of values beyond the type's range: infinities."""
    if not is_float(dtype) or dtype == "f64":
        return x
    edge = largest(dtype) * (1 + DTYPES[dtype].epsilon / 4)
    return np.where(np.abs(x) >= edge, np.copysign(np.inf, x), x)


def _alike(a: Array, b: Array) -> Array:
    """Both finite, both NaN, or the same infinity."""
    finite = np.isfinite(a) & np.isfinite(b)
    return np.asarray(finite | (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & (a == b)))


def judge(
    got: Array, want: Array, eager: Array, dtype: str, mask: Array | None = None
) -> Judgement:
    """Compare arrays of one shape; `mask` chooses the elements (None: all)."""
    shape = got.shape
    width = shape[-1] if shape else 1
    g, w, e = (a.astype(np.float64).reshape(-1, max(width, 1)) for a in (got, want, eager))
    chosen = np.ones(shape, bool) if mask is None else mask
    with np.errstate(all="ignore"):
        ratio = _ratios(g, w, e, dtype, chosen.reshape(g.shape))
    if not ratio.size or not chosen.any():
        return Judgement(0.0, None, 0)
    at = np.unravel_index(int(np.argmax(ratio)), shape)
    worst = float(np.max(ratio))
    return Judgement(worst, tuple(int(i) for i in at), int(chosen.sum()))


def _ratios(got: Array, want: Array, eager: Array, dtype: str, mask: Array) -> Array:
    expected = stored(want, dtype)
    asked = mask & _alike(stored(eager, dtype), expected)
    plain = asked & np.isfinite(expected)
    unit, most = _allowances(np.where(plain, want, 0.0), np.where(plain, eager - want, 0.0), dtype)
    allowed = np.maximum(FACTOR * most, unit)
    error = np.where(_edge(got, dtype), 0.0, np.abs(got - want))
    # at the edge of the range, rounding decides between the largest value and infinity
    inside = np.abs(want) + allowed
    wrong = ~_alike(got, expected)
    near = np.isinf(got) & (np.sign(got) == np.sign(want)) & (stored(inside, dtype) == np.inf)
    near |= (
        np.isinf(expected) & np.isfinite(got) & np.isfinite(stored(np.abs(want) - allowed, dtype))
    )
    ratio = np.where(error == 0, 0.0, error / allowed)
    ratio = np.where(plain & ~wrong, ratio, np.where(asked & wrong & ~near, np.inf, 0.0))
    return np.asarray(ratio)


def _edge(got: Array, dtype: str) -> Array:
    return ~np.isfinite(got) if is_float(dtype) else np.zeros(got.shape, bool)


def _allowances(want: Array, error: Array, dtype: str) -> tuple[Array, Array]:
    """For each row, as columns: 1 ulp at its largest |want|, and eager's largest error."""
    unit = ulp(np.max(np.abs(want), axis=1, initial=0.0), dtype)
    most = np.max(np.abs(error), axis=1, initial=0.0)
    count = -(-SHORT // max(want.shape[1], 1))
    if count > 1 and is_float(dtype):
        relative: Any = most / unit
        for start in range(0, len(relative), count):
            relative[start : start + count] = relative[start : start + count].max()
        most = relative * unit
    return unit[:, None], most[:, None]
