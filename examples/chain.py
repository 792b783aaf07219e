"""Three matrices multiplied left to right, which is the dear order: 4096×4096 in between."""

import torch

import superopt
from superopt import Tensor


@superopt.spec(a=Tensor(4096, 64), b=Tensor(64, 4096), c=Tensor(4096, 64), dtype=torch.float16)
def chain(a, b, c):
    return a @ b @ c
