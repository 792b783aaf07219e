"""Executes a µGraph on numpy arrays, tile by tile: what its roles and tiles mean.

Each kernel runs a program for every tile of its program and grid axes. A program runs the items of
`schedule(branch)`, a loop the tiles that its bounds leave, and holds a value as an array of lanes,
one a tile element. A lane is valid where all its axes' indices are below their extents. Lanes that
are not valid hold poison, never touch memory, and are replaced by the identity in a reduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from superopt.errors import IllFormed
from superopt.mugraph.bounds import Bounds, Known, loop_bounds
from superopt.mugraph.expr import BINDERS, Axis, Expr, Tensor, body_of, plain_of
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import Branch, Config, Kernel, KernelGraph, Store, illegal, loads
from superopt.mugraph.schedule import Accumulate, Compute, Item, Loop, Write, schedule
from superopt.mugraph.semantics import Arithmetic, Array, own_axes, spread


class IllegalAccess(IllFormed):
    """A µGraph touches an element that it must not, or leaves one unwritten."""


def run_graph(
    graph: KernelGraph,
    configs: Sequence[Config],
    inputs: Mapping[str, Array],
    sizes: Mapping[str, int],
    field: bool = False,
) -> dict[str, Array]:
    """Every stored tensor's value, in float64 or (`field`) with floats as residues mod `PRIME`.

    `configs` has one entry a kernel. Raises IllFormed where a branch is illegal or an axis has no
    tile, IllegalAccess where a valid lane loads or stores out of bounds, loads what no earlier
    kernel wrote, or stores an element that this kernel has stored, and where an output is left
    unwritten.
    """
    if len(configs) != len(graph.kernels):
        raise IllFormed(f"{graph.name}: {len(configs)} configs for {len(graph.kernels)} kernels")
    memory = _Memory(inputs, sizes, Arithmetic(field))
    for kernel, config in zip(graph.kernels, configs, strict=True):
        with np.errstate(all="ignore"):
            _launch(kernel, config, memory)
    for tensor in graph.outputs:
        memory.check_whole(tensor)
    return {name: memory.arrays[name] for name in memory.written}


class _Memory:
    """Global memory: its tensors, what has been written, and what this launch has written."""

    def __init__(
        self, inputs: Mapping[str, Array], sizes: Mapping[str, int], arithmetic: Arithmetic
    ) -> None:
        self.arrays = dict(inputs)
        self.sizes = dict(sizes)
        self.arithmetic = arithmetic
        self.written: dict[str, Array] = {}
        self.launch: dict[str, Array] = {}

    def extent(self, e: Expr) -> int:
        return extent_value(e, self.sizes)

    def allocate(self, tensor: Tensor) -> None:
        shape = [self.extent(e) for e in tensor.shape]
        if tensor.name not in self.written:
            self.arrays[tensor.name] = np.zeros(shape, self.arithmetic.storage(tensor.dtype))
            self.written[tensor.name] = np.zeros(shape, bool)
        self.launch[tensor.name] = np.zeros(shape, bool)

    def _bounded(self, what: str, name: str, at: list[Array], valid: Array) -> tuple[Array, ...]:
        """The indices, those of masked lanes made harmless."""
        shape = self.arrays[name].shape
        for i, extent in zip(at, shape, strict=True):
            if np.any(valid & ((i < 0) | (i >= extent))):
                bad = i[valid & ((i < 0) | (i >= extent))][0]
                raise IllegalAccess(f"{what} {name}: index {bad} is outside 0..{extent - 1}")
        return tuple(np.where(valid, i, 0) for i in at)

    def load(self, where: str, tensor: Tensor, at: list[Array], valid: Array) -> Array:
        name = tensor.name
        if name not in self.arrays:
            raise IllegalAccess(f"{where}: load of {name}: no kernel has stored it, it is no input")
        index = self._bounded(f"{where}: load of", name, at, valid)
        array = self.arrays[name]
        if array.size == 0:
            return np.zeros(valid.shape, array.dtype)
        if name in self.written and not np.all(self.written[name][index] | ~valid):
            raise IllegalAccess(f"{where}: load of {name}: an element that no kernel has written")
        return np.asarray(array[index])

    def store(
        self, where: str, tensor: Tensor, at: list[Array], valid: Array, value: Array
    ) -> None:
        name = tensor.name
        index = tuple(i[valid] for i in self._bounded(f"{where}: store to", name, at, valid))
        count = np.zeros(self.launch[name].shape, np.int64)
        np.add.at(count, index, 1 if index else int(valid))
        if np.any(count + self.launch[name] > 1):
            first = tuple(int(i) for i in np.argwhere(count + self.launch[name] > 1)[0])
            raise IllegalAccess(
                f"{where}: element {first} of {name} is stored twice in this launch"
            )
        self.arrays[name][index] = value[valid] if index else value
        self.launch[name] |= count > 0
        self.written[name] |= count > 0

    def check_whole(self, tensor: Tensor) -> None:
        if tensor.name not in self.arrays:
            raise IllegalAccess(f"output {tensor.name}: no kernel stores it")
        missing = ~self.written.get(tensor.name, np.ones((), bool))
        if np.any(missing):
            first = tuple(int(i) for i in np.argwhere(missing)[0])
            raise IllegalAccess(f"output {tensor.name}: element {first} is never written")


def _launch(kernel: Kernel, config: Config, memory: _Memory) -> None:
    stored = {s.tensor: None for s in kernel.stores}
    for node in loads(*(e for s in kernel.stores for e in (s.value, *s.indices))):
        if node.attr in stored:
            raise IllFormed(
                f"{kernel.name}: {node.attr.name} is loaded by the launch that stores it"
            )
    for tensor in stored:
        memory.allocate(tensor)
    for branch in kernel.branches:
        if message := illegal(branch):
            raise IllFormed(f"{kernel.name}: {message}")
        items = schedule(branch)
        lanes = {a: _lanes(kernel.name, branch, config, a, memory) for a in branch.axes}
        for start in _programs(branch, lanes, memory):
            _Program(kernel.name, branch, lanes, memory, start).run(items)


def _lanes(kernel: str, branch: Branch, config: Config, a: Axis, memory: _Memory) -> int:
    """How many indices of the axis a program holds at a time."""
    match branch.role(a):
        case "program":
            return 1
        case "whole":
            return 1 << max(memory.extent(a.extent) - 1, 0).bit_length()
    tile = config.by_name.get(a.name, 0)
    if tile < 1:
        raise IllFormed(f"{kernel}: the config has no tile for axis {a.name}")
    return tile


def _programs(
    branch: Branch, lanes: Mapping[Axis, int], memory: _Memory
) -> Iterator[dict[Axis, int]]:
    """The first index of each split axis, for every program of the launch."""
    split = [a for a in branch.axes if branch.role(a) in ("program", "grid")]
    starts = [range(0, memory.extent(a.extent), lanes[a]) for a in split]
    return (dict(zip(split, at, strict=True)) for at in product(*starts))


class _Program:
    """One program of a branch: the values it holds, and where each axis's tile begins."""

    def __init__(
        self,
        kernel: str,
        branch: Branch,
        lanes: Mapping[Axis, int],
        memory: _Memory,
        start: dict[Axis, int],
    ) -> None:
        self.kernel = kernel
        self.branch = branch
        self.lanes = lanes
        self.memory = memory
        self.arithmetic = memory.arithmetic
        self.start = start | {a: 0 for a in branch.axes if branch.role(a) == "whole"}
        self.values: dict[Expr, Array] = {}
        self.prior: dict[Expr, Array] = {}  # accumulators before this turn of the loop

    def run(self, items: Iterable[Item]) -> None:
        for item in items:
            match item:
                case Compute(value):
                    self.values[value] = self._node(value)
                case Accumulate(r):
                    before = self._value(r.args[2]) if r.op == "online" else self.values[r]
                    total = self.arithmetic.combine(r, before, self._reduced(r))
                    self.values[r] = self.values[plain_of(r)] = total
                case Write(store):
                    self._write(store)
                case Loop():
                    self._loop(item)

    def _loop(self, loop: Loop) -> None:
        a, outer, outer_start, outer_prior = loop.axis, self.values, self.start, self.prior
        totals = {
            r: np.full(self._shape(own_axes(r)), self.arithmetic.neutral(r))
            for r in loop.reductions
        }
        for start, tested in self._tiles(loop):
            self.start = outer_start | {a: start}
            # what varies along the axis belongs to one iteration, even where loops over it nest
            self.values = {e: v for e, v in outer.items() if a not in e.free} | totals
            self.prior = outer_prior | {plain_of(r): v for r, v in totals.items()}
            self.run(loop.body)
            self._hold_everywhere(() if tested is None else tested.tested)
            totals = {r: self.values[r] for r in loop.reductions}
        self.values, self.start, self.prior = outer | totals, outer_start, outer_prior

    def _tiles(self, loop: Loop) -> Iterator[tuple[int, Bounds | None]]:
        """Where each tile begins that the loop visits; its bounds, where it is said to need no
        test of them."""
        tile, extent = self.lanes[loop.axis], self.memory.extent(loop.axis.extent)
        bounds = loop_bounds(self.branch, loop)
        if bounds is None:
            yield from ((start, None) for start in range(0, extent, tile))
            return
        known = {k.name: self._known(k) for k in bounds.known}
        r = bounds.range(self.memory.sizes | known, tile, extent)
        for start in range(int(r.begin), int(r.end), tile):
            yield start, bounds if r.full_begin <= start < r.full_end else None

    def _known(self, number: Known) -> int:
        of = number.of
        if isinstance(of, Axis):
            return self.start[of] if number.kind == "start" else self.lanes[of]
        lanes = self._value(of)[self._valid(own_axes(of))]
        return int(lanes.min() if number.kind == "least" else lanes.max())

    def _hold_everywhere(self, conditions: Iterable[Expr]) -> None:
        """Check conditions of which a tile is said to need no test."""
        for c in conditions:
            if not np.all(self._computed(c) | ~self._valid(own_axes(c))):
                raise IllFormed(f"{self.kernel}: {c} fails in a tile that needs no test of it")

    def _computed(self, e: Expr) -> Array:
        """The value of an expression that no item of the schedule may have computed."""
        if e in self.values or not e.args or e.op in ("prior", "running"):
            return self._value(e)
        axes = own_axes(e)
        operands = [spread(self._computed(a), own_axes(a), axes) for a in e.args]
        return np.broadcast_to(self.arithmetic.apply(e, operands), self._shape(axes))

    def _write(self, store: Store) -> None:
        valid = self._valid(store.axes)
        at = [np.broadcast_to(self._align(e, store.axes), valid.shape) for e in store.indices]
        value = np.broadcast_to(self._align(store.value, store.axes), valid.shape)
        self.memory.store(self.kernel, store.tensor, at, valid, value)

    # -- values ---------------------------------------------------------------------------------

    def _shape(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(self.lanes[a] for a in axes)

    def _indices(self, a: Axis) -> Array:
        if a not in self.start:
            raise IllFormed(f"{self.kernel}: the schedule uses axis {a.name} outside its loop")
        return self.start[a] + np.arange(self.lanes[a], dtype=np.int64)

    def _valid(self, axes: Sequence[Axis]) -> Array:
        """Which lanes over `axes` have all their indices below the extents."""
        valid = np.ones(self._shape(axes), bool)
        for a in axes:
            inside = self._indices(a) < self.memory.extent(a.extent)
            valid &= spread(inside, (a,), axes)
        return valid

    def _value(self, e: Expr) -> Array:
        match e.op:
            case "const":
                return self.arithmetic.constant(e)
            case "sym":
                return np.asarray(self.memory.sizes[e.attr.name], np.int64)
            case "axis":
                return self._indices(e.attr)
            case "prior":
                return self.prior[e.args[0]]
            case "running":
                return self.values[e.args[0]]
        if e not in self.values:
            raise IllFormed(f"{self.kernel}: the schedule uses {e} before it is computed")
        return self.values[e]

    def _align(self, e: Expr, axes: Sequence[Axis]) -> Array:
        return spread(self._value(e), own_axes(e), axes)

    def _node(self, node: Expr) -> Array:
        if node.op == "load":
            return self._load(node)
        if node.op in BINDERS:
            return self._reduced(node)
        axes = own_axes(node)
        result = self.arithmetic.apply(node, [self._align(a, axes) for a in node.args])
        return np.broadcast_to(result, self._shape(axes))

    def _load(self, node: Expr) -> Array:
        axes = own_axes(node)
        lanes = self._valid(axes)
        valid = lanes & self._align(node.args[-1], axes)
        at = [np.broadcast_to(self._align(e, axes), valid.shape) for e in node.args[:-1]]
        loaded = self.memory.load(self.kernel, node.attr, at, valid)
        return np.where(valid, loaded, np.where(lanes, 0, self._poison(node.dtype)))

    def _poison(self, dtype: str) -> Any:
        """What a lane that is not valid holds: a value that shows wherever it is not masked."""
        storage = self.arithmetic.storage(dtype)
        return np.nan if storage is np.float64 else storage(1 if storage is np.bool_ else 123457)

    def _reduced(self, node: Expr) -> Array:
        """A reduce or online node over the lanes at hand."""
        axes = (*own_axes(node), *node.attr.axes)
        body = self._align(body_of(node), axes)
        valid = self._valid(node.attr.axes)
        masked = np.where(valid, body, self.arithmetic.neutral(node))
        full = np.broadcast_to(masked, self._shape(axes))
        return self.arithmetic.reduce(node, full, len(node.attr.axes))
