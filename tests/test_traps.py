"""Pairs that are almost equal: the check before emitting must refuse them, and keep their twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.export import Dim

from superopt.mugraph.expr import find
from superopt.mugraph.program import Branch, Program, illegal
from superopt.mugraph.trace import trace
from superopt.spec import Tensor, spec
from superopt.verify.tested import tested as check_tested

B, N = Dim("B", min=1, max=4096), Dim("N", min=1, max=64)
FLOAT = {"x": Tensor(B, 24)}
MAY_BE_EMPTY = {"x": Tensor(B, Dim("M", min=0, max=64))}
MASKED = {"x": Tensor(B, 24), "m": Tensor(B, 24, dtype=torch.bool)}
WHOLE = {"i": Tensor(B, 24, dtype=torch.int64, range=(-9, 10))}


def rms(x: torch.Tensor, inside: bool) -> torch.Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return x * torch.rsqrt(mean + 1e-2) if inside else x / (torch.sqrt(mean) + 1e-2)


REFUSED = {
    "a size that may be one": ({"x": Tensor(B, N)}, lambda x: x.sum(-1), lambda x: x[:, 0] + 0),
    "the mean of an empty axis": (
        MAY_BE_EMPTY, lambda x: x.mean(-1),
        lambda x: x.sum(-1) / torch.ones_like(x).sum(-1).clamp(min=1),
    ),
    "clamp's bounds": (FLOAT, lambda x: x.clamp(0, 1), lambda x: x.clamp(-5, 3)),
    "relu of a slope": (FLOAT, lambda x: x.relu(), lambda x: torch.maximum(x / 2, x)),
    "root of a square": (FLOAT, lambda x: x.square().sqrt(), lambda x: x + 0),
    "exp of log": (FLOAT, lambda x: x.log().exp(), lambda x: x + 0),
    "x over x": (FLOAT, lambda x: x / x, lambda x: torch.ones_like(x)),
    "epsilon outside the root": (FLOAT, lambda x: rms(x, True), lambda x: rms(x, False)),
    "a sum across its mask": (
        MASKED, lambda x, m: torch.where(m, x, 0.0).sum(-1),
        lambda x, m: torch.where(m[:, 0], x.sum(-1), 0.0),
    ),
    "a mean that counts masked places": (
        MASKED, lambda x, m: torch.where(m, x, 0.0).sum(-1) / m.float().sum(-1),
        lambda x, m: torch.where(m, x, 0.0).mean(-1),
    ),
    "rows wholly masked": (
        MASKED, lambda x, m: torch.softmax(x.masked_fill(~(m & ~m), -torch.inf), -1),
        lambda x, m: torch.softmax(x.masked_fill(~(m & ~m), -1e30), -1),
    ),
    "division of negative integers": (
        WHOLE, lambda i: torch.div(i, 4, rounding_mode="floor"),
        lambda i: torch.div(i, 4, rounding_mode="trunc"),
    ),
    "remainder of negative integers": (
        WHOLE, lambda i: torch.remainder(i, 4), lambda i: torch.fmod(i, 4),
    ),
    "the larger of what may be negative": (
        FLOAT, lambda x: torch.relu(x.amax(-1)), lambda x: x.amax(-1),
    ),
    "one tie for another": (
        WHOLE, lambda i: (i.float() >= 0).float(), lambda i: (i.float() > 0).float(),
    ),
}  # fmt: skip
ACCEPTED = {
    "log of exp": (FLOAT, lambda x: x.exp().log(), lambda x: x + 0),
    "the mean of an empty axis": (
        MAY_BE_EMPTY, lambda x: x.mean(-1), lambda x: x.sum(-1) / torch.ones_like(x).sum(-1),
    ),
    "a factor past a sum": (FLOAT, lambda x: (x * 3).sum(-1), lambda x: x.sum(-1) * 3),
    "softmax without its maximum": (  # over the reals: the gate is what refuses it
        FLOAT, lambda x: torch.softmax(x, -1), lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    ),
}  # fmt: skip


def program(fn: Callable, tensors: dict[str, Tensor]) -> Program:
    """Of a function given as a lambda: its parameters are the tensors."""
    return trace(spec(dtype=torch.float32, **tensors)(fn)).program


@pytest.mark.parametrize("name", REFUSED)
def test_a_trap_is_refused(name: str) -> None:
    tensors, original, other = REFUSED[name]
    verdict = check_tested(program(original, tensors), program(other, tensors), seed=0)
    assert verdict.kind == "refused", str(verdict)


@pytest.mark.parametrize("name", ACCEPTED)
def test_its_twin_is_not(name: str) -> None:
    tensors, original, other = ACCEPTED[name]
    verdict = check_tested(program(original, tensors), program(other, tensors), seed=0)
    assert verdict.kind == "tested", str(verdict)


def test_a_contraction_split_over_programs_needs_a_merge() -> None:
    tensors = {"x": Tensor(8, 24), "w": Tensor(24, 16)}
    program = trace(spec(dtype=torch.float32, **tensors)(lambda x, w: x @ w)).program
    (k,) = (a for s in program.stores for n in find(s.value, "reduce") for a in n.attr.axes)
    roles = {a.name: "grid" for s in program.stores for a in s.axes} | {k.name: "grid"}
    split = Branch(program.stores, tuple(sorted(roles.items())))
    assert illegal(split) == f"axis {k.name} is reduced but split over programs, with no merge"
    looped = Branch(program.stores, tuple(sorted((roles | {k.name: "loop"}).items())))
    assert illegal(looped) is None
