"""Which values reach global memory: cuts of the saturated program.

A cut is a set of classes that become temporaries. Candidates are the classes of reductions and what is
computed from them without a further axis, where another reduction uses them: elsewhere recomputing
is free, or nothing is gained by storing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import prod

from superopt.mugraph import index as ix
from superopt.mugraph.expr import Axis, Expr, Tensor, axis, load
from superopt.search.egraph import EGraph

MOST_CANDIDATES = 6
MOST_TEMPORARIES = 3


@dataclass(frozen=True)
class Temporary:
    """A class that is stored: its tensor, an axis a dimension."""

    number: int
    tensor: Tensor
    axes: tuple[Axis, ...]

    @property
    def load(self) -> Expr:
        return load(self.tensor, [axis(a) for a in self.axes])


def reducing(g: EGraph) -> set[int]:
    """Classes whose value needs a reduction in every form."""
    found: set[int] = set()
    changed = True
    while changed:
        changed = False
        for c, k in g.classes.items():
            if c in found:
                continue
            if all(n.op == "reduce" or any(g.find(x) in found for x in n.children) for n in k.nodes):
                found.add(c)
                changed = True
    return found


def candidates(g: EGraph, outputs: list[int], sizes: Mapping[str, int]) -> list[int]:
    """Classes worth a temporary, the most work saved first."""
    heavy = reducing(g)
    used_below_reduce: set[int] = set()
    stack = [
        (g.find(n.children[0]), frozenset(n.attr.axes))
        for k in g.classes.values()
        for n in k.nodes
        if n.op == "reduce"
    ]
    seen = set(stack)
    while stack:
        c, axes = stack.pop()
        if c in heavy:
            used_below_reduce.add(c)
        for n in g.classes[c].nodes:
            if n.op in ("reduce", "leaf"):
                continue
            for x in n.children:
                item = (g.find(x), axes)
                if item not in seen:
                    seen.add(item)
                    stack.append(item)
    roots = {g.find(o) for o in outputs}
    scored = []
    for c in used_below_reduce - roots:
        saved = _work(g, c, sizes)
        if saved is not None:
            scored.append((-saved, c))
    return [c for _, c in sorted(scored)[:MOST_CANDIDATES]]


def _work(g: EGraph, c: int, sizes: Mapping[str, int]) -> float | None:
    """Elements that computing the class once touches; None where storing it cannot pay."""
    k = g.classes[c]
    if k.dtype not in ("f32", "f64"):
        return None
    stored = prod(ix.value(a.extent, dict(sizes)) for a in k.free)
    work = 0.0
    stack, seen = [c], {c}
    while stack:
        here = stack.pop()
        for n in g.classes[here].nodes:
            if n.op == "reduce":
                free = g[n.children[0]].free | set(n.attr.axes)
                work = max(work, float(prod(ix.value(a.extent, dict(sizes)) for a in free)))
            elif n.op != "leaf":
                for x in (g.find(x) for x in n.children):
                    if x not in seen and g.classes[x].free <= k.free:
                        seen.add(x)
                        stack.append(x)
    return work / max(stored, 1) * stored**0.5 if work >= 2 * stored else None


def temporary(g: EGraph, c: int, number: int, operand: str | None) -> Temporary:
    """The tensor of a stored class: rounded as the program rounds it, else as its dot operands are."""
    k = g.classes[g.find(c)]
    axes = tuple(sorted(k.free, key=lambda a: (a.extent.op == "const", a.name)))
    dtype = k.rounded or operand or k.dtype
    tensor = Tensor(f"t{number}", tuple(a.extent for a in axes), dtype)
    return Temporary(g.find(c), tensor, axes)


def operand_type(g: EGraph, c: int) -> str | None:
    """The element type in which matrix products consume a class."""
    for k in g.classes.values():
        for n in k.nodes:
            if n.op != "reduce" or n.attr.operand is None or not g[c].free & set(n.attr.axes):
                continue
            for body in g[n.children[0]].nodes:
                if body.op == "*" and g.find(c) in {g.find(x) for x in body.children}:
                    return str(n.attr.operand)
    return None


def cuts(found: list[int]) -> list[tuple[int, ...]]:
    """Sets of classes to store, smallest sets first."""
    return [c for n in range(MOST_TEMPORARIES + 1) for c in combinations(found, n)]
