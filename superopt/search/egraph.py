"""A small e-graph over indexed expressions, with n-ary products and sums.

Why not egglog: it holds products as binary nodes, and a bare product of 10 factors saturates at
57,012 nodes there, of 12 at over 486,000 (measured, see DESIGN section 3). Here a product is one
node, a scaled multiset of classes, and the rules work around reductions only.

Casts between floats are precision hints, so a class holds a value and all its roundings; the
narrowest one seen is kept for the temporaries' element type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import Axis, Expr, Reduction, const, toposort


@dataclass(frozen=True, slots=True)
class ENode:
    """`op` on classes. leaf: attr is an Expr. "*": attr times the product. "+": attr plus the sum.

    reduce: attr is the Reduction. Others: attr is the result's element type.
    """

    op: str
    attr: Any
    children: tuple[int, ...]


@dataclass(slots=True)
class Class:
    """One class: its nodes in order of discovery, axes that its value really varies along."""

    nodes: dict[ENode, None]
    free: frozenset[Axis]
    rounded: str | None = None  # the narrowest float type that the program rounds this value to
    dtype: str = "f32"


_NARROW = {"f64": 0, "f32": 1, "bf16": 2, "f16": 3}


class EGraph:
    """Classes by number; `find` gives a class's current number."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.classes: dict[int, Class] = {}
        self.number: dict[ENode, int] = {}
        self.of: dict[Expr, int] = {}
        self.dirty = False
        self.written: set[int] = set()  # classes of the program's own expressions

    @property
    def size(self) -> int:
        return sum(len(c.nodes) for c in self.classes.values())

    def find(self, c: int) -> int:
        while self.parent[c] != c:
            self.parent[c] = self.parent[self.parent[c]]
            c = self.parent[c]
        return c

    def __getitem__(self, c: int) -> Class:
        return self.classes[self.find(c)]

    # -- adding ---------------------------------------------------------------------------------

    def canonical(self, n: ENode) -> ENode:
        children = tuple(self.find(c) for c in n.children)
        if n.op in ("*", "+"):
            children = tuple(sorted(children))
        return n if children == n.children else ENode(n.op, n.attr, children)

    def add(self, n: ENode, dtype: str = "f32") -> int:
        n = self.canonical(n)
        if n in self.number:
            return self.find(self.number[n])
        if n.op in ("*", "+") and len(n.children) == 1 and n.attr == (1.0 if n.op == "*" else 0.0):
            return n.children[0]
        c = len(self.parent)
        self.parent.append(c)
        free = frozenset().union(*(self[k].free for k in n.children)) if n.children else frozenset()
        if n.op == "leaf":
            free = n.attr.free
        elif n.op == "reduce":
            free -= frozenset(n.attr.axes)
        self.classes[c] = Class({n: None}, free, None, dtype)
        self.number[n] = c
        return c

    def product(self, coefficient: float, children: list[int], dtype: str = "f32") -> int:
        """coefficient * product of classes; factors that are products themselves are spliced in."""
        flat: list[int] = []
        for c in children:
            inner = next((n for n in self[c].nodes if n.op == "*"), None)
            constant = self.constant(c)
            if constant is not None:
                coefficient *= constant
            elif inner is not None:
                coefficient *= inner.attr
                flat.extend(inner.children)
            else:
                flat.append(self.find(c))
        if not flat:
            return self.leaf_constant(coefficient, dtype)
        return self.add(ENode("*", coefficient, tuple(sorted(flat))), dtype)

    def total(self, constant: float, children: list[int], dtype: str = "f32") -> int:
        """constant + sum of classes; terms that are sums themselves are spliced in."""
        flat: list[int] = []
        for c in children:
            inner = next((n for n in self[c].nodes if n.op == "+"), None)
            value = self.constant(c)
            if value is not None:
                constant += value
            elif inner is not None:
                constant += inner.attr
                flat.extend(inner.children)
            else:
                flat.append(self.find(c))
        if not flat:
            return self.leaf_constant(constant, dtype)
        return self.add(ENode("+", constant, tuple(sorted(flat))), dtype)

    def constant(self, c: int) -> float | None:
        for n in self[c].nodes:
            if n.op == "leaf" and n.attr.op == "const" and is_float(n.attr.dtype):
                return float(n.attr.attr)
        return None

    def leaf_constant(self, value: float, dtype: str) -> int:
        return self.add(ENode("leaf", const(value, dtype), ()), dtype)

    def reduction(self, spec: Reduction, axes: tuple[Axis, ...], body: int) -> int:
        ordered = tuple(sorted(axes, key=lambda a: a.name))
        attr = Reduction(spec.monoid, ordered, spec.operand)
        return self.add(ENode("reduce", attr, (body,)), self[body].dtype)

    def insert(self, root: Expr) -> int:
        """The class of an expression. Subexpressions without float arithmetic are opaque leaves."""
        for node in toposort(root):
            if node not in self.of:
                self.of[node] = self._insert(node)
                self.written.add(self.of[node])
        self.rebuild()
        return self.find(self.of[root])

    def _insert(self, e: Expr) -> int:
        kids = [self.find(self.of[a]) for a in e.args] if e.op != "load" else []
        wide = "f64" if e.dtype == "f64" else "f32" if is_float(e.dtype) else e.dtype
        match e.op:
            case "cast" if _hint(e, self[kids[0]].dtype):
                known = self[kids[0]]
                if _NARROW[e.dtype] > _NARROW.get(known.rounded or "f64", 0):
                    known.rounded = e.dtype
                return kids[0]
            case "load" | "const" | "sym" | "axis":
                return self.add(ENode("leaf", e, ()), wide)
            case _ if not _has_float(e):
                return self.add(ENode("leaf", e, ()), wide)
        c = self._float_op(e, kids, wide)
        if c is None:
            attr = e.attr if e.op == "reduce" else wide
            c = self.add(ENode(e.op, attr, tuple(kids)), wide)
        if is_float(e.dtype) and _NARROW[e.dtype] > 1:
            self[c].rounded = e.dtype
        return c

    def _float_op(self, e: Expr, kids: list[int], wide: str) -> int | None:
        if not is_float(e.dtype):
            return None
        match e.op:
            case "mul":
                return self._both_forms(kids, wide)
            case "square":
                return self._both_forms([kids[0], kids[0]], wide)
            case "neg":
                return self.product(-1.0, kids, wide)
            case "add":
                return self.total(0.0, kids, wide)
            case "sub":
                return self.total(0.0, [kids[0], self.product(-1.0, [kids[1]], wide)], wide)
            case "div":
                divisor = self.constant(kids[1])
                if divisor:
                    return self.product(1.0 / divisor, [kids[0]], wide)
                return self.product(1.0, [kids[0], self.inverse(kids[1], wide)], wide)
        return None

    def _both_forms(self, kids: list[int], wide: str) -> int:
        """A written product, spliced and as it stands: a factor may be worth a temporary."""
        c = self.product(1.0, kids, wide)
        if all(self.constant(k) is None for k in kids):
            self.union(c, self.add(ENode("*", 1.0, tuple(sorted(kids))), wide))
        return self.find(c)

    def inverse(self, c: int, dtype: str = "f32") -> int:
        return self.add(ENode("inverse", dtype, (c,)), dtype)

    # -- merging --------------------------------------------------------------------------------

    def union(self, a: int, b: int) -> bool:
        a, b = sorted((self.find(a), self.find(b)))
        if a == b:
            return False
        keep, gone = self.classes[a], self.classes.pop(b)
        self.parent[b] = a
        keep.nodes.update(gone.nodes)
        keep.free &= gone.free
        if _NARROW.get(gone.rounded or "f64", 0) > _NARROW.get(keep.rounded or "f64", 0):
            keep.rounded = gone.rounded
        self.dirty = True
        return True

    def rebuild(self) -> None:
        """Restore congruence: equal nodes in one class."""
        while self.dirty:
            self.dirty = False
            self.number.clear()
            for c in list(self.classes):
                if c not in self.classes:
                    continue
                nodes = dict.fromkeys(self.canonical(n) for n in self.classes[c].nodes)
                self.classes[c].nodes = nodes
                for n in nodes:
                    other = self.number.setdefault(n, c)
                    if self.find(other) != self.find(c):
                        self.union(other, c)


def _hint(e: Expr, computed: str) -> bool:
    """Whether a cast only says how to round: one between floats, but to f64 from less is real."""
    floats = is_float(e.dtype) and is_float(e.args[0].dtype)
    return floats and (e.dtype != "f64" or computed == "f64")


_float_memo: dict[Expr, bool] = {}


def _has_float(e: Expr) -> bool:
    known = _float_memo.get(e)
    if known is None:
        known = is_float(e.dtype) or e.op == "reduce" or any(_has_float(a) for a in e.args)
        _float_memo[e] = known
    return known
