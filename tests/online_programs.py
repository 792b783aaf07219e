"""The table of programs whose reductions depend on each other, and what a search must reach.

Each is a plain PyTorch function with the sizes given; `Row.spec()` makes its spec. A row bounds
launches, the bytes requested of some arguments over reading them once (a program or a launch), all
temporaries over what the program would hold, and flops over those of the program as written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

import superopt
from superopt import Tensor
from superopt.spec import Spec

HALF, SINGLE, LONG, BOOL = torch.float16, torch.float32, torch.int64, torch.bool
WINDOW = 256
PREFIX = 512
CAP = 30.0
EPS = 1e-6

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Bytes:
    """Requested bytes of the arguments `of` ('out': all outputs; none: all) over reading each once.

    `programs`: over every program's reading once all that it may need: causal attention reads about
    half of that. `distinct`: bytes counted once an address.
    """

    most: float
    of: tuple[str, ...] = ()
    programs: bool = False
    distinct: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """A program at `sizes`, and its bounds. `small`: sizes at which the interpreter is quick.

    `held` bounds all temporaries' bytes over a tensor of extents `whole` in half precision.
    `hostile` names the inputs that matter beside the gate's own table.
    """

    name: str
    fn: Callable[..., Any]
    tensors: Callable[..., Tensors]
    launches: int
    bytes: tuple[Bytes, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    small: Mapping[str, int] = field(default_factory=dict)
    dtype: torch.dtype = HALF
    held: float | None = None
    whole: tuple[int, ...] = ()
    flops: float | None = None
    hostile: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def spec(self, **sizes: int) -> Spec:
        """The spec at the row's sizes, some of them replaced."""
        tensors = self.tensors(**{**self.sizes, **sizes})
        return superopt.spec(dtype=self.dtype, **tensors)(self.fn)


# -- attention: one pass over the keys ----------------------------------------------------------


def heads(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return {name: Tensor(b, h, s, d) for name in ("q", "k", "v")}


def scores(q, k):
    return (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5


def positions(q, k):
    """The index of each query, as a column, and of each key."""
    i = torch.arange(q.shape[-2], device=q.device)[:, None]
    return i, torch.arange(k.shape[-2], device=k.device)


def weighted(s, v):
    return torch.softmax(s, dim=-1).to(v.dtype) @ v


def masked(s, keep, v):
    return weighted(s.masked_fill(~keep, float("-inf")), v)


def attention(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v


def attention_float(q, k, v):
    return weighted(scores(q, k), v)


def attention_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def causal(q, k, v):
    i, j = positions(q, k)
    return masked(scores(q, k), j <= i, v)


def causal_tril(q, k, v):
    keep = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    return masked(scores(q, k), keep, v)


def causal_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sliding_window(q, k, v):
    i, j = positions(q, k)
    return masked(scores(q, k), (j <= i) & (i - j < WINDOW), v)


def prefix_lm(q, k, v, prefix):
    i, j = positions(q, k)
    return masked(scores(q, k), (j <= i) | (j < prefix[:, None, None, None]), v)


def prefix_fixed(q, k, v):
    i, j = positions(q, k)
    return masked(scores(q, k), (j <= i) | (j < PREFIX), v)


def alibi(q, k, v, slopes):
    i, j = positions(q, k)
    return weighted(scores(q, k) + slopes[:, None, None] * (j - i), v)


def softcap(q, k, v):
    return weighted(CAP * torch.tanh(scores(q, k) / CAP), v)


def document(q, k, v, doc):
    return masked(scores(q, k), doc[:, None, :, None] == doc[:, None, None, :], v)


def key_lengths(q, k, v, length):
    _, j = positions(q, k)
    return masked(scores(q, k), j < length[:, None, None, None], v)


def key_lengths_sdpa(q, k, v, length):
    _, j = positions(q, k)
    keep = (j < length[:, None, None, None]).expand(-1, 1, q.shape[-2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def tree_mask(q, k, v, tree):
    return masked(scores(q, k), tree, v)


def tree_mask_sdpa(q, k, v, tree):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=tree)


def all_together(q, k, v, slopes):
    i, j = positions(q, k)
    s = CAP * torch.tanh(scores(q, k) / CAP) + slopes[:, None, None] * (j - i)
    return masked(s, (j <= i) & (i - j < WINDOW), v)


def with_slopes(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"slopes": Tensor(h, dtype=SINGLE)}


def with_prefix(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"prefix": Tensor(b, dtype=LONG, range=(0, s + 1))}


def with_documents(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"doc": Tensor(b, s, dtype=LONG, range=(0, 8))}


def with_lengths(s: int = 2048, d: int = 64, b: int = 2, h: int = 2) -> Tensors:
    return heads(s, d, b, h) | {"length": Tensor(b, dtype=LONG, range=(0, s + 1))}


def with_tree(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"tree": Tensor(s, s, dtype=BOOL)}


# -- one query and many keys, whose heads are shared --------------------------------------------


def gqa(s: int, b: int, h: int = 32, g: int = 8, d: int = 128) -> Tensors:
    return {"q": Tensor(b, h, 1, d), "k": Tensor(b, g, s, d), "v": Tensor(b, g, s, d)}


def gqa_interleave(q, k, v):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return weighted(scores(q, k), v)


def gqa_expand(q, k, v):
    b, g, s, d = k.shape
    r = q.shape[1] // g
    k, v = (t[:, :, None].expand(b, g, r, s, d).reshape(b, g * r, s, d) for t in (k, v))
    return weighted(scores(q, k), v)


def gqa_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


# -- attention with more around it --------------------------------------------------------------


def normed(x, w):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * w


def qk_norm(q, k, v, wq, wk):
    return weighted(scores(normed(q, wq), normed(k, wk)), v)


def with_norms(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"wq": Tensor(d), "wk": Tensor(d)}


def rotated(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def rope_attention(q, k, v, cos, sin):
    return weighted(scores(rotated(q, cos, sin), rotated(k, cos, sin)), v)


def with_angles(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"cos": Tensor(s, d), "sin": Tensor(s, d)}


def sink_joined(q, k, v, sink):
    s = scores(q, k)
    extra = sink[:, None, None].expand(*s.shape[:-1], 1)
    p = torch.softmax(torch.cat([s, extra], dim=-1), dim=-1)
    return p[..., :-1].to(v.dtype) @ v


def sink_added(q, k, v, sink):
    s = scores(q, k)
    sink = sink[:, None, None]
    top = torch.maximum(s.amax(-1, keepdim=True), sink)
    e = torch.exp(s - top)
    p = e / (e.sum(-1, keepdim=True) + torch.exp(sink - top))
    return p.to(v.dtype) @ v


def with_sink(s: int = 2048, d: int = 64, b: int = 1, h: int = 4) -> Tensors:
    return heads(s, d, b, h) | {"sink": Tensor(h, dtype=SINGLE)}


def attention_weights(q, k, v):
    p = torch.softmax(scores(q, k), dim=-1)
    return p.to(v.dtype) @ v, p.sum(-2)


def linear_attention(q, k, v):
    q, k = (F.elu(t.float()) + 1 for t in (q, k))
    w = q @ k.transpose(-1, -2)
    return ((w @ v.float()) / w.sum(-1, keepdim=True)).to(v.dtype)


# -- rows of logits -----------------------------------------------------------------------------


def logits(n: int, b: int = 1024) -> Tensors:
    return {"x": Tensor(b, n)}


def logsumexp(x):
    return torch.logsumexp(x.float(), dim=-1)


def log_softmax(x):
    return torch.log_softmax(x, dim=-1)


def softmax(x):
    return torch.softmax(x, dim=-1)


def softmax_twice(x):
    return torch.softmax(torch.softmax(x.float(), dim=-1), dim=-1).to(x.dtype)


def cross_entropy(x, target):
    return F.cross_entropy(x.float(), target, reduction="none")


def cross_entropy_ignoring(x, target):
    return F.cross_entropy(x.float(), target, reduction="none", ignore_index=0)


def with_targets(n: int, b: int = 1024) -> Tensors:
    return {"x": Tensor(b, n), "target": Tensor(b, dtype=LONG, range=(0, n))}


def entropy(x):
    p = torch.softmax(x.float(), dim=-1)
    return -(p * torch.log_softmax(x.float(), dim=-1)).sum(-1)


def kl_divergence(x, y):
    p, q = torch.log_softmax(x.float(), dim=-1), torch.log_softmax(y.float(), dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def two_logits(n: int, b: int = 1024) -> Tensors:
    return {"x": Tensor(b, n), "y": Tensor(b, n)}


def linear_cross_entropy(h, w, target):
    return F.cross_entropy((h @ w.T).float(), target, reduction="none")


def vocabulary(b: int = 1024, d: int = 1024, n: int = 131072) -> Tensors:
    target = Tensor(b, dtype=LONG, range=(0, n))
    return {"h": Tensor(b, d), "w": Tensor(n, d), "target": target}


def argmax(x):
    return x.argmax(dim=-1)


def top1(x):
    p = torch.softmax(x.float(), dim=-1)
    best = p.max(dim=-1)
    return best.indices, best.values


def top1_of_logits(x):
    at = x.argmax(dim=-1, keepdim=True)
    return at[:, 0], torch.softmax(x.float(), dim=-1).gather(-1, at)[:, 0]


# -- moments ------------------------------------------------------------------------------------


def variance(x):
    return x.var(dim=-1)


def deviation(x):
    return x.std(dim=-1, correction=0)


def skewness(x):
    centred = x - x.mean(dim=-1, keepdim=True)
    second = centred.square().mean(dim=-1)
    return centred.pow(3).mean(dim=-1) * torch.rsqrt(second) / second


def correlation(x, y):
    x, y = (t - t.mean(dim=-1, keepdim=True) for t in (x, y))
    size = x.square().sum(-1) * y.square().sum(-1)
    return (x * y).sum(-1) * torch.rsqrt(size + EPS)


def norm_linear(x, weight, bias, w):
    return F.layer_norm(x, (x.shape[-1],), weight, bias) @ w


def norm_linear_gelu(x, weight, bias, w, b):
    return F.gelu(F.layer_norm(x, (x.shape[-1],), weight, bias) @ w + b)


def layer(m: int = 256, k: int = 1024, n: int = 1024) -> Tensors:
    return {"x": Tensor(m, k), "weight": Tensor(k), "bias": Tensor(k), "w": Tensor(k, n)}


def biased_layer(m: int = 256, k: int = 1024, n: int = 1024) -> Tensors:
    return layer(m, k, n) | {"b": Tensor(n)}


def group_norm_silu(x, weight, bias):
    return F.silu(F.group_norm(x, 32, weight, bias))


def image(n: int = 8, c: int = 512, side: int = 32) -> Tensors:
    return {"x": Tensor(n, c, side, side), "weight": Tensor(c), "bias": Tensor(c)}


# -- nearest code -------------------------------------------------------------------------------


def nearest(x, codes):
    return (x[:, None] - codes).square().sum(-1).argmin(dim=-1)


def nearest_expanded(x, codes):
    squares = codes.square().sum(-1)
    return (x.square().sum(-1, keepdim=True) - 2 * (x @ codes.T) + squares).argmin(dim=-1)


def nearest_cdist(x, codes):
    return torch.cdist(x, codes).argmin(dim=-1)


def codebook(b: int = 1024, n: int = 8192, d: int = 64) -> Tensors:
    return {"x": Tensor(b, d), "codes": Tensor(n, d)}


# -- the table ----------------------------------------------------------------------------------

ONCE = Bytes(1.05)
Q_ONCE = Bytes(1.01, ("q", "out"))
ONE_PASS = (Q_ONCE, Bytes(1.01, ("k", "v"), programs=True))
HALF_PASS = (Q_ONCE, Bytes(0.56, ("k", "v"), programs=True))
WINDOW_PASS = (Q_ONCE, Bytes(0.16, ("k", "v"), programs=True))
S = {"s": 2048}
LONG_S = {"s": 4096}
SMALL_S = {"s": 320}
VOCABULARIES = (4096, 50257, 262144)
SMALL_N = {4096: 4096, 50257: 8209, 262144: 65539}  # the last does not fit a program either


def _attention(
    name: str, fn: Callable[..., Any], tensors: Callable[..., Tensors] = heads,
    bytes: tuple[Bytes, ...] = ONE_PASS, sizes: Mapping[str, int] = S, **other: Any,
) -> Row:  # fmt: skip
    return Row(name, fn, tensors, 1, bytes, sizes, SMALL_S, **other)


def _decoding() -> list[Row]:
    rows = []
    for fn in (gqa_interleave, gqa_expand, gqa_sdpa):
        for b in (1, 64):
            for s in (256, 4096, 8192):
                split = b == 1 and s >= 4096  # too few programs otherwise
                bound = {256: None, 4096: 1.10, 8192: 1.05}[s]
                of = (Bytes(bound, ("k", "v")),) if bound else ()
                name = f"{fn.__name__}-b{b}-{s}"
                rows.append(Row(name, fn, gqa, 2 if split else 1, of, {"s": s, "b": b}, {"b": 1}))
    return rows


def _over_logits() -> list[Row]:
    rows = []
    for n in VOCABULARIES:
        again = Bytes(1.05 if n == 4096 else 1.55)  # a row that does not fit is read twice
        for fn, tensors, most, hostile in (
            (logsumexp, logits, ONCE, ("rows of -inf",)),
            (log_softmax, logits, again, ()),
            (softmax, logits, again, ()),
            (cross_entropy, with_targets, ONCE, ()),
            (entropy, logits, ONCE, ()),
            (kl_divergence, two_logits, ONCE, ()),
        ):
            name = f"{fn.__name__}-{n}"
            rows.append(
                Row(name, fn, tensors, 1, (most,), {"n": n}, {"b": 33, "n": SMALL_N[n]},
                    hostile=hostile)
            )  # fmt: skip
    return rows


def _moments() -> list[Row]:
    of_one = ((fn, logits) for fn in (variance, deviation, skewness))
    return [
        Row(
            f"{fn.__name__}-{n}", fn, given, 1, (ONCE,), {"n": n}, {"b": 33, "n": SMALL_N[n]},
            SINGLE, hostile=("mean 1e6, deviation 1",),
        )
        for fn, given in (*of_one, (correlation, two_logits))
        for n in (4096, 262144)
    ]  # fmt: skip


NEAREST = (Bytes(1.02, distinct=True),)
MASKED_ROWS = ("rows of -inf, masks false", "lengths of 0")

TABLE: tuple[Row, ...] = (
    _attention("attention", attention),
    _attention("attention_float", attention_float),
    _attention("attention_sdpa", attention_sdpa),
    _attention("causal", causal, bytes=HALF_PASS),
    _attention("causal_tril", causal_tril, bytes=HALF_PASS),
    _attention("causal_sdpa", causal_sdpa, bytes=HALF_PASS),
    _attention("sliding_window", sliding_window, bytes=WINDOW_PASS, sizes=LONG_S),
    _attention("prefix_lm", prefix_lm, with_prefix),
    _attention("prefix_fixed", prefix_fixed),
    _attention("alibi", alibi, with_slopes),
    _attention("softcap", softcap),
    _attention("document", document, with_documents),
    _attention("key_lengths", key_lengths, with_lengths, hostile=MASKED_ROWS),
    _attention("key_lengths_sdpa", key_lengths_sdpa, with_lengths, hostile=MASKED_ROWS),
    _attention("tree_mask", tree_mask, with_tree, hostile=MASKED_ROWS),
    _attention("tree_mask_sdpa", tree_mask_sdpa, with_tree, hostile=MASKED_ROWS),
    _attention("all_together", all_together, with_slopes, WINDOW_PASS, LONG_S),
    *_decoding(),
    _attention("qk_norm", qk_norm, with_norms),
    _attention("rope_attention", rope_attention, with_angles),
    _attention("sink_joined", sink_joined, with_sink),
    _attention("sink_added", sink_added, with_sink),
    *_over_logits(),
    Row(
        "linear_cross_entropy", linear_cross_entropy, vocabulary, 2, (), {},
        {"b": 17, "d": 64, "n": 1031}, held=0.02, whole=(1024, 131072),
    ),
    Row("norm_linear", norm_linear, layer, 1, (Bytes(1.01, ("x",), programs=True),), {},
        {"m": 17, "k": 96, "n": 33}, hostile=("mean over spread 30",)),
    Row("norm_linear_gelu", norm_linear_gelu, biased_layer, 1,
        (Bytes(1.01, ("x",), programs=True),), {}, {"m": 17, "k": 96, "n": 33},
        hostile=("mean over spread 30",)),
    Row("group_norm_silu", group_norm_silu, image, 1, (ONCE,), {}, {"n": 2, "c": 64, "side": 6}),
    Row("cross_entropy_ignoring", cross_entropy_ignoring, with_targets, 1, (ONCE,), {"n": 50257},
        {"b": 3, "n": 1031}, hostile=("ignored targets",)),
    *_moments(),
    Row("softmax_twice-4096", softmax_twice, logits, 1, (ONCE,), {"n": 4096}, {"b": 3, "n": 515}),
    Row("softmax_twice-50257", softmax_twice, logits, 1, (), {"n": 50257}, {"b": 3, "n": 515}),
    Row("attention_weights", attention_weights, heads, 2, (), {}, SMALL_S, held=0.02,
        whole=(4, 2048, 2048)),
    Row("argmax", argmax, logits, 1, (ONCE,), {"n": 50257}, {"b": 3, "n": 8209},
        hostile=("ties", "a few NaN")),
    Row("top1", top1, logits, 1, (ONCE,), {"n": 50257}, {"b": 3, "n": 8209},
        hostile=("ties", "a few NaN")),
    Row("top1_of_logits", top1_of_logits, logits, 1, (ONCE,), {"n": 50257}, {"b": 3, "n": 8209},
        hostile=("ties", "a few NaN")),
    Row("nearest", nearest, codebook, 1, NEAREST, {}, {"b": 17, "n": 131, "d": 16}, SINGLE,
        hostile=("ties",)),
    Row("nearest_expanded", nearest_expanded, codebook, 1, NEAREST, {},
        {"b": 17, "n": 131, "d": 16}, SINGLE, hostile=("ties",)),
    Row("nearest_cdist", nearest_cdist, codebook, 1, NEAREST, {}, {"b": 17, "n": 131, "d": 16},
        SINGLE),
    Row("linear_attention", linear_attention, heads, 2, (), LONG_S, SMALL_S, held=0.02,
        whole=(4, 4096, 4096), flops=1 / 8),
)  # fmt: skip

BY_NAME = {row.name: row for row in TABLE}
