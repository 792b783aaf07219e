"""Bounds for rounding in sums: what a kernel's order of additions gives."""

import emit_cases as cases
import numpy as np
import pytest
import torch

from superopt.mugraph.expr import find
from superopt.mugraph.index import value
from superopt.mugraph.trace import trace
from superopt.spec import Tensor, spec
from superopt.verify.rounding import gamma, sum_bounds


def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x @ w).float().sum(-1)


@pytest.fixture
def program():
    tensors = {"x": Tensor(8, 1000), "w": Tensor(1000, 24)}
    return trace(spec(dtype=torch.float16, **tensors)(fn)).program


def test_a_loop_adds_a_tile_a_turn(program) -> None:
    axes = [a for s in program.stores for n in find(s.value, "reduce") for a in n.attr.axes]
    long = next(a.name for a in axes if value(a.extent, {}) == 1000)
    g = cases.graph(program, {long: "loop"})
    inner, outer = sum_bounds(g, [cases.config(k) for k in g.kernels], {})
    assert (inner.terms, inner.additions, inner.operand) == (1000, 63 + 16 - 2, "f16")
    assert (outer.terms, outer.additions) == (24, 23)
    assert inner.bound == gamma(77) < inner.any_order == gamma(999)


def test_what_is_held_whole_may_be_added_in_any_order(program) -> None:
    (first, *_) = sum_bounds(
        cases.graph(program, {}), [cases.config(cases.graph(program, {}).kernels[0])], {}
    )
    assert first.additions == first.terms - 1
    assert first.bound == first.any_order


def test_the_bound_holds() -> None:
    x = np.random.default_rng(0).standard_normal(1 << 14).astype(np.float32)
    tiles = x.reshape(-1, 64)
    total = np.float32(0)
    for tile in tiles:
        own = np.float32(0)
        for term in tile:
            own += term
        total += own
    error = abs(float(total) - x.astype(np.float64).sum())
    assert error <= gamma(256 + 64 - 2) * np.abs(x.astype(np.float64)).sum()
    assert gamma(1 << 24) == float("inf")
