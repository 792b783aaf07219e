"""The thread graph: which reductions run on tensor cores, and in what shape; which exps are the
special-function unit's own power of two.

`sum[k] a[i, k] * b[k, j]` is a dot where its operands are tiles of two dimensions (three with a
batch axis). The emitter and the cost model both ask here, so that they agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from superopt.mugraph.dtypes import DTYPES, accumulator, is_float
from superopt.mugraph.expr import BINDERS, Axis, Expr, body_of
from superopt.mugraph.masks import guards
from superopt.mugraph.program import Branch

LOG2_E = 1.4426950408889634
MIN_TILE = 16  # the least extent of a dot's tile along each of its axes


@dataclass(frozen=True)
class Dot:
    """sum[k] a[batch, m, k] * b[batch, k, n], multiplied in element type `operand`."""

    a: Expr
    b: Expr
    m: Axis
    n: Axis
    k: Axis
    batch: Axis | None
    operand: str


def core(e: Expr) -> Expr:
    """The value below casts that do not change the type it is computed in.

    >>> core(cast(cast(x_f16, "f32"), "f16"))         # x_f16
    """
    while e.op == "cast" and _same_accumulator(e.args[0].dtype, e.dtype):
        e = e.args[0]
    return e


def _same_accumulator(a: str, b: str) -> bool:
    return is_float(a) and is_float(b) and accumulator(a) == accumulator(b)


def tile_axes(branch: Branch, e: Expr) -> frozenset[Axis]:
    """The axes along which a value is an array within one program."""
    return frozenset(a for a in e.free if branch.role(a) != "program")


def dot_of(branch: Branch, node: Expr) -> Dot | None:
    """The dot that a reduction is, or None where it is a product and a sum of their own.

    A dot is a float sum over one axis of a product whose factors each have exactly one tile axis
    that the other has not; at most one further axis is shared (the batch). Rows are the axis that
    the branch names first.
    """
    if node.op not in BINDERS or node.attr.monoid != "sum" or len(node.attr.axes) != 1:
        return None
    body, (k,) = core(body_of(node)), node.attr.axes
    if body.op != "mul" or any(accumulator(e.dtype) != "f32" for e in (node, body)):
        return None
    a, b = (core(x) for x in body.args)
    in_a, in_b = tile_axes(branch, a), tile_axes(branch, b)
    shared = (in_a & in_b) - {k}
    if k not in in_a & in_b or len(in_a - in_b) != 1 or len(in_b - in_a) != 1 or len(shared) > 1:
        return None
    (m,), (n,) = in_a - in_b, in_b - in_a
    if branch.axes.index(n) < branch.axes.index(m):
        a, b, m, n = b, a, n, m
    return Dot(a, b, m, n, k, next(iter(shared), None), _operand(node, a, b))


def _operand(node: Expr, a: Expr, b: Expr) -> str:
    """What the program says; of loads in half precision, whose products fp32 holds, theirs."""
    halves = a.op == b.op == "load" and a.dtype == b.dtype and DTYPES[a.dtype].bytes == 2
    wanted = str(node.attr.operand or "f32")
    return a.dtype if halves and wanted == "f32" else wanted


def power_of(e: Expr) -> tuple[Expr, float] | None:
    """z and c of an exp that may be written as 2 ** (c z), of a value less its own maximum.

    The special-function unit's power of two flushes what is below 2 ** -126 to zero: nothing beside
    the largest, which is 1. tl.exp keeps it, for three more instructions.
    """
    if e.op != "exp" or accumulator(e.dtype) != "f32":
        return None
    z, c = multiple(core(e.args[0]))
    if c <= 0 or z.op != "sub":
        return None
    value, most = map(core, z.args)
    if most.op == "where" and guards(most.args[0], most.args[2]):
        most = core(most.args[2])
    (value, scale), (most, same) = multiple(value), multiple(most)
    if most.op == "running":
        most = most.args[0]
    if scale != same or most.op not in BINDERS or most.attr.monoid != "max":
        return None
    body = core(body_of(most))
    of = (body, *map(core, body.args[1:])) if body.op == "where" else (body,)
    return (z, c * LOG2_E) if value in of else None


def multiple(e: Expr) -> tuple[Expr, float]:
    """z and c of c z, for a constant c: 1 where there is none."""
    if e.op in ("mul", "div") and is_float(e.dtype):
        z, c = map(core, e.args)
        if e.op == "mul" and z.op == "const":
            return c, z.attr
        if c.op == "const" and (e.op == "mul" or c.attr):
            return z, c.attr if e.op == "mul" else 1 / c.attr
    return e, 1.0
