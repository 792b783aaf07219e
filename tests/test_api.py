"""The Python API: search, Result, optimize; and how a run replaces what a stage refuses."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from meter import meter
from torch.export import Dim

import superopt
import superopt.search.driver
from superopt import pipeline
from superopt.compiler import Compiler
from superopt.errors import CheckFailed, SpecError, UsageError
from superopt.verify import Verdict

X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.relu(x * y + 1) - y


class Gate(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x * self.weight) * x


def test_names_are_modules_and_functions() -> None:
    assert superopt.search.driver.search_program is not None
    assert callable(superopt.search)
    assert callable(superopt.spec)
    assert superopt.Tensor is superopt.spec.Tensor  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        superopt.serach  # type: ignore[attr-defined]  # noqa: B018


def test_search_a_function() -> None:
    result = superopt.search(chain, (X, X + 1))
    with meter() as m:
        out = result.kernel(X, X + 1)
    assert len(m.launches) == 1
    torch.testing.assert_close(out, chain(X, X + 1))
    assert result.source == (result.folder / "kernel.py").read_text()
    assert result.report["best"]["launches"] == 1
    assert result.candidates[0].graph.name == "chain"
    with pytest.raises(ValueError, match="x: got shape"):
        result.kernel(X[:2], X[:2])


def test_a_lambda_has_a_name() -> None:
    example = torch.ones(16, 16)
    result = superopt.search(lambda a, b: torch.relu(a @ b), (example, example))
    assert result.kernel.__name__ == "function"
    assert result.report["best"]["launches"] == 1


def test_a_temporary_folder_lives_as_long_as_its_result() -> None:
    result = superopt.search(scaled, (X,))
    folder = result.folder
    assert (folder / "report.json").exists()
    del result
    gc.collect()
    assert not folder.exists()


def test_search_with_dynamic_shapes() -> None:
    batch = Dim("batch", min=1, max=9)
    result = superopt.search(chain, (X, X), ({0: batch}, {0: batch}))
    for rows in (1, 9):
        x = torch.randn(rows, 32)
        torch.testing.assert_close(result.kernel(x, x), chain(x, x))
    with pytest.raises(ValueError, match="batch is 10, made for 1 to 9"):
        result.kernel(torch.randn(10, 32), torch.randn(10, 32))
    assert [row["sizes"] for row in result.report["sizes"]] == [
        {"batch": 3},
        {"batch": 1},
        {"batch": 9},
    ]


def test_search_a_module_binds_its_parameters() -> None:
    module = Gate()
    result = superopt.search(module, (X,))
    with torch.no_grad():
        torch.testing.assert_close(result.kernel(X), module(X))
        module.weight.mul_(2)  # parameters are read at each call
        torch.testing.assert_close(result.kernel(X), module(X))
    with pytest.raises(ValueError, match="weight requires a gradient"):
        result.kernel(X)


def test_two_kernels_of_one_name_live_together() -> None:
    one = superopt.search(scaled, (X,))
    two = superopt.search(scaled, (X[:, :8],))
    torch.testing.assert_close(one.kernel(X), scaled(X))
    torch.testing.assert_close(two.kernel(X[:, :8]), scaled(X[:, :8]))


def test_the_same_call_gives_the_same_text() -> None:
    assert superopt.search(chain, (X, X)).source == superopt.search(chain, (X, X)).source


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((scaled,), {}, UsageError, "scaled: give example args"),
        ((3, (X,)), {}, UsageError, "3 is neither a function, a module nor a spec"),
        ((scaled, (X,)), {"tagret": "h200"}, UsageError, "unknown option 'tagret'; known: target"),
        ((scaled, (X,)), {"target": "h300"}, UsageError, "unknown target 'h300'"),
        ((scaled, (3,)), {}, SpecError, "parameter 'x' is a int, not a tensor"),
        ((torch.matmul, (X, X)), {}, SpecError, "matmul: its parameters cannot be read; wrap it"),
    ],
)
def test_wrong_calls(arguments: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        superopt.search(*arguments, **options)


def test_a_spec_brings_its_own_shapes() -> None:
    spec = superopt.spec(x=superopt.Tensor(4, 32))(scaled)
    assert spec(X).equal(X * 2)  # it stays the function that it was
    with pytest.raises(UsageError, match="a spec has its shapes"):
        superopt.search(spec, (X,))


# -- a stage that refuses -------------------------------------------------------------------------


def products(x: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ v) @ w


HALVES = tuple(torch.ones(64, 64, dtype=torch.float16) for _ in range(3))


def test_a_refused_candidate_is_replaced_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = pipeline.check_graph, []

    def refuse_first(program: Any, graph: Any, seed: int) -> Verdict:
        if not refused:
            refused.append(graph)
        if graph is refused[0]:
            return Verdict("refused", "out[0]: got 1, want 2", witness={"index": [0]})
        return real(program, graph, seed)

    monkeypatch.setattr(pipeline, "check_graph", refuse_first)
    result = superopt.search(products, HALVES)
    (rejected,) = result.report["rejected"]
    assert rejected["stage"] == "check"
    assert rejected["reason"] == "refused: out[0]: got 1, want 2"
    assert rejected["witness"] == {"index": [0]}
    assert result.report["sizes"][0]["candidate"] != rejected["rank"]
    assert result.report["search"]["counts"]["rejected"] == {"check": 1}


def test_nothing_that_passes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = Verdict("refused", "out[0]: got 1, want 2")
    monkeypatch.setattr(pipeline, "check_graph", lambda *_: refusal)
    with pytest.raises(CheckFailed, match="no candidate passed its checks: candidate 0, check"):
        superopt.search(scaled, (X,))


def test_a_configuration_that_spills_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = Compiler.all, []

    def spill_first(self: Compiler, calls: Any, *rest: Any) -> Any:
        stats = real(self, calls, *rest)
        if first:
            return stats
        first.extend(source for source, _ in calls)
        return [[replace(s, spilled_bytes=8) for s in own] for own in stats]

    monkeypatch.setattr(Compiler, "all", spill_first)
    result = superopt.search(scaled, (X,))
    assert result.source != first[0]
    (skipped,) = result.report["sizes"][0]["configs_skipped"]
    assert skipped.endswith("spills 8 bytes a thread")


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


def test_the_report_says_what_wgmma_would_gain() -> None:
    few = (torch.ones(16, 256, dtype=torch.float16), torch.ones(256, 512, dtype=torch.float16))
    h200 = superopt.search(product, few).report["sizes"][0]
    assert [c["dots"] for c in h200["compiled"]] == [("mma.sync",)]
    (row,) = h200["mma_sync"]
    assert row["at_wgmma_rate_us"] <= row["time_us"] == h200["best"]["time_us"]
    a100 = superopt.search(product, few, target="a100").report["sizes"][0]
    assert a100["mma_sync"] == []  # it has no other


# -- optimize -------------------------------------------------------------------------------------


def test_optimize_searches_once_for_each_kind_of_input() -> None:
    fast = superopt.optimize(chain)
    for x in (X, X + 1, X[:2].contiguous()):
        torch.testing.assert_close(fast(x, x), chain(x, x))
    assert len(fast.reports) == 2
    for decision in fast.reports:
        assert decision.kernel is not None
        assert "found" in decision.reason
        assert "eager" in decision.reason


def test_optimize_says_when_it_is_not_worth_it() -> None:
    fast = superopt.optimize(scaled)
    torch.testing.assert_close(fast(X), scaled(X))
    (decision,) = fast.reports
    assert decision.kernel is None
    assert decision.reason.startswith("not worth it: found ")
    assert "eager" in str(decision)


def test_optimize_runs_eager_where_a_gradient_is_wanted() -> None:
    fast = superopt.optimize(chain)
    x = X.clone().requires_grad_()
    fast(x, X).sum().backward()
    assert x.grad is not None
    assert fast.reports == []
    with torch.no_grad():
        torch.testing.assert_close(fast(x, X), chain(x, X))
    assert len(fast.reports) == 1


def test_optimize_runs_eager_where_it_cannot_search() -> None:
    @superopt.optimize(target="a100")
    def branching(x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    torch.testing.assert_close(branching(X), branching.fn(X))
    (decision,) = branching.reports
    assert decision.reason.startswith("cannot: ")
    assert "depends on a tensor's values" in decision.reason


def test_optimize_leaves_other_calls_alone() -> None:
    fast = superopt.optimize(chain)
    assert fast(x=X, y=X).equal(chain(X, X))
    assert fast(X, 2.0).equal(chain(X, 2.0))  # type: ignore[arg-type]
    assert fast.reports == []
    assert fast.__name__ == "chain"


def test_optimize_refuses_wrong_options_at_once() -> None:
    with pytest.raises(UsageError, match="unknown target"):
        superopt.optimize(target="h300")(chain)
