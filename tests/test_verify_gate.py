"""The numeric gate: sound kernels pass, each way of breaking one is refused, and says where."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import verify_kernels as kernels

from superopt.mugraph.program import Program
from superopt.mugraph.trace import trace
from superopt.process import helper
from superopt.spec import Tensor, spec
from superopt.verify import GateResult, SpecShape, Worker, closed, gate, gate_sizes, verify_folder
from superopt.verify.hostile import ROWS, Inputs
from superopt.verify.judge import Judgement, judge, pooled, stored, ulp
from superopt.verify.worker import points_in, regroup, tame, unless_regrouped


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


def run(
    worker: Worker, folder: Path, program: Program, source: str, full: bool = False
) -> GateResult:
    path = folder / "kernel.py"
    path.write_text(source)
    sizes = [{"B": 1}, {"B": 7}, {"B": 17}]
    return gate(program, path, worker=worker, sizes=sizes, full=full, seconds=20.0)


SOUND = {
    "norm_linear": (kernels.norm_linear, kernels.NORM_LINEAR),
    "softmax_rows": (kernels.softmax_rows, kernels.SOFTMAX),
    "centred_rows": (kernels.centred_rows, kernels.CENTRED),
    "online_softmax": (kernels.softmax_rows, kernels.ONLINE_SOFTMAX),
    "decay": (kernels.decay, kernels.DECAY),
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("full", [False, True])
def test_sound_kernels_pass(worker: Worker, tmp_path: Path, name: str, full: bool) -> None:
    program, source = SOUND[name]
    result = run(worker, tmp_path, program(), source, full)
    assert result.passed, str(result)
    assert result.worst <= 1
    assert not result.left_out


@pytest.mark.parametrize("old, new", [("", ""), ("acc * scale", "1.02 * acc * scale")])
def test_bfloat16_is_computed_as_a_gpu_does(
    worker: Worker, tmp_path: Path, old: str, new: str
) -> None:
    source = kernels.NORM_LINEAR.replace(old, new) if old else kernels.NORM_LINEAR
    result = run(worker, tmp_path, kernels.norm_linear(dtype="bf16"), source)
    assert result.passed == (not old), str(result)


# kernel, what is broken, by what; the inputs or the sentence that show it
MUTANTS = [
    ("norm_linear", "(rows[:, None] < B) & (k[None, :] < K)", "k[None, :] < K", "outside of every"),
    ("norm_linear", "mask=(rows[:, None] < B) & (cols[None, :] < N))", "mask=rows[:, None] < B)", ""),  # noqa: E501
    ("norm_linear", "squares / K", "squares / (K + 1)", "ordinary"),
    ("norm_linear", " + 1e-6)\n    out", ")\n    out", "data scale 1e-5"),
    ("norm_linear", "acc = tl.dot(x, w, acc)", "acc = (acc + tl.dot(x, w)).to(tl.float16).to(tl.float32)", ""),  # noqa: E501
    ("norm_linear", "acc = tl.dot(x, w, acc)", "acc += tl.dot(x, w, out_dtype=tl.float16)", ""),
    ("norm_linear", "triton.cdiv(N, 32))]", "N // 32)]", "no program writes"),
    ("softmax_rows", "x - tl.max(x, axis=0)", "x", "data scale"),
    ("softmax_rows", 'other=float("-inf")', "other=0.0", "ordinary"),
    ("softmax_rows", "tl.max(x, axis=0)", "tl.maximum(tl.max(x, axis=0), 0.0)", "spread -200"),
    ("softmax_rows", "_kernel[(x.shape[0],)]", "_kernel[(x.shape[0] + 1,)]", "outside of every"),
    ("centred_rows", "tl.sum(centred * centred, axis=0) / N", "tl.sum(x * x, axis=0) / N - mean * mean", "mean"),  # noqa: E501
    ("centred_rows", "tl.where(cols < N, x - mean, 0.0)", "x - mean", "ordinary"),
    ("centred_rows", "mask=cols < N, other=0.0", "mask=cols < N", "ordinary"),
    ("online_softmax", "total * tl.exp(largest - safe)", "total", "short tiles"),
    ("online_softmax", 'tl.where(new == float("-inf"), 0.0, new)', "new", "begin with -inf"),
    ("decay", "tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))", "tl.log(1.0 + tl.exp(x))", "magnitudes"),  # noqa: E501
    ("centred_rows", "row = tl.program_id(0)", "row = tl.program_id(0) // 2", "twice"),
]  # fmt: skip


@pytest.mark.parametrize("name, old, new, seen", MUTANTS)
def test_a_broken_kernel_is_refused(
    worker: Worker, tmp_path: Path, name: str, old: str, new: str, seen: str
) -> None:
    program, source = SOUND[name]
    assert source.count(old) == 1
    result = run(worker, tmp_path, program(), source.replace(old, new))
    assert not result.passed
    assert result.worst > 1
    assert seen in str(result)
    json.dumps(result.to_json(), allow_nan=False)


LARGEST = """if triton.knobs.runtime.interpret:

    @triton.jit
    def largest(x):
        return tl.{0}(x, axis=0)

else:

    @triton.jit
    def largest(x):
        return tl.{1}(x, axis=0)


@triton.jit
def _kernel"""


@pytest.mark.parametrize("interpreted, compiled", [("min", "max"), ("max", "min")])
def test_what_a_gpu_would_run_is_what_is_checked(
    worker: Worker, tmp_path: Path, interpreted: str, compiled: str
) -> None:
    both = LARGEST.format(interpreted, compiled)
    source = kernels.SOFTMAX.replace("tl.max(x, axis=0)", "largest(x)")
    source = source.replace("@triton.jit\ndef _kernel", both)
    result = run(worker, tmp_path, kernels.softmax_rows(), source)
    assert result.passed == (compiled == "max"), str(result)


def test_a_witness_has_row_sizes_index_and_values(worker: Worker, tmp_path: Path) -> None:
    source = kernels.SOFTMAX.replace("out = e /", "out = 1.1 * e /")
    witness = run(worker, tmp_path, kernels.softmax_rows(), source).witness
    assert witness["inputs"] == "ordinary"
    assert witness["sizes"] == {"B": 1}
    assert len(witness["index"]) == 2
    assert witness["got"] == pytest.approx(1.1 * witness["want"], rel=1e-3)
    assert witness["eager"] == pytest.approx(witness["want"], rel=1e-3)


def test_a_kernel_that_crashes_or_hangs_fails_alone(worker: Worker, tmp_path: Path) -> None:
    assert run(worker, tmp_path, kernels.softmax_rows(), kernels.SOFTMAX).passed
    hang = kernels.SOFTMAX.replace("x = x.contiguous()", "import time; time.sleep(1000)")
    path = tmp_path / "kernel.py"
    path.write_text(hang)
    with pytest.raises(TimeoutError, match="did not finish"):
        worker.call(_job(kernels.softmax_rows(), path), timeout=2)
    crash = kernels.SOFTMAX.replace("x = x.contiguous()", "import os; os._exit(3)")
    assert "code 3" in str(run(worker, tmp_path, kernels.softmax_rows(), crash))
    assert run(worker, tmp_path, kernels.softmax_rows(), kernels.SOFTMAX).passed


def _job(program: Program, path: Path) -> dict[str, object]:
    from superopt.mugraph.serialize import to_json

    shared = {"kernel": str(path), "name": program.name, "program": to_json(program)}
    rest = {"sizes": [{"B": 1}], "arguments": ["x"], "seed": 0, "seconds": 1.0, "full": False}
    rest["reference"] = True
    return {**shared, **rest}


def test_large_fixed_extents_are_sampled_and_eager_emulated(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "kernel.py"
    path.write_text(kernels.NORM_LINEAR)
    program = kernels.norm_linear(512, 1000)
    result = gate(program, path, worker=worker, sizes=[{"B": 65}], seconds=2.0)
    assert result.passed, str(result)
    assert result.eager == ("emulated",)


def test_sizes_reach_each_choice() -> None:
    sizes = gate_sizes(kernels.softmax_rows(), [{"B": 16}, {"B": 512}, {"B": 4096}])
    assert {"B": 1} in sizes
    assert {"B": 17} in sizes
    assert {"B": 513} in sizes


# -- the criterion ------------------------------------------------------------------------------


def test_an_error_of_one_ulp_passes_and_of_two_does_not() -> None:
    want = np.full((1, 64), 3.0)
    assert judge(want + ulp(want, "f16"), want, want, "f16").ratio == 1
    assert judge(want + 2 * ulp(want, "f16"), want, want, "f16").ratio == 2


def test_twice_eagers_error_passes_and_more_does_not() -> None:
    want, error = np.full((1, 64), 3.0), np.full((1, 64), 0.25)
    assert judge(want + 2 * error, want, want + error, "f16").ratio == 1
    assert judge(want + 2.5 * error, want, want + error, "f16").ratio == 1.25


def test_the_rows_largest_reference_sets_the_ulp() -> None:
    want = np.array([[1.0, *[0.0] * 62, 1024.0], [1.0] * 64])
    error = np.zeros((2, 64))
    error[:, 0] = 0.5
    judged = judge(want + error, want, want, "f16")
    assert judged.at == (1, 0)  # the row of the large value may be off by half of it
    assert judge((want + error)[:1], want[:1], want[:1], "f16").ratio == 0.5


def test_a_nan_must_agree_unless_eager_has_lost_it() -> None:
    want, got = np.ones((1, 64)), np.ones((1, 64))
    got[0, 5] = np.nan
    assert judge(got, want, want, "f16").ratio == np.inf
    assert judge(got, want, got, "f16").ratio == 0
    assert judge(want, got, got, "f16").ratio == np.inf


def test_overflow_of_the_output_type_is_an_infinity() -> None:
    want, got = np.full((1, 64), 1e6), np.full((1, 64), np.inf)
    assert np.isinf(stored(want, "f16")).all()
    assert judge(got, want, got, "f16").ratio == 0
    assert judge(np.full((1, 64), 60000.0), want, got, "f16").ratio == np.inf
    edge = np.full((1, 64), 65519.0)  # rounds to 65504; half an ulp off and it is infinite
    assert judge(got, edge, np.full((1, 64), 65504.0), "f16").ratio == 0


def test_a_value_too_large_for_the_type_may_be_nan_but_an_infinity_may_not() -> None:
    inf, nan = np.full((1, 64), np.inf), np.full((1, 64), np.nan)
    assert judge(nan, np.full((1, 64), 1e6), inf, "f16").ratio == 0
    assert judge(nan, inf, inf, "f16").ratio == np.inf


def test_elements_that_are_not_compared_still_set_the_rows_ulp() -> None:
    want = np.array([[1.0] * 63 + [1024.0]])
    mask = want == 1.0
    assert judge(want + mask * 0.5, want, want, "f16", mask).ratio == 0.5
    assert judge(want + ~mask * 100.0, want, want, "f16", mask).ratio == 0


def test_more_draws_decide_what_one_leaves_open() -> None:
    lucky, usual = Judgement(1.5, (0,), 64, 3.0, 1.0), Judgement(0.5, (0,), 64, 2.0, 2.0)
    assert pooled([lucky]) == 1.5
    assert pooled([lucky, usual]) == 0.75
    assert pooled([lucky, Judgement(1.4, (0,), 64, 2.8, 1.0)]) == 1.5  # worse every time
    assert pooled([lucky, Judgement(np.inf, (0,), 64)]) == np.inf
    want = np.zeros((1, 64))
    assert pooled([judge(want + 7, want, want + 3, "i64")]) == 7 / 6  # not lost without an ulp


def test_points_are_chosen_where_one_element_is_too_much_work() -> None:
    def total(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x).sum(-1)

    program = trace(spec(x=Tensor(4, 6, 1 << 26))(total)).program
    points = points_in(np.ones((4, 6), bool), program.stores[0], {}, random.Random(0))
    assert sorted(map(len, points.values())) == [1, 6]  # some of a row, to know its errors


def test_a_marginal_verdict_looks_at_more_rows() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    store = trace(spec(x=Tensor(64, 300))(doubled)).program.stores[0]
    mask = np.zeros((64, 300), bool)
    mask[5] = True
    (few, many) = (points_in(mask, store, {}, random.Random(0), n) for n in (0, 16))
    row = next(a for a in store.axes if a.extent.attr == 64)
    assert list(few[row]) == [5]
    assert 5 in many[row]
    assert len(many[row]) in (8, 9)  # not 16, at 128 of a row: that many elements are enough


def test_infinities_are_excused_where_the_program_has_a_condition_only() -> None:
    def plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    def masked(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.where(x < 5, x, 0.0) @ w

    shapes = {"x": Tensor(4, 8), "w": Tensor(8, 8)}
    without, with_one = (trace(spec(**shapes)(f)).program for f in (plain, masked))
    arrays = {"x": np.full((4, 8), np.inf), "w": np.ones((8, 8))}
    assert tame(without, arrays) == []
    first = np.ix_([0, 1], [0])
    found = [(t["x"][first].max(), t["w"][first].max()) for t in tame(with_one, arrays)]
    assert found == [(0.0, 1.0), (4096.0, 1.0), (-4096.0, 1.0)]


def test_an_infinity_may_be_nan_where_sums_may_be_regrouped_only() -> None:
    def attend(q: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q, -1) @ (v * 2 + 1) @ w

    program = trace(spec(q=Tensor(4, 8), v=Tensor(8, 6), w=Tensor(6, 5))(attend)).program
    stores = closed.plain_stores(program).values()
    arrays = {n: np.full((2, 2), np.inf) for n in "qvw"}
    (finite,) = regroup(stores, arrays)
    first = {n: float(a[np.ix_([0], [0])].max()) for n, a in finite.items()}
    assert first == {"q": np.inf, "v": 1.0, "w": 1.0}
    got, want = np.array([np.nan, np.nan, 1.0, np.inf]), np.full(4, np.inf)
    asked, _ = unless_regrouped(got, want, want, [np.array([1.0, np.inf, 1.0, 1.0])])
    assert np.array_equal(asked, [np.nan, np.inf, np.inf, np.inf], equal_nan=True)


def test_no_helper_shares_its_core_with_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, dict[str, str]] = {}
    monkeypatch.setattr("subprocess.Popen", lambda *_, **options: asked.update(options))
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    helper("superopt.verify.worker", interpret=True)
    assert asked["env"]["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")  # whoever sets it knows better
    helper("superopt.verify.worker", interpret=True)
    assert asked["env"]["OPENBLAS_NUM_THREADS"] == "4"


def test_only_a_mask_may_hide_a_nan() -> None:
    nan = {"x": np.full((3, 40), np.nan)}

    def clamped(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-1.5, 2.5).amax(-1)

    def masked(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(torch.arange(40) > 7, 0.0).amax(-1)

    found = [tame(trace(spec(x=Tensor(3, 40))(fn)).program, nan) for fn in (clamped, masked)]
    assert list(map(len, found)) == [0, 3]


def test_exact_types_must_be_equal() -> None:
    want = np.arange(64.0).reshape(1, 64)
    assert judge(want, want, want, "i64").ratio == 0
    assert judge(want + 1, want, want, "i64").ratio == np.inf


def test_of_large_inputs_only_what_is_read_is_made_hostile() -> None:
    program = trace(spec(x=Tensor(6, 4))(lambda x: x.sum(-1))).program
    inputs, by_name = Inputs(program, 0), {row.name: row for row in ROWS}
    drawn = inputs.make(ROWS[0], {})["x"].clone()
    some = {"x": torch.tensor([1, 4])}
    made = inputs.make(by_name["mean over spread 1000"], {}, some)["x"]
    assert torch.equal(
        made - drawn > 500, torch.isin(torch.arange(6), some["x"])[:, None].expand(6, 4)
    )
    assert torch.equal(inputs.make(ROWS[0], {})["x"], drawn)  # as it was


# -- folders ------------------------------------------------------------------------------------


def folder(path: Path, source: str) -> Path:
    (path / "kernel.py").write_text(source)
    tensors = {"x": {"shape": ["B", 40], "dtype": "float16", "range": None}}
    shape = SpecShape("no/such/file.py", "softmax_rows", tensors, {"B": [1, 4096]})
    (path / "report.json").write_text(json.dumps({"spec": shape.to_json()}))
    return path


def test_a_folder_is_checked_anew(tmp_path: Path) -> None:
    results = verify_folder(folder(tmp_path, kernels.SOFTMAX))
    *run_and_passed, addresses, values = results
    assert [r.check for r in run_and_passed] == ["spec", "gate", "every element written"]
    assert all(r.passed for r in run_and_passed), results
    for claims in (addresses, values):
        assert not claims.passed
        text = "unknown: it has no SIGNATURE: its host code is not that of the emitter"
        assert claims.text == text


def test_a_tampered_folder_fails_with_a_counterexample(tmp_path: Path) -> None:
    source = kernels.SOFTMAX.replace("out = e /", "out = 0.5 * e /")
    failed = [r for r in verify_folder(folder(tmp_path, source)) if not r.passed]
    assert {"got", "want", "index"} <= set(failed[0].witness)
