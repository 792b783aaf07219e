"""What each tile value of a branch looks like: the order of its dimensions, its masks, its users.

Every value has one order. Dots ask for (m, k) and (k, n), stores for the order of their axes, and
elementwise operators pass an order on to their operands, so that transposes appear only where a
value is asked for in two orders.
"""

from __future__ import annotations

from superopt.mugraph.expr import (
    BINDERS,
    MARKERS,
    Axis,
    Expr,
    body_of,
    is_const,
    plain_of,
    toposort,
)
from superopt.mugraph.index import at_least_zero, divides
from superopt.mugraph.ops import OPS
from superopt.mugraph.program import Branch, Config, Store
from superopt.mugraph.schedule import (
    Compute,
    Item,
    Loop,
    Write,
    contributions,
    online_groups,
    schedule,
)
from superopt.mugraph.threads import MIN_TILE, Dot, core, dot_of, power_of, tile_axes

Order = tuple[Axis, ...]
HARD, PLAIN, SOFT = 0, 1, 2  # how much a user minds the order: a dot, a store, a reduction


class Tiles:
    """The plan of one branch. `configs` are all that its text must serve."""

    def __init__(self, branch: Branch, configs: tuple[Config, ...]) -> None:
        self.branch = branch
        self.items = schedule(branch)
        self.dots: dict[Expr, Dot] = {}
        self.powers: dict[Expr, tuple[Expr, float]] = {}  # exps that are written as 2 ** (c z)
        self.groups = online_groups(branch)
        self.forms = {plain_of(e): e for e in self.groups}
        self.sorted = self._toposort()
        self.masked = {a for a in branch.axes if self._needs_mask(a, configs)}
        self.uses = self._count_uses()
        self.scopes: dict[Expr | Store, tuple[Axis, ...]] = {}
        self._note_scopes(self.items, ())
        self.order = self._orders()
        self.pure: dict[Expr, bool] = {}  # neither loads nor reduces
        for e in self.sorted:
            below = all(self.pure[a] for a in self.reads(e))
            self.pure[e] = e.op not in ("load", *BINDERS, *MARKERS) and below
        self._zero: dict[tuple[Expr, Axis], bool] = {}

    # -- structure ------------------------------------------------------------------------------

    def reads(self, node: Expr) -> list[Expr]:
        """The values that a node is made of, below casts that change nothing."""
        if node.op in MARKERS:
            return []
        dot = self.dots.get(node)
        factors = [dot.a, dot.b] if dot is not None else []
        if node.op == "online":
            return [*(factors or [core(body_of(node))]), core(node.args[2])]
        if node in self.powers:
            return [self.powers[node][0]]
        return factors or [core(a) for a in node.args]

    def _toposort(self) -> list[Expr]:
        order: dict[Expr, None] = {}
        roots = [core(r) for s in self.branch.stores for r in (*s.indices, s.value)]
        roots += self.groups
        stack = [(r, False) for r in reversed(roots)]
        while stack:
            node, done = stack.pop()
            if done:
                order[node] = None
            elif node not in order:
                dot = dot_of(self.branch, node)
                if dot is not None:
                    self.dots[node] = dot
                if (power := power_of(node)) is not None:
                    self.powers[node] = power
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(self.reads(node)))
        return list(order)

    def _count_uses(self) -> dict[Expr, int]:
        """How often a value stands in its users' text."""
        uses = dict.fromkeys(self.sorted, 0)
        for s in self.branch.stores:
            for root in (*s.indices, s.value):
                uses[core(root)] += 1
        for node in self.sorted:
            for a, count in self.used_by(node):
                uses[a] += count
        return uses

    def used_by(self, node: Expr) -> list[tuple[Expr, int]]:
        """The values that a node reads, and how often each stands in its text."""
        row = OPS.get(node.op)
        return [
            (a, row.triton.count(f"{{{position}}}") if row else 1)
            for position, a in enumerate(self.reads(node))
        ]

    def _note_scopes(self, items: tuple[Item, ...], scope: tuple[Axis, ...]) -> None:
        """The loops around each value; a looped reduction's operands are used inside its loop."""
        for item in items:
            if isinstance(item, Loop):
                self.scopes.update(dict.fromkeys(item.reductions, scope))
                self._note_scopes(item.body, (*scope, item.axis))
            elif isinstance(item, Write):
                self.scopes[item.store] = scope
            elif isinstance(item, Compute):
                self.scopes[item.value] = scope

    # -- masks ----------------------------------------------------------------------------------

    def _needs_mask(self, a: Axis, configs: tuple[Config, ...]) -> bool:
        role = self.branch.role(a)
        if role == "program":
            return False
        if role == "whole":
            return not is_const(a.extent) or a.extent.attr != self.whole_tile(a, a.extent.attr)
        return not all(divides(c.by_name[a.name], a.extent) for c in configs)

    def whole_tile(self, a: Axis, extent: int) -> int:
        """The tile of an axis held whole: the next power of two, at least what a dot takes."""
        return max(least_tile(self.branch, a), 1 << max(extent - 1, 0).bit_length())

    def zero_outside(self, e: Expr, axis: Axis) -> bool:
        """Whether a value is exactly 0 in lanes beyond the axis's extent."""
        key = (core(e), axis)
        if key not in self._zero:
            self._zero[key] = self._is_zero_outside(*key)
        return self._zero[key]

    def _is_zero_outside(self, e: Expr, axis: Axis) -> bool:
        if e.op == "load":
            return axis in e.free
        if e.op == "const":
            return bool(not e.attr)
        if e.op == "mul":
            a, b = e.args
            both = self.zero_outside(a, axis) and self.zero_outside(b, axis)
            return both or any(
                self.zero_outside(x, axis) and _finite(y) for x, y in ((a, b), (b, a))
            )
        row = OPS.get(e.op)
        if e.op == "where":
            return all(self.zero_outside(a, axis) for a in e.args[1:])
        if e.op == "cast" or (row is not None and row.keeps_zero):
            return all(self.zero_outside(a, axis) for a in e.args)
        return False

    # -- orders ---------------------------------------------------------------------------------

    def tile(self, e: Expr) -> frozenset[Axis]:
        return tile_axes(self.branch, e)

    def restrict(self, order: Order, e: Expr) -> Order:
        own = self.tile(e)
        return tuple(a for a in order if a in own)

    def _orders(self) -> dict[Expr, Order]:
        asked: dict[Expr, list[tuple[int, Order]]] = {e: [] for e in self.sorted}
        for s in self.branch.stores:
            for root in (*s.indices, s.value):
                value = core(root)
                asked[value].append((PLAIN, self.restrict(s.axes, value)))
        order: dict[Expr, Order] = {}
        for node in reversed(self.sorted):
            unasked = (SOFT, tuple(a for a in self.branch.axes if a in self.tile(node)))
            best = min(asked[node], key=lambda ask: ask[0], default=unasked)[1]
            order[node] = self._dot_order(node, best)
            for a, ask in self._asks(node, order[node]):
                asked[a].append(ask)
        return order

    def _dot_order(self, node: Expr, order: Order) -> Order:
        dot = self.dots.get(node)
        if dot is None or dot.batch is None:
            return order
        return (dot.batch, *(a for a in order if a != dot.batch))

    def _asks(self, node: Expr, order: Order) -> list[tuple[Expr, tuple[int, Order]]]:
        own: list[tuple[Expr, tuple[int, Order]]] = []
        if node.op == "online":
            update = core(node.args[2])
            own = [(update, (PLAIN, self.restrict(order, update)))]
        if node in self.dots:
            return [*((a, (HARD, o)) for a, o in self.dot_operands(node, order)), *own]
        if node.op in BINDERS:
            body = core(body_of(node))
            return [(body, (SOFT, self.restrict(order + node.attr.axes, body))), *own]
        return [(a, (PLAIN, self.restrict(order, a))) for a in self.reads(node)]

    def dot_operands(self, node: Expr, order: Order) -> list[tuple[Expr, Order]]:
        """A dot's operands with the orders they are needed in, the left one first."""
        dot = self.dots[node]
        batch, (rows, columns) = order[:-2], order[-2:]
        left, right = (dot.a, dot.b) if rows == dot.m else (dot.b, dot.a)
        return [(left, (*batch, rows, dot.k)), (right, (*batch, dot.k, columns))]


def reads_prior(group: tuple[Expr, ...], e: Expr) -> bool:
    """Whether another accumulator of the loop needs this one as it was before the turn."""
    others = [c for m in group if m is not e for c in contributions(m)]
    return any(n.op == "prior" and n.args[0] is plain_of(e) for n in toposort(*others))


def least_tile(branch: Branch, a: Axis) -> int:
    """The least tile of an axis held whole: dots have one."""
    for node in toposort(*(s.value for s in branch.stores)):
        dot = dot_of(branch, node)
        if dot is not None and a in (dot.m, dot.n, dot.k):
            return MIN_TILE
    return 1


def _finite(e: Expr) -> bool:
    e = core(e)
    if e.op == "const":
        return bool(abs(e.attr) < float("inf"))
    return e.dtype in ("index", "bool") or (e.op == "cast" and _finite(e.args[0]))


def plain_division(e: Expr) -> bool:
    """Whether rounding down and truncating agree: the dividend is never negative."""
    return e.dtype == "index" and at_least_zero(e.args[0])
