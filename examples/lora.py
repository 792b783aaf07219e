"""A linear layer with a low-rank adapter beside it."""

import torch

import superopt
from superopt import Tensor


@superopt.spec(
    x=Tensor(16, 256),
    w=Tensor(256, 4096),
    a=Tensor(256, 16),
    b=Tensor(16, 4096),
    dtype=torch.float16,
)
def lora(x, w, a, b):
    return x @ w + (x @ a) @ b
