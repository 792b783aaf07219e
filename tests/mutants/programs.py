"""The programs whose kernels are broken on purpose: small extents, none a multiple of a tile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=4096)
N = Dim("N", min=1, max=65536)
S = Dim("S", min=1, max=4096)
HALF, INT = torch.float16, torch.int64


@superopt.spec(
    x=Tensor(B, 2100), g=Tensor(2100), w=Tensor(2100, 40), dtype=HALF, tune_at=[{"B": 256}]
)
def norm_matmul(x, g, w):
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return ((x.float() * scale).to(x.dtype) * g) @ w


@superopt.spec(
    q=Tensor(B, 2, S, 16), k=Tensor(B, 2, S, 16), v=Tensor(B, 2, S, 16),
    dtype=HALF, tune_at=[{"B": 4, "S": 2048}],
)  # fmt: skip
def causal_attention(q, k, v):
    scores = q @ k.transpose(-1, -2) * 0.25
    rows = torch.arange(q.shape[2])
    scores = scores.masked_fill(rows[None, :] > rows[:, None], float("-inf"))
    return torch.softmax(scores, -1) @ v


@superopt.spec(
    q=Tensor(1, 4, 1, 16), k=Tensor(1, 2, S, 16), v=Tensor(1, 2, S, 16),
    dtype=HALF, tune_at=[{"S": 4096}],
)  # fmt: skip
def decode(q, k, v):
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return torch.softmax(q @ k.transpose(-1, -2) / 4.0, -1) @ v


@superopt.spec(
    x=Tensor(B, N),
    target=Tensor(B, dtype=INT, range=(0, N)),
    dtype=HALF,
    tune_at=[{"B": 64, "N": 65536}],
)
def cross_entropy(x, target):
    return F.cross_entropy(x.float(), target, reduction="none")


@superopt.spec(x=Tensor(B, N), dtype=HALF, tune_at=[{"B": 64, "N": 65536}])
def wide_softmax(x):
    return torch.softmax(x, -1)


@superopt.spec(
    x=Tensor(B, 2100),
    g=Tensor(2100),
    b=Tensor(2100),
    w=Tensor(2100, 40),
    dtype=HALF,
    tune_at=[{"B": 256}],
)
def layernorm_matmul(x, g, b, w):
    return F.layer_norm(x, (2100,), g, b) @ w


@superopt.spec(x=Tensor(B, N), dtype=torch.float32, tune_at=[{"B": 64, "N": 65536}])
def variance(x):
    return torch.var(x, -1), x.mean(-1)


@superopt.spec(
    x=Tensor(B, S, 2, 24), cos=Tensor(S, 24), sin=Tensor(S, 24),
    dtype=HALF, tune_at=[{"B": 4, "S": 2048}],
)  # fmt: skip
def rotary(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None, :] + torch.cat((-right, left), dim=-1) * sin[:, None, :]


@superopt.spec(
    x=Tensor(B, 72), y=Tensor(B, 72), scale=Tensor(72), row=Tensor(B, 1),
    dtype=HALF, tune_at=[{"B": 2048}],
)  # fmt: skip
def pointwise(x, y, scale, row):
    gate = torch.sigmoid(x * scale - row)
    mixed = gate * y + (1 - gate) * x
    return torch.tanh(mixed), torch.clamp(mixed, -0.5, 1.5), F.silu(mixed)


@superopt.spec(
    table=Tensor(50, 40), i=Tensor(B, dtype=INT, range=(0, 50)), p=Tensor(40),
    dtype=HALF, tune_at=[{"B": 2048}],
)  # fmt: skip
def embedding(table, i, p):
    return table[i] * 2 + p


@superopt.spec(x=Tensor(B, 40), y=Tensor(B, 24), dtype=HALF, tune_at=[{"B": 2048}])
def joined(x, y):
    return F.pad(torch.cat([x.roll(1, 0), y.exp()], -1) * 2, (1, 2), value=0.5)


@superopt.spec(x=Tensor(B, 12, 20), g=Tensor(12), b=Tensor(12), dtype=HALF, tune_at=[{"B": 512}])
def group_norm(x, g, b):
    return F.group_norm(x, 3, g, b)


@superopt.spec(x=Tensor(B, N), dtype=HALF, tune_at=[{"B": 1024, "N": 65536}])
def argmax(x):
    return torch.argmax(x, -1), torch.amax(x, -1)


@superopt.spec(x=Tensor(B, N), dtype=HALF, tune_at=[{"B": 64, "N": 65536}])
def clamped_extremes(x):
    clamped = torch.clamp(x * 2, -1.5, 2.5)
    return clamped.amax(-1), clamped.amin(-1)


@superopt.spec(
    x=Tensor(B, 1000), w=Tensor(1000, 40), v=Tensor(1000, 40), dtype=HALF, tune_at=[{"B": 256}]
)
def gated(x, w, v):
    return F.silu(x @ w) * (x @ v)
