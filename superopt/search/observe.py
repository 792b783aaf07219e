"""Observational equivalence of classes: identities that the rules need not know."""

from __future__ import annotations

from superopt.mugraph.expr import Expr
from superopt.search.egraph import EGraph
from superopt.search.extract import Coster, Extractor, Weights
from superopt.search.fingerprint import Fingerprints


def merge_equal(g: EGraph) -> int:
    """Merge classes that are observationally equal; how many were merged.

    The rules need not know every identity that a program happens to use.
    """
    values = Fingerprints()
    terms = _representatives(g)
    seen: dict[tuple[bytes, str], int] = {}
    merged = 0
    for c, term in terms.items():
        if not g.classes[g.find(c)].dtype.startswith("f"):
            continue
        key = values.key(term), g[c].dtype
        if key in seen and g[seen[key]].free == g[c].free:
            merged += g.union(seen[key], c)
        seen.setdefault(key, c)
    g.rebuild()
    return merged


def _representatives(g: EGraph) -> dict[int, Expr]:
    """A small term for each class."""
    unit = Coster(lambda free: 1.0, Weights(1.0, 1.0, 1.0))
    extractor = Extractor(g, unit, {}, None)
    extractor.run(list(g.classes))
    return {c: terms[0] for c, terms in extractor.terms.items() if terms}
