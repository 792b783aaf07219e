"""Nodes are interned, constructors fold and keep types, substitution never captures."""

import copy
import pickle

import numpy as np
import pytest
from core_strategies import P, Q, R, U, scalars, sizes, tensor, tensors_for
from hypothesis import given, settings
from hypothesis import strategies as st

from superopt.errors import IllFormed
from superopt.mugraph.evaluate import Evaluator
from superopt.mugraph.expr import (
    FALSE,
    TRUE,
    Axis,
    Reduction,
    Tensor,
    axis,
    cast,
    const,
    fresh,
    index,
    load,
    op,
    reduce,
    rewrite,
    substitute,
    toposort,
)

x_p = load(tensor((P,)), [axis(P)])
x_pq = load(tensor((P, Q)), [axis(P), axis(Q)])


def test_equal_structure_is_one_node():
    assert op("add", x_p, x_pq) is op("add", x_pq, x_p)
    assert pickle.loads(pickle.dumps(x_pq)) is x_pq
    assert copy.deepcopy(x_pq) is x_pq


def test_constants_of_one_value_stay_apart_by_type_and_sign():
    assert const(1, "i32") is not const(1, "i64")
    assert const(0.0, "f32") is not const(-0.0, "f32")
    assert const(float("nan"), "f32") is const(float("nan"), "f32")
    assert const(1.0, "f32") is not const(True, "bool")


def test_digests_tell_bounds_apart():
    bounded = Tensor("x_p", tensor((P,)).shape, "f64", (index(0), index(3)))
    assert load(bounded, [axis(P)]).digest != x_p.digest


@pytest.mark.parametrize(
    "value, dtype, want",
    [(3.7, "i32", 3), (-3.7, "i32", -3), (300, "i8", 44), (-1, "u8", 255), (2, "bool", True)],
)
def test_casting_a_constant_does_what_a_run_would(value, dtype, want):
    source = "f32" if isinstance(value, float) else "i64"
    assert cast(const(value, source), dtype) is const(want, dtype)


def test_a_constant_without_an_integer_stays_a_cast():
    assert cast(const(float("inf"), "f32"), "i32").op == "cast"


@pytest.mark.parametrize(
    "got, want",
    [
        (op("add", x_p, const(0.0, "f64")), x_p),
        (op("mul", const(1.0, "f64"), x_p), x_p),
        (op("where", TRUE, x_p, x_pq), x_p),
        (op("where", FALSE, x_p, x_pq), x_pq),
        (op("add", const(2.0, "f32"), const(3.0, "f32")), const(5.0, "f32")),
        (load(tensor((P,)), [axis(P)], FALSE), const(0.0, "f64")),
        (axis(Axis("one", index(1))), index(0)),
        (reduce("sum", [Axis("one", index(1))], x_p), x_p),
    ],
)
def test_simplifies(got, want):
    assert got is want


def test_types_promote_as_torch_does():
    half, single = (load(Tensor(d, (), d), []) for d in ("f16", "f32"))
    whole = load(Tensor("i", (), "i64"), [])
    assert op("add", half, single).dtype == "f32"
    assert op("add", half, whole).dtype == "f16"
    assert op("lt", half, whole).dtype == "bool"
    assert op("exp", whole).dtype == "f32"


def test_what_is_ill_formed_is_refused():
    with pytest.raises(IllFormed, match="no operator add of 1 operands"):
        op("add", x_p)
    with pytest.raises(IllFormed, match="x_p: 2 indices for 1 dimensions"):
        load(tensor((P,)), [axis(P), axis(Q)])


def test_a_bound_axis_is_renamed_where_it_would_capture():
    row = reduce("max", (Q,), load(tensor((P, Q)), [axis(P), axis(Q)]))
    moved = substitute(row, {P: axis(Q)})
    assert moved.free == {Q}
    assert [a.name for a in moved.attr.axes] == ["q_1"]


def test_a_bound_axis_is_not_substituted():
    row = op("sub", x_p, reduce("max", (P,), x_p))
    moved = substitute(row, {P: index(2)})
    assert moved is op("sub", load(tensor((P,)), [index(2)]), reduce("max", (P,), x_p))


def _within(extent_of):
    """Index expressions that stay within the axis's extent, and name other axes."""
    others = [axis(a) for a in (P, Q, R, U)]
    end = op("sub", extent_of.extent, index(1))
    wrapped = [op("mod", op("add", a, b), extent_of.extent) for a in others for b in others]
    return st.sampled_from([index(0), axis(extent_of), op("sub", end, axis(extent_of)), *wrapped])


@settings(max_examples=200, deadline=None)
@given(scalars, sizes, st.tuples(*map(_within, (P, Q, R, U))), st.integers(1, 15))
def test_substituting_is_indexing(e, at, targets, chosen):
    axes = (P, Q, R, U)
    bound = [chosen >> n & 1 for n in range(4)]
    binding = {a: to for a, to, use in zip(axes, targets, bound, strict=True) if use}
    run = Evaluator(tensors_for(at), at)
    shape = run.shape(axes)
    whole = np.broadcast_to(run.align(e, axes), shape)
    where = [np.broadcast_to(run.align(binding.get(a, axis(a)), axes), shape) for a in axes]
    got = np.broadcast_to(run.align(substitute(e, binding), axes), shape)
    assert np.array_equal(got, whole[tuple(where)])


def test_deep_expressions_do_not_overflow_the_stack():
    e = x_p
    for n in range(5000):
        e = op("add", e, const(float(n + 1), "f64"))
    assert len(toposort(e)) == 2 * 5000 + 3
    moved = substitute(e, {P: index(0)})
    assert not moved.free
    assert rewrite(moved, lambda n: x_p if n.op == "load" else None) is e
    assert len(repr(e)) < 400


def test_rewriting_keeps_types_and_reductions():
    total = reduce("sum", (P,), x_p, operand="f16", dtype="f32")
    changed = rewrite(total, lambda n: op("neg", n) if n is x_p else None)
    assert changed.attr == Reduction("sum", (P,), "f16")
    assert changed.dtype == "f32"


def test_fresh_names_are_new():
    taken = [Axis(name, index(2)) for name in ("k", "k_1")]
    assert fresh(Axis("k_1", index(5)), taken) == Axis("k_2", index(5))
