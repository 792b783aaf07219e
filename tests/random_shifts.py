"""Random reductions whose bodies use statistics over the same axis, and a check of their shifts.

The check shares nothing with the synthesis but the expressions: it has an evaluator of its own, on
data of its own. A law must hold there; where there is none, a search by linear algebra says whether
one exists. By hand, many at once: `python tests/random_shifts.py 10000`.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import (
    Axis,
    Expr,
    Tensor,
    axis,
    const,
    index,
    load,
    op,
    prior,
    reduce,
)
from superopt.mugraph.text import inline
from superopt.search.shift import MOST_FACTORS, Law, Shifts, after, before, statistics

ROWS, PLACES, PREFIX = 24, 40, 25  # rows of data, places on K, those that the loop has met
ROW, K = Axis("i", index(7)), Axis("k", index(PLACES))
FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide,
    "pow": np.power, "neg": np.negative, "abs": np.abs, "square": np.square, "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a), "exp": np.exp, "exp2": np.exp2, "log": np.log,
    "log2": np.log2, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    "maximum": np.maximum, "minimum": np.minimum, "where": np.where, "isnan": np.isnan,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
}  # fmt: skip
JOIN = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}

Data = dict[str, np.ndarray]  # a tensor's values: (rows, places), or (rows, 1)


def tensor(name: str, *axes: Axis, dtype: str = "f32") -> Expr:
    return load(Tensor(name, tuple(a.extent for a in axes), dtype), map(axis, axes))


X, Y, Z = (tensor(name, ROW, K) for name in "xyz")
W, C, M = tensor("w", K), tensor("c", ROW), tensor("m", ROW, K, dtype="bool")
LEAVES = (X, Y, Z, W, C, M)


def fresh_data(seed: int, leaves: Sequence[Expr] = LEAVES) -> Data:
    """Normal data; in some rows rounded, so that there are ties and zeros, or shifted."""
    rng = np.random.default_rng(seed)
    data = {}
    for e in leaves:
        shape = (ROWS, PLACES if K in e.free else 1)
        if e.dtype == "bool":
            data[e.attr.name] = rng.random(shape) < 0.5
            continue
        v = rng.normal(size=shape)
        v[::6] = np.round(2 * v[::6]) / 2
        v[1::6] = 0.3 * v[1::6] + 2.0
        v[2::6] = np.round(v[2::6])
        v[3::6] = np.round(v[3::6])
        data[e.attr.name] = v
    return data


class Meaning:
    """Values of expressions on data, at some places of K, with the values of some nodes given."""

    def __init__(self, data: Data, places: np.ndarray, given: dict[Expr, np.ndarray]) -> None:
        self.data, self.places = data, places
        self.known = dict(given)

    def __call__(self, root: Expr) -> np.ndarray:
        if root not in self.known:
            with np.errstate(all="ignore"):
                self.known[root] = self._value(root)
        return self.known[root]

    def _value(self, e: Expr) -> np.ndarray:
        match e.op:
            case "const":
                return np.full((1, 1), e.attr)
            case "axis":
                return self.places[None, :]
            case "load":
                v = self.data[e.attr.name]
                return v[:, self.places] if K in e.free else v
            case "cast":
                return np.asarray(self(e.args[0]), np.float64 if is_float(e.dtype) else None)
            case "reduce":
                body = np.broadcast_to(self(e.args[0]), (ROWS, len(self.places)))
                return JOIN[e.attr.monoid](body, axis=1, keepdims=True)
        return FUNCTIONS[e.op](*map(self, e.args))


class Moved:
    """Prefixes of a body's places, before and after its statistics have changed.

    `few`: the old statistics are those of so many places of the prefix only.
    """

    def __init__(
        self, data: Data, statistics: Sequence[Expr], seed: int, most: int, few: int | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        every = np.arange(PLACES)
        prefix = np.sort(rng.choice(every, most, replace=False))
        whole, part = Meaning(data, every, {}), Meaning(data, prefix[:few], {})
        self.data, self.prefix = data, prefix
        self.old = {s: part(s) for s in statistics}
        self.new = {s: whole(s) for s in statistics}
        self.statistics = tuple(statistics)

    def at(self, count: int) -> Meaning:
        """The prefix where the first `count` statistics have changed."""
        values = [(self.new if n < count else self.old)[s] for n, s in enumerate(self.statistics)]
        return Meaning(self.data, self.prefix, dict(zip(self.statistics, values, strict=True)))


def broken_by(law: Law, seed: int, data: Data | None = None) -> str | None:
    """How a law fails on data that its synthesis has not seen; None where it holds."""
    for most in (1, 2, 7, PREFIX):
        moved = Moved(data or fresh_data(seed), law.statistics, seed + most, most)
        then, now = moved.at(0), moved.at(len(law.statistics))
        given = {before(s): v for s, v in moved.old.items()}
        given |= {after(s): v for s, v in moved.new.items()}
        given |= {prior(r): then(r) for r in (law.reduction, *law.auxiliaries)}
        view = Meaning(moved.data, moved.prefix, given)
        got, want = np.broadcast_arrays(view(law.update), now(law.reduction))
        size = np.abs(got) + np.abs(want)
        if law.reduction.attr.monoid == "sum":
            size = size + JOIN["sum"](np.abs(now(law.reduction.args[0])), axis=1, keepdims=True)
        for accumulator, coefficient in law.terms:
            with np.errstate(all="ignore"):
                size = size + np.abs(then(accumulator) * view(coefficient))
        usable = np.isfinite(size) & (size < 1e100)
        bad = usable & ~(np.abs(got - want) <= 1e-6 * size + 1e-12)
        if bad.any():
            n = int(np.argwhere(bad)[0][0])
            return f"{law.text} after {most} places is {got[n, 0]}, should be {want[n, 0]}"
        if not usable.any():
            return f"{law.text} is nowhere a number"
    return None


# -- whether a law exists -------------------------------------------------------------------------


def exists(r: Expr, factors: Sequence[Expr], statistics: Sequence[Expr], seed: int) -> str:
    """'small', 'large' or 'none': whether bodies at the old statistics combine to the new one's.

    Bodies: r's own, and at most three products of its factors, which must be moved themselves.
    'small': and all coefficients are short terms of the statistics.
    """
    body, monoid = r.args[0], r.attr.monoid
    sums = monoid == "sum"
    others = list(_products(factors, body)) if sums else [const(1.0, "f32")]
    moved = Moved(fresh_data(seed), statistics, seed, PREFIX)
    if any(e.op == "eq" and not moved.at(0)(e).any() for e in _own(body, statistics)):
        return "none"  # data in which nothing equals the statistic do not show what moves then
    again = Moved(fresh_data(seed + 1), statistics, seed + 1, PREFIX, few=1)
    best = "none"
    for count in range(4 if sums else 2 if monoid != "prod" else 1):
        for chosen in combinations(others, count):
            basis = [body, *chosen]
            found = _closed(basis, moved, r)
            if found == "none" or _closed(basis, again, r) == "none":
                continue
            if found == "small":
                return found
            best = found
    return best


def _products(factors: Sequence[Expr], body: Expr) -> Iterator[Expr]:
    yield const(1.0, "f32")
    varying = [f for f in factors if K in f.free]
    found: dict[Expr, None] = {}
    for count in range(1, len(varying) + 1):
        for chosen in combinations(varying, count):
            product = chosen[0]
            for f in chosen[1:]:
                product = op("mul", product, f)
            found[product] = None
    yield from (e for e in found if e is not body)


def _closed(basis: list[Expr], moved: Moved, r: Expr) -> str:
    """Whether each of the basis is moved, statistic by statistic, to a combination of it."""
    verdict = "small"
    extreme = r.attr.monoid != "sum"
    for step in range(len(moved.statistics)):
        old, new = moved.at(step), moved.at(step + 1)
        columns = [np.broadcast_to(old(b), (ROWS, PREFIX)) for b in basis]
        for b in basis[:1] if extreme else basis:
            values = _combination(np.broadcast_to(new(b), (ROWS, PREFIX)), columns)
            if values is None:
                return "none"
            if r.attr.monoid in ("max", "min") and (values[:, 0] < 0).any():
                return "none"
            if not all(_is_short(v, moved, step, r) for v in values.T):
                verdict = "large"
    return verdict


def _combination(y: np.ndarray, columns: list[np.ndarray]) -> np.ndarray | None:
    """Coefficients that give y in every row; NaN in rows where several would do."""
    found = np.full((len(y), len(columns)), np.nan)
    several = 0
    for n in range(len(y)):
        x = np.stack([c[n] for c in columns], axis=1)
        size = np.abs(x).max(axis=0) + 1e-300
        if not (np.isfinite(x).all() and np.isfinite(y[n]).all()):
            return None
        values, _, rank, _ = np.linalg.lstsq(x / size, y[n], rcond=1e-9)
        if np.abs(x / size @ values - y[n]).max() > 1e-8 * (np.abs(y[n]).max() + 1e-300):
            return None
        if rank == len(columns):
            found[n] = values / size
            continue
        several += 1
        if several > len(y) / 4:
            return None
    return found


def _is_short(value: np.ndarray, moved: Moved, step: int, r: Expr) -> bool:
    """Whether a coefficient is a constant times a term of at most two operators."""
    s = moved.statistics[step]
    old, new = (np.broadcast_to(v[s], (ROWS, 1))[:, 0] for v in (moved.old, moved.new))
    told = (old != new) & np.isfinite(value)
    old, new, value = old[told], new[told], value[told]
    if np.abs(value).max(initial=0.0) < 1e-9:
        return True
    names = {e.op for e in _own(r.args[0], moved.statistics)} & set(FUNCTIONS)
    unary = [FUNCTIONS[n] for n in sorted(names) if n in ("exp", "exp2", "square", "sqrt", "rsqrt")]
    atoms = [old, new, old - new, np.ones(len(old))]
    with np.errstate(all="ignore"):
        first = [f(a) for f in unary for a in atoms]
        second = [f(a, b) for f in (np.add, np.multiply, np.true_divide)
                  for a, b in product([*atoms, *first], repeat=2)]  # fmt: skip
        for term in [*atoms, *first, *second]:
            ratio = value / term
            if np.isfinite(ratio).all() and np.ptp(ratio) <= 1e-6 * np.abs(ratio).max():
                return True
    return False


def _own(root: Expr, stop: Sequence[Expr]) -> list[Expr]:
    """The nodes of an expression outside of its statistics."""
    found, stack = {root: None}, [root]
    while stack:
        e = stack.pop()
        below = () if e in stop else [a for a in e.args if a not in found]
        found.update(dict.fromkeys(below))
        stack.extend(below)
    return list(found)


# -- the grammar ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """A reduction, and what its body multiplies where it is a product."""

    seed: int
    r: Expr
    factors: tuple[Expr, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {inline(self.r, 400)}"


def number(value: float) -> Expr:
    return const(value, "f32")


def _reduced(monoid: str, body: Expr) -> Expr:
    return reduce(monoid, [K], body)


def _mean(body: Expr) -> Expr:
    return op("div", _reduced("sum", body), number(PLACES))


def _exp_sum(x: Expr) -> Expr:
    return _reduced("sum", op("exp", op("sub", x, _reduced("max", x))))


STATISTICS: tuple[Callable[[Expr], Expr], ...] = (
    lambda x: _reduced("max", x),
    lambda x: _reduced("max", x),
    lambda x: _reduced("min", x),
    lambda x: _reduced("sum", x),
    _mean,
    _mean,
    lambda x: _reduced("sum", op("exp", x)),
    lambda x: op("log", _reduced("sum", op("exp", x))),
    lambda x: op("sqrt", _reduced("sum", op("square", x))),
    lambda x: op("rsqrt", op("add", _mean(op("square", x)), number(1e-6))),
    lambda x: _reduced("max", op("abs", x)),
    _exp_sum,
    lambda x: op("add", _reduced("max", x), op("log", _exp_sum(x))),
)
FACTORS: tuple[Callable[[Expr, Expr], Expr], ...] = (  # of a load and a statistic
    lambda x, s: op("exp", op("sub", x, s)),
    lambda x, s: op("exp", op("sub", x, s)),
    lambda x, s: op("exp2", op("sub", x, s)),
    lambda x, s: op("exp2", op("mul", op("sub", x, s), number(1.5))),
    lambda x, s: op("exp", op("mul", op("sub", x, s), C)),
    lambda x, s: op("exp", op("div", x, s)),
    lambda x, s: op("sub", x, s),
    lambda x, s: op("sub", x, s),
    lambda x, s: op("add", x, s),
    lambda x, s: op("square", op("sub", x, s)),
    lambda x, s: op("square", op("add", op("mul", x, number(2.0)), s)),
    lambda x, s: op("mul", op("sub", x, s), op("sub", x, s)),
    lambda x, s: op("mul", op("sub", x, s), op("square", op("sub", x, s))),
    lambda x, s: op("div", x, s),
    lambda x, s: op("mul", x, s),
    lambda x, s: op("div", op("sub", x, C), s),
    lambda x, s: op("add", x, op("mul", s, Z)),
    lambda x, s: op("where", M, op("exp", op("sub", x, s)), number(0.0)),
    lambda x, s: op("where", M, op("sub", x, s), number(0.0)),
    lambda x, s: op("exp", op("where", M, op("sub", x, s), number(-np.inf))),
    lambda x, s: op("where", op("eq", x, s), number(1.0), number(0.0)),
    lambda x, s: op("where", op("ge", x, s), Y, number(0.0)),
    lambda x, s: op("where", op("gt", x, s), op("sub", x, s), number(0.0)),
    lambda x, s: op("abs", op("sub", x, s)),
    lambda x, s: op("tanh", op("sub", x, s)),
    lambda x, s: op("maximum", x, s),
    lambda x, s: op("sin", op("mul", x, s)),
)
PLAIN: tuple[Callable[[Expr], Expr], ...] = (
    lambda x: x,
    lambda x: x,
    lambda x: op("square", x),
    lambda x: op("exp", x),
    lambda x: op("tanh", x),
)
LOADS = (X, X, X, Y, Y, Z, W)
MONOIDS = ("sum",) * 6 + ("max", "min", "prod")


def draw(seed: int) -> Draw:
    """A reduction over K whose body uses one statistic over it, or two."""
    rng = random.Random(seed)
    statistics = [rng.choice(STATISTICS)(rng.choice((X, X, Y)))]
    if rng.random() < 0.3:
        statistics.append(rng.choice(STATISTICS)(rng.choice((X, Y))))
    factors = [rng.choice(FACTORS)(rng.choice(LOADS[:5]), s) for s in statistics]
    if rng.random() < 0.15:
        factors.append(rng.choice(FACTORS)(X, rng.choice(statistics)))
    if rng.random() < 0.4:
        factors.append(rng.choice(PLAIN)(rng.choice(LOADS)))
    if rng.random() < 0.15:
        factors.append(rng.choice(factors))
    rng.shuffle(factors)
    body = factors[0]
    for f in factors[1:]:
        body = op("mul", body, f)
    if rng.random() < 0.15:
        body = op("div", body, rng.choice(statistics))
    if rng.random() < 0.15:
        factors = [op("add", body, rng.choice(PLAIN)(rng.choice(LOADS)))]
        body = factors[0]
    return Draw(seed, _reduced(rng.choice(MONOIDS), body), tuple(_flat(factors)))


def _flat(factors: Sequence[Expr]) -> Iterator[Expr]:
    """A square as its operand twice, a quotient as what it divides."""
    for f in factors:
        if f.op in ("square", "mul"):
            yield from _flat(f.args * (2 if f.op == "square" else 1))
        elif f.op == "div":
            yield from _flat(f.args[:1])
        else:
            yield f


def active(r: Expr) -> frozenset[Expr]:
    """The reductions over K that a body uses, but those inside others."""
    found, stack = set(), [r.args[0]]
    while stack:
        e = stack.pop()
        if e.op == "reduce":
            found.add(e)
        else:
            stack.extend(e.args)
    return frozenset(found)


def law_of(r: Expr) -> Law | None:
    return Shifts().law(r, K, active(r))


def verdict(drawn: Draw) -> tuple[str, str]:
    """'found', 'none', 'beyond', or 'wrong' or 'missed'; the law, or what is wrong with it."""
    law = law_of(drawn.r)
    if law is not None:
        problem = broken_by(law, 1000 + drawn.seed)
        return ("found", law.text) if problem is None else ("wrong", problem)
    moving = statistics(drawn.r, K, active(drawn.r))
    found = exists(drawn.r, drawn.factors, moving, drawn.seed)
    if found == "small" and sum(K in f.free for f in drawn.factors) > MOST_FACTORS:
        found = "large"
    return {"small": "missed", "large": "beyond", "none": "none"}[found], ""


def main(first: int, count: int) -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(first, first + count):
        drawn = draw(seed)
        kind, text = verdict(drawn)
        verdicts[kind] += 1
        if kind in ("wrong", "missed", "beyond"):
            print(f"{kind}: {drawn}: {text}", flush=True)
    print(dict(verdicts))


if __name__ == "__main__":
    main(int((sys.argv[2:] or ["0"])[0]), int(sys.argv[1]))
