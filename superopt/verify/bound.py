"""Bound indices of reductions: two as one, one as two, from elsewhere; and conditions on them.

sum[t: 0 <= t < 4] sum[l: 0 <= l < 64] x[t * 64 + l]   ->   sum[k: 0 <= k < 256] x[k]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from superopt.verify.integers import (
    Atom,
    Cond,
    Poly,
    atoms_of,
    between,
    both,
    conjuncts,
    le,
    lt,
    names_of,
    negation,
    poly,
    symbol,
)
from superopt.verify.laws import law
from superopt.verify.reals import (
    REDUCTIONS,
    Change,
    Real,
    changed,
    compares,
    cond_changed,
    factors_in,
)


@dataclass(frozen=True)
class Fusion:
    """A bound index that others determine: what it is, and the conditions that are left.

    Right where `limit` is positive; of use where `mark` is not in the body then.
    """

    gone: str
    limit: Poly
    change: Change
    kept: tuple[Cond, ...]
    mark: str


def fusions(names: Sequence[str], parts: Sequence[Cond]) -> Iterator[Fusion]:
    for n in names:
        own, atom = symbol(n), Atom("symbol", (n,))
        if le(0, own) not in parts or len(names) < 2:
            continue
        for c in parts:  # 0 <= i - n * limit < limit: n is i / limit
            if c.op != "lt" or le(0, c.args[0]) not in parts or c.args[0] == own:
                continue
            away, limit = c.args
            whole = away + own * limit
            if n not in names_of((whole, limit)):
                quotient = poly(Atom("quotient", (whole, limit)))
                change = {atom: quotient}
                rest = [p for p in parts if p not in (c, le(0, away), le(0, own))]
                kept = (le(0, whole), *(cond_changed(p, change) for p in rest))
                yield Fusion(n, limit, change, kept, "no mark")
        for inner in names:  # 0 <= inner < limit: n * limit + inner is one index
            low, lane_ = le(0, symbol(inner)), symbol(inner)
            for c in parts if inner != n and low in parts else ():
                if c.op != "lt" or c.args[0] != lane_ or c.args[1].names & {*names}:
                    continue
                limit = c.args[1]
                quotient = poly(Atom("quotient", (lane_, limit)))
                both_ = {atom: quotient, Atom("symbol", (inner,)): lane_ - quotient * limit}
                rest = [p for p in parts if p not in (low, c, le(0, own))]
                kept = (low, *(_cancelled(cond_changed(p, both_), quotient) for p in rest))
                yield Fusion(n, limit, both_, kept, str(quotient))


def _cancelled(c: Cond, q: Poly) -> Cond:
    """i - q*n < m - q*n as i < m."""
    if c.op not in ("lt", "le") or str(q) not in str(c):
        return c
    terms = (c.args[0] - c.args[1]).terms
    more, less = (Poly.of({m: k * s for m, k in terms if k * s > 0}) for s in (1, -1))
    simpler = lt(more, less) if c.op == "lt" else le(more, less)
    return c if str(q) in str(simpler) else simpler


def least_index(domain: Cond, name: str) -> Poly:
    """What an index is at least, by the first part of the condition that says so; else 0."""
    own = symbol(name)
    for c in conjuncts(domain):
        if c.op == "le" and name not in (least := c.args[0] - c.args[1] + own).names:
            return least  # type: ignore[no-any-return]
    return poly(0)


def inhabited(domain: Cond, names: Sequence[str]) -> Cond | None:
    """Whether some indices are in a domain, as a condition without them.

    That is so where the least of each are; None where a part of the domain does not bound one
    index, from below once and from above.
    """
    lower: set[str] = set()
    for c in conjuncts(domain):
        own = c.names & {*names}
        if not own:
            continue
        (n, *others), slack = own, c.args[1] - c.args[0] if c.op in ("le", "lt") else poly(0)
        step = dict(slack.terms).get((Atom("symbol", (n,)),), 0)
        if others or abs(step) != 1 or n in (slack - symbol(n) * step).names:
            return None
        if step == 1 and (n in lower or c.op == "lt"):
            return None
        if step == 1:
            lower.add(n)
    if lower != {*names}:
        return None
    return cond_changed(domain, {Atom("symbol", (n,)): least_index(domain, n) for n in names})


def limit_of(c: Cond, name: str) -> tuple[Poly, Poly | None] | None:
    """What an index is below by a condition, and what must not be negative, it neither, for that.

    lt(k, n): n; lt(8 * k, n): (n + 7) / 8; lt(8 * (k / 8), n): 8 * ((n + 7) / 8)
    """
    if c.op != "lt" or name in c.args[1].names or len(c.args[0].terms) != 1:
        return None
    (one, most), own = c.args, symbol(name)
    if one == own:
        return most, None
    ((_, times),) = one.terms
    blocks = poly(Atom("quotient", (most + times - 1, poly(times))))
    if times > 1 and one == own * times:
        return blocks, most
    if times > 1 and one == poly(Atom("quotient", (own, poly(times)))) * times:
        return blocks * times, most
    return None


def undecided(names: Sequence[str], body: Real) -> Cond | None:
    """A condition on bound indices by which what is reduced is one or another."""
    bound = {m for f in factors_in([body]) if f.kind in REDUCTIONS for m in f.args[0]}
    found = {f.args[0] for f in factors_in([body]) if f.kind == "truth"}
    own = (c for c in found if not compares(c) and c.names & {*names} and not c.names & bound)
    return min(own, key=lambda c: (len(str(c)), str(c)), default=None)


def unjoined(names: Sequence[str], domain: Cond, body: Real) -> tuple[list[str], Cond, Real] | None:
    """An index that is divided, as quotient and remainder by what divides it."""
    for f in sorted(factors_in([body]), key=lambda f: f.key):
        for a in atoms_of(f.args) if f.kind in ("load", "truth", *REDUCTIONS) else ():
            by = a.args[1].number if a.kind in ("quotient", "remainder") else None
            own = a.args[0].atom if by else None
            if (
                by is None
                or own is None
                or own.key not in names
                or le(0, poly(own)) not in (conjuncts(domain))
            ):
                continue
            high, low = f"{own.key}/{by}", f"{own.key}%{by}"
            change = {own: symbol(high) * by + symbol(low)}
            within = both(le(0, symbol(high)), between(0, symbol(low), by))
            left = [n for n in names if n != own.key]
            parts = both(within, *(p for p in conjuncts(cond_changed(domain, change))))
            return [*left, high, low], parts, changed(body, change)
    return None


def shifted(names: list[str], domain: Cond, body: Real) -> tuple[list[str], Cond, Real]:
    """Bound indices such that memory is read at them, not so far from them."""
    for n in names:
        own = Atom("symbol", (n,))
        away: dict[Poly, None] = {}
        for f in sorted(factors_in([body]), key=lambda f: f.key):
            for i in f.args[1] if f.kind == "load" else ():
                rest = i - poly(own)
                away_from = rest.names
                free = away_from <= body.names - {*names}
                if own in i.atoms and own not in rest.atoms and free:
                    away[rest] = None
        if not away or list(away) == [poly(0)]:
            continue
        ways = [{own: poly(own) - rest} for rest in away]
        way = min(ways, key=lambda w: changed(body, w).key)
        if way[own] != poly(own) and law("a shifted index"):
            domain, body = cond_changed(domain, way), changed(body, way)
    return names, domain, body


def simpler_forms(c: Cond, name: str) -> list[Cond]:
    """What a condition may come to, where others hold."""
    if c.op == "not" and c.args[0].op == "and":
        return [negation(p) for p in c.args[0].args if name in p.names]
    found = _without_quotient(c, name)
    return [] if found is None else [found]


def _without_quotient(c: Cond, name: str) -> Cond | None:
    """lt(a + c * (n / c), b) as lt(a + n, b), lt(n / c, b) as lt(n, c * b), lt(a + c * n, 8) as
    lt(n, 8 / c): the same where what they leave out makes no difference.
    """
    if c.op not in ("lt", "le"):
        return None
    one, two = c.args
    own, most = symbol(name), two.number
    (atom,) = own.atoms
    times = dict(one.terms).get((atom,), 0)
    if c.op == "lt" and most is not None and times > 1:
        return lt(own, -(-most // times))
    divided = [
        a for a in one.atoms if a.kind == "quotient" and a.args[0] == own and a.args[1].number
    ]  # fmt: skip
    if len(divided) != 1 or name in two.names:
        return None
    (quotient,) = divided
    times, by = dict(one.terms).get((quotient,), 0), quotient.args[1].number
    rest = one - poly(quotient) * times
    if name in rest.names or times not in (1, by):
        return None
    scale = by // times
    return {"lt": lt, "le": le}[c.op](rest * scale + own, two * scale)
