"""Which values are beyond which: what a maximum takes from its parts, and where it is reached.

An index that a running maximum chooses is a minimum over where that is reached,

    argmax[k < N] x = min(N, min[k < N: x[k] = max[k < N] x] k)

so what holds of it is what holds of order. `without_middle` is why it may be kept turn by turn, and
merged from parts: where the maximum m' of more is reached by an element of a part whose maximum is
m, x[k] <= m <= m', so that x[k] = m' is the same as x[k] = m and m = m'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations

from superopt.verify.integers import Cond, Poly, both, conjuncts, le, poly, product
from superopt.verify.laws import law
from superopt.verify.reals import (
    Product,
    Real,
    alone,
    changed,
    compares,
    cond_changed,
    real,
    renaming,
    within,
    zero,
)

EXTREMES = ("maximum", "minimum", "maximum of", "minimum of")
Follows = Callable[[Cond, Cond], bool]


@dataclass(frozen=True)
class Order:
    """At most, where `kind` is maximum; at least, where it is minimum. Z3 says it of integers."""

    kind: str
    follows: Follows

    def at_most(self, a: Real, b: Real, facts: Cond) -> bool:
        own = alone(b)
        if own is not None and own.kind == self.kind:
            return any(self.at_most(a, x, facts) for x in own.args)
        less, more = (a, b) if self.kind == "maximum" else (b, a)
        one, two = _integer(less), _integer(more)
        if one is not None and two is not None:
            return self.follows(facts, le(one, two))
        if a == b or less.number is None or less.number > 0:
            return a == b
        return _not_negative(more) or (_squares(more) and law("a sum of squares"))

    def adds_nothing(self, a: Real, b: Real, facts: Cond) -> bool:
        """Whether a is at most b, or a maximum of what is, if of anything."""
        nested = within(self.kind, a)
        if nested is not None:
            _, domain, a = nested
            facts = both(facts, domain)
        return self.at_most(a, b, facts) and law("what adds nothing")

    def among(self, x: Real, whole: Real, names: Sequence[str], facts: Cond) -> bool:
        """Whether x, or all that it is the maximum of, is among what `whole` is the maximum of.

        x is an element of it where its indices are some of the names: they are tried.
        """
        own = alone(whole)
        if own is not None and own.kind == self.kind:
            return any(self.among(x, a, names, facts) for a in own.args)
        nested, part = within(self.kind, whole), within(self.kind, x)
        if x == whole or nested is None:
            return x == whole
        bound, domain, body = nested
        if part is not None and len(part[0]) == len(bound):
            same = renaming(dict(zip(bound, part[0], strict=True)))
            if changed(body, same) == part[2]:
                return self.follows(both(facts, part[1]), cond_changed(domain, same))
        places = (
            renaming(dict(zip(bound, p, strict=True))) for p in permutations(names, len(bound))
        )
        return any(
            changed(body, at) == x and self.follows(facts, cond_changed(domain, at))
            for at in places
        )


def without_middle(domain: Cond, names: Sequence[str], facts: Cond, follows: Follows) -> Cond:
    """The condition with x = p and p = q as x = q, where x is among what p is the maximum of, and
    that among what q is.
    """
    parts = conjuncts(domain)
    equalities = [c for c in parts if c.op == "zero"]
    inside = both(facts, *(c for c in parts if not compares(c)))
    for one in equalities:
        for two in equalities:
            for kind, x, p, q in _chains(one.args[0], two.args[0]) if one != two else ():
                order = Order(kind, follows)
                if (
                    order.among(x, p, names, inside)
                    and order.among(p, q, names, inside)
                    and law("between")
                ):
                    rest = (c for c in parts if c not in (one, two))
                    return without_middle(both(*rest, zero(x - q)), names, facts, follows)
    return domain


def _chains(one: Real, two: Real) -> Iterator[tuple[str, Real, Real, Real]]:
    """x, p and q of values that are 0 where x = p and where p = q, with the kind of p."""
    shared = dict(two.terms)
    for factors, c in one.terms:
        own = alone(Real(((factors, Fraction(1)),)))
        if own is not None and own.kind in EXTREMES and factors in shared:
            p = real(own)
            q = p - two * real(1 / shared[factors])
            yield own.kind.removesuffix(" of"), p - one * real(1 / c), p, q


def _integer(x: Real) -> Poly | None:
    """The value as index arithmetic; None where it is none."""
    result = poly(0)
    for p, c in x.terms:
        whole = c.denominator == 1 and all(e >= 0 and e.denominator == 1 for _, e in p)
        if not whole or any(f.kind != "integer" for f, _ in p):
            return None
        result = result + product(f.args[0] for f, e in p for _ in range(int(e))) * int(c)
    return result


def _not_negative(x: Real) -> bool:
    """Whether it is a sum of products of exps and of truths."""
    return all(c > 0 and all(f.kind in ("exp", "truth") for f, _ in p) for p, c in x.terms)


def _squares(x: Real) -> bool:
    """Whether it is a sum of squares, of what is summed or not: they are completed one by one.

    sum[n] a^2 - 2 * sum[n] a*b + sum[n] b^2 has (a - b)^2 under the sum, and nothing is left.
    """
    x = _summed(x)
    while x.number is None:
        square = next(((p[0][0], c) for p, c in x.terms if c > 0 and _is_square(p)), None)
        if square is None:
            return False
        f, c = square
        crossed = {p: k / (2 * c) for p, k in x.terms if (f, Fraction(1)) in p}
        others = {tuple(t for t in p if t[0] != f): k for p, k in crossed.items()}
        root = real(f) + Real.of(others)
        x = x - root * root * real(c)
        if f in x.factors:
            return False
    return x.number >= 0


def _summed(x: Real) -> Real:
    """What is summed, where all is sums over the same indices; else the value itself."""
    own = [alone(Real(((p, Fraction(1)),))) for p, _ in x.terms]
    sums = [f for f in own if f is not None and f.kind == "sum"]
    if len(sums) < len(own) or len({f.args[:2] for f in sums}) != 1:
        return x
    parts = (f.args[2] * real(c) for f, (_, c) in zip(sums, x.terms, strict=True))
    return sum(parts, real(0))


def _is_square(p: Product) -> bool:
    return len(p) == 1 and p[0][1] == 2
