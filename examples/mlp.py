"""A transformer's feed-forward block with biases."""

import torch
from torch.nn.functional import gelu

import superopt
from superopt import Tensor


@superopt.spec(
    x=Tensor(64, 1024),
    w1=Tensor(1024, 4096),
    b1=Tensor(4096),
    w2=Tensor(4096, 1024),
    b2=Tensor(1024),
    dtype=torch.float16,
)
def mlp(x, w1, b1, w2, b2):
    return gelu(x @ w1 + b1) @ w2 + b2
