"""The lowering table: how each aten operator becomes an indexed expression, one row an operator.

A row is a function `(call, **arguments) -> Value` (or a tuple of them), keyed by the operator's
name without its overload. Tensor arguments arrive as Values, symbolic scalars as Exprs, the rest as
Python objects, by the names of the operator's schema ('self' and 'input' are called x).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from superopt.errors import SpecError
from superopt.mugraph.expr import Expr, cast, const, op
from superopt.mugraph.trace.exact import indexed, widened
from superopt.mugraph.trace.value import Value, axes_of

Scalar = int | float | bool
Operand = Value | Expr | Scalar


@dataclass
class Call:
    """One operator call being lowered: the result's shapes and types, and where the user wrote it.

    A row may set `kind` where it depends on the arguments, and `flops` where it is not a number of
    operations an element.
    """

    name: str
    where: str
    shapes: tuple[tuple[Expr, ...], ...]
    dtypes: tuple[str, ...]
    contiguous: bool  # whether the first tensor argument is
    kind: str = ""
    flops: Expr | None = None

    @property
    def shape(self) -> tuple[Expr, ...]:
        return self.shapes[0]

    @property
    def dtype(self) -> str:
        return self.dtypes[0]

    def refuse(self, why: str) -> SpecError:
        return SpecError(f"{self.where}: {self.name}: {why}")


Row = Callable[..., Any]
RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Lowering:
    """A row. `kind` is view, pointwise, reduction or contraction; `weight` its operations an
    element of the result (pointwise) or of the first tensor argument (reduction)."""

    lower: Row
    kind: str
    weight: int

    def accepts(self, names: list[str]) -> bool:
        parameters = inspect.signature(self.lower).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return True
        return set(names) <= {p.name for p in parameters}


LOWERINGS: dict[str, Lowering] = {}


def lowering(kind: str, *names: str, weight: int = 1) -> Callable[[RowT], RowT]:
    """Register a row under the names of one or more operators."""

    def register(row: RowT) -> RowT:
        for name in names:
            if name in LOWERINGS:
                raise ValueError(f"two rows for {name}")
            LOWERINGS[name] = Lowering(row, kind, weight)
        return row

    return register


def scalar_expr(x: Expr | Scalar, dtype: str) -> Expr:
    return cast(x, dtype) if isinstance(x, Expr) else const(x, dtype)


def common_dtype(*operands: Operand, to_float: bool = False) -> str:
    """The type torch computes in: its promotion of dimensioned, 0-d and Python operands."""
    import torch
    from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND
    from torch._prims_common import elementwise_dtypes

    kind = KIND.INT_TO_FLOAT if to_float else KIND.DEFAULT
    stand_ins: list[Any] = []
    for x in operands:
        if isinstance(x, Value):
            stand_ins.append(torch.empty((1,) * x.rank, dtype=torch_dtype(x.dtype), device="meta"))
        elif isinstance(x, Expr):
            stand_ins.append(1 if x.dtype == "index" else 1.0)
        else:
            stand_ins.append(x)
    return our_dtype(elementwise_dtypes(*stand_ins, type_promotion_kind=kind)[1])


def torch_dtype(name: str) -> Any:
    import torch

    from superopt.mugraph.dtypes import DTYPES

    return getattr(torch, DTYPES[name].torch)


def our_dtype(dtype: Any) -> str:
    """The name of a torch.dtype. Raises SpecError where we have no row for it."""
    from superopt.mugraph.dtypes import DTYPES

    for row in DTYPES.values():
        if row.kind != "index" and dtype == torch_dtype(row.name):
            return row.name
    raise SpecError(f"element type {dtype} is not supported")


def elementwise(
    call: Call,
    function: Callable[..., Expr],
    *operands: Operand,
    dtype: str | None = None,
) -> Value:
    """The call's result: a scalar function of broadcast operands, all cast to `dtype` first."""
    shape = call.shape
    same = [v.axes for v in operands if isinstance(v, Value) and v.shape == shape]
    axes = same[0] if same else axes_of(shape)
    compute = dtype or common_dtype(*operands)
    parts = [
        widened(x.on(axes), compute) if isinstance(x, Value) else scalar_expr(x, compute)
        for x in operands
    ]
    return Value(axes, cast(function(*parts), call.dtype))


def apply(name: str) -> Callable[..., Expr]:
    """A row of the operator table as a function; of positions, it is index arithmetic."""
    return lambda *args: indexed(name, args) or op(name, *args)
