"""Index arithmetic agrees with plain integers everywhere, and finds the forms it promises."""

import numpy as np
import pytest
from core_strategies import AXES, S, T, box, build, comparisons, divisions, meaning, sizes, trees
from hypothesis import given, settings

from superopt.mugraph.evaluate import Evaluator
from superopt.mugraph.expr import (
    FALSE,
    TRUE,
    Axis,
    Expr,
    Symbol,
    Tensor,
    axis,
    cast,
    index,
    load,
    op,
    sym,
)
from superopt.mugraph.index import conjunction, divides, less, value

i, j, k, m, n = map(axis, AXES)
s, t = sym(S), sym(T)
extent = AXES[3].extent  # of m


def add(a: Expr, b: Expr | int) -> Expr:
    return op("add", a, index(b) if isinstance(b, int) else b)


def mul(a: Expr, b: Expr | int) -> Expr:
    return op("mul", a, index(b) if isinstance(b, int) else b)


def div(a: Expr, b: Expr | int) -> Expr:
    return op("floordiv", a, index(b) if isinstance(b, int) else b)


def mod(a: Expr, b: Expr | int) -> Expr:
    return op("mod", a, index(b) if isinstance(b, int) else b)


@settings(max_examples=400, deadline=None)
@given(trees | divisions, sizes)
def test_arithmetic_agrees_with_integers(tree, at):
    got = Evaluator({}, at).align(build(tree), AXES)
    want = meaning(tree, at)
    assert np.array_equal(np.broadcast_to(got, box(at)), np.broadcast_to(want, box(at)))


@settings(max_examples=400, deadline=None)
@given(comparisons, sizes)
def test_comparisons_agree_with_integers(tree, at):
    got = Evaluator({}, at).align(build(tree), AXES)
    want = meaning(tree, at)
    assert np.array_equal(np.broadcast_to(got, box(at)), np.broadcast_to(want, box(at)))


def test_a_remainder_of_nothing_is_zero():
    quotient = op("floordiv", index(1), sym(S))
    assert op("mod", quotient, index(1)) is index(0)


@settings(max_examples=100, deadline=None)
@given(trees, trees)
def test_equal_polynomials_are_one_node(a, b):
    x, y = build(a), build(b)
    assert op("sub", add(x, y), y) is x
    assert op("mul", x, y) is op("mul", y, x)


@pytest.mark.parametrize(
    "got, want",
    [
        (div(add(mul(i, 64), axis(Axis("l", index(64)))), 128), div(i, 2)),
        (div(add(mul(i, s), j), s), i),  # (i*S + j) // S, 0 <= j < S
        (mod(add(mul(i, s), j), s), j),
        (add(mul(div(k, 4), 4), mod(k, 4)), k),
        (add(mul(div(k, t), t), mod(k, t)), k),
        (add(mul(div(k, 20), 20), add(mul(mod(div(k, 5), 4), 5), mod(k, 5))), k),
        (add(mul(mod(div(k, 5), 4), 5), mod(k, 5)), mod(k, 20)),
        (div(div(k, 3), 5), div(k, 15)),
        (div(i, 6), index(0)),
        (div(op("sub", i, index(6)), 6), index(-1)),
        (mod(mul(k, 8), 4), index(0)),
        (mod(add(mul(k, 8), 3), 4), index(3)),
        (div(mul(add(s, 1), 6), add(s, 1)), index(6)),
    ],
)
def test_simplifies(got, want):
    assert got is want


@pytest.mark.parametrize(
    "a, b, answer",
    [
        (i, index(6), True),
        (i, index(5), None),
        (j, s, True),
        (j, op("sub", s, index(1)), None),
        (add(j, s), s, False),
        (s, index(8), True),
        (s, index(7), None),
        (m, extent, True),  # an extent that is no polynomial
        (add(m, 1), extent, None),
        (div(k, t), s, True),
        (mod(k, 4), index(4), True),
        (mod(k, 4), index(3), None),
        (op("sub", index(0), s), index(0), True),
        (op("sub", index(1), s), index(0), None),
    ],
)
def test_less_at_its_boundary(a, b, answer):
    assert less(a, b) is answer


def test_a_guarded_load_may_be_zero_whatever_its_bounds():
    x = Tensor("x", (index(6),), "i64", (index(3), index(5)))
    bare = cast(load(x, [i]), "index")
    guarded = cast(load(x, [i], op("lt", i, index(2))), "index")
    assert less(index(2), bare) is True
    assert less(index(2), guarded) is None
    assert less(guarded, index(5)) is True


def test_decided_comparisons_are_constants():
    assert op("lt", i, index(6)) is TRUE
    assert op("ge", i, index(6)) is FALSE
    assert op("eq", i, index(6)) is FALSE
    assert op("ne", i, i) is FALSE
    assert conjunction(TRUE, op("le", j, s), op("lt", i, index(3))) is op("lt", i, index(3))


def test_a_symbol_of_one_value_decides():
    one = sym(Symbol("U", 4, 4))
    assert less(index(3), one) is True
    assert less(one, index(5)) is True


def test_divides_for_all_sizes():
    assert divides(4, mul(s, 8))
    assert not divides(4, mul(s, 6))
    assert not divides(4, add(mul(s, 4), 2))


def test_value_of_an_extent():
    assert value(extent, {"S": 4}) == 3
    with pytest.raises(ValueError, match="not an extent"):
        value(i, {})
