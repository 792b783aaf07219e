"""What normalising makes of programs: masks, joints, digits, selections, shared names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import traced
from torch.export import Dim

import superopt
from superopt import Tensor
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Expr, find, toposort
from superopt.mugraph.program import Program
from superopt.mugraph.text import print_program
from superopt.mugraph.trace import trace
from superopt.search.normalise import normalise


def values(program: Program) -> list[Expr]:
    return [n for s in program.stores for n in toposort(s.value)]


def reductions(program: Program) -> list[Expr]:
    return [n for n in values(program) if n.op == "reduce"]


def masked_sum(keep):
    """A program that sums exp of what is kept of x[j] for each i, its mask as `keep` spells it."""

    def fn(x):
        i = torch.arange(33)[:, None]
        j = torch.arange(33)
        return torch.exp(x.masked_fill(~keep(i, j), float("-inf"))).sum(-1)

    return normalise(traced(fn, x=(33, 33)))


@pytest.mark.parametrize(
    "keep",
    [
        lambda i, j: j <= i,
        lambda i, j: ~(j > i),
        lambda i, j: torch.ones(33, 33, dtype=torch.bool).tril(),
        lambda i, j: (j <= i).to(torch.bool) & torch.tensor(True),
        lambda i, j: ~((j > i) | (j > i)),
    ],
)
def test_one_mask_spelt_in_several_ways_is_one_comparison(keep) -> None:
    (selection,) = [n for n in values(masked_sum(keep)) if n.op == "where"]
    condition, kept, rest = selection.args
    assert condition.op == "le"
    assert {a.dtype for a in condition.args} == {"index"}
    assert kept.op == "load"
    assert rest.attr == float("-inf")


def test_a_band_is_two_comparisons_of_axes() -> None:
    program = masked_sum(lambda i, j: (j <= i) & (i - j < 8))
    (selection,) = [n for n in values(program) if n.op == "where"]
    assert {n.op for n in selection.args[0].args} == {"le", "lt"}
    assert not [n for n in values(program) if n.dtype == "i64"]


def test_a_bounded_length_is_compared_as_an_index() -> None:
    @superopt.spec(x=Tensor(4, 33), n=Tensor(4, dtype=torch.int64, range=(0, 34)))
    def fn(x, n):
        return torch.where(torch.arange(33) < n[:, None], x, 0.0).sum(-1)

    comparison = next(n for n in values(normalise(trace(fn).program)) if n.op == "lt")
    assert {a.dtype for a in comparison.args} == {"index"}


def test_narrow_integers_keep_their_arithmetic() -> None:
    def fn(x):
        return torch.where(torch.arange(200, dtype=torch.uint8) + 100 < 90, x, 0.0)

    comparison = next(n for n in values(normalise(traced(fn, x=(200,)))) if n.op == "lt")
    assert comparison.args[0].dtype == "u8"  # which wraps at 256


# -- joints -------------------------------------------------------------------------------------


def joined_with_one(x, y):
    return torch.logsumexp(torch.cat([x, y], dim=-1), dim=-1)


def test_a_reduction_is_cut_where_values_are_joined() -> None:
    program = normalise(traced(joined_with_one, x=(7, 40), y=(7, 1)))
    assert {a.extent.attr for r in reductions(program) for a in r.attr.axes} == {40}
    assert not [n for n in values(program) if n.op == "lt"]


def test_a_joint_at_a_symbolic_extent_is_cut_too() -> None:
    n = Dim("N", min=1, max=4096)
    program = traced(joined_with_one, x=(7, n), y=(7, 1))
    normal = normalise(program)
    assert {a.extent.op for r in reductions(normal) for a in r.attr.axes} == {"sym"}
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(7, 5)), "y": rng.normal(size=(7, 1))}
    want, got = (run_program(p, inputs, {"N": 5}) for p in (program, normal))
    np.testing.assert_allclose(got["out"], want["out"])


def test_padding_falls_away_from_a_sum() -> None:
    normal = normalise(traced(lambda x: F.pad(x, (3, 2)).sum(-1), x=(7, 40)))
    (r,) = reductions(normal)
    assert r.attr.axes[0].extent.attr == 40
    assert r.args[0].op == "load"


def test_a_mask_does_not_cut_a_reduction() -> None:
    normal = normalise(
        traced(lambda x: torch.where(torch.arange(64) < 16, x, 0.0).sum(-1), x=(7, 64))
    )
    assert [r.attr.axes[0].extent.attr for r in reductions(normal)] == [64]


# -- digits, selections, names ------------------------------------------------------------------


def test_digits_of_a_reduced_axis_become_axes() -> None:
    normal = normalise(traced(lambda x: F.group_norm(x, 4), x=(2, 8, 5, 3)))
    loads = {tuple(map(str, n.args[:-1])) for n in values(normal) if n.op == "load"}
    assert not any("//" in i or "%" in i for at in loads for i in at)
    assert {len(r.attr.axes) for r in reductions(normal)} == {3}


def test_radices_that_do_not_divide_leave_an_axis_whole() -> None:
    def fn(x):
        k = torch.arange(24)
        return (x[:, k // 4] * x[:, k % 6]).sum(-1)

    (r,) = reductions(normalise(traced(fn, x=(3, 6))))
    assert len(r.attr.axes) == 1


def test_a_selection_leaves_a_sum_over_which_it_does_not_vary() -> None:
    def fn(x, w, keep):
        return torch.where(keep[:, None] > 0, x, 0.0) @ w

    normal = normalise(traced(fn, x=(7, 40), w=(40, 9), keep=(7,)))
    (stored,) = normal.stores
    assert stored.value.op == "where"
    assert not list(find(reductions(normal)[0], "where"))


def test_statistics_of_rows_have_one_name_in_two_outputs() -> None:
    def fn(x):
        p = torch.softmax(x, dim=-1)
        return p.amax(-1), p.sum(-2)

    normal = normalise(traced(fn, x=(33, 40)))
    statistics = {n for n in reductions(normal) if n.args[0].op == "load"}
    assert len(statistics) == 1, print_program(normal)


def test_names_come_from_extents() -> None:
    normal = normalise(traced(lambda x, w: torch.softmax(x, -1) @ w, x=(7, 40), w=(40, 40)))
    assert {a.name for s in normal.stores for a in s.axes} == {"n7", "n40"}
    assert {a.name for r in reductions(normal) for a in r.attr.axes} == {"r40"}


def extremes(fn) -> list[Expr]:
    (value,) = [s.value for s in normalise(traced(fn, x=(5, 33))).stores]
    return [n for n in find(value, "reduce") if n.attr.monoid == "max"]


@pytest.mark.parametrize(
    ("fn", "count"),
    [
        (lambda x: torch.softmax(x, -1).amax(-1), 1),
        (lambda x: torch.log_softmax(x, -1).amax(-1), 1),
        (lambda x: (3 * torch.softmax(x, -1) + x.sum(-1, keepdim=True)).amax(-1), 1),
        (lambda x: (-torch.softmax(x, -1)).amax(-1), 2),  # grows as x falls
        (lambda x: (torch.softmax(x, -1) * x.sum(-1, keepdim=True)).amax(-1), 2),  # of either sign
        (lambda x: (torch.softmax(x, -1) + x).amax(-1), 2),  # x at two places
        (lambda x: torch.exp(x).amax(-1), 1),  # it has no other
    ],
)
def test_an_extreme_of_what_grows_is_computed_from_the_one_that_is_there(fn, count: int) -> None:
    assert len(extremes(fn)) == count
    program = traced(fn, x=(5, 33))
    x = np.random.default_rng(0).normal(size=(5, 33))
    want, got = (run_program(p, {"x": x}, {}) for p in (program, normalise(program)))
    np.testing.assert_allclose(got["out"], want["out"])


def test_where_a_probability_is_largest_is_compared_before_it_is_one() -> None:
    program = normalise(traced(lambda x: torch.softmax(x, -1).argmax(-1), x=(5, 33)))
    (same,) = [n for n in values(program) if n.op == "eq"]
    assert {a.op for a in same.args} == {"load", "reduce"}
