"""Values: reals, with the infinities of masks; and those of a spec's expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product as pairs
from typing import Any

from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import Axis, Expr
from superopt.mugraph.index import at_least_zero
from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    between,
    both,
    conjuncts,
    either,
    eq,
    extreme_of,
    le,
    lt,
    negation,
    poly,
    product,
    symbol,
)
from superopt.verify.laws import law
from superopt.verify.reals import (
    NEARLY,
    Change,
    Factor,
    Real,
    States,
    alone,
    by_comparison,
    changed,
    compares,
    cond_changed,
    exponential,
    extreme,
    extreme_over,
    function,
    given,
    logarithm,
    opened,
    positive,
    power,
    product_over,
    real,
    total,
    truth,
    zero,
)
from superopt.verify.ttir import Unreadable


@dataclass(frozen=True)
class Value:
    """-inf where `below` holds, +inf where `above` does, else the real; None is NaN everywhere."""

    real: Real | None
    below: Cond = FALSE
    above: Cond = FALSE

    @property
    def finite(self) -> Real:
        if self.real is None or self.below != FALSE or self.above != FALSE:
            raise Unreadable("an infinity or NaN where a number is needed")
        return self.real

    def changed(self, change: Change, states: States | None = None) -> Value:
        if self.real is None:
            return self
        bounds = (cond_changed(c, change) for c in (self.below, self.above))
        return Value(changed(self.real, change, states), *bounds)


NAN = Value(None)
ANYTHING = Value(None, TRUE, TRUE)  # not followed: it may stand where a condition leaves it out
LOWEST, HIGHEST = Value(real(0), below=TRUE), Value(real(0), above=TRUE)


def undefined(a: Value, b: Value) -> Value:
    """NaN, or what is not followed, of two of which one is."""
    return ANYTHING if ANYTHING in (a, b) else NAN


def is_nan(a: Value) -> bool:
    if a == ANYTHING:
        raise Unreadable("an infinity is scaled by what is no constant")
    return a.real is None


def number(x: float) -> Value:
    if x != x:
        return NAN
    return LOWEST if x == float("-inf") else HIGHEST if x == float("inf") else Value(real(x))


def add(a: Value, b: Value) -> Value:
    if a.real is None or b.real is None:
        return undefined(a, b)
    below, above = either(a.below, b.below), either(a.above, b.above)
    if below == above == TRUE:
        return NAN
    if below != FALSE and above != FALSE:
        raise Unreadable("infinities of both signs are added")
    infinite = TRUE in (below, above)
    return Value(real(0) if infinite else a.real + b.real, below, above)


def negative(a: Value) -> Value:
    return a if a.real is None else Value(-a.real, a.above, a.below)


def multiply(a: Value, b: Value) -> Value:
    if a.real is None or b.real is None:
        return undefined(a, b)
    if a.below == a.above == b.below == b.above == FALSE:
        return Value(a.real * b.real)
    if b.below != FALSE or b.above != FALSE:
        a, b = b, a
    assert a.real is not None
    scale = b.finite.number
    if scale is None:
        return ANYTHING
    if scale == 0:
        if TRUE in (a.below, a.above):
            return NAN
        raise Unreadable("an infinity is multiplied by 0")
    result = Value(a.real * real(scale), a.below, a.above)
    return result if scale > 0 else Value(result.real, result.above, result.below)


def divide(a: Value, b: Value) -> Value:
    if a.real is None or b.real is None:
        return undefined(a, b)
    if b.below == b.above == FALSE and b.real.number == 0:
        known = a.finite.number
        if known is None:
            raise Unreadable("a division by 0")
        return NAN if known == 0 else HIGHEST if known > 0 else LOWEST
    return multiply(a, raised(b, Fraction(-1)))


def raised(a: Value, e: Fraction) -> Value:
    if a.real is None:
        return a
    if e < 0 and TRUE in (a.below, a.above):
        return Value(real(0))
    try:
        return Value(power(a.finite, e))
    except ZeroDivisionError:
        raise Unreadable("a division by 0") from None


def exp(a: Value) -> Value:
    if a.real is None:
        return a
    if a.above != FALSE:
        raise Unreadable("exp of infinity")
    kept = negation(a.below)
    return Value(truth(kept) * exponential(given(a.real, kept)))


def log(a: Value) -> Value:
    if a.real is None:
        return a
    if a.finite.number == 0:
        return LOWEST
    return Value(logarithm(a.finite))


def select(c: Cond, a: Value, b: Value) -> Value:
    if c in (TRUE, FALSE) or a == b:
        return a if c == TRUE or a == b else b
    if a.real is None or b.real is None:
        raise Unreadable("NaN is chosen by a condition")
    other = negation(c)
    below, above = _either(c, a.below, b.below), _either(c, a.above, b.above)
    one = real(0) if TRUE in (a.below, a.above) else given(a.real, c)
    two = real(0) if TRUE in (b.below, b.above) else given(b.real, other)
    if below != FALSE and one == real(0) and TRUE in (a.below, a.above):
        return Value(two, below, above)  # what stands where it is infinite does not matter
    if below != FALSE and two == real(0) and TRUE in (b.below, b.above):
        return Value(one, below, above)
    return Value(truth(c) * one + truth(other) * two, below, above)


def _either(c: Cond, one: Cond, two: Cond) -> Cond:
    """`one` where c holds, else `two`."""
    if one == TRUE or two == TRUE:
        return either(c, two) if one == TRUE else either(one, negation(c))
    return either(both(c, one), both(negation(c), two))


def largest(kind: str, a: Value, b: Value) -> Value:
    """The maximum or minimum of two."""
    if a.real is None or b.real is None:
        return undefined(a, b)
    up = kind == "maximum"
    if either(a.above, b.above) != FALSE if up else either(a.below, b.below) != FALSE:
        raise Unreadable(f"a {kind} with infinity")
    first, second = (a.below, b.below) if up else (a.above, b.above)  # where it is the other
    if TRUE in (first, second):
        return b if first == TRUE else a
    found = Value(extreme(kind, a.real, b.real))
    if second != FALSE:
        found = select(second, Value(a.real), found)
    if first != FALSE:
        found = select(first, Value(b.real), found)
    nothing = both(first, second)
    return Value(found.real, nothing) if up else Value(found.real, above=nothing)


def compare(name: str, a: Value, b: Value) -> Cond:
    """lt, le, eq of two values; of NaN: false."""
    if is_nan(a) or is_nan(b):
        return FALSE
    assert a.real is not None
    assert b.real is not None
    if name == "le":
        return negation(compare("lt", b, a))
    if name == "eq":
        if a == b:
            return TRUE
        for one, two in ((a, b), (b, a)):
            if TRUE in (two.below, two.above):
                return one.below if two.below == TRUE else one.above
        return zero(a.finite - b.finite)
    if b.below == TRUE or a.above == TRUE:
        return FALSE
    if b.above == TRUE or a.below == TRUE:
        return negation(a.above if b.above == TRUE else b.below)
    if b.below == b.above == a.above == FALSE:
        return either(a.below, positive(b.real - a.real))
    return positive(b.finite - a.finite)


REDUCE = {"sum": total, "prod": product_over}


def reduce_over(kind: str, names: Sequence[str], domain: Cond, a: Value) -> Value:
    """sum, prod, maximum or minimum over all values of the names for which the condition holds."""
    if a.real is None:
        raise Unreadable("NaN is reduced")
    if kind in REDUCE:
        return Value(REDUCE[kind](names, domain, a.finite))
    up = kind == "maximum"
    if (a.above if up else a.below) != FALSE:
        raise Unreadable(f"a {kind} of infinities")
    left_out = a.below if up else a.above
    if left_out == TRUE:
        return LOWEST if up else HIGHEST
    own, kept = set(names), conjuncts(negation(left_out))
    outside = negation(both(*(c for c in kept if not own & c.names)))
    found = extreme_over(kind, names, both(domain, *(c for c in kept if own & c.names)), a.real)
    return Value(found, outside) if up else Value(found, above=outside)


# -- a spec --------------------------------------------------------------------------------------

UNARY = {
    "square": Fraction(2), "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2),
}  # fmt: skip
SIMPLE = 1024  # the largest denominator of a simple fraction
LN2, LN10 = Fraction(0.6931471805599453), Fraction(2.302585092994046)


def scaled(a: Value, c: Fraction | float | int) -> Value:
    return multiply(a, Value(real(c)))


def _simple(a: Value) -> Value:
    """The value with coefficients that are a simple fraction, but for a rounding, as that."""
    if a.real is None:
        return a
    terms = {}
    for p, c in a.real.terms:
        near = c.limit_denominator(SIMPLE)
        terms[p] = near if abs(c - near) <= NEARLY * abs(c) else c
    return replace(a, real=Real.of(terms))


def apply(name: str, *args: Value) -> Value:
    """A row of the operator table on values."""
    match name, args:
        case "add", (a, b):
            return add(a, b)
        case "sub", (a, b):
            return add(a, negative(b))
        case "mul", (a, b):
            return multiply(a, b)
        case "div", (a, b):
            return divide(a, b)
        case "neg", (a,):
            return negative(a)
        case (("square" | "sqrt" | "rsqrt"), (a,)):
            return raised(a, UNARY[name])
        case (("maximum" | "minimum"), (a, b)):
            return largest(name, a, b)
        case "abs", (a,):
            if a.real is None:
                return a
            return Value(function("abs", a.real), above=either(a.below, a.above))
        case "exp", (a,):
            return exp(a)
        case "exp2", (a,):
            return exp(_simple(scaled(a, LN2)))
        case "expm1", (a,):
            return add(exp(a), number(-1))
        case "log", (a,):
            return log(a)
        case "log2", (a,):
            return scaled(log(a), 1 / LN2)
        case "log10", (a,):
            return scaled(log(a), 1 / LN10)
        case "log1p", (a,):
            return log(add(a, number(1)))
        case "sigmoid", (a,):
            return divide(number(1), add(number(1), exp(negative(a))))
        case "erfc", (a,):
            return add(number(1), negative(apply("erf", a)))
        case "tan", (a,):
            return divide(apply("sin", a), apply("cos", a))
        case "pow", (a, b) if b.real is not None and b.finite.number is not None:
            e = b.finite.number
            if e.denominator in (1, 2):
                return raised(a, e)
    return Value(function(name, *(a.finite for a in args)))


class Spec:
    """A program's expressions as values; inputs are loaded by name, axes are symbols of theirs."""

    def __init__(self) -> None:
        self.values: dict[Expr, Any] = {}
        self.bound: dict[Axis, str] = {}
        self.stored: dict[str, tuple[tuple[str, ...], Value]] = {}

    def value(self, e: Expr) -> Value:
        found = self.of(e)
        if isinstance(found, Poly):
            return Value(real(found))
        return Value(truth(found)) if isinstance(found, Cond) else found

    def poly(self, e: Expr) -> Poly:
        found = self.of(e)
        if not isinstance(found, Poly):
            raise Unreadable(f"an index that is no integer expression: {e}")
        return found

    def cond(self, e: Expr) -> Cond:
        found = self.of(e)
        if isinstance(found, Cond):
            return found
        if isinstance(found, Poly):
            return negation(eq(found, 0))
        return negation(zero(found.finite))

    def of(self, e: Expr) -> Value | Poly | Cond:
        found: Value | Poly | Cond | None = self.values.get(e)
        if found is None:
            found = self.values[e] = self._of(e)
        return found

    def _of(self, e: Expr) -> Value | Poly | Cond:
        match e.op:
            case "const":
                if e.dtype == "bool":
                    return TRUE if e.attr else FALSE
                return number(e.attr) if is_float(e.dtype) else poly(int(e.attr))
            case "sym":
                return symbol(e.attr.name)
            case "axis":
                return symbol(axis_name(e.attr))
            case "load":
                return self._load(e)
            case "reduce":
                return self._reduce(e)
            case "cast":
                return self._cast(e)
            case "where":
                return self._where(e)
            case "lt" | "le" | "gt" | "ge" | "eq" | "ne":
                return self._compare(e)
            case "and" | "or" | "not" | "xor" if e.dtype == "bool":
                return logic(e.op, *map(self.cond, e.args))
            case "isnan":
                return TRUE if is_nan(self.value(e.args[0])) else FALSE
            case "isinf":
                a = self.value(e.args[0])
                return FALSE if is_nan(a) else either(a.below, a.above)
        own = [self.of(a) for a in e.args]
        if all(isinstance(a, Poly) for a in own) and not is_float(e.dtype):
            whole = e.args[0]
            sure = whole.dtype == "index" and at_least_zero(whole)
            divisor = e.args[-1]  # of an index: positive
            known = divisor.op == "const" or divisor.dtype == "index"
            divides = e.op in ("floordiv", "mod")
            found = integer(e.op, *own, sure=sure) if known or not divides else None
            if found is not None:
                return found
        return apply(e.op, *map(self.value, e.args))

    def _load(self, e: Expr) -> Value | Poly | Cond:
        guard = self.cond(e.args[-1])
        reached = _reached(e.attr.name, list(map(self.of, e.args[:-1]))) if guard == TRUE else None
        if reached is not None and e.attr.name not in self.stored:
            return Value(reached)
        at = tuple(map(self.poly, e.args[:-1]))
        if e.attr.name in self.stored:
            names, value = self.stored[e.attr.name]
            found = value.changed(dict(zip(map(_symbol, names), at, strict=True)))
            return select(guard, found, number(0))
        if is_float(e.dtype):
            return select(guard, Value(real(Factor("load", (e.attr.name, at)))), number(0))
        read = poly(Atom("loaded", (e.attr.name, at)))
        if e.dtype == "bool":
            return both(guard, negation(eq(read, 0)))
        if guard == TRUE:
            return read
        return poly(Atom("choice", (guard, read, poly(0))))

    def _reduce(self, e: Expr) -> Value:
        names = [axis_name(a) for a in e.attr.axes]
        domain = both(
            *(
                between(0, symbol(n), self.poly(a.extent))
                for n, a in zip(names, e.attr.axes, strict=True)
            )
        )
        kind = {"max": "maximum", "min": "minimum"}.get(e.attr.monoid, e.attr.monoid)
        return reduce_over(kind, names, domain, self.value(e.args[0]))

    def _cast(self, e: Expr) -> Value | Poly | Cond:
        own = self.of(e.args[0])
        if e.dtype == "bool":
            return self.cond(e.args[0])
        if is_float(e.dtype) or (isinstance(own, Poly) and e.dtype in ("index", "i64", "i32")):
            return own if isinstance(own, Poly | Value) else Value(truth(own))
        if isinstance(own, Cond):
            return Value(truth(own))
        before, after = DTYPES[e.args[0].dtype], DTYPES[e.dtype]
        if before.kind == after.kind == "int" and before.bytes < after.bytes:
            return self.value(e.args[0])
        return apply("trunc", self.value(e.args[0]))

    def _where(self, e: Expr) -> Value | Poly | Cond:
        c = self.cond(e.args[0])
        one, two = map(self.of, e.args[1:])
        if e.dtype == "bool":
            return either(both(c, self.cond(e.args[1])), both(negation(c), self.cond(e.args[2])))
        if isinstance(one, Poly) and isinstance(two, Poly) and not compares(c):
            return one if c == TRUE else two if c == FALSE else poly(Atom("choice", (c, one, two)))
        return select(c, self.value(e.args[1]), self.value(e.args[2]))

    def _compare(self, e: Expr) -> Cond:
        one, two = map(self.of, e.args)
        name = e.op
        if name in ("gt", "ge"):
            one, two, name = two, one, {"gt": "lt", "ge": "le"}[name]
        if isinstance(one, Poly) and isinstance(two, Poly):
            if name in ("eq", "ne"):
                return eq(one, two) if name == "eq" else negation(eq(one, two))
            return lt(one, two) if name == "lt" else le(one, two)
        a, b = (Value(real(x)) if isinstance(x, Poly) else x for x in (one, two))
        if isinstance(a, Cond) or isinstance(b, Cond):
            a, b = (Value(truth(x)) if isinstance(x, Cond) else x for x in (a, b))
        return negation(compare("eq", a, b)) if name == "ne" else compare(name, a, b)


def _reached(tensor: str, at: Sequence[Value | Poly | Cond]) -> Real | None:
    """max[n] x[n] for x[k], where k is the least at which x[k] is that; likewise of a minimum.

    k: min[n < N](n where x[n] = max[n < N] x[n], else N). None where the indices are none such.
    """
    found = [(d, i.finite) for d, i in enumerate(at) if isinstance(i, Value)]
    if len(found) != 1 or any(isinstance(i, Cond) for i in at):
        return None
    ((d, value),) = found
    index = alone(value)
    if index is not None and index.kind == "trunc":  # to an integer, which it is
        index = alone(index.args[0])
    if index is None or index.kind != "minimum of" or len(index.args[0]) > 1:
        return None
    (n,), domain, body = opened(index)
    x = real(Factor("load", (tensor, (*at[:d], symbol(n), *at[d + 1 :]))))
    limits = [real(c.args[1]) for c in conjuncts(domain) if c.op == "lt" and c.args[0] == symbol(n)]
    for (c, one, other), kind in pairs(by_comparison(body), ("maximum", "minimum")):
        most = extreme_over(kind, [n], domain, x)
        own = one == real(symbol(n)) and other in limits and c == zero(x - most)
        if own and law("where it is reached"):
            return most
    return None


def logic(name: str, *cs: Cond) -> Cond:
    match name:
        case "and":
            return both(*cs)
        case "or":
            return either(*cs)
        case "not":
            return negation(cs[0])
    one, two = cs
    return either(both(one, negation(two)), both(negation(one), two))


def integer(name: str, *args: Any, sure: bool) -> Poly | None:
    """A row on integers. `sure`: the first operand is not negative; divisors are positive."""
    match name, args:
        case "add", (a, b):
            return poly(a + b)
        case "sub", (a, b):
            return poly(a - b)
        case "mul", (a, b):
            return product((a, b))
        case "neg", (a,):
            return poly(-a)
        case (("floordiv" | "mod"), (a, b)):
            if b.number is not None and b.number <= 0:
                return None
            quotient, rest = (poly(Atom(kind, (a, b))) for kind in ("quotient", "remainder"))
            if a.number is not None and b.number:
                quotient, rest = map(poly, divmod(a.number, b.number))
            elif not sure:  # rounded down, where C rounds to 0
                down = poly(Atom("choice", (lt(rest, 0), poly(1), poly(0))))
                quotient, rest = quotient - down, rest + down * b
            return quotient if name == "floordiv" else rest
        case (("maximum" | "minimum"), (a, b)):
            return extreme_of(name, a, b)
        case "abs", (a,):
            return extreme_of("maximum", a, -a)
    return None


def axis_name(a: Axis) -> str:
    return f"axis {a.name}"


def _symbol(name: str) -> Atom:
    return Atom("symbol", (name,))


def spec_values(stores: Sequence[Any]) -> Mapping[str, tuple[tuple[str, ...], Value]]:
    """Each stored tensor's value, with the names of its indices."""
    spec = Spec()
    for s in stores:
        names = tuple(f"{s.tensor.name}[{d}]" for d in range(len(s.indices)))
        change: dict[Atom, Poly] = {}
        for name, i in zip(names, s.indices, strict=True):
            if i.op == "axis":
                change[_symbol(axis_name(i.attr))] = symbol(name)
            elif i.op != "const":
                raise Unreadable("a spec's store with computed indices")
        spec.stored[s.tensor.name] = (names, spec.value(s.value).changed(change))
    return spec.stored
