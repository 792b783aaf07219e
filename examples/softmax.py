"""Softmax over rows from one element to a quarter of a million."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=4096)
N = Dim("N", min=1, max=262144)


@superopt.spec(
    x=Tensor(B, N),
    dtype=torch.float16,
    tune_at=[
        {"B": 1024, "N": 4096},
        {"B": 1024, "N": 1024},
        {"B": 1024, "N": 32768},
        {"B": 1024, "N": 262144},
    ],
)
def softmax(x):
    return torch.softmax(x, dim=-1)
