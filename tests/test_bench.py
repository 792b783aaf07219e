"""Measuring, rehearsed: the harness, the tables it writes, profiles, and a visit to a GPU."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import superopt
from superopt import Tensor, bench
from superopt.cli import app
from superopt.cost_model import timing
from superopt.cost_model.profile import load_profile
from superopt.emit.compile import load
from superopt.errors import CheckFailed, UsageError
from superopt.pipeline import Settings, searched

ROOT = Path(superopt.__file__).parents[1]
ROWS = torch.export.Dim("B", min=1, max=64)


@superopt.spec(x=Tensor(ROWS, 24), w=Tensor(24, 16), dtype=torch.float16, tune_at=[{"B": 64}])
def small(x, w):
    return torch.softmax(x.float(), dim=-1).to(x.dtype) @ w


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kernels")
    return superopt.search(small, out=out).folder


@pytest.fixture
def kernel(folder: Path) -> bench.Kernel:
    return bench.Kernel.of(folder)


def row(peer: str, us: float, mode: str = "call", status: str = "ok") -> dict[str, Any]:
    return {"peer": peer, "mode": mode, "status": status, "median_us": us}


# -- correctness --------------------------------------------------------------------------------


def test_the_oracle_computes_in_float64() -> None:
    def fn(x):
        return (x.float() * 3).to(torch.float32).half() + torch.ones(2, dtype=torch.float16)

    (got,) = bench.in_float64(fn, [torch.tensor([1 / 3, 1e9], dtype=torch.float64)])
    assert got.dtype == torch.float64
    assert got.tolist() == [2.0, 3e9 + 1]


def test_a_kernel_is_right_and_a_wrong_peer_is_seen(kernel: bench.Kernel) -> None:
    peers = {
        "ours": kernel.function,
        "off": lambda x, w: kernel.module.reference(x, w) * 1.01,
        "nan": lambda x, w: torch.full((len(x), 16), float("nan"), dtype=x.dtype),
        "unwritten": lambda x, w: x.new_empty(len(x), 16),
        "wide": lambda x, w: kernel.module.reference(x, w).float(),
    }
    at, errors = bench.check(kernel, peers, {"B": 7}, 0, "cpu")
    assert at == {"B": 7}
    assert errors["ours"] <= 1 < errors["off"]
    assert errors["nan"] == float("inf")
    assert "float32, eager's (7, 16) torch.float16" in errors["wide"]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 fits up to 20 rows."""
    whole = bench.in_float64

    def in_float64(fn: Any, inputs: list[torch.Tensor]) -> Any:
        if len(inputs[0]) > 20:
            raise torch.OutOfMemoryError("no room")
        return whole(fn, inputs)

    monkeypatch.setattr(bench, "in_float64", in_float64)


@pytest.mark.usefixtures("small_memory")
def test_a_comparison_that_does_not_fit_is_made_at_half_the_size(kernel: bench.Kernel) -> None:
    at, errors = bench.check(kernel, {"ours": kernel.function}, {"B": 64}, 0, "cpu")
    assert at == {"B": 16}
    assert errors["ours"] <= 1


# -- the harness --------------------------------------------------------------------------------


def test_each_call_runs_once_a_round_and_failures_are_results() -> None:
    seen: list[str] = []

    def broken() -> None:
        raise RuntimeError("no such backend\nand more")

    calls = {"a": lambda: seen.append("a"), "b": broken, "c": lambda: seen.append("c")}
    found = timing.interleaved(calls, timing.RehearsedClock(), 1e-9)
    assert found["b"] == "RuntimeError: no such backend"
    assert found["a"] == timing.Timing(1.0, 1.0, 1.0, timing.LEAST_ROUNDS)
    rounds = seen[4:]
    pairs = [set(rounds[n : n + 2]) for n in range(0, len(rounds), 2)]
    assert pairs == [{"a", "c"}] * timing.LEAST_ROUNDS


def test_a_lost_gpu_ends_the_run() -> None:
    assert timing.failure(RuntimeError("CUDA out of memory")) == "RuntimeError: CUDA out of memory"
    with pytest.raises(CheckFailed, match="run again: what was finished is kept"):
        timing.failure(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_busy_gpu_is_refused() -> None:
    timing.refuse_busy(lambda: ["10", "1024"])
    answers = iter([["100", "0"], ["99", "0"], ["0", "0"]])  # of a process that has just ended
    timing.refuse_busy(lambda: next(answers), 0.0)
    for answer in (["11", "0"], ["0", "1025"]):
        with pytest.raises(UsageError, match="the GPU is busy: .*CUDA_VISIBLE_DEVICES"):
            timing.refuse_busy(lambda: answer, 0.0)  # noqa: B023


def test_what_is_too_good_is_flagged() -> None:
    at_most = [row(bench.OURS, 100), row("flash", 110), row(bench.TUNED, 199)]
    assert not bench.suspicious(at_most, {"flash": None})
    faster = [row(bench.OURS, 100), row("flash", 111)]
    assert "1.11 times as fast as the best expert" in bench.suspicious(faster, {"flash": None})
    tuned = [row(bench.OURS, 100, "graph"), row(bench.TUNED, 200, "graph")]
    assert "2.00 times as fast as torch.compile" in bench.suspicious(tuned, {})
    wrong = [row(bench.OURS, 100), row("flash", 300, status="wrong")]
    assert not bench.suspicious(wrong, {"flash": None})


def test_the_roofline_leaves_out_masked_tiles(kernel: bench.Kernel) -> None:
    (row,) = kernel.report["sizes"]
    h200 = load_profile("h200")
    memory = {"distinct_bytes": 4800, "flops": 2.0}
    least = row | {"baselines": {"roofline": memory}, "best": {"flops": 1.0}}
    assert bench.roofline(kernel, least) == (4800, 1.0, pytest.approx(1e-3))
    work = {"distinct_bytes": 1, "flops": 2 * h200.dot_f16}
    masked = row | {"baselines": {"roofline": work}, "best": {"flops": h200.dot_f16}}
    masked["compiled"] = [{"dots": ["wgmma"]}]
    assert bench.roofline(kernel, masked)[2] == pytest.approx(1e6)


# -- the commands -------------------------------------------------------------------------------


PEERS = """
def fails(x, w):
    raise RuntimeError("made for another GPU")

PEERS = {"small": {"expert": fails}}
"""


def test_bench_rehearsed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "peers.py").write_text(PEERS)
    call = ["bench", str(folder), "--rehearse", "--out", str(tmp_path)]
    call += ["--peers", str(tmp_path / "peers.py")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "expert failed" in done.output
    rows = list(csv.DictReader((tmp_path / "rehearsed.csv").open()))
    assert {r["kind"] for r in rows} == {"rehearsed"}
    assert {r["peer"] for r in rows if r["status"] == "ok"} == {
        bench.OURS, bench.EAGER, bench.COMPILED, bench.TUNED,
    }  # fmt: skip
    failed = [r for r in rows if r["peer"] == "expert"]
    assert [r["note"] for r in failed] == ["RuntimeError: made for another GPU"] * 2
    data = json.loads((tmp_path / "rehearsed.json").read_text())
    assert "no figure here is a measurement" in data["environment"]["device"]
    assert not any("of_roofline" in r for r in data["rows"])

    data["rows"][0]["note"] = "kept"  # a second run keeps what the first has
    (tmp_path / "rehearsed.json").write_text(json.dumps(data))
    assert CliRunner().invoke(app, call).exit_code == 0
    again = json.loads((tmp_path / "rehearsed.json").read_text())
    assert again["rows"][0]["note"] == "kept"
    assert len(again["rows"]) == len(rows)


def test_bench_says_what_is_left_out(folder: Path, tmp_path: Path) -> None:
    data = bench.bench([folder], tmp_path, timing.RehearsedClock(), None, -1.0, 0.0)
    assert data["left_out"] == [
        "small at B=64: no time was left",
        "small at B=64 against torch.compile max-autotune: no time was left",
    ]


def test_a_folder_without_a_kernel_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(tmp_path), "--rehearse"])
    assert done.exit_code == 2
    assert "not a folder that search wrote" in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_measuring_needs_a_gpu(folder: Path) -> None:
    for call in (["bench", str(folder)], ["profile"]):
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 2
        assert "nvidia-smi does not answer" in done.output


def test_a_rehearsed_profile_is_refused_and_a_measured_one_loads(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    done = CliRunner().invoke(app, ["profile", "--rehearse", "--out", str(path)])
    assert done.exit_code == 0, done.output
    with pytest.raises(UsageError, match="its figures are rehearsed, not measured"):
        load_profile(str(path))
    data = json.loads(path.read_text())
    assert not [r for r in data["measurements"] if "note" in r]
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps(data | {"kind": "measured"}))
    found, base = load_profile(str(measured)), load_profile("h200")
    assert found.dot_f16 == base.dot_f16
    assert found.launch_s == pytest.approx(0.5e-6)  # two launches in the stubbed microsecond
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({k: data[k] for k in ("name", "arch")}))
    with pytest.raises(UsageError, match="not a profile"):
        load_profile(str(broken))


# -- a visit ------------------------------------------------------------------------------------


@pytest.fixture
def without_provers(tmp_path: Path) -> str:
    """A folder for PYTHONPATH in which importing what a GPU machine lacks fails."""
    out = tmp_path / "blocked"
    out.mkdir()
    for name in ("z3", "cvc5", "ray", "egglog", "ruff", "matplotlib"):
        (out / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    return str(out)


def visit(kernels: Path, out: Path, path: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks/gpu_visit.sh"), str(kernels), str(out), "--rehearse"]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_visit_rehearsed(folder: Path, tmp_path: Path, without_provers: str) -> None:
    kernels, out = tmp_path / "kernels", tmp_path / "out"
    (kernels / "suite").mkdir(parents=True)
    shutil.copytree(folder, kernels / "suite" / "small")
    done = visit(kernels, out, without_provers)
    log = (out / "visit.log").read_text()
    assert done.returncode == 0, done.stdout + log
    assert "2 passed" in log
    steps = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    named = {s["step"]: s for s in steps}
    assert {"tests", "profile", "bench", "regret"} <= named.keys()
    assert {(s["exit"], s["kind"]) for s in steps} == {(0, "rehearsed")}
    assert json.loads((out / "profile.json").read_text())["kind"] == "rehearsed"
    assert "matplotlib is not installed" in json.loads((out / "rehearsed.json").read_text())["plot"]
    (pair,) = json.loads((out / "regret.json").read_text())["pairs"]
    assert pair["kind"] == "rehearsed"
    assert 2 <= len(pair["rows"]) <= 3
    assert not any("note" in r for r in pair["rows"])
    written = (out / "manifest.jsonl").read_text()
    again = visit(kernels, out, without_provers)
    assert again.stdout.count("done before") == 4
    assert (out / "manifest.jsonl").read_text() == written


def regret() -> Any:
    return load(ROOT / "benchmarks/regret.py")


@pytest.mark.usefixtures("small_memory")
def test_configurations_are_timed_at_sizes_that_float64_does_not_fit(kernel: bench.Kernel) -> None:
    study = regret()
    table = study.slots(kernel.module, {"B": 64})
    entries = [dict(table[0]), {**table[0], "num_warps": 2 * table[0]["num_warps"]}]
    guess = SimpleNamespace(time_us=1.0)
    task = study.Task({"B": 64}, [(entry, guess) for entry in entries], [])
    found = study.study(kernel, task, timing.clock_for(rehearse=True))
    assert [row["config"] for row in found["rows"]] == entries
    assert all("measured_us" in row for row in found["rows"])
    assert table[0] == entries[0], "the table is as it was"


def test_regret_and_ranks() -> None:
    rows = [{"predicted_us": p, "measured_us": m} for p, m in ((1, 2), (2, 1), (3, 4))]
    found = regret().figures(rows)
    assert (found["top_1"], found["top_8"], found["spearman"]) == (1.0, 0.0, 0.5)
    failed = [{"predicted_us": 1.0, "note": "failed"}, *rows]
    assert regret().figures(failed)["top_1"] == float("inf")
    assert regret().ranks([5.0, 1.0, 5.0]) == [2.0, 0.5, 2.0]


def test_an_entry_is_changed_wherever_its_equals_stand() -> None:
    """Sizes up to 4 and up to 8 have equal entries; another µGraph's entry lacks a tile."""
    own = {"BLOCK_N": 16, "BLOCK_B": 2, "num_warps": 4}
    table = {4: own, 8: dict(own), 9: {"BLOCK_B": 2, "num_warps": 4}}

    def launch(x: torch.Tensor, wrap: Any) -> None:
        config = next(c for limit, c in table.items() if len(x) <= limit)
        wrap(None)[(1,)](x, **config)

    module = ModuleType("kernel")
    module.SIGNATURE, module.CONFIGS, module._launch = (
        {"x": (torch.float16, ("N",))}, table, launch,
    )  # fmt: skip
    changed = own | {"BLOCK_N": 32}
    regret().put(regret().slots(module, {"N": 7}), changed)
    assert table == {4: changed, 8: changed, 9: {"BLOCK_B": 2, "num_warps": 4}}


def test_the_suite_names_its_experts_kernels() -> None:
    suite = load(ROOT / "benchmarks/suite.py")
    known = suite.suite()
    assert set(suite.PEERS) <= set(known)
    assert {s.name for s in suite.others(known)}.isdisjoint(known)


def test_the_suites_table_configures_each_gpu_anew() -> None:
    table = load(ROOT / "benchmarks/suite_table.py")
    run = searched(small, Settings("h200"))
    other = table.with_candidates(run, load_profile("a100"))
    assert other.left == other.outcome.candidates
    assert {id(c) for c in other.left}.isdisjoint(map(id, run.left))


def test_the_suites_table_keeps_the_rows_of_other_entries(tmp_path: Path) -> None:
    table = load(ROOT / "benchmarks/suite_table.py")
    page, columns = tmp_path / "README.md", table.head(("h200",))
    page.write_text(f"{table.MARKS[0]}\n\n{table.MARKS[1]}\n")
    assert table.written(page, columns) == {}
    found = {
        "lora": ["| lora | 3 |"],
        "softmax": ["| softmax at N=1 | 4 |", "| softmax at N=2 | 5 |"],
    }
    table.write(page, "\n".join([*columns, *found["lora"], *found["softmax"]]))
    assert table.written(page, columns) == found
    assert table.written(page, table.head(("h200", "h100"))) == {}


def test_the_suites_table_goes_between_its_marks(tmp_path: Path) -> None:
    table = load(ROOT / "benchmarks/suite_table.py")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.MARKS[0]}\nold\n{table.MARKS[1]}\nafter\n")
    table.write(page, "| new |")
    table.write(page, "| newer |")
    assert page.read_text() == f"before\n{table.MARKS[0]}\n| newer |\n{table.MARKS[1]}\nafter\n"
    assert all(mark in (ROOT / "results/README.md").read_text() for mark in table.MARKS)
