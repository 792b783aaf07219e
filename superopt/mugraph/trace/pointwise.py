"""Lowering rows of pointwise operators: arithmetic, comparison, logic, activations, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from superopt.mugraph.dtypes import DTYPES, accumulator, is_float
from superopt.mugraph.expr import Expr, cast, const, op
from superopt.mugraph.trace.exact import widened
from superopt.mugraph.trace.table import (
    Call,
    Operand,
    apply,
    common_dtype,
    elementwise,
    lowering,
    our_dtype,
    scalar_expr,
)
from superopt.mugraph.trace.value import Value, axes_of

# -- operators that are one row of the operator table -------------------------------------------

PLAIN = (
    "abs", "neg", "sign", "floor", "ceil", "trunc", "maximum", "minimum", "eq", "ne", "lt", "le",
    "gt", "ge", "isnan", "isinf", "fmod", "square",
)  # fmt: skip
TO_FLOAT = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan",
    "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf",
    "erfc", "sigmoid",
)  # fmt: skip
RENAMED = {
    "negative": "neg",
    "absolute": "abs",
    "sgn": "sign",
    "fix": "trunc",
    "special_expm1": "expm1",
    "special_erf": "erf",
    "arctan2": "atan2",
    "remainder": "mod",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "bitwise_xor": "xor",
    "bitwise_not": "not",
    "__and__": "and",
    "__or__": "or",
    "__xor__": "xor",
    "bitwise_left_shift": "shl",
    "bitwise_right_shift": "shr",
    "__lshift__": "shl",
    "__rshift__": "shr",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
}
IDENTITY_ON_INTS = ("floor", "ceil", "trunc", "round")


def _row(name: str, to_float: bool = False) -> Callable[..., Value]:
    def row(call: Call, **arguments: Operand) -> Value:
        operands = list(arguments.values())
        dtype = common_dtype(*operands, to_float=to_float)
        if name in IDENTITY_ON_INTS and not is_float(dtype):
            return elementwise(call, lambda x: x, *operands)
        return elementwise(call, apply(name), *operands, dtype=dtype)

    return row


def _register() -> None:
    names = {n: n for n in (*PLAIN, *TO_FLOAT)} | RENAMED
    for name, ours in names.items():
        lowering("pointwise", name)(_row(ours, to_float=ours in TO_FLOAT))


_register()

# -- arithmetic ---------------------------------------------------------------------------------


def _scaled(name: str, reverse: bool = False) -> Callable[..., Value]:
    def row(call: Call, x: Operand, other: Operand, alpha: Any = 1) -> Value:
        if reverse:
            x, other = other, x
        dtype = common_dtype(x, other)

        def compute(a: Expr, b: Expr) -> Expr:
            if dtype == "bool":
                return op("or", a, b)
            scaled = apply("mul")(b, scalar_expr(alpha, dtype)) if alpha != 1 else b
            return apply(name)(a, scaled)

        return elementwise(call, compute, x, other, dtype=dtype)

    return row


lowering("pointwise", "add")(_scaled("add"))
lowering("pointwise", "sub", "subtract")(_scaled("sub"))
lowering("pointwise", "rsub")(_scaled("sub", reverse=True))


@lowering("pointwise", "mul", "multiply")
def _mul(call: Call, x: Operand, other: Operand) -> Value:
    dtype = common_dtype(x, other)
    return elementwise(call, apply("and" if dtype == "bool" else "mul"), x, other, dtype=dtype)


@lowering("pointwise", "div", "divide", "true_divide")
def _div(call: Call, x: Operand, other: Operand, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        dtype = common_dtype(x, other, to_float=True)
        return elementwise(call, apply("div"), x, other, dtype=dtype)
    if rounding_mode == "floor":
        return elementwise(call, apply("floordiv"), x, other)
    dtype = common_dtype(x, other)
    if is_float(dtype):
        return elementwise(call, lambda a, b: op("trunc", op("div", a, b)), x, other, dtype=dtype)
    return elementwise(call, _truncating, x, other, dtype=dtype)


def _truncating(a: Expr, b: Expr) -> Expr:
    """Integer division towards zero: (a - fmod(a, b)) // b."""
    return op("floordiv", op("sub", a, op("fmod", a, b)), b)


@lowering("pointwise", "floor_divide")
def _floor_divide(call: Call, x: Operand, other: Operand) -> Value:
    return elementwise(call, apply("floordiv"), x, other)


@lowering("pointwise", "reciprocal")
def _reciprocal(call: Call, x: Operand) -> Value:
    dtype = common_dtype(x, to_float=True)
    return elementwise(call, lambda a: op("div", const(1, dtype), a), x, dtype=dtype)


@lowering("pointwise", "pow")
def _pow(call: Call, x: Operand, exponent: Operand) -> Value:
    dtype = common_dtype(x, exponent)
    if isinstance(exponent, int | float):
        return elementwise(call, lambda a: _power(a, exponent, dtype), x, dtype=dtype)
    return elementwise(call, apply("pow"), x, exponent, dtype=dtype)


def _power(a: Expr, exponent: float, dtype: str) -> Expr:
    """x**e by products, roots and reciprocals where e is a small integer or a half."""
    if exponent < 0 and is_float(dtype):
        if exponent == -0.5:
            return op("rsqrt", a)
        return op("div", const(1, dtype), _power(a, -exponent, dtype))
    match exponent:
        case 0:
            return const(1, dtype)
        case 1:
            return a
        case 2:
            return op("square", a)
        case 3:
            return op("mul", op("square", a), a)
        case 4:
            return op("square", op("square", a))
        case 0.5:
            return op("sqrt", a)
    return op("pow", a, const(exponent, dtype))


@lowering("pointwise", "round")
def _round(call: Call, x: Operand, decimals: int = 0) -> Value:
    if decimals:
        raise call.refuse("decimals other than 0 are not supported")
    return _row("round")(call, x=x)


@lowering("pointwise", "frac")
def _frac(call: Call, x: Operand) -> Value:
    return elementwise(call, lambda a: op("sub", a, op("trunc", a)), x)


@lowering("pointwise", "addcmul")
def _addcmul(call: Call, x: Value, tensor1: Value, tensor2: Value, value: Any = 1) -> Value:
    def compute(a: Expr, b: Expr, c: Expr, scale: Expr) -> Expr:
        return op("add", a, op("mul", scale, op("mul", b, c)))

    return elementwise(call, compute, x, tensor1, tensor2, value)


@lowering("pointwise", "addcdiv")
def _addcdiv(call: Call, x: Value, tensor1: Value, tensor2: Value, value: Any = 1) -> Value:
    def compute(a: Expr, b: Expr, c: Expr, scale: Expr) -> Expr:
        return op("add", a, op("mul", scale, op("div", b, c)))

    return elementwise(call, compute, x, tensor1, tensor2, value)


@lowering("pointwise", "lerp")
def _lerp(call: Call, x: Value, end: Value, weight: Operand) -> Value:
    def compute(a: Expr, b: Expr, t: Expr) -> Expr:
        return op("add", a, op("mul", t, op("sub", b, a)))

    return elementwise(call, compute, x, end, weight)


# -- comparison and logic -----------------------------------------------------------------------


def _truth(name: str) -> Callable[..., Value]:
    def row(call: Call, **arguments: Operand) -> Value:
        return elementwise(call, apply(name), *arguments.values(), dtype="bool")

    return row


for _name in ("and", "or", "xor", "not"):
    lowering("pointwise", f"logical_{_name}")(_truth(_name))


@lowering("pointwise", "isfinite")
def _isfinite(call: Call, x: Value) -> Value:
    def compute(a: Expr) -> Expr:
        return op("lt", op("abs", a), const(math.inf, a.dtype))

    if not is_float(x.dtype):
        return Value(x.axes, const(True, "bool"))
    return elementwise(call, compute, x)


@lowering("pointwise", "where")
def _where(call: Call, condition: Value, x: Operand, other: Operand) -> Value:
    axes = axes_of(call.shape)
    sides = [s.on(axes) if isinstance(s, Value) else s for s in (x, other)]
    dtype = call.dtype
    yes, no = (scalar_expr(s, dtype) for s in sides)
    return Value(axes, op("where", cast(condition.on(axes), "bool"), yes, no))


@lowering("pointwise", "masked_fill")
def _masked_fill(call: Call, x: Value, mask: Value, value: Operand) -> Value:
    return _where(call, mask, value, x)


def _at_least(x: Expr, low: Expr) -> Expr:
    return op("maximum", x, low)


def _at_most(x: Expr, high: Expr) -> Expr:
    return op("minimum", x, high)


@lowering("pointwise", "clamp", "clip")
def _clamp(call: Call, x: Value, min: Any = None, max: Any = None) -> Value:
    bounds = [b for b in (min, max) if b is not None]

    def compute(a: Expr, *ends: Expr) -> Expr:
        rest = list(ends)
        if min is not None:
            a = _at_least(a, rest.pop(0))
        return _at_most(a, rest.pop(0)) if max is not None else a

    return elementwise(call, compute, x, *bounds)


@lowering("pointwise", "clamp_min")
def _clamp_min(call: Call, x: Value, min: Operand) -> Value:
    return elementwise(call, _at_least, x, min)


@lowering("pointwise", "clamp_max")
def _clamp_max(call: Call, x: Value, max: Operand) -> Value:
    return elementwise(call, _at_most, x, max)


@lowering("pointwise", "hardtanh")
def _hardtanh(call: Call, x: Value, min_val: Any = -1, max_val: Any = 1) -> Value:
    return elementwise(call, lambda a, lo, hi: _at_most(_at_least(a, lo), hi), x, min_val, max_val)


@lowering("pointwise", "relu6")
def _relu6(call: Call, x: Value) -> Value:
    return _hardtanh(call, x, 0, 6)


@lowering("pointwise", "nan_to_num")
def _nan_to_num(
    call: Call, x: Value, nan: Any = None, posinf: Any = None, neginf: Any = None
) -> Value:
    import torch

    if not is_float(x.dtype):
        return elementwise(call, lambda a: a, x)
    largest = torch.finfo(getattr(torch, DTYPES[x.dtype].torch)).max
    high = largest if posinf is None else posinf
    low = -largest if neginf is None else neginf

    def compute(a: Expr) -> Expr:
        inf = const(math.inf, a.dtype)
        a_high = op("where", op("eq", a, inf), const(high, a.dtype), a)
        a_low = op("where", op("eq", a, op("neg", inf)), const(low, a.dtype), a_high)
        return op("where", op("isnan", a), const(nan or 0.0, a.dtype), a_low)

    return elementwise(call, compute, x)


# -- activations: computed in the accumulator's type, rounded once -------------------------------


def _activation(call: Call, x: Value, compute: Callable[[Expr], Expr]) -> Value:
    return elementwise(call, compute, x, dtype=accumulator(common_dtype(x, to_float=True)))


@lowering("pointwise", "relu")
def _relu(call: Call, x: Value) -> Value:
    def compute(a: Expr) -> Expr:
        zero = const(0, a.dtype)
        return op("where", op("le", a, zero), zero, a)  # NaN falls through, as in torch

    return elementwise(call, compute, x)


@lowering("pointwise", "gelu", weight=10)
def _gelu(call: Call, x: Value, approximate: str = "none") -> Value:
    def exact(a: Expr) -> Expr:
        half, root = const(0.5, a.dtype), const(math.sqrt(0.5), a.dtype)
        inner = op("add", const(1, a.dtype), op("erf", op("mul", a, root)))
        return op("mul", op("mul", a, half), inner)

    def by_tanh(a: Expr) -> Expr:
        scale, cubic = const(math.sqrt(2 / math.pi), a.dtype), const(0.044715, a.dtype)
        cube = op("mul", op("square", a), a)
        inner = op("mul", scale, op("add", a, op("mul", cubic, cube)))
        return op(
            "mul",
            op("mul", const(0.5, a.dtype), a),
            op("add", const(1, a.dtype), op("tanh", inner)),
        )

    return _activation(call, x, by_tanh if approximate == "tanh" else exact)


@lowering("pointwise", "silu", weight=5)
def _silu(call: Call, x: Value) -> Value:
    return _activation(call, x, lambda a: op("mul", a, op("sigmoid", a)))


@lowering("pointwise", "mish", weight=8)
def _mish(call: Call, x: Value) -> Value:
    return _activation(call, x, lambda a: op("mul", a, op("tanh", _softplus_expr(a))))


def _softplus_expr(a: Expr) -> Expr:
    """log(1 + exp(a)), without overflow: max(a, 0) + log1p(exp(-|a|))."""
    decay = op("log1p", op("exp", op("neg", op("abs", a))))
    return op("add", op("maximum", a, const(0, a.dtype)), decay)


@lowering("pointwise", "softplus", weight=6)
def _softplus(call: Call, x: Value, beta: Any = 1, threshold: Any = 20) -> Value:
    def compute(a: Expr) -> Expr:
        scale, limit = scalar_expr(beta, a.dtype), scalar_expr(threshold, a.dtype)
        scaled = op("mul", a, scale)
        soft = op("div", op("log1p", op("exp", scaled)), scale)
        return op("where", op("gt", scaled, limit), a, soft)

    return _activation(call, x, compute)


@lowering("pointwise", "log_sigmoid", weight=6)
def _log_sigmoid(call: Call, x: Value) -> Value:
    return _activation(call, x, lambda a: op("neg", _softplus_expr(op("neg", a))))


@lowering("pointwise", "leaky_relu", weight=2)
def _leaky_relu(call: Call, x: Value, negative_slope: Any = 0.01) -> Value:
    def compute(a: Expr) -> Expr:
        below = op("mul", a, scalar_expr(negative_slope, a.dtype))
        return op("where", op("gt", a, const(0, a.dtype)), a, below)

    return _activation(call, x, compute)


@lowering("pointwise", "elu", weight=5)
def _elu(call: Call, x: Value, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Value:
    def compute(a: Expr) -> Expr:
        grow = op("expm1", op("mul", a, scalar_expr(input_scale, a.dtype)))
        below = op("mul", grow, scalar_expr(alpha, a.dtype))
        bent = op("where", op("gt", a, const(0, a.dtype)), a, below)
        return op("mul", bent, scalar_expr(scale, a.dtype))

    return _activation(call, x, compute)


@lowering("pointwise", "celu", weight=5)
def _celu(call: Call, x: Value, alpha: float = 1.0) -> Value:
    return _elu(call, x, alpha, 1, 1.0 / alpha)


@lowering("pointwise", "selu", weight=5)
def _selu(call: Call, x: Value) -> Value:
    return _elu(call, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _unit_clamp(a: Expr) -> Expr:
    """min(max(a + 3, 0), 6) / 6."""
    up = op("add", a, const(3, a.dtype))
    cut = op("minimum", op("maximum", up, const(0, a.dtype)), const(6, a.dtype))
    return op("div", cut, const(6, a.dtype))


@lowering("pointwise", "hardsigmoid", weight=4)
def _hardsigmoid(call: Call, x: Value) -> Value:
    return _activation(call, x, _unit_clamp)


@lowering("pointwise", "hardswish", weight=5)
def _hardswish(call: Call, x: Value) -> Value:
    return _activation(call, x, lambda a: op("mul", a, _unit_clamp(a)))


@lowering("pointwise", "threshold")
def _threshold(call: Call, x: Value, threshold: Any, value: Any) -> Value:
    def compute(a: Expr) -> Expr:
        under = op("le", a, scalar_expr(threshold, a.dtype))
        return op("where", under, scalar_expr(value, a.dtype), a)

    return elementwise(call, compute, x)


@lowering("pointwise", "glu", weight=5)
def _glu(call: Call, x: Value, dim: int = -1) -> Value:
    axes, d = axes_of(call.shape), x.dim(dim)
    here = Value(axes, const(0, x.dtype)).indices
    there = list(here)
    there[d] = op("add", here[d], axes[d].extent)
    acc = accumulator(x.dtype)
    value, gate = cast(x.at(here), acc), cast(x.at(there), acc)
    return Value(axes, cast(op("mul", value, op("sigmoid", gate)), call.dtype))


# -- casts and copies ---------------------------------------------------------------------------


def convert(call: Call, x: Value, dtype: Any = None, other: Value | None = None) -> Value:
    target = other.dtype if other is not None else x.dtype if dtype is None else our_dtype(dtype)
    if target == x.dtype:
        call.kind = "view"
        return x
    return x.with_expr(widened(x.expr, target))


lowering("pointwise", "to", "type_as")(convert)


@lowering("pointwise", "_to_copy")
def _to_copy(call: Call, x: Value, dtype: Any = None) -> Value:
    return x.with_expr(widened(x.expr, call.dtype))


@lowering("pointwise", "clone", "lift_fresh_copy")
def _clone(call: Call, x: Value) -> Value:
    return x.with_expr(x.expr)


@lowering("view", "alias", "detach", "detach_", "positive")
def _alias(call: Call, x: Value) -> Value:
    return x


@lowering("pointwise", "contiguous")
def _contiguous(call: Call, x: Value) -> Value:
    if call.contiguous:
        call.kind = "view"
        return x
    return x.with_expr(x.expr)


@lowering("view", "dropout", "feature_dropout", "alpha_dropout")
def _dropout(call: Call, x: Value, p: float, train: bool | None = True) -> Any:
    if train and p > 0:
        raise call.refuse("dropout draws random numbers; call .eval(), or pass training=False")
    return x


@lowering("pointwise", "copy")
def _copy(call: Call, x: Value, src: Value) -> Value:
    return elementwise(call, lambda a: a, src)


@lowering("pointwise", "fill")
def _fill(call: Call, x: Value, value: Operand) -> Value:
    return elementwise(call, lambda a: a, value)
