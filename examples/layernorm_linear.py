"""Layer normalization, then a linear layer: the mean is not known when its products are summed."""

import torch
import torch.nn.functional as F
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=8192)


@superopt.spec(
    x=Tensor(B, 1024),
    g=Tensor(1024),
    b=Tensor(1024),
    w=Tensor(1024, 1024),
    dtype=torch.float16,
    tune_at=[{"B": 256}],
)
def layernorm_linear(x, g, b, w):
    return F.layer_norm(x, (1024,), g, b) @ w
