"""Hand-written kernels and their programs, for the tests of the numeric gate."""

from __future__ import annotations

from superopt.mugraph import index as _index  # noqa: F401
from superopt.mugraph.expr import (
    Axis,
    Expr,
    Symbol,
    Tensor,
    axis,
    cast,
    const,
    index,
    load,
    op,
    reduce,
    sym,
)
from superopt.mugraph.program import Program, store

B = sym(Symbol("B", 1, 4096))

HEAD = """
import torch
import triton
import triton.language as tl

CONFIGS = {16: 16, 4096: 32}
"""

NORM_LINEAR = (
    HEAD
    + """
@triton.jit
def _kernel(x_ptr, w_ptr, out_ptr, B, K: tl.constexpr, N: tl.constexpr, BB: tl.constexpr,
            BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    squares = tl.zeros((BB,), tl.float32)
    acc = tl.zeros((BB, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        at = rows[:, None] * K + k[None, :]
        x = tl.load(x_ptr + at, mask=(rows[:, None] < B) & (k[None, :] < K), other=0.0)
        w = tl.load(w_ptr + k[:, None] * N + cols[None, :],
                    mask=(k[:, None] < K) & (cols[None, :] < N), other=0.0)
        x32 = x.to(tl.float32)
        squares += tl.sum(x32 * x32, axis=1)
        acc = tl.dot(x, w, acc)
    scale = tl.rsqrt(squares / K + 1e-6)
    out = acc * scale[:, None]
    tl.store(out_ptr + rows[:, None] * N + cols[None, :], out.to(out_ptr.dtype.element_ty),
             mask=(rows[:, None] < B) & (cols[None, :] < N))


def reference(x, w):
    n = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return n.to(x.dtype) @ w


def norm_linear(x, w):
    x, w = x.contiguous(), w.contiguous()
    B, K = x.shape
    N = w.shape[1]
    out = x.new_empty((B, N))
    block = next(c for limit, c in CONFIGS.items() if B <= limit)
    _kernel[(triton.cdiv(B, block), triton.cdiv(N, 32))](x, w, out, B, K, N, block, 32, 32)
    return out
"""
)

SOFTMAX = (
    HEAD
    + """
@triton.jit
def _kernel(x_ptr, out_ptr, N: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BN)
    x = tl.load(x_ptr + row * N + cols, mask=cols < N, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=0))
    out = e / tl.sum(e, axis=0)
    tl.store(out_ptr + row * N + cols, out.to(out_ptr.dtype.element_ty), mask=cols < N)


def reference(x):
    return torch.softmax(x, -1)


def softmax_rows(x):
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _kernel[(x.shape[0],)](x, out, x.shape[1], 64)
    return out
"""
)

ONLINE_SOFTMAX = (
    HEAD.replace("CONFIGS = {16: 16, 4096: 32}", 'CONFIG = {"BLOCK_N": 64}')
    + """
@triton.jit
def _kernel(x_ptr, out_ptr, N: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0)
    largest = float("-inf")
    total = 0.0
    for start in range(0, N, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + row * N + cols, mask=cols < N, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(x, axis=0))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - safe) + tl.sum(tl.exp(x - safe), axis=0)
        largest = new
    for start in range(0, N, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + row * N + cols, mask=cols < N, other=float("-inf")).to(tl.float32)
        out = tl.exp(x - largest) / total
        tl.store(out_ptr + row * N + cols, out.to(out_ptr.dtype.element_ty), mask=cols < N)


def reference(x):
    return torch.softmax(x, -1)


def softmax_rows(x):
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _kernel[(x.shape[0],)](x, out, x.shape[1], **CONFIG)
    return out
"""
)

CENTRED = (
    HEAD
    + """
@triton.jit
def _kernel(x_ptr, out_ptr, N: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BN)
    x = tl.load(x_ptr + row * N + cols, mask=cols < N, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / N
    centred = tl.where(cols < N, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / N
    out = (x - mean) * tl.rsqrt(variance + 1e-5)
    tl.store(out_ptr + row * N + cols, out.to(out_ptr.dtype.element_ty), mask=cols < N)


def reference(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


def centred_rows(x):
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _kernel[(x.shape[0],)](x, out, x.shape[1], 64)
    return out
"""
)

DECAY = (
    HEAD
    + """
@triton.jit
def _kernel(x_ptr, w_ptr, out_ptr, N: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BN)
    x = tl.load(x_ptr + row * N + cols, mask=cols < N, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
    step = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))
    out = tl.exp(-tl.exp(w) * step)
    tl.store(out_ptr + row * N + cols, out.to(out_ptr.dtype.element_ty), mask=cols < N)


def reference(x, w):
    x, w = x.float(), w.float()
    return torch.exp(-torch.exp(w) * torch.nn.functional.softplus(x)).half()


def decay(x, w):
    x, w = x.contiguous(), w.contiguous()
    out = x.new_empty(x.shape)
    _kernel[(x.shape[0],)](x, w, out, x.shape[1], 64)
    return out
"""
)


def norm_linear(
    k_extent: int = 96,
    n_extent: int = 80,
    epsilon: float = 1e-6,
    hoisted: bool = False,
    dtype: str = "f16",
) -> Program:
    """x (B, K), w (K, N) -> (B, N): the norm before the product, or after it (`hoisted`)."""
    i, k, n = Axis("i", B), Axis("k", index(k_extent)), Axis("n", index(n_extent))
    x_tensor = Tensor("x", (B, index(k_extent)), "f16")
    w_tensor = Tensor("w", (index(k_extent), index(n_extent)), "f16")
    out = Tensor("out", (B, index(n_extent)), "f16")
    x = cast(load(x_tensor, (axis(i), axis(k))), "f32")
    w = load(w_tensor, (axis(k), axis(n)))
    mean = op("div", reduce("sum", (k,), op("square", x)), const(k_extent, "f32"))
    scale = op("rsqrt", op("add", mean, const(epsilon, "f32")))
    value: Expr
    if hoisted:
        value = op("mul", scale, reduce("sum", (k,), op("mul", x, cast(w, "f32"))))
    else:
        factor = cast(op("mul", x, scale), "f16")
        value = reduce("sum", (k,), op("mul", factor, w), operand="f16")
    return Program("norm_linear", (x_tensor, w_tensor), (store(out, (i, n), value),), (out,))


def softmax_rows() -> Program:
    """x (B, 40) -> its softmax along the last axis."""
    i, n = Axis("i", B), Axis("n", index(40))
    x_tensor, out = (Tensor(name, (B, index(40)), "f16") for name in ("x", "out"))
    x = cast(load(x_tensor, (axis(i), axis(n))), "f32")
    e = op("exp", op("sub", x, reduce("max", (n,), x)))
    value = cast(op("div", e, reduce("sum", (n,), e)), "f16")
    return Program("softmax_rows", (x_tensor,), (store(out, (i, n), value),), (out,))


def centred_rows() -> Program:
    """x (B, 40) -> layer norm along the last axis, without weights."""
    i, n = Axis("i", B), Axis("n", index(40))
    x_tensor, out = (Tensor(name, (B, index(40)), "f16") for name in ("x", "out"))
    x = cast(load(x_tensor, (axis(i), axis(n))), "f32")
    count = const(40, "f32")
    centred = op("sub", x, op("div", reduce("sum", (n,), x), count))
    variance = op("div", reduce("sum", (n,), op("square", centred)), count)
    value = op("mul", centred, op("rsqrt", op("add", variance, const(1e-5, "f32"))))
    return Program("centred_rows", (x_tensor,), (store(out, (i, n), cast(value, "f16")),), (out,))


def decay() -> Program:
    """x (B, 40), w (40) -> exp(-exp(w) * softplus(x))."""
    i, n = Axis("i", B), Axis("n", index(40))
    x_tensor, out = (Tensor(name, (B, index(40)), "f16") for name in ("x", "out"))
    w_tensor = Tensor("w", (index(40),), "f16")
    x = cast(load(x_tensor, (axis(i), axis(n))), "f32")
    w = cast(load(w_tensor, (axis(n),)), "f32")
    bent = op("log1p", op("exp", x))
    step = op("where", op("lt", const(20.0, "f32"), x), x, bent)
    value = op("exp", op("mul", op("neg", op("exp", w)), step))
    return Program("decay", (x_tensor, w_tensor), (store(out, (i, n), cast(value, "f16")),), (out,))
