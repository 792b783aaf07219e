"""What proofs keep for later: results by laws they asked for, and numbers that refute claims."""

from __future__ import annotations

import pytest

from superopt.verify.addresses import Prover
from superopt.verify.integers import Atom, Cond, Poly, both, eq, le, lt, negation, poly, symbol
from superopt.verify.laws import Remembered, law, laws

X, Y = symbol("x"), symbol("y")


def test_a_result_stands_while_the_laws_that_it_asked_for_do() -> None:
    known, times = Remembered[bool](), []

    def compute() -> bool:
        times.append(1)
        return law("counting")

    for without, result, computed in (
        ([], True, 1),
        (["cases"], True, 1),  # it was not asked for
        (["counting"], False, 2),
        (["counting", "cases"], False, 2),
        ([], True, 2),
    ):
        with laws(without) as cited:
            assert known.of("key", compute) is result
        assert (len(times), cited) == (computed, {"counting"} if result else set())
    assert known.of("another key", compute)
    assert len(times) == 3


def test_what_is_inside_is_asked_for_outside() -> None:
    inner, outer = Remembered[bool](), Remembered[bool]()

    def compute() -> bool:
        return inner.of("inner", lambda: law("counting"))

    assert outer.of("outer", compute)
    with laws(["counting"]):
        assert not outer.of("outer", compute)


def divided(kind: str, by: int) -> Poly:
    return poly(Atom(kind, (X, poly(by))))


CLAIMS = [
    (le(0, X), lt(X, 8)),
    (both(le(-9, X), lt(X, 0)), le(-2, divided("quotient", 4))),
    (both(le(-9, X), lt(X, 0)), lt(divided("remainder", 4), 0)),
    (both(le(-9, X), lt(X, 0)), le(divided("remainder", 4), 0)),
    (both(le(0, X), lt(X, 9)), negation(eq(divided("remainder", 4), 3))),
    (le(X, Y), eq(poly(Atom("minimum", (X, Y))), X)),
    (le(X, Y), eq(poly(Atom("maximum", (X, Y))), X)),
    (lt(X, Y), eq(poly(Atom("choice", (lt(X, Y), X, Y))), Y)),
    (le(0, X), Cond("opaque", (X,))),
    (Cond("opaque", (X,)), le(0, X)),
]


@pytest.mark.parametrize("given, claim", CLAIMS, ids=str)
def test_models_refute_just_what_does_not_follow(given: Cond, claim: Cond) -> None:
    follows = Prover().follows([given], claim)
    prover = Prover()
    for other in CLAIMS:
        prover.follows([other[0]], other[1])
    prover.cache.clear()
    assert prover.follows([given], claim) is follows
    assert prover.models.refute(given, claim) is not follows


def test_a_division_by_0_refutes_nothing() -> None:
    prover, quotient = Prover(), poly(Atom("quotient", (X, Y)))
    assert not prover.follows([le(0, X)], lt(X, 1))
    assert not prover.models.refute(le(0, X), eq(quotient, 5))
