"""Extremes of what grows with a value whose own extreme the program has.

    max[k] exp(x[k] - m) / s                           exp(max[k] x[k] - m) / s
    exp(x[k] - m) / s == max[j] exp(x[j] - m) / s      x[k] == max[j] x[j]

where m and s do not vary along k and s is positive: a reduction less, and comparisons that no
rounding blurs. Over the reals, where both sides are defined; m is finite: assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from superopt.mugraph.dtypes import accumulator, is_float
from superopt.mugraph.expr import Axis, Expr, Reduction, find, make, op, rebuild, rewrite
from superopt.mugraph.ops import OPS
from superopt.mugraph.program import Store


def share_extremes(stores: Sequence[Store]) -> list[Store]:
    """Stores whose extremes are computed from others that the program has, where they can be."""
    known = {r for s in stores for r in find(s.value, "reduce")}
    instead: dict[Expr, tuple[Expr, Expr, Expr]] = {}  # f(max x): f(x), x, max x

    def change(node: Expr) -> Expr | None:
        if node.op == "reduce" and node.attr.monoid in ("max", "min"):
            body, spec = node.args[0], Reduction(node.attr.monoid, node.attr.axes, None)
            axes = frozenset(spec.axes)
            for inner in _grows_with(body, axes):
                extreme = make("reduce", (inner,), spec, inner.dtype)
                if extreme in known:
                    value = _at(body, inner, extreme, axes)
                    instead[value] = body, inner, extreme
                    return value
        if node.op == "eq":
            for value, other in (node.args, node.args[::-1]):
                if value in instead and instead[value][0] is other:
                    return op("eq", *instead[value][1:])
        return None

    return [replace(s, value=rewrite(s.value, change)) for s in stores]


def _grows_with(e: Expr, axes: frozenset[Axis]) -> Iterator[Expr]:
    """Values, the nearest first, with which one grows along axes, strictly."""
    while True:
        varying = [a for a in e.args if a.free & axes]
        if len(varying) != 1 or not is_float(varying[0].dtype):
            return
        if not _is_increasing(e, varying[0]):
            return
        e = varying[0]
        yield e


def _is_increasing(e: Expr, x: Expr) -> bool:
    """Whether an operator's result grows with one of its operands, the others left as they are."""
    others = [a for a in e.args if a is not x]
    match e.op:
        case "cast":
            return accumulator(x.dtype) == e.dtype
        case "add":
            return True
        case "sub":
            return e.args[0] is x
        case "mul":
            return _is_positive(others[0])
        case "div":
            return e.args[0] is x and _is_positive(others[0])
    return e.op in OPS and OPS[e.op].increasing


def _at(e: Expr, inner: Expr, value: Expr, axes: frozenset[Axis]) -> Expr:
    """An expression with a value in place of the one with which it grows along axes."""
    if e is inner:
        return value
    return rebuild(e, tuple(_at(a, inner, value, axes) if a.free & axes else a for a in e.args))


def _is_positive(e: Expr) -> bool:
    """Whether a value is, wherever it is defined and no sum of it is empty."""
    match e.op:
        case "const":
            return bool(e.attr > 0)
        case "exp" | "exp2":
            return True
        case "add" | "mul" | "div" | "sqrt" | "rsqrt" | "cast":
            return is_float(e.dtype) and all(map(_is_positive, e.args))
        case "reduce":
            return is_float(e.dtype) and _is_positive(e.args[0])
    return False
