"""Online forms and divided reductions, run tile by tile against the program that they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

import superopt
from superopt import Tensor
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Axis, find
from superopt.mugraph.interpret import run_graph
from superopt.mugraph.program import Branch, Config, Kernel, KernelGraph, Program, Store, illegal
from superopt.mugraph.serialize import from_json, to_json
from superopt.mugraph.text import parse_graph, print_graph
from superopt.mugraph.trace import trace
from superopt.search.division import divide
from superopt.search.normalise import normalise
from superopt.search.online import Form, Online

N = Dim("N", min=1, max=4096)
EXTENTS = (1, 3, 13)
ROWS, COLUMNS = 5, 3
Data = dict[str, np.ndarray]


def weighted(x, y):
    return torch.softmax(x, -1) @ y


def masked(x, y, m):
    return torch.softmax(x.masked_fill(m, float("-inf")), -1) @ y


def masked_to_zero(x, y, m):
    x = x.masked_fill(m, float("-inf"))
    top = x.amax(-1, keepdim=True)
    e = torch.exp(x - torch.where(top == float("-inf"), 0.0, top))
    total = e.sum(-1, keepdim=True)
    return (e @ y) / torch.where(total == 0, 1.0, total)


def total_of_exp(x):
    return torch.exp(x - x.amax(-1, keepdim=True)).sum(-1)


def logarithm(x):
    return torch.logsumexp(x, -1)


def entropy(x):
    p = torch.softmax(x, -1)
    return -(p * torch.log_softmax(x, -1)).sum(-1)


def place_of_maximum(x):
    return x.argmax(-1)


def variance(x):
    return x.var(-1, correction=0)


def skewness(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred.pow(3).mean(-1)


def normed(x, y):
    return F.layer_norm(x, (x.shape[-1],)) @ y


def scaled(x, y):
    return (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)) @ y


def spread_of(x):
    return (x - x.amin(-1, keepdim=True)).amax(-1)


def row(x):
    return torch.softmax(x, -1)


@dataclass(frozen=True)
class Case:
    """`symbolic`: the looped extent may be left open."""

    fn: Callable[..., Any]
    symbolic: bool = True

    def __str__(self) -> str:
        return self.fn.__name__


CASES = (
    Case(weighted), Case(masked), Case(masked_to_zero), Case(total_of_exp), Case(logarithm),
    Case(entropy), Case(place_of_maximum), Case(variance, False), Case(skewness, False),
    Case(normed, False), Case(scaled), Case(spread_of), Case(row),
)  # fmt: skip


def shapes(case: Case, extent: Any) -> dict[str, Any]:
    all_shapes = {"x": (ROWS, extent), "y": (extent, COLUMNS), "m": (ROWS, extent)}
    names = case.fn.__code__.co_varnames[: case.fn.__code__.co_argcount]
    return {n: all_shapes[n] for n in names}


@cache
def program_of(case: Case, extent: int | None) -> Program:
    """Normalised; where the extent is None, it is the symbol N."""
    tensors = {}
    for name, shape in shapes(case, N if extent is None else extent).items():
        tensors[name] = Tensor(*shape, dtype=torch.bool) if name == "m" else Tensor(*shape)
    return normalise(trace(superopt.spec(dtype=torch.float32, **tensors)(case.fn)).program)


def looped(program: Program) -> Axis:
    """The axis that the program reduces over."""
    axes = (n.attr.axes for s in program.stores for n in find(s.value, "reduce"))
    (k,) = {a for found in axes for a in found}
    return k


@cache
def forms(case: Case, extent: int | None) -> tuple[Form, ...]:
    program = program_of(case, extent)
    return Online().forms(program.stores, looped(program))


def branch_of(stores: tuple[Store, ...], k: Axis) -> Branch:
    """Axis k looped, stored axes split over programs, all others held."""
    stored = {a for s in stores for a in s.axes}
    roles = {a.name: "grid" if a in stored else "whole" for a in Branch(stores, ()).axes}
    branch = Branch(stores, tuple(sorted((roles | {k.name: "loop"}).items())))
    assert illegal(branch) is None
    return branch


def graph_of(program: Program, *branches: Branch) -> KernelGraph:
    kernels = tuple(Kernel(f"k{n}", (b,)) for n, b in enumerate(branches))
    return KernelGraph(program.name, program.inputs, kernels, program.outputs)


def config_of(branch: Branch, tile: int) -> Config:
    """Tiles that divide few extents: of 2 for split axes, `tile` for looped ones."""
    sizes = {"grid": 2, "loop": tile}
    return Config(tuple((n, sizes[role]) for n, role in branch.roles if role in sizes))


# -- data ---------------------------------------------------------------------------------------


def some(rng: np.random.Generator, data: Data, value: float) -> Data:
    x = np.where(rng.random(data["x"].shape) < 0.4, value, data["x"])
    x[0] = value
    return data | {"x": x}


KINDS: dict[str, Callable[[np.random.Generator, Data], Data]] = {
    "plain": lambda rng, data: data,
    "ties": lambda rng, data: data | {"x": np.round(data["x"])},
    "far below zero": lambda rng, data: data | {"x": data["x"] - 2000.0},
    "far above zero": lambda rng, data: data | {"x": data["x"] + 2000.0},
    "zero": lambda rng, data: data | {"x": np.zeros_like(data["x"])},
    "some -inf, a row of it": lambda rng, data: some(rng, data, -np.inf),
    "some inf, a row of it": lambda rng, data: some(rng, data, np.inf),
    "some NaN, a row of it": lambda rng, data: some(rng, data, np.nan),
    "rows masked": lambda rng, data: data | {"m": rng.random(data["m"].shape) < 2},
}


def inputs_of(case: Case, kind: str, extent: int) -> Data:
    rng = np.random.default_rng(extent)
    data: Data = {}
    for name, shape in shapes(case, extent).items():
        data[name] = rng.random(shape) < 0.4 if name == "m" else rng.normal(size=shape)
    if "m" in data:
        data["m"][1], data["m"][2, : extent // 2] = True, True
    return KINDS[kind](rng, data)


def kinds(case: Case) -> list[str]:
    return [k for k in KINDS if k != "rows masked" or "m" in shapes(case, 1)]


def assert_same(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """NaN where NaN is wanted, else the number; what should be infinite may be NaN."""
    for name, wanted in want.items():
        found = np.where(np.isinf(wanted) & np.isnan(got[name]), wanted, got[name])
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6, err_msg=name)


def sizes_of(program: Program, extent: int) -> dict[str, int]:
    return {s.name: extent for s in program.symbols}


OPEN = [(c, n) for c in CASES for n in (EXTENTS if c.symbolic else (13,))]


def traced_at(case: Case, extent: int) -> int | None:
    return None if case.symbolic else extent


# -- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_form_is_found(case: Case) -> None:
    found = forms(case, traced_at(case, 13))
    assert found
    assert all(any(find(s.value, "online")) for f in found for s in f.stores)
    k = looped(program_of(case, traced_at(case, 13)))
    pairs = [divide(branch_of(f.stores, k), k, 3) for f in found if f.splits]
    assert any(pair is not None for pair in pairs)


@pytest.mark.parametrize(("case", "extent"), OPEN, ids=str)
def test_every_form_computes_the_program(case: Case, extent: int) -> None:
    program = program_of(case, traced_at(case, extent))
    k, sizes = looped(program), sizes_of(program, extent)
    for kind in kinds(case):
        data = inputs_of(case, kind, extent)
        want = run_program(program, data, sizes)
        for form in forms(case, traced_at(case, extent)):
            branch = branch_of(form.stores, k)
            for tile in (1, 3, 16):
                got = run_graph(graph_of(program, branch), [config_of(branch, tile)], data, sizes)
                assert_same(got, want)


# -- division -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize(("case", "extent"), OPEN, ids=str)
def test_parts_merge_to_the_program(case: Case, extent: int, parts: int) -> None:
    """Parts that divide no extent, more parts than indices; a form of two passes has none."""
    program = program_of(case, traced_at(case, extent))
    k, sizes = looped(program), sizes_of(program, extent)
    for form in (f for f in forms(case, traced_at(case, extent)) if f.splits):
        pair = divide(branch_of(form.stores, k), k, parts)
        if pair is None:
            continue
        configs = [config_of(b, 2) for b in pair]
        for kind in kinds(case):
            data = inputs_of(case, kind, extent)
            got = run_graph(graph_of(program, *pair), configs, data, sizes)
            want = run_program(program, data, sizes)
            assert_same({t.name: got[t.name] for t in program.outputs}, want)


# -- text and JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_graphs_read_back(case: Case) -> None:
    program = program_of(case, traced_at(case, 13))
    k = looped(program)
    for form in forms(case, traced_at(case, 13)):
        branch = branch_of(form.stores, k)
        for branches in filter(None, [(branch,), divide(branch, k, 3)]):
            graph = graph_of(program, *branches)
            assert parse_graph(print_graph(graph)) == graph
            assert from_json(to_json(graph)) == graph
