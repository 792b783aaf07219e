"""The search as a whole: what it finds, that it is deterministic, that nothing found is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import online_programs as table
import programs
import pytest
import torch
import torch.nn.functional as F
from programs import traced

import superopt
from superopt import Tensor
from superopt.cost_model.model import Prediction
from superopt.cost_model.profile import load_profile
from superopt.errors import CheckFailed, UsageError
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Axis, axis, cast, find, index, load, op, reduce, toposort
from superopt.mugraph.expr import Tensor as Stored
from superopt.mugraph.interpret import run_graph
from superopt.mugraph.program import Config, Program, store, weights
from superopt.mugraph.text import inline
from superopt.mugraph.threads import dot_of
from superopt.mugraph.trace import trace
from superopt.search.driver import Candidate as Ranked
from superopt.search.driver import Options, Outcome, choices, search_program
from superopt.search.egraph import EGraph
from superopt.search.fingerprint import HOSTILE, KINDS, Accuracy, Fingerprints, relative_errors
from superopt.search.partition import Candidate, cuts, forks, temporary
from superopt.search.pool import ProcessPool
from superopt.search.roles import share_axes
from superopt.search.scheduler import Status
from superopt.search.tasks import build_space, worth_storing
from superopt.verify import check_graph

H200 = load_profile("h200")
NORM = {"dtype": torch.float16, "x": (16, 1024), "g": 1024, "w": (1024, 2048)}
LAYERS = {"dtype": torch.float16, "x": (64, 512), "a": (512, 2048), "b": (2048, 512)}


def search(program: Program, **options: object) -> Outcome:
    return search_program(program, Options(H200, ((),), **options))


def reductions(program: Program) -> int:
    outcome = search(program)
    return sum(
        len(list(find(s.value, "reduce")))
        for k in outcome.candidates[0].graph.kernels
        for s in k.stores
    )


def test_the_scale_leaves_the_sum_and_one_kernel_remains() -> None:
    best = search(traced(programs.norm_linear, **NORM)).candidates[0].graph
    assert len(best.kernels) == 1
    (stored,) = best.kernels[0].stores
    factors = stored.value.args[0].args  # rsqrt(...) * sum[k] ...
    assert {f.op for f in factors} == {"rsqrt", "reduce"}


def test_the_cheaper_order_of_a_product_is_found() -> None:
    shapes = {"a": (2048, 64), "b": (64, 2048), "c": (2048, 64)}
    outcome = search(traced(programs.three_factors, dtype=torch.float16, **shapes))
    flops = outcome.candidates[0].at[()][1].flops
    assert flops == 2 * (2 * 64 * 64 * 2048)
    assert outcome.candidates[0].at[()][1].launches <= 2


def test_fusing_does_not_pay_where_it_would_recompute_a_layer() -> None:
    best = search(traced(programs.two_layers, **LAYERS)).candidates[0]
    assert best.at[()][1].launches == 2
    assert [t.dtype for t in best.graph.temporaries] == ["f16"]


def test_rows_of_several_axes_share_a_tile() -> None:
    """Four rows of each of 16 batches: one tile of 64 rows, not 16 tiles of 4 that are padded."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.silu(x @ w)

    tensors = {"x": Tensor(torch.export.Dim("B", min=1, max=4096), 4, 256), "w": Tensor(256, 512)}
    program = trace(superopt.spec(dtype=torch.float16, **tensors)(fn)).program
    best = search_program(program, Options(H200, ((("B", 16),),))).candidates[0]
    config, prediction = best.at[("B", 16),]
    ((tile, extent),) = [
        (dict(c.tiles)[a.name], a.extent)
        for k, c in zip(best.graph.kernels, config, strict=True)
        for s in k.stores
        for a in s.axes
        if any(find(a.extent, "sym"))
    ]
    assert inline(extent) == "B * 4"
    assert tile > 4
    assert prediction.launches == 1


def test_short_digits_of_a_sum_are_one_axis() -> None:
    """Of 256 channels 8 share a mean: 32 of each would be too few for a dot, 256 are not."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(1, (32, 8)).float()
        centred = groups - groups.mean((2, 3), keepdim=True)
        return w @ F.silu(centred.flatten(1, 2)).to(w.dtype)

    best = search(traced(fn, dtype=torch.float16, x=(8, 256, 1024), w=(512, 256))).candidates[0]
    (stored,) = best.graph.kernels[-1].stores
    (dot,) = find(stored.value, "reduce")
    assert [inline(a.extent) for a in dot.attr.axes] == ["256"]
    assert {t.dtype for t in best.graph.temporaries} == {"f32"}  # sums of 8192, no dot's operands
    assert best.at[()][1].launches == 2


def test_launch_cost_decides_whether_to_fuse() -> None:
    program = traced(programs.two_layers, **LAYERS)
    slow = H200.scaled(launch_s=100)
    best = search_program(program, Options(slow, ((),))).candidates[0]
    assert best.at[()][1].launches == 1


def test_what_an_output_repeats_is_stored_once() -> None:
    """Recomputing the scale for each row of x would cost a product a row."""

    def modulated(x: torch.Tensor, c: torch.Tensor, a: torch.Tensor, b: torch.Tensor):
        rows = x / x.abs().amax(-1, keepdim=True)
        return rows * (c @ a)[:, None] + (c @ b)[:, None]

    shapes = {"x": (8, 1024, 512), "c": (8, 512), "a": (512, 512), "b": (512, 512)}
    best = search(traced(modulated, dtype=torch.float16, **shapes)).candidates[0].graph
    stored = [[s.tensor.name for s in k.stores] for k in best.kernels]
    assert stored == [["t0", "t1"], ["out"]]


def test_what_is_reduced_and_used_besides_is_stored() -> None:
    """h, by whose rows' norms it is divided, takes two products: neither is computed again."""

    def gated(x, w, v):
        h = (x @ w) * (x @ v)
        return h * torch.rsqrt(h.float().square().mean(-1, keepdim=True)).half()

    shapes = {"x": (256, 1024), "w": (1024, 2048), "v": (1024, 2048)}
    program = traced(gated, dtype=torch.float16, **shapes)
    best = search(program).candidates[0]
    (_, found), *_ = best.at.values()
    assert found.launches == 2
    assert found.flops < 1.1 * sum(o.flops.attr for o in program.source_ops)
    assert len(best.graph.temporaries) == 1


def test_what_is_shared_is_looked_at_once() -> None:
    """Each step uses the last one twice: 2 ** 24 ways lead to the first."""

    def deep(x, w, v):
        h = (x @ w) * (x @ v)
        for _ in range(24):
            h = torch.sin(h) * h
        return h.sum(-1)

    graph, asked = EGraph(), list[int]()
    program = traced(deep, x=(64, 64), w=(64, 64), v=(64, 64))
    for s in program.stores:
        graph.insert(s.value)
    assert forks(graph, lambda c: asked.append(c) or ()) == set()
    assert len(asked) == len(set(asked)) > 24


def test_projections_of_one_shape_are_candidates_each() -> None:
    def scores(x: torch.Tensor, wq: torch.Tensor, wk: torch.Tensor, wv: torch.Tensor):
        return torch.relu((x @ wq) @ (x @ wk).T) @ (x @ wv)

    shapes = {"x": (256, 128), "wq": (128, 64), "wk": (128, 64), "wv": (128, 64)}
    space, _ = build_space(traced(scores, dtype=torch.float16, **shapes), H200)
    products = [c.number for c in worth_storing(space, ((),)) if c.product]
    projections = [c for c in products if len(space.graph[c].free) == 2]
    assert len(projections) == 4  # q, k, v and the scores that relu leaves
    assert tuple(products) in cuts(worth_storing(space, ((),)))


def test_temporaries_are_laid_out_as_inputs_are() -> None:
    """What reads heads of a projection reads a row of it: head by head, its columns last."""

    def heads(x: torch.Tensor, w: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        h = torch.relu(x @ w).view(-1, 8, 32)
        return torch.softmax(h, 1).reshape(-1, 256) @ o

    shapes = {"x": (4096, 256), "w": (256, 256), "o": (256, 512)}
    space, _ = build_space(traced(heads, dtype=torch.float16, **shapes), H200)
    for c in worth_storing(space, ((),)):
        extents = [a.extent.attr for a in temporary(space.graph, c.number, None, ()).axes]
        assert extents in ([4096, 8, 32], [4096, 32]), extents


def test_a_product_is_stored_once_for_its_rows_and_for_its_columns() -> None:
    """The two differ by the names of axes only: in either, n is the output's."""

    def both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products = a @ b.T
        return products.amax(1) + products.amax(0)

    program = traced(both, a=(2048, 512), b=(2048, 512))
    space, _ = build_space(program, H200)
    (rows,) = [c.number for c in worth_storing(space, ((),)) if c.product]
    ((columns, names),) = space.twins(rows).items()
    assert {a: b for b, a in names.items()} == names
    assert space.twins(columns) == {rows: names}
    first, last = search(program).candidates[0].graph.kernels
    assert len(first.stores) == len(last.stores) == 1
    assert [len(list(find(s.value, "load"))) for s in last.stores] == [2]


def test_sums_of_rows_are_stored_beside_many_large_values() -> None:
    """What outputs share is combined, however much is large and comes before it."""
    large = [Candidate(n, product=True, large=True, shared=True) for n in range(7)]
    for shared in (True, False):
        small = [Candidate(n, product=False, large=False, shared=shared) for n in (7, 8)]
        assert ((7, 8) in cuts([*large, *small])) is shared


def test_a_class_with_a_guard_is_no_equal_of_what_it_guards() -> None:
    program = traced(lambda x: torch.logsumexp(x, 1), dtype=torch.float32, x=(64, 4096))
    for candidate in search(program).candidates:
        assert any(find(s.value, "where") for k in candidate.graph.kernels for s in k.stores)


def test_equal_indices_are_met_in_samples() -> None:
    """Else a selection by them would be one of its sides."""
    i, j, n = (axis(Axis(name, index(2048))) for name in "ijn")
    targets = Stored("y", (index(2048),), "i64", (index(0), index(2048)))
    target = cast(load(targets, (j,)), "index")
    for pair in ((i, j), (i, n), (i, target), (i, op("add", j, index(1)))):
        found = np.asarray(Fingerprints().value(op("eq", *pair)))
        assert 0 < found.mean() < 0.5, pair


def test_a_selection_by_one_index_is_none_of_its_sides() -> None:
    """However few of the places it is true at."""

    def without(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = torch.arange(2048)
        one, own = (torch.where(kept, x, 0.0) for kept in (n != 1234, n != y[:, None]))
        return one.sum(-1), own.sum(-1)

    targets = Tensor(64, dtype=torch.int64, range=(0, 2048))
    spec = superopt.spec(x=Tensor(64, 2048), y=targets, dtype=torch.float32)(without)
    for candidate in search(trace(spec).program).candidates:
        values = [s.value for k in candidate.graph.kernels for s in k.stores]
        assert 1234 in {n.attr for v in values for n in find(v, "const")}
        assert "y" in {n.attr.name for v in values for n in find(v, "load")}


def test_a_program_is_searched_as_written() -> None:
    """Without algebra the square of a difference stays one; a candidate computes the program."""

    def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((x[:, None] - y[None]) ** 2).sum(-1).amin(1)

    program = traced(distances, dtype=torch.float16, x=(2048, 64), y=(4096, 64))
    best, plain = (search(program, algebra=a).candidates[0].graph for a in (True, False))
    reductions = [len(list(find(g.kernels[0].stores[0].value, "reduce"))) for g in (best, plain)]
    assert reductions == [4, 2]  # x squared, y squared and their product, each on its own, or not
    assert check_graph(program, plain, 0).passed


def test_siblings_share_one_launch() -> None:
    program = traced(programs.projections, x=(16, 256), a=(256, 512), b=(256, 128), c=(256, 128))
    best = search(program).candidates[0]
    assert best.at[()][1].launches == 1
    assert sum(len(b.stores) for b in best.graph.kernels[0].branches) == 3


def test_unsafe_forms_are_found_and_refused() -> None:
    program = traced(programs.standardize, x=(64, 512))
    assert search(program).refused  # E[x^2] - E[x]^2 among them
    allowed = search_program(program, Options(H200, ((),), allow_unsafe=True))
    assert not allowed.refused


def test_a_clamp_that_only_zeros_meet_is_kept() -> None:
    def normalized(x):
        return torch.nn.functional.normalize(x, dim=-1)

    for c in search(traced(normalized, x=(64, 512))).candidates:
        assert "1e-12" in c.text


def test_no_part_of_masked_keys_loses_its_maximum() -> None:
    """Split over programs: a part may have no key at all, and scores may be large."""
    program = trace(superopt.spec(dtype=torch.float16, **masked_keys())(decode_masked)).program
    outcome = search(program)
    best = outcome.candidates[0].graph
    assert len(best.kernels) == 2
    assert all("max[" in c.text for c in outcome.candidates)
    assert any("exp(" in form and "inf" in why for form, why in outcome.refused.items())
    assert all(check_graph(program, best, seed).passed for seed in range(3))


def decode_masked(q, k, v, length):
    q, k, v = q.float(), k.float().repeat_interleave(8, 1), v.float().repeat_interleave(8, 1)
    hidden = torch.arange(k.shape[-2]) >= length[:, None, None, None]
    return torch.softmax((q @ k.mT / 8).masked_fill(hidden, -torch.inf), -1) @ v


def masked_keys() -> table.Tensors:
    keys = Tensor(1, 2, 8192, 128)
    length = Tensor(1, dtype=table.LONG, range=(0, 8193))
    return {"q": Tensor(1, 16, 1, 128), "k": keys, "v": keys, "length": length}


def test_products_of_halves_are_exact_in_float() -> None:
    def scores(q, k):
        return q.float() @ k.float().T

    spec = superopt.spec(q=Tensor(64, 64), k=Tensor(64, 64), dtype=torch.float16)(scores)
    branch = search(trace(spec).program).candidates[0].graph.kernels[0].branches[0]
    (node,) = [n for n in toposort(branch.stores[0].value) if n.op == "reduce"]
    assert node.attr.operand == "f32"
    assert dot_of(branch, node).operand == "f16"


def test_both_halves_of_a_row_are_read_once() -> None:
    program = traced(programs.halves, x=(2048, 1024))  # large enough that bytes count
    best = search(program).candidates[0]
    assert best.at[()][1].bytes == 2 * 2048 * 1024 * 4
    assert len(best.graph.kernels[0].stores) == 2


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (programs.norm_matmul, {"x": (5, 96), "w": (96, 33)}),
        (programs.three_factors, {"a": (33, 5), "b": (5, 47), "c": (47, 7)}),
        (programs.normalized_exp, {"x": (7, 130)}),
        (programs.two_layers, {"x": (3, 17), "a": (17, 40), "b": (40, 9)}),
        (programs.standardize, {"x": (9, 65)}),
        (programs.halves, {"x": (5, 34)}),
        (programs.projections, {"x": (4, 33), "a": (33, 40), "b": (33, 9), "c": (33, 9)}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_every_candidate_computes_the_program(fn, shapes) -> None:
    program = traced(fn, **shapes)
    rng = np.random.default_rng(0)
    inputs = {t.name: rng.normal(size=[e.attr for e in t.shape]) for t in program.inputs}
    want = run_program(program, inputs, {})
    for candidate in search(program).candidates:
        got = run_graph(candidate.graph, candidate.at[()][0], inputs, {})
        for t in program.outputs:
            np.testing.assert_allclose(got[t.name], want[t.name], rtol=1e-9, atol=1e-9)


def test_a_cast_to_double_is_not_a_hint() -> None:
    def total(x):
        return x.double().sum(-1)

    best = search(traced(total, x=(64, 128))).candidates[0].graph
    sums = [n for s in best.kernels[0].stores for n in find(s.value, "reduce")]
    assert [n.dtype for n in sums] == ["f64"]


def test_a_factor_of_zero_is_kept() -> None:
    best = search(traced(lambda x: torch.exp(x) * 0.0 + x, x=(8, 64))).candidates[0].graph
    got = run_graph(best, [Config((("m", 8), ("n", 64)))], {"x": np.full((8, 64), 2.0)}, {})
    np.testing.assert_array_equal(got["out"], 2.0)


# -- determinism, limits, interruption -----------------------------------------------------------


def texts(outcome: Outcome) -> list[str]:
    return [c.text for c in outcome.candidates]


def test_workers_do_not_change_what_is_kept() -> None:
    program = traced(programs.two_layers, **LAYERS)
    one = search(program)
    with ProcessPool(2) as pool:
        two = search_program(program, Options(H200, ((),)), executor=pool)
    assert texts(one) == texts(two)
    assert one.enumerated == two.enumerated
    assert one.candidates[0].at == two.candidates[0].at


def test_a_time_limit_keeps_what_was_found() -> None:
    outcome = search(traced(programs.two_layers, **LAYERS), time_limit=1e-6)
    assert outcome.stop_reason == "time limit"
    assert outcome.candidates


def test_an_interrupt_keeps_what_was_found() -> None:
    def interrupt(now: Status) -> None:
        if now.best != "inf us":
            raise KeyboardInterrupt

    outcome = search_program(
        traced(programs.two_layers, **LAYERS), Options(H200, ((),)), progress=interrupt
    )
    assert outcome.stop_reason == "interrupted"
    assert outcome.candidates


def test_the_journal_resumes_and_survives_a_torn_line(tmp_path: Path) -> None:
    program = traced(programs.two_layers, **LAYERS)
    path = tmp_path / "journal"
    whole = search(program, journal=path)
    lines = path.read_text().splitlines()
    assert len(lines) > whole.tasks  # of a cut: its plan, its groups, its µGraphs
    path.write_text("\n".join([*lines[:2], lines[2][: len(lines[2]) // 2]]))
    again = search(program, journal=path, resume=True)
    assert texts(again) == texts(whole)
    assert again.enumerated == whole.enumerated


def test_a_journal_of_another_program_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    search(traced(programs.normalized_exp, x=(64, 512)), journal=path)
    other = traced(programs.standardize, x=(64, 512))
    assert texts(search(other, journal=path, resume=True)) == texts(search(other))


def test_sizes_get_kernels_of_their_own_only_where_it_pays() -> None:
    from torch.export import Dim

    n = Dim("N", min=1, max=262144)
    program = traced(programs.normalized_exp, x=(1024, n))
    sizes = ((("N", 1024),), (("N", 4096),), (("N", 262144),))
    outcome = search_program(program, Options(H200, sizes))
    chosen = [c.graph for _, c in choices(outcome.candidates, sizes)]
    assert chosen[0] is chosen[1]  # both rows fit
    assert chosen[2] is not chosen[1]  # this one is looped over


# -- the guide against exhaustive enumeration ----------------------------------------------------

SMALL = [
    (programs.norm_matmul, {"x": (16, 1024), "w": (1024, 2048)}, 5),
    (programs.three_factors, {"a": (2048, 64), "b": (64, 2048), "c": (2048, 64)}, 2),
    (programs.normalized_exp, {"x": (16, 1024)}, 5),
]


@pytest.mark.parametrize(("fn", "shapes", "bound"), SMALL, ids=lambda v: getattr(v, "__name__", ""))
def test_the_guide_loses_nothing(fn, shapes, bound) -> None:
    program = traced(fn, **shapes)
    guided, exhaustive = search(program), search(program, exhaustive=True)
    assert exhaustive.stop_reason == "exhausted"
    assert exhaustive.bound == bound
    assert exhaustive.counts.built > guided.counts.built
    best = [o.candidates[0].at[()][1].time_us for o in (guided, exhaustive)]
    assert best[0] == pytest.approx(best[1], rel=1e-6)


def test_exhaustive_enumeration_refuses_what_is_too_large() -> None:
    def long(x):
        for _ in range(4):
            x = torch.sin(torch.exp(x) + 1.5) * x
        return x

    with pytest.raises(UsageError, match="at most 9 operators"):
        search(traced(long, x=(8, 8)), exhaustive=True)


def test_exhaustive_enumeration_stops_at_the_time_limit() -> None:
    program = traced(programs.norm_matmul, x=(16, 1024), w=(1024, 2048))
    outcome = search(program, exhaustive=True, time_limit=0.3)
    assert outcome.stop_reason == "time limit"
    assert outcome.candidates


def test_nothing_found_is_an_error() -> None:
    program = traced(programs.norm_matmul, x=(16, 64), w=(64, 32))
    tiny = H200.scaled(registers_per_multiprocessor=1)
    assert search_program(program, Options(tiny, ((),))).candidates

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    broken = H200.scaled(shared_bytes_per_program=0)
    with pytest.raises(CheckFailed, match="nothing was found"):
        search_program(program, Options(broken, ((),)), progress=interrupt)


# -- what a search asks of a program, however it is written ---------------------------------------


def test_a_weight_is_no_weight_for_its_layout() -> None:
    """x is read along the output's rows: it is data, stored by rows or by columns."""

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    def by_columns(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x.T @ w

    for fn, shape in ((product, (8, 32)), (by_columns, (32, 8))):
        program = traced(fn, x=shape, w=(32, 32))
        assert {t.name for t in weights(program)} == {"w"}


def test_axes_of_one_extent_take_the_names_that_share_loads() -> None:
    """The sum reads x[i, n, m], the output x[i, m, n]: held once, not also transposed."""
    i, m, n = (Axis(name, index(e)) for name, e in (("i", 4), ("m", 8), ("n", 8)))
    q, r = Axis("q", index(8)), Axis("r", index(8))
    x, out = (Stored(name, tuple(a.extent for a in (i, m, n)), "f32") for name in ("x", "out"))
    for bound in ((q, r), (r, q)):
        total = reduce("sum", (q, r), load(x, map(axis, (i, *bound))))
        value = op("sub", load(x, map(axis, (i, m, n))), total)
        (shared,) = share_axes((store(out, (i, m, n), value),), frozenset((m, n)))
        assert len(set(find(shared.value, "load"))) == 1


def test_errors_are_those_of_a_kind_of_input() -> None:
    """One draw of a kind may be right by luck: the largest error of several counts."""
    want = np.ones((3, len(HOSTILE)))
    got = want.copy()
    got[1, 2] = 1.5
    errors = relative_errors(want, got)
    assert len(errors) == len(KINDS) < len(HOSTILE)
    assert list(np.flatnonzero(errors)) == [0]


@pytest.mark.parametrize(
    ("errors", "safe"),
    [
        ({"x": (1e-7, 0.5), "y": (1e-7, 1e-7)}, "y"),
        ({"x": (1e-3, np.inf), "y": (5e-3, 1e-7), "z": (0.1, 1e-7)}, "y"),  # the nearest to it
        ({"x": (1e-3, np.inf), "y": (1e-3, np.inf)}, "xy"),
    ],
)
def test_some_term_is_safe(errors: dict[str, tuple[float, float]], safe: str) -> None:
    i = Axis("i", index(7))
    terms = {n: load(Stored(n, (i.extent,), "f32"), (axis(i),)) for n in errors}
    accuracy = Accuracy()
    for n, term in terms.items():
        own = np.resize(errors[n], len(KINDS))
        accuracy.known.update({(term, other): own for other in terms.values()})
    verdicts = accuracy.safe(list(terms.values()))
    assert "".join(n for n, ok in zip(terms, verdicts, strict=True) if ok) == safe


def by_rows(x, weight, bias, w):
    return F.layer_norm(x, x.shape[-1:], weight, bias) @ w


def by_columns(x, weight, bias, w):
    return F.layer_norm(x, x.shape[-1:], weight, bias) @ w.T


@pytest.mark.parametrize("fn", [by_rows, by_columns], ids=lambda fn: fn.__name__)
def test_the_layout_of_a_weight_decides_nothing(fn: Callable) -> None:
    shapes = {"x": (256, 1024), "weight": 1024, "bias": 1024, "w": (1024, 1024)}
    graph = search(traced(fn, dtype=torch.float16, **shapes)).candidates[0].graph
    ((stored,),) = (k.stores for k in graph.kernels)
    assert len(list(find(stored.value, "online"))) == 2  # of the squares, and of the product


# -- µGraphs that are as fast ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "wins"),
    [
        ((101.0, 1, 5e8), False),  # microseconds, launches, flops, beside 100 us, 1 and 5e8
        ((99.0, 1, 5e8), True),
        ((99.0, 1, 6e8), False),
        ((101.0, 1, 4e8), True),
        ((61.0, 2, 5e8), False),  # a launch more, and not so much faster
        ((59.0, 2, 5e8), True),
    ],
)
def test_launches_and_flops_count_beside_the_predicted_time(
    other: tuple[float, int, float], wins: bool
) -> None:
    graph = search(traced(whole_norm, x=(4, 8))).candidates[0].graph
    one, two = (
        Ranked(graph, {(): ((), Prediction(us, launches, 1e6, 1e6, flops, "dram"))})
        for us, launches, flops in ((100.0, 1, 5e8), other)
    )
    for kept in ([one, two], [two, one]):
        assert choices(kept, ((),))[0][1] is (two if wins else one)


# -- reductions of few rows that are long ---------------------------------------------------------


def whole_norm(x):
    return x.square().sum().sqrt()


def unit_length(x):
    return x / (x.square().sum().sqrt() + 1e-6)


def standardized(x):
    return (x - x.mean()) / (x.std() + 1e-6)


def channels(x):
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    return (x - mean[:, None, None]) * torch.rsqrt(var + 1e-5)[:, None, None]


@pytest.mark.parametrize(
    ("fn", "shape", "launches", "most_us"),
    [
        (whole_norm, (4096, 1024), 2, 14),  # parts, and what joins them
        (unit_length, (4096, 1024), 3, 26),
        (standardized, (4096, 2048), 5, 58),
        (channels, (32, 8, 64, 64), 1, 40),  # of several short axes
    ],
)
def test_long_rows_are_split_over_programs_where_they_are_few(
    fn, shape, launches: int, most_us: float
) -> None:
    found = search(traced(fn, x=shape)).candidates[0].at[()][1]
    assert found.launches == launches
    assert found.time_us < most_us  # as predicted; a program a row takes 300 to 900
