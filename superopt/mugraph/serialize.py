"""JSON form of programs, µGraphs and choices: tables of nodes by number, so that a DAG stays one.

    {"kind": "program", "symbols": [[name, low, high]], "axes": [[name, extent]],
     "tensors": [[name, shape, dtype, bounds]], "nodes": [[op, operands, attribute, dtype]],
     "value": {...}}

A number stands for the row of that table; rows mention only rows written before them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from superopt.errors import UsageError
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import Axis, Expr, Reduction, Symbol, Tensor, const, make, toposort
from superopt.mugraph.program import (
    Branch,
    Choice,
    Config,
    Kernel,
    KernelGraph,
    Program,
    SourceOp,
    Store,
)

Json = dict[str, Any]
Value = Program | KernelGraph | Choice | Config


class _Writer:
    def __init__(self) -> None:
        self.tables: Json = {"symbols": [], "axes": [], "tensors": [], "nodes": []}
        self.numbers: dict[Any, int] = {}

    def _row(self, table: str, key: Any, row: list[Any]) -> int:
        self.tables[table].append(row)
        return self.numbers.setdefault(key, len(self.tables[table]) - 1)

    def symbol(self, s: Symbol) -> int:
        known = self.numbers.get(s)
        return self._row("symbols", s, [s.name, s.low, s.high]) if known is None else known

    def axis(self, a: Axis) -> int:
        known = self.numbers.get(a)
        return self._row("axes", a, [a.name, self.node(a.extent)]) if known is None else known

    def tensor(self, t: Tensor) -> int:
        if t not in self.numbers:
            bounds = None if t.bounds is None else [self.node(e) for e in t.bounds]
            row = [t.name, [self.node(e) for e in t.shape], t.dtype, bounds]
            self._row("tensors", t, row)
        return self.numbers[t]

    def node(self, root: Expr) -> int:
        for e in toposort(root):
            if e not in self.numbers:
                args = [self.numbers[a] for a in e.args]
                self._row("nodes", e, [e.op, args, self._attribute(e), e.dtype])
        return self.numbers[root]

    def _attribute(self, e: Expr) -> Any:
        match e.attr:
            case Symbol():
                return self.symbol(e.attr)
            case Axis():
                return self.axis(e.attr)
            case Tensor():
                return self.tensor(e.attr)
            case Reduction(monoid, axes, operand):
                return [monoid, [self.axis(a) for a in axes], operand]
            case float() if not math.isfinite(e.attr):
                return repr(e.attr)  # JSON has no infinities
        return e.attr

    # -- dataclasses ----------------------------------------------------------------------------

    def store(self, s: Store) -> list[Any]:
        indices = [self.node(e) for e in s.indices]
        return [self.tensor(s.tensor), [self.axis(a) for a in s.axes], indices, self.node(s.value)]

    def source(self, s: SourceOp) -> list[Any]:
        reads, writes = [self.tensor(t) for t in s.reads], [self.tensor(t) for t in s.writes]
        return [s.name, s.kind, reads, writes, self.node(s.flops)]

    def program(self, p: Program) -> Json:
        return {
            "name": p.name,
            "inputs": [self.tensor(t) for t in p.inputs],
            "stores": [self.store(s) for s in p.stores],
            "outputs": [self.tensor(t) for t in p.outputs],
            "source_ops": [self.source(s) for s in p.source_ops],
        }

    def branch(self, b: Branch) -> Json:
        return {"roles": [list(r) for r in b.roles], "stores": [self.store(s) for s in b.stores]}

    def graph(self, g: KernelGraph) -> Json:
        kernels = [
            {"name": k.name, "branches": [self.branch(b) for b in k.branches]} for k in g.kernels
        ]
        return {
            "name": g.name,
            "inputs": [self.tensor(t) for t in g.inputs],
            "kernels": kernels,
            "outputs": [self.tensor(t) for t in g.outputs],
        }

    def config(self, c: Config) -> Json:
        return {"tiles": [list(t) for t in c.tiles], "warps": c.warps, "stages": c.stages}

    def choice(self, c: Choice) -> Json:
        return {
            "limits": [list(limit) for limit in c.limits],
            "graph": self.graph(c.graph),
            "configs": [self.config(config) for config in c.configs],
        }


class _Reader:
    def __init__(self, data: Json) -> None:
        self.data = data
        self.symbols = [Symbol(*row) for row in data["symbols"]]
        self.axes: dict[int, Axis] = {}
        self.tensors: dict[int, Tensor] = {}
        self.nodes: list[Expr] = []
        for row in data["nodes"]:
            self.nodes.append(self._node(*row))

    def _node(self, op: str, args: list[int], attribute: Any, dtype: str) -> Expr:
        if op == "const":
            return const(float(attribute) if is_float(dtype) else attribute, dtype)
        attr: Any = None
        match op:
            case "sym":
                attr = self.symbols[attribute]
            case "axis":
                attr = self.axis(attribute)
            case "load":
                attr = self.tensor(attribute)
            case "reduce" | "online":
                monoid, axes, operand = attribute
                attr = Reduction(monoid, tuple(map(self.axis, axes)), operand)
        return make(op, tuple(self.nodes[a] for a in args), attr, dtype)

    def axis(self, number: int) -> Axis:
        if number not in self.axes:
            name, extent = self.data["axes"][number]
            self.axes[number] = Axis(name, self.nodes[extent])
        return self.axes[number]

    def tensor(self, number: int) -> Tensor:
        if number not in self.tensors:
            name, shape, dtype, bounds = self.data["tensors"][number]
            limits = None if bounds is None else (self.nodes[bounds[0]], self.nodes[bounds[1]])
            self.tensors[number] = Tensor(name, self._nodes(shape), dtype, limits)
        return self.tensors[number]

    def _nodes(self, numbers: list[int]) -> tuple[Expr, ...]:
        return tuple(self.nodes[n] for n in numbers)

    def _tensors(self, numbers: list[int]) -> tuple[Tensor, ...]:
        return tuple(map(self.tensor, numbers))

    # -- dataclasses ----------------------------------------------------------------------------

    def store(self, row: list[Any]) -> Store:
        tensor, axes, indices, value = row
        over = tuple(map(self.axis, axes))
        return Store(self.tensor(tensor), over, self._nodes(indices), self.nodes[value])

    def source(self, row: list[Any]) -> SourceOp:
        name, kind, reads, writes, flops = row
        return SourceOp(name, kind, self._tensors(reads), self._tensors(writes), self.nodes[flops])

    def program(self, d: Json) -> Program:
        return Program(
            d["name"],
            self._tensors(d["inputs"]),
            tuple(map(self.store, d["stores"])),
            self._tensors(d["outputs"]),
            tuple(map(self.source, d["source_ops"])),
        )

    def branch(self, d: Json) -> Branch:
        return Branch(tuple(map(self.store, d["stores"])), tuple((n, r) for n, r in d["roles"]))

    def graph(self, d: Json) -> KernelGraph:
        kernels = (Kernel(k["name"], tuple(map(self.branch, k["branches"]))) for k in d["kernels"])
        inputs, outputs = self._tensors(d["inputs"]), self._tensors(d["outputs"])
        return KernelGraph(d["name"], inputs, tuple(kernels), outputs)

    def config(self, d: Json) -> Config:
        return Config(tuple((n, t) for n, t in d["tiles"]), d["warps"], d["stages"])

    def choice(self, d: Json) -> Choice:
        limits = tuple((n, size) for n, size in d["limits"])
        return Choice(limits, self.graph(d["graph"]), tuple(map(self.config, d["configs"])))


_KINDS: dict[str, tuple[type, Callable[..., Json], Callable[..., Value]]] = {
    "program": (Program, _Writer.program, _Reader.program),
    "graph": (KernelGraph, _Writer.graph, _Reader.graph),
    "choice": (Choice, _Writer.choice, _Reader.choice),
    "config": (Config, _Writer.config, _Reader.config),
}


def to_json(value: Value) -> Json:
    """A dict of lists, strings and numbers that `json` writes, the same for equal values."""
    writer = _Writer()
    kind = next(k for k, (cls, _, _) in _KINDS.items() if isinstance(value, cls))
    written = _KINDS[kind][1](writer, value)
    return {"kind": kind, **writer.tables, "value": written}


def from_json(data: Json) -> Any:
    """The value that `to_json` wrote; its expressions are the interned ones. Raises UsageError."""
    if data.get("kind") not in _KINDS:
        raise UsageError(f"JSON of kind {data.get('kind')!r}; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[data["kind"]][2](_Reader(data), data["value"])
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(f"JSON of a {data['kind']} is damaged: {error!r}") from error


def digest(value: Program | KernelGraph) -> str:
    """A hash of the structure: 16 hex digits, the same in every process, equal for equal values."""
    if isinstance(value, Program):
        value = Program(value.name, value.inputs, value.stores, value.outputs)
    text = json.dumps(to_json(value), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
