"""The ladder's rungs on programs: `tested` and `probable`, what they refuse, and what ε is."""

from __future__ import annotations

import numpy as np
import pytest
from verify_kernels import norm_linear

from superopt.errors import IllFormed
from superopt.mugraph.expr import (
    Axis,
    Expr,
    Symbol,
    Tensor,
    axis,
    const,
    index,
    load,
    op,
    reduce,
    sym,
)
from superopt.mugraph.ops import PRIME
from superopt.mugraph.program import Program, Store, store
from superopt.verify import Verdict, check_graph
from superopt.verify.closed import NotClosed, pair, work
from superopt.verify.degree import Degrees
from superopt.verify.draws import draw, normal, sample_sizes
from superopt.verify.field import field_check, miss_chance
from superopt.verify.tested import tested as check_tested
from superopt.verify.verdict import probable

N = 6
R, J, K = (Axis(name, index(N)) for name in "rjk")
X, Y, Z = (Tensor(name, (index(N), index(N)), "f32") for name in "xyz")
OUT = Tensor("out", (index(N), index(N)), "f32")


def at(tensor: Tensor, *axes: Axis) -> Expr:
    return load(tensor, map(axis, axes))


def program(value: Expr, *before: Store) -> Program:
    return Program("p", (X, Y, Z), (*before, store(OUT, (R, J), value)), (OUT,))


def product(a: Tensor, b: Tensor, to: Tensor) -> Store:
    return store(to, (R, J), reduce("sum", (K,), op("mul", at(a, R, K), at(b, K, J))))


def test_work_counts_a_bound_axis_whole_where_a_stored_one_has_its_name() -> None:
    rows = reduce("sum", (J,), at(X, K, J))
    assert work([rows], {J: 1}, {}) == work([rows], {}, {}) > N * N
    assert work([at(X, K, J)], {J: 1}, {}) < work([at(X, K, J)], {}, {})


def chain(left: bool) -> Program:
    """(x @ y) @ z, or x @ (y @ z)."""
    t = Tensor("t", (index(N), index(N)), "f32")
    if left:
        stores = (product(X, Y, t), product(t, Z, OUT))
    else:
        stores = (product(Y, Z, t), product(X, t, OUT))
    return Program("chain", (X, Y, Z), stores, (OUT,))


@pytest.mark.parametrize("scale, kind", [(1.0, "tested"), (1 + 1e-9, "refused")])
def test_terms_that_cancel_leave_a_rounding_error(scale: float, kind: str) -> None:
    """sqrt(x^2) - x is 0 in floating point too, wherever x is; x^1.5 / sqrt(x) - x is not."""
    x = op("add", op("square", at(X, R, J)), const(1.0, "f32"))
    want = op("sub", op("sqrt", op("mul", x, x)), x)
    ratio = op("div", op("pow", x, const(1.5, "f32")), op("sqrt", x))
    got = op("sub", op("mul", ratio, const(scale, "f32")), x)
    assert check_tested(program(want), program(got), 0).kind == kind


def test_a_reassociated_product_is_probable() -> None:
    verdict = check_graph(chain(True), chain(False))
    assert verdict.kind == "probable"
    assert str(verdict) == "probable (ε ≤ 2^-88)"  # (3 / 2^31) ** 3
    assert "all elements" in verdict.scope


def test_a_product_of_the_wrong_factors_is_refused() -> None:
    t = Tensor("t", (index(N), index(N)), "f32")
    wrong = Program("chain", (X, Y, Z), (product(Z, Y, t), product(X, t, OUT)), (OUT,))
    assert field_check(chain(True), wrong).kind == "refused"
    verdict = check_tested(chain(True), wrong, 0)
    assert verdict.kind == "refused"
    assert verdict.witness["got"] != verdict.witness["want"]
    assert "got" in verdict.reason


@pytest.mark.parametrize(
    "epsilon, kind", [(1e-6, "tested"), (0.0, "refused"), (1.001e-6, "refused")]
)
def test_a_hoisted_norm_is_tested_and_its_epsilon_seen(epsilon: float, kind: str) -> None:
    """At its real extents, of which only some elements are evaluated."""
    original = norm_linear(4096, 6144)
    verdict = check_graph(original, norm_linear(4096, 6144, epsilon, hoisted=True))
    assert verdict.kind == kind
    if kind == "tested":
        assert "rsqrt" in verdict.notes[0]


def test_outputs_of_another_shape_are_ill_formed() -> None:
    with pytest.raises(IllFormed, match="outputs"):
        check_tested(norm_linear(96, 80), norm_linear(96, 64), 0)


# -- degrees and ε ------------------------------------------------------------------------------


def test_the_chance_of_a_miss_for_a_known_polynomial() -> None:
    """x*x*y - x*y is of degree 3: one trial misses it with a chance of at most 3/p."""
    x, y = at(X, R, J), at(Y, R, J)
    wrong = pair(program(op("mul", op("square", x), y)), program(op("mul", x, y)))[0]
    points = {a: np.arange(N) for a in wrong.axes}
    assert miss_chance(wrong, points, {}) == 3 / PRIME
    assert str(probable((3 / PRIME) ** 3, "")) == "probable (ε ≤ 2^-88)"


def test_terms_with_divisors_of_their_own_multiply_them() -> None:
    """sum[k] x[i,k] / y[k,j] over n terms: numerator of degree n, denominator of degree n."""
    value = reduce("sum", (K,), op("div", at(X, R, K), at(Y, K, J)))
    degrees = Degrees({})
    ratio = degrees(value)
    assert ratio.top == N
    assert degrees.of(ratio.below) == N


def test_terms_with_one_divisor_keep_it() -> None:
    """sum[k] x[i,k] / y[i,j]: degree 1 over degree 1."""
    degrees = Degrees({})
    ratio = degrees(reduce("sum", (K,), op("div", at(X, R, K), at(Y, R, J))))
    assert (ratio.top, degrees.of(ratio.below)) == (1, 1)


def test_a_divisor_that_is_a_sum_of_fractions() -> None:
    """x / (1 + 1/y) = x*y / (y + 1): degree 2 over degree 1 more than y's own."""
    one = const(1.0, "f32")
    degrees = Degrees({})
    ratio = degrees(op("div", at(X, R, J), op("add", one, op("div", one, at(Y, R, J)))))
    assert (ratio.top, degrees.of(ratio.below)) == (2, 1)


def test_divisors_lower_the_chance_that_a_draw_is_kept() -> None:
    value = op("div", at(X, R, J), at(Y, R, J))
    (same,) = pair(program(value), program(value))
    points = {a: np.arange(N) for a in same.axes}
    assert miss_chance(same, points, {}) == 1 / (PRIME - N * N)


def test_a_distributed_division_is_probable_and_a_wrong_one_refused() -> None:
    x, y, z = at(X, R, J), at(Y, R, J), at(Z, R, J)
    together = op("div", op("add", x, y), z)
    apart = op("add", op("div", x, z), op("div", y, z))
    wrong = op("add", op("div", x, z), op("div", y, x))
    assert field_check(program(together), program(apart)).kind == "probable"
    assert field_check(program(together), program(wrong)).kind == "refused"


@pytest.mark.parametrize("name", ["exp", "abs", "sqrt"])
def test_an_operator_without_field_meaning_claims_nothing(name: str) -> None:
    value = op(name, at(X, R, J))
    verdict = field_check(program(value), program(value))
    assert verdict.kind == "unknown"
    assert name in verdict.reason


def test_a_comparison_of_floats_claims_nothing() -> None:
    value = op("where", op("lt", at(X, R, J), at(Y, R, J)), at(X, R, J), at(Y, R, J))
    assert field_check(program(value), program(value)).kind == "unknown"


def test_constants_folded_in_double_precision_claim_nothing() -> None:
    x, a, b = at(X, R, J), const(0.1, "f32"), const(0.7, "f32")
    apart, folded = op("mul", op("mul", x, a), b), op("mul", x, const(0.1 * 0.7, "f32"))
    verdict = check_graph(program(apart), program(folded))
    assert verdict.kind == "tested"
    assert "constants" in verdict.notes[0]


# -- pieces, sizes ------------------------------------------------------------------------------


def halves(gap: int) -> Program:
    """x copied in two stores, the second `gap` rows late."""
    half = Axis("h", index(N // 2))
    stores = []
    for start in (0, N // 2 + gap):
        row = op("add", axis(half), index(start))
        value = load(X, (row, axis(J)))
        stores.append(Store(OUT, (half, J), (row, axis(J)), value))
    return Program("halves", (X,), tuple(stores), (OUT,))


def test_stores_in_pieces_must_make_up_the_whole() -> None:
    copy = Program("copy", (X,), (store(OUT, (R, J), at(X, R, J)),), (OUT,))
    assert check_tested(copy, halves(0), 0).kind == "tested"
    verdict = check_tested(copy, halves(-1), 0)
    assert verdict.kind == "refused"
    assert "stored 2 times" in verdict.reason


def test_an_original_in_pieces_is_run_whole() -> None:
    copy = Program("copy", (X,), (store(OUT, (R, J), at(X, R, J)),), (OUT,))
    with pytest.raises(NotClosed):
        pair(halves(0), copy)
    assert check_tested(halves(0), copy, 0).kind == "tested"
    double = op("add", at(X, R, J), at(X, R, J))
    assert (
        check_tested(halves(0), Program("d", (X,), (store(OUT, (R, J), double),), (OUT,)), 0).kind
        == "refused"
    )


def test_sampled_sizes_hold_the_ends_primes_and_one_past_a_tile() -> None:
    sizes = [s["B"] for s in sample_sizes([Symbol("B", 0, 4096)])]
    assert {0, 1, 7, 17, 64, 65} <= set(sizes)
    assert [s["B"] for s in sample_sizes([Symbol("B", 3, 5)])] == [3, 5]
    two = list(sample_sizes([Symbol("B", 1, 100), Symbol("S", 1, 100)]))
    assert any(s["B"] != s["S"] for s in two)


def test_draws_do_not_depend_on_what_is_read() -> None:
    tensor = Tensor("t", (sym(Symbol("B", 1, 9)), index(50)), "f64")
    lazy = draw(tensor, {"B": 9}, 1, normal)
    whole = np.asarray(lazy)
    assert np.array_equal(lazy[np.array([3]), np.array([7])], whole[[3], [7]])
    assert abs(whole.mean()) < 0.2
    assert abs(whole.std() - 1) < 0.1


def test_verdicts_travel_as_json() -> None:
    for verdict in (
        Verdict("tested", scope="B=1", notes=("why",)),
        probable(2.0**-93, "all"),
        Verdict("refused", "no", witness={"got": 1.0}),
    ):
        assert Verdict.from_json(verdict.to_json()) == verdict
    assert not Verdict("timeout").passed
    assert probable(1e-9, "").rung > Verdict("tested").rung > Verdict("unknown").rung
    with pytest.raises(ValueError, match="epsilon"):
        Verdict("probable")
