"""Softmax attention as its definition reads, for any number of queries and keys."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=64)
S = Dim("S", min=1, max=16384)


@superopt.spec(
    q=Tensor(B, 16, S, 64),
    k=Tensor(B, 16, S, 64),
    v=Tensor(B, 16, S, 64),
    dtype=torch.float16,
    tune_at=[{"B": 1, "S": 4096}],
)
def attention(q, k, v):
    scores = q @ k.transpose(-1, -2) * 0.125
    return torch.softmax(scores, -1) @ v
