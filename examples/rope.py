"""Rotary position embedding in its rotate-half form, with tables of cosines and sines."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=64)
S = Dim("S", min=1, max=131072)


def rotate_half(x):
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


@superopt.spec(
    x=Tensor(B, S, 32, 128),
    cos=Tensor(S, 128),
    sin=Tensor(S, 128),
    dtype=torch.float16,
    tune_at=[{"B": 4, "S": 2048}],
)
def rope(x, cos, sin):
    return x * cos[:, None, :] + rotate_half(x) * sin[:, None, :]
