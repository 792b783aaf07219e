"""Rows of a table for sizes between the tuned: which there are, and which sizes take them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import superopt
from superopt import Tensor
from superopt.buckets import WITHIN, lattice, needed, row_for
from superopt.emit.compile import launches, load
from superopt.mugraph.expr import Symbol
from superopt.search.space import Sizes


def at(**sizes: int) -> Sizes:
    return tuple(sorted(sizes.items()))


def test_a_lattice_lies_between_the_least_and_the_largest_tuned() -> None:
    b = Symbol("B", 1, 1 << 20)
    found = lattice([b], [at(B=16), at(B=4096)])
    assert found == [at(B=n) for n in (1, 4, 64, 256, 1024)]
    assert lattice([b], [at(B=1)]) == []
    assert lattice([Symbol("Z", 0, 8)], [at(Z=8)]) == [at(Z=1), at(Z=4)]


def test_several_symbols_have_all_pairs_of_their_sizes() -> None:
    assert lattice([], [()]) == []
    both = [Symbol("N", 2, 1 << 20), Symbol("B", 1, 64)]
    found = lattice(both, [at(B=1, N=8), at(B=4, N=8)])
    assert found == [at(B=1, N=2), at(B=4, N=2)]
    assert lattice(both, [at(B=4, N=8)]) == [at(B=1, N=2), at(B=1, N=8), at(B=4, N=2)]


def test_a_row_that_is_in_the_way_of_another_goes_too() -> None:
    """Without the row of B=4, N=4, B=1 falls to one of its own kind."""
    rows = [at(B=1, N=4), at(B=4, N=4)]

    def time(sizes: Sizes, row: Sizes) -> float:
        return 20.0 if sizes == rows[0] and row == rows[1] else 10.0

    assert needed(rows, [at(B=64, N=64)], time) == []


def test_the_first_row_whose_limits_hold_is_taken_else_the_last() -> None:
    rows = [at(B=64, N=64), at(B=1, N=128), at(B=8, N=8)]
    assert row_for(at(B=8, N=8), rows) == at(B=8, N=8)
    assert row_for(at(B=1, N=9), rows) == at(B=1, N=128)
    assert row_for(at(B=2, N=9), rows) == at(B=64, N=64)
    assert row_for(at(B=99, N=1), rows) == at(B=64, N=64)


@pytest.mark.parametrize("slower, kept", [(WITHIN, []), (WITHIN + 0.001, [at(B=4)])])
def test_what_another_row_runs_nearly_as_fast_has_no_row(slower: float, kept: list[Sizes]) -> None:
    def time(sizes: Sizes, row: Sizes) -> float:
        return 10.0 if sizes == row else 10.0 * slower

    assert needed([at(B=4)], [at(B=64)], time) == kept


def test_a_row_stays_where_another_size_needs_it() -> None:
    """B=1 is as fast in the row of B=4, which B=64 is too far from for both."""

    def time(sizes: Sizes, row: Sizes) -> float:
        return 10.0 if max(dict(sizes)["B"], 4) == max(dict(row)["B"], 4) else 20.0

    assert needed([at(B=1), at(B=4)], [at(B=64)], time) == [at(B=4)]


ROWS = Dim("B", min=1, max=4096)


@superopt.spec(x=Tensor(ROWS, 256), w=Tensor(256, 512), dtype=torch.float16, tune_at=[{"B": 4096}])
def wide(x, w):
    return torch.relu(x @ w)


def test_a_kernel_has_rows_for_the_sizes_between(tmp_path: Path) -> None:
    result = superopt.search(wide, out=tmp_path)
    report = result.report
    assert [row["sizes"] for row in report["sizes"]] == [{"B": 4096}]
    limits = [row["sizes"]["B"] for row in report["buckets"]]
    assert limits
    assert all(stats["spilled_bytes"] == 0 for r in report["buckets"] for stats in r["compiled"])
    module = load(result.folder / "kernel.py")
    assert list(module.CONFIGS) == [*limits, 4096]
    assert all(a != b for a, b in pairwise(module.CONFIGS.values()))  # else they are one bucket
    for limit in module.CONFIGS:  # a size's constants are those of its row, and the program's own
        constants = [launches(module, {"B": b})[0].options for b in (limit, limit - 3) if b > 0]
        assert all(c == constants[0] for c in constants)
