"""Each rule of the algebra: it fires, what it makes is equal, and its condition holds."""

from __future__ import annotations

from math import inf

import pytest

from superopt.mugraph.expr import Axis, Expr, Tensor, axis, const, index, load, op, reduce
from superopt.search.egraph import EGraph
from superopt.search.extract import Coster, Extractor, Weights
from superopt.search.fingerprint import Accuracy, Fingerprints
from superopt.search.rules import RULES, saturate

R, J, K = (Axis(n, index(e)) for n, e in (("i", 7), ("j", 9), ("k", 11)))


def x(name: str, *axes: Axis) -> Expr:
    tensor = Tensor(name, tuple(a.extent for a in axes), "f32")
    return load(tensor, [axis(a) for a in axes])


def mul(*factors: Expr) -> Expr:
    total = factors[0]
    for f in factors[1:]:
        total = op("mul", total, f)
    return total


ONE, HALF = const(1.0, "f32"), const(0.5, "f32")
A, B, C = x("a", R, K), x("b", K, J), x("c", R)
D = x("d", J, K)
MASK = op("lt", axis(K), axis(R))
CASES = {
    "factor-leaves-sum": reduce("sum", [K], mul(A, C)),
    "sum-nests": reduce("sum", [J, K], mul(C, B, A)),
    "sum-splits": reduce("sum", [J, K], mul(x("p", R, J, K), x("q", J, K, Axis("l", index(5))))),
    "sums-exchange": reduce("sum", [K], mul(B, reduce("sum", [Axis("l", index(5))],
                            mul(x("p", R, Axis("l", index(5))), x("q", Axis("l", index(5)), K))))),
    "sum-distributes": reduce("sum", [K], mul(A, op("add", B, C))),
    "factor-leaves-total": op("add", mul(C, A), mul(C, B)),
    "constant-leaves-total": op("exp", op("sub", mul(HALF, A), mul(HALF, C))),
    "constant-leaves-where": op("where", MASK, mul(HALF, A), const(-inf, "f32")),
    "extreme-shifts": reduce("max", [K], op("add", A, C)),
    "extreme-scales": reduce("min", [K], mul(A, HALF)),
    "inverse-of-product": op("div", ONE, mul(A, C)),
    "inverse-of-root": op("div", C, op("sqrt", op("abs", A))),
    "product-flattens": mul(C, reduce("sum", [K], mul(C, A))),
    "exp-of-total": mul(op("exp", A), op("exp", op("add", A, C))),
    "exp-of-log": op("exp", op("neg", op("log", reduce("sum", [K], op("exp", A))))),
}  # fmt: skip
REFUSED = {  # beside each, what just misses its condition
    "factor-leaves-sum": reduce("sum", [K], mul(A, B)),
    "sum-nests": reduce("sum", [J, K], mul(B, D)),
    "sum-splits": reduce("sum", [J, K], mul(x("p", R, J, K), D)),
    "sums-exchange": reduce("sum", [K], mul(B, reduce("sum", [Axis("l", index(5))],
                            x("s", R, K, Axis("l", index(5)))))),
    "sum-distributes": reduce("sum", [K], mul(A, op("maximum", B, C))),
    "factor-leaves-total": op("add", mul(C, A), mul(D, B)),
    "constant-leaves-total": op("exp", op("sub", mul(HALF, A), mul(const(0.25, "f32"), C))),
    "constant-leaves-where": op("where", MASK, mul(HALF, A), ONE),
    "extreme-shifts": reduce("max", [K], op("add", A, B)),
    "extreme-scales": reduce("min", [K], mul(A, const(-0.5, "f32"))),
    "inverse-of-product": op("div", ONE, op("add", A, C)),
    "inverse-of-root": op("div", ONE, op("exp", A)),
    "product-flattens": op("add", C, mul(C, A)),
    "exp-of-total": mul(op("exp", A), op("exp", op("add", A, x("e", R, K)))),
    "exp-of-log": op("exp", op("neg", op("log", reduce("sum", [K], A)))),
}  # fmt: skip


def saturated(e: Expr) -> tuple[EGraph, int, dict[str, int]]:
    g = EGraph()
    root = g.insert(e)
    applied = saturate(g).applied
    return g, g.find(root), applied


@pytest.mark.parametrize("rule", [r.name for r in RULES])
def test_a_rule_fires_and_keeps_the_value(rule: str) -> None:
    g, _, applied = saturated(CASES[rule])
    assert applied[rule] > 0
    unit = Coster(lambda free: 1.0, Weights(1.0, 1.0, 1.0))
    extractor = Extractor(g, unit, {}, Accuracy())
    extractor.run(list(g.classes))
    values = Fingerprints()
    for c, terms in extractor.terms.items():
        assert len({values.key(t) for t in terms}) <= 1, f"class {c}: {terms}"


@pytest.mark.parametrize("rule", [r.name for r in RULES])
def test_a_rule_keeps_to_its_condition(rule: str) -> None:
    assert saturated(REFUSED[rule])[2][rule] == 0


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(REFUSED) == {r.name for r in RULES}


def test_a_long_product_is_one_node() -> None:
    factors = [x(f"f{n}", K) for n in range(12)]
    g, root, _ = saturated(reduce("sum", [K], mul(*factors)))
    assert g.size < 100  # binary products saturate at over 57,000 for 10 factors
    assert any(n.op == "reduce" for n in g[root].nodes)


def test_congruence_joins_what_has_equal_children() -> None:
    g = EGraph()
    one, two = g.insert(op("exp", A)), g.insert(op("exp", C))
    assert not g.union(g.insert(A), g.insert(A))
    g.union(g.insert(A), g.insert(C))
    g.rebuild()
    assert g.find(one) == g.find(two)


def test_a_class_varies_along_what_all_its_forms_do() -> None:
    g = EGraph()
    total = g.insert(reduce("sum", [K], mul(A, C)))
    saturate(g)
    assert g[total].free == {R}
