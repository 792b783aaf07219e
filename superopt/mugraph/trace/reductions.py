"""Lowering rows of reductions along dimensions, and of operators made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from superopt.mugraph.dtypes import accumulator, is_float
from superopt.mugraph.expr import FALSE, Axis, Expr, cast, const, index, op, reduce
from superopt.mugraph.index import less
from superopt.mugraph.trace.table import (
    Call,
    Operand,
    elementwise,
    lowering,
    our_dtype,
    scalar_expr,
    torch_dtype,
)
from superopt.mugraph.trace.value import Value, flat_index, product, reshape

Dims = int | Sequence[int] | None


def kept(v: Value, dims: Sequence[int], keepdim: bool) -> tuple[Axis, ...]:
    """The axes left after a reduction over dims, of extent 1 in their place where keepdim."""
    if not keepdim:
        return tuple(a for d, a in enumerate(v.axes) if d not in dims)
    return tuple(
        Axis(f"{a.name.split('_')[0]}_one{d}", index(1)) if d in dims else a
        for d, a in enumerate(v.axes)
    )


def over(v: Value, dims: Sequence[int], monoid: str, body: Expr) -> Expr:
    """`body` reduced over v's own axes; what depends on the other axes stays."""
    return reduce(monoid, [v.axes[d] for d in dims], body)


def count(v: Value, dims: Sequence[int]) -> Expr:
    """How many elements a reduction over dims takes, an extent."""
    return product(v.shape[d] for d in dims)


def mean_over(v: Value, dims: Sequence[int], body: Expr) -> Expr:
    return op("div", over(v, dims, "sum", body), cast(count(v, dims), body.dtype))


def variance_over(v: Value, dims: Sequence[int], body: Expr, correction: float = 0) -> Expr:
    """Two passes: the mean, then the mean square of what is left of it."""
    centered = op("sub", body, mean_over(v, dims, body))
    total = over(v, dims, "sum", op("square", centered))
    n = count(v, dims)
    if float(correction).is_integer():
        divisor = op("sub", n, index(int(correction)))
        if op("lt", divisor, index(0)) is not FALSE:
            return op("div", total, _positive(cast(divisor, body.dtype)))
        return op("div", total, cast(divisor, body.dtype))
    divisor = op("sub", cast(n, body.dtype), const(correction, body.dtype))
    return op("div", total, _positive(divisor))


def _positive(e: Expr) -> Expr:
    return op("maximum", e, const(0, e.dtype))


def _wide(x: Value, dtype: str | None = None) -> Expr:
    return cast(x.expr, accumulator(dtype or x.dtype))


# -- sums, products, extremes -------------------------------------------------------------------


def _reduction(monoid: str) -> Callable[..., Value]:
    def row(
        call: Call, x: Value, dim: Dims = None, keepdim: bool = False, dtype: Any = None
    ) -> Value:
        dims = x.dims(dim)
        total = over(x, dims, monoid, cast(x.expr, accumulator(call.dtype)))
        return Value(kept(x, dims, keepdim), cast(total, call.dtype))

    return row


_sum = lowering("reduction", "sum")(_reduction("sum"))
_prod = lowering("reduction", "prod")(_reduction("prod"))
_amax = lowering("reduction", "amax")(_reduction("max"))
_amin = lowering("reduction", "amin")(_reduction("min"))


@lowering("reduction", "mean")
def _mean(
    call: Call, x: Value, dim: Dims = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    dims = x.dims(dim)
    result = mean_over(x, dims, _wide(x, call.dtype))
    return Value(kept(x, dims, keepdim), cast(result, call.dtype))


@lowering("reduction", "any")
def _any(call: Call, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
    dims = x.dims(dim)
    return Value(kept(x, dims, keepdim), over(x, dims, "max", cast(x.expr, "bool")))


@lowering("reduction", "all")
def _all(call: Call, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
    dims = x.dims(dim)
    return Value(kept(x, dims, keepdim), over(x, dims, "min", cast(x.expr, "bool")))


def position(x: Value, dims: Sequence[int], monoid: str) -> Expr:
    """The first index of the largest (smallest) element over dims, in row-major order; NaN wins."""
    body = _wide(x)
    here = op("eq", body, over(x, dims, monoid, body))
    if is_float(x.dtype):
        here = op("or", here, op("isnan", body))
    taken = Value(tuple(x.axes[d] for d in dims), x.expr)
    number = count(x, dims)
    dtype = "i32" if less(number, index(2**31)) else "i64"
    first = op("where", here, cast(flat_index(taken), dtype), cast(number, dtype))
    return cast(over(x, dims, "min", first), "i64")


def _arg(monoid: str) -> Callable[..., Value]:
    def row(call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        dims = x.dims(dim)
        return Value(kept(x, dims, keepdim), position(x, dims, monoid))

    return row


lowering("reduction", "argmax", weight=2)(_arg("max"))
lowering("reduction", "argmin", weight=2)(_arg("min"))


def _extreme(name: str) -> Callable[..., Any]:
    def row(
        call: Call, x: Value, dim: int | None = None, keepdim: bool = False,
        other: Operand | None = None,
    ) -> Any:  # fmt: skip
        if other is not None:
            call.kind = "pointwise"
            return elementwise(call, lambda a, b: op(f"{name}imum", a, b), x, other)
        dims = x.dims(dim)
        axes = kept(x, dims, keepdim)
        best = Value(axes, cast(over(x, dims, name, _wide(x)), x.dtype))
        return best if dim is None else (best, Value(axes, position(x, dims, name)))

    return row


lowering("reduction", "max")(_extreme("max"))
lowering("reduction", "min")(_extreme("min"))


@lowering("reduction", "aminmax")
def _aminmax(call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    dims = x.dims(dim)
    axes = kept(x, dims, keepdim)
    return tuple(Value(axes, cast(over(x, dims, m, _wide(x)), x.dtype)) for m in ("min", "max"))


# -- moments and norms --------------------------------------------------------------------------


@lowering("reduction", "var", weight=4)
def _var(
    call: Call, x: Value, dim: Dims = None, unbiased: bool = True, keepdim: bool = False,
    correction: Any = 1,
) -> Value:  # fmt: skip
    dims = x.dims(dim)
    by = 1 if correction is None else correction if unbiased else 0
    result = variance_over(x, dims, _wide(x), by)
    return Value(kept(x, dims, keepdim), cast(result, call.dtype))


@lowering("reduction", "std", weight=4)
def _std(
    call: Call, x: Value, dim: Dims = None, unbiased: bool = True, keepdim: bool = False,
    correction: Any = 1,
) -> Value:  # fmt: skip
    dims = x.dims(dim)
    by = 1 if correction is None else correction if unbiased else 0
    result = op("sqrt", variance_over(x, dims, _wide(x), by))
    return Value(kept(x, dims, keepdim), cast(result, call.dtype))


@lowering("reduction", "var_mean", weight=4)
def _var_mean(
    call: Call, x: Value, dim: Dims = None, unbiased: bool = True, keepdim: bool = False,
    correction: Any = 1,
) -> tuple[Value, ...]:  # fmt: skip
    variance = _var(call, x, dim, unbiased, keepdim, correction)
    return variance, _mean(call, x, dim, keepdim)


@lowering("reduction", "linalg_vector_norm", "norm", weight=2)
def _vector_norm(
    call: Call, x: Value, ord: Any = 2, dim: Dims = None, keepdim: bool = False,
    dtype: Any = None, p: Any = None,
) -> Value:  # fmt: skip
    dims = x.dims(dim)
    order = float(ord if p is None else p)
    body = _wide(x, our_dtype(dtype) if dtype is not None else call.dtype)
    result = _norm(x, dims, body, order)
    return Value(kept(x, dims, keepdim), cast(result, call.dtype))


def _norm(x: Value, dims: Sequence[int], body: Expr, order: float) -> Expr:
    size = op("abs", body)
    if math.isinf(order):
        return over(x, dims, "max" if order > 0 else "min", size)
    if order == 0:
        return over(x, dims, "sum", cast(op("ne", body, const(0, body.dtype)), body.dtype))
    if order == 1:
        return over(x, dims, "sum", size)
    if order == 2:
        return op("sqrt", over(x, dims, "sum", op("square", body)))
    powers = op("pow", size, const(order, body.dtype))
    return op("pow", over(x, dims, "sum", powers), const(1 / order, body.dtype))


@lowering("reduction", "logsumexp", weight=4)
def _logsumexp(call: Call, x: Value, dim: Dims, keepdim: bool = False) -> Value:
    dims = x.dims(dim)
    body = _wide(x, call.dtype)
    top = over(x, dims, "max", body)
    infinite = op("eq", op("abs", top), const(math.inf, body.dtype))
    shift = op("where", infinite, const(0, body.dtype), top)  # as torch: -inf - -inf is NaN
    total = over(x, dims, "sum", op("exp", op("sub", body, shift)))
    return Value(kept(x, dims, keepdim), cast(op("add", op("log", total), shift), call.dtype))


# -- softmax and normalizations -----------------------------------------------------------------


def softmax_expr(v: Value, d: int, body: Expr) -> Expr:
    """exp(x - max x) / sum exp(x - max x), along dimension d of v."""
    shifted = op("exp", op("sub", body, over(v, [d], "max", body)))
    return op("div", shifted, over(v, [d], "sum", shifted))


@lowering("reduction", "softmax", "_softmax", "special_softmax", weight=5)
def _softmax(
    call: Call, x: Value, dim: int, dtype: Any = None, half_to_float: bool = False
) -> Value:
    if not x.rank:
        return Value((), const(1, call.dtype))
    return x.with_expr(cast(softmax_expr(x, x.dim(dim), _wide(x, call.dtype)), call.dtype))


@lowering("reduction", "log_softmax", "_log_softmax", "special_log_softmax", weight=5)
def _log_softmax(
    call: Call, x: Value, dim: int, dtype: Any = None, half_to_float: bool = False
) -> Value:
    if not x.rank:
        return Value((), const(0, call.dtype))
    d, body = [x.dim(dim)], _wide(x, call.dtype)
    shifted = op("sub", body, over(x, d, "max", body))
    total = over(x, d, "sum", op("exp", shifted))
    return x.with_expr(cast(op("sub", shifted, op("log", total)), call.dtype))


def _affine(
    v: Value, body: Expr, weight: Value | None, bias: Value | None, dims: list[int]
) -> Expr:
    """body * weight + bias, whose own dimensions are v's `dims`."""
    here = [v.indices[d] for d in dims]
    if weight is not None:
        body = op("mul", body, cast(weight.at(here), body.dtype))
    if bias is not None:
        body = op("add", body, cast(bias.at(here), body.dtype))
    return body


def _standardized(v: Value, dims: list[int], body: Expr, eps: Any) -> tuple[Expr, Expr, Expr]:
    """(x - mean) * rstd, mean, rstd over dims."""
    mean = mean_over(v, dims, body)
    variance = variance_over(v, dims, body)
    scale = op("rsqrt", op("add", variance, scalar_expr(eps, body.dtype)))
    return op("mul", op("sub", body, mean), scale), mean, scale


@lowering("reduction", "layer_norm", weight=8)
def _layer_norm(
    call: Call, x: Value, normalized_shape: Sequence[Any], weight: Value | None = None,
    bias: Value | None = None, eps: float = 1e-5, cudnn_enable: bool = True,
) -> Value:  # fmt: skip
    dims = list(range(x.rank - len(normalized_shape), x.rank))
    return _layer_normed(call, x, dims, weight, bias, eps)[0]


@lowering("reduction", "native_layer_norm", weight=8)
def _native_layer_norm(
    call: Call, x: Value, normalized_shape: Sequence[Any], weight: Value | None,
    bias: Value | None, eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    dims = list(range(x.rank - len(normalized_shape), x.rank))
    return _layer_normed(call, x, dims, weight, bias, eps)


def _layer_normed(
    call: Call, x: Value, dims: list[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    normal, mean, scale = _standardized(x, dims, _wide(x), eps)
    out = cast(_affine(x, normal, weight, bias, dims), call.dtype)
    axes = kept(x, dims, keepdim=True)
    return x.with_expr(out), Value(axes, mean), Value(axes, scale)


@lowering("reduction", "rms_norm", weight=5)
def _rms_norm(
    call: Call, x: Value, normalized_shape: Sequence[Any], weight: Value | None = None,
    eps: float | None = None,
) -> Value:  # fmt: skip
    import torch

    dims = list(range(x.rank - len(normalized_shape), x.rank))
    body = _wide(x)
    if eps is None:
        eps = torch.finfo(torch_dtype(body.dtype)).eps
    square = mean_over(x, dims, op("square", body))
    scale = op("rsqrt", op("add", square, const(eps, body.dtype)))
    out = _affine(x, op("mul", body, scale), weight, None, dims)
    return x.with_expr(cast(out, call.dtype))


@lowering("reduction", "group_norm", weight=8)
def _group_norm(
    call: Call, x: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    return _grouped(call, x, num_groups, weight, bias, eps)[0]


def _grouped(
    call: Call, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    inner = op("floordiv", x.shape[1], index(groups))
    shape = [x.shape[0], index(groups), product([inner, *x.shape[2:]])]
    rows = reshape(x, shape)
    normal, mean, scale = _standardized(rows, [2], _wide(rows), eps)
    back = reshape(rows.with_expr(normal), x.shape)
    out = cast(_affine(back, back.expr, weight, bias, [1]), call.dtype)
    return back.with_expr(out), Value(rows.axes[:2], mean), Value(rows.axes[:2], scale)


@lowering("reduction", "native_group_norm", weight=8)
def _native_group_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, N: Any, C: Any, HxW: Any,
    group: int, eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    return _grouped(call, x, group, weight, bias, eps)


@lowering("pointwise", "batch_norm", weight=4)
def _batch_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, running_mean: Value | None,
    running_var: Value | None, training: bool, momentum: float, eps: float,
    cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise call.refuse("batch norm in training updates its statistics; call .eval()")
    here, body = [x.indices[1]], _wide(x)
    mean, variance = (cast(v.at(here), body.dtype) for v in (running_mean, running_var))
    scale = op("rsqrt", op("add", variance, const(eps, body.dtype)))
    normal = op("mul", op("sub", body, mean), scale)
    return x.with_expr(cast(_affine(x, normal, weight, bias, [1]), call.dtype))


@lowering("reduction", "_native_batch_norm_legit", weight=8)
def _batch_statistics(
    call: Call, x: Value, weight: Value | None, bias: Value | None, training: bool,
    momentum: float, eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    """The overload without running statistics: normalised over all but axis 1. Instance norms."""
    dims = [d for d in range(x.rank) if d != 1]
    normal, mean, scale = _standardized(x, dims, _wide(x), eps)
    out = cast(_affine(x, normal, weight, bias, [1]), call.dtype)
    axes = kept(x, dims, keepdim=False)
    return x.with_expr(out), Value(axes, mean), Value(axes, scale)
