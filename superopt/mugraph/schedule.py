"""The block graph made explicit: where each value of a branch is computed.

A value is computed in the innermost loop that it varies along, once; reductions over the same
looped axis that do not depend on each other share a loop; one that depends on another loops again.
For `sum[k] x[k] / max[k] x[k]` with k looped:

    Loop k: max      then      Loop k: sum     (a second pass)
"""

from __future__ import annotations

from dataclasses import dataclass

from superopt.mugraph.expr import Axis, Expr
from superopt.mugraph.program import Branch, Store

LEAVES = ("const", "sym", "axis")


@dataclass(frozen=True)
class Compute:
    """A tile value: a load, a scalar operator over tiles, or a reduction over axes held whole."""

    value: Expr


@dataclass(frozen=True)
class Write:
    """A store that has all its looped axes around it."""

    store: Store


@dataclass(frozen=True)
class Loop:
    """One pass over a looped axis. It completes each of `reductions`, an accumulator each."""

    axis: Axis
    reductions: tuple[Expr, ...]
    body: tuple[Item, ...]


Item = Compute | Write | Loop


def loop_axis(branch: Branch, node: Expr) -> Axis | None:
    """The looped axis of a reduce node, None where all its axes are held whole."""
    return next((a for a in node.attr.axes if branch.role(a) == "loop"), None)


def schedule(branch: Branch) -> tuple[Item, ...]:
    """The branch's program text, outermost scope first."""
    return _Scheduler(branch).scope([], list(branch.stores), ())


Goal = Expr | Store  # a looped reduction, or a store


class _Scheduler:
    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self.looped = {a for a in branch.axes if branch.role(a) == "loop"}

    def local(self, node: Expr, context: tuple[Axis, ...]) -> bool:
        """Whether the node belongs to this scope and not to one around it."""
        return not context or context[-1] in node.free

    def next_axis(self, goal: Goal, context: tuple[Axis, ...]) -> Axis | None:
        if isinstance(goal, Expr):
            return loop_axis(self.branch, goal)
        return next((a for a in goal.axes if a in self.looped and a not in context), None)

    def needs(self, goal: Goal, inside: Axis | None) -> list[Expr]:
        """What a goal uses from this scope: all of its operands that do not vary along `inside`."""
        roots = [goal.args[0]] if isinstance(goal, Expr) else [goal.value, *goal.indices]
        if inside is None:
            return roots
        later: frozenset[Axis] = frozenset()  # a store's loops inside the one over `inside`
        if isinstance(goal, Store):
            own = [a for a in goal.axes if a in self.looped]
            later = frozenset(own[own.index(inside) + 1 :])
        found: dict[Expr, None] = {}
        stack: list[tuple[Expr, frozenset[Axis]]] = [(r, later) for r in reversed(roots)]
        seen = set(stack)
        while stack:
            node, inner = stack.pop()  # inner: axes looped between this scope and the node
            if inside not in node.free and not node.free & inner:
                found[node] = None
                continue
            if node.op == "reduce":
                inner |= {a for a in node.attr.axes if a in self.looped}
            below = [(a, inner) for a in reversed(node.args) if (a, inner) not in seen]
            seen.update(below)
            stack.extend(below)
        return list(found)

    def scope(
        self, values: list[Expr], stores: list[Store], context: tuple[Axis, ...]
    ) -> tuple[Item, ...]:
        goals: dict[Goal, Axis | None] = {s: self.next_axis(s, context) for s in stores}
        depth: dict[Goal, int] = {}
        order: list[Expr] = []  # values of this scope, operands first
        for root in values:
            self._collect(root, context, goals, depth, order)
        for s in stores:
            for root in self.needs(s, goals[s]):
                self._collect(root, context, goals, depth, order)
            depth[s] = max((depth.get(r, 0) for r in self.needs(s, goals[s])), default=0)
        return self._arrange(goals, depth, order, context)

    def _collect(
        self,
        root: Expr,
        context: tuple[Axis, ...],
        goals: dict[Goal, Axis | None],
        depth: dict[Goal, int],
        order: list[Expr],
    ) -> None:
        stack = [(root, False)]
        while stack:
            node, done = stack.pop()
            if node.op in LEAVES or node in depth or not self.local(node, context):
                continue
            inside = loop_axis(self.branch, node) if node.op == "reduce" else None
            below = self.needs(node, inside) if inside is not None else list(node.args)
            if not done:
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(below))
                continue
            level = max((depth.get(a, 0) for a in below), default=0)
            if inside is not None:
                goals[node] = inside
                level += 1
            else:
                order.append(node)
            depth[node] = level

    def _arrange(
        self,
        goals: dict[Goal, Axis | None],
        depth: dict[Goal, int],
        order: list[Expr],
        context: tuple[Axis, ...],
    ) -> tuple[Item, ...]:
        passes: dict[tuple[int, Axis | None], list[Goal]] = {}
        for goal, inside in goals.items():
            level = depth[goal] - (1 if isinstance(goal, Expr) else 0)
            passes.setdefault((level, inside), []).append(goal)
        levels = max((level for level, _ in passes), default=0) + 1
        place = self._as_late_as_possible(passes, order, levels)
        items: list[Item] = []
        for level in range(levels + 1):
            items.extend(Compute(v) for v in order if place[v] == level)
            for (at, inside), group in passes.items():
                if at != level:
                    continue
                writes = [g for g in group if isinstance(g, Store)]
                if inside is None:
                    items.extend(Write(s) for s in writes)
                    continue
                reductions = tuple(g for g in group if isinstance(g, Expr))
                body = self.scope([r.args[0] for r in reductions], writes, (*context, inside))
                items.append(Loop(inside, reductions, body))
        return tuple(items)

    def _as_late_as_possible(
        self,
        passes: dict[tuple[int, Axis | None], list[Goal]],
        order: list[Expr],
        levels: int,
    ) -> dict[Expr, int]:
        """Place each value just before the first pass that uses it: a bias loads after the loop."""
        place = dict.fromkeys(order, levels)
        for (level, inside), group in passes.items():
            for goal in group:
                for used in self.needs(goal, inside):
                    if used in place:
                        place[used] = min(place[used], level)
        for node in reversed(order):
            for a in node.args:
                if a in place:
                    place[a] = min(place[a], place[node])
        return place
