"""RMSNorm, its gain, and the linear layer behind it."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=4096)


@superopt.spec(
    x=Tensor(B, 4096),
    g=Tensor(4096),
    w=Tensor(4096, 6144),
    dtype=torch.float16,
    tune_at=[{"B": 16}, {"B": 1}, {"B": 4096}],
)
def rmsnorm_linear(x, g, w):
    n = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return (n.to(x.dtype) * g) @ w
