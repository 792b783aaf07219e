"""Small programs that several tests search, and a short way to trace a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import superopt
from superopt import Tensor
from superopt.mugraph.program import Program
from superopt.mugraph.trace import trace


def traced(fn: Callable[..., Any], dtype: torch.dtype = torch.float32, **shapes: Any) -> Program:
    """The program of a function whose tensors have the given extents."""
    tensors = {n: Tensor(*(s if isinstance(s, tuple) else (s,))) for n, s in shapes.items()}
    return trace(superopt.spec(dtype=dtype, **tensors)(fn)).program


def norm_linear(x, g, w):
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return ((x.float() * scale).to(x.dtype) * g) @ w


def norm_matmul(x, w):
    return (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True))) @ w


def three_factors(a, b, c):
    return a @ b @ c


def normalized_exp(x):
    e = torch.exp(x)
    return e / e.sum(-1, keepdim=True)


def two_layers(x, a, b):
    return F.gelu(x @ a) @ b


def standardize(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def halves(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1) + x


def projections(x, a, b, c):
    return x @ a, x @ b, x @ c
