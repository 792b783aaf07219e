"""Reductions split over programs: partial results in global memory, and a kernel that merges them.

Each program takes one part of a looped axis and stores its accumulators; the second kernel joins
the parts. What merges two parts is the update that keeps an online loop up to date: the prior
values are a part's, the running ones those of all parts.

    l = online[k](...)   ->   kernel 1: t[s] = online[c](...) over part s of k, for l and its m
                              kernel 2: sum[s] t_l[s] * exp(t_m[s] - max[s] t_m[s])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import (
    BINDERS,
    MARKERS,
    TRUE,
    Axis,
    Expr,
    Reduction,
    Tensor,
    axis,
    body_of,
    cast,
    const,
    fresh,
    index,
    is_const,
    load,
    make,
    op,
    plain_of,
    prior,
    rebuild,
    reduce,
    running,
    substitute,
    toposort,
)
from superopt.mugraph.ops import identity
from superopt.mugraph.program import Branch, Store, illegal, store
from superopt.mugraph.schedule import online_groups
from superopt.mugraph.threads import core
from superopt.search.shift import replaced

_ZERO = const(0, "i32")
LARGEST_HELD = 512  # elements of a stored axis that only some accumulators have


def divide(branch: Branch, k: Axis, parts: int) -> tuple[Branch, Branch] | None:
    """The branch as two, with axis k in so many parts; None where that is not possible."""
    if any(k in s.axes for s in branch.stores):
        return None
    members = accumulators(branch, k)
    if members is None or not members:
        return None
    cutter = _Cutter(branch, k, parts)
    partial: dict[Expr, Expr] = {}  # plain reduction -> what one part stores, as a load
    stores: list[Store] = []
    for r in members:
        plain = plain_of(r)
        if plain.args[0].op == "const":
            partial[plain] = cutter.length(plain)
            continue
        own = tuple(a for a in branch.stores[0].axes if a in r.free)
        own += tuple(sorted(r.free - set(own), key=lambda a: a.name))
        axes = (cutter.part, *own)
        name = f"@{branch.stores[0].tensor.name}.{plain.digest}"
        tensor = Tensor(name, tuple(a.extent for a in axes), r.dtype)
        stores.append(store(tensor, axes, cutter.part_of(r)))
        partial[plain] = load(tensor, [axis(a) for a in axes])
    first = _branch(branch, tuple(stores), cutter)
    second = _merge(branch, members, partial, cutter)
    if first is None or illegal(first) is not None or illegal(second) is not None:
        return None
    return first, second


def accumulators(branch: Branch, k: Axis) -> list[Expr] | None:
    """The reductions over k that the branch's loops complete, those used first.

    None where one of them uses another's final value, as a second pass does, or stands in a loop
    over another axis.
    """
    groups = online_groups(branch)
    found: dict[Expr, None] = {e: None for e in groups if k in e.attr.axes}
    stack = [s.value for s in branch.stores]
    seen = set(stack)
    while stack:
        e = stack.pop()
        if e.op in BINDERS and k in e.attr.axes:
            found[e] = None
            continue
        looped = e.op in BINDERS and any(branch.role(a) == "loop" for a in e.attr.axes)
        if looped and any(n.op in BINDERS and k in n.attr.axes for n in toposort(e)):
            return None  # a loop inside another one
        stack += [a for a in e.args if a not in seen]
        seen.update(e.args)
    for r in found:
        below = [n for n in _tile_nodes(body_of(r)) if n.op in BINDERS and k in n.attr.axes]
        if below:
            return None
    return sorted(found, key=lambda r: plain_of(r).size)


def _tile_nodes(root: Expr) -> list[Expr]:
    found: dict[Expr, None] = {}
    stack = [root]
    while stack:
        e = stack.pop()
        if e not in found:
            found[e] = None
            stack.extend(() if e.op in MARKERS else e.args)
    return list(found)


class _Cutter:
    """Axis k as part * length + place, and reductions over the places of one part."""

    def __init__(self, branch: Branch, k: Axis, parts: int) -> None:
        taken = branch.axes
        self.k = k
        self.size = ix.floordiv(ix.add(k.extent, index(parts - 1)), index(parts))
        if k.extent.op == "const":
            parts = -(-k.extent.attr // self.size.attr)  # none is empty
        self.part = fresh(Axis(f"{k.name}p", index(parts)), taken)
        self.place = fresh(Axis(f"{k.name}c", self.size), (*taken, self.part))
        self.at = ix.add(ix.mul(axis(self.part), self.size), axis(self.place))
        whole = ix.mul(self.size, index(parts)) is k.extent
        self.inside = TRUE if whole else op("lt", self.at, k.extent)
        self.done: dict[Expr, Expr] = {}

    def length(self, plain: Expr) -> Expr:
        """The sum of a constant over the places of one part."""
        size = self.size
        if self.inside is not TRUE:
            left = ix.sub(self.k.extent, ix.mul(axis(self.part), size))
            size = op("maximum", op("minimum", cast(left, "i32"), cast(size, "i32")), _ZERO)
        return op("mul", cast(size, plain.dtype), plain.args[0])

    def part_of(self, r: Expr) -> Expr:
        """A reduce or online node over one part; markers refer to the part's reductions."""
        if r not in self.done:
            axes = tuple(self.place if a == self.k else a for a in r.attr.axes)
            spec = replace(r.attr, axes=tuple(sorted(axes, key=lambda a: a.name)))
            args = [self._plain_body(r.args[0] if r.op == "reduce" else plain_of(r).args[0], spec)]
            if r.op == "reduce":
                self.done[r] = make("reduce", (args[0],), spec, r.dtype)
            else:
                plain = make("reduce", (args[0],), spec, r.dtype)
                body = self._plain_body(r.args[1], spec)
                update = self._inside(r.args[2])
                others = [self.part_of(o) for o in r.args[3:]]
                self.done[r] = make("online", (plain, body, update, *others), spec, r.dtype)
        return self.done[r]

    def _plain_body(self, body: Expr, spec: Reduction) -> Expr:
        moved = self._inside(body)
        if self.inside is TRUE:
            return moved
        product = core(moved)
        if spec.monoid == "sum" and product.op == "mul":  # it stays a product: it may be a dot
            a, b = sorted(product.args, key=lambda e: core(e).op == "load")
            masked = op("where", self.inside, a, const(0, a.dtype))
            return cast(make("mul", (masked, b), None, product.dtype), moved.dtype)
        neutral = identity(spec.monoid, body.dtype)
        return op("where", self.inside, moved, const(neutral, body.dtype))

    def _inside(self, e: Expr) -> Expr:
        """With k replaced by its place, loads beyond its end guarded, markers renamed."""
        memo: dict[Expr, Expr] = {}
        for node in toposort(e):
            if node.op in MARKERS:
                plain = self.part_of(node.args[0])
                memo[node] = make(node.op, (plain_of(plain),), None, node.dtype)
            elif node.op in BINDERS and self.k in node.attr.axes:
                memo[node] = plain_of(self.part_of(node))
            else:
                memo[node] = rebuild(node, tuple(memo[a] for a in node.args))
        marked = {n: n for n in memo.values() if n.op in MARKERS}
        moved = _substituted(memo[e], self.k, self.at, marked)
        if self.inside is TRUE:
            return moved
        return _guarded(moved, self.inside, self.place)


def _substituted(root: Expr, k: Axis, at: Expr, marked: Mapping[Expr, Expr]) -> Expr:
    """`substitute`, but markers stay: what they name binds its own axis."""
    names = {m: make("sym", (), ("marker", n), m.dtype) for n, m in enumerate(marked)}
    held = replaced_all(root, names)
    return replaced_all(substitute(held, {k: at}), {s: m for m, s in names.items()})


def replaced_all(root: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    memo: dict[Expr, Expr] = dict(mapping)
    stack = [root]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
        elif missing := [a for a in node.args if a not in memo]:
            stack.extend(missing)
        else:
            memo[node] = rebuild(node, tuple(memo[a] for a in node.args))
            stack.pop()
    return memo[root]


def _guarded(root: Expr, inside: Expr, place: Axis) -> Expr:
    memo: dict[Expr, Expr] = {}
    for node in toposort(root):
        args = tuple(memo[a] for a in node.args)
        if node.op == "load" and place in node.free:
            memo[node] = load(node.attr, args[:-1], op("and", args[-1], inside))
        else:
            memo[node] = node if node.op in MARKERS else rebuild(node, args)
    return memo[root]


def _branch(branch: Branch, stores: tuple[Store, ...], cutter: _Cutter) -> Branch | None:
    """The first kernel: as the branch, but a program a part; axes that some lack are held."""
    roles = dict(branch.by_name)
    roles.pop(cutter.k.name, None)
    roles[cutter.part.name], roles[cutter.place.name] = "program", "loop"
    for a in {a for s in stores for a in s.axes}:
        if all(a in s.axes for s in stores) or roles.get(a.name) not in ("grid", "program"):
            continue
        if a.extent.op != "const" or a.extent.attr > LARGEST_HELD:
            return None
        roles[a.name] = "whole"
    bare = Branch(stores, ())
    used = {a.name for a in bare.axes}
    if used - set(roles):
        return None
    return replace(bare, roles=tuple(sorted((n, r) for n, r in roles.items() if n in used)))


def _merge(
    branch: Branch, members: list[Expr], partial: Mapping[Expr, Expr], cutter: _Cutter
) -> Branch:
    """The second kernel: every accumulator joined over the parts."""
    over = (cutter.part,)
    merged: dict[Expr, Expr] = {}
    for r in members:
        plain = plain_of(r)
        value = partial[plain]
        if r.op == "online":
            mapping = {prior(p): v for p, v in partial.items()}
            mapping |= {running(p): v for p, v in merged.items()}
            value = replaced_all(r.args[2], mapping)
        if is_const(plain.args[0]) and is_float(plain.dtype):
            total = op("mul", cast(cutter.k.extent, plain.dtype), plain.args[0])
            merged[plain] = total
        else:
            merged[plain] = reduce(plain.attr.monoid, over, value, None, plain.dtype)
    final = {r: merged[plain_of(r)] for r in members}
    stores = tuple(replace(s, value=replaced(s.value, final)) for s in branch.stores)
    roles = branch.by_name | {cutter.part.name: "whole"}
    used = {a.name for a in Branch(stores, ()).axes}
    return Branch(stores, tuple(sorted((n, r) for n, r in roles.items() if n in used)))
