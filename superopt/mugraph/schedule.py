"""The block graph made explicit: where each value of a branch is computed.

A value is computed in the innermost loop that it varies along, once; reductions over the same
looped axis that do not depend on each other share a loop; one that depends on another loops again.
For `sum[k] x[k] / max[k] x[k]` with k looped:

    Loop k: max      then      Loop k: sum     (a second pass)

An online reduction shares the loop of the reductions that it uses: they are accumulated in order,
each as soon as what it adds is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from superopt.errors import IllFormed
from superopt.mugraph.expr import (
    BINDERS,
    MARKERS,
    Axis,
    Expr,
    body_of,
    plain_of,
    toposort,
)
from superopt.mugraph.program import Branch, Store

LEAVES = ("const", "sym", "axis")


@dataclass(frozen=True)
class Compute:
    """A tile value: a load, a scalar operator over tiles, or a reduction over axes held whole."""

    value: Expr


@dataclass(frozen=True)
class Accumulate:
    """Take a tile into the accumulator of a reduce or online node of the loop around."""

    reduction: Expr


@dataclass(frozen=True)
class Write:
    """A store that has all its looped axes around it."""

    store: Store


@dataclass(frozen=True)
class Loop:
    """One pass over a looped axis. It completes each of `reductions`, an accumulator each.

    The body has an `Accumulate` for each of them.
    """

    axis: Axis
    reductions: tuple[Expr, ...]
    body: tuple[Item, ...]


Item = Compute | Accumulate | Write | Loop


def loop_axis(branch: Branch, node: Expr) -> Axis | None:
    """The looped axis of a reduce or online node, None where all its axes are held whole."""
    return next((a for a in node.attr.axes if branch.role(a) == "loop"), None)


def schedule(branch: Branch) -> tuple[Item, ...]:
    """The branch's program text, outermost scope first."""
    return _Scheduler(branch).scope([], list(branch.stores), ())


Goal = Expr | Store  # a looped reduction, or a store


class _Scheduler:
    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self.looped = {a for a in branch.axes if branch.role(a) == "loop"}
        self.groups = online_groups(branch)
        self._turns: dict[Expr, frozenset[Axis]] = {}
        self._needs: dict[object, list[Expr]] = {}

    def turns(self, root: Expr) -> frozenset[Axis]:
        """The axes along which a value changes: its own, and loops whose accumulators it reads."""
        for node in toposort(root) if root not in self._turns else ():
            if node in self._turns:
                continue
            found = node.free
            if node.op in MARKERS:
                found |= {a for a in node.args[0].attr.axes if a in self.looped}
            elif node.op != "online":
                below = frozenset().union(*(self._turns[a] for a in node.args))
                found |= below - frozenset(node.attr.axes) if node.op == "reduce" else below
            self._turns[node] = found
        return self._turns[root]

    def local(self, node: Expr, context: tuple[Axis, ...]) -> bool:
        """Whether the node belongs to this scope and not to one around it."""
        return not context or context[-1] in self.turns(node)

    def members(self, node: Expr) -> tuple[Expr, ...]:
        """The reductions that share a loop because some use others online, those used first."""
        return self.groups.get(node, (node,))

    def next_axis(self, goal: Goal, context: tuple[Axis, ...]) -> Axis | None:
        if isinstance(goal, Expr):
            return loop_axis(self.branch, goal)
        return next((a for a in goal.axes if a in self.looped and a not in context), None)

    def needs(self, goal: Goal, inside: Axis | None) -> list[Expr]:
        """What a goal uses from this scope: all of its operands that do not vary along `inside`."""
        key = (goal if isinstance(goal, Store) else self.members(goal), inside)
        if key not in self._needs:
            self._needs[key] = self._needed(goal, inside)
        return self._needs[key]

    def _needed(self, goal: Goal, inside: Axis | None) -> list[Expr]:
        if isinstance(goal, Store):
            roots = [goal.value, *goal.indices]
        else:
            roots = [r for m in self.members(goal) for r in contributions(m)]
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
            turns = self.turns(node)
            if inside not in turns and not turns & inner:
                found[node] = None
                continue
            if node.op in MARKERS:
                continue
            if node.op in BINDERS:
                inner |= {a for a in node.attr.axes if a in self.looped}
            used = contributions(node) if node.op == "online" else node.args
            below = [(a, inner) for a in reversed(used) if (a, inner) not in seen]
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
        opened: set[Expr] = set()
        while stack:
            node, done = stack.pop()
            leaf = node.op in LEAVES or node.op in MARKERS
            if leaf or node in depth or not self.local(node, context):
                continue
            inside = loop_axis(self.branch, node) if node.op in BINDERS else None
            below = self.needs(node, inside) if inside is not None else list(node.args)
            if not done:
                if node in opened:
                    raise IllFormed(f"{node} needs its own value")
                opened.add(node)
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(below))
                continue
            level = max((depth.get(a, 0) for a in below), default=0)
            if inside is None:
                order.append(node)
                depth[node] = level
                continue
            for member in self.members(node):
                goals[member] = inside
                depth[member] = level + 1

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
                values = [c for r in reductions for c in contributions(r)]
                body = self.scope(values, writes, (*context, inside))
                items.append(Loop(inside, reductions, _accumulating(body, reductions)))
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


def contributions(node: Expr) -> tuple[Expr, ...]:
    """What one turn of the loop computes for a reduce or online node."""
    return (body_of(node), node.args[2]) if node.op == "online" else (body_of(node),)


def online_groups(branch: Branch) -> dict[Expr, tuple[Expr, ...]]:
    """For each reduction that is online, or used by one in its loop: all of these, used first."""
    nodes = toposort(*(s.value for s in branch.stores))
    forms = {plain_of(n): n for n in nodes if n.op == "online"}
    used: dict[Expr, list[Expr]] = {}
    for n in forms.values():
        marked = [m.args[0] for m in toposort(*contributions(n)) if m.op in MARKERS]
        inside = loop_axis(branch, n)
        own = [m for m in marked if m is not plain_of(n) and loop_axis(branch, m) == inside]
        used[n] = [forms.get(m, m) for m in own]
    groups: dict[Expr, dict[Expr, None]] = {}
    for n, others in used.items():
        merged = dict.fromkeys([n, *others])
        for member in list(merged):
            merged.update(groups.get(member, {}))
        groups.update(dict.fromkeys(merged, merged))
    ordered: dict[int, tuple[Expr, ...]] = {}
    for group in groups.values():
        if id(group) not in ordered:
            ordered[id(group)] = tuple(sorted(group, key=lambda e: plain_of(e).size))
    return {n: ordered[id(group)] for n, group in groups.items()}


def _accumulating(body: tuple[Item, ...], reductions: tuple[Expr, ...]) -> tuple[Item, ...]:
    """The loop's body with each reduction accumulated as soon as what it adds is known."""
    forms = {plain_of(r): r for r in reductions}
    needed = {r: set(toposort(*contributions(r))) for r in reductions}
    read = {
        m.args[0] for r in reductions for m in needed[r] if m.op == "running" and m.args[0] in forms
    }
    early = [r for r in reductions if plain_of(r) in read]
    items: list[Item] = []
    left = list(body)
    for r in sorted(early, key=lambda e: plain_of(e).size):
        taken = [i for i in left if _defines(i) & needed[r]]
        items += [*taken, Accumulate(r)]
        left = [i for i in left if i not in taken]
    return (*items, *left, *(Accumulate(r) for r in reductions if r not in early))


def _defines(item: Item) -> set[Expr]:
    if isinstance(item, Compute):
        return {item.value}
    return set(item.reductions) if isinstance(item, Loop) else set()
