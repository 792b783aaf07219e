"""Masks become loop bounds: what is visited, what is tested, and that nothing else changes."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emit_cases as cases
import numpy as np
import pytest

import superopt.mugraph.interpret as interpret
from superopt.cost_model.features import elements, extents, features, lanes, shape
from superopt.emit import emit
from superopt.errors import IllFormed
from superopt.mugraph.bounds import Bounds, Range, loop_bounds, sides
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import (
    FALSE,
    Axis,
    Expr,
    Symbol,
    Tensor,
    axis,
    cast,
    const,
    index,
    load,
    online,
    op,
    prior,
    reduce,
    running,
    sym,
)
from superopt.mugraph.index import conjunction
from superopt.mugraph.interpret import run_graph
from superopt.mugraph.program import (
    Branch,
    Choice,
    Config,
    Kernel,
    KernelGraph,
    Program,
    Store,
    illegal,
    store,
)
from superopt.mugraph.schedule import Loop, schedule
from superopt.verify import Worker, gate
from superopt.verify.worker import unless_masked

INFINITY, ZERO, ONE = (const(x, "f32") for x in (-math.inf, 0.0, 1.0))
Mask = Callable[[Expr, Expr, Expr], Expr]  # of the row, the column and the head


def wide(e: Expr) -> Expr:
    return cast(e, "f32")


def config(rows: int, columns: int, warps: int = 4, stages: int = 2) -> Config:
    return Config((("i", rows), ("j", columns)), warps, stages)


@dataclass
class Case:
    """softmax over columns of where(mask, q @ k, -inf), @ v: rows in a grid, columns in a loop.

    `form`: 'online' in one pass; 'passes' with the sum divided at the end; 'within' with each
    weight divided before it is summed; 'added' online, the mask added as 0 or -inf.
    """

    mask: Mask | None
    rows: int | Expr = 70
    columns: int | Expr = 75
    width: int = 16
    form: str = "online"
    more: tuple[Tensor, ...] = ()
    heads: int = 2
    fill: Expr = INFINITY
    program: Program = field(init=False)
    branch: Branch = field(init=False)

    def __post_init__(self) -> None:
        m, n = (index(e) if isinstance(e, int) else e for e in (self.rows, self.columns))
        width = index(self.width)
        self.i, self.j = Axis("i", m), Axis("j", n)
        self.d, self.e = Axis("d", width), Axis("e", width)
        self.h = Axis("h", index(self.heads))
        shapes = {"q": m, "k": n, "v": n, "out": m}
        q, k, v, out = (Tensor(t, (self.h.extent, x, width), "f16") for t, x in shapes.items())
        score = self.score(q, k)
        value = wide(load(v, [axis(self.h), axis(self.j), axis(self.e)]))
        plain, final = self.averages(score, value)
        axes = (self.h, self.i, self.e)
        self.program = Program("attend", (q, k, v, *self.more), (store(out, axes, plain),), (out,))
        roles = {"d": "whole", "e": "whole", "h": "program", "i": "grid", "j": "loop"}
        used = [(a, r) for a, r in roles.items() if a != "h" or self.heads > 1]
        self.branch = Branch((store(out, axes, final),), tuple(sorted(used)))
        assert illegal(self.branch) is None, illegal(self.branch)

    def score(self, q: Tensor, k: Tensor) -> Expr:
        a, b = (
            load(t, [axis(self.h), axis(x), axis(self.d)]) for t, x in ((q, self.i), (k, self.j))
        )
        score = reduce("sum", (self.d,), op("mul", wide(a), wide(b)), "f16")
        score = op("mul", score, const(0.25, "f32"))
        if self.mask is None:
            return score
        condition = self.mask(axis(self.i), axis(self.j), axis(self.h))
        if self.form == "added":
            return op("add", score, op("where", condition, ZERO, self.fill))
        return op("where", condition, score, self.fill)

    def averages(self, score: Expr, value: Expr) -> tuple[Expr, Expr]:
        """What is to be computed, and the form of it that the branch has."""
        most = reduce("max", (self.j,), score)
        weight = op("exp", op("sub", score, most))
        total = reduce("sum", (self.j,), weight)
        acc = reduce("sum", (self.j,), op("mul", weight, value), "f16")
        plain = cast(op("div", acc, total), "f16")
        if self.form == "within":
            share = wide(cast(op("div", weight, total), "f16"))
            plain = cast(reduce("sum", (self.j,), op("mul", share, value), "f16"), "f16")
        if self.form in ("passes", "within"):
            return plain, plain
        so_far = running(most)
        so_far = op("where", op("eq", so_far, INFINITY), ZERO, so_far)
        now = op("exp", op("sub", score, so_far))
        rescale = op("exp", op("sub", prior(most), so_far))
        top = online(acc, op("mul", now, value), op("mul", prior(acc), rescale))
        bottom = online(total, now, op("mul", prior(total), rescale))
        return plain, cast(op("div", top, bottom), "f16")

    @property
    def graph(self) -> KernelGraph:
        kernels = (Kernel("k0", (self.branch,)),)
        return KernelGraph("attend", self.program.inputs, kernels, self.program.outputs)

    def bounds(self) -> list[Bounds | None]:
        return bounds_of(self.branch)

    def text(self, *configs: Config) -> str:
        choices = [Choice((), self.graph, (c,)) for c in configs or (config(32, 16),)]
        return emit(cases.traced(self.program), choices, cases.NOTES)


def bounds_of(branch: Branch) -> list[Bounds | None]:
    return [loop_bounds(branch, x) for x in schedule(branch) if isinstance(x, Loop)]


# -- masks --------------------------------------------------------------------------------------


def integers(name: str, extent: int, dtype: str = "i32", high: int = 0) -> Tensor:
    bounds = (index(0), index(high)) if high else None
    return Tensor(name, (index(extent),), dtype, bounds)


def both(*conditions: Expr) -> Expr:
    return conjunction(*conditions)


def either(a: Expr, b: Expr) -> Expr:
    return op("or", a, b)


def plus(e: Expr, n: int) -> Expr:
    return op("add", e, index(n))


def triangle(i: Expr, j: Expr, h: Expr) -> Expr:
    return op("le", j, i)


def in_64_bits(i: Expr, j: Expr, h: Expr) -> Expr:
    """As torch.arange compares them, and turned around."""
    i, j = cast(i, "i64"), cast(j, "i64")
    return op("not", op("gt", j, op("add", i, const(5, "i64"))))


def band(width: int) -> Mask:
    return lambda i, j, h: both(op("le", j, i), op("lt", op("sub", i, j), index(width)))


def nested(i: Expr, j: Expr, h: Expr) -> Expr:
    return op("where", op("le", j, i), op("gt", j, plus(i, -7)), FALSE)


def chunks(i: Expr, j: Expr, h: Expr) -> Expr:
    return op("eq", op("floordiv", j, index(24)), op("floordiv", i, index(24)))


LENGTHS = integers("lengths", 3, "i64", 76)
ANY = integers("lengths", 3)  # may be negative, or beyond the end
ENDS, FIRST = integers("ends", 70), integers("first", 70, "i64")
IDS, KEYS = integers("ids", 70), integers("keys", 75)

MASKS: dict[str, tuple[Mask | None, tuple[Tensor, ...]]] = {
    "none": (None, ()),
    "triangle": (triangle, ()),
    "triangle in 64 bits": (in_64_bits, ()),
    "strict triangle": (lambda i, j, h: op("lt", j, i), ()),  # row 0 is masked whole
    "upper triangle": (lambda i, j, h: op("ge", j, i), ()),
    "rows before all columns": (lambda i, j, h: op("le", j, plus(i, -33)), ()),
    "band": (band(20), ()),
    "band, nested": (nested, ()),
    "prefix": (lambda i, j, h: either(op("le", j, i), op("lt", j, index(40))), ()),
    "sinks and band": (
        lambda i, j, h: both(
            op("le", j, i), either(op("lt", j, index(4)), op("gt", j, plus(i, -9)))
        ),
        (),
    ),
    "chunks": (chunks, ()),
    "lengths": (lambda i, j, h: op("lt", cast(j, "i64"), load(LENGTHS, [h])), (LENGTHS,)),
    "any lengths": (lambda i, j, h: op("le", j, load(ANY, [h])), (ANY,)),
    "triangle of lengths": (
        lambda i, j, h: both(op("le", j, i), op("lt", cast(j, "i64"), load(LENGTHS, [h]))),
        (LENGTHS,),
    ),
    "an end for each row": (lambda i, j, h: op("lt", j, load(ENDS, [i])), (ENDS,)),
    "a span for each row": (
        lambda i, j, h: both(
            op("le", j, op("add", load(ENDS, [i]), i)),
            op("ge", cast(j, "i64"), op("sub", cast(i, "i64"), load(FIRST, [i]))),
        ),
        (ENDS, FIRST),
    ),
    "triangle of documents": (
        lambda i, j, h: both(op("le", j, i), op("eq", load(IDS, [i]), load(KEYS, [j]))),
        (IDS, KEYS),
    ),
}


def arrays(program: Program, seed: int = 0) -> dict[str, Any]:
    return {n: cases._array(x) for n, x in cases.draw(program, {}, seed).items()}


def check(graph: KernelGraph, program: Program, *configs: Config, seed: int = 0) -> None:
    """The µGraph's tiles against the formula; NaN where the formula gives NaN."""
    x = arrays(program, seed)
    want = run_program(program, x, {})
    for c in configs:
        got = run_graph(graph, [c], x, {})
        for t in program.outputs:
            np.testing.assert_allclose(got[t.name], want[t.name], atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("form", ["online", "added", "passes", "within"])
@pytest.mark.parametrize("name", MASKS)
def test_tiles_that_are_skipped_change_nothing(name: str, form: str) -> None:
    mask, more = MASKS[name]
    case = Case(mask, form=form, more=more)
    check(case.graph, case.program, config(16, 16), config(32, 8), config(8, 64))


@pytest.mark.parametrize("name", [n for n in MASKS if n != "none"])
def test_the_kernel_gives_what_the_formula_gives(name: str) -> None:
    mask, more = MASKS[name]
    run_kernel(Case(mask, more=more), config(32, 16))


@pytest.mark.parametrize("name", ["strict triangle", "band", "a span for each row"])
def test_the_kernel_with_a_pass_for_each_reduction(name: str) -> None:
    mask, more = MASKS[name]
    run_kernel(Case(mask, form="passes", more=more), config(32, 16))


@pytest.mark.parametrize("name", ["triangle", "triangle of documents", "band"])
def test_the_kernel_takes_added_masks(name: str) -> None:
    mask, more = MASKS[name]
    case = Case(mask, form="added", more=more, heads=1)
    run_kernel(case, config(32, 16))
    assert whole_section(case.text()).count("tl.where") == (2 if name.endswith("documents") else 1)


def run_kernel(case: Case, c: Config, tolerance: float = 4e-3) -> None:
    x = cases.draw(case.program, {})
    (want,) = cases.expected(case.program, x, {})
    choice = Choice((), case.graph, (c,))
    _, module = cases.emitted(cases.traced(case.program), choice)
    with np.errstate(all="ignore"):
        got = module.attend(*x.values()).double().numpy()
    np.testing.assert_allclose(got, want, atol=tolerance, equal_nan=True)


def random_mask(rng: random.Random, depth: int = 2) -> Mask:
    """Comparisons of the row and the column, joined in all ways."""
    if depth and rng.random() < 0.7:
        a, b = random_mask(rng, depth - 1), random_mask(rng, depth - 1)
        kind = rng.choice(["and", "and", "or", "not"])
        if kind == "not":
            return lambda i, j, h: op("not", a(i, j, h))
        return lambda i, j, h: op(kind, a(i, j, h), b(i, j, h))
    name = rng.choice(["lt", "le", "gt", "ge", "eq", "ne"])
    scale, shift = rng.choice([1, 1, 1, -1, 0, 2]), rng.randrange(-60, 60)
    lengths = rng.random() < 0.3

    def compare(i: Expr, j: Expr, h: Expr) -> Expr:
        other = plus(op("mul", i, index(scale)), shift)
        if lengths:
            other = op("add", other, cast(load(ANY, [h]), "index"))
        return op(name, *((j, other) if shift % 2 else (other, j)))

    return compare


@pytest.mark.parametrize("seed", range(30))
def test_random_masks(seed: int) -> None:
    rng = random.Random(seed)
    form = rng.choice(["online", "added", "passes", "within"])
    case = Case(random_mask(rng), 40, 50, form=form, more=(ANY,))
    check(case.graph, case.program, config(16, 8), config(8, 16), seed=seed)


def test_symbolic_sizes() -> None:
    rows, columns = sym(Symbol("S", 1, 4096)), sym(Symbol("N", 1, 4096))
    case = Case(
        lambda i, j, h: op("le", j, op("add", i, op("sub", columns, rows))), rows, columns, heads=1
    )
    for s, n in ((30, 70), (70, 30), (1, 64), (64, 1)):
        x = {
            name: np.random.default_rng(0).normal(size=(1, t, 16))
            for name, t in zip("qkv", (s, n, n), strict=True)
        }
        sizes = {"S": s, "N": n}
        want = run_program(case.program, x, sizes)["out"]
        got = run_graph(case.graph, [config(16, 16)], x, sizes)["out"]
        np.testing.assert_allclose(got, want, atol=1e-12, equal_nan=True)
    assert "tl.minimum" in case.text()


# -- the range, at its boundary -----------------------------------------------------------------


def range_of(case: Case, row: int, rows: int, columns: int, **loaded: int) -> tuple[int, ...]:
    (bounds,) = case.bounds()
    assert bounds is not None
    values: dict[str, Any] = {}
    for k in bounds.known:
        known = {"start": row, "tile": rows}
        values[k.name] = known[k.kind] if k.kind in known else loaded[k.kind]
    r = bounds.range(values, columns, 75)
    assert isinstance(r, Range)
    return int(r.begin), int(r.end), int(r.full_begin), int(r.full_end)


def test_sides_of_a_comparison() -> None:
    i, j = Axis("i", index(64)), Axis("j", index(64))
    a, b = axis(i), axis(j)
    assert sides(op("le", b, plus(a, 3)), j) == (None, plus(a, 4))
    assert sides(op("lt", a, b), j) == (plus(a, 1), None)
    assert sides(op("eq", b, a), j) == (a, plus(a, 1))
    assert sides(op("lt", op("mul", b, index(2)), a), j) is None
    assert sides(op("ne", b, a), j) is None


def test_the_last_tile_that_is_visited() -> None:
    case = Case(triangle)
    assert range_of(case, 0, 16, 16)[:2] == (0, 16)
    assert range_of(case, 16, 15, 16)[:2] == (0, 31)  # row 30 reaches no column of the third tile
    assert range_of(case, 16, 17, 16)[:2] == (0, 33)  # row 32 does
    assert range_of(case, 64, 16, 16)[:2] == (0, 75)  # the axis's end


def test_the_first_tile_that_is_visited() -> None:
    case = Case(band(20))
    assert range_of(case, 34, 2, 16)[0] == 0  # row 34 reaches back to column 15
    assert range_of(case, 35, 2, 16)[0] == 16  # row 35 to column 16
    assert range_of(case, 0, 2, 16)[0] == 0


def test_the_first_tile_that_must_be_tested() -> None:
    case = Case(triangle)
    assert range_of(case, 30, 16, 16)[3] == 16  # row 30 misses column 31
    assert range_of(case, 31, 16, 16)[3] == 32
    case = Case(MASKS["lengths"][0], more=(LENGTHS,))
    assert range_of(case, 0, 16, 16, value=31)[1:] == (31, 0, 16)
    assert range_of(case, 0, 16, 16, value=32)[1:] == (32, 0, 32)
    assert range_of(case, 0, 16, 16, value=0) == (0, 0, 0, 0)  # visits nothing


def test_both_ends_of_a_band() -> None:
    case = Case(band(40))
    assert range_of(case, 48, 8, 8) == (
        8,
        56,
        16,
        48,
    )  # rows 48..55: column 16 to 48 in all of them
    assert range_of(case, 48, 8, 16) == (0, 56, 16, 48)
    assert range_of(Case(band(20)), 48, 32, 16) == (16, 75, 64, 64)  # no tile is whole for all rows


def test_a_prefix_reaches_as_far_as_either() -> None:
    case = Case(MASKS["prefix"][0])
    assert range_of(case, 0, 16, 16) == (0, 40, 0, 32)
    assert range_of(case, 48, 16, 16) == (0, 64, 0, 48)


def test_a_tile_said_to_need_no_test_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(triangle)

    def rows_too_far(branch: Branch, loop: Loop) -> Bounds:
        b = loop_bounds(branch, loop)
        assert b is not None
        return Bounds(b.axis, b.lower, b.upper, b.full_lower, plus(b.full_upper, 15), b.tested)

    check(case.graph, case.program, config(16, 16))
    monkeypatch.setattr(interpret, "loop_bounds", rows_too_far)
    with pytest.raises(IllFormed, match="needs no test"):
        check(case.graph, case.program, config(16, 16))


# -- what may be skipped ------------------------------------------------------------------------


def loop_over(*bodies: tuple[str, Expr], store_loop: bool = False) -> list[Bounds | None]:
    """Bounds of loops over j that reduce each body; i is in a grid."""
    stores = []
    for n, (monoid, body) in enumerate(bodies):
        out = Tensor(f"out{n}", (DOWN.extent,), body.dtype)
        stores.append(store(out, (DOWN,), reduce(monoid, (ACROSS,), body)))
    if store_loop:
        out = Tensor("copy", (DOWN.extent, ACROSS.extent), "f32")
        stores.append(
            Store(out, (DOWN, ACROSS), (axis(DOWN), axis(ACROSS)), op("where", BELOW, X, ZERO))
        )
    return bounds_of(Branch(tuple(stores), (("i", "grid"), ("j", "loop"))))


DOWN, ACROSS = Axis("i", index(70)), Axis("j", index(75))
BELOW = op("le", axis(ACROSS), axis(DOWN))
X = load(Tensor("x", (index(70), index(75)), "f32"), [axis(DOWN), axis(ACROSS)])
ROW = load(Tensor("r", (index(70),), "f32"), [axis(DOWN)])
STRICTLY = op("lt", axis(ACROSS), axis(DOWN))
TAKEN = op("where", BELOW, X, ZERO)


@pytest.mark.parametrize(
    "monoid, body, skipped",
    [
        ("sum", TAKEN, True),
        ("sum", op("where", BELOW, X, ONE), False),
        ("sum", op("where", op("not", BELOW), ZERO, X), True),
        ("sum", op("mul", TAKEN, X), True),
        ("sum", op("mul", op("mul", cast(BELOW, "f32"), X), X), True),
        ("sum", op("add", TAKEN, X), False),
        ("sum", op("exp", op("where", BELOW, X, INFINITY)), True),
        ("sum", op("exp", op("where", BELOW, X, const(-50.0, "f32"))), False),
        ("sum", op("exp", op("add", X, op("where", BELOW, ZERO, INFINITY))), True),
        ("sum", op("square", op("where", BELOW, X, const(0.0, "f32"))), True),
        ("sum", op("sigmoid", TAKEN), False),  # of 0 it is 1/2
        ("sum", load(X.attr, [axis(DOWN), axis(ACROSS)], BELOW), True),
        ("sum", cast(BELOW, "i32"), True),  # a count
        ("max", op("where", BELOW, X, INFINITY), True),
        ("max", TAKEN, False),
        ("max", op("maximum", op("where", BELOW, X, INFINITY), INFINITY), True),
        ("min", op("neg", op("where", BELOW, X, INFINITY)), True),
        ("min", op("where", BELOW, X, INFINITY), False),
        ("prod", op("where", BELOW, X, ONE), True),
        ("prod", TAKEN, False),
        ("sum", op("where", either(BELOW, op("gt", X, ZERO)), X, ZERO), False),
        ("sum", op("where", both(BELOW, op("gt", X, ZERO)), X, ZERO), True),
        # a row's own statistic may be infinite: every row has a column, of the triangle
        ("sum", op("exp", op("sub", op("where", BELOW, X, INFINITY), ROW)), True),
        ("sum", op("exp", op("sub", op("where", STRICTLY, X, INFINITY), ROW)), False),
        ("sum", op("exp", op("sub", op("where", BELOW, X, const(-1e9, "f32")), ROW)), False),
    ],
)  # fmt: skip
def test_what_may_be_skipped(monoid: str, body: Expr, skipped: bool) -> None:
    (found,) = loop_over((monoid, body))
    assert (found is not None) == skipped


def test_all_that_a_loop_does_must_be_skippable() -> None:
    assert loop_over(("sum", TAKEN), ("sum", op("square", TAKEN)))[0] is not None
    assert loop_over(("sum", TAKEN), ("sum", X)) == [None]
    assert loop_over(("sum", TAKEN), store_loop=True) == [None]


def test_a_row_masked_whole_stays_what_the_formula_gives() -> None:
    """Row 0 has no column: 0 / 0 at the end is NaN either way, weights divided before are not."""
    mask = MASKS["strict triangle"][0]
    assert None not in Case(mask, form="passes").bounds()
    assert None not in Case(mask, form="online").bounds()
    assert Case(mask, form="within").bounds()[-1] is None
    assert Case(triangle, form="within").bounds()[-1] is not None
    x = arrays(Case(mask).program)
    for form in ("online", "passes", "within"):
        case = Case(mask, form=form)
        got = run_graph(case.graph, [config(8, 16)], x, {})["out"]
        assert np.isnan(got[:, 0]).all()
        assert not np.isnan(got[:, 1:]).any()


def test_the_gate_lets_masked_nan_be_skipped(tmp_path: Path) -> None:
    """Eager multiplies a masked NaN of v by a weight of 0; the kernel does not visit it."""
    path = tmp_path / "kernel.py"
    case = Case(triangle, 40, 40, heads=1)
    path.write_text(case.text())
    with Worker() as worker:
        result = gate(cases.traced(case.program), path, worker=worker, seconds=1.0)
    assert result.passed, str(result)


def test_what_is_asked_of_a_kernel_where_eager_gives_nan() -> None:
    nan = np.full(3, np.nan)
    got, want = np.array([2.0, 2.0, np.nan]), np.array([np.nan, np.nan, np.nan])
    tamed = [np.array([2.0, 2.0, 2.0]), np.array([2.0, 3.0, 2.0])]  # the second depends on them
    asked, _ = unless_masked(got, want, nan, tamed)
    np.testing.assert_array_equal(asked, [2.0, np.nan, np.nan])
    assert unless_masked(got, want, nan, [])[0] is want


# -- what is counted ----------------------------------------------------------------------------


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Elements that a run of a µGraph loads, by tensor."""
    count: dict[str, int] = {}
    plain = interpret._Memory.load

    def loaded(self: Any, where: str, tensor: Tensor, at: Any, valid: Any) -> Any:
        count[tensor.name] = count.get(tensor.name, 0) + int(valid.sum())
        return plain(self, where, tensor, at, valid)

    with monkeypatch.context() as patch:
        patch.setattr(interpret._Memory, "load", loaded)
        yield count


def modelled(case: Case, rows: Any, columns: Any) -> dict[str, Any]:
    """The same, by the cost model."""
    f = features(case.branch)
    tiles = {"i": np.atleast_1d(rows).astype(float), "j": np.atleast_1d(columns).astype(float)}
    s = shape(f, extents(f, {}), tiles)
    return {a.tensor.name: elements(f, s, a.free, a.context) for a in f.accesses}


@pytest.mark.parametrize(
    "name", ["triangle", "band", "prefix", "chunks", "rows before all columns"]
)
def test_the_cost_model_counts_what_is_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(MASKS[name][0], heads=2)
    for rows, columns in ((16, 16), (32, 8), (8, 64)):
        with counted(monkeypatch) as count:
            run_graph(case.graph, [config(rows, columns)], arrays(case.program), {})
        expected = modelled(case, rows, columns)
        assert {t: round(n[0]) for t, n in expected.items() if t in "qkv"} == count


def test_a_triangle_reads_half() -> None:
    rows, columns = (x.reshape(-1) for x in np.meshgrid([64, 128], [64, 128]))
    masked = modelled(Case(triangle, 2048, 2048, 64, heads=1), rows, columns)
    full = modelled(Case(None, 2048, 2048, 64, heads=1), rows, columns)
    for t in ("k", "v"):
        assert np.all(masked[t] / full[t] <= 0.56)
        assert np.all(masked[t] / full[t] >= 0.5)
    assert np.all(masked["q"] == full["q"])


def test_a_band_reads_its_width() -> None:
    masked = modelled(Case(band(256), 4096, 4096, 64, heads=1), [64, 128], [64, 128])
    full = modelled(Case(None, 4096, 4096, 64, heads=1), [64, 128], [64, 128])
    assert np.all(masked["k"] / full["k"] <= 0.16)


def test_work_follows_the_tiles_visited() -> None:
    counts = []
    for mask in (triangle, None):
        f = features(Case(mask, 2048, 2048, 64, heads=1).branch)
        s = shape(f, extents(f, {}), {"i": np.full(1, 128.0), "j": np.full(1, 64.0)})
        counts.append(sum(float(lanes(f, s, w.free, w.context)[0]) for w in f.work if w.dot))
    assert counts[0] / counts[1] == pytest.approx(sum(range(2, 33, 2)) / (16 * 32))


def test_bounds_from_data_are_counted_as_if_they_left_all() -> None:
    case = Case(MASKS["lengths"][0], more=(LENGTHS,))
    assert modelled(case, 16, 16)["k"] == modelled(Case(None), 16, 16)["k"]


# -- the text -----------------------------------------------------------------------------------


def whole_section(text: str) -> str:
    """The loop of tiles that need no test."""
    _, after = text.split("holds everywhere\n", 1)
    return re.split(r"\n    (?=\S)", after.split(":\n", 1)[1], maxsplit=1)[0]


def test_whole_tiles_are_not_masked() -> None:
    text = Case(triangle, heads=1).text()
    whole = whole_section(text)
    assert "in_j" not in whole
    assert "i[:, None]" not in whole
    assert whole.count("tl.where") == 1  # of the maximum so far
    assert "for j_start in range(0, j_full_end, BLOCK_J):" in text
    assert "for j_start in range(j_full_end, j_end, BLOCK_J):" in text
    assert text.count("for j_start") == 2
    assert "j_end = tl.minimum(" in text


def test_a_band_has_three_sections() -> None:
    text = Case(band(20), heads=1).text()
    assert text.count("for j_start") == 3
    assert "# tiles in which j <= i and i - j < 20 must be tested" in text
    assert "in_j" not in whole_section(text)


def test_masks_that_are_no_bounds_stay() -> None:
    mask, more = MASKS["triangle of documents"]
    whole = whole_section(Case(mask, more=more, heads=1).text())
    assert "== ids[:, None]" in whole
    assert "i[:, None]" not in whole


def test_a_loop_that_only_adds_up_is_not_split() -> None:
    out = Tensor("out", (DOWN.extent,), "f32")
    s = store(out, (DOWN,), reduce("sum", (ACROSS,), TAKEN))
    program = Program("below", (X.attr,), (s,), (out,))
    g = cases.graph(program, {"i": "grid", "j": "loop"})
    text, module = cases.emitted(cases.traced(program), cases.choice(g))
    assert text.count("for j_start") == 1
    assert "range(0, j_end, BLOCK_J)" in text
    x = cases.draw(program, {})
    (want,) = cases.expected(program, x, {})
    np.testing.assert_allclose(module.below(*x.values()).numpy(), want, rtol=1e-5, atol=1e-5)


COMPILE = """
import sys
from pathlib import Path
from superopt.emit.compile import compile_for
for path in sys.argv[1:]:
    (stats,) = compile_for(Path(path), {}, "sm_90")
    assert stats.ok, stats.error
    assert stats.spilled_bytes == 0 and stats.dots == ("wgmma",), (path, stats)
"""


def test_compiles_for_sm_90_without_spills(tmp_path: Path) -> None:
    paths = []
    for name, mask, width, c in (
        ("triangle", triangle, 64, config(128, 64, 8, 3)),
        ("triangle", triangle, 128, config(128, 64, 8, 3)),
        ("band", band(256), 128, config(128, 64, 8, 3)),
    ):
        paths.append(tmp_path / f"{name}_{width}" / "kernel.py")
        paths[-1].parent.mkdir()
        paths[-1].write_text(Case(mask, 4096, 4096, width, heads=1).text(c))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", COMPILE, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
