"""Lowering rows of matrix products of any rank, and of attention as PyTorch names it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from superopt.mugraph.dtypes import accumulator, is_float
from superopt.mugraph.expr import Axis, Expr, axis, cast, const, index, is_const, op, reduce
from superopt.mugraph.trace.reductions import softmax_expr
from superopt.mugraph.trace.table import Call, lowering, scalar_expr
from superopt.mugraph.trace.value import ZERO, Value, axes_of, product

Labels = Sequence[Any]


def contract(
    a: Value, a_labels: Labels, b: Value, b_labels: Labels, out: Labels, dtype: str
) -> tuple[Value, Expr]:
    """sum over the labels not in `out` of a*b in the accumulator's type, and the flops it takes.

    Labels name dimensions as in einsum. A dimension of extent 1 is broadcast.
    """
    extents: dict[Any, Expr] = {}
    for labels, v in ((a_labels, a), (b_labels, b)):
        for label, e in zip(labels, v.shape, strict=True):
            if label not in extents or is_const(extents[label], 1):
                extents[label] = e
    axes = axes_of(extents[label] for label in out)
    summed = [label for label in extents if label not in out]
    bound = axes_of((extents[label] for label in summed), taken=axes)
    of: dict[Any, Axis] = dict(zip([*out, *summed], [*axes, *bound], strict=True))
    acc = accumulator(dtype)
    x, y = (cast(_labelled(v, labels, of), acc) for v, labels in ((a, a_labels), (b, b_labels)))
    body = op("mul", x, y)
    operand = dtype if is_float(dtype) else None
    flops = op("mul", product(extents.values()), index(2))
    return Value(axes, reduce("sum", bound, body, operand=operand)), flops


def _labelled(v: Value, labels: Labels, of: dict[Any, Axis]) -> Expr:
    pairs = zip(v.shape, labels, strict=True)
    return v.at([ZERO if is_const(e, 1) else axis(of[label]) for e, label in pairs])


def matmul(a: Value, b: Value, dtype: str) -> tuple[Value, Expr]:
    """torch.matmul in the accumulator's type: batch dimensions broadcast, vectors allowed."""
    rank = max(a.rank, b.rank)
    a_labels = ["k"] if a.rank == 1 else [*range(rank - a.rank, rank - 2), "i", "k"]
    b_labels = ["k"] if b.rank == 1 else [*range(rank - b.rank, rank - 2), "k", "j"]
    batch = range(max(rank - 2, 0))
    out = [*batch, *(["i"] if a.rank > 1 else []), *(["j"] if b.rank > 1 else [])]
    return contract(a, a_labels, b, b_labels, out, dtype)


def _scaled(e: Expr, by: Any) -> Expr:
    return e if by == 1 else op("mul", e, scalar_expr(by, e.dtype))


@lowering("contraction", "matmul", "mm", "bmm", "mv", "dot")
def _matmul(call: Call, x: Value, **other: Value) -> Value:
    (second,) = other.values()
    result, call.flops = matmul(x, second, call.dtype)
    return result.cast(call.dtype)


def _add_product(call: Call, x: Value, a: Value, b: Value, beta: Any, alpha: Any) -> Value:
    """beta*x + alpha*(a @ b), rounded once."""
    result, call.flops = matmul(a, b, call.dtype)
    total = _scaled(result.expr, alpha)
    if beta != 0:
        start = _scaled(cast(x.on(result.axes), total.dtype), beta)
        total = op("add", start, total)
    return result.with_expr(cast(total, call.dtype))


@lowering("contraction", "addmm")
def _addmm(call: Call, x: Value, mat1: Value, mat2: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    return _add_product(call, x, mat1, mat2, beta, alpha)


@lowering("contraction", "baddbmm")
def _baddbmm(
    call: Call, x: Value, batch1: Value, batch2: Value, beta: Any = 1, alpha: Any = 1
) -> Value:
    return _add_product(call, x, batch1, batch2, beta, alpha)


@lowering("contraction", "addmv")
def _addmv(call: Call, x: Value, mat: Value, vec: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    return _add_product(call, x, mat, vec, beta, alpha)


@lowering("contraction", "linear")
def _linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    lead = list(range(x.rank - 1))
    out = [*lead, "j"] if weight.rank == 2 else lead
    labels = ["j", "k"] if weight.rank == 2 else ["k"]
    result, call.flops = contract(x, [*lead, "k"], weight, labels, out, call.dtype)
    if bias is None:
        return result.cast(call.dtype)
    total = op("add", result.expr, cast(bias.on(result.axes), result.dtype))
    return result.with_expr(cast(total, call.dtype))


# -- einsum -------------------------------------------------------------------------------------


def _letters(term: str, rank: int) -> list[Any]:
    """The labels of a term; an ellipsis stands for numbered dimensions, the last is -1."""
    head, dots, tail = term.partition("...")
    missing = rank - len(head) - len(tail)
    return [*head, *(range(-missing, 0) if dots else ()), *tail]


def _diagonal(v: Value, labels: list[Any]) -> tuple[Value, list[Any]]:
    """A repeated label reads the diagonal."""
    if len(set(labels)) == len(labels):
        return v, labels
    kept = list(dict.fromkeys(labels))
    axes = axes_of(v.shape[labels.index(label)] for label in kept)
    return Value(axes, v.at([axis(axes[kept.index(label)]) for label in labels])), kept


@lowering("contraction", "einsum")
def _einsum(call: Call, equation: str, tensors: Sequence[Value], path: Any = None) -> Value:
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(t, v.rank) for t, v in zip(left.split(","), tensors, strict=True)]
    every = [label for term in terms for label in term]
    dots = sorted({label for label in every if isinstance(label, int)})
    if arrow:
        out = [x for part in right.partition("...") for x in (dots if part == "..." else part)]
    else:
        out = dots + sorted(x for x in set(every) - set(dots) if every.count(x) == 1)
    pairs = [_diagonal(v, t) for v, t in zip(tensors, terms, strict=True)]
    value, labels = pairs[0]
    call.flops = ZERO
    if len(pairs) == 1:
        value = _summed(value, labels, out)
        labels = out
    for n, (other, other_labels) in enumerate(pairs[1:], 2):
        later = {x for _, t in pairs[n:] for x in t} | set(out)
        both = list(dict.fromkeys([*labels, *other_labels]))
        keep = out if n == len(pairs) else [x for x in both if x in later]
        value, flops = contract(value, labels, other, other_labels, keep, call.dtype)
        value, labels = value.cast(call.dtype), keep
        call.flops = op("add", call.flops, flops)
    return value.cast(call.dtype)


def _summed(v: Value, labels: list[Any], out: list[Any]) -> Value:
    axes = axes_of(v.shape[labels.index(label)] for label in out)
    rest = [label for label in labels if label not in out]
    bound = axes_of((v.shape[labels.index(label)] for label in rest), taken=axes)
    of = dict(zip([*out, *rest], [*axes, *bound], strict=True))
    body = cast(_labelled(v, labels, of), accumulator(v.dtype))
    return Value(axes, reduce("sum", bound, body))


# -- attention ----------------------------------------------------------------------------------


def _shared_heads(v: Value, heads: Expr) -> Value:
    """Key or value heads repeated so that there are as many as query heads."""
    if v.shape[-3] is heads:
        return v
    repeats = op("floordiv", heads, v.shape[-3])
    axes = axes_of([*v.shape[:-3], heads, *v.shape[-2:]])
    here = [axis(a) for a in axes]
    here[-3] = op("floordiv", here[-3], repeats)
    return Value(axes, v.at(here))


@lowering("contraction", "scaled_dot_product_attention")
def _attention(
    call: Call, query: Value, key: Value, value: Value, attn_mask: Value | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:  # fmt: skip
    if dropout_p:
        raise call.refuse("dropout draws random numbers; pass dropout_p=0")
    if enable_gqa:
        key, value = (_shared_heads(v, query.shape[-3]) for v in (key, value))
    rank = query.rank
    batch = list(range(rank - 2))
    scores, first = contract(
        query, [*batch, "i", "e"], key, [*batch, "j", "e"], [*batch, "i", "j"], call.dtype
    )
    body = op("mul", scores.expr, _attention_scale(scale, query.shape[-1], scores.dtype))
    body = _masked(scores, body, attn_mask, is_causal)
    weights = softmax_expr(scores, rank - 1, body)
    if attn_mask is not None:  # as torch: a row with everything masked gives zeros
        top = reduce("max", [scores.axes[-1]], body)
        empty = op("eq", top, const(-math.inf, top.dtype))
        weights = op("where", empty, const(0, weights.dtype), weights)
    weighted = scores.with_expr(cast(weights, call.dtype))
    result, second = contract(
        weighted, [*batch, "i", "j"], value, [*batch, "j", "e"], [*batch, "i", "e"], call.dtype
    )
    call.flops = op("add", first, second)
    return result.cast(call.dtype)


def _attention_scale(scale: Any, width: Expr, dtype: str) -> Expr:
    if scale is not None:
        return scalar_expr(scale, dtype)
    return op("rsqrt", cast(width, dtype))


def _masked(scores: Value, body: Expr, mask: Value | None, causal: bool) -> Expr:
    nothing = const(-math.inf, body.dtype)
    if causal:
        i, j = scores.indices[-2:]
        body = op("where", op("le", j, i), body, nothing)
    if mask is None:
        return body
    chosen = mask.on(scores.axes)
    if mask.dtype == "bool":
        return op("where", chosen, body, nothing)
    return op("add", body, cast(chosen, body.dtype))
