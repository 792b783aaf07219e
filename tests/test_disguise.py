"""Disguises keep a program's meaning and do change it; normalising sees through those of names."""

from __future__ import annotations

from functools import cache

import numpy as np
import online_programs as table
import pytest
from disguise import DISGUISES, Disguise, renamed, swapped

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import toposort
from superopt.mugraph.program import Program
from superopt.mugraph.text import print_program
from superopt.mugraph.trace import trace
from superopt.search.normalise import normalise

LARGEST = {"s": 23, "n": 67, "d": 16, "side": 4}  # extents at which numpy is quick
FUNCTIONS = tuple({row.fn: row for row in reversed(table.TABLE)}.values())  # a row each


@cache
def small_program(row: table.Row) -> Program:
    """The row's program at sizes that numpy evaluates quickly."""
    sizes = {**row.sizes, **row.small}
    sizes = {k: min(v, LARGEST.get(k, v)) for k, v in sizes.items()}
    return trace(row.spec(**sizes)).program


def draw(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; the first rows of masks are false, and the first of integers the least."""
    rng = np.random.default_rng(seed)
    made = {}
    for t in program.inputs:
        shape = [e.attr for e in t.shape]
        match DTYPES[t.dtype].kind:
            case "float":
                made[t.name] = rng.normal(size=shape)
            case "bool":
                made[t.name] = rng.random(shape) < 0.5
                made[t.name][:2] = False
            case _:
                low, high = (e.attr for e in t.bounds)
                made[t.name] = rng.integers(low, high, shape)
                made[t.name].flat[0] = low
    return made


def assert_same(program: Program, other: Program, inputs: dict, others: dict) -> None:
    want, got = run_program(program, inputs, {}), run_program(other, others, {})
    for t in program.outputs:
        np.testing.assert_allclose(got[t.name], want[t.name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.fn.__name__)
def test_normalising_keeps_the_meaning(row: table.Row) -> None:
    program = small_program(row)
    inputs = draw(program)
    assert_same(program, normalise(program), inputs, inputs)


@pytest.mark.parametrize("disguise", DISGUISES, ids=str)
@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.fn.__name__)
def test_a_disguise_keeps_the_meaning(row: table.Row, disguise: Disguise) -> None:
    program = small_program(row)
    other, inputs = disguise.of(program), draw(program)
    assert_same(program, other, inputs, disguise.inputs(inputs))
    assert_same(program, normalise(other), inputs, disguise.inputs(inputs))


@pytest.mark.parametrize("disguise", DISGUISES, ids=str)
def test_a_disguise_changes_the_program(disguise: Disguise) -> None:
    program = small_program(table.BY_NAME["sink_added"])
    other = disguise.of(program)
    assert other != program
    assert print_program(other) != print_program(program)


def test_bytes_stay_the_same_in_another_layout() -> None:
    program = small_program(table.BY_NAME["rope_attention"])
    for d in DISGUISES:
        inputs = draw(program)
        assert sum(x.size for x in d.inputs(inputs).values()) == sum(
            x.size for x in inputs.values()
        )


@pytest.mark.parametrize("disguise", [renamed, swapped], ids=lambda d: d.__name__)
@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.fn.__name__)
def test_normalising_undoes_names_and_order(row: table.Row, disguise) -> None:
    program = small_program(row)
    want, got = normalise(program), normalise(disguise(program))
    assert [s.value for s in got.stores] == [s.value for s in want.stores]
    assert got == want


def test_products_of_dots_stay_products() -> None:
    program = small_program(table.BY_NAME["norm_linear"])
    for d in DISGUISES:
        for s in d.of(program).stores:
            for node in toposort(s.value):
                if node.op == "reduce" and node.attr.operand is not None:
                    body = node.args[0]
                    assert body.op == "mul"
