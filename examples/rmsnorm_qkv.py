"""One RMSNorm and the three projections of grouped-query attention that read it."""

import torch
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=4096)


@superopt.spec(
    x=Tensor(B, 4096),
    g=Tensor(4096),
    wq=Tensor(4096, 4096),
    wk=Tensor(4096, 1024),
    wv=Tensor(4096, 1024),
    dtype=torch.float16,
    tune_at=[{"B": 16}],
)
def rmsnorm_qkv(x, g, wq, wk, wv):
    n = torch.nn.functional.rms_norm(x, (x.shape[-1],), g, 1e-6)
    return n @ wq, n @ wk, n @ wv
