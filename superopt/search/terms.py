"""Scalar terms, enumerated bottom-up by size until given values are met.

A term is judged by its values at sample rows alone: terms that agree on all rows are one, the
smallest is kept. A term whose value is not finite everywhere is dropped. All terms of a size are
evaluated at once, as arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from superopt.mugraph.expr import Expr, const, op
from superopt.mugraph.ops import OPS

Rows = np.ndarray[Any, np.dtype[np.float64]]  # (terms, rows)

LARGEST = 6  # nodes of a term, a constant factor aside
MOST = 200_000  # terms tried for one question
MOST_KEPT = 4_000  # terms of one size that larger ones are made of
BINARY = (("sub", False), ("add", True), ("mul", True), ("div", False))
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Chosen:
    """The term `where(condition, t, otherwise)` for any t: `holds` is the condition at each row."""

    condition: Expr
    holds: np.ndarray[Any, np.dtype[np.bool_]]
    otherwise: Expr


@dataclass
class Alphabet:
    """What terms are made of: atoms with their values at the rows, names of unary operators."""

    atoms: list[tuple[Expr, Rows]]
    unary: Sequence[str] = ()
    choices: Sequence[Chosen] = ()


Recipe = tuple[Any, ...]  # ("atom", n) | (unary operator or Chosen, term) | (operator, term, term)
Place = tuple[int, int]  # a term: its size, its number among those of that size


@dataclass
class Terms:
    """An enumeration. `tried` counts the terms that were evaluated."""

    alphabet: Alphabet
    tried: int = 0
    values: dict[int, Rows] = field(default_factory=dict)
    recipes: dict[int, list[Recipe]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def find(self, targets: Sequence[Rows]) -> list[Expr | None]:
        """The smallest term with each target's values; None where the bound was met before."""
        found: list[Expr | None] = [None] * len(targets)
        for size in range(1, LARGEST + 1):
            self._grow(size)
            for n, target in enumerate(targets):
                if found[n] is None:
                    found[n] = self._match(size, target)
            if all(f is not None for f in found) or self.tried > MOST:
                break
        return found

    def _match(self, size: int, target: Rows) -> Expr | None:
        """A term of this size with the target's values, or with a constant multiple of them."""
        values = self.values[size]
        if not len(values):
            return None
        near = np.abs(values - target) <= TOLERANCE * (np.abs(target) + np.abs(values)) + 1e-12
        hits = np.flatnonzero(near.all(axis=1))
        if len(hits):
            return self.build((size, int(hits[0])))
        with np.errstate(all="ignore"):
            ratio = target / values
            factor = ratio[:, 0]
            same = np.abs(ratio - factor[:, None]).max(axis=1) <= TOLERANCE * np.abs(factor)
        hits = np.flatnonzero(same & (factor != 0))
        if not len(hits):
            return None
        term = self.build((size, int(hits[0])))
        value = float(factor[hits[0]])
        value = round(value) if abs(value - round(value)) < 1e-6 * abs(value) else value
        return const(value, "f32") if term.op == "const" else op("mul", term, const(value, "f32"))

    def _grow(self, size: int) -> None:
        kept: list[Rows] = []
        recipes: list[Recipe] = []
        for values, made in self._candidates(size):
            self.tried += len(values)
            finite = np.isfinite(values).all(axis=1) & (np.abs(values).max(axis=1) < 1e100)
            for n in np.flatnonzero(finite):
                if len(recipes) >= MOST_KEPT:
                    break
                key = _key(values[n])
                if key not in self.seen:
                    self.seen.add(key)
                    kept.append(values[n])
                    recipes.append(made[n])
            if self.tried > MOST:
                break
        width = len(self.alphabet.atoms[0][1])
        self.values[size] = np.asarray(kept) if kept else np.zeros((0, width))
        self.recipes[size] = recipes

    def _candidates(self, size: int) -> Iterator[tuple[Rows, list[Recipe]]]:
        if size == 1:
            atoms = self.alphabet.atoms
            yield np.asarray([v for _, v in atoms]), [("atom", n) for n in range(len(atoms))]
            return
        with np.errstate(all="ignore"):
            yield from self._unary(size)
            for left in range(1, size - 1):
                yield from self._binary(left, size - 1 - left)

    def _unary(self, size: int) -> Iterator[tuple[Rows, list[Recipe]]]:
        below = self.values[size - 1]
        places = [(size - 1, n) for n in range(len(below))]
        for name in self.alphabet.unary:
            if places:
                yield OPS[name].numpy(below), [(name, p) for p in places]
        for choice in self.alphabet.choices:
            if places:
                other = float(choice.otherwise.attr)
                yield np.where(choice.holds, below, other), [(choice, p) for p in places]

    def _binary(self, left: int, right: int) -> Iterator[tuple[Rows, list[Recipe]]]:
        a, b = self.values[left], self.values[right]
        if not len(a) or not len(b):
            return
        pairs = [((left, i), (right, j)) for i in range(len(a)) for j in range(len(b))]
        for name, commutes in BINARY:
            if commutes and left > right:
                continue
            values = OPS[name].numpy(a[:, None, :], b[None, :, :]).reshape(len(pairs), -1)
            yield values, [(name, *p) for p in pairs]

    def build(self, place: Place) -> Expr:
        """The term as an expression over the alphabet's atoms."""
        recipe = self.recipes[place[0]][place[1]]
        if recipe[0] == "atom":
            return self.alphabet.atoms[recipe[1]][0]
        parts = [self.build(p) for p in recipe[1:]]
        if isinstance(recipe[0], Chosen):
            return op("where", recipe[0].condition, parts[0], recipe[0].otherwise)
        return op(recipe[0], *parts)


def _key(values: Rows) -> bytes:
    """Equal for values that agree to nine digits."""
    with np.errstate(all="ignore"):
        scale = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(values), 1e-300))) - 8)
        return bytes((np.round(values / scale) * scale + 0.0).tobytes())
