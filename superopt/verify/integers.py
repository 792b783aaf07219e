"""Integers of a kernel as polynomials over atoms, and conditions on them.

    block * 64 + lane0            a polynomial: sums of products of atoms, with integer coefficients
    (S + 63) / 64                 an atom: a quotient that no law of division removed

Arithmetic is that of the integers; where the machine's differs (32 bits), whoever builds a
polynomial asks for a proof that it does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Monomial = tuple["Atom", ...]  # sorted; () is the constant's


@dataclass(frozen=True)
class Atom:
    """An integer that is no sum or product. `kind` says which:

    symbol: a name (extents, strides, programs, turns of loops). lane: a position in a tile, of
    dimension `args[0]`. quotient, remainder: C's division. minimum, maximum; choice: `args` are a
    condition and two polynomials. loaded: from memory, `args` are a tensor's name and the offset.
    unknown: anything, `args` are a number and the lanes on which it may depend.
    """

    kind: str
    args: tuple[Any, ...]

    @cached_property
    def key(self) -> str:
        if self.kind == "symbol":
            return str(self.args[0])
        return f"{self.kind}({', '.join(map(str, self.args))})"

    @cached_property
    def names(self) -> frozenset[str]:
        """The symbols and lanes in it."""
        own = self.kind in ("symbol", "lane")
        return frozenset((self.key,)) if own else names_of(self.args)

    def __str__(self) -> str:
        return self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.key == other.key


@dataclass(frozen=True)
class Poly:
    """Monomials with their coefficients, none 0."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    @staticmethod
    def of(terms: Mapping[Monomial, int]) -> Poly:
        kept = [(m, c) for m, c in terms.items() if c]
        if len(kept) < 2:
            return Poly(tuple(kept))
        return Poly(tuple(sorted(kept, key=lambda t: [a.key for a in t[0]])))

    @property
    def number(self) -> int | None:
        """Its value where it has no atoms."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def atom(self) -> Atom | None:
        """The one atom that it is."""
        alone = len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1
        return self.terms[0][0][0] if alone else None

    @cached_property
    def atoms(self) -> frozenset[Atom]:
        return frozenset(a for m, _ in self.terms for a in m)

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset().union(*(a.names for a in self.atoms))

    def __add__(self, other: Poly | int) -> Poly:
        total = dict(self.terms)
        for m, c in poly(other).terms:
            total[m] = total.get(m, 0) + c
        return Poly.of(total)

    def __neg__(self) -> Poly:
        return Poly(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Poly | int) -> Poly:
        return self + -poly(other)

    def __mul__(self, other: Poly | int) -> Poly:
        total: dict[Monomial, int] = {}
        for m, c in self.terms:
            for n, d in poly(other).terms:
                both = tuple(sorted((*m, *n), key=lambda a: a.key))
                total[both] = total.get(both, 0) + c * d
        return Poly.of(total)

    @cached_property
    def key(self) -> str:
        if not self.terms:
            return "0"
        return " + ".join(
            "*".join([*([str(c)] if c != 1 or not m else []), *map(str, m)]) for m, c in self.terms
        )

    def __str__(self) -> str:
        return self.key

    def split(self, divisor: Poly) -> tuple[Poly, Poly]:
        """(q, r) with self = q * divisor + r, for a divisor of one monomial; r as it falls out."""
        ((by, times),) = divisor.terms
        quotient: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for m, c in self.terms:
            left = without(m, by)
            if left is None or c % times:
                rest[m] = c
            else:
                quotient[left] = c // times
        return Poly.of(quotient), Poly.of(rest)


def without(m: Monomial, by: Monomial) -> Monomial | None:
    left = list(m)
    for a in by:
        if a not in left:
            return None
        left.remove(a)
    return tuple(left)


def shared_in(one: Monomial, two: Monomial) -> Monomial:
    left, found = list(two), []
    for a in one:
        if a in left:
            left.remove(a)
            found.append(a)
    return tuple(found)


def poly(x: Poly | Atom | int) -> Poly:
    if isinstance(x, Poly):
        return x
    if isinstance(x, int):
        return Poly((((), x),)) if x else Poly(())
    return Poly((((x,), 1),))


def symbol(name: str) -> Poly:
    return poly(Atom("symbol", (name,)))


def product(factors: Iterable[Poly]) -> Poly:
    result = poly(1)
    for f in factors:
        result = result * f
    return result


EXTREMES = ("minimum", "maximum")


def extreme_of(kind: str, one: Poly, two: Poly) -> Poly:
    """The minimum or maximum of two, which have no order: |x| is the maximum of x and -x."""
    if one.number is not None and two.number is not None:
        return poly((min if kind == "minimum" else max)(one.number, two.number))
    return poly(Atom(kind, tuple(sorted((one, two), key=str))))


@dataclass(frozen=True)
class Cond:
    """A truth value. `op`: lt, le, eq (of polynomials); and, or (of conditions), not; opaque."""

    op: str
    args: tuple[Any, ...]

    @cached_property
    def key(self) -> str:
        return f"{self.op}({', '.join(map(str, self.args))})"

    @cached_property
    def names(self) -> frozenset[str]:
        return names_of(self.args)

    @cached_property
    def _hash(self) -> int:
        return hash((self.op, self.args))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.key


TRUE, FALSE = Cond("and", ()), Cond("or", ())


def lt(a: Poly | int, b: Poly | int) -> Cond:
    return _compare("lt", poly(a), poly(b), lambda d: d < 0)


def le(a: Poly | int, b: Poly | int) -> Cond:
    return _compare("le", poly(a), poly(b), lambda d: d <= 0)


def eq(a: Poly | int, b: Poly | int) -> Cond:
    return _compare("eq", poly(a), poly(b), lambda d: d == 0)


def _compare(op: str, a: Poly, b: Poly, holds: Callable[[int], bool]) -> Cond:
    (one, rest), (two, other) = _parted(a), _parted(b)
    if rest == other:
        return TRUE if holds(one - two) else FALSE
    return Cond(op, (a, b))


def _parted(p: Poly) -> tuple[int, tuple[tuple[Monomial, int], ...]]:
    """Its constant, and what is left: the constant comes first."""
    if p.terms and not p.terms[0][0]:
        return p.terms[0][1], p.terms[1:]
    return 0, p.terms


def both(*conditions: Cond) -> Cond:
    kept: dict[Cond, None] = {}
    for c in conditions:
        kept.update(dict.fromkeys(conjuncts(c)))
    if FALSE in kept or any(c.op == "not" and set(conjuncts(c.args[0])) <= set(kept) for c in kept):
        return FALSE
    return next(iter(kept)) if len(kept) == 1 else Cond("and", tuple(kept))


def conjuncts(c: Cond) -> tuple[Cond, ...]:
    return c.args if c.op == "and" else (c,)


def either(*conditions: Cond) -> Cond:
    kept = [c for c in dict.fromkeys(conditions) if c != FALSE]
    if TRUE in kept or any(negation(c) in kept for c in kept):
        return TRUE
    return kept[0] if len(kept) == 1 else Cond("or", tuple(kept))


def negation(c: Cond) -> Cond:
    match c.op:
        case "not":
            return c.args[0]  # type: ignore[no-any-return]
        case "lt":
            return le(c.args[1], c.args[0])
        case "le":
            return lt(c.args[1], c.args[0])
        case "or":
            return both(*map(negation, c.args))
    return FALSE if c == TRUE else Cond("not", (c,))


def between(low: Poly | int, x: Poly, high: Poly | int) -> Cond:
    """low <= x < high."""
    return both(le(low, x), lt(x, high))


# -- walking -------------------------------------------------------------------------------------


def atoms_of(x: Any, seen: set[Atom] | None = None) -> Iterator[Atom]:
    """All atoms in a polynomial, condition or atom, those inside atoms first."""
    seen = set() if seen is None else seen
    if isinstance(x, Poly):
        for a in sorted(x.atoms, key=lambda a: a.key):
            yield from atoms_of(a, seen)
    elif isinstance(x, Atom):
        if x not in seen:
            seen.add(x)
            for arg in x.args:
                yield from atoms_of(arg, seen)
            yield x
    elif isinstance(x, Cond | tuple):
        for arg in x.args if isinstance(x, Cond) else x:
            yield from atoms_of(arg, seen)


def names_of(x: Any) -> frozenset[str]:
    """The free symbols and lanes in anything that says its own, and in tuples of such."""
    if isinstance(x, tuple):
        return frozenset().union(*map(names_of, x))
    return getattr(x, "names", frozenset())


def replaced(x: Any, change: Mapping[Atom, Poly]) -> Any:
    """The same with symbols and lanes replaced; what has none of these is not walked through."""
    return mapped(x, change.get, frozenset(a.key for a in change))


def mapped(
    x: Any, change: Callable[[Atom], Poly | None], names: frozenset[str] | None = None
) -> Any:
    """The polynomial, condition or atom's argument with atoms replaced where `change` says so.

    `names`: of symbols and lanes without which nothing changes.
    """
    if names is not None and names.isdisjoint(names_of(x)):
        return x
    if isinstance(x, Poly):
        news = {a: new for a in x.atoms if (new := _changed(a, change, names)) is not None}
        if not news:
            return x
        total: dict[Monomial, int] = {}
        for m, c in x.terms:
            kept = tuple(a for a in m if a not in news)
            new = product((Poly(((kept, c),)), *(news[a] for a in m if a in news)))
            for n, d in new.terms:
                total[n] = total.get(n, 0) + d
        return Poly.of(total)
    if not isinstance(x, Cond | tuple):
        return x
    old = x.args if isinstance(x, Cond) else x
    args = tuple(mapped(a, change, names) for a in old)
    if all(new is a for new, a in zip(args, old, strict=True)):
        return x
    if isinstance(x, tuple):
        return args
    match x.op:
        case "lt" | "le" | "eq":
            return {"lt": lt, "le": le, "eq": eq}[x.op](*args)
        case "and":
            return both(*args)
        case "or":
            return either(*args)
        case "not":
            return negation(args[0])
    return Cond(x.op, args)


def _changed(
    a: Atom, change: Callable[[Atom], Poly | None], names: frozenset[str] | None
) -> Poly | None:
    """What the atom becomes; None where it stays."""
    new = change(a)
    if new is not None:
        return new
    args = mapped(a.args, change, names)
    if args is a.args:
        return None
    return extreme_of(a.kind, *args) if a.kind in EXTREMES else poly(Atom(a.kind, args))
