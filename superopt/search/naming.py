"""Axis names that a reader expects: n, m for what is stored, k, l for what is summed, B for B."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from superopt.mugraph.expr import (
    BINDERS,
    Axis,
    Expr,
    Reduction,
    Tensor,
    axis,
    find,
    load,
    make,
    rebuild,
    toposort,
)
from superopt.mugraph.program import Branch, KernelGraph, Store
from superopt.mugraph.threads import dot_of

STORED = ("n", "m", "h", "g", "p", "q", "r", "s")  # from the last dimension to the first
BOUND = ("k", "l", "j", "i", "u", "v")


Use = tuple[
    Axis, str
]  # one name means one tile size in a whole kernel: an axis, and how it is held


def _uses(branch: Branch) -> dict[Axis, str]:
    """The role of each axis; one held whole by a dot is padded, and so is not as another's."""
    dots = [
        d
        for s in branch.stores
        for n in find(s.value, *BINDERS)
        if (d := dot_of(branch, n)) is not None
    ]
    padded = {a for d in dots for a in (d.m, d.n, d.k)}
    roles = {a: branch.role(a) for a in branch.axes}
    return {a: f"padded {r}" if r == "whole" and a in padded else r for a, r in roles.items()}


def rename_axes(graph: KernelGraph) -> KernelGraph:
    """The same µGraph with short names; an axis in one role has one name in all kernels.

    Temporaries become t0, t1, ... in launch order.
    """
    stored: dict[Use, None] = {}
    bound: dict[Use, None] = {}
    for kernel in reversed(graph.kernels):
        for branch in kernel.branches:
            uses = _uses(branch)
            for s in branch.stores:
                stored.update({(a, uses[a]): None for a in reversed(s.axes)})
            bound.update(dict.fromkeys(uses.items()))
    taken = {s.name.lower() for s in graph.symbols} | {t.name for t in graph.inputs}
    own = {t.name for t in (*graph.inputs, *graph.outputs)}
    numbered = (f"t{n}" for n in count() if f"t{n}" not in own)
    tensors = {t: replace(t, name=next(numbered)) for t in graph.temporaries}
    names: dict[Use, Axis] = {}
    for group, letters in ((stored, STORED), (bound, BOUND)):
        for a, role in group:
            if (a, role) in names:
                continue
            plain = a.extent.attr.name.lower() if a.extent.op == "sym" else ""
            used = {n.name for n in names.values()}
            name = plain if plain and plain not in used else _unused(letters, taken)
            taken.add(name)
            names[a, role] = Axis(name, a.extent)
    kernels = tuple(
        replace(k, branches=tuple(_branch(b, names, tensors) for b in k.branches))
        for k in graph.kernels
    )
    return replace(graph, kernels=kernels)


def _unused(letters: tuple[str, ...], taken: set[str]) -> str:
    number = 0
    while True:
        for letter in letters:
            name = letter if not number else f"{letter}{number}"
            if name not in taken:
                return name
        number += 1


def _branch(b: Branch, uses: dict[Use, Axis], tensors: dict[Tensor, Tensor]) -> Branch:
    names = {a: uses[a, use] for a, use in _uses(b).items()}
    roles = {names[a].name: b.role(a) for a in b.axes}
    stores = tuple(
        Store(
            tensors.get(s.tensor, s.tensor),
            tuple(names[a] for a in s.axes),
            tuple(_rename(i, names, tensors) for i in s.indices),
            _rename(s.value, names, tensors),
        )
        for s in b.stores
    )
    return Branch(stores, tuple(sorted(roles.items())))


def _rename(root: Expr, names: dict[Axis, Axis], tensors: dict[Tensor, Tensor]) -> Expr:
    done: dict[Expr, Expr] = {}
    for node in toposort(root):
        args = tuple(done[a] for a in node.args)
        if node.op == "axis":
            done[node] = axis(names[node.attr])
        elif node.op in BINDERS:
            axes = tuple(sorted((names[a] for a in node.attr.axes), key=lambda a: a.name))
            spec = Reduction(node.attr.monoid, axes, node.attr.operand)
            done[node] = make(node.op, args, spec, node.dtype)
        elif node.op == "load" and node.attr in tensors:
            done[node] = load(tensors[node.attr], args[:-1], args[-1])
        else:
            done[node] = rebuild(node, args)
    return done[root]
