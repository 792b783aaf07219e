"""nGPT's update of the hidden state: a step towards x on the unit sphere (arXiv:2410.01131)."""

import torch
from torch.export import Dim
from torch.nn.functional import normalize

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=65536)


@superopt.spec(
    h=Tensor(B, 4096),
    x=Tensor(B, 4096),
    a=Tensor(4096),
    dtype=torch.float16,
    tune_at=[{"B": 2048}],
)
def ngpt_update(h, x, a):
    return normalize(h + a * (normalize(x, dim=-1) - h), dim=-1)
