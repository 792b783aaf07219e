"""Observational equivalence of classes: identities that the rules need not know."""

from __future__ import annotations

import numpy as np

from superopt.mugraph.expr import Expr, toposort
from superopt.search.egraph import EGraph
from superopt.search.extract import Coster, Extractor, Weights
from superopt.search.fingerprint import Fingerprints, Floats

INFINITE = 16  # worlds in which some of the float inputs hold nothing but one infinity


def merge_equal(g: EGraph) -> int:
    """Merge classes that are observationally equal; how many were merged.

    The rules need not know every identity that a program happens to use. What has a condition may
    be there for infinite inputs alone: it must be equal on these too.
    """
    values = Fingerprints()
    extreme = Fingerprints(worlds=INFINITE, contents=_infinite)
    terms = _representatives(g)
    seen: dict[tuple[bytes, str], list[int]] = {}
    merged = 0

    def same(c: int, other: int) -> bool:
        pair = terms[c], terms[other]
        if g[c].free != g[other].free:
            return False
        conditional = any(n.dtype == "bool" and n.op != "const" for n in toposort(*pair))
        return not conditional or extreme.key(pair[0]) == extreme.key(pair[1])

    for c, term in terms.items():
        if not g.classes[g.find(c)].dtype.startswith("f"):
            continue
        known = seen.setdefault((values.key(term), g[c].dtype), [])
        equal = next((other for other in known if same(c, other)), None)
        if equal is None:
            known.append(c)
        else:
            merged += g.union(equal, c)
    g.rebuild()
    return merged


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
