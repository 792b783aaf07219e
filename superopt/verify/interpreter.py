"""Triton's interpreter, made to do what a GPU does, and watched. Imported by the worker only.

Set TRITON_INTERPRET=1 before torch and triton are first imported. `faithful()` mends, for the
process: bfloat16 arithmetic (3.7 adds and multiplies its bit patterns), rounding to bfloat16 (3.7
truncates), maximum and minimum of a NaN (a GPU's drop it unless told to propagate), what a masked
load leaves where no `other` is given (3.7 says 0; it is undefined); and lets it run programs in
batches, see batch.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from superopt.mugraph.evaluate import Array
from superopt.verify.batch import Diverged, of_each, side_by_side, together

Builder = interpreter.InterpreterBuilder
Executor = interpreter.GridExecutor
Handle = interpreter.TensorHandle
_call = Executor.__call__
_masked_load = Builder.create_masked_load

# of the builder: where the pointers and the mask stand among the arguments, and what it does
HOOKS = {
    "create_masked_load": (0, 1, "load"),
    "create_masked_store": (0, 2, "store"),
    "create_atomic_rmw": (1, 3, "atomic"),
}
EMPTY = [
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
]

ACCESS_COST, LANE_COST = 1.5e-3, 3e-8  # about what the interpreter takes, in seconds
WIDEST = 1 << 20  # lanes of a tile, over all programs of a batch


class BadAccess(Exception):
    """A kernel touched memory that is no tensor's, or stored an element twice in a launch."""


# -- doing what a GPU does ----------------------------------------------------------------------


def widen(bits: Array) -> Array:
    """bfloat16, as its bits, to float32."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(x: Array) -> Array:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits.astype(np.uint64) + np.uint64(0x7FFF) + even) >> np.uint64(16)).astype(
        np.uint16
    )
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).reshape(np.shape(x))


def _is_bf16(dtype: Any) -> bool:
    return bool(dtype.scalar == tl.bfloat16)


_convert_float = interpreter._convert_float
_binary, _unary, _dot = Builder.binary_op, Builder.unary_op, Builder.create_dot


def _convert(x: Array, source: Any, target: Any, rounding: Any) -> Array:
    if source == tl.bfloat16 and target == tl.float32:
        return widen(x).reshape(x.shape).view(np.uint32)
    if source == tl.float32 and target == tl.bfloat16:
        return narrow(x)
    return np.asarray(_convert_float(x, source, target, rounding))


def _wide(handle: Any) -> Any:
    if not _is_bf16(handle.dtype):
        return handle
    return Handle(widen(handle.data).reshape(handle.data.shape), tl.float32)


def _bf16_binary(self: Any, a: Any, b: Any, op: Any) -> Any:
    if not _is_bf16(a.dtype):
        return _binary(self, a, b, op)
    result = op(_wide(a).data, _wide(b).data)
    return Handle(result if result.dtype == bool else narrow(result), a.dtype.scalar)


def _bf16_unary(self: Any, a: Any, op: Any) -> Any:
    if not _is_bf16(a.dtype):
        return _unary(self, a, op)
    return Handle(narrow(op(_wide(a).data)), a.dtype.scalar)


def _bf16_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    return _dot(self, _wide(a), _wide(b), *rest)


def _load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
    """Lanes that are masked without an `other` hold what cannot pass for a value."""
    if other is None:
        element = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(element)
        undefined = np.full((1,) * pointers.data.ndim, _undefined(element, dtype), dtype)
        other = Handle(undefined, element)
    return _masked_load(self, *together(pointers, mask, other), *rest)


def _undefined(element: Any, dtype: Any) -> Any:
    if element == tl.bfloat16:
        return 0x7FC0
    if dtype == np.bool_:
        return True
    return np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max // 3


def faithful() -> None:
    """Mend the interpreter of this process; see the module's text."""
    interpreter._convert_float = _convert
    Builder.binary_op, Builder.unary_op, Builder.create_dot = _bf16_binary, _bf16_unary, _bf16_dot
    Builder.create_masked_load = _load
    Builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    Builder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    side_by_side()


# -- watching -----------------------------------------------------------------------------------


@dataclass
class Launch:
    """One launch as it was run: its grid, how many programs ran, and what these did.

    `accesses` counts those of batches, `lanes` those of programs.
    """

    kernel: str
    grid: tuple[int, int, int]
    ran: int = 0
    accesses: int = 0
    lanes: int = 0
    batch: int = 1  # programs that run at once

    @property
    def programs(self) -> int:
        return prod(self.grid)

    def seconds(self, programs: int) -> float:
        """An estimate for so many programs that do what the one that ran did."""
        batches = -(-programs // self.batch)
        return batches * self.accesses * ACCESS_COST + programs * self.lanes * LANE_COST


@dataclass
class Region:
    """A storage that a launch may touch. `written` marks the bytes that stores reached, where the
    host allocated it empty; None where it held values before."""

    low: int
    high: int
    written: Array | None
    is_input: bool
    keep: torch.Tensor  # so that its address is not given out again

    def offsets(self, addresses: Array) -> Array:
        return (addresses - np.uint64(self.low)).astype(np.int64)


@dataclass
class Stored:
    """What stood at some addresses before a store, and the marks that they had."""

    region: Region
    addresses: Array
    values: Array
    marks: list[Array]


def _values_at(addresses: Array, pointers: Any) -> Array:
    dtype = interpreter._get_np_dtype(pointers.get_element_ty())
    everywhere, other = np.ones(len(addresses), bool), np.zeros(len(addresses), dtype)
    return np.asarray(interpreter._interpreter.load(addresses, everywhere, other, dtype))


Plan = Callable[[int, int], "set[int] | None"]  # (launch, programs) -> which to run; None: all


@dataclass
class Watch:
    """Runs chosen programs of every launch, and records what is stored where.

    Raises BadAccess (inside Triton's InterpreterError) for an access outside of every argument, a
    store to an input, and an element that two programs of a launch store.
    """

    plan: Plan
    inputs: list[torch.Tensor]
    launches: list[Launch] = field(default_factory=list)
    regions: dict[int, Region] = field(default_factory=dict)
    fresh: dict[int, Array] = field(default_factory=dict)  # bytes stored by the running launch
    noting: bool = False  # whether to note which rows of inputs, along the last axis, are read
    rows: dict[int, set[int]] = field(default_factory=dict)  # those, by the input's address
    widest: dict[str, int] = field(default_factory=dict)  # lanes of a kernel's largest tile
    stored: list[Stored] = field(default_factory=list)  # by the batch that runs

    def __post_init__(self) -> None:
        self.undo = ExitStack()
        for t in self.inputs:
            self._region(t, is_input=True)

    def __enter__(self) -> Watch:
        def hooked(method: Any, at: int, mask_at: int, kind: str) -> Any:
            def access(builder: Any, *args: Any) -> Any:
                self._touch(args[at], args[mask_at], kind)
                return method(builder, *args)

            return access

        def allocating(method: Any) -> Any:
            return lambda *args, **kwargs: self._empty(method(*args, **kwargs))

        def call(executor: Any, *args: Any, **kwargs: Any) -> None:
            self._launch(executor, args, kwargs)

        hooks = [
            (Builder, name, hooked(getattr(Builder, name), *how)) for name, how in HOOKS.items()
        ]
        hooks += [(of, name, allocating(getattr(of, name))) for of, name in EMPTY]
        hooks += [(Executor, "__call__", call), (Executor, "_restore_args_dev", lambda *_: None)]
        nested = lambda f, *args, **kwargs: f.rewrite()(*args, **kwargs)  # noqa: E731
        hooks.append((interpreter.InterpretedFunction, "__call__", nested))
        for of, name, new in hooks:
            self.undo.enter_context(patch.object(of, name, new))
        return self

    def __exit__(self, *_: object) -> None:
        self.undo.close()

    def written(self, tensor: torch.Tensor) -> Array:
        """Which elements of a tensor were stored; all of a tensor not allocated empty."""
        region = self.regions.get(tensor.untyped_storage().data_ptr())
        if region is None or region.written is None:
            return np.ones(tuple(tensor.shape), bool)
        size = tensor.element_size()
        elements = torch.from_numpy(region.written[::size].copy())
        return elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).numpy()

    def _region(self, tensor: torch.Tensor, is_input: bool = False, empty: bool = False) -> None:
        storage = tensor.untyped_storage()
        low, size = storage.data_ptr(), storage.nbytes()
        if size and low not in self.regions:
            written = np.zeros(size, bool) if empty else None
            self.regions[low] = Region(low, low + size, written, is_input, tensor)

    def _empty(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype.is_floating_point:
            tensor.fill_(float("nan"))  # what nobody writes must not look right
        self._region(tensor, empty=True)
        return tensor

    def _launch(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for a in (*args, *kwargs.values()):
            if isinstance(a, torch.Tensor):
                self._region(a)
        self.fresh = {
            low: np.zeros_like(r.written)
            for low, r in self.regions.items()
            if r.written is not None
        }
        self.launches.append(Launch(executor.fn.__name__, (0, 0, 0)))
        executor.fn = _Chosen(executor.fn, self, len(self.launches) - 1)
        scope = interpreter._patch_lang(_Languages)  # once a launch, not at each nested call
        try:
            with np.errstate(all="ignore"):
                _call(executor, *args, **kwargs)
        finally:
            scope.restore()
        self.launches[-1].grid = interpreter.interpreter_builder.grid_dim

    def _touch(self, pointers: Any, mask: Any, kind: str) -> None:
        launch = self.launches[-1]
        tile = pointers.data[0].size
        launch.accesses += 1
        launch.lanes += tile * interpreter.interpreter_builder.programs
        self.widest[launch.kernel] = max(self.widest.get(launch.kernel, 1), tile)
        if kind != "load":
            pointers = of_each(interpreter.interpreter_builder, pointers)
        addresses, active = pointers.data, pointers.data.ravel()
        if mask is not None:
            addresses, on = np.broadcast_arrays(addresses, mask.data)
            active = addresses[on]
        if not active.size:
            return
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        low, high = int(active.min()), int(active.max()) + width
        region = next((r for r in self.regions.values() if r.low <= low and high <= r.high), None)
        if region is None:
            raise BadAccess(f"{self._who()}: {kind} outside of every tensor")
        if self.noting and region.is_input:
            row = region.keep.shape[-1] * region.keep.element_size()
            read = np.unique((active - np.uint64(region.low)) // np.uint64(row))
            self.rows.setdefault(region.low, set()).update(map(int, read))
        if kind != "load":
            if region.is_input:
                raise BadAccess(f"{self._who()}: {kind} to an input")
            before = []
            if interpreter.interpreter_builder.programs > 1:  # one alone is never taken back
                marks = [m[region.offsets(active)] for m in self._marks(region)]
                before = [Stored(region, active, _values_at(active, pointers), marks)]
            self._mark(region, active, kind)
            self.stored += before

    def _who(self) -> str:
        return f"{self.launches[-1].kernel}, program {interpreter.interpreter_builder.grid_idx}"

    def _mark(self, region: Region, active: Array, kind: str) -> None:
        if region.written is None:
            return
        at = region.offsets(active)
        if kind == "store":
            fresh = self.fresh[region.low]
            if fresh[at].any() or not _distinct(at, len(fresh)):
                raise BadAccess(f"{self._who()}: stores an element twice in one launch")
            fresh[at] = True
        region.written[at] = True

    def take_back(self) -> None:
        """Undo what the batch that ran has stored."""
        while self.stored:
            last = self.stored.pop()
            everywhere = np.ones(len(last.addresses), bool)
            interpreter._interpreter.store(last.addresses, last.values, everywhere)
            at = last.region.offsets(last.addresses)
            for marks, were in zip(self._marks(last.region), last.marks, strict=True):
                marks[at] = were

    def _marks(self, region: Region) -> list[Array]:
        """What notes the stores to a region: ever, and by this launch."""
        return [] if region.written is None else [region.written, self.fresh[region.low]]


def _distinct(at: Array, most: int) -> bool:
    """Whether no place below `most` comes twice: each then holds its own number."""
    place, numbers = np.empty(most, np.int32), np.arange(len(at), dtype=np.int32)
    place[at] = numbers
    return bool((place[at] == numbers).all())


class _Languages:
    """Stands for a function that sees both modules of the language."""

    __globals__: ClassVar[dict[str, Any]] = {"tl": tl, "core": tl.core}


class _Chosen:
    """A kernel's function that runs the chosen programs of the grid, many at once.

    Where it is not known how large its tiles are the first runs alone, to tell. Where programs of a
    batch go different ways those that agree run again together, where one fails each runs alone.
    """

    def __init__(self, fn: Any, watch: Watch, launch: int) -> None:
        self.fn, self.watch, self.launch = fn, watch, launch
        self.__name__, self.__globals__ = fn.__name__, fn.__globals__
        self.__signature__ = inspect.signature(fn)
        self.chosen: set[int] | None = None
        self.count = 0
        self.ids: list[tuple[int, ...]] = []

    def __call__(self, **arguments: Any) -> None:
        programs = prod(interpreter.interpreter_builder.grid_dim)
        if self.count == 0:
            self.chosen = self.watch.plan(self.launch, programs)
        if self.chosen is None or self.count in self.chosen:
            self.ids.append(interpreter.interpreter_builder.grid_idx)
        self.count += 1
        if self.count == programs and self.ids:
            done = 0
            if self.__name__ not in self.watch.widest:
                self.run(arguments, self.ids[:1])
                done = 1
            launch = self.watch.launches[self.launch]
            launch.batch = max(1, WIDEST // self.watch.widest.get(self.__name__, 1))
            for start in range(done, len(self.ids), launch.batch):
                self.run(arguments, self.ids[start : start + launch.batch])
            launch.ran = len(self.ids)

    def run(self, arguments: dict[str, Any], ids: Sequence[tuple[int, ...]]) -> None:
        """A batch of programs."""
        builder = interpreter.interpreter_builder
        builder.programs, builder.grid_idx = len(ids), ids[0]
        builder.program_ids = np.array(ids, np.int32).T.copy()
        self.watch.stored.clear()
        try:
            self.fn(**arguments)
        except Exception as error:
            if len(ids) == 1:
                raise
            self.watch.take_back()
            for part in _parted(ids, error):
                self.run(arguments, part)


def _parted(
    ids: Sequence[tuple[int, ...]], error: Exception
) -> Iterable[Sequence[tuple[int, ...]]]:
    if not isinstance(error, Diverged):
        return [[i] for i in ids]
    groups: dict[Any, list[tuple[int, ...]]] = {}
    for i, value in zip(ids, error.values.tolist(), strict=True):
        groups.setdefault(value, []).append(i)
    return groups.values()
