"""The cost model: its counts are exact, its profiles name their sources, its choices make sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from programs import traced

import superopt.cost_model.profile as profile_module
from superopt.cost_model import features as ft
from superopt.cost_model.baselines import baselines, greedy_groups
from superopt.cost_model.configs import ranked
from superopt.cost_model.model import KernelModel, Space
from superopt.cost_model.profile import load_profile, targets
from superopt.emit.compile import TARGETS
from superopt.errors import UsageError
from superopt.mugraph.expr import Axis, axis, cast, index, load, op, reduce
from superopt.mugraph.expr import Tensor as Stored
from superopt.mugraph.program import Branch, Config, Kernel, store
from superopt.mugraph.trace import trace
from superopt.search.driver import Options, search_program
from superopt.spec import Tensor, spec

H200 = load_profile("h200")
PROFILES = Path(profile_module.__file__).parent / "profiles"


@pytest.mark.parametrize("name", targets())
def test_every_fact_has_a_source(name: str) -> None:
    facts = json.loads((PROFILES / f"{name}.json").read_text())["facts"]
    assert all(row["source"] and row["value"] >= 0 for row in facts.values())
    p = load_profile(name)
    assert p.arch in TARGETS
    assert TARGETS[p.arch][2] == p.threads_per_warp
    lanes = p.special_per_s / (p.multiprocessors * p.clock_ghz * 1e9)
    assert lanes == pytest.approx(16, rel=0.01)


def test_an_unknown_target_names_the_known() -> None:
    assert targets() == ["a100", "b200", "h100", "h200", "l4", "mi300x"]
    with pytest.raises(UsageError, match="a100, b200, h100, h200, l4, mi300x"):
        load_profile("h300")


def model(**shapes: tuple[int, ...]) -> KernelModel:
    program = traced(programs.norm_matmul, dtype=torch.float16, **shapes)
    best = search_program(program, Options(H200, ((),))).candidates[0]
    (kernel,) = best.graph.kernels
    return KernelModel(kernel, {}, H200)


def config(m: KernelModel, **more: int) -> Config:
    """The best configuration, with some tiles changed: `rows`, `columns`."""
    best = dict(ranked(m)[0][0].tiles)
    (branch,) = m.kernel.branches
    rows, columns = (a.name for a in branch.stores[0].axes)
    best |= {{"rows": rows, "columns": columns}[k]: v for k, v in more.items()}
    return Config(tuple(sorted(best.items())), 4, 3)


def test_requested_bytes_follow_the_tiles() -> None:
    m = model(x=(16, 1024), w=(1024, 2048))
    weights, output = 1024 * 2048 * 2, 16 * 2048 * 2
    for columns in (32, 64, 128):
        rows_read = 16 * 1024 * 2 * (2048 // columns)
        assert m.predict(config(m, rows=16, columns=columns)).bytes == rows_read + weights + output


def test_distinct_bytes_count_each_address_once() -> None:
    m = model(x=(16, 1024), w=(1024, 2048))
    ideal = 2 * (16 * 1024 + 1024 * 2048 + 16 * 2048)
    assert {q.distinct_bytes for _, q in ranked(m)} == {ideal}


@pytest.mark.parametrize(
    ("tile", "run", "sectors"),  # elements that lie side by side, and 32-byte sectors of them
    [(4, 4, 1), (7, 7, 1), (64, 49, 4), (256, 245, 16)],
)
def test_digits_of_an_axis_lie_side_by_side(tile: int, run: int, sectors: int) -> None:
    """x[k // 49, k // 7 % 7, k % 7] of (64, 7, 7) are rows of 7, and of 49 where the tile has as
    many; a thread loads one at a time."""
    k = Axis("k", index(64 * 49))
    digits = [op("floordiv", axis(k), index(49)), op("floordiv", axis(k), index(7)), axis(k)]
    digits[1:] = (op("mod", d, index(7)) for d in digits[1:])
    shape = (index(64), index(7), index(7))
    x, out = Stored("x", shape, "f16"), Stored("out", (index(1),), "f32")
    one = Axis("i", index(1))
    total = reduce("sum", (k,), cast(load(x, digits), "f32"))
    kernel = Kernel("k0", (Branch((store(out, (one,), total),), (("i", "grid"), ("k", "loop"))),))
    m = KernelModel(kernel, {}, H200)
    (f,), (extents,) = m.parts, m.extents
    s = ft.shape(f, extents, {"k": np.full(1, float(tile)), "i": np.ones(1)})
    (access,) = (a for a in f.accesses if a.tensor == x)
    moved = ft.sector_overhead(access, s)
    assert moved == pytest.approx((32 * sectors + 4) / (2 * run))
    assert ft.at_once(access, 16) == 2


def test_less_bandwidth_takes_longer() -> None:
    m = model(x=(16, 1024), w=(1024, 2048))
    slow = KernelModel(m.kernel, {}, H200.scaled(dram_bytes_per_s=0.1))
    c = config(m, rows=16, columns=64)
    assert slow.predict(c).time_us > 1.5 * m.predict(c).time_us
    assert slow.predict(c).bound == "dram"


def test_few_programs_leave_the_machine_idle() -> None:
    m = model(x=(16, 1024), w=(1024, 2048))
    few, many = (m.predict(config(m, rows=16, columns=n)) for n in (256, 32))
    assert few.programs == 8
    assert many.programs == 64
    assert few.time_us > many.time_us


def test_what_cannot_fit_is_not_offered() -> None:
    m = model(x=(256, 1024), w=(1024, 2048))
    assert not m.fits(config(m, rows=256, columns=256))  # 512 accumulators a thread
    assert m.fits(config(m, rows=64, columns=64))
    assert all(m.fits(c) for c, _ in ranked(m))


def test_baselines_count_launches_and_bytes() -> None:
    program = traced(programs.two_layers, x=(64, 512), a=(512, 2048), b=(2048, 512))
    known = baselines(program, {}, H200)
    assert known["unfused"].launches == 3
    assert known["greedy"].launches == len(greedy_groups(program)) == 2
    inputs = 4 * (64 * 512 + 2 * 512 * 2048)
    output, hidden = 4 * 64 * 512, 4 * 64 * 2048
    assert known["roofline"].bytes == inputs + output
    assert known["greedy"].bytes == inputs + output + 2 * hidden
    assert known["unfused"].bytes == inputs + output + 4 * hidden
    assert known["roofline"].time_us < known["greedy"].time_us < known["unfused"].time_us


def test_of_a_table_what_is_read_is_counted() -> None:
    ids = Tensor(64, dtype=torch.int64, range=(0, 50000))
    rows = spec(ids=ids, table=Tensor(50000, 512), dtype=torch.float16)(
        lambda ids, table: table[ids]
    )
    known = baselines(trace(rows).program, {}, H200)
    assert known["roofline"].bytes == known["unfused"].bytes == 64 * 8 + 2 * 64 * 512 * 2


def test_greedy_keeps_a_value_that_is_returned() -> None:
    def both(x):
        y = x + 1.0
        return y, y * 2.0

    program = traced(both, x=(64, 64))
    assert baselines(program, {}, H200)["greedy"].bytes == 3 * 64 * 64 * 4


def test_of_equally_fast_loops_that_with_fewest_roundings_is_taken() -> None:
    """Welford's sums are rounded once a turn; a row's 16 turns and 256 take the same time."""
    rows = spec(x=Tensor(1024, 262144), dtype=torch.float32)(lambda x: x.var(-1))
    program = trace(rows).program
    found = search_program(program, Options(H200, ((),))).candidates[0]
    (kernel,) = found.graph.kernels
    model = KernelModel(kernel, {}, H200)
    best, *others = ranked(model)

    def turns(config: Config) -> float:
        return float(model.costs(Space.of(config)).turns[0])

    close = [c for c, p in others if p.time_us <= best[1].time_us * 1.02]
    assert turns(best[0]) == min(map(turns, (best[0], *close))) < max(map(turns, close))
