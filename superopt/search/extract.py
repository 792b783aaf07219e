"""Tile terms, enumerated bottom-up from the saturated e-graph.

For given grid axes, every class gets its few cheapest terms: each e-node says how terms of its
children
make a term of its class (the guide: nothing outside the program's own classes is built). A term is
an expression; its cost is the work of the whole launch, counted over its DAG, recomputation by
programs
that do not differ in it included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import Axis, Expr, cast, const, op, rebuild, reduce, toposort
from superopt.mugraph.ops import OPS
from superopt.mugraph.threads import core, power_of
from superopt.search.egraph import EGraph, ENode
from superopt.search.fingerprint import Accuracy

SAFE = 2  # of which accurate ones, if there are any
KEEP = 5  # terms kept a class
UNROUNDED = 2.01  # operations of a product and sum whose operands stay in single precision
Volume = Callable[[frozenset[Axis]], float]


@dataclass(frozen=True)
class Weights:
    """Seconds a byte loaded, a scalar operation, a tensor-core flop: the machine's balance."""

    byte: float
    scalar: float
    tensor: float


@dataclass
class Counts:
    """What an enumeration did; summed into the report."""

    built: int = 0
    kept: int = 0
    duplicate: int = 0
    dominated: int = 0

    def add(self, other: Counts) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def contraction(e: Expr) -> tuple[Expr, Expr] | None:
    """The operands of a sum of a product whose factors each vary along an axis that the other
    lacks."""
    if e.op != "reduce" or e.attr.monoid != "sum" or len(e.attr.axes) != 1:
        return None
    body = _product_of(e)
    if body.op != "mul" or e.dtype not in ("f32", "f16", "bf16"):
        return None
    a, b = body.args
    bound = set(e.attr.axes)
    if not (bound <= a.free and bound <= b.free) or not a.free - b.free or not b.free - a.free:
        return None
    return a, b


class Coster:
    """The cost of terms for one choice of grid axes, in billionths of a nanosecond.

    Whole numbers: equal work costs the same in whichever order it is added up.
    """

    def __init__(self, volume: Volume, weights: Weights) -> None:
        self.volume = volume
        self.weights = weights
        self.own: dict[Expr, int] = {}
        self.products: dict[Expr, Expr] = {}  # what each contraction met so far sums
        self.below: dict[Expr, frozenset[Expr]] = {}  # the nodes of terms, themselves included
        self.total: dict[Expr, int] = {}
        self.depth: dict[Expr, int] = {}
        self.reduced: dict[Expr, frozenset[Expr]] = {}

    def node(self, e: Expr) -> int:
        cost = self.own.get(e)
        if cost is None:
            cost = self.own[e] = round(self._node(e) * 1e18)
            if contraction(e) is not None:
                self.products[e] = _product_of(e)
        return cost

    def _node(self, e: Expr) -> float:
        w = self.weights
        if e.op in ("const", "sym", "axis"):
            return 0.0
        if e.op == "load":
            return self.volume(e.free) * max(DTYPES[e.dtype].bytes, 1) * w.byte
        if e.op == "cast":
            return 0.0
        if e.op == "reduce":
            inner = e.args[0].free | frozenset(e.attr.axes)
            if contraction(e) is not None:  # of equal ones, that whose operands may be rounded
                return self.volume(inner) * (2 if e.attr.operand else UNROUNDED) * w.tensor
            return self.volume(inner) * w.scalar
        if e.dtype == "index":
            return 0.0
        less = 1.0 if _scaled_power(e) else 0.0
        return self.volume(e.free) * (OPS[e.op].cost - less) * w.scalar

    def __call__(self, e: Expr) -> int:
        cost = self.total.get(e)
        if cost is None:
            nodes = self._nodes(e)
            cost = sum(map(self.node, nodes))
            products = {self.products[n] for n in nodes & self.products.keys()}
            cost -= sum(map(self.node, products))
            self.total[e] = cost
        return cost

    def _nodes(self, e: Expr) -> frozenset[Expr]:
        """All nodes of a term; those of terms in it that have been looked at are known."""
        if (whole := self.below.get(e)) is not None:
            return whole
        found: set[Expr] = set()
        stack = [e]
        while stack:
            n = stack.pop()
            if n in found:
                continue
            if (known := self.below.get(n)) is not None:
                found |= known
            else:
                found.add(n)
                stack.extend(n.args)
        self.below[e] = frozenset(found)
        return self.below[e]

    def reductions(self, e: Expr) -> frozenset[Expr]:
        """The reductions of a term, those in others too."""
        known = self.reduced.get(e)
        if known is None:
            known = self.reduced[e] = frozenset(n for n in self._nodes(e) if n.op == "reduce")
        return known

    def passes(self, e: Expr) -> int:
        """How many reductions follow one another, each of which uses the result of the last."""
        stack = [e]
        while stack:
            n = stack[-1]
            missing = [] if n in self.depth else [a for a in n.args if a not in self.depth]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if n not in self.depth:
                below = max((self.depth[a] for a in n.args), default=0)
                self.depth[n] = below + (n.op == "reduce")
        return self.depth[e]


def _scaled_power(e: Expr) -> bool:
    """Whether a constant factor of the exp's argument costs nothing."""
    power = power_of(e)
    return power is not None and power[0] is not core(e.args[0])


def _product_of(dot: Expr) -> Expr:
    """The product that a contraction sums: part of the dot, not computed by itself."""
    body = dot.args[0]
    while body.op == "cast" and is_float(body.args[0].dtype):
        body = body.args[0]
    return body


@dataclass
class Extractor:
    """Terms of the classes, cheapest first. `given`: classes that are loaded from temporaries.

    Without `accuracy` each class gets its cheapest term alone.
    """

    graph: EGraph
    cost: Coster
    given: Mapping[int, Expr]
    accuracy: Accuracy | None
    counts: Counts = field(default_factory=Counts)
    terms: dict[int, list[Expr]] = field(default_factory=dict)
    accurate: dict[int, Expr] = field(default_factory=dict)  # the cheapest accurate term
    shallow: dict[int, dict[int, Expr]] = field(default_factory=dict)  # by the passes allowed
    class_of: dict[Expr, int] = field(default_factory=dict)

    def run(self, targets: list[int], rounds: int = 24) -> None:
        """Enumerate until no class's terms change; only classes below the targets."""
        classes = self._below(targets)
        for c in classes:
            if c in self.given:
                self.terms[c] = [self.given[c]]
        users: dict[int, set[int]] = {c: set() for c in classes}
        for c in classes:
            for n in self.graph.classes[c].nodes if c not in self.given else ():
                for k in n.children:
                    users[self.graph.find(k)].add(c)
        stale = set(classes) - self.given.keys()
        for _ in range(rounds):
            for c in classes:
                if c in stale:
                    stale.discard(c)
                    if self._class(c):
                        stale |= users[c]
            if not stale:
                return

    def unified(self, term: Expr) -> Expr:
        """The term with one form only of every class that it uses: the first of each."""
        chosen: dict[int, Expr] = {}
        done: dict[Expr, Expr] = {}
        for node in toposort(term):
            new = rebuild(node, tuple(done[a] for a in node.args))
            c = self.class_of.get(node)
            done[node] = new if c is None else chosen.setdefault(c, new)
        return done[term]

    def _below(self, targets: list[int]) -> list[int]:
        g = self.graph
        order: list[int] = []
        seen: set[int] = set()
        stack = [(g.find(t), False) for t in reversed(targets)]
        while stack:
            c, done = stack.pop()
            if done:
                order.append(c)
            elif c not in seen:
                seen.add(c)
                stack.append((c, True))
                if c in self.given:
                    continue
                for n in g.classes[c].nodes:
                    stack.extend((g.find(k), False) for k in n.children if g.find(k) not in seen)
        return order

    def _class(self, c: int) -> bool:
        known = self.terms.setdefault(c, [])
        found = dict.fromkeys(known)
        for n in self.graph.classes[c].nodes:
            for term in self._node(n, self.graph.classes[c].dtype):
                self.counts.built += 1
                if term in found:
                    self.counts.duplicate += 1
                else:
                    found[term] = None
        best = self._front(c, sorted(found, key=lambda t: (self.cost(t), t.size, t.digest)))
        if best == known:
            return False
        self.counts.dominated += len(found) - len(best)
        self.counts.kept += len(best)
        self.terms[c] = best
        self.class_of.update(dict.fromkeys(best, c))
        return True

    def _front(self, c: int, ordered: list[Expr]) -> list[Expr]:
        """The cheapest terms, the cheapest accurate ones among them, and those of fewer passes.

        A safe and an unsafe form have the same real-number value: cost alone would drop the safe
        one. What costs a product more may be what a loop computes in one pass.
        """
        if self.accuracy is None or len(ordered) < 2:
            return ordered[:1]
        safe = [t for t, ok in zip(ordered, self.accuracy.safe(ordered), strict=True) if ok]
        kept = {*self._of_each_kind(ordered), *self._of_each_kind(safe)}
        ordered, safe = ([t for t in own if t in kept] for own in (ordered, safe))
        best = ordered[:KEEP]
        self.accurate[c] = min(safe or ordered, key=self.cost)
        self.shallow[c] = self._by_passes(ordered, set(safe))
        missing = [t for t in safe[:SAFE] if t not in best]
        best = [*best[: KEEP - len(missing)], *missing]
        return list(dict.fromkeys([*best, *self.shallow[c].values()]))

    def _of_each_kind(self, ordered: list[Expr]) -> list[Expr]:
        """The first of the terms that are made of the same reductions: for each set of these."""
        found: dict[frozenset[Expr], Expr] = {}
        for t in ordered:
            found.setdefault(self.cost.reductions(t), t)
        return list(found.values())

    def _by_passes(self, ordered: list[Expr], safe: set[Expr]) -> dict[int, Expr]:
        """For each number of passes below the cheapest term's: the cheapest, accurate if any is."""
        found: dict[int, Expr] = {}
        for t in sorted(ordered, key=lambda t: t not in safe):
            found.setdefault(self.cost.passes(t), t)
        return {n: t for n, t in sorted(found.items()) if n < self.cost.passes(ordered[0])}

    def _choices(self, children: tuple[int, ...]) -> Iterator[tuple[Expr, ...]]:
        """The children's best terms; their accurate ones; one child's next best at a time."""
        classes = [self.graph.find(k) for k in children]
        fronts = {c: self.terms.get(c, []) for c in classes}
        if any(not f for f in fronts.values()):
            return
        best = {c: f[0] for c, f in fronts.items()}
        yield tuple(best[c] for c in classes)
        accurate = {c: self.accurate.get(c, f[0]) for c, f in fronts.items()}
        if accurate != best:
            yield tuple(accurate[c] for c in classes)
        for most in sorted({n for c in classes for n in self.shallow.get(c, ())}):
            yield tuple(self.shallow.get(c, {}).get(most, accurate[c]) for c in classes)
        for changed, front in fronts.items():
            for other in front[1:]:
                yield tuple(other if c == changed else best[c] for c in classes)

    def _node(self, n: ENode, dtype: str) -> Iterator[Expr]:
        if n.op == "leaf":
            e: Expr = n.attr
            yield cast(e, dtype) if is_float(e.dtype) else e
        elif n.op == "reduce":
            yield from self._reduce(n, dtype)
        else:
            for kids in self._choices(n.children):
                yield self._apply(n, kids, dtype)

    def _apply(self, n: ENode, kids: tuple[Expr, ...], dtype: str) -> Expr:
        if n.op == "*":
            return self._product(n.attr, kids, dtype)
        if n.op == "+":
            return self._sum(n.attr, kids, dtype)
        if n.op == "inverse":
            return op("div", const(1.0, dtype), kids[0])
        if n.op == "cast":
            return cast(kids[0], n.attr)
        return op(n.op, *kids)

    def _product(self, scale: float, factors: tuple[Expr, ...], dtype: str) -> Expr:
        """Small factors first, so that broadcasts come late; a lone inverse divides."""
        if scale < 0:
            return op("neg", self._product(-scale, factors, dtype))
        ordered = sorted(factors, key=lambda f: (self.cost.volume(f.free), f.size, f.digest))
        inverses = [f for f in ordered if f.op == "div" and f.args[0] is const(1.0, dtype)]
        if scale != 1.0 and inverses and ordered[0] is inverses[0]:  # c * (1 / a) -> c / a
            ordered[0] = op("div", const(scale, dtype), inverses.pop(0).args[1])
            scale = 1.0
        last = (
            ordered[-1] if inverses and ordered[-1] is inverses[-1] and len(ordered) > 1 else None
        )
        if last is not None:  # a * (1 / b) -> a / b, where b varies as much as the product
            ordered = ordered[:-1]
        result = _scaled(ordered[0], scale, dtype, alone=len(ordered) == 1)
        for f in ordered[1:]:
            result = op("square", f) if f is result and len(ordered) == 2 else op("mul", result, f)
        return op("div", result, last.args[1]) if last is not None else result

    def _sum(self, constant: float, terms: tuple[Expr, ...], dtype: str) -> Expr:
        def negated(t: Expr) -> Expr | None:
            if t.op == "neg":
                return t.args[0]
            if t.op == "mul" and t.args[1].op == "neg":
                return op("mul", t.args[0], t.args[1].args[0])
            if t.op == "mul" and t.args[0].op == "neg":
                return op("mul", t.args[0].args[0], t.args[1])
            return None

        ordered = sorted(terms, key=lambda t: (negated(t) is not None, t.size, t.digest))
        result = ordered[0]
        for t in ordered[1:]:
            minus = negated(t)
            result = op("sub", result, minus) if minus is not None else op("add", result, t)
        if constant < 0:
            return op("sub", result, const(-constant, dtype))
        return op("add", result, const(constant, dtype)) if constant else result

    def _reduce(self, n: ENode, dtype: str) -> Iterator[Expr]:
        body = self.graph.find(n.children[0])
        monoid, axes, operand = n.attr.monoid, n.attr.axes, n.attr.operand
        if monoid == "sum" and is_float(dtype) and len(axes) == 1:
            for product in [m for m in self.graph.classes[body].nodes if m.op == "*"]:
                for kids in self._choices(product.children):
                    for a, b in self._sides(kids, axes[0]):
                        left = self._product(product.attr, a, dtype)
                        dot = op("mul", left, self._product(1.0, b, dtype))
                        yield reduce(monoid, axes, dot, operand)
        for term in self.terms.get(body, []):
            yield reduce(monoid, axes, term, operand)

    def _sides(
        self, factors: tuple[Expr, ...], k: Axis
    ) -> Iterator[tuple[tuple[Expr, ...], tuple[Expr, ...]]]:
        """Ways to split a product under a sum into two dot operands.

        Factors that vary along another axis than k stand on the side of that axis; those that vary
        along k alone go to either side as a whole (x*g @ w, or x @ g*w).
        """
        if any(k not in f.free for f in factors):
            return
        wide = [f for f in factors if f.free - {k}]
        narrow = tuple(f for f in factors if not f.free - {k})
        for anchor in dict.fromkeys(frozenset(f.free) for f in wide):
            left = tuple(f for f in wide if f.free <= anchor)
            right = tuple(f for f in wide if not f.free <= anchor)
            if not left or not right:
                continue
            right_free = frozenset().union(*(f.free for f in right))
            if not anchor - right_free or not right_free - anchor:
                continue
            yield (*left, *narrow), right
            if narrow:
                yield left, (*right, *narrow)


def _scaled(e: Expr, scale: float, dtype: str, alone: bool) -> Expr:
    """scale * e; a mean reads better, and rounds better, as a division by its count."""
    if scale == 1.0:
        return e
    count = round(1.0 / scale) if 2.0**-63 < scale < 1.0 else 0
    if alone and count > 1 and 1.0 / count == scale:
        return op("div", e, const(float(count), dtype))
    return op("mul", e, const(scale, dtype))
