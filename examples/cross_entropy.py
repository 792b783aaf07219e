"""The loss of a language model's logits, one a token; the row of logits is read once."""

import torch
import torch.nn.functional as F
from torch.export import Dim

import superopt
from superopt import Tensor

B = Dim("B", min=1, max=65536)


@superopt.spec(
    x=Tensor(B, 131072),
    target=Tensor(B, dtype=torch.int64, range=(0, 131072)),
    dtype=torch.float16,
    tune_at=[{"B": 4096}],
)
def cross_entropy(x, target):
    return F.cross_entropy(x.float(), target, reduction="none")
