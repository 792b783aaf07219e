"""Enumeration without the guide: every term over a program's operators, up to a bound on their
number.

The guided enumeration builds only terms of the program's own classes. This one builds all that
types allow, a level an operator, merging terms by fingerprint alone: it checks, on small programs,
that the
guide loses nothing. A matrix product counts as one operator, as does an operation with a constant.
Types: a value has no more axes than the target has; at the last level, just its axes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import Axis, Expr, cast, const, op, reduce, toposort
from superopt.search.egraph import EGraph
from superopt.search.extract import Coster, contraction
from superopt.search.fingerprint import Fingerprints

LARGEST = 9  # operators
BINARY = ("add", "sub", "mul", "div")


@dataclass
class Exhausted:
    """All terms of the target's value that were met, and whether the bounded space was spent."""

    terms: list[Expr]
    bound: int
    enumerated: int
    spent: bool


@dataclass(frozen=True)
class Alphabet:
    """What terms are made of: a program's loads, constants, operators and reductions."""

    atoms: tuple[Expr, ...]
    constants: tuple[float, ...]
    unary: tuple[str, ...]
    reductions: tuple[tuple[str, Axis], ...]
    operand: str | None


def alphabet(g: EGraph) -> Alphabet:
    atoms: dict[Expr, None] = {}
    constants: dict[float, None] = {}
    unary: dict[str, None] = {}
    reductions: dict[tuple[str, Axis], None] = {}
    operand = None
    for c in sorted(g.classes):
        for n in g.classes[c].nodes:
            if n.op == "leaf" and is_float(n.attr.dtype):
                if n.attr.op == "const":
                    constants[n.attr.attr] = None
                else:
                    atoms[cast(n.attr, "f32")] = None
            elif n.op == "reduce":
                reductions.update({(n.attr.monoid, a): None for a in n.attr.axes})
                operand = n.attr.operand or operand
            elif n.op in ("*", "+"):
                constants.update({v: None for v in (n.attr,) if v not in (0.0, 1.0, -1.0)})
            elif n.op != "inverse" and len(n.children) == 1:
                unary[n.op] = None
    return Alphabet(tuple(atoms), tuple(constants), tuple(unary), tuple(reductions), operand)


def operators(term: Expr) -> int:
    """How many operators a term has: a contraction counts one, constants and loads none."""
    nodes = [n for n in toposort(term) if n.args and n.op not in ("load", "cast")]
    index = sum(n.dtype == "index" for n in nodes)
    return len(nodes) - index - sum(contraction(n) is not None for n in nodes)


def enumerate_all(
    g: EGraph, target: Expr, cost: Coster, bound: int, deadline: float | None
) -> Exhausted:
    """Every distinct term of at most `bound` operators, cheapest kept for each value."""
    letters = alphabet(g)
    prints = Fingerprints()
    wanted = prints.key(target)
    best: dict[bytes, float] = {}
    levels: list[list[Expr]] = [[]]
    found: dict[Expr, None] = {}
    count = 0

    def admit(term: Expr, level: list[Expr]) -> None:
        key = prints.key(term)
        price = cost(term)
        if key == wanted:
            found[term] = None
        if price < best.get(key, float("inf")) * 0.999:
            best[key] = price
            level.append(term)

    for atom in letters.atoms:
        admit(atom, levels[0])
    for size in range(1, bound + 1):
        level: list[Expr] = []
        levels.append(level)
        for term in _level(levels, size, letters, target if size == bound else None):
            if len(term.free) > max(len(target.free), 1):
                continue
            count += 1
            if count % 256 == 0 and deadline is not None and time.monotonic() > deadline:
                return Exhausted(list(found), size, count, False)
            admit(term, level)
    return Exhausted(list(found), bound, count, True)


def _level(
    levels: list[list[Expr]], size: int, letters: Alphabet, last: Expr | None
) -> Iterator[Expr]:
    """All terms of `size` operators over terms of fewer; of the target's axes if it is the last."""
    for a in levels[size - 1]:
        if last is None or a.free == last.free:
            for name in (*letters.unary, "square"):
                yield op(name, a)
            for value in letters.constants:
                yield op("mul", a, const(value, "f32"))
                yield op("add", a, const(value, "f32"))
        for monoid, axis in letters.reductions:
            if axis in a.free and (last is None or a.free - {axis} == last.free):
                yield reduce(monoid, (axis,), a)
    for left in range(size):
        for a in levels[left]:
            for b in levels[size - 1 - left]:
                yield from _pair(a, b, letters, last)


def _pair(a: Expr, b: Expr, letters: Alphabet, last: Expr | None) -> Iterator[Expr]:
    free = a.free | b.free
    if last is None or free == last.free:
        for name in BINARY:
            if name in ("sub", "div") or not b < a:
                yield op(name, a, b)
    if b < a:
        return
    for monoid, axis in letters.reductions:
        if monoid != "sum" or axis not in a.free or axis not in b.free:
            continue
        if last is None or free - {axis} == last.free:
            dot = reduce("sum", (axis,), op("mul", a, b), letters.operand)
            if contraction(dot) is not None:
                yield dot
