"""Other ways to write a traced program: what a search finds must not depend on which was written.

    for d in DISGUISES:
        again = d.of(program)                  # the same meaning, other nodes
        run_program(again, d.inputs(inputs))   # its inputs, where their layout changed

Nodes are made with `make`, which does not bring them into canonical form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import (
    BINDERS,
    Axis,
    Expr,
    Reduction,
    Tensor,
    axis,
    const,
    load,
    make,
    toposort,
)
from superopt.mugraph.ops import OPS
from superopt.mugraph.program import Program, Store

Inputs = Mapping[str, np.ndarray]
Change = Callable[[Expr], Expr]


def _mapped(root: Expr, change: Change) -> Expr:
    """Each node, its operands mapped, becomes `change(node)`; nothing is simplified."""
    done: dict[Expr, Expr] = {}
    for node in toposort(root):
        args = tuple(done[a] for a in node.args)
        done[node] = change(make(node.op, args, node.attr, node.dtype))
    return done[root]


def _values(program: Program, change: Callable[[Expr], Expr]) -> Program:
    stores = tuple(replace(s, value=change(s.value)) for s in program.stores)
    return replace(program, stores=stores)


# -- axes renamed and permuted ------------------------------------------------------------------


def _axes(program: Program) -> list[Axis]:
    found: dict[Axis, None] = {}
    for s in program.stores:
        found.update(dict.fromkeys(s.axes))
        for node in toposort(s.value):
            if node.op in BINDERS:
                found.update(dict.fromkeys(node.attr.axes))
    return list(found)


def renamed(program: Program) -> Program:
    """Every axis gets another name, in the opposite order; stores list their axes backwards."""
    axes = _axes(program)
    new = {a: Axis(f"z{len(axes) - n:02}", a.extent) for n, a in enumerate(axes)}

    def change(node: Expr) -> Expr:
        if node.op == "axis":
            return axis(new[node.attr])
        if node.op in BINDERS:
            bound = tuple(sorted((new[a] for a in node.attr.axes), key=lambda a: a.name))
            spec = Reduction(node.attr.monoid, bound, node.attr.operand)
            return make(node.op, node.args, spec, node.dtype)
        return node

    def store(s: Store) -> Store:
        indices = tuple(_mapped(i, change) for i in s.indices)
        return Store(
            s.tensor, tuple(new[a] for a in s.axes[::-1]), indices, _mapped(s.value, change)
        )

    return replace(program, stores=tuple(map(store, program.stores)))


# -- operands swapped ---------------------------------------------------------------------------


def swapped(program: Program) -> Program:
    """Operands of commutative operators change places: a + b -> b + a."""

    def change(node: Expr) -> Expr:
        if node.op in OPS and OPS[node.op].commutative and node.dtype != "index":
            return make(node.op, node.args[::-1], node.attr, node.dtype)
        return node

    return _values(program, lambda e: _mapped(e, change))


# -- other functions ----------------------------------------------------------------------------


def powers_of_two(program: Program) -> Program:
    """exp(x) -> exp2(x * log2 e)."""

    def change(node: Expr) -> Expr:
        if node.op != "exp":
            return node
        (x,) = node.args
        scaled = make("mul", (x, const(math.log2(math.e), x.dtype)), None, x.dtype)
        return make("exp2", (scaled,), None, node.dtype)

    return _values(program, lambda e: _mapped(e, change))


# -- algebra ------------------------------------------------------------------------------------


def rewritten(program: Program) -> Program:
    """x/y -> x*(1/y);  x-y -> x+(-y);  square x -> x*x;  a*(b+c) -> a*b + a*c."""
    return _values(program, _algebra)


def _algebra(root: Expr) -> Expr:
    products = _products(root)
    done: dict[Expr, Expr] = {}
    for node in toposort(root):
        new = make(node.op, tuple(done[a] for a in node.args), node.attr, node.dtype)
        done[node] = new if not is_float(node.dtype) else _another_way(new, node in products)
    return done[root]


def _products(root: Expr) -> set[Expr]:
    """The products under matrix products, whose operands a dot takes as they are."""
    found = set()
    for node in toposort(root):
        if node.op == "reduce" and node.attr.operand is not None:
            body = node.args[0]
            while body.op == "cast":
                body = body.args[0]
            found.add(body)
    return found


def _another_way(node: Expr, of_dot: bool) -> Expr:
    def make_op(name: str, *args: Expr) -> Expr:
        return make(name, args, None, node.dtype)

    match node.op, node.args:
        case "div", (x, y):
            return make_op("mul", x, make_op("div", const(1, node.dtype), y))
        case "sub", (x, y):
            return make_op("add", x, make_op("neg", y))
        case "square", (x,):
            return make_op("mul", x, x)
        case "mul", (a, b) if not of_dot and (a.op == "add" or b.op == "add"):
            one, total = (a, b) if b.op == "add" else (b, a)
            return make_op("add", *(make_op("mul", one, term) for term in total.args))
    return node


# -- inputs in another layout -------------------------------------------------------------------


def _turned(t: Tensor) -> Tensor:
    return replace(t, shape=(*t.shape[:-2], t.shape[-1], t.shape[-2])) if len(t.shape) > 1 else t


def transposed(program: Program) -> Program:
    """The last two dimensions of every input change places, and so do the indices of its loads."""
    new = {t: _turned(t) for t in program.inputs}

    def change(node: Expr) -> Expr:
        if node.op != "load" or node.attr not in new or len(node.attr.shape) < 2:
            return node
        *lead, row, column, guard = node.args
        return load(new[node.attr], (*lead, column, row), guard)

    changed = _values(program, lambda e: _mapped(e, change))
    ops = tuple(replace(o, reads=tuple(new.get(t, t) for t in o.reads)) for o in program.source_ops)
    return replace(changed, inputs=tuple(new[t] for t in program.inputs), source_ops=ops)


def _turned_inputs(inputs: Inputs) -> dict[str, np.ndarray]:
    return {n: np.swapaxes(x, -1, -2) if x.ndim > 1 else x for n, x in inputs.items()}


# -- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disguise:
    """A kind of disguise: `of` a program, and what becomes of its `inputs`."""

    name: str
    of: Callable[[Program], Program]
    inputs: Callable[[Inputs], dict[str, np.ndarray]] = dict

    def __str__(self) -> str:
        return self.name


DISGUISES = (
    Disguise("axes renamed", renamed),
    Disguise("operands swapped", swapped),
    Disguise("powers of two", powers_of_two),
    Disguise("algebra rewritten", rewritten),
    Disguise("inputs transposed", transposed, _turned_inputs),
)


def in_all(program: Program) -> Program:
    """Every disguise, one over the other."""
    for d in DISGUISES:
        program = d.of(program)
    return program
