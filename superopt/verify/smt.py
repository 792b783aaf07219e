"""Queries on integers as SMT-LIB text: what a solver is asked is what a certificate holds.

lt(i, n) under le(0, i) and lt(i + 1, n)   ->   (declare-const i Int) (declare-const n Int)
                                                (assert (and (<= 0 i) (< (+ i 1) n)))
                                                (assert (not (< i n)))
                                                (check-sat)
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from superopt.verify.integers import Atom, Cond, Monomial, Poly, poly, shared_in, without
from superopt.verify.ttir import Unreadable

FEW = 16  # values of a divisor that are taken one by one
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.!]*")


class Encoder:
    """SMT-LIB's form of polynomials and conditions, with the definitions of the atoms they hold.

    A product of atoms is the solver's own where `nonlinear`, else an unknown integer, one for each
    product, of which some facts are told: what is proved so holds, what is refuted need not be
    false (`exact` says whether that happened).
    """

    def __init__(self, nonlinear: bool = False) -> None:
        self.nonlinear = nonlinear
        self.exact = True
        self.sorts: dict[str, str] = {}  # of names, in the order in which they were met
        self.products: dict[Monomial, str] = {}
        self.definitions: list[str] = []
        self.integers: dict[Poly, str] = {}
        self.truths: dict[Cond, str] = {}

    def query(self, *conditions: str) -> str:
        """The question whether conditions can hold together: a whole file."""
        names = (f"(declare-const {name} {sort})" for name, sort in self.sorts.items())
        asserted = (f"(assert {c})" for c in (*conditions, *self.definitions))
        return "\n".join((*names, *asserted, "(check-sat)\n"))

    # -- integers ----------------------------------------------------------------------------------

    def integer(self, p: Poly) -> str:
        if p not in self.integers:
            terms = [_times(c, self.monomial(m)) for m, c in p.terms]
            self.integers[p] = _joined("+", terms, "0")
        return self.integers[p]

    def monomial(self, m: Monomial) -> str:
        factors = [self.atom(a) for a in m]
        if len(m) <= 1 or self.nonlinear:
            return _joined("*", factors, "1")
        self.exact = False
        if m not in self.products:
            self._define_product(m, factors)
        return self.products[m]

    def _define_product(self, m: Monomial, factors: list[str]) -> None:
        made = self._name("*".join(a.key for a in m), "Int")
        others = list(self.products)
        self.products[m] = made
        some = _joined("and", [f"(>= {f} 1)" for f in factors])
        none = _joined("or", [f"(= {f} 0)" for f in factors])
        signs = _joined("and", [f"(>= {f} 0)" for f in factors])
        least = _joined("and", [f"(>= {made} {f})" for f in factors])
        self.definitions += [
            _implies(signs, f"(>= {made} 0)"),
            _implies(some, least),
            _implies(none, f"(= {made} 0)"),
        ]
        for other in others:
            self._compare_products(m, other)
        self._bound_product(m)

    def _compare_products(self, one: Monomial, two: Monomial) -> None:
        """x*S and y*S differ by S at least where x and y differ, for S >= 0."""
        shared = shared_in(one, two)
        x, y = without(one, shared), without(two, shared)
        if not shared or x is None or y is None or len(x) != 1 or len(y) != 1:
            return
        s, (a,), (b,) = self.monomial(shared), x, y
        p, q, i, j = self.products[one], self.products[two], self.atom(a), self.atom(b)
        less = _implies(f"(< {i} {j})", f"(<= (+ {p} {s}) {q})")
        same = _implies(f"(= {i} {j})", f"(= {p} {q})")
        more = _implies(f"(< {j} {i})", f"(<= (+ {q} {s}) {p})")
        self.definitions.append(_implies(f"(>= {s} 0)", f"(and {less} {same} {more})"))

    def _bound_product(self, m: Monomial) -> None:
        """r*S is at most c*S where r, a remainder by a small number, is at most c."""
        for n, a in enumerate(m):
            few = a.args[1].number if a.kind == "remainder" else None
            if few is not None and 0 < few <= FEW:
                s, r = self.monomial(m[:n] + m[n + 1 :]), self.atom(a)
                self.definitions += [
                    _implies(
                        f"(and (>= {s} 0) (<= {r} {c}))", f"(<= {self.products[m]} {_times(c, s)})"
                    )
                    for c in range(few)
                ]

    def atom(self, a: Atom) -> str:
        name = _quoted(a.key)
        if name not in self.sorts:
            self._name(a.key, "Int")
            self._define(a, name)
        return name

    def _name(self, name: str, sort: str) -> str:
        quoted = _quoted(name)
        self.sorts[quoted] = sort
        return quoted

    def _define(self, a: Atom, x: str) -> None:
        match a.kind:
            case "quotient" | "remainder":
                q, r = (self.atom(Atom(kind, a.args)) for kind in ("quotient", "remainder"))
                if a.kind == "quotient":  # once for the two
                    self._divide(a, q, r)
            case "minimum" | "maximum":
                one, two = map(self.integer, a.args)
                first = f"(<= {one} {two})" if a.kind == "minimum" else f"(>= {one} {two})"
                self.definitions.append(f"(= {x} (ite {first} {one} {two}))")
            case "choice":
                c, one, two = a.args
                chosen = f"(ite {self.truth(c)} {self.integer(one)} {self.integer(two)})"
                self.definitions.append(f"(= {x} {chosen})")

    def _divide(self, quotient: Atom, q: str, r: str) -> None:
        """C's division: the remainder has the dividend's sign. By 0 or less: anything."""
        over, by = quotient.args
        n, d = self.integer(over), self.integer(by)
        cases = _few_values(by)
        if by.number is not None:
            self.definitions.append(f"(= {n} (+ {_times(by.number, q)} {r}))")
        elif self.nonlinear:
            self.definitions.append(f"(= {n} (+ (* {d} {q}) {r}))")
        elif cases:  # linear, one case at a time
            self.definitions += [
                _implies(f"(= {d} {k})", f"(= {n} (+ {_times(k, q)} {r}))")
                for k in range(1, cases + 1)
            ]
        else:
            self.definitions.append(f"(= {n} (+ {self.integer(by * poly(quotient))} {r}))")
        up = _implies(f"(>= {n} 0)", f"(and (>= {q} 0) (>= {r} 0) (< {r} {d}))")
        down = _implies(f"(< {n} 0)", f"(and (<= {q} 0) (<= {r} 0) (< (- {r}) {d}))")
        self.definitions.append(_implies(f"(> {d} 0)", f"(and {up} {down})"))

    # -- conditions --------------------------------------------------------------------------------

    def truth(self, c: Cond) -> str:
        if c not in self.truths:
            self.truths[c] = self._truth(c)
        return self.truths[c]

    def _truth(self, c: Cond) -> str:
        match c.op:
            case "lt" | "le" | "eq":
                one, two = map(self.integer, c.args)
                return f"({_COMPARISONS[c.op]} {one} {two})"
            case "and":
                return _joined("and", map(self.truth, c.args), "true")
            case "or":
                return _joined("or", map(self.truth, c.args), "false")
            case "not":
                return f"(not {self.truth(c.args[0])})"
        return self._name(str(c), "Bool")


_COMPARISONS = {"lt": "<", "le": "<=", "eq": "="}


def _few_values(p: Poly) -> int:
    """What a minimum with a small number is at most; 0 for other polynomials."""
    if p.atom is None or p.atom.kind != "minimum":
        return 0
    known = [x.number for x in p.atom.args if x.number is not None]
    return known[0] if known and 0 < known[0] <= FEW else 0


def _quoted(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    if "|" in name or "\\" in name:
        raise Unreadable(f"a name that SMT-LIB cannot hold: {name}")
    return f"|{name}|"


def _number(c: int) -> str:
    return str(c) if c >= 0 else f"(- {-c})"


def _times(c: int, x: str) -> str:
    if x == "1":
        return _number(c)
    return x if c == 1 else f"(* {_number(c)} {x})"


def _joined(op: str, parts: Iterable[str], empty: str = "true") -> str:
    own = list(parts)
    if not own:
        return empty
    return own[0] if len(own) == 1 else f"({op} {' '.join(own)})"


def _implies(one: str, two: str) -> str:
    return f"(=> {one} {two})"
