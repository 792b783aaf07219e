"""A residual connection and the LayerNorm behind it; both are used further on."""

import torch
from torch.export import Dim
from torch.nn.functional import layer_norm

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=65536)


@superopt.spec(
    x=Tensor(B, 4096),
    r=Tensor(B, 4096),
    weight=Tensor(4096),
    bias=Tensor(4096),
    dtype=torch.float16,
    tune_at=[{"B": 2048}],
)
def layernorm_residual(x, r, weight, bias):
    s = x + r
    return layer_norm(s, (4096,), weight, bias, 1e-5), s
