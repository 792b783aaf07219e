"""A chain of twelve elementwise operators with broadcasting, and three results."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=65536)


@superopt.spec(
    x=Tensor(B, 4096),
    y=Tensor(B, 4096),
    scale=Tensor(4096),
    shift=Tensor(4096),
    row=Tensor(B, 1),
    dtype=torch.float16,
    tune_at=[{"B": 2048}],
)
def pointwise(x, y, scale, shift, row):
    a = x * scale + shift
    gate = torch.sigmoid(a - row)
    mixed = gate * y + (1 - gate) * x
    return torch.tanh(mixed), torch.clamp(mixed.abs(), max=4.0), torch.relu(mixed)
