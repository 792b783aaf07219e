"""Normal forms under conditions: what follows from them is decided, by Z3, and made use of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from superopt.verify.addresses import Prover
from superopt.verify.bound import (
    fusions,
    inhabited,
    least_index,
    limit_of,
    shifted,
    simpler_forms,
    undecided,
    unjoined,
)
from superopt.verify.extremes import Order, without_middle
from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    atoms_of,
    between,
    both,
    conjuncts,
    either,
    eq,
    le,
    lt,
    mapped,
    negation,
    poly,
    symbol,
)
from superopt.verify.laws import law
from superopt.verify.reals import (
    NEARLY,
    REDUCTIONS,
    Factor,
    Real,
    alone,
    by_comparison,
    changed,
    compares,
    cond_changed,
    exponential,
    extreme,
    factors_in,
    function,
    given,
    is_positive,
    logarithm,
    made_of_exps,
    opened,
    over,
    positive,
    power,
    real,
    truth,
    within,
    zero,
)
from superopt.verify.verdict import Obligation

MOST_CASES = 6  # conditions that are taken one way, then the other


@dataclass
class Forms:
    """Normal forms under conditions; Z3 says which conditions follow."""

    prover: Prover
    constants: list[Fraction] = field(default_factory=list)
    known: dict[tuple[str, Cond], Real] = field(default_factory=dict)
    asked: dict[tuple[Cond, Cond], Obligation] = field(default_factory=dict)
    domains: dict[tuple[Any, ...], list[Cond]] = field(default_factory=dict)

    def follows(self, facts: Cond, c: Cond) -> bool:
        if c == TRUE or set(conjuncts(c)) <= set(conjuncts(facts)):
            return True
        if (facts, c) not in self.asked:
            self.asked[facts, c] = self.prover.prove(f"indices: {c}", facts, c, quick=True)
        return self.asked[facts, c].status == "proved"

    def used(self) -> Iterator[Obligation]:
        """What was asked of indices, and follows."""
        return (o for o in self.asked.values() if o.status == "proved")

    def snapped(self, c: Fraction) -> Fraction:
        """A constant as it, or its negative, was first seen: those of a kernel are rounded."""
        if c in (0, 1, -1):
            return c
        if c < 0:
            return -self.snapped(-c)
        for k in self.constants:
            if abs(c - k) <= NEARLY * k:
                return k
        self.constants.append(c)
        return c

    # -- one value -------------------------------------------------------------------------------

    def tidy(self, x: Real, facts: Cond) -> Real:
        """The value with what follows from the facts: conditions decided, domains simplified."""
        result = real(0)
        for p, c in x.terms:
            term = real(self.snapped(c))
            for f, e in p:
                if f.kind == "power":
                    term = term * power(self.tidy(f.args[0], facts), e)
                else:
                    term = term * power(self.factor(f, facts), self.snapped(e))
            result = result + self.rounded(term)  # before what cancels is added up
        return self.joined(self.exponents(self.rounded(result), facts), facts)

    def exponents(self, x: Real, facts: Cond) -> Real:
        """exp(sum[A] f) * exp(sum[B] f) as exp(sum[A or B] f)."""
        result = real(0)
        for p, c in x.terms:
            raised = [(f.args[0], e) for f, e in p if f.kind == "exp"]
            whole = sum((t * real(e) for t, e in raised), real(0))
            if len(raised) > 1 and (joined := self.joined(whole, facts)) != whole:
                rest = tuple(t for t in p if t[0].kind != "exp")
                result = result + Real(((rest, c),)) * exponential(joined)
            else:
                result = result + Real(((p, c),))
        return result

    def rounded(self, x: Real) -> Real:
        """The value with its constants as they were first seen."""
        terms: dict[Any, Fraction] = {}
        for p, c in x.terms:
            own = tuple(
                (Factor("power", (self.rounded(f.args[0]),)) if f.kind == "power" else f, e)
                for f, e in p
            )
            own = tuple(sorted(own, key=lambda t: t[0].key))
            terms[own] = terms.get(own, Fraction(0)) + self.snapped(c)
        return Real.of(terms)

    def factor(self, f: Factor, facts: Cond) -> Real:
        key = (f.key, facts)
        if key not in self.known:
            self.known[key] = self.settled(self._factor(f, facts), facts)
        return self.known[key]

    def settled(self, x: Real, facts: Cond) -> Real:
        """The value with its reductions over the conditions under which each was first seen."""
        terms: dict[Any, Fraction] = {}
        for p, c in x.terms:
            own = sorted(((self.first_seen(f, facts), e) for f, e in p), key=lambda t: t[0].key)
            terms[tuple(own)] = terms.get(tuple(own), Fraction(0)) + c
        return Real.of(terms)

    def first_seen(self, f: Factor, facts: Cond) -> Factor:
        """The reduction over a condition that holds for the same indices, if there was one."""
        if f.kind not in REDUCTIONS:
            return f
        names, domain, body = f.args
        known = self.domains.setdefault((f.kind, names, body), [])
        for other in known:
            same = both(facts, domain), both(facts, other)
            if other == domain or (self.follows(same[0], other) and self.follows(same[1], domain)):
                return Factor(f.kind, (names, other, body))
        known.append(domain)
        return f

    def _factor(self, f: Factor, facts: Cond) -> Real:
        match f.kind:
            case "load" | "state":
                at = tuple(self.index(i, facts) for i in f.args[1])
                return real(Factor(f.kind, (f.args[0], at)))
            case "integer":
                return self.number(self.index(f.args[0], facts), facts)
            case "truth":
                return self.truth(f.args[0], facts)
            case "exp":
                return exponential(self.tidy(f.args[0], facts))
            case "log":
                return logarithm(self.tidy(f.args[0], facts))
            case "maximum" | "minimum":
                return self.extremes(f.kind, [self.tidy(a, facts) for a in f.args], facts)
        if f.kind in REDUCTIONS:
            return self.reduction(f, facts)
        return function(f.kind, *(self.tidy(a, facts) for a in f.args))

    def reduction(self, f: Factor, facts: Cond) -> Real:
        """The reduction with few indices, each where memory is read, and a simple condition."""
        numbers = (g.args[0] for g in factors_in([f.args[2]]) if g.kind == "integer")
        names, domain, body = opened(f) if any(map(counted_by, numbers)) else f.args
        untidy, body = body, self.tidy(body, both(facts, domain))
        if f.kind == "sum" and body != untidy and any(g.kind == "sum" for g in body.factors):
            return self.tidy(over("sum", names, domain, body), facts)  # a sum of sums now
        split = unjoined(names, domain, body)
        if split is not None and law("an index as two"):
            return self.tidy(over(f.kind, *split), facts)
        before, own = body, list(names)
        names, domain, body = self.fused(own, self.condition(domain, facts), body, facts)
        domain = self.domain(domain, names, facts)
        names, domain, body = self.fused(names, domain, body, facts)  # now with simple conditions
        if names != own:  # of which one may be divided
            return self.tidy(over(f.kind, names, domain, body), facts)
        names, domain, body = shifted(names, domain, body)
        if body != before and any(g.kind in REDUCTIONS for g in factors_in([body])):
            body = self.tidy(body, both(facts, domain))  # of other indices than before
        if domain == FALSE and f.kind == "sum":
            return real(0)
        simpler = without_middle(domain, names, facts, self.follows) if compares(domain) else domain
        if simpler != domain:
            return self.tidy(over(f.kind, names, simpler, body), facts)
        for n in names:
            value = least_index(domain, n)
            at = {Atom("symbol", (n,)): value}
            single = self.follows(both(facts, domain), eq(symbol(n), value))
            if not single or not law("a single index"):
                continue
            first, body, left = cond_changed(domain, at), changed(body, at), [*names]
            left.remove(n)
            if left:
                return self.tidy(over(f.kind, left, first, body), facts)
            if f.kind == "sum":
                return self.tidy(truth(first) * body, facts)
            known = self.follows(facts, first)
            return self.tidy(body, facts) if known else over(f.kind, names, domain, body)
        parted = self.parted(f.kind, names, domain, body, facts)
        if parted is not None:
            return parted
        if f.kind in ("maximum of", "minimum of"):
            return self.extreme_over(f.kind, names, domain, body, facts)
        counted = self.count(names, domain, facts) if f.kind == "sum" else None
        if counted is not None and body == real(1):
            return counted
        return over(f.kind, names, domain, body)

    def parted(
        self, kind: str, names: Sequence[str], domain: Cond, body: Real, facts: Cond
    ) -> Real | None:
        """sum[n < 9] exp(f * (n < 8)) as sum[n < 8] exp(f) + sum[8 <= n < 9] exp(0)."""
        c = undecided(names, body)
        if kind == "prod" or c is None:
            return None
        if not law("sum over a union" if kind == "sum" else "maximum of maxima"):
            return None
        ways = [(both(domain, way), given(body, way)) for way in (c, negation(c))]
        ways = [w for w in ways if not self.follows(both(facts, w[0]), FALSE)]
        parts = [self.tidy(over(kind, names, *way), facts) for way in ways]
        if kind == "sum":
            return sum(parts, real(0))
        return self.extremes(kind.removesuffix(" of"), parts, facts) if parts else None

    # -- maxima and minima -----------------------------------------------------------------------

    def extreme_over(
        self, kind: str, names: Sequence[str], domain: Cond, body: Real, facts: Cond
    ) -> Real:
        """A maximum of maxima as the maximum of each; one by cases without those left out.

        min[k < N](k where x[k] = m, else N) = min(N, min[k < N: x[k] = m] k): so an index that a
        comparison chooses has one form, whatever it is told where there is none.
        """
        plain, own = kind.removesuffix(" of"), alone(body)
        if not {*names} & body.names and self.some(names, domain, facts):
            return body
        if own is not None and own.kind == plain and law("maximum of maxima"):
            each = [self.tidy(over(kind, names, domain, a), facts) for a in own.args]
            return self.extremes(plain, each, facts)
        order = Order(plain, self.follows)
        for c, one, other in by_comparison(body):
            inside = both(facts, domain, c)
            if {*names} & other.names or not order.at_most(other, one, inside):
                continue
            if self.some(names, domain, facts) and law("maximum by cases"):
                chosen = self.tidy(over(kind, names, both(domain, c), one), facts)
                return self.extremes(plain, [other, chosen], facts)
        return over(kind, names, domain, body)

    def some(self, names: Sequence[str], domain: Cond, facts: Cond) -> bool:
        """Whether the least index is in a domain, so that something is."""
        least = {Atom("symbol", (n,)): least_index(domain, n) for n in names}
        return self.follows(facts, cond_changed(domain, least))

    def extremes(self, kind: str, values: Sequence[Real], facts: Cond) -> Real:
        """The maximum or minimum of values, without those that add nothing."""
        order = Order(kind, self.follows)
        own = alone(
            found := extreme(kind, *(p for v in values for p in self.cases(v, order, facts)))
        )
        if own is not None and own.kind == kind:
            left = list(own.args)
            for a in own.args:
                others = [b for b in left if b != a]
                if any(order.adds_nothing(a, b, facts) for b in others):
                    left = others
            found = extreme(kind, *left)
        return changed(found, {}, lambda g: self.united_factor(g, facts))

    def cases(self, x: Real, order: Order, facts: Cond) -> list[Real]:
        """max(a where c, else b) as b and a where c holds: for a >= b, a maximum over indices."""
        for c, one, other in by_comparison(x):
            inside = both(facts, c)
            own = alone(one)
            parts = own.args if own is not None and own.kind == order.kind else (one,)
            more = [a for a in parts if not order.at_most(a, other, inside)]
            nested = [within(order.kind, a) for a in more]
            if None in nested or not order.at_most(other, one, inside):
                continue
            if law("maximum by cases"):
                there = (
                    over(f"{order.kind} of", n, both(d, c), b) for n, d, b in filter(None, nested)
                )
                return [other, *(self.tidy(a, facts) for a in there)]
        return [x]

    def united_factor(self, f: Factor, facts: Cond) -> Real | None:
        """A maximum over a disjunction, as two maxima made it, over what that comes to."""
        if f.kind not in REDUCTIONS or f.args[1].op != "or":
            return None
        names, domain, body = f.args
        return over(f.kind, names, self.domain(domain, names, facts), body)

    def truth(self, c: Cond, facts: Cond) -> Real:
        c = self.condition(c, facts)
        if compares(c):
            return truth(c)
        if self.follows(facts, c):
            return real(1)
        return real(0) if self.follows(facts, negation(c)) else truth(c)

    def condition(self, c: Cond, facts: Cond) -> Cond:
        """The condition with simpler indices, and normal forms of the values it compares."""
        if not compares(c):
            return mapped(c, lambda a: self.divided(a, facts))  # type: ignore[no-any-return]
        match c.op:
            case "and":
                plain = both(facts, *(a for a in c.args if not compares(a)))
                return both(*(self.condition(a, plain) for a in c.args))
            case "or":
                return either(*(self.condition(a, facts) for a in c.args))
            case "not":
                return negation(self.condition(c.args[0], facts))
        made = {"positive": positive, "zero": zero}[c.op](self.tidy(c.args[0], facts))
        return self.condition(empty, facts) if (empty := without_terms(made)) is not None else made

    def index(self, p: Poly, facts: Cond) -> Poly:
        while True:
            new = mapped(p, lambda a: self.divided(a, facts))
            if new == p:
                return p
            p = new

    def divided(self, a: Atom, facts: Cond) -> Poly | None:
        """A quotient or remainder of q * d + r for 0 <= r < d, of what is not negative."""
        if a.kind == "choice":
            c, one, two = a.args
            if compares(c):
                return None
            return one if self.follows(facts, c) else (
                two if self.follows(facts, negation(c)) else None
            )  # fmt: skip
        if a.kind not in ("quotient", "remainder") or len(a.args[1].terms) != 1:
            return None
        whole, by = a.args
        q: Poly
        r: Poly
        q, r = whole.split(by)
        if q == poly(0) and r.atom is not None and r.atom.kind == "quotient":
            return None
        if by.number is not None and r.terms:  # 3 * 64 + x is 64 * 3 + x, and 70 is 64 + 6
            constant = dict(r.terms).get((), 0)
            q, r = q + constant // by.number, r - constant // by.number * by.number
        for more in (0, 1):
            whole, rest = q + more, r - by * more
            if self.follows(facts, both(le(0, whole), between(0, rest, by))):
                return whole if a.kind == "quotient" else rest
        if q == poly(0) and self.follows(facts, both(le(r, 0), lt(-r, by))):
            return q if a.kind == "quotient" else r  # towards 0, as C does
        if q != poly(0) and self.follows(facts, both(le(0, q * by + r), le(0, r), lt(0, by))):
            rest = poly(Atom(a.kind, (r, by)))
            return q + rest if a.kind == "quotient" else rest
        return None

    # -- reductions ------------------------------------------------------------------------------

    def domain(self, c: Cond, names: Sequence[str], facts: Cond) -> Cond:
        """The condition in few parts, none of which follows from the others."""
        if c.op == "or":
            c = self.united(c, facts)
        parts = [self.multiplied(p, both(facts, c)) for p in conjuncts(c)]
        for place, part in enumerate(parts):
            if any(a.kind in ("quotient", "remainder") for a in atoms_of(part)):
                given_too = both(facts, *(p for p in parts if p != part))
                parts[place] = self.condition(part, given_too)
        for part in list(parts):
            for n in names:
                rest = both(facts, *(p for p in parts if p != part))
                for simpler in simpler_forms(part, n):
                    if self.follows(both(rest, part), simpler) and self.follows(
                        both(rest, simpler), part
                    ):
                        parts[parts.index(part)] = simpler
                        break
                else:
                    continue
                break
        for part in sorted(parts, key=lambda p: -len(str(p))):
            others = [p for p in parts if p != part]
            if self.follows(both(facts, *others), part):
                parts = others
        if self.follows(both(facts, *parts), FALSE):
            return FALSE
        return both(*sorted(parts, key=str))

    def count(self, names: Sequence[str], domain: Cond, facts: Cond) -> Real | None:
        """How many values of one name there are from a least one up to a limit."""
        own, parts = symbol(names[0]), conjuncts(domain)
        lows = [c.args[0] for c in parts if c.op == "le" and c.args[1] == own]
        limits = [x for c in parts if (x := limit_of(c, names[0])) is not None]
        if len(names) > 1 or len(lows) != 1 or len(limits) != 1 or len(parts) > 2:
            return None
        (low,), ((high, needed),) = lows, limits
        if names[0] in low.names:
            return None
        whole = TRUE if needed is None else both(le(0, low), le(0, needed))
        known = self.follows(facts, both(le(low, high), whole)) and law("counting")
        return real(high - low) if known else None

    def number(self, p: Poly, facts: Cond) -> Real:
        """max(0, min(a, b)) as how many there are from 0 on that are below both."""
        limits = counted_by(p)
        bound = any(n.startswith("#") for n in p.names)  # by a reduction that is not open
        if limits is None or bound or not law("counting"):
            return real(p)
        n = symbol("counted")
        domain = both(le(0, n), *(lt(n, limit) for limit in limits))
        return self.tidy(over("sum", ["counted"], domain, real(1)), facts)

    def multiplied(self, c: Cond, facts: Cond) -> Cond:
        """i / n < k as i < k * n, and k <= i / n as k * n <= i: for i >= 0 and n > 0."""
        for q, k in (c.args, c.args[::-1]) if c.op in ("lt", "le") else ():
            a = q.atom
            if (c.op == "lt") != (q is c.args[0]) or a is None or a.kind != "quotient":
                continue
            whole, by = a.args
            if self.follows(facts, both(le(0, whole), lt(0, by))):
                return lt(whole, k * by) if c.op == "lt" else le(k * by, whole)
        return c

    def fused(
        self, names: list[str], domain: Cond, body: Real, facts: Cond
    ) -> tuple[list[str], Cond, Real]:
        """Two indices as one: turn * 64 + lane, for all 0 <= lane < 64 and 0 <= turn."""
        ways = fusions(names, conjuncts(domain))
        for way in sorted(ways, key=lambda w: sum(w.mark in str(c) for c in w.kept)):
            made = changed(body, way.change)
            useful = way.mark not in made.key and self.follows(facts, lt(0, way.limit))
            if useful and law("two indices as one"):
                left = [n for n in names if n != way.gone]
                domain = self.domain(self.condition(both(*way.kept), facts), left, facts)
                return self.fused(left, domain, made, facts)
        return names, domain, body

    def united(self, c: Cond, facts: Cond) -> Cond:
        """A disjunction as a conjunction of what all its parts have in common, where that is it."""
        shared = [
            p for p in dict.fromkeys(q for part in c.args for q in conjuncts(part))
            if all(self.follows(both(facts, part), p) for part in c.args)
        ]  # fmt: skip
        same = self.follows(both(facts, *shared), c)
        return both(*shared) if same else c

    def joined(self, x: Real, facts: Cond) -> Real:
        """Sums of one body over domains that do not meet, as one."""
        groups: dict[tuple[Any, ...], list[tuple[Any, Cond]]] = {}
        for p, c in x.terms:
            for f, e in p:
                if f.kind == "sum" and e == 1:
                    rest = tuple(t for t in p if t[0] != f)
                    names, domain, body = f.args
                    groups.setdefault((rest, c, names, body.key), []).append((f, domain))
        for (rest, c, names, _), members in groups.items():
            if len(members) < 2:
                continue
            (one, d1), (two, d2) = members[:2]
            if not self.follows(both(facts, d1, d2), FALSE) or not law("sum over a union"):
                continue
            body = one.args[2]
            domain = self.domain(either(d1, d2), names, facts)
            outside = Real(((rest, c),))
            left = x - outside * real(one) - outside * real(two)
            whole = self.settled(over("sum", list(names), domain, body), facts)
            return self.joined(left + outside * whole, facts)
        return x

    # -- two values ------------------------------------------------------------------------------

    def equal(self, one: Real, two: Real, facts: Cond, cases: int = 0) -> bool:
        """Whether two values are equal wherever the facts hold; denominators are not 0."""
        if self.follows(facts, FALSE):
            return True
        fixed = {}
        for a in sorted(atoms_of(facts), key=str):
            name = a.args[0] if a.kind == "symbol" else ""
            only = 0 if name.endswith("]") and "!" in name else 1 if name.isidentifier() else None
            if only is not None and self.follows(facts, eq(poly(a), only)):
                fixed[a] = poly(only)  # an index along a size of 1, or a size
        two = self.tidy(changed(two, fixed), facts)
        one = self.tidy(changed(one, fixed), facts)
        difference = self.joined(_difference(one, two), facts)
        if difference == real(0):
            return True
        whole = self.joined(_whole(difference), facts)
        if whole == real(0) and law("divisors cleared"):
            return True
        for c in sorted(_conditions(difference), key=lambda c: (len(str(c)), str(c))):
            if cases < MOST_CASES and law("cases"):
                ways = (c, negation(c))
                return all(self.equal(one, two, both(facts, way), cases + 1) for way in ways)
        return False


def counted_by(p: Poly) -> list[Poly] | None:
    """[a, b] of max(0, min(a, b)), however many there are."""
    a = p.atom
    if a is None or a.kind != "maximum" or poly(0) not in a.args:
        return None
    one, two = a.args
    found, waiting = [], [two if one == poly(0) else one]
    while waiting:
        x = waiting.pop()
        if x.atom is not None and x.atom.kind == "minimum":
            waiting += x.atom.args
        else:
            found.append(x)
    return found


def without_terms(c: Cond) -> Cond | None:
    """Under which condition on indices sums of positive values are 0: where none has a term."""
    if c.op != "zero" or any(k < 0 for _, k in c.args[0].terms):
        return None
    empty = []
    for p, _ in c.args[0].terms:
        sums = [f for f, e in p if f.kind == "sum" and e > 0]
        if not all(f in sums or is_positive(f) for f, _ in p) or not all(map(_positive, sums)):
            return None
        some = [inhabited(f.args[1], f.args[0]) for f in sums]
        if None in some:
            return None
        empty.append(either(*(negation(c) for c in some if c is not None)))
    return both(*empty) if law("a sum of exps") else None


def _positive(f: Factor) -> bool:
    """Whether all that a sum adds up is positive."""
    _, domain, body = f.args
    return not compares(domain) and made_of_exps(body)


def _difference(one: Real, two: Real) -> Real:
    """one - two, where constants that differ by a rounding are the same."""
    terms = dict(one.terms)
    for p, c in two.terms:
        old = terms.get(p, Fraction(0))
        close = abs(old - c) <= NEARLY * min(abs(old), abs(c))
        terms[p] = Fraction(0) if close else old - c
    return Real.of(terms)


def _conditions(x: Real) -> set[Cond]:
    """Conditions on indices, of no bound ones, by which the value is one or another."""
    found = {f.args[0] for f in factors_in([x]) if f.kind == "truth"}
    for f in factors_in([x]):
        if f.kind in ("load", "integer"):
            own = f.args[1] if f.kind == "load" else f.args
            found |= {a.args[0] for a in atoms_of(own) if a.kind == "choice"}
    free = {c for c in found if not compares(c)}
    return {c for c in free if not any(n.startswith("#") for n in c.names)}


def _whole(x: Real) -> Real:
    """The value times what its terms are divided by."""
    least: dict[Factor, Fraction] = {}
    for p, _ in x.terms:
        for f, e in p:
            if e < 0:
                least[f] = min(least.get(f, Fraction(0)), e)
    for f, e in least.items():
        times = -(e.__floor__())
        result = real(0)
        for p, c in x.terms:
            powers = dict(p)
            own = powers.pop(f, Fraction(0)) + times
            rest = Real(((tuple(sorted(powers.items(), key=lambda t: t[0].key)), c),))
            base = f.args[0] if f.kind == "power" else real(f)
            result = result + rest * power(base, own)
        x = result
    return x
