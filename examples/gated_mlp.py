"""The gated half of a SwiGLU block: both products and the gate."""

import torch
from torch.nn.functional import silu

import superopt
from superopt import Tensor


@superopt.spec(x=Tensor(8, 4096), w1=Tensor(4096, 4096), w2=Tensor(4096, 4096), dtype=torch.float16)
def gated_mlp(x, w1, w2):
    return silu(x @ w1) * (x @ w2)
