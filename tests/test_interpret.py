"""A µGraph means what its program means, whatever its roles and tiles; bad accesses are caught."""

import numpy as np
import pytest
from core_strategies import POOL, TENSORS, P, Q, scalars, sizes, stores_of, tensors_for
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from superopt.errors import IllFormed
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Axis, Symbol, Tensor, axis, const, index, load, op, reduce, sym
from superopt.mugraph.interpret import IllegalAccess, run_graph
from superopt.mugraph.ops import PRIME
from superopt.mugraph.program import (
    ROLES,
    Branch,
    Config,
    Kernel,
    KernelGraph,
    Program,
    Store,
    illegal,
    store,
)

roles = st.fixed_dictionaries({a.name: st.sampled_from(ROLES) for a in POOL})
tiles = st.fixed_dictionaries({a.name: st.sampled_from([1, 2, 4, 8]) for a in POOL})


def branch(stores, **by_name):
    return Branch(tuple(stores), tuple(sorted(by_name.items())))


def graph_of(*branches, inputs=TENSORS, outputs=None):
    stored = tuple(dict.fromkeys(s.tensor for b in branches for s in b.stores))
    return KernelGraph(
        "g", inputs, (Kernel("k0", branches),), stored if outputs is None else outputs
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(scalars, min_size=1, max_size=2), roles, tiles, sizes, st.booleans())
def test_roles_and_tiles_do_not_change_the_meaning(values, by_name, tile, at, field):
    stores = stores_of(values)
    b = branch(stores, **by_name)
    for name in by_name:  # the nearest legal choice: what may not be split is looped, or held
        if illegal(b):
            b = branch(
                stores, **(b.by_name | {name: "loop" if by_name[name] != "loop" else "whole"})
            )
    assume(illegal(b) is None)
    inputs = tensors_for(at)
    if field:
        assume(not any("max" in repr(v) or "min" in repr(v) or "…" in repr(v) for v in values))
        inputs = {name: x.astype(np.int64) % PRIME for name, x in inputs.items()}
    outputs = tuple(s.tensor for s in stores)
    want = run_program(Program("p", TENSORS, stores, outputs), inputs, at, field)
    got = run_graph(graph_of(b), [Config(tuple(tile.items()))], inputs, at, field)
    for t in outputs:
        assert np.array_equal(got[t.name], want[t.name], equal_nan=True), t.name


# -- traps: the last that passes beside the first that fails --------------------------------------

B = Symbol("B", 0, 64)
A, J = Axis("a", sym(B)), Axis("j", index(3))
X = Tensor("x", (sym(B), index(3)), "f32")
OUT = Tensor("out", (sym(B), index(3)), "f32")
x = load(X, [axis(A), axis(J)])
TILES = [Config((("a", 4), ("j", 2)))]


def run(*branches, at=6, inputs=(X,), outputs=None, configs=TILES):
    graph = graph_of(*branches, inputs=inputs, outputs=outputs)
    return run_graph(graph, configs, {"x": np.arange(3.0 * at).reshape(at, 3)}, {"B": at})


def shifted(by, guard=None):
    moved = op("add", axis(A), index(by))
    inside = {} if guard is None else {"guard": guard(moved)}
    return branch([store(OUT, (A, J), load(X, [moved, axis(J)], **inside))], a="grid", j="loop")


@pytest.mark.parametrize("by, ok", [(0, True), (1, False), (-1, False)])
def test_a_load_out_of_bounds(by, ok):
    if ok:
        assert np.array_equal(run(shifted(by))["out"], np.arange(18.0).reshape(6, 3))
        return
    with pytest.raises(IllegalAccess, match=r"k0: load of x: index (-1|6) is outside 0..5"):
        run(shifted(by))


def test_a_guarded_load_is_zero_outside():
    got = run(shifted(1, lambda i: op("lt", i, sym(B))))["out"]
    assert np.array_equal(got[:5], np.arange(18.0).reshape(6, 3)[1:])
    assert np.array_equal(got[5], np.zeros(3))


@pytest.mark.parametrize("by, ok", [(0, True), (1, False)])
def test_a_store_out_of_bounds(by, ok):
    s = Store(OUT, (A, J), (op("add", axis(A), index(by)), axis(J)), x)
    if ok:
        run(branch([s], a="grid", j="whole"))
        return
    with pytest.raises(IllegalAccess, match="store to out: index 6 is outside 0..5"):
        run(branch([s], a="grid", j="whole"))


@pytest.mark.parametrize("role", ROLES)
def test_an_element_stored_twice(role):
    clash = Store(OUT, (A, J), (op("floordiv", axis(A), index(2)), axis(J)), x)
    with pytest.raises(IllegalAccess, match="element .* of out is stored twice in this launch"):
        run(branch([clash], a=role, j="whole"))


def test_two_branches_may_not_store_one_element():
    top = Store(OUT, (A, J), (axis(A), axis(J)), x)
    with pytest.raises(IllegalAccess, match="stored twice"):
        run(branch([top], a="grid", j="whole"), branch([top], a="loop", j="whole"))


def test_an_output_must_be_whole():
    half = Axis("h", op("floordiv", sym(B), index(2)))
    low = store(OUT, (half, J), load(X, [axis(half), axis(J)]))
    up = op("add", axis(half), half.extent)
    high = Store(OUT, (half, J), (up, axis(J)), load(X, [up, axis(J)]))
    roles = {"h": "program", "j": "whole"}
    assert np.array_equal(
        run(branch([low], **roles), branch([high], **roles))["out"], np.arange(18.0).reshape(6, 3)
    )
    with pytest.raises(IllegalAccess, match=r"output out: element \(3, 0\) is never written"):
        run(branch([low], **roles))
    other = Tensor("other", (), "f32")
    with pytest.raises(IllegalAccess, match="output other: no kernel stores it"):
        run(shifted(0), outputs=(OUT, other))


def _two_kernels(first_axis, late=False):
    temp = Tensor("temp", (sym(B), index(3)), "f32")
    first = store(temp, (first_axis, J), load(X, [axis(first_axis), axis(J)]))
    second = store(OUT, (A, J), op("neg", load(temp, [axis(A), axis(J)])))
    kernels = [
        Kernel("first", (branch([first], **{first_axis.name: "grid", "j": "whole"}),)),
        Kernel("second", (branch([second], a="grid", j="loop"),)),
    ]
    graph = KernelGraph("g", (X,), tuple(kernels[::-1] if late else kernels), (OUT,))
    inputs = {"x": np.arange(18.0).reshape(6, 3)}
    tile = Config((("a", 4), ("h", 4), ("j", 2)))
    return run_graph(graph, [tile, tile], inputs, {"B": 6})


def test_kernels_pass_temporaries():
    got = _two_kernels(A)
    assert np.array_equal(got["out"], -np.arange(18.0).reshape(6, 3))
    assert np.array_equal(got["temp"], np.arange(18.0).reshape(6, 3))


def test_a_temporary_must_be_written_before_it_is_loaded():
    with pytest.raises(IllegalAccess, match="second: load of temp: no kernel has stored it"):
        _two_kernels(A, late=True)
    with pytest.raises(IllegalAccess, match="second: load of temp: an element that no kernel"):
        _two_kernels(Axis("h", op("floordiv", sym(B), index(2))))


def test_what_no_program_may_do_is_refused_before_it_runs():
    with pytest.raises(IllFormed, match="k0: axis j has no role"):
        run(branch([store(OUT, (A, J), x)], a="grid"))
    with pytest.raises(IllFormed, match="no tile for axis a"):
        run(shifted(0), configs=[Config((("j", 2),))])
    with pytest.raises(IllFormed, match="0 configs for 1 kernels"):
        run(shifted(0), configs=[])
    own = branch([store(OUT, (A, J), load(OUT, [axis(A), axis(J)]))], a="grid", j="whole")
    with pytest.raises(IllFormed, match="out is loaded by the launch that stores it"):
        run(own)


@pytest.mark.parametrize("role", ["loop", "whole"])
@pytest.mark.parametrize("monoid, empty", [("sum", 0.0), ("prod", 1.0), ("max", -np.inf)])
def test_masked_lanes_and_empty_axes_are_neutral(role, monoid, empty):
    total = Tensor("total", (index(3),), "f32")
    b = branch([store(total, (J,), reduce(monoid, (A,), x))], a=role, j="grid")
    want = {"sum": np.sum, "prod": np.prod, "max": np.max}[monoid]
    assert np.array_equal(run(b, at=5)["total"], want(np.arange(15.0).reshape(5, 3), axis=0))
    assert np.array_equal(run(b, at=0)["total"], np.full(3, empty))


def test_a_sum_counts_the_axes_that_its_body_does_not_mention():
    total = Tensor("total", (), "f32")
    count = reduce("sum", (A, J), const(1.0, "f32"))
    b = branch([store(total, (), count)], a="loop", j="whole")
    assert run(b, at=5)["total"] == 15.0


def test_loops_over_one_axis_may_nest():
    """out[p, q] = sum[q] (y[p, q] * max[p] y[p, q]) + y[p, q], p looped by store and by max."""
    y = load(Tensor("x_pq", (P.extent, Q.extent), "f64"), [axis(P), axis(Q)])
    value = op("add", reduce("sum", (Q,), op("mul", y, reduce("max", (P,), y))), y)
    stores = stores_of([value])
    at = {"S": 5, "T": 2}
    inputs = tensors_for(at)
    got = run_graph(
        graph_of(branch(stores, p="loop", q="loop")), [Config((("p", 2), ("q", 2)))], inputs, at
    )
    want = run_program(Program("p", TENSORS, stores, ()), inputs, at)
    assert np.array_equal(got["out0"], want["out0"])
