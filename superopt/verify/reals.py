"""What a kernel computes, over the reals, in one normal form: sums of products of factors.

    0.125 * sum[n: 0 <= n < N] exp(q[i] * k[n])^(1/8) * v[n] * max(...)^(-1)

Two values are equal where their normal forms are. The laws of the form are `laws.LAWS`:
rings; powers of positive factors; exp of a sum is a product; log of a
product of positive factors is a sum; sums are linear, and sums of sums are sums; a maximum moves
past what is added and past positive scales. No law holds for floating point: that is the gate's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import count, permutations
from typing import Any

from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    both,
    conjuncts,
    either,
    names_of,
    negation,
    poly,
    replaced,
)
from superopt.verify.laws import law
from superopt.verify.ttir import Unreadable

NEARLY = 2.0**-21  # constants of a kernel are rounded to fp32, or products of some that are
MOST_TERMS = 2000
MOST_ORDERED = 4  # bound names that are put in order, whatever they were called
Product = tuple[tuple["Factor", Fraction], ...]  # with exponents, sorted by key; () is one
Change = Mapping[Atom, Poly]  # what stands for symbols and lanes
_fresh = count()


@dataclass(frozen=True, eq=False)
class Factor:
    """A value that is no sum, product or power of others. `kind` says which:

    load: `args` are a tensor's name and its indices. state: an accumulator's value, likewise.
    integer: an atom of index arithmetic. truth: 1 where a condition holds, else 0. exp: of a
    product. power: a sum that has a power other than 1, 2, 3... sum, prod, maximum, minimum:
    `args` are bound names, the condition on them, and the body. Else a function of values.
    """

    kind: str
    args: tuple[Any, ...]

    @cached_property
    def key(self) -> str:
        return f"{self.kind}({', '.join(map(_text, self.args))})"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factor) and self.key == other.key

    def __str__(self) -> str:
        return self.key

    @cached_property
    def names(self) -> frozenset[str]:
        """The free symbols and lanes in it."""
        own = names_of(self.args)
        return own - set(self.args[0]) if self.kind in REDUCTIONS else own


REDUCTIONS = ("sum", "prod", "maximum of", "minimum of")


def _text(x: Any) -> str:
    return f"({', '.join(map(_text, x))})" if isinstance(x, tuple) else str(x)


@dataclass(frozen=True, eq=False)
class Real:
    """Products with their coefficients, none 0."""

    terms: tuple[tuple[Product, Fraction], ...]

    @staticmethod
    def of(terms: Mapping[Product, Fraction]) -> Real:
        kept = [(p, c) for p, c in terms.items() if c]
        if len(kept) < 2:
            return Real(tuple(kept))
        if len(kept) > MOST_TERMS:
            raise Unreadable(f"a value of {len(kept)} terms")
        return Real(tuple(sorted(kept, key=lambda t: _product_key(t[0]))))

    @cached_property
    def key(self) -> str:
        if not self.terms:
            return "0"
        return " + ".join(
            "*".join([*([str(c)] if c != 1 or not p else []), _product_key(p)] if p else [str(c)])
            for p, c in self.terms
        )

    def __str__(self) -> str:
        return self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Real) and self.key == other.key

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset().union(*(f.names for f in self.factors))

    @cached_property
    def factors(self) -> frozenset[Factor]:
        return frozenset(f for p, _ in self.terms for f, _ in p)

    @property
    def number(self) -> Fraction | None:
        if not self.terms:
            return Fraction(0)
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    def __add__(self, other: Real) -> Real:
        total = dict(self.terms)
        for p, c in other.terms:
            total[p] = total.get(p, Fraction(0)) + c
        return Real.of(total)

    def __neg__(self) -> Real:
        return Real(tuple((p, -c) for p, c in self.terms))

    def __sub__(self, other: Real) -> Real:
        return self + -other

    def __mul__(self, other: Real) -> Real:
        if self.number is not None or other.number is not None:
            c, x = (self.number, other) if self.number is not None else (other.number, self)
            assert c is not None
            return Real.of({p: k * c for p, k in x.terms})
        total = real(0)
        plain: dict[Product, Fraction] = {}
        for p, c in self.terms:
            for q, d in other.terms:
                made = _product(p, q)
                if isinstance(made, Real):  # a power of a sum became whole
                    total = total + made * real(c * d)
                elif made is not None:
                    plain[made] = plain.get(made, Fraction(0)) + c * d
        return total + Real.of(plain)


def _product_key(p: Product) -> str:
    return "*".join(f.key if e == 1 else f"{f.key}^{e}" for f, e in p)


def real(x: Real | Factor | Poly | Fraction | float | int) -> Real:
    match x:
        case Real():
            return x
        case Factor():
            return Real((((((x, Fraction(1)),)), Fraction(1)),))
        case Poly():
            total: dict[Product, Fraction] = {}
            for m, c in x.terms:
                powers: dict[Factor, Fraction] = {}
                for a in m:
                    f = Factor("integer", (poly(a),))
                    powers[f] = powers.get(f, Fraction(0)) + 1
                total[_sorted(powers)] = Fraction(c)
            return Real.of(total)
    return Real.of({(): Fraction(x)})


def _sorted(powers: Mapping[Factor, Fraction]) -> Product:
    return tuple(sorted(((f, e) for f, e in powers.items() if e), key=lambda t: t[0].key))


def _product(p: Product, q: Product) -> Product | Real | None:
    """The product; a sum where a power of one becomes whole; None where it is 0."""
    powers = dict(p)
    for f, e in q:
        old = powers.get(f, Fraction(0))
        powers[f] = old + e
        if abs(powers[f]) <= NEARLY * abs(e) and f.kind == "exp":  # of constants that are rounded
            powers[f] = Fraction(0)
    whole = []
    for f, e in list(powers.items()):
        if f.kind == "truth":
            powers[f] = Fraction(1)
            if Factor("truth", (negation(f.args[0]),)) in powers:
                return None
        elif f.kind == "power" and e >= 1:
            powers[f] = e - e.__floor__()
            whole.append((f.args[0], e.__floor__()))
    rest = _sorted(powers)
    if not whole:
        return rest
    result = Real(((rest, Fraction(1)),))
    for base, times in whole:
        for _ in range(times):
            result = result * base
    return result


# -- functions -----------------------------------------------------------------------------------


def truth(c: Cond) -> Real:
    """1 where the condition holds, else 0. A comparison of reals and its not have one form."""
    if c in (TRUE, FALSE):
        return real(1 if c == TRUE else 0)
    if c.op == "not":
        return real(1) - truth(c.args[0]) if compares(c.args[0]) else _truth(c)
    if compares(c) and c.op == "and":
        result = real(1)
        for part in c.args:
            result = result * truth(part)
        return result
    if compares(c) and c.op == "or":
        result = real(1)
        for part in c.args:
            result = result * (real(1) - truth(part))
        return real(1) - result
    return _truth(c)


def _truth(c: Cond) -> Real:
    result = real(1)
    for part in conjuncts(c):
        result = result * real(Factor("truth", (part,)))
    return result


def compares(c: Cond) -> bool:
    """Whether values of floats are compared in it."""
    return c.op in ("positive", "zero") or any(isinstance(a, Cond) and compares(a) for a in c.args)


def positive(x: Real) -> Cond:
    """x > 0, with the first coefficient's size taken out."""
    if x.number is not None:
        return TRUE if x.number > 0 else FALSE
    return Cond("positive", (x * real(1 / abs(x.terms[0][1])),))


def zero(x: Real) -> Cond:
    """x = 0: without positive factors; exp(a) - exp(b) is 0 where a - b is."""
    if x.number is not None:
        return TRUE if x.number == 0 else FALSE
    common = _surely_positive(x)
    if common and law("divisors cleared"):
        return zero(Real.of({_quotient(p, common): c for p, c in x.terms}))
    if len(x.terms) == 2 and x.terms[0][1] == -x.terms[1][1]:
        one, two = (_exponent(Real(((p, Fraction(1)),))) for p, _ in x.terms)
        if one is not None and two is not None and law("exp grows"):
            return zero(one - two)
    return Cond("zero", (x * real(1 / x.terms[0][1]),))


def is_positive(f: Factor) -> bool:
    return f.kind == "exp"


def given(x: Real, c: Cond) -> Real:
    """The value where a condition holds: truths of its parts are 1, of their contraries 0."""
    parts = set(conjuncts(c))
    decided = parts | set(map(negation, parts))
    if not any(f.kind == "truth" and f.args[0] in decided for f in _all_factors(x)):
        return x

    def known(f: Factor) -> Real | None:
        if f.kind != "truth":
            return None
        own = f.args[0]
        return real(1) if own in parts else real(0) if negation(own) in parts else None

    return changed(x, {}, known)


def power(x: Real, e: Fraction) -> Real:
    """x ** e, for x > 0 where e is not whole, and x != 0 where it is negative."""
    if e == 0:
        return real(1)
    if e > 0 and e.denominator == 1:
        if len(x.terms) == 1:
            return _with_powers(x.terms[0][0], e, x.terms[0][1])
        result = real(1)
        for _ in range(int(e)):
            result = result * x
        return result
    if x.number is not None:
        if x.number == 0:
            if e < 0:
                raise ZeroDivisionError
            return real(0)
        if x.number < 0 and e.denominator != 1:
            raise Unreadable("a root of a negative number")
        return real(_root(x.number, e))
    if not alone(x) and not law("power of a product"):
        return _base(x, e)
    if len(x.terms) == 1:
        ((p, c),) = x.terms
        if e.denominator == 1:
            return _with_powers(p, e, c)
        if c > 0:
            known = tuple((f, k) for f, k in p if is_positive(f))
            rest = tuple((f, k) for f, k in p if not is_positive(f))
            outside = _with_powers(known, e, c)
            return outside * (_base(Real(((rest, Fraction(1)),)), e) if rest else real(1))
    scale = abs(x.terms[0][1])
    common = _common(x, only_positive=e.denominator != 1)
    inner = Real.of({_quotient(p, common): c / scale for p, c in x.terms})
    return _with_powers(common, e, scale) * _base(inner, e)


def _root(c: Fraction, e: Fraction) -> Fraction:
    """c ** e, to the precision of double where e is not whole."""
    if e.denominator == 1:
        n = e.numerator
        return Fraction(c.numerator**n, c.denominator**n) if n >= 0 else 1 / _root(c, -e)
    return _double(lambda: float(c) ** float(e))


def _double(compute: Callable[[], float]) -> Fraction:
    """A number to the precision of double; Unreadable where that has none for it."""
    with suppress(OverflowError, ValueError):
        found = compute()
        if found and math.isfinite(found):
            return Fraction(found)
    raise Unreadable("a constant that double precision does not hold")


def _with_powers(p: Product, e: Fraction, c: Fraction) -> Real:
    size = _root(c, e)
    result = real(1)
    plain: dict[Factor, Fraction] = {}
    for f, k in p:
        if f.kind == "truth" and e < 0:  # what it is where the condition does not hold is open
            result = result * Real.of({((Factor("power", (real(f),)), e),): Fraction(1)})
        elif f.kind == "truth":
            plain[f] = Fraction(1)
        elif f.kind == "power" and k * e >= 1:
            result = result * power(f.args[0], k * e)
        else:
            plain[f] = k * e
    return result * Real.of({_sorted(plain): size})


def _base(x: Real, e: Fraction) -> Real:
    if e >= 1:
        whole = Fraction(e.__floor__())
        return power(x, whole) * _base(x, e - whole) if e != whole else power(x, whole)
    return Real.of({((Factor("power", (x,)), e),): Fraction(1)})


def _common(x: Real, only_positive: bool) -> Product:
    """What all terms have as a factor."""
    first = dict(x.terms[0][0])
    for p, _ in x.terms[1:]:
        powers = dict(p)
        first = {
            f: min(e, powers[f], key=abs)
            for f, e in first.items()
            if f in powers and e * powers[f] > 0
        }
    kept = {f: e for f, e in first.items() if f.kind != "truth"}
    return _sorted({f: e for f, e in kept.items() if is_positive(f) or not only_positive})


def _surely_positive(x: Real) -> Product:
    """What all terms have as a positive factor; sums of such are none where they divide."""

    def sure(f: Factor, e: Fraction) -> bool:
        return is_positive(f) or (e < 0 and _not_negative(f))

    return tuple((f, e) for f, e in _common(x, only_positive=False) if sure(f, e))


def _exponent(x: Real) -> Real | None:
    """What x is exp of; None where it is not written so."""
    (p, c), *others = x.terms or (((), Fraction(0)),)
    if others or c != 1 or any(f.kind != "exp" for f, _ in p):
        return None
    return sum((f.args[0] * real(e) for f, e in p), real(0))


def _quotient(p: Product, by: Product) -> Product:
    powers = dict(p)
    for f, e in by:
        powers[f] -= e
    return _sorted(powers)


def exponential(x: Real) -> Real:
    """exp of a sum, as the product of its terms' exp; of a term c*t as exp(t)^c, of log(a) a."""
    multiple = any(c != 1 for p, c in x.terms if p)
    if (len(x.terms) > 1 and not law("exp of a sum")) or (
        multiple and not law("exp of a multiple")
    ):
        return real(Factor("exp", (x,)))
    powers: dict[Factor, Fraction] = {}
    others = real(1)
    for p, c in x.terms:  # of a constant: exp(1)^c
        if (of := _logged(p)) is not None and law("exp of a log"):
            others = others * power(of, c)
            continue
        f = Factor("exp", (Real(((p, Fraction(1)),)),))
        powers[f] = powers.get(f, Fraction(0)) + c
    return others * Real.of({_sorted(powers): Fraction(1)})


def _logged(p: Product) -> Real | None:
    """What a product is the log of, where that cannot be negative: then it has none at 0 only."""
    if len(p) != 1 or p[0][0].kind != "log" or p[0][1] != 1:
        return None
    (x,) = p[0][0].args
    surely = all(c > 0 and all(_not_negative(f) for f, _ in q) for q, c in x.terms)
    return x if surely else None


def _not_negative(f: Factor) -> bool:
    """Whether a factor is exp of something, or a sum of products of such."""
    return is_positive(f) or (f.kind == "sum" and made_of_exps(f.args[2]))


def made_of_exps(x: Real) -> bool:
    """Whether all terms are products of exps, times positive numbers."""
    return all(c > 0 and all(is_positive(f) for f, _ in p) for p, c in x.terms)


def logarithm(x: Real) -> Real:
    """log of c * exp(t)^e * rest: log(c) + e*t + log(rest), for a positive rest."""
    if not x.terms:
        raise ZeroDivisionError
    common = _common(x, only_positive=True) if len(x.terms) > 1 else x.terms[0][0]
    known = _sorted({f: e for f, e in common if f.kind == "exp"})
    scale = abs(x.terms[0][1])
    if (known or scale != 1) and not law("log of a product"):
        return real(Factor("log", (x,)))
    rest = Real.of({_quotient(p, known): c / scale for p, c in x.terms})
    result = real(0 if scale == 1 else _double(lambda: math.log(scale)))
    for f, e in known:
        result = result + f.args[0] * real(e)
    return result + (real(Factor("log", (rest,))) if rest != real(1) else real(0))


ODD = ("erf", "sin", "tan", "tanh")


def function(name: str, *args: Real) -> Real:
    known = args[0].number
    if name == "abs" and known is not None:
        return real(abs(known))
    if name in ODD and known == 0:
        return real(0)
    return real(Factor(name, args))


def extreme(kind: str, *values: Real) -> Real:
    """The maximum or minimum of some values; of what is added to all, and of reductions alike."""
    flat: dict[Real, None] = {}
    for v in values:
        own = alone(v)
        flat.update(dict.fromkeys(own.args if own is not None and own.kind == kind else (v,)))
    shared = _shared(flat) if len(flat) > 1 else real(0)
    if shared != real(0) and law("maximum moves"):
        return extreme(kind, *(v - shared for v in flat)) + shared
    scales = {v.terms[0][1] if len(v.terms) == 1 and v.terms[0][0] else None for v in flat}
    (scale,) = scales if len(scales) == 1 else (None,)
    if scale not in (None, 1) and law("maximum moves"):
        other = {"maximum": "minimum", "minimum": "maximum"}[kind] if scale < 0 else kind
        return extreme(other, *(v * real(1 / scale) for v in flat)) * real(scale)
    raised = [_exponent(v) for v in flat]
    if len(flat) > 1 and None not in raised and law("exp grows"):
        return exponential(extreme(kind, *(x for x in raised if x is not None)))
    numbers = [v.number for v in flat if v.number is not None]
    if len(numbers) > 1:
        most = max(numbers) if kind == "maximum" else min(numbers)
        flat = {v: None for v in flat if v.number is None} | {real(most): None}
    merged: dict[Any, Factor] = {}
    others = []
    for v in flat:
        own = alone(v)
        if own is None or own.kind != f"{kind} of":
            others.append(v)
            continue
        names, domain, body = own.args
        known = merged.get((names, body))
        if known is not None and not law("maximum of maxima"):
            others.append(v)
            continue
        merged[names, body] = own if known is None else Factor(
            own.kind, (names, either(known.args[1], domain), body)
        )  # fmt: skip
    found = sorted([*others, *map(real, merged.values())], key=lambda v: v.key)
    return found[0] if len(found) == 1 else real(Factor(kind, tuple(found)))


def _shared(values: Iterable[Real]) -> Real:
    """Terms that all values have; none where cases are told apart, which keep what they are."""
    first, *others = (dict(v.terms) for v in values)
    if any(map(_compared, (t for v in (first, *others) for p in v for t in p))):
        return real(0)
    return Real.of({p: c for p, c in first.items() if p and all(v.get(p) == c for v in others)})


def alone(v: Real) -> Factor | None:
    """The one factor that it is."""
    if len(v.terms) == 1 and v.terms[0][1] == 1 and len(v.terms[0][0]) == 1:
        ((f, e),) = v.terms[0][0]
        return f if e == 1 else None
    return None


# -- reductions ----------------------------------------------------------------------------------


def total(names: Sequence[str], domain: Cond, body: Real) -> Real:
    """The sum of body over all values of the names for which domain holds."""
    result = real(0)
    own = set(names)
    moves = any(c != 1 or any(not own & f.names for f, _ in p) for p, c in body.terms)
    if (len(body.terms) > 1 or moves) and not law("sums are linear"):
        return _closed("sum", names, domain, body)
    for p, c in body.terms:
        result = result + _sum_of(tuple(names), domain, p) * real(c)
    return result


def _sum_of(names: tuple[str, ...], domain: Cond, p: Product) -> Real:
    own = set(names)
    outside: dict[Factor, Fraction] = {}
    inside: dict[Factor, Fraction] = {}
    sums: list[Factor] = []
    conditions = []
    for f, e in p:
        if not own & f.names:
            outside[f] = e
        elif f.kind == "truth" and not compares(f.args[0]):
            conditions.append(f.args[0])
        elif f.kind == "sum" and e in (1, 2) and law("sum of sums"):
            sums += [f] * int(e)
        else:
            inside[f] = e
    if sums:
        body = Real(((_sorted(inside), Fraction(1)),))
        more, conditions = list(names), [domain, *conditions]
        for bound, condition, inner in map(opened, sums):
            more += bound
            conditions.append(condition)
            body = body * inner
        return Real(((_sorted(outside), Fraction(1)),)) * total(more, both(*conditions), body)
    left = []
    for c in conjuncts(both(domain, *conditions)):
        if own & c.names:
            left.append(c)
        else:
            outside[Factor("truth", (c,))] = Fraction(1)
    apart = _apart(names, left, inside)
    if len(apart) > 1 and law("sum of sums"):
        result = Real(((_sorted(outside), Fraction(1)),))
        for some, conditions, factors in apart:
            result = result * _sum_of(some, both(*conditions), _sorted(factors))
        return result
    body = Real(((_sorted(inside), Fraction(1)),))
    known = given(body, both(*left))
    if known != body:
        return Real(((_sorted(outside), Fraction(1)),)) * total(names, both(*left), known)
    made = _closed("sum", names, both(*left), body)
    return Real(((_sorted(outside), Fraction(1)),)) * made


def _apart(
    names: Sequence[str], conditions: Sequence[Cond], factors: Mapping[Factor, Fraction]
) -> list[tuple[tuple[str, ...], list[Cond], dict[Factor, Fraction]]]:
    """A sum's names, conditions and factors in parts that have no name in common."""
    parts = [{n} for n in names]
    for own in [c.names for c in conditions] + [f.names for f in factors]:
        meeting = [p for p in parts if p & own]
        parts = [p for p in parts if not p & own] + [set().union(*meeting)]
    return [
        (
            tuple(n for n in names if n in part),
            [c for c in conditions if c.names & part],
            {f: e for f, e in factors.items() if f.names & part},
        )
        for part in sorted(parts, key=min)
    ]


def opened(f: Factor) -> tuple[list[str], Cond, Real]:
    """A reduction's bound names, new, its condition and its body."""
    return _reopened(*f.args)


def renaming(names: Mapping[str, str]) -> Change:
    return {Atom("symbol", (old,)): poly(Atom("symbol", (new,))) for old, new in names.items()}


def _closed(kind: str, names: Sequence[str], domain: Cond, body: Real) -> Real:
    """The reduction with its names numbered: those of reductions inside have lower numbers."""
    level = 1 + _highest(domain, body)
    marks = tuple(f"#{level}.{n}" for n in range(len(names)))
    assert not {*marks} & ((domain.names | body.names) - {*names}), "a name would be captured"
    ways = []
    for order in permutations(names) if len(names) <= MOST_ORDERED else (tuple(names),):
        change = renaming(dict(zip(order, marks, strict=True)))
        parts = both(*sorted(conjuncts(cond_changed(domain, change)), key=str))
        ways.append((changed(body, change), parts))
    made, parts = min(ways, key=lambda w: (w[0].key, str(w[1])))
    if kind == "sum" and len(made.terms) == 1:
        ((product, c),) = made.terms
        return real(Factor(kind, (marks, parts, Real(((product, Fraction(1)),))))) * real(c)
    return real(Factor(kind, (marks, parts, made)))


def _highest(domain: Cond, body: Real) -> int:
    return max((_level(f) for f in _all_factors((domain, body))), default=0)


def _level(f: Factor) -> int:
    return int(f.args[0][0].split(".")[0][1:]) if f.kind in REDUCTIONS else 0


def _all_factors(x: Any) -> Iterator[Factor]:
    match x:
        case Real():
            for f in x.factors:
                yield from _all_factors(f)
        case Factor():
            yield x
            for a in x.args:
                yield from _all_factors(a)
        case Cond() | tuple():
            for a in x.args if isinstance(x, Cond) else x:
                yield from _all_factors(a)


def extreme_over(kind: str, names: Sequence[str], domain: Cond, body: Real) -> Real:
    """The maximum or minimum of body over all values of the names for which domain holds."""
    own = set(names)
    body = given(body, domain)
    free = {p: c for p, c in body.terms if not own & Real(((p, Fraction(1)),)).names}
    left = {p: c for p, c in body.terms if p not in free}
    if not left or any(_compared(t) for p in left for t in p):  # cases stay what they are
        return _closed(f"{kind} of", names, domain, body)
    moving = Real.of(left)
    outside = _sorted({f: e for f, e in _surely_positive(moving) if not own & f.names})
    scale = abs(moving.terms[0][1])
    if (free or outside or scale != 1) and not law("maximum moves"):
        return _closed(f"{kind} of", names, domain, body)
    inner = Real.of({_quotient(p, outside): c / scale for p, c in left.items()})
    if inner.terms[0][1] < 0 and law("maximum moves"):
        kind = "minimum" if kind == "maximum" else "maximum"
        scale, inner = -scale, -inner
    return Real.of(free) + _extreme_of(kind, names, domain, inner) * Real.of({outside: scale})


def _extreme_of(kind: str, names: Sequence[str], domain: Cond, body: Real) -> Real:
    """The maximum (minimum) of what has nothing to take out: of another one, or of an exp."""
    nested, raised = within(kind, body), _exponent(body)
    if nested is not None and law("maximum of maxima"):
        more, condition, inner = nested
        return extreme_over(kind, [*names, *more], both(domain, condition), inner)
    if raised is not None and law("exp grows"):
        return exponential(extreme_over(kind, names, domain, raised))
    return _closed(f"{kind} of", names, domain, body)


def _compared(power: tuple[Factor, Fraction]) -> bool:
    return power[0].kind == "truth" and compares(power[0].args[0])


def within(kind: str, x: Real) -> tuple[list[str], Cond, Real] | None:
    """The maximum (minimum) over some names as which a sum with one in it can be written."""
    other = {"maximum": "minimum", "minimum": "maximum"}[kind]
    for p, c in x.terms:
        f, e = p[0] if len(p) == 1 else (None, 0)
        if f is not None and e == 1 and f.kind == f"{kind if c > 0 else other} of":
            names, domain, body = opened(f)
            return names, domain, x + (body - real(f)) * real(c)
    return None


def product_over(names: Sequence[str], domain: Cond, body: Real) -> Real:
    return _closed("prod", names, domain, body)


# -- replacing -----------------------------------------------------------------------------------

States = Callable[[Factor], Real | None]


def changed(x: Real, change: Change, states: States | None = None) -> Real:
    """The value with atoms of index arithmetic replaced, and factors where `states` says so."""
    memo: dict[Factor, Real] = {}
    moving = {a.key for a in change}
    incoming = names_of(tuple(change.values()))

    def of_cond(c: Cond) -> Cond:
        if states is None and not moving & c.names:
            return c
        match c.op:
            case "positive":
                return positive(of(c.args[0]))
            case "zero":
                return zero(of(c.args[0]))
            case "and":
                return both(*map(of_cond, c.args))
            case "or":
                return either(*map(of_cond, c.args))
            case "not":
                return negation(of_cond(c.args[0]))
        return replaced(c, change)  # type: ignore[no-any-return]

    def of_factor(f: Factor) -> Real:
        if states is not None and (new := states(f)) is not None:
            return new
        if states is None and not moving & f.names:
            return real(f)
        match f.kind:
            case "load" | "state":
                return real(Factor(f.kind, (f.args[0], replaced(f.args[1], change))))
            case "integer":
                return real(replaced(f.args[0], change))
            case "truth":
                return truth(of_cond(f.args[0]))
            case "exp":
                return exponential(of(f.args[0]))
            case "log":
                return logarithm(of(f.args[0]))
            case "maximum" | "minimum":
                return extreme(f.kind, *map(of, f.args))
            case "sum" | "prod" | "maximum of" | "minimum of":
                names, domain, body = f.args
                if states is not None or incoming & {*names}:  # what comes in may be captured
                    names, domain, body = opened(f)
                    return over(f.kind, names, of_cond(domain), of(body))
                domain, body = of_cond(domain), of(body)
                if _highest(domain, body) < _level(f):
                    return over(f.kind, names, domain, body)
                return over(f.kind, *_reopened(names, domain, body))
        return function(f.kind, *map(of, f.args))

    def of(x: Real) -> Real:
        result = real(0)
        for p, c in x.terms:
            term = real(c)
            for f, e in p:
                if f.kind == "power":
                    same = states is None and not moving & f.names
                    term = term * (_base(f.args[0], e) if same else power(of(f.args[0]), e))
                    continue
                if f not in memo:
                    memo[f] = of_factor(f)
                new = memo[f]
                term = term * (new if e == 1 else power(new, e))
            result = result + term
        return result

    return of(x)


def _reopened(names: Sequence[str], domain: Cond, body: Real) -> tuple[list[str], Cond, Real]:
    new = [f"n!{next(_fresh)}" for _ in names]
    change = renaming(dict(zip(names, new, strict=True)))
    return new, cond_changed(domain, change), changed(body, change)


def cond_changed(c: Cond, change: Change) -> Cond:
    """A condition, comparisons of values included, with atoms of index arithmetic replaced."""
    if not c.names & {a.key for a in change}:
        return c
    if not compares(c):
        return replaced(c, change)  # type: ignore[no-any-return]
    match c.op:
        case "and":
            return both(*(cond_changed(a, change) for a in c.args))
        case "or":
            return either(*(cond_changed(a, change) for a in c.args))
        case "not":
            return negation(cond_changed(c.args[0], change))
        case "positive":
            return positive(changed(c.args[0], change))
    return zero(changed(c.args[0], change))


def over(kind: str, names: Sequence[str], domain: Cond, body: Real) -> Real:
    match kind:
        case "sum":
            return total(names, domain, body)
        case "prod":
            return product_over(names, domain, body)
    return extreme_over(kind.removesuffix(" of"), names, domain, body)


def by_comparison(x: Real) -> Iterator[tuple[Cond, Real, Real]]:
    """Comparisons of values by which a sum is one or another: what it is where each holds, or not;
    and the same of their contraries.
    """
    found = {f.args[0] for f in x.factors if f.kind == "truth"}
    for c in sorted(filter(compares, found), key=str):
        one, two = given(x, c), given(x, negation(c))
        yield c, one, two
        yield negation(c), two, one


def factors_in(xs: Iterable[Real]) -> Iterator[Factor]:
    """All factors, those inside others included."""
    for x in xs:
        yield from _all_factors(x)
