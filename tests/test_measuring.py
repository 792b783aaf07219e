"""search --measure, rehearsed: the budget, kernels that take their process down, the refit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contention import online
from torch.export import Dim

import superopt
from superopt import Tensor, measuring
from superopt.cost_model.configs import ranked
from superopt.cost_model.model import predict
from superopt.cost_model.profile import load_profile
from superopt.cost_model.refit import LEAST, Case, error, refit
from superopt.errors import UsageError
from superopt.measuring import MOST, Measuring
from superopt.mugraph.program import Kernel, KernelGraph

ROWS = Dim("B", min=1, max=64)


@superopt.spec(x=Tensor(ROWS, 24), w=Tensor(24, 16), dtype=torch.float16, tune_at=[{"B": 64}])
def small(x, w):
    return torch.softmax(x.float(), dim=-1).to(x.dtype) @ w


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> superopt.Result:
    out = tmp_path_factory.mktemp("measured")
    return superopt.search(small, out=out, measure=60.0, rehearse=True)


def test_the_best_configurations_are_timed_and_the_row_says_so(result: superopt.Result) -> None:
    (row,) = result.report["sizes"]
    assert 1 < len(row["measured"]) <= MOST
    assert {m["kind"] for m in row["measured"]} == {"rehearsed"}
    assert all(m["median_us"] == 1.0 and m["error_over_allowed"] <= 1 for m in row["measured"])
    assert len({json.dumps(m["config"]) for m in row["measured"]}) == len(row["measured"])
    assert row["best"]["config"] == row["measured"][0]["config"]  # all take 1 us: the first stays
    assert row["best"]["measured_us"] is None  # a rehearsal is none
    assert "# rehearsed: no measurement\nCONFIG = {" in result.source
    assert result.report["best"]["verdict"] == "proved"


def test_the_refitted_profile_of_a_rehearsal_is_refused(result: superopt.Result) -> None:
    path = result.folder / "profile.json"
    facts = json.loads(path.read_text())["facts"]
    assert "fitted to " in facts["launch_s"]["source"]
    with pytest.raises(UsageError, match="rehearsed, not measured"):
        load_profile(str(path))


def rows_of(result: superopt.Result, texts: list[str], m: Measuring) -> list[dict[str, Any]]:
    tensors = result.report["spec"]["tensors"]
    return [m(text, "small", tensors, {"B": 64}) for text in texts]


def test_a_kernel_that_ends_its_process_is_a_row(
    result: superopt.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "PATIENCE", 20.0)
    good, launch = result.source, "    programs = "
    assert launch in good
    gone = good.replace(launch, f"    __import__('os')._exit(9)\n{launch}")
    fails = good.replace(launch, f"    raise RuntimeError('no launch')\n{launch}")
    wrong = good.replace("return out", "return out + 1")
    with Measuring(100.0, rehearse=True) as m:
        rows = rows_of(result, [gone, fails, wrong, good], m)
        assert 0 < m.budget < 100.0
        monkeypatch.setattr(measuring, "PATIENCE", 1.0)
        hangs = good.replace(launch, f"    __import__('time').sleep(60)\n{launch}")
        (late,) = rows_of(result, [hangs], m)
    assert rows[0] == {"note": "the process that ran it ended with code 9"}
    assert rows[1]["note"] == "RuntimeError: no launch"
    assert rows[2]["note"].startswith("wrong: ")
    assert rows[3]["median_us"] == 1.0
    assert late == {"note": "it did not end in 1 s"}


def test_no_time_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measure is 0.0 s; a positive time is needed"):
        superopt.search(small, out=tmp_path, measure=0.0)
    with pytest.raises(UsageError, match="only measuring is rehearsed"):
        superopt.search(small, out=tmp_path, rehearse=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_measuring_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nvidia-smi does not answer"):
        superopt.search(small, out=tmp_path, measure=1.0)


def test_a_refit_finds_the_machine_that_was_measured() -> None:
    m = online()
    tensors = [a.tensor for f in m.parts for a in f.accesses]
    inputs = tuple(dict.fromkeys(t for t in tensors if t.name != "out"))
    outputs = tuple(dict.fromkeys(t for t in tensors if t.name == "out"))
    graph = KernelGraph("weighted", inputs, (Kernel("k0", m.kernel.branches),), outputs)
    machine = m.profile.scaled(dot_fraction=0.7, launch_s=4.0)
    configs = [(c,) for c, _ in ranked(m, kept=LEAST)]
    cases = [Case(graph, c, {}, predict(graph, c, {}, machine).time_us) for c in configs]
    found = refit(m.profile, cases)
    assert error(found, cases) < 0.01 * error(m.profile, cases)
    assert found.dot_fraction == pytest.approx(machine.dot_fraction, rel=0.1)
    assert refit(m.profile, cases[1:]) == m.profile  # too few
