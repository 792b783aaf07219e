"""The model against configurations that an H200 timed: results/h200, no measurement here."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from superopt.emit.compile import load

ROOT = Path(__file__).parents[1]
replay = load(ROOT / "benchmarks/replay.py")
PAIRS = json.loads((ROOT / "results/h200/compiled.json").read_text())["pairs"]


@pytest.fixture(scope="module")
def rows() -> list[list[dict[str, Any]]]:
    return [replay.replayed(pair, "h200", estimated=False) for pair in PAIRS]


def test_measured_times_are_ranked_and_predicted(rows: list[list[dict[str, Any]]]) -> None:
    found = [replay.regret.figures(own) for own in rows]
    errors = [math.log(r["predicted_us"] / r["measured_us"]) for own in rows for r in own]
    assert statistics.median(f["spearman"] for f in found if f["spearman"] is not None) >= 0.9
    assert statistics.median(f["top_1"] for f in found) <= 0.02
    assert max(f["top_8"] for f in found) <= 0.05
    assert math.sqrt(statistics.fmean(e * e for e in errors)) <= 0.36


@pytest.mark.parametrize("n", [n for n, p in enumerate(PAIRS) if "attention" in p["kernel"]])
def test_attention_is_predicted_within_a_quarter(n: int, rows: list[list[dict[str, Any]]]) -> None:
    best = rows[n][0]
    assert 0.75 <= best["predicted_us"] / best["measured_us"] <= 1.25


def test_an_entry_goes_where_entries_of_its_kind_stood() -> None:
    source = '{1: (_run_1, {"BLOCK_B": 1, "num_warps": 8}), 2: {"num_warps": 2}}'
    assert replay.configured(source, {"BLOCK_B": 4, "num_warps": 2}) == source.replace(
        '"BLOCK_B": 1, "num_warps": 8', '"BLOCK_B": 4, "num_warps": 2'
    )
