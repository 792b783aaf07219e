"""Where each value of a branch is computed: loops shared, invariants hoisted, passes in order."""

import pytest
from core_strategies import POOL, scalars, stores_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from superopt.mugraph.expr import Axis, Expr, Tensor, axis, index, load, op, reduce
from superopt.mugraph.program import ROLES, Branch, Store, illegal, store
from superopt.mugraph.schedule import LEAVES, Accumulate, Compute, Item, Loop, Write, schedule
from superopt.mugraph.text import show_schedule

B, K, L, N = (Axis(name, index(8)) for name in "bkln")


def array(name: str, *axes: Axis) -> Expr:
    return load(Tensor(name, tuple(a.extent for a in axes), "f32"), map(axis, axes))


def out(name: str, axes: tuple[Axis, ...], value: Expr) -> Store:
    return store(Tensor(name, tuple(a.extent for a in axes), "f32"), axes, value)


def branch(*stores: Store, **roles: str) -> Branch:
    return Branch(stores, tuple(sorted(roles.items())))


def listing(b: Branch) -> str:
    return show_schedule(b).partition("\n")[2]


def test_reductions_that_do_not_depend_share_a_loop():
    x = array("x", B, K)
    two = op("add", reduce("sum", (K,), x), reduce("max", (K,), x))
    assert listing(branch(out("o", (B,), two), b="grid", k="loop")) == (
        "  loop k over 8:\n"
        "    %0 = x[b, k]\n"
        "    %1 sum= %0\n"
        "    %2 max= %0\n"
        "  %3 = %1 + %2\n"
        "  store o[b] = %3 for b\n"
    )


def test_a_reduction_of_a_reduction_is_a_second_pass():
    x = array("x", B, K)
    e = op("exp", op("sub", x, reduce("max", (K,), x)))
    passes = listing(branch(out("o", (B,), reduce("sum", (K,), e)), b="grid", k="loop"))
    assert passes == (
        "  loop k over 8:\n"
        "    %0 = x[b, k]\n"
        "    %1 max= %0\n"
        "  loop k over 8:\n"
        "    %2 = x[b, k]\n"
        "    %3 = %2 - %1\n"
        "    %4 = exp(%3)\n"
        "    %5 sum= %4\n"
        "  store o[b] = %5 for b\n"
    )


def test_held_whole_there_is_no_loop():
    x = array("x", B, K)
    e = op("exp", op("sub", x, reduce("max", (K,), x)))
    text = show_schedule(branch(out("o", (B,), reduce("sum", (K,), e)), b="grid", k="whole"))
    assert "loop" not in text
    assert "holds k: 8" in text
    assert text.count("x[b, k]") == 1


def test_a_store_over_the_looped_axis_shares_the_pass_that_it_can():
    x, r = array("x", B, N), array("r", B, N)
    h = op("add", x, r)
    total = reduce("sum", (N,), h)
    stores = (out("h", (B, N), h), out("o", (B, N), op("sub", h, total)))
    first, second = schedule(branch(*stores, b="grid", n="loop"))
    assert isinstance(first, Loop)
    assert isinstance(second, Loop)
    assert first.reductions == (total,)
    assert [i.store.tensor.name for i in first.body if isinstance(i, Write)] == ["h"]
    assert [i.store.tensor.name for i in second.body if isinstance(i, Write)] == ["o"]


def test_loads_that_do_not_vary_are_hoisted_and_an_epilogue_loads_late():
    scale, bias = array("scale", B), array("bias", B)
    body = op("mul", array("x", B, K), scale)
    value = op("add", reduce("sum", (K,), body), bias)
    assert listing(branch(out("o", (B,), value), b="grid", k="loop")) == (
        "  %0 = scale[b]\n"
        "  loop k over 8:\n"
        "    %1 = x[b, k]\n"
        "    %2 = %0 * %1\n"
        "    %3 sum= %2\n"
        "  %4 = bias[b]\n"
        "  %5 = %4 + %3\n"
        "  store o[b] = %5 for b\n"
    )


def test_loops_nest():
    inner = reduce("sum", (L,), op("mul", array("a", B, L), array("w", L, K)))
    outer = reduce("sum", (K,), op("mul", op("exp", inner), array("v", K)))
    (k_loop, write) = schedule(branch(out("o", (B,), outer), b="grid", k="loop", l="loop"))
    assert isinstance(k_loop, Loop)
    assert isinstance(write, Write)
    assert [i.axis for i in k_loop.body if isinstance(i, Loop)] == [L]


def test_a_store_of_two_loops_keeps_what_varies_along_the_inner_one_inside():
    value = op("add", array("x", K), op("add", array("y", L), array("z", K, L)))
    (k_loop,) = schedule(branch(out("o", (K, L), value), k="loop", l="loop"))
    assert isinstance(k_loop, Loop)
    first, l_loop = k_loop.body
    assert first == Compute(array("x", K))
    assert isinstance(l_loop, Loop)
    assert Compute(array("y", L)) in l_loop.body


def _uses(e: Expr, known: set[Expr]) -> None:
    for a in e.args:
        assert a.op in LEAVES or a in known, f"{a} is used before it is computed"


def _check(items: tuple[Item, ...], known: set[Expr], around: tuple[Axis, ...], b: Branch) -> None:
    looped = {a for a in b.axes if b.role(a) == "loop"}
    for item in items:
        if isinstance(item, Compute):
            _uses(item.value, known)
            assert item.value not in known, f"{item.value} is computed twice in one scope"
            assert item.value.free & looped <= set(around)
            assert not around or around[-1] in item.value.free, f"{item.value} could be hoisted"
            known.add(item.value)
        elif isinstance(item, Write):
            assert set(item.store.axes) & looped <= set(around)
            assert item.store.value.op in LEAVES or item.store.value in known
        elif isinstance(item, Accumulate):
            _uses(item.reduction, known)
        else:
            inside = {e for e in known if item.axis not in e.free}
            _check(item.body, inside, (*around, item.axis), b)
            known.update(item.reductions)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(scalars, min_size=1, max_size=2),
    st.fixed_dictionaries({a.name: st.sampled_from(ROLES[2:]) for a in POOL}),
)
def test_every_value_is_computed_before_its_uses_and_as_far_out_as_it_may(values, roles):
    b = branch(*stores_of(values), **roles)
    assume(illegal(b) is None)
    _check(schedule(b), set(), (), b)


@pytest.mark.parametrize(
    "roles, message",
    [
        ({"b": "grid", "k": "loop"}, None),
        ({"b": "grid"}, "axis k has no role"),
        ({"b": "grid", "k": "grid"}, "axis k is reduced but split over programs"),
    ],
)
def test_roles_at_the_edge_of_legality(roles, message):
    found = illegal(branch(out("o", (B,), reduce("sum", (K,), array("x", B, K))), **roles))
    assert found is None if message is None else message in (found or "")


def test_legality_of_whole_branches():
    nest = reduce("sum", (K, L), array("x", K, L))
    assert illegal(branch(out("o", (), nest), k="loop", l="whole")) is None
    assert "nest it" in (illegal(branch(out("o", (), nest), k="loop", l="loop")) or "")
    two = (out("o", (B,), array("x", B)), out("p", (), array("y")))
    assert illegal(branch(*two, b="loop")) is None
    assert "for some stores only" in (illegal(branch(*two, b="grid")) or "")
    own = (out("x", (B,), array("y", B)), out("o", (B,), array("x", B)))
    assert "loaded by the launch that stores it" in (illegal(branch(*own, b="grid")) or "")
