"""Index arithmetic: polynomials over axes, extents and quasi-affine atoms, in one canonical form.

A polynomial is a map from monomials (sorted tuples of atoms) to integer coefficients. Atoms are
axes, symbols, gathered values, and `a // b`, `a % b` that could not be simplified. Bounds are
polynomials in the symbols alone, so `(i*N + j) // N -> i` is found for symbolic N.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import gcd

from superopt.mugraph.expr import _INDEX, FALSE, TRUE, Expr, index, make, op, toposort

Poly = dict[tuple[Expr, ...], int]


@cache
def _poly_items(e: Expr) -> tuple[tuple[tuple[Expr, ...], int], ...]:
    if e.op == "const":
        return (((), e.attr),) if e.attr else ()
    if e.op == "add" and e.dtype == "index":
        return tuple(_sum(poly(e.args[0]), poly(e.args[1])).items())
    if e.op == "mul" and e.dtype == "index":
        return tuple(_product(poly(e.args[0]), poly(e.args[1])).items())
    return (((e,), 1),)


def poly(e: Expr) -> Poly:
    return dict(_poly_items(e))


def _sum(a: Poly, b: Poly, scale: int = 1) -> Poly:
    out = dict(a)
    for monomial, c in b.items():
        out[monomial] = out.get(monomial, 0) + scale * c
        if not out[monomial]:
            del out[monomial]
    return out


def _product(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for m1, c1 in a.items():
        for m2, c2 in b.items():
            m = tuple(sorted(m1 + m2))
            out[m] = out.get(m, 0) + c1 * c2
    return {m: c for m, c in out.items() if c}


def _join(p: Poly) -> Poly:
    """c*d*(e // d) + c*(e % d) -> c*e; of e = f // a its quotient is f // (a*d).

    And c*d*(e // d % b) + c*(e % d) -> c*(e % (b*d)).
    """
    for m, c in p.items():
        if len(m) != 1 or m[0].op != "mod":
            continue
        whole, divisor = m[0].args
        quotient = floordiv(whole, divisor)
        for d_m, d_c in poly(divisor).items():
            target = tuple(sorted((*d_m, quotient)))
            if len(poly(divisor)) == 1 and p.get(target) == c * d_c:
                rest = {k: v for k, v in p.items() if k not in (m, target)}
                return _join(_sum(rest, poly(whole), c))
        for high, h_c in p.items() if divisor.op == "const" else ():
            digit = len(high) == 1 and high[0].op == "mod" and high[0].args[0] is quotient
            if digit and h_c == c * divisor.attr:
                rest = {k: v for k, v in p.items() if k not in (m, high)}
                joined = mod(whole, mul(divisor, high[0].args[1]))
                return _join(_sum(rest, poly(joined), c))
    return p


def from_poly(p: Poly) -> Expr:
    """The canonical expression of a polynomial: a left-leaning sum of scaled products."""
    total: Expr | None = None
    constant = p.get((), 0)
    for m, c in sorted(_join(p).items(), key=lambda item: [(a.size, a.digest) for a in item[0]]):
        if not m:
            constant = c
            continue
        term = m[0]
        for atom in m[1:]:
            term = make("mul", (term, atom), None, "index")
        if c != 1:
            term = make("mul", (term, index(c)), None, "index")
        total = term if total is None else make("add", (total, term), None, "index")
    if () not in _join(p):
        constant = 0
    if total is None:
        return index(constant)
    return make("add", (total, index(constant)), None, "index") if constant else total


def add(a: Expr, b: Expr) -> Expr:
    return from_poly(_sum(poly(a), poly(b)))


def sub(a: Expr, b: Expr) -> Expr:
    return from_poly(_sum(poly(a), poly(b), -1))


def mul(a: Expr, b: Expr) -> Expr:
    return from_poly(_product(poly(a), poly(b)))


def _extreme(e: Expr, upper: bool) -> Poly | None:
    """A polynomial in sizes that bounds e from above (or below); None where unknown."""
    total: Poly = {}
    for m, c in poly(e).items():
        term: Poly = {(): c}
        want_upper = upper == (c > 0)
        for atom in m:
            bound = _atom_extreme(atom, want_upper)
            if bound is None or (len(m) > 1 and not nonnegative(_atom_extreme(atom, False))):
                return None  # products of atoms of unknown sign are not bounded here
            term = _product(term, bound)
        total = _sum(total, term)
    return total


@cache
def _is_size(e: Expr) -> bool:
    """Whether e depends on symbols alone: no axes, no values from memory."""
    return all(n.op in ("const", "sym", "add", "mul", "floordiv", "mod") for n in toposort(e))


@cache
def _atom_bound(atom: Expr, upper: bool) -> tuple[tuple[tuple[Expr, ...], int], ...] | None:
    if _is_size(atom):
        return (((atom,), 1),)
    if atom.op == "axis":
        high = _sum(poly(atom.attr.extent), {(): -1})
        return tuple(high.items()) if upper else ()
    if atom.op == "mod" and _is_size(atom.args[1]):
        high = _sum(poly(atom.args[1]), {(): -1})
        return tuple(high.items()) if upper else ()
    if atom.op == "floordiv":
        inner = _extreme(atom.args[0], upper)
        if inner is None:
            return None
        quotient = floordiv(from_poly(inner), atom.args[1])
        return _poly_items(quotient) if _is_size(quotient) else None
    if atom.op == "cast" and atom.args[0].op == "load" and atom.args[0].attr.bounds is not None:
        return _loaded_bound(atom.args[0], upper)
    return None


def _loaded_bound(e: Expr, upper: bool) -> tuple[tuple[tuple[Expr, ...], int], ...] | None:
    low, high_excluded = e.attr.bounds
    bound = _sum(poly(high_excluded), {(): -1}) if upper else poly(low)
    if e.args[-1] is TRUE:
        return tuple(bound.items())
    zero_inside = nonnegative(bound if upper else _sum({}, bound, -1))
    if zero_inside:  # a load whose guard is false is zero
        return tuple(bound.items())
    return () if not upper and nonnegative(bound) else None


def _atom_extreme(atom: Expr, upper: bool) -> Poly | None:
    items = _atom_bound(atom, upper)
    return None if items is None else dict(items)


@cache
def _interval(size: Expr) -> tuple[int, int]:
    """The least and the largest value of a size over the ranges of its symbols, or beyond them."""
    low = high = 0
    for m, c in poly(size).items():
        ends = [c, c]
        for atom in m:
            ends = [a * b for a in ends for b in _atom_interval(atom)]
        low, high = low + min(ends), high + max(ends)
    return low, high


def _atom_interval(atom: Expr) -> tuple[int, int]:
    if atom.op == "sym":
        return atom.attr.low, atom.attr.high
    whole, divisor = _interval(atom.args[0]), _interval(atom.args[1])
    if atom.op == "mod":
        return 0, max(divisor[1] - 1, 0)
    ends = [a // max(b, 1) for a in whole for b in divisor]
    return min(ends), max(ends)


def nonnegative(p: Poly | None) -> bool:
    """Whether p, over sizes, is >= 0 for all symbols in range.

    Each size is its least value + t, t >= 0: signs decide. Else the ends of the ranges do.
    """
    if p is None:
        return False
    shifted: Poly = {}
    for m, c in p.items():
        term: Poly = {(): c}
        for atom in m:
            term = _product(term, _sum({(atom,): 1}, {(): _interval(atom)[0]}))
        shifted = _sum(shifted, term)
    return all(c >= 0 for c in shifted.values()) or _interval(from_poly(p))[0] >= 0


def at_least_zero(e: Expr) -> bool:
    return nonnegative(_extreme(e, upper=False))


def less(a: Expr, b: Expr) -> bool | None:
    """True or False where a < b is decided for every index in range, None where it depends."""
    difference = sub(b, a)
    if at_least_zero(sub(difference, index(1))):
        return True
    if at_least_zero(sub(index(0), difference)):
        return False
    return None


def _divide_terms(p: Poly, d: Poly) -> tuple[Poly, Poly]:
    """p = d * quotient + rest, term by term; d is one monomial, or p is a multiple of d."""
    if len(d) != 1:
        if p and (q := _exact(p, d)) is not None:
            return q, {}
        return {}, p
    (d_m, d_c), *_ = d.items()
    quotient: Poly = {}
    rest: Poly = {}
    for m, c in p.items():
        left = list(m)
        for atom in d_m:
            if atom in left:
                left.remove(atom)
            else:
                rest[m] = c
                break
        else:
            whole, remainder = divmod(c, d_c)
            if whole:
                quotient[tuple(left)] = whole
            if remainder:
                rest[m] = remainder
    return quotient, rest


def _exact(p: Poly, d: Poly) -> Poly | None:
    """p / d where p is c * d for an integer c."""
    m, c = next(iter(d.items()))
    factor, remainder = divmod(p.get(m, 0), c)
    return {(): factor} if not remainder and p == {k: v * factor for k, v in d.items()} else None


def _in_range(rest: Poly, d: Expr) -> bool:
    e = from_poly(rest)
    return at_least_zero(e) and less(e, d) is True


def _coarser(p: Poly, d: int) -> tuple[Poly, Poly, int] | None:
    """p = g*high + low with 0 <= low < g and g dividing d, for the largest such g > 1."""
    for g in sorted({gcd(c, d) for c in p.values()} - {1, 0}, reverse=True):
        high = {m: c // g for m, c in p.items() if c % g == 0}
        low = {m: c for m, c in p.items() if c % g}
        if () in low:
            whole, low[()] = divmod(low[()], g)
            high = _sum(high, {(): whole} if whole else {})
            if not low[()]:
                del low[()]
        if _in_range(low, index(g)):
            return high, low, g
    return None


def _floor(p: Poly, d: Expr) -> Poly | None:
    """floor(rest / d) where it is one constant: rest in [0, d) -> 0, in [-d, 0) -> -1."""
    if not p or _in_range(p, d):
        return {}
    if _in_range(_sum(p, poly(d)), d):
        return {(): -1}
    return None


@cache
def floordiv(a: Expr, d: Expr) -> Expr:
    """a // d, rounding down; d is positive.

    >>> floordiv(i * 64 + j, 128), 0 <= j < 64        # i // 2
    """
    if d.op == "const" and d.attr == 1:
        return a
    quotient, rest = _divide_terms(poly(a), poly(d))
    small = _floor(rest, d)
    if small is not None:
        return from_poly(_sum(quotient, small))
    if d.op == "const" and (coarse := _coarser(rest, d.attr)) and coarse[2] > 1:
        high, _, g = coarse
        inner = from_poly(high) if g == d.attr else floordiv(from_poly(high), index(d.attr // g))
        return add(from_poly(quotient), inner)
    core = from_poly(rest)
    if core.op == "floordiv":  # (x // a) // b -> x // (a*b)
        return add(from_poly(quotient), floordiv(core.args[0], mul(core.args[1], d)))
    atom = make("floordiv", (core, d), None, "index")
    return from_poly(_sum(quotient, {(atom,): 1}))


@cache
def mod(a: Expr, d: Expr) -> Expr:
    """a % d with the sign of d, which is positive."""
    quotient = floordiv(a, d)
    if not any(atom.op == "floordiv" for m in poly(quotient) for atom in m):
        return sub(a, mul(quotient, d))
    _, rest = _divide_terms(poly(a), poly(d))
    if not rest:
        return index(0)
    if d.op == "const" and (coarse := _coarser(rest, d.attr)) and coarse[2] < d.attr:
        high, low, g = coarse
        return from_poly(_sum(low, poly(mod(from_poly(high), index(d.attr // g))), g))
    return make("mod", (from_poly(rest), d), None, "index")


def _equal(a: Expr, b: Expr) -> bool | None:
    return True if a is b else False if less(a, b) or less(b, a) else None


def _negated(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


_COMPARE: dict[str, Callable[[Expr, Expr], bool | None]] = {
    "lt": less,
    "le": lambda a, b: _negated(less(b, a)),
    "gt": lambda a, b: less(b, a),
    "ge": lambda a, b: _negated(less(a, b)),
    "eq": _equal,
    "ne": lambda a, b: _negated(_equal(a, b)),
}


def _decided(name: str) -> Callable[[Expr, Expr], Expr]:
    def compare(a: Expr, b: Expr) -> Expr:
        known = _COMPARE[name](a, b)
        if known is not None:
            return TRUE if known else FALSE
        return make(name, (a, b), None, "bool")

    return compare


def neg(a: Expr) -> Expr:
    return sub(index(0), a)


_INDEX.update(add=add, sub=sub, mul=mul, floordiv=floordiv, mod=mod, neg=neg)
_INDEX.update({name: _decided(name) for name in _COMPARE})


def divides(d: int, e: Expr) -> bool:
    """Whether the integer d divides the extent e for all values of its symbols."""
    return all(c % d == 0 for c in poly(e).values())


def value(e: Expr, sizes: dict[str, int]) -> int:
    """An extent's value where the symbols have the given sizes."""
    total = 0
    for m, c in poly(e).items():
        for atom in m:
            if atom.op == "sym":
                c *= sizes[atom.attr.name]
            elif atom.op == "floordiv":
                c *= value(atom.args[0], sizes) // value(atom.args[1], sizes)
            elif atom.op == "mod":
                c *= value(atom.args[0], sizes) % value(atom.args[1], sizes)
            else:
                raise ValueError(f"not an extent: {e}")
        total += c
    return total


def conjunction(*conditions: Expr) -> Expr:
    result = TRUE
    for c in conditions:
        result = op("and", result, c)
    return result
