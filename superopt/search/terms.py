"""Scalar terms, enumerated bottom-up by size until given values are met.

A term is judged by its values at sample rows alone: terms that agree on all rows are one, the
smallest is kept. A term whose value is not finite everywhere is dropped. All terms of a size are
evaluated at once, as arrays. Terms up to half of the largest size are built; a larger one is met in
the middle: for a target t and a term b, t/b (or t - b, ...) is looked up among the terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from superopt.mugraph.expr import Expr, const, op
from superopt.mugraph.ops import OPS

Rows = np.ndarray[Any, np.dtype[np.float64]]  # (terms, rows)

BUILT = 4  # nodes of the terms that are built, a constant factor aside
LARGEST = 2 * BUILT + 1  # of those that are met in the middle
MOST = 200_000  # terms tried for one question
MOST_KEPT = 4_000  # terms of one size that larger ones are made of
BINARY = (("sub", False), ("add", True), ("mul", True), ("div", False))
MEETINGS: tuple[tuple[str, Callable[[Rows, Rows], Rows], bool], ...] = (
    ("mul", lambda t, b: t / b, False),  # t is b * a
    ("div", lambda t, b: b / t, False),  # t is b / a
    ("div", lambda t, b: t * b, True),  # t is a / b
    ("add", lambda t, b: t - b, False),
    ("sub", lambda t, b: b - t, False),
    ("sub", lambda t, b: t + b, True),
)  # the operator, what a then is, whether a stands on the left
INVERSE = {"exp": np.log, "exp2": np.log2, "log": np.exp, "square": np.sqrt, "sqrt": np.square}
TOLERANCE = 1e-7
MET_ROWS, MET_DIGITS = 8, 6  # where a term is looked up; more digits than targets have miss it


@dataclass(frozen=True)
class Chosen:
    """The term `where(condition, t, otherwise)` for any t: `holds` is the condition at each row.

    `value`: of `otherwise`.
    """

    condition: Expr
    holds: np.ndarray[Any, np.dtype[np.bool_]]
    otherwise: Expr
    value: float


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
    """An enumeration. `tried` counts the terms that were evaluated or looked up."""

    alphabet: Alphabet
    tried: int = 0
    values: dict[int, Rows] = field(default_factory=dict)
    recipes: dict[int, list[Recipe]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)
    places: dict[bytes, Place] = field(default_factory=dict)  # by values at some rows
    scaled: dict[bytes, Place] = field(default_factory=dict)  # by those over the first of them

    def find(self, targets: Sequence[Rows]) -> list[Expr | None]:
        """The smallest term with each target's values; None where the bound was met before."""
        found: list[Expr | None] = [None] * len(targets)
        for size in range(1, LARGEST + 1):
            if size <= BUILT:
                self._grow(size)
            for n, target in enumerate(targets):
                if found[n] is None:
                    found[n] = self._match(size, target) if size <= BUILT else None
                    found[n] = found[n] or self._met(size, target)
            if all(f is not None for f in found) or self.tried > MOST:
                break
        return found

    def _match(self, size: int, target: Rows) -> Expr | None:
        """A term of this size with the target's values, or with a constant multiple of them."""
        values = self.values[size]
        if not len(values):
            return None
        hits = np.flatnonzero(_near(values, target).all(axis=1))
        if len(hits):
            return self.build((size, int(hits[0])))
        with np.errstate(all="ignore"):
            factor = target[0] / values[:, 0]
            same = _near(values * factor[:, None], target).all(axis=1)
        hits = np.flatnonzero(same & np.isfinite(factor) & (factor != 0))
        if not len(hits):
            return None
        return _multiple(self.build((size, int(hits[0]))), float(factor[hits[0]]))

    def _met(self, size: int, target: Rows) -> Expr | None:
        """A term of this size, of two that were built; or the image of such a term."""
        if size <= BUILT:
            return None
        found = self._pair(size, target)
        for name in self.alphabet.unary if found is None else ():
            if name not in INVERSE or found is not None:
                continue
            with np.errstate(all="ignore"):
                argument = INVERSE[name](target)
                same = np.abs(OPS[name].numpy(argument) - target) <= TOLERANCE * np.abs(target)
            if np.isfinite(argument).all() and same.all():
                inner = self._pair(size - 1, argument)
                found = None if inner is None else op(name, inner)
        return found

    def _pair(self, size: int, target: Rows) -> Expr | None:
        for left in range(max(1, size - 1 - BUILT), min(BUILT, size - 2) + 1):
            b, wanted = self.values[left], size - 1 - left
            for name, other, swapped in MEETINGS if len(b) else ():
                multiples = name in ("mul", "div")
                known = self.scaled if multiples else self.places
                with np.errstate(all="ignore"):
                    rest = other(target[:MET_ROWS], b[:, :MET_ROWS])
                    keys = _keys(rest / rest[:, :1] if multiples else rest, MET_DIGITS)
                self.tried += len(rest)
                for n, key in enumerate(keys):
                    place = known.get(key)
                    if place is None or place[0] > wanted:
                        continue
                    pair = (place, (left, n)) if swapped else ((left, n), place)
                    factor = self._factor(name, pair, target)
                    if factor is not None:
                        return _multiple(op(name, *map(self.build, pair)), factor)
        return None

    def _factor(self, name: str, pair: tuple[Place, Place], target: Rows) -> float | None:
        """What a pair's values are to be multiplied by to be the target's."""
        with np.errstate(all="ignore"):
            values = OPS[name].numpy(*(self.values[size][n] for size, n in pair))
            factor = 1.0 if name in ("add", "sub") else float(target[0] / values[0])
            near = _near(factor * values, target)
        return factor if np.isfinite(factor) and factor and near.all() else None

    def _grow(self, size: int) -> None:
        kept: list[Rows] = []
        recipes: list[Recipe] = []
        for values, made in self._candidates(size):
            self.tried += len(values)
            finite = np.isfinite(values).all(axis=1) & (np.abs(values).max(axis=1) < 1e100)
            usable = np.flatnonzero(finite)
            for n, key in zip(usable, _keys(values[usable]), strict=True):
                if len(recipes) >= MOST_KEPT:
                    break
                if key not in self.seen:
                    self.seen.add(key)
                    kept.append(values[n])
                    recipes.append(made(int(n)))
            if self.tried > MOST:
                break
        width = len(self.alphabet.atoms[0][1])
        self.values[size] = np.asarray(kept) if kept else np.zeros((0, width))
        self.recipes[size] = recipes
        some = self.values[size][:, :MET_ROWS]
        with np.errstate(all="ignore"):
            scaled = some / some[:, :1]
        for known, at in ((self.places, some), (self.scaled, scaled)):
            for number, key in enumerate(_keys(at, MET_DIGITS)):
                known.setdefault(key, (size, number))

    def _candidates(self, size: int) -> Iterator[tuple[Rows, Callable[[int], Recipe]]]:
        """Values of terms of a size, and what makes the n-th of them."""
        if size == 1:
            yield np.asarray([v for _, v in self.alphabet.atoms]), lambda n: ("atom", n)
            return
        with np.errstate(all="ignore"):
            yield from self._unary(size)
            for left in range(1, size - 1):
                yield from self._binary(left, size - 1 - left)

    def _unary(self, size: int) -> Iterator[tuple[Rows, Callable[[int], Recipe]]]:
        below = self.values[size - 1]
        if not len(below):
            return
        for name in self.alphabet.unary:
            yield OPS[name].numpy(below), _of_one(name, size - 1)
        for choice in self.alphabet.choices:
            values = np.where(choice.holds, below, choice.value)
            yield values, _of_one(choice, size - 1)

    def _binary(self, left: int, right: int) -> Iterator[tuple[Rows, Callable[[int], Recipe]]]:
        a, b = self.values[left], self.values[right]
        if not len(a) or not len(b):
            return
        for name, commutes in BINARY:
            if commutes and left > right:
                continue
            values = OPS[name].numpy(a[:, None, :], b[None, :, :]).reshape(len(a) * len(b), -1)
            yield values, _of_two(name, left, right, len(b))

    def build(self, place: Place) -> Expr:
        """The term as an expression over the alphabet's atoms."""
        recipe = self.recipes[place[0]][place[1]]
        if recipe[0] == "atom":
            return self.alphabet.atoms[recipe[1]][0]
        parts = [self.build(p) for p in recipe[1:]]
        if isinstance(recipe[0], Chosen):
            return op("where", recipe[0].condition, parts[0], recipe[0].otherwise)
        return op(recipe[0], *parts)


def _of_one(head: str | Chosen, size: int) -> Callable[[int], Recipe]:
    return lambda n: (head, (size, n))


def _of_two(name: str, left: int, right: int, width: int) -> Callable[[int], Recipe]:
    return lambda n: (name, (left, n // width), (right, n % width))


def _multiple(term: Expr, factor: float) -> Expr:
    if abs(factor - 1) < 1e-6:
        return term
    value = round(factor) if abs(factor - round(factor)) < 1e-6 * abs(factor) else factor
    return const(value, "f32") if term.op == "const" else op("mul", term, const(value, "f32"))


def _near(values: Rows, target: Rows) -> np.ndarray[Any, np.dtype[np.bool_]]:
    size = np.abs(target) + np.abs(values)
    least = 1e-12 * np.abs(target).max(initial=0.0)
    return np.asarray(np.abs(values - target) <= TOLERANCE * size + least)


def _keys(values: Rows, digits: int = 9) -> list[bytes]:
    """A key a row: equal for values that agree to so many digits."""
    with np.errstate(all="ignore"):
        scale = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(values), 1e-300))) - digits + 1)
        rounded = np.round(values / scale) * scale + 0.0
    return [row.tobytes() for row in np.ascontiguousarray(rounded)]
