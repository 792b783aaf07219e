"""The numeric gate's criterion, on numpy arrays.

A row of the output is its last axis. In each row the kernel's error against float64 may not exceed

    max(2 * eager's own error in the row, 1 ulp of the output's type at its largest |reference|)

where eager's error is what it is found to be, or what emulation of its rounding gives, or, where no
rounding can decide a comparison, that with every result off by up to one ulp: terms that cancel in
eager by luck leave a rounding error elsewhere.

Rows with fewer than `SHORT` finite elements are judged with their neighbours, eager's errors
counted in ulps: a few elements of eager may all be right by luck. Where the reference is NaN or
infinite the kernel must be the same, and where it only overflows the output's type, not finite;
unless eager itself is otherwise: there nothing is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.evaluate import Array

FACTOR = 2.0
SHORT = 256
LARGEST = {"f16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127, "f32": (2 - 2.0**-23) * 2.0**127}
LEAST_EXPONENT = {"f16": -14, "bf16": -126, "f32": -126, "f64": -1022}


@dataclass(frozen=True)
class Judgement:
    """`ratio`: the worst error over what is allowed (inf for a wrong NaN); at most 1 passes.
    `at`: where that is, None where nothing was compared. `compared`: how many elements were.
    `error`, `own`: the largest error and the largest of eager's, in ulps of their rows."""

    ratio: float
    at: tuple[int, ...] | None
    compared: int
    error: float = 0.0
    own: float = 0.0


def pooled(draws: Sequence[Judgement]) -> float:
    """The worst error over what is allowed where draws of one kind of input are one row.

    Errors of a row have causes in common (a rounded score moves all of a row), so that in a single
    draw eager may be right by luck.
    """
    worst = max(j.error for j in draws) / max(1.0, FACTOR * max(j.own for j in draws))
    return worst if all(np.isfinite(j.ratio) for j in draws) else float("inf")


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
    """Compare arrays of one shape, `got` where `mask` holds (None: everywhere).

    What is allowed in a row follows from all of its elements at hand.
    """
    shape = got.shape
    width = shape[-1] if shape else 1
    g, w, e = (a.astype(np.float64).reshape(-1, max(width, 1)) for a in (got, want, eager))
    chosen = np.ones(g.shape, bool) if mask is None else mask.reshape(g.shape)
    if not chosen.any():
        return Judgement(0.0, None, 0)
    with np.errstate(all="ignore"):
        ratio, error, own = _ratios(g, w, e, dtype)
    ratio, error = np.where(chosen, ratio, 0.0), np.where(chosen, error, 0.0)
    at = np.unravel_index(int(np.argmax(ratio)), shape)
    where = tuple(int(i) for i in at)
    return Judgement(float(ratio.max()), where, int(chosen.sum()), float(error.max()), own)


def _ratios(got: Array, want: Array, eager: Array, dtype: str) -> tuple[Array, Array, float]:
    """Errors over what is allowed, errors in ulps of their rows, and eager's largest in these."""
    expected = stored(want, dtype)
    asked = _alike(stored(eager, dtype), expected)
    plain = asked & np.isfinite(expected)
    unit, most = _allowances(want, eager, plain, dtype)
    allowed = np.maximum(FACTOR * most, unit)
    error = np.where(_edge(got, dtype), 0.0, np.abs(got - want))
    # at the edge of the range, rounding decides between the largest value and infinity
    outside, inside = stored(np.abs(want) + allowed, dtype), stored(np.abs(want) - allowed, dtype)
    wrong = ~_alike(got, expected)
    near = np.isinf(got) & (np.sign(got) == np.sign(want)) & np.isinf(outside)
    near |= np.isinf(expected) & np.isfinite(got) & np.isfinite(inside)
    near |= np.isinf(expected) & np.isfinite(want) & np.isnan(got)  # too large: lost either way
    ratio = np.where(error == 0, 0.0, error / allowed)
    ratio = np.where(plain & ~wrong, ratio, np.where(asked & wrong & ~near, np.inf, 0.0))
    step = np.where(unit > 0, unit, 1.0)  # exact types have no ulp: they count whole steps
    units = np.where(plain & ~wrong, error / step, 0.0)
    return np.asarray(ratio), np.asarray(units), float((most / step).max(initial=0.0))


def _edge(got: Array, dtype: str) -> Array:
    return ~np.isfinite(got) if is_float(dtype) else np.zeros(got.shape, bool)


def _allowances(want: Array, eager: Array, plain: Array, dtype: str) -> tuple[Array, Array]:
    """For each row, as columns: 1 ulp at its largest |want|, and eager's largest error.

    Both are taken over its `plain` elements: those that are finite, in eager too.
    """
    unit = ulp(np.max(np.where(plain, np.abs(want), 0.0), axis=1, initial=0.0), dtype)
    most = np.max(np.where(plain, np.abs(eager - want), 0.0), axis=1, initial=0.0)
    if is_float(dtype):
        count = plain.sum(axis=1)
        group = (np.cumsum(count) - count) // SHORT  # rows that share a number share a judgement
        worst: Array = np.zeros(int(group[-1]) + 1 if len(group) else 0)
        np.maximum.at(worst, group, most / unit)
        most = worst[group] * unit
    return unit[:, None], most[:, None]
