"""Degrees of the rational functions that expressions stand for, as functions of their float inputs.

Every float node is N / D, with N a polynomial and D a product of *divisors*: what was divided by. A
divisor is kept by name (its node, and the axes over which a product of it is taken), so that terms
with a common denominator stay cheap, while

    sum[k] a[k] / b[k]  (n terms)  has  D = b[0] * ... * b[n-1],  deg N <= deg a + (n - 1) * deg b
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.evaluate import NoFieldMeaning
from superopt.mugraph.expr import Axis, Expr, toposort
from superopt.mugraph.index import value as extent_value

Divisor = tuple[Expr, frozenset[Axis]]  # the product of a node's numerator over all of these axes


@dataclass(frozen=True)
class Ratio:
    """Bounds: `top` on the degree of N; `below` the divisors of D with their multiplicities."""

    top: int = 0
    below: Mapping[Divisor, int] = field(default_factory=dict)


class Degrees:
    """Degree bounds at given sizes. Raises NoFieldMeaning where a node is no rational function."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.ratios: dict[Expr, Ratio] = {}

    def __call__(self, root: Expr) -> Ratio:
        for node in toposort(root):
            if node not in self.ratios:
                self.ratios[node] = self._node(node) if is_float(node.dtype) else Ratio()
        return self.ratios[root]

    def extent(self, axes: frozenset[Axis]) -> int:
        total = 1
        for a in axes:
            total *= extent_value(a.extent, self.sizes)
        return total

    def of(self, divisors: Mapping[Divisor, int]) -> int:
        """The degree of a product of divisors."""
        return sum(m * self.ratios[n].top * self.extent(axes) for (n, axes), m in divisors.items())

    def difference(self, a: Expr, b: Expr) -> int:
        """A bound on the degree of the numerator of a - b, both brought to one denominator."""
        return self._sum(self(a), self(b)).top

    # -- one rule a node ------------------------------------------------------------------------

    def _node(self, node: Expr) -> Ratio:
        args = [self.ratios[a] for a in node.args]
        match node.op:
            case "const":
                return Ratio()
            case "load":
                return Ratio(1)
            case "cast" | "neg":
                return args[0]
            case "add" | "sub":
                return self._sum(args[0], args[1])
            case "where":
                return self._sum(args[1], args[2])
            case "mul":
                return _product(args[0], args[1])
            case "square":
                return _product(args[0], args[0])
            case "div":
                return _product(args[0], self._inverse(node.args[1]))
            case "pow" if node.args[1].op == "const" and float(node.args[1].attr).is_integer():
                return self._power(node.args[0], int(node.args[1].attr))
            case "reduce":
                return self._reduce(node, args[0])
        raise NoFieldMeaning(f"operator {node.op} has no exact meaning over a finite field")

    def _sum(self, a: Ratio, b: Ratio) -> Ratio:
        both = {d: max(a.below.get(d, 0), b.below.get(d, 0)) for d in {**a.below, **b.below}}
        whole = self.of(both)
        return Ratio(max(x.top + whole - self.of(x.below) for x in (a, b)), both)

    def _inverse(self, e: Expr) -> Ratio:
        return Ratio(self.of(self.ratios[e].below), {(e, frozenset()): 1})

    def _power(self, base: Expr, exponent: int) -> Ratio:
        once = self.ratios[base] if exponent >= 0 else self._inverse(base)
        times = abs(exponent)
        return Ratio(once.top * times, {d: m * times for d, m in once.below.items() if times})

    def _reduce(self, node: Expr, body: Ratio) -> Ratio:
        bound = frozenset(node.attr.axes)
        terms = self.extent(bound)
        if terms == 0:
            return Ratio()
        if node.attr.monoid == "prod":
            return Ratio(body.top * terms, self._over(body.below, bound, terms))
        if node.attr.monoid != "sum":
            raise NoFieldMeaning(f"a reduction by {node.attr.monoid} has no field meaning")
        common = self._over(body.below, bound, None)
        return Ratio(body.top + self.of(common) - self.of(body.below), common)

    def _over(
        self, below: Mapping[Divisor, int], bound: frozenset[Axis], terms: int | None
    ) -> dict[Divisor, int]:
        """The denominator of a sum of terms over `bound`, or of a product of so many `terms`."""
        result: dict[Divisor, int] = {}
        for (node, axes), m in below.items():
            varies = (node.free - axes) & bound
            repeat = 1 if terms is None else terms // self.extent(varies)
            result[node, axes | varies] = result.get((node, axes | varies), 0) + m * repeat
        return result


def _product(a: Ratio, b: Ratio) -> Ratio:
    below = {d: a.below.get(d, 0) + b.below.get(d, 0) for d in {**a.below, **b.below}}
    return Ratio(a.top + b.top, below)
