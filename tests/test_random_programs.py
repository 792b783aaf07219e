"""Any operators compose: random programs are searched, emitted and run under the meter.

Each must match float64 about as well as eager does, touch nothing outside its tensors, write all
of its
outputs, and take no more launches than greedy producer-consumer fusion. More seeds by hand:
`SUPEROPT_PROGRAMS=3000 pytest tests/test_random_programs.py`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from meter import load_kernel, meter
from random_programs import random_spec

from superopt.cost_model.baselines import greedy_groups
from superopt.cost_model.profile import load_profile
from superopt.emit import Notes, emit
from superopt.mugraph.expr import toposort
from superopt.mugraph.trace import trace
from superopt.search.driver import Options, choices, search_program, to_choice
from superopt.spec import load_specs
from superopt.verify.tested import tested as check_tested

PROGRAMS = int(os.environ.get("SUPEROPT_PROGRAMS", "100"))
H200 = load_profile("h200")


def inputs(shapes: list[tuple[int, ...]], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator) for s in shapes]


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_a_random_program(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "drawn.py"
    path.write_text(random_spec(seed))
    (spec,) = load_specs(path, None)
    traced = trace(spec)
    outcome = search_program(traced.program, Options(H200, ((),), time_limit=20))
    ((sizes, best),) = choices(outcome.candidates, ((),))
    kernel = tmp_path / "kernel.py"
    kernel.write_text(emit(traced, [to_choice(sizes, best)], Notes("h200", "tested")))

    arguments = inputs([tuple(e.attr for e in t.shape) for t in traced.program.inputs], seed)
    with meter() as m:
        got = as_tuple(load_kernel(kernel).drawn(*arguments))
    m.assert_all_written(*got)
    want = as_tuple(spec.fn(*(a.double() for a in arguments)))
    eager = as_tuple(spec.fn(*arguments))
    for ours, theirs, exact in zip(got, eager, want, strict=True):
        assert_as_close(ours, theirs, exact)
    launches = len(m.launches) + m.extra_launches
    assert launches <= len(greedy_groups(traced.program))


NEGATIVE = """
import torch
import torch.nn.functional as F
import superopt
from superopt import Tensor

@superopt.spec(x=Tensor(5, 1), dtype=torch.float32)
def drawn(x):
    top = x.amax(dim=0, keepdim=True)  # of five: negative once in 32 draws
    return F.leaky_relu(top, 0.1), torch.where(F.relu(top) > top, 0.0, top)
"""


def test_what_is_hardly_ever_negative_is_not_taken_for_positive(tmp_path: Path) -> None:
    path = tmp_path / "drawn.py"
    path.write_text(NEGATIVE)
    (spec,) = load_specs(path, None)
    traced = trace(spec)
    outcome = search_program(traced.program, Options(H200, ((),)))
    kept = {s.value for c in outcome.candidates for k in c.graph.kernels for s in k.stores}
    assert not [v for v in kept if v.op == "reduce"]
    bare = next(e for e in toposort(traced.program.roots[0]) if e.op == "reduce")
    wrong = tuple(replace(s, value=bare) for s in traced.program.stores)
    verdict = check_tested(traced.program, replace(traced.program, stores=wrong), seed=0)
    assert verdict.kind == "refused"


def as_tuple(value: object) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)  # type: ignore[return-value]


def assert_as_close(ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> None:
    """Within 8 of eager's own errors, or a few units in the last place of the largest element."""
    assert ours.shape == exact.shape
    if not exact.numel():
        return
    error = (ours.double() - exact).abs().max().item()
    allowed = max(8 * (eager.double() - exact).abs().max().item(), 1e-5 * exact.abs().max().item())
    assert error <= max(allowed, 1e-6), f"error {error:.2e}, allowed {allowed:.2e}"
