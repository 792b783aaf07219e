"""The model, from datasheets alone, against figures that others measured and published."""

from __future__ import annotations

from pathlib import Path

import pytest

import superopt
from superopt.cost_model.profile import load_profile
from superopt.emit.compile import load

known = load(Path(superopt.__file__).parents[1] / "benchmarks/known_numbers.py")


@pytest.mark.parametrize("row", known.rows(), ids=lambda r: f"{r.gpu}: {r.what}, {r.source[:12]}")
def test_a_published_figure_is_predicted(row: known.Row) -> None:
    predicted = row.predicted(load_profile(row.gpu))
    assert abs(row.off(predicted)) <= known.TOLERANCE, f"{predicted:.4g}, published {row.published}"


@pytest.mark.parametrize("facts", [{"dot_fraction": 0.8}, {"dram_fraction": 0.6}])
def test_another_machine_is_told_apart(facts: dict[str, float]) -> None:
    machine = load_profile("h100").scaled(**facts)
    rows = [r for r in known.rows() if r.gpu == "h100"]
    assert any(abs(r.off(r.predicted(machine))) > known.TOLERANCE for r in rows)


def test_a_range_holds_what_is_inside_it() -> None:
    row = next(r for r in known.rows() if r.published[0] < r.published[1])
    low, high = row.published
    assert [row.off(x) for x in (low, high)] == [0.0, 0.0]
    assert row.off(low * 0.9) == pytest.approx(-0.1)
    assert row.off(high * 1.1) == pytest.approx(0.1)
