"""Each family of operators: the traced program's meaning against torch in float64.

One export serves several sizes of its Dims. A function returns many results: an export is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import find
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.trace import trace
from superopt.mugraph.trace.table import LOWERINGS
from superopt.spec import Spec, Tensor, spec

B = Dim("B", min=1, max=64)
N = Dim("N", min=1, max=64)
SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0)


def draw(made: Spec, sizes: dict[str, int], special: bool, seed: int) -> list[torch.Tensor]:
    """Random inputs: floats in float64, integers within their range."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for tensor in made.tensors.values():
        shape = [sizes[e.__name__] if not isinstance(e, int) else e for e in tensor.extents]
        if tensor.dtype == torch.bool:
            drawn.append(torch.rand(shape, generator=generator) < 0.5)
        elif not tensor.dtype.is_floating_point:
            low, high = tensor.range or (-9, 10)
            high = high if isinstance(high, int) else sizes[high.__name__]
            drawn.append(torch.randint(low, high, shape, generator=generator, dtype=tensor.dtype))
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
            if special:
                where = torch.randint(0, 12, shape, generator=generator)
                for n, v in enumerate(SPECIAL):
                    x[where == n] = v
            drawn.append(x)
    return drawn


def agree(made: Spec, *sizes: dict[str, int], special: bool = False, rtol: float = 1e-9) -> None:
    """The traced program gives what the function gives, at each of the sizes."""
    program = trace(made).program
    for seed, at in enumerate(sizes or ({},)):
        inputs = draw(made, at, special, seed)
        wanted = made(*inputs)
        wanted = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
        arrays = {n: t.numpy() for n, t in zip(made.tensors, inputs, strict=True)}
        got = run_program(program, arrays, at)
        assert len(got) == len(wanted) == len(program.outputs)
        for n, (w, tensor) in enumerate(zip(wanted, program.outputs, strict=True)):
            assert [extent_value(e, at) for e in tensor.shape] == list(w.shape), (n, at)
            kind = "float" if w.is_floating_point() else "bool" if w.dtype is torch.bool else "int"
            assert DTYPES[tensor.dtype].kind == kind, (n, tensor.dtype, w.dtype)
            np.testing.assert_allclose(
                got[tensor.name], w.numpy(), rtol=rtol, atol=rtol, err_msg=f"output {n} at {at}"
            )


def xy(dtype: Any = torch.float32) -> Callable[[Callable[..., Any]], Spec]:
    return spec(x=Tensor(B, 5, dtype=dtype), y=Tensor(5, dtype=dtype))


# -- pointwise ----------------------------------------------------------------------------------


@xy()
def arithmetic(x, y):
    return (
        x + y, x - y, x * y, x / y, -x, x.abs(), x.sign(), 2 - x, 1 / x, x**2, x**3, x**4, x**-1,
        x**-2, x.abs() ** 0.5, x.abs() ** -0.5, x.abs() ** 1.7, x.abs() ** y,
        torch.add(x, y, alpha=3), torch.sub(x, y, alpha=2), torch.div(x, y, rounding_mode="floor"),
        torch.div(x, y, rounding_mode="trunc"), x % y, torch.fmod(x, y), torch.remainder(x, 1.5),
        torch.addcmul(x, x, y, value=2), torch.addcdiv(x, x, y, value=2), torch.lerp(x, y, 0.3),
        torch.square(x), torch.reciprocal(x), x // 2, x.frac(), x.floor(), x.ceil(), x.trunc(),
        x.round(), torch.atan2(x, y), torch.maximum(x, y), torch.minimum(x, y),
        x.where(x > y, 0.5), torch.rsub(x, y), x**0, x**1,
    )  # fmt: skip


@xy()
def transcendental(x, y):
    small = torch.tanh(x) * 0.9
    return (
        x.exp(), x.exp2(), x.expm1(), x.abs().log(), x.abs().log2(), x.abs().log10(),
        x.abs().log1p(), x.abs().sqrt(), x.abs().rsqrt(), x.sin(), x.cos(), x.tan(), small.asin(),
        small.acos(), x.atan(), x.sinh(), x.cosh(), x.tanh(), x.asinh(), (x.abs() + 1).acosh(),
        small.atanh(), x.erf(), x.erfc(), x.sigmoid(), torch.exp(x + y),
    )  # fmt: skip


@xy()
def activations(x, y):
    return (
        F.gelu(x), F.gelu(x, approximate="tanh"), F.silu(x), F.relu(x), F.leaky_relu(x, 0.2),
        F.elu(x), F.elu(x, 0.5), F.hardtanh(x), F.hardtanh(x, -0.5, 2.0), F.softplus(x),
        F.softplus(x, 2.0, 3.0), F.relu6(x), F.celu(x, 0.7), F.selu(x), F.mish(x), F.hardswish(x),
        F.hardsigmoid(x), F.logsigmoid(x), F.threshold(x, 0.1, 20.0),
        F.glu(torch.cat([x, y.expand_as(x)], -1)), F.softsign(x), F.tanhshrink(x),
        F.dropout(x * 1, 0.5, training=False),
    )  # fmt: skip


@xy()
def logic(x, y):
    p, q = x > y, x < 1
    return (
        p, q, x >= y, x <= 0.5, x == y, x != y, p & q, p | q, p ^ q, ~p, p.logical_not(),
        torch.logical_and(x, y), torch.logical_or(p, y), torch.logical_xor(x, q), x.isnan(),
        x.isinf(), x.isfinite(), torch.where(p, x, y), torch.where(p, 1.0, 0.0),
        x.masked_fill(p, -1e9), x.clamp(-1, 1), x.clamp(min=0), x.clamp(max=0.3), x.clamp(min=y),
        x.clamp_min(0.1), x.clamp_max(0.1), p.float(), p + q, p * q, p + 1,
        torch.nan_to_num(x, 1.0, 2.0, -2.0), x.max(y), x.min(y), F.relu(x), F.hardtanh(x),
        F.softmax(x, -1), x.amax(-1), x.sum(0),
    )  # fmt: skip


@pytest.mark.parametrize(
    "made", [arithmetic, transcendental, activations, logic], ids=lambda s: s.name
)
def test_pointwise(made: Spec) -> None:
    agree(made, {"B": 1}, {"B": 7}, rtol=1e-7)


def test_nan_and_infinities_spread_as_in_torch() -> None:
    agree(logic, {"B": 13}, {"B": 40}, special=True)


@spec(
    i=Tensor(B, 5, dtype=torch.int32),
    j=Tensor(5, dtype=torch.int64, range=(1, 7)),
    u=Tensor(5, dtype=torch.uint8, range=(0, 7)),
    b=Tensor(B, 5, dtype=torch.bool),
)
def integers(i, j, u, b):
    return (
        i + j, i * 2, i - j, i // j, i % j, torch.div(i, j, rounding_mode="trunc"), i / j, i * 0.5,
        i + u, i & j, i | j, i ^ j, ~i, -i, i.abs(), j << 2, i >> 1, i > 2, i == j, i.float() * 2,
        i.to(torch.int8), i.sum(), i.sum(1), i.amax(0), i.prod(1), b.sum(), b.any(1), b.all(),
        (i > 0).any(), b.int() + u, i**2, i.clamp(-2, 2), i.float().mean(), torch.where(b, i, j),
        i.sign(), b.sum(0), i.max(1)[0], i.argmin(1), i.sqrt().isnan(), torch.logical_and(i, b),
    )  # fmt: skip


def test_integers_and_bools() -> None:
    agree(integers, {"B": 4}, {"B": 1}, rtol=1e-6)


# -- reductions ---------------------------------------------------------------------------------


@spec(x=Tensor(B, 3, N))
def sums(x):
    top, at = x.max(2)
    low, low_at = x.min(0, keepdim=True)
    return (
        x.sum(), x.sum(-1), x.sum((0, 2)), x.sum(1, keepdim=True), x.mean(), x.mean(-1),
        x.mean((0, 1), keepdim=True), x.amax(-1), x.amin((0, 2)), x.amax(), top, at, low, low_at,
        x.max(), x.min(), x.prod(2), x.argmax(), x.argmax(2), x.argmin(0, keepdim=True),
        (x > 1).any(2), (x > -3).all(0), x.any(), *x.aminmax(dim=2), torch.logsumexp(x, 2),
        x.softmax(2), x.log_softmax(0), x.norm(), torch.linalg.vector_norm(x, 1, 2),
        torch.linalg.vector_norm(x, float("inf"), (0, 2)), torch.linalg.vector_norm(x, 3, 2),
        torch.linalg.vector_norm(x, -float("inf"), 2), torch.linalg.vector_norm(x, 0, 2),
        F.normalize(x, dim=2), x.sum(2).sum(0),
        F.cosine_similarity(x, x.flip(1), dim=1),
    )  # fmt: skip


@spec(x=Tensor(B, 3, N))
def moments(x):
    return (
        x.var(2), x.var((0, 2), correction=0), x.std(2, keepdim=True), x.var(),
        x.std(2, unbiased=False), *torch.var_mean(x, 2), x.var(2, correction=2),
        *torch.std_mean(x, 1),
    )  # fmt: skip


def test_reductions() -> None:
    agree(sums, {"B": 5, "N": 7}, {"B": 1, "N": 1}, {"B": 2, "N": 8}, rtol=1e-7)
    agree(moments, {"B": 5, "N": 7}, {"B": 3, "N": 3})


def test_nan_is_the_largest_and_the_first_wins() -> None:
    @spec(x=Tensor(B, 6))
    def extremes(x):
        x = x.round()
        return x.argmax(1), x.argmin(1), x.argmax(), *x.max(1), *x.min(0), x.amax(1), x.amin()

    agree(extremes, {"B": 30}, {"B": 1}, special=True)
    agree(extremes, {"B": 30})


@spec(x=Tensor(B, 4, 6, N), g=Tensor(N), b=Tensor(N), c=Tensor(4), v=Tensor(4))
def norms(x, g, b, c, v):
    n = x.shape[-1]
    return (
        F.layer_norm(x, (n,), g, b), F.layer_norm(x, (n,)), F.layer_norm(x, (6, n), eps=1e-3),
        F.rms_norm(x, (n,), g, eps=1e-6), F.rms_norm(x, (6, n), eps=1e-5),
        F.group_norm(x, 2, c, v), F.group_norm(x, 4), F.batch_norm(x, c, v.abs(), v, c, eps=1e-4),
        F.batch_norm(x, c, v.abs()), torch.native_layer_norm(x, (n,), g, b, 1e-5)[0] * 2,
    )  # fmt: skip


def test_normalizations() -> None:
    agree(norms, {"B": 3, "N": 5}, {"B": 1, "N": 8})


# -- products -----------------------------------------------------------------------------------


@spec(
    a=Tensor(B, 4),
    w=Tensor(4, N),
    v=Tensor(4),
    s=Tensor(3, B, 4),
    t=Tensor(3, 4, N),
    o=Tensor(N),
    z=Tensor(2, 1, B, 4),
)
def products(a, w, v, s, t, o, z):
    return (
        a @ w, torch.mm(a, w), torch.addmm(o, a, w), torch.addmm(o, a, w, beta=0.5, alpha=2),
        a @ v, v @ w, v @ v, torch.bmm(s, t), torch.baddbmm(o, s, t), s @ w, a @ t, z @ t, v @ t,
        s @ v, F.linear(a, w.t()), F.linear(s, w.t(), o), F.linear(a, v), torch.outer(v, o),
        torch.einsum("bk,kn->bn", a, w), torch.einsum("sbk,skn->bn", s, t),
        torch.einsum("bk->kb", a), torch.einsum("bk->b", a), torch.einsum("...k,kn->...n", z, w),
        torch.einsum("bk,bk", a, a), torch.einsum("bk,kn,n->b", a, w, o),
        torch.einsum("k,n->kn", v, o), torch.einsum("kk->k", v[:, None] * v),
        torch.matmul(z, z.mT), torch.einsum("ij,kj", a, s[0]), torch.tensordot(s, w, dims=1),
        torch.mv(a, v), torch.dot(v, v),
    )  # fmt: skip


def test_products() -> None:
    agree(products, {"B": 5, "N": 7}, {"B": 1, "N": 1})


@spec(
    q=Tensor(2, 4, B, 8),
    k=Tensor(2, 4, N, 8),
    v=Tensor(2, 4, N, 6),
    m=Tensor(B, N),
    p=Tensor(2, 1, B, N, dtype=torch.bool),
    h=Tensor(2, 2, N, 8),
)
def attention(q, k, v, m, p, h):
    f = F.scaled_dot_product_attention
    return (
        f(q, k, v), f(q, k, v, is_causal=True), f(q, k, v, attn_mask=m), f(q, k, v, attn_mask=p),
        f(q, k, v, scale=0.3), f(q, h, h, enable_gqa=True), f(q[0], k[0], v[0]),
    )  # fmt: skip


def test_attention() -> None:
    agree(attention, {"B": 5, "N": 7}, {"B": 3, "N": 1})


# -- moving elements ----------------------------------------------------------------------------


@spec(x=Tensor(B, 6, 4), y=Tensor(B, 3, 4))
def views(x, y):
    b = x.shape[0]
    first, second, third = x.split(2, 1)
    return tuple(
        v + 1
        for v in (
            x.view(b, 24), x.reshape(b * 8, 3), x.view(-1), x.reshape(b, 2, 3, 4), x.flatten(1),
            x.permute(2, 0, 1), x.transpose(0, 2), x.transpose(1, 2).reshape(b, 3, 8), x.mT,
            y[:, None], x.unsqueeze(-1), x[:, :1].squeeze(1), y.expand(2, -1, -1, -1), x[1:],
            x[:, 1:5:2], x[:, -2:], x[..., 0], x[0], x[:, -1], first, second * third,
            *x.chunk(3, 1), *y.unbind(1), x.unflatten(1, (2, 3)), x.movedim(0, -1),
            x.swapaxes(0, 1), x.narrow(1, 2, 3), x[:, ::3], x.diagonal(0, 1, 2),
            x.diagonal(1, 1, 2), x.unfold(1, 2, 2), x.contiguous(),
            x.permute(2, 1, 0).contiguous(), x.permute(1, 0, 2).reshape(6, -1),
            x.view(b * 2, 12).t(), x.reshape(2, -1), x.reshape(8, -1).reshape(b, 24),
        )
    )  # fmt: skip


@spec(x=Tensor(B, 6, 4), y=Tensor(B, 3, 4), z=Tensor(B, N))
def rearrangements(x, y, z):
    return (
        torch.cat([x, y], 1), torch.cat([x, x, x * 2], 0), torch.stack([y, y + 1], 1), x.flip(1),
        torch.stack([y, y], -1), x.flip(0, 2), x.roll(1, 1), x.roll((1, -2), (0, 1)), z.roll(1),
        z.roll(-2, 0), x.repeat(2, 1, 3), y.tile(2), x.repeat_interleave(3, 1),
        x.repeat_interleave(2, 0), z.repeat_interleave(2), F.pad(x, (1, 2)),
        F.pad(x, (0, 0, 2, -1), value=3.0), F.pad(z, (1, 0, 0, 2)), torch.cat([x, y], 1).sum(1),
        F.pad(z, (2, 1)).amax(1), z.tril(), z.triu(1), z.tril(-1), torch.cat([x, y], 1)[:, 6:],
        torch.cat([z, z.exp()], 1) @ torch.cat([z, z], 1).t(), torch.hstack([x, y]), x.clone(),
        x.fliplr(), torch.cat([x.sum(1, keepdim=True), y], 1).mean(1),
        torch.cat([x[..., 2:], -x[..., :2]], -1),
    )  # fmt: skip


@spec(x=Tensor(B, N))
def constants(x):
    b, n = x.shape
    i = torch.arange(n)
    return (
        x + torch.arange(n), x * torch.arange(1, n + 1, 1), torch.arange(0, b * 2, 2)[:, None] * x,
        x + torch.full((n,), 2.5), torch.full_like(x, 3.0), torch.zeros_like(x) + x,
        x * torch.ones(b, 1), x.new_zeros(n) + x, torch.scalar_tensor(2.0) * x,
        torch.tensor(3.0) * x, (i[None, :] <= torch.arange(b)[:, None]).float(), x * (n - 1),
        x / b, x + n / b, x * n**0.5, torch.where(i < 3, x, 0.0), torch.ones(b, n).tril() * x,
        torch.eye(n), x * (n // 2), x * (b * n), torch.tensor([1.0, 2.0, 4.0]).sum() * x,
        x.new_full((2, b), 7.0), torch.zeros(b), x + math_scale(n),
        torch.arange(0.5, 3.0, 0.5) + 1,
    )  # fmt: skip


def math_scale(n):
    return 1.0 / n


def test_views() -> None:
    agree(views, {"B": 5}, {"B": 2}, {"B": 8})


def test_rearrangements() -> None:
    agree(rearrangements, {"B": 5, "N": 7}, {"B": 2, "N": 3})


def test_constants() -> None:
    agree(constants, {"B": 5, "N": 7}, {"B": 2, "N": 3}, rtol=1e-7)


@spec(
    x=Tensor(B, 6),
    w=Tensor(9, 4),
    i=Tensor(N, dtype=torch.int64, range=(0, 6)),
    g=Tensor(B, 3, dtype=torch.int64, range=(0, 6)),
    t=Tensor(B, N, dtype=torch.int32, range=(0, 9)),
    s=Tensor(N, dtype=torch.int64, range=(-6, 6)),
    h=Tensor(9, 2, dtype=torch.int64, range=(0, 4)),
)
def gathers(x, w, i, g, t, s, h):
    return (
        x.index_select(1, i), x.gather(1, g), F.embedding(t, w), w[t], x[:, i], x[:, s], w[i],
        torch.take_along_dim(w, h, 1), F.one_hot(i, 6), x[:, i].sum(1), F.embedding(t, w).mean(1),
        x[:, i] @ w[i], w[t, t % 4],
    )  # fmt: skip


def test_indices_from_tensors() -> None:
    agree(gathers, {"B": 5, "N": 7}, {"B": 1, "N": 1})


def test_in_place_is_functionalized() -> None:
    @spec(x=Tensor(Dim("B", min=3, max=64), 6))
    def updates(x):
        y = x.clone()
        y += 1
        y[:, 2] = 0
        y[:, 3:5] *= 2
        z = torch.zeros_like(x)
        z[1:, ::2] = x[1:, ::2]
        x = x * 2
        x[x < 0] = 0.5
        return y.relu_(), z, x

    agree(updates, {"B": 5}, {"B": 3})


@spec(x=Tensor(B, 4), i=Tensor(B, 4, dtype=torch.int32), c=Tensor(2, 4, 6), w=Tensor(4))
def aliases(x, i, c, w):
    a = torch.ops.aten
    return (
        a.multiply(x, w), a.subtract(x, w), a.divide(x, w), a.true_divide(x, w), a.negative(x),
        a.absolute(x), a.clip(x, -1, 1), a.concat([x, x], 1), a.concatenate([x, x], 1), a.fix(x),
        a.greater(x, w), a.greater_equal(x, w), a.less(x, w), a.less_equal(x, w),
        a.not_equal(x, w), a.sgn(x), a.special_erf(x), a.special_expm1(x), a.arctan2(x, w),
        a.bitwise_and(i, 3), a.bitwise_or(i, 3), a.bitwise_xor(i, 3), a.bitwise_left_shift(i, 2),
        a.bitwise_right_shift(i, 1), a._softmax(x, 1, False), a._log_softmax(x, 1, False),
        a.special_softmax(x, 1), a.special_log_softmax(x, 1, dtype=None), a.norm(x, 1, [1]),
        a.addmv(x[:, 0], x, w), a.ger(w, w), a.native_group_norm(c, w, w, 2, 4, 6, 2, 1e-5)[0],
        a._native_batch_norm_legit.no_stats(c, w, w, True, 0.1, 1e-5)[0],
        a.constant_pad_nd(x, [1, 1], 2.0), a.ones_like(x) * x, a.new_ones(x, [4]), a.flipud(x),
        a.type_as(i, i) + 1, a.swapdims(x, 0, 1) + 1, a._unsafe_view(x, [-1]) + 1,
        a.adjoint(x) + 1, a.alias(x) + 1, a.detach(x) + 1, a.broadcast_to(w, [3, 4]) + 1,
        a.moveaxis(x, 0, 1) + 1, a.numpy_T(x) + 1, a.positive(x) + 1, a.ravel(x) + 1,
        a.reshape_as(x, x) + 1, a.view_as(x, x) + 1, a.split_with_sizes(x, [1, 3], 1)[1] + 1,
        a.tensor_split(x, 2, 1)[1] + 1, a.matrix_H(x) + 1,
        *a.meshgrid([w, x[:, 0]], indexing="xy"), a.alpha_dropout(x, 0.5, False) + 1,
        a.feature_dropout(x, 0.5, False) + 1,
    )  # fmt: skip


def test_other_names_of_an_operator() -> None:
    agree(aliases, {"B": 5}, {"B": 1}, rtol=1e-7)


def test_composites_without_a_row_are_decomposed() -> None:
    assert "cross_entropy_loss" not in LOWERINGS

    @spec(x=Tensor(B, 9), y=Tensor(B, dtype=torch.int64, range=(0, 9)))
    def composite(x, y):
        return F.cross_entropy(x, y), F.mse_loss(x, x + 1), F.smooth_l1_loss(x, x * 2)

    agree(composite, {"B": 5})


def test_derived_extents() -> None:
    @spec(x=Tensor(2 * B, 3), y=Tensor(B, 6))
    def derived(x, y):
        return x.view(-1, 6) + y, y.view(-1, 3) * x, x.unflatten(0, (-1, 2)).sum(1)

    program = trace(derived).program
    assert [str(s) for s in program.symbols] == ["Symbol(name='B', low=1, high=64)"]


@pytest.mark.parametrize(("rows", "dtype"), [(32767, "i32"), (32768, "i64")])
def test_an_index_is_looked_for_in_32_bits_where_it_fits(rows: int, dtype: str) -> None:
    @spec(x=Tensor(rows, 65536))
    def largest(x):
        return x.argmax()

    (store,) = trace(largest).program.stores
    assert store.value.dtype == "i64"
    assert {n.dtype for n in find(store.value, "reduce") if n.attr.monoid == "min"} == {dtype}
