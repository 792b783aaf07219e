"""Which configurations are compiled, what is made of that, and how a prediction explains itself."""

from __future__ import annotations

import re
from dataclasses import replace

import programs
import pytest
import torch
from programs import traced

import superopt
from superopt import Tensor, pipeline
from superopt.contention import AT_ONCE, MOST, Known, contenders, fastest, made, problem
from superopt.cost_model.configs import INDIFFERENT, ranked
from superopt.cost_model.explain import explain
from superopt.cost_model.model import UNHIDDEN, KernelModel, Made
from superopt.cost_model.profile import load_profile
from superopt.emit.compile import CompileStats
from superopt.mugraph.program import Config
from superopt.mugraph.text import parse_graph
from superopt.search.driver import Options, search_program

H200 = load_profile("h200")
GOOD = CompileStats("k", "sm_90", registers=64, shared_bytes=16384)
SPILLED = replace(GOOD, spilled_bytes=8)
ALONE = replace(GOOD, shared_bytes=int(H200.shared_bytes_per_program))
UNITS = ("dram", "l2", "tensor", "issue", "special", "latency")
ONLINE = """graph weighted
  axis s: 65536, n: 64, l: 64, j: 8192
  input q: f16[65536, 64]
  input k: f16[8192, 64]
  input v: f16[8192, 64]
  tensor out: f16[65536, 64]
kernel k0
  branch j: loop, l: whole, n: grid, s: grid
    %0 = sum[l; dot f16] f32(q[s, l]) * f32(k[j, l])
    %1 = max[j] %0
    %2 = exp(%0 - %1)
    %3 = exp(%0 - running(%1))
    %4 = exp(prior(%1) - running(%1))
    %5 = f32(v[j, n])
    %6 = sum[j; dot f16] %5 * %2
    store out[s, n] = f16(online[j](%6, %5 * %3, prior(%6) * %4)) for s, n
returns out"""


@pytest.fixture(scope="module")
def model() -> KernelModel:
    """A product of many tiles, whose dots take most of the time."""
    program = traced(programs.norm_matmul, dtype=torch.float16, x=(4096, 1024), w=(1024, 4096))
    (kernel,) = search_program(program, Options(H200, ((),))).candidates[0].graph.kernels
    return KernelModel(kernel, {}, H200)


def test_what_compiled_as_estimated_ends_the_contention(model: KernelModel) -> None:
    first = ranked(model)[0][0]
    assert contenders(model, {first: GOOD}, ()) == []
    assert fastest(model, {first: GOOD})[0] == first


def test_what_lives_alone_is_compared_with_what_is_predicted_faster(model: KernelModel) -> None:
    by_model = [(c, p.time_us) for c, p in ranked(model)]
    known = {by_model[-1][0]: ALONE}
    _, bar = fastest(model, known)
    faster = [c for c, us in by_model if us * INDIFFERENT < bar and c not in known]
    assert len(faster) > MOST
    assert contenders(model, known, ()) == faster[:AT_ONCE]
    assert contenders(model, known, faster[:1]) == faster[1 : 1 + AT_ONCE]
    spilling = known | dict.fromkeys(faster[: MOST - 1], SPILLED)
    assert contenders(model, spilling, ()) == [faster[MOST - 1]]
    spilling[faster[MOST - 1]] = SPILLED
    assert contenders(model, spilling, ()) == []  # however many are left
    assert fastest(model, spilling)[0] == by_model[-1][0]
    assert fastest(model, spilling | {faster[1]: GOOD})[0] == faster[1]


def test_problems_are_named() -> None:
    assert problem(GOOD, H200) == ""
    assert problem(ALONE, H200) == ""
    most = ALONE.shared_bytes
    assert problem(replace(ALONE, shared_bytes=most + 1), H200) == (
        f"needs {most + 1} bytes of shared memory"
    )
    assert problem(SPILLED, H200) == "spills 8 bytes a thread"
    assert problem(replace(GOOD, error="no such dot"), H200) == "no such dot"


# -- the model with what the compiler made -------------------------------------------------------


def online() -> KernelModel:
    (kernel,) = parse_graph(ONLINE).kernels
    return KernelModel(kernel, {}, load_profile("h100"))


def test_programs_beside_one_another_hide_each_others_turns() -> None:
    m = online()
    config = next(c for c, _ in ranked(m) if c.warps == 4)
    alone, beside = (m.predict(config, Made(registers, 16384)) for registers in (255, 64))
    for name in ("tensor", "issue", "special"):
        assert alone.resources[name] >= beside.resources[name]
    assert alone.resources["latency"] > 1.5 * beside.resources["latency"]
    assert alone.time_us > beside.time_us


def test_a_share_of_all_else_is_not_hidden(model: KernelModel) -> None:
    config = ranked(model)[0][0]
    r = model.predict(config, Made(255, 16384)).resources
    units = [r[name] for name in UNITS]
    assert r["unhidden"] == pytest.approx(UNHIDDEN * (sum(units) - max(units)))


def test_a_prediction_explains_itself() -> None:
    m = online()
    config = ranked(m)[0][0]
    stats = replace(GOOD, registers=168, loop={"tensor": 8, "special": 0, "float": 30})
    lines = explain(m, config, made(stats), stats.loop)
    us = {w[0]: float(w[1]) for line in lines[1:] if "us  " in line and (w := line.split())}
    busiest = max(UNITS, key=lambda k: us[k])
    total, bound = re.fullmatch(r"predicted (\S+) us, bound by (\w+)", lines[0]).groups()
    assert bound == busiest
    assert us["launch"] + us[busiest] + us["unhidden"] == pytest.approx(float(total), abs=0.1)
    assert any("(registers)" in line and "on 132 multiprocessors" in line for line in lines)
    assert lines[-1] == "  inner loop, instructions of a turn: 8 tensor, 30 float"
    shared = explain(m, config, Made(32, 100_000), {})
    assert any("2 at once on each (shared memory)" in line for line in shared)


class AllGood:
    """A compiler that refuses nothing."""

    def __call__(self, source: str, *_: object) -> list[CompileStats]:
        return [GOOD] * source.count("wrap(")

    def all(self, calls: list[tuple[str, object]], *_: object) -> list[list[CompileStats]]:
        return [self(source) for source, _ in calls]


def test_each_kernel_of_several_has_its_own_contention(monkeypatch: pytest.MonkeyPatch) -> None:
    def second(model: KernelModel, known: Known, _: object) -> list[Config]:
        return [ranked(model)[1][0]] if len(known) == 1 else []

    monkeypatch.setattr(pipeline, "contenders", second)
    monkeypatch.setattr(pipeline, "fastest", lambda _, known: ([*known][-1], 1.0))
    spec = superopt.spec(
        dtype=torch.float16, x=Tensor(512, 512), a=Tensor(512, 2048), b=Tensor(2048, 512)
    )(programs.two_layers)
    run = pipeline.searched(spec, pipeline.Settings())
    pipeline.configure(run, AllGood())  # type: ignore[arg-type]
    (pick,) = run.picks
    kernels = pick.candidate.graph.kernels
    assert len(kernels) == len(pick.compiled) == pick.in_contention == 2
    chosen = [ranked(KernelModel(k, {}, H200))[1][0] for k in kernels]
    assert pick.configs == chosen
