"""What proofs of values rest on, by name, and what a proof made use of.

A proof runs with some laws left out (`laws`); where it asks for one that is, it goes on without, or
ends. What it asked for decides how it goes: a part that asked for none of what has changed since
goes as it did before (`Remembered`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

LAWS = {
    "exp of a sum": "exp(a + b) = exp(a) * exp(b)",
    "exp of a multiple": "exp(c * a) = exp(a) ** c",
    "log of a product": "log(a * b) = log(a) + log(b) for a, b > 0; log(exp(a)) = a",
    "exp of a log": "exp(log(a)) = a, for a > 0",
    "exp grows": "max[n] exp(f) = exp(max[n] f); exp(a) = exp(b) iff a = b",
    "power of a product": "(a * b) ** e = a ** e * b ** e, where e is whole or a > 0",
    "sums are linear": "sum[n](c * f + d * g) = c * sum[n] f + d * sum[n] g, c and d without n",
    "sum of sums": "sum[n] sum[m] f = sum[n, m] f, and a product of sums likewise",
    "sum over a union": "sum[A] f + sum[B] f = sum[A or B] f, where A and B do not meet",
    "maximum moves": "max[n](c * f + d) = c * max[n] f + d, c > 0; minimum where c < 0",
    "maximum of maxima": "max[n] max[m] f = max[n, m] f; max(max[A] f, max[B] f) = max[A or B] f",
    "maximum by cases": "max[n](a where c, else b) = max(b, max[n: c] a), a >= b without n, some n",
    "where it is reached": "x[k] = max[n] x[n] at the least k for which that is so",
    "what adds nothing": "max(b, max[n] a) = b, where a <= b",
    "between": "x = p and p = q iff x = q, for x <= p <= q",
    "a sum of squares": "sum[n] (c * f ** 2 + d * g ** 2) >= 0, for c, d >= 0",
    "a sum of exps": "sum[n] c * exp(f) = 0 iff there is no n, for c > 0",
    "two indices as one": "i * n + j for 0 <= i, 0 <= j < n is each whole number from 0, once",
    "an index as two": "each whole number from 0 is (k / n) * n + k % n, for n > 0",
    "a shifted index": "sum[k] f(k) = sum[k] f(k + c), the conditions on k shifted too",
    "a single index": "a reduction over one index is its body there",
    "counting": "sum[a <= k < b] 1 = max(0, b - a)",
    "cases": "what holds where c does, and where it does not, holds",
    "divisors cleared": "a = b where a * d = b * d, for d != 0",
    "induction": "what holds before a loop, and is kept by a turn, holds after it",
}
"""What normal forms rest on beside the laws of a ring, of conditions, and Z3's integers."""

_without: set[str] = set()
_cited: set[str] = set()  # asked for, and there
_missed: set[str] = set()  # asked for, and left out


def law(name: str) -> bool:
    """Whether a law may be used; it is then noted as used."""
    assert name in LAWS
    if name in _without:
        _missed.add(name)
        return False
    _cited.add(name)
    return True


@contextmanager
def laws(without: Iterable[str] = ()) -> Iterator[set[str]]:
    """The laws that are used inside; some may not be, nor those that may not outside."""
    global _without, _cited, _missed
    outer = _without, _cited, _missed
    _without, _cited, _missed = _without | set(without), set(), set()
    try:
        yield _cited
    finally:
        _without, _cited, _missed = outer


@dataclass(frozen=True)
class _Computed(Generic[T]):
    result: T
    cited: frozenset[str]
    missed: frozenset[str]

    @property
    def stands(self) -> bool:
        """Whether it would be computed in the same way now."""
        return not self.cited & _without and self.missed <= _without


class Remembered(Generic[T]):
    """Results by what they are computed from, and by the laws that this asked for."""

    def __init__(self) -> None:
        self.known: dict[Hashable, list[_Computed[T]]] = {}

    def of(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, or gave where the laws that it asked for were there as now."""
        known = self.known.setdefault(key, [])
        found = next((c for c in known if c.stands), None)
        if found is None:
            with laws() as cited:
                result = compute()
                found = _Computed(result, frozenset(cited), frozenset(_missed))
            known.append(found)
        _cited.update(found.cited)
        _missed.update(found.missed)
        return found.result
