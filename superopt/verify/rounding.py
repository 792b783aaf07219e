"""How far rounding may take a kernel's sums: a bound for the order in which it adds.

A sum of n terms in any order is within gamma(d) = d*u / (1 - d*u) of the sum of the terms'
magnitudes, where d is the most additions that a term goes through and u the unit roundoff
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 4.2, and lemma 3.1).
Accumulators are fp32. In a tile the hardware's order is open, so d counts all of it; a loop adds
one tile a turn. Eager's order is open altogether: d is n - 1. Dot operands that are computed are
rounded once more, each by its own unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from superopt.mugraph.expr import BINDERS, Expr, plain_of, toposort
from superopt.mugraph.index import value
from superopt.mugraph.program import Branch, Config, KernelGraph
from superopt.mugraph.text import inline

UNIT = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class SumBound:
    """A kernel's sum of `terms` terms: the most `additions` a term goes through, and the bounds.

    `bound` and `any_order` are relative to the sum of the terms' magnitudes, for the kernel's
    order and for eager's; `operand` is the type that the program multiplies in, where it does.
    """

    kernel: str
    text: str
    terms: int
    additions: int
    bound: float
    any_order: float
    operand: str | None


def gamma(additions: int) -> float:
    """The bound's factor for fp32; infinite where there are too many additions for one."""
    taken = additions * UNIT["f32"]
    return taken / (1 - taken) if taken < 1 else float("inf")


def sum_bounds(
    graph: KernelGraph, configs: Sequence[Config], sizes: Mapping[str, int]
) -> list[SumBound]:
    """A row for each sum of a µGraph at some sizes, the longest first."""
    found = []
    for kernel, config in zip(graph.kernels, configs, strict=True):
        for branch in kernel.branches:
            nodes = toposort(*(s.value for s in branch.stores))
            sums = [n for n in nodes if n.op in BINDERS and n.attr.monoid == "sum"]
            for node in sums:
                found.append(_bound(kernel.name, branch, node, config, dict(sizes)))
    return sorted(dict.fromkeys(found), key=lambda b: -b.terms)


def _bound(
    kernel: str, branch: Branch, node: Expr, config: Config, sizes: dict[str, int]
) -> SumBound:
    terms = turns = tile = 1
    for a in node.attr.axes:
        extent = value(a.extent, sizes)
        own = min(config.by_name.get(a.name, extent), extent)
        terms, tile = terms * extent, tile * own
        turns *= ceil(extent / own) if branch.role(a) == "loop" and own else 1
    additions = turns + tile - 2 if turns > 1 else tile - 1
    text = inline(plain_of(node))
    any_order = gamma(max(terms - 1, 0))
    return SumBound(kernel, text, terms, additions, gamma(additions), any_order, node.attr.operand)
