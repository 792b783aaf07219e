"""Each rule of the algebra proved by Z3 over the reals, for extents of any length.

A reduction over the first n values is an unknown function of n with its two defining equations;
what a rule says of all lengths is proved by induction: at 0, and from n to n + 1. Conditions are
proved to be needed: without them Z3 finds values for which the rule is false.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import z3

from superopt.search.rules import RULES

N = z3.Int("n")
A, B, C = z3.Reals("a b c")
P = z3.Bool("p")
E, F = (z3.Function(name, z3.IntSort(), z3.RealSort()) for name in "ef")
Sequence = Callable[[z3.ArithRef], z3.ArithRef]


def larger(a: z3.ArithRef, b: z3.ArithRef) -> z3.ArithRef:
    return z3.If(a >= b, a, b)


def smaller(a: z3.ArithRef, b: z3.ArithRef) -> z3.ArithRef:
    return z3.If(a <= b, a, b)


@dataclass
class Fold:
    """A reduction of the first n values of a sequence, as equations at n and n + 1.

    A sum starts from 0 at n = 0; an extreme from its first value at n = 1, as its rules move
    constants past it that infinity would swallow.
    """

    name: str
    body: Sequence
    join: Callable = lambda a, b: a + b
    first: int = 0

    def __call__(self, n: z3.ArithRef | int) -> z3.ArithRef:
        return z3.Function(self.name, z3.IntSort(), z3.RealSort())(n)

    @property
    def start(self) -> z3.BoolRef:
        return self(self.first) == (0 if self.first == 0 else self.body(z3.IntVal(0)))

    @property
    def step(self) -> z3.BoolRef:
        return self(N + 1) == self.join(self(N), self.body(N))


@dataclass
class ByInduction:
    """left(n) = right(n) for every n from where the folds start."""

    folds: tuple[Fold, ...]
    left: Sequence
    right: Sequence
    when: z3.BoolRef | bool = True
    lemma: z3.BoolRef | bool = True

    def claims(self, when: z3.BoolRef | bool) -> list[z3.BoolRef]:
        first = self.folds[0].first
        starts, steps = [f.start for f in self.folds], [f.step for f in self.folds]
        same = self.left(N) == self.right(N)
        base = self.left(z3.IntVal(first)) == self.right(z3.IntVal(first))
        return [
            z3.Implies(z3.And(when, self.lemma, *starts), base),
            z3.Implies(
                z3.And(when, self.lemma, first <= N, *steps, same),
                self.left(N + 1) == self.right(N + 1),
            ),
        ]


@dataclass
class Directly:
    claim: z3.BoolRef
    when: z3.BoolRef | bool = True

    def claims(self, when: z3.BoolRef | bool) -> list[z3.BoolRef]:
        return [z3.Implies(when, self.claim)]


def extreme(name: str, body: Sequence, join: Callable) -> Fold:
    return Fold(name, body, join, first=1)


def both_extremes(body: Sequence, moved: Sequence, when: z3.BoolRef | bool) -> list[ByInduction]:
    """max and min of body(e) = moved(max or min of e)."""
    proofs = []
    for name, join in (("max", larger), ("min", smaller)):
        inner = extreme(name, E, join)
        outer = extreme(f"{name} of body", lambda n: body(E(n)), join)
        proofs.append(ByInduction((outer, inner), outer, lambda n, i=inner: moved(i(n)), when))
    return proofs


SUM_E, SUM_F = Fold("sum e", E), Fold("sum f", F)
SCALED = Fold("sum c*e", lambda n: C * E(n))
ADDED = Fold("sum c*e+c*f", lambda n: C * E(n) + C * F(n))
SCALED_F = Fold("sum c*f", lambda n: C * F(n))
# of a double sum: row(n) is one over the other axis; factors leave it by the rule proved above
ROW = z3.Function("row", z3.IntSort(), z3.RealSort())
ROWS = Fold("sum row", lambda n: ROW(n))
OUTER = Fold("sum a*row", lambda n: E(n) * ROW(n))
NESTED = Fold("sum of rows", lambda n: z3.Function("row of a*b", z3.IntSort(), z3.RealSort())(n))
ROW_AB = z3.Function("row of a*b", z3.IntSort(), z3.RealSort())
# sum[k<n] c_k * sum[j<m] a_j*b_jk against sum[j<m] a_j * sum[k<n] c_k*b_jk, by induction on n
TERM = z3.Function("sum[j] a*b at k", z3.IntSort(), z3.RealSort())
INNER = z3.Function("sum[j] a*sum[k<n] c*b", z3.IntSort(), z3.RealSort())
EXCHANGED = Fold("sum[k] c*sum[j] a*b", lambda n: E(n) * TERM(n))

ROOT = z3.Function("sqrt", z3.RealSort(), z3.RealSort())
RSQRT = z3.Function("rsqrt", z3.RealSort(), z3.RealSort())
EXP = z3.Function("exp", z3.RealSort(), z3.RealSort())
LOG = z3.Function("log", z3.RealSort(), z3.RealSort())
SUM_OF_EXPS = EXP(A + B) == EXP(A) * EXP(B)  # by what exp is, and log
INVERSES = z3.And(z3.Implies(A > 0, EXP(LOG(A)) == A), EXP(LOG(A)) * EXP(-LOG(A)) == 1)
PROOFS: dict[str, list[ByInduction | Directly]] = {
    "factor-leaves-sum": [ByInduction((SCALED, SUM_E), SCALED, lambda n: C * SUM_E(n))],
    "sum-nests": [
        ByInduction((NESTED, OUTER), NESTED, OUTER, lemma=ROW_AB(N) == E(N) * ROW(N)),
    ],
    "sum-splits": [  # a sum over pairs is that of its rows' sums
        ByInduction((NESTED, ROWS), NESTED, ROWS, lemma=ROW_AB(N) == ROW(N)),
    ],
    "sums-exchange": [  # the lemma: sums add, and a factor leaves them, for the sum over j
        ByInduction(
            (EXCHANGED,), EXCHANGED, INNER,
            lemma=z3.And(INNER(0) == 0, INNER(N + 1) == INNER(N) + E(N) * TERM(N)),
        )
    ],
    "sum-distributes": [
        ByInduction((ADDED, SCALED, SCALED_F), ADDED, lambda n: SCALED(n) + SCALED_F(n))
    ],
    "factor-leaves-total": [Directly(C * A + C * B == C * (A + B))],
    "constant-leaves-total": [Directly(C * A - C * B == C * (A - B))],
    "constant-leaves-where": [  # as for 0 and, c being positive, infinity
        Directly(z3.If(P, C * A, B) == C * z3.If(P, A, B), C * B == B)
    ],
    "extreme-shifts": [*both_extremes(lambda e: C + e, lambda m: C + m, True)],
    "extreme-scales": [*both_extremes(lambda e: C * e, lambda m: C * m, C > 0)],
    "inverse-of-product": [Directly(1 / (A * B) == (1 / A) * (1 / B), z3.And(A != 0, B != 0))],
    "inverse-of-root": [  # by what rsqrt is
        Directly(z3.Implies(RSQRT(A) * ROOT(A) == 1, 1 / ROOT(A) == RSQRT(A)))
    ],
    "product-flattens": [Directly(A * (B * C) == A * B * C)],
    "exp-of-total": [Directly(z3.Implies(SUM_OF_EXPS, EXP(A + B) == EXP(A) * EXP(B)))],
    "exp-of-log": [Directly(z3.Implies(INVERSES, EXP(-LOG(A)) == 1 / A), A > 0)],
}  # fmt: skip


def holds(claim: z3.BoolRef) -> bool:
    solver = z3.Solver()
    solver.set("timeout", 20_000)
    solver.add(z3.Not(claim))
    answer = solver.check()
    assert answer != z3.unknown, solver.reason_unknown()
    return bool(answer == z3.unsat)


def test_every_rule_has_a_proof() -> None:
    assert set(PROOFS) == {r.name for r in RULES}


@pytest.mark.parametrize("rule", [r.name for r in RULES])
def test_a_rule_is_proved(rule: str) -> None:
    for proof in PROOFS[rule]:
        assert all(holds(claim) for claim in proof.claims(proof.when))


CONDITIONED = [name for name, proofs in PROOFS.items() if proofs[0].when is not True]


@pytest.mark.parametrize("rule", CONDITIONED)
def test_a_rule_is_false_without_its_condition(rule: str) -> None:
    for proof in PROOFS[rule]:
        assert not all(holds(claim) for claim in proof.claims(True))
