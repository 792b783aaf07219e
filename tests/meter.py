"""Meter for Triton kernels in the interpreter: exact memory traffic, and traps for bad accesses.

    with meter() as m:
        out = rmsnorm_linear(x, g, w)
    m.assert_all_written(out)
    assert m.distinct_bytes == ideal and m.extra_launches == 0

Pointers carry their argument in the bits above an address, so an access is judged against the very
tensor its pointer came from, even where it strays into another one. `triton.language` itself holds
jitted functions: TRITON_INTERPRET must be set before triton is first imported, which importing this
module first, or a conftest, does.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from numpy.lib.stride_tricks import as_strided
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

SECTOR = 32  # bytes: what one transaction between L2 and global memory moves
TAG = 48  # user-space addresses lie below 2**48
ADDRESS = np.uint64((1 << TAG) - 1)
READ, STORED, ATOMIC, WRITTEN = 1, 2, 4, 8  # bits of a cell; WRITTEN alone outlives a launch
# access -> bits it sets; for each direction: is it a write, the bits that say "counted already"
ACCESSES: dict[str, tuple[int, tuple[tuple[bool, int], ...]]] = {
    "load": (READ, ((False, READ | ATOMIC),)),
    "store": (STORED | WRITTEN, ((True, STORED | ATOMIC),)),
    "atomic": (ATOMIC | WRITTEN, ((False, READ | ATOMIC), (True, STORED | ATOMIC))),
}
EMPTY = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
ALLOCATIONS = {f"aten::{name}" for name in EMPTY}
FREE = {"aten::_unsafe_view", "aten::lift_fresh"}  # move no bytes, though their schemas do not say
_LOADED = itertools.count()
# method of InterpreterBuilder -> (access, position of the pointers, of the mask or None)
HOOKS: dict[str, tuple[str, int, int | None]] = {
    "create_masked_load": ("load", 0, 1),  # create_load and the block pointers' loads call it
    "create_masked_store": ("store", 0, 2),
    "create_atomic_rmw": ("atomic", 1, 3),
    "create_atomic_cas": ("atomic", 0, None),
}


class Trap(AssertionError):
    """An access that would be wrong on a GPU."""


class OutOfBounds(Trap):
    """An active lane left the elements of its tensor (a hole between rows included)."""


class DoubleWrite(Trap):
    """One launch stored an element twice."""


class UninitialisedRead(Trap):
    """An element allocated by `empty` was read before it was written."""


class Unwritten(Trap):
    """An element that had to be written was not."""


@dataclass
class Traffic:
    """Bytes moved. `distinct`: each byte once a launch, once as read and once as written."""

    requested_read: int = 0
    requested_written: int = 0
    distinct_read: int = 0
    distinct_written: int = 0
    sectors: int = 0  # summed over tile accesses, as are:
    needed_sector_bytes: int = 0  # an access's distinct bytes, rounded up to whole sectors
    accesses: int = 0

    @property
    def requested_bytes(self) -> int:
        return self.requested_read + self.requested_written

    @property
    def distinct_bytes(self) -> int:
        return self.distinct_read + self.distinct_written

    @property
    def sector_bytes(self) -> int:
        return SECTOR * self.sectors

    @property
    def sector_ratio(self) -> float:
        """1.0: accesses as dense as can be; 16.0: each fp16 element in a sector of its own."""
        return self.sector_bytes / max(self.needed_sector_bytes, 1)

    def add(self, write: bool, requested: int, distinct: int, sectors: int, needed: int) -> None:
        self.requested_read += 0 if write else requested
        self.requested_written += requested if write else 0
        self.distinct_read += 0 if write else distinct
        self.distinct_written += distinct if write else 0
        self.sectors += sectors
        self.needed_sector_bytes += needed
        self.accesses += 1


@dataclass
class Launch(Traffic):
    """One launch of a kernel; `by_tensor` is keyed by the kernel's argument names."""

    kernel: str = ""
    grid: tuple[int, ...] = ()
    by_tensor: dict[str, Traffic] = field(default_factory=dict)


@dataclass(frozen=True)
class HostOp:
    """An operator the host function ran beside its launches; bytes of its arguments and results."""

    name: str
    bytes: int


def _cells(off: np.ndarray, width: int, unit: int) -> np.ndarray:
    """Byte offsets of accesses of `width` bytes -> indices of the cells of `unit` bytes touched."""
    first = off // unit
    return first if width <= unit else (first[:, None] + np.arange(width // unit)).ravel()


class Storage:
    """What is known of each cell of one tensor storage: a byte of bits for `unit` bytes."""

    def __init__(self, tensor: torch.Tensor, tracked: bool) -> None:
        self.keep = tensor  # held, so that its address is not given out again
        self.base = tensor.untyped_storage().data_ptr()
        self.unit = tensor.element_size()
        self.tracked = tracked  # allocated by `empty` within the meter
        self.dirty = False
        self.name = ""  # of the first argument it was, primed if taken; its row in by_tensor
        self.state = np.zeros(tensor.untyped_storage().nbytes() // self.unit, np.uint8)

    def refine(self, width: int) -> None:
        """Make cells no wider than `width` bytes."""
        if width < self.unit:
            self.state, self.unit = np.repeat(self.state, self.unit // width), width

    def start_launch(self) -> None:
        if self.dirty:
            self.state &= WRITTEN
        else:
            self.state = np.zeros(len(self.state), np.uint8)

    def elements(self, tensor: torch.Tensor) -> np.ndarray:
        """The cells of a tensor, writable: its shape, and an axis within elements."""
        self.refine(tensor.element_size())
        ratio = tensor.element_size() // self.unit
        start = (tensor.data_ptr() - self.base) // self.unit if tensor.numel() else 0
        strides = (*(s * ratio for s in tensor.stride()), 1)
        cells: np.ndarray = as_strided(self.state[start:], (*tensor.shape, ratio), strides)
        return cells


class View:
    """The bytes that are elements of one tensor argument; `tag` marks the pointers into it."""

    def __init__(self, name: str, tensor: torch.Tensor, storage: Storage, tag: int) -> None:
        self.name, self.storage = name, storage
        self.text = f"{name} (shape {tuple(tensor.shape)}, strides {tensor.stride()})"
        self.base = tensor.data_ptr()
        self.origin = np.uint64(self.base | tag << TAG)
        self.item = tensor.element_size()
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        self.span = (last + 1) * self.item if tensor.numel() else 0
        self.valid: np.ndarray | None = None  # by element of the span; None: all of them
        if not tensor.is_contiguous():
            self.valid = np.zeros(self.span // self.item, np.bool_)
            as_strided(self.valid, tensor.shape, tensor.stride())[...] = True

    def outside(self, off: np.ndarray, width: int) -> np.ndarray:
        """The byte offsets from the first element at which `width` bytes are not all elements."""
        bad: np.ndarray = (off < 0) | (off > self.span - width) | ((off + self.base) % width != 0)
        if self.valid is not None and self.span >= width:
            cells = _cells(np.where(bad, 0, off), width, self.item)
            bad |= ~self.valid[cells].reshape(len(off), -1).all(axis=1)
        outside: np.ndarray = off[bad]
        return outside


@dataclass
class Meter(Traffic):
    """Sums over all launches, and the launches; `by_tensor` has a row a storage (see `of`)."""

    launches: list[Launch] = field(default_factory=list)
    host_ops: list[HostOp] = field(default_factory=list)
    by_tensor: dict[str, Traffic] = field(default_factory=dict)
    _storages: dict[int, Storage] = field(default_factory=dict, repr=False)
    _views: dict[Any, View] = field(default_factory=dict, repr=False)
    _extra: list[View] = field(default_factory=list, repr=False)
    _live: tuple[View, ...] = field(default=(), repr=False)
    _running: Launch | None = field(default=None, repr=False)

    @property
    def total(self) -> Traffic:
        return self

    @property
    def extra_launches(self) -> int:
        return len(self.host_ops)

    def of(self, tensor: torch.Tensor) -> Traffic:
        """The traffic of the tensor's storage, all launches together."""
        return self.by_tensor.get(self._storage(tensor).name, Traffic())

    def assert_all_written(self, *tensors: torch.Tensor) -> None:
        """Raise Unwritten unless every element of the tensors (none given: of all that were
        allocated by `empty` within the meter) was stored by a launch or filled by an operator."""
        for tensor in tensors or [s.keep for s in self._storages.values() if s.tracked]:
            storage = self._storage(tensor)
            missing = np.argwhere((storage.elements(tensor) & WRITTEN == 0).any(axis=-1))
            if len(missing):
                raise Unwritten(
                    f"{storage.name or 'a tensor no kernel was given'}: {len(missing)} of "
                    f"{tensor.numel()} elements never written, first {tuple(missing[0].tolist())}"
                )

    def _storage(self, tensor: torch.Tensor, tracked: bool = False) -> Storage:
        key = tensor.untyped_storage().data_ptr()
        if key not in self._storages or not key:  # all storages of no bytes have the address 0
            self._storages[key] = Storage(tensor, tracked)
        return self._storages[key]

    def _host_op(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note an operator that ran: an allocation starts unwritten; others write their results."""
        name, results = func._schema.name, _tensors(out)
        if name in ALLOCATIONS:
            for tensor in results:
                self._storage(tensor, tracked=True)
        elif not func.is_view and name not in FREE:
            used = {id(t): t for t in (*_tensors((args, kwargs)), *results)}
            self.host_ops.append(HostOp(name, sum(t.nbytes for t in used.values())))
            # what an operator wrote it returns, but for some in-place ones that return nothing
            for tensor in results or _tensors((args, kwargs)):
                storage = self._storage(tensor)
                storage.dirty = True
                storage.elements(tensor)[...] |= WRITTEN

    def _view(self, kernel: str, name: str, tensor: torch.Tensor, tag: int) -> View:
        if tensor.device.type != "cpu":
            raise TypeError(f"{kernel}: {name} is on {tensor.device}; the meter takes cpu tensors")
        storage = self._storage(tensor)
        if not storage.name:
            storage.name = name
            while storage.name in self.by_tensor:  # another storage's
                storage.name += "'"
            self.by_tensor[storage.name] = Traffic()
        return View(name, tensor, storage, tag)

    def _start(self, kernel: str, arguments: dict[str, Any]) -> None:
        self._running = Launch(kernel=kernel)
        self.launches.append(self._running)
        self._views = {}
        for name, tensor in itertools.chain(*(_named(*item) for item in arguments.items())):
            if _key(tensor) not in self._views:
                view = self._view(kernel, name, tensor, len(self._views) + 1)
                self._views[_key(tensor)] = view
        self._live = (*self._views.values(), *self._extra)
        for storage in {id(view.storage): view.storage for view in self._live}.values():
            storage.start_launch()

    def _tagged(self, argument: Any, value: Any) -> Any:
        """Mark the pointer made from a tensor argument with the number of its view."""
        if hasattr(argument, "data_ptr"):
            origin = self._views[_key(_unwrapped(argument))].origin
            value.handle.data = np.array([origin], np.uint64)
        return value

    def _access(self, kind: str, pointers: Any, mask: Any) -> Any:
        """Count and judge one tile access; returns its pointers as plain addresses."""
        active = pointers.data
        if mask is not None:
            mask = mask if isinstance(mask, np.ndarray) else mask.data
            active = active[np.broadcast_to(mask, active.shape).astype(bool)]
        active = active.ravel()
        if not (active[1:] > active[:-1]).all():
            active = np.sort(active)
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        for view, offsets in self._by_view(active, width) if active.size else ():
            self._touch(kind, view, offsets, width)
        return replace(pointers, data=pointers.data & ADDRESS)

    def _by_view(self, active: np.ndarray, width: int) -> Iterator[tuple[View, np.ndarray]]:
        """Sorted pointers -> the tensors they were made from, with byte offsets from the first
        element. Pointers made from integers are looked up among all live tensors."""
        tags, plain = active >> TAG, (active & ADDRESS).view(np.int64)
        for tag in np.unique(tags) if tags[0] != tags[-1] else tags[:1]:
            addresses = plain[tags == tag] if tags[0] != tags[-1] else plain
            if 0 < tag <= len(self._views):
                view = self._live[int(tag) - 1]
                yield view, addresses - view.base
                continue
            for view in self._live:
                inside = ~np.isin(addresses, view.outside(addresses - view.base, width) + view.base)
                if inside.any():
                    yield view, addresses[inside] - view.base
                addresses = addresses[~inside]
            if len(addresses):
                nearest = min(self._live, key=lambda view: abs(view.base - int(addresses[0])))
                yield nearest, addresses - nearest.base  # outside of it too: a trap

    def _touch(self, kind: str, view: View, offsets: np.ndarray, width: int) -> None:
        """Judge and count accesses to one tensor; byte offsets are sorted, not yet distinct."""
        if len(bad := view.outside(offsets, width)):
            self._trap(OutOfBounds, kind, view, bad[0], "no element of the tensor")
        fresh = offsets[1:] != offsets[:-1]
        if kind == "store" and not fresh.all():
            self._trap(DoubleWrite, kind, view, offsets[1:][~fresh][0], "twice in one store")
        distinct = offsets if fresh.all() else offsets[np.r_[True, fresh]]
        storage = view.storage
        storage.refine(width)
        cells = _cells(distinct + (view.base - storage.base), width, storage.unit)
        before = storage.state[cells]

        def first(bad: np.ndarray) -> int:  # an access may span more cells than one
            return int(distinct[np.argmax(bad) * len(distinct) // len(bad)])

        if kind == "store" and (again := before & STORED != 0).any():
            self._trap(DoubleWrite, kind, view, first(again), "already stored in this launch")
        if kind != "store" and storage.tracked and (unset := before & WRITTEN == 0).any():
            self._trap(UninitialisedRead, kind, view, first(unset), "allocated, never written")
        bits, directions = ACCESSES[kind]
        storage.state[cells] = before | bits
        storage.dirty |= kind != "load"

        sector = (distinct + view.base) // SECTOR
        sectors = 1 + int(np.count_nonzero(sector[1:] != sector[:-1]))
        needed = -(-len(distinct) * width // SECTOR) * SECTOR
        assert self._running is not None
        in_launch = self._running.by_tensor.setdefault(view.name, Traffic())
        for traffic in (self, self._running, in_launch, self.by_tensor[storage.name]):
            for write, seen in directions:
                new = storage.unit * int(np.count_nonzero(before & seen == 0))
                traffic.add(write, len(offsets) * width, new, sectors, needed)

    def _trap(self, trap: type[Trap], kind: str, view: View, offset: int, why: str) -> NoReturn:
        assert self._running is not None
        raise trap(
            f"{self._running.kernel}, program {interpreter.interpreter_builder.grid_idx}: {kind} at"
            f" byte {offset:+d} (element {offset // view.item:+d}) of {view.text}: {why}"
        )


class _HostOps(TorchDispatchMode):
    """Tells the meter of every operator run outside launches, also inside custom operators."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in OPDEFS:  # torch.library's: its Python body runs under this mode
            with self:
                return func.redispatch(
                    torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs
                )
        out = func(*args, **kwargs)
        if self.meter._running is None:
            self.meter._host_op(func, args, kwargs, out)
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _unwrapped(argument: Any) -> Any:
    """The tensor of a TensorWrapper or TensorDescriptor."""
    return argument if isinstance(argument, torch.Tensor) else getattr(argument, "base", argument)


def _named(name: str, argument: Any) -> Iterator[tuple[str, torch.Tensor]]:
    argument = _unwrapped(argument)
    if isinstance(argument, torch.Tensor):
        yield name, argument
    elif isinstance(argument, tuple):
        for i, part in enumerate(argument):
            yield from _named(f"{name}[{i}]", part)


def _key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _trap_behind(error: BaseException | None) -> Trap | None:
    """The trap that the interpreter wrapped, if any."""
    while error is not None and not isinstance(error, Trap):
        error = error.__cause__
    return error


def _check_interpreted() -> None:
    if not isinstance(tl.sum, interpreter.InterpretedFunction):
        raise RuntimeError(
            "set TRITON_INTERPRET=1 before triton is first imported (in conftest.py)"
        )


@contextmanager
def meter(tensors: Sequence[torch.Tensor] = ()) -> Iterator[Meter]:
    """Meter every launch inside the context. CPU tensors only; not to be nested.

    `tensors`: what kernels may touch besides their arguments, through addresses kept as integers.
    Raises (a subclass of) Trap where an access is wrong, out of the host function that launched.
    """
    _check_interpreted()
    record, builder = Meter(), interpreter.InterpreterBuilder
    call, convert = interpreter.GridExecutor.__call__, interpreter._implicit_cvt
    if call.__module__ == __name__:
        raise RuntimeError("a meter is running already; they do not nest")

    def metered_call(executor: Any, *args: Any, **kwargs: Any) -> None:
        record._start(executor.fn.__name__, {**dict(zip(executor.arg_names, args)), **kwargs})  # noqa: B905
        try:
            call(executor, *args, **kwargs)
        except Exception as error:
            if trap := _trap_behind(error):
                raise trap from None
            raise
        finally:
            record.launches[-1].grid = getattr(interpreter.interpreter_builder, "grid_dim", ())
            record._running = None

    def metered(method: Callable[..., Any], kind: str, at: int, mask_at: int | None) -> Any:
        def access(self: Any, *args: Any, **kwargs: Any) -> Any:
            plain = record._access(kind, args[at], None if mask_at is None else args[mask_at])
            return method(self, *args[:at], plain, *args[at + 1 :], **kwargs)

        return access

    for i, tensor in enumerate(tensors):
        record._extra.append(record._view("", f"tensors[{i}]", tensor, 0))
    with ExitStack() as stack:
        for name, (kind, at, mask_at) in HOOKS.items():
            hook = metered(getattr(builder, name), kind, at, mask_at)
            stack.enter_context(patch.object(builder, name, hook))
        tagged = lambda argument: record._tagged(argument, convert(argument))  # noqa: E731
        stack.enter_context(patch.object(interpreter, "_implicit_cvt", tagged))
        stack.enter_context(patch.object(interpreter.GridExecutor, "__call__", metered_call))
        stack.enter_context(_HostOps(record))
        yield record


def load_kernel(path: str | os.PathLike[str]) -> ModuleType:
    """Import a kernel.py as a module of its own, its kernels decorated for the interpreter."""
    _check_interpreted()
    name = f"metered_kernel_{next(_LOADED)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
