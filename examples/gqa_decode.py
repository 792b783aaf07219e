"""One query a sequence against a cache of keys and values; 32 query heads share 8 of these."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

S = Dim("S", min=1, max=65536)


@superopt.spec(
    q=Tensor(1, 32, 1, 128),
    k=Tensor(1, 8, S, 128),
    v=Tensor(1, 8, S, 128),
    dtype=torch.float16,
    tune_at=[{"S": 8192}],
)
def gqa_decode(q, k, v):
    k, v = (x.repeat_interleave(4, dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / 128**0.5
    return torch.softmax(scores, -1) @ v
