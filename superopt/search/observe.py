"""Observational equivalence of classes: identities that the rules need not know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import Axis, Expr, Tensor, axis, find, substitute, toposort
from superopt.search.egraph import EGraph
from superopt.search.extract import Coster, Extractor, Weights
from superopt.search.fingerprint import Fingerprints, Floats

MOST_RENAMED = 4  # axes of a class
MOST_NUMBERS = 4  # with which indices are compared
INFINITE = 16  # worlds in which some of the float inputs hold nothing but one infinity


class Observer:
    """Tells terms apart by their values, which are kept."""

    def __init__(self, compared: Sequence[int] = ()) -> None:
        self.values = Fingerprints(compared=compared)
        self.extreme = Fingerprints(worlds=INFINITE, contents=_infinite, compared=compared)

    def key(self, term: Expr) -> bytes:
        return self.values.key(term)

    def equal_beyond(self, one: Expr, other: Expr) -> bool:
        """Whether terms of one key are equal where inputs are infinite too.

        What has a condition may be there for these alone.
        """
        conditional = any(n.dtype == "bool" and n.op != "const" for n in toposort(one, other))
        return not conditional or self.extreme.key(one) == self.extreme.key(other)


def merge_equal(g: EGraph) -> int:
    """Merge classes that are observationally equal; how many were merged.

    The rules need not know every identity that a program happens to use.
    """
    observer = Observer(_compared(g))
    terms = _representatives(g)
    seen: dict[tuple[bytes, str], list[int]] = {}
    merged = 0

    def same(c: int, other: int) -> bool:
        return g[c].free == g[other].free and observer.equal_beyond(terms[c], terms[other])

    for c, term in terms.items():
        if not g.classes[g.find(c)].dtype.startswith("f"):
            continue
        known = seen.setdefault((observer.key(term), g[c].dtype), [])
        equal = next((other for other in known if same(c, other)), None)
        if equal is None:
            known.append(c)
        else:
            merged += g.union(equal, c)
    g.rebuild()
    return merged


def _compared(g: EGraph) -> list[int]:
    """The least of the numbers that the program compares indices and integers with."""
    pairs = (e.args for e in g.of if e.dtype == "bool" and len(e.args) == 2)
    found = {a.attr for args in pairs for a in args if a.op == "const" and not is_float(a.dtype)}
    return sorted(int(n) for n in found if not isinstance(n, bool))[:MOST_NUMBERS]


def renaming(one: Expr, other: Expr, observer: Observer) -> dict[Axis, Axis] | None:
    """What the axes of `one` are in `other`, where that is all that sets them apart.

    sum[k] x[i, k] * y[j, k] and sum[k] x[j, k] * y[i, k]: {i: j, j: i}
    """
    if one.dtype != other.dtype or _tensors(one) != _tensors(other):
        return None
    mine = sorted(one.free, key=lambda a: a.name)
    if len(mine) != len(other.free) or len(mine) > MOST_RENAMED:
        return None
    for theirs in permutations(sorted(other.free, key=lambda a: a.name)):
        pairs = dict(zip(mine, theirs, strict=True))
        if any(a.extent is not b.extent for a, b in pairs.items()):
            continue
        renamed = substitute(one, {a: axis(b) for a, b in pairs.items()})
        if observer.key(renamed) == observer.key(other) and observer.equal_beyond(renamed, other):
            return pairs
    return None


def _tensors(term: Expr) -> set[Tensor]:
    return {n.attr for n in find(term, "load")}


def _infinite(name: str) -> Floats:
    rng = np.random.default_rng(list(name.encode()))
    offsets = rng.choice([0.0, 0.0, -np.inf, np.inf], INFINITE)
    return Floats(np.where(offsets == 0, 1.0, 0.0), offsets)


def _representatives(g: EGraph) -> dict[int, Expr]:
    """A small term for each class."""
    unit = Coster(lambda free: 1.0, Weights(1.0, 1.0, 1.0))
    extractor = Extractor(g, unit, {}, None)
    extractor.run(list(g.classes))
    return {c: terms[0] for c, terms in extractor.terms.items() if terms}
