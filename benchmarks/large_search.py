"""A search of more than 60 seconds: attention between two projections, at six lengths.

Its winner at the longest lengths stores the attention's result, which the same search has not
reached when it is stopped after 10 seconds.
"""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

S = Dim("S", min=1, max=16384)


@superopt.spec(
    x=Tensor(S, 512),
    w=Tensor(512, 64),
    k=Tensor(S, 64),
    v=Tensor(S, 64),
    o=Tensor(64, 512),
    dtype=torch.float16,
    tune_at=[{"S": s} for s in (4096, 512, 1024, 2048, 8192, 16384)],
)
def projected_attention(x, w, k, v, o):
    scores = ((x @ w) @ k.mT).float() * 0.125
    return torch.softmax(scores, -1).to(v.dtype) @ v @ o
