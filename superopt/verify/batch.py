"""Triton's interpreter, made to run many programs of a launch at once. Imported by the worker only.

Triton 3.7 runs one program at a time, and takes about 0.1 ms for each operation whatever the tile.
Here every array has one axis more in front, that of programs: of length 1 where all hold the same.
A scalar is an array of one axis, so what Triton makes of constants and arguments is right as it is,
and what works on each element (arithmetic, comparisons, conversions) needs no change; this module
replaces what looks at shapes. Where programs part (the bound of a loop, an `if`), `Diverged` tells
their values, and each group runs again alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from superopt.mugraph.evaluate import Array

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle
Reduce = interpreter.ReduceOps


class Diverged(Exception):
    """Programs of a batch go different ways: `values`, one a program, say which."""

    def __init__(self, values: Array) -> None:
        super().__init__(values)
        self.values = values


def side_by_side() -> None:
    """Let the interpreter of this process run programs in batches."""
    Builder.create_get_program_id = _program_id
    Builder.create_make_range = _make_range
    Builder.create_splat = _splat
    Builder.create_unsplat = lambda self, x: Handle(x.data.reshape(len(x.data)), x.dtype.scalar)
    Builder.create_broadcast = lambda self, x, shape: Handle(_to(x.data, shape), x.dtype.scalar)
    Builder.create_expand_dims = _expand_dims
    Builder.create_reshape = lambda self, x, shape, _: Handle(
        x.data.reshape(len(x.data), *shape), x.dtype.scalar
    )
    Builder.create_trans = lambda self, x, order: Handle(
        np.transpose(x.data, [0, *(i + 1 for i in order)]), x.dtype.scalar
    )
    Builder.create_cat = _cat
    Builder.create_join = lambda self, a, b: Handle(
        np.stack(np.broadcast_arrays(a.data, b.data), axis=-1), a.dtype.scalar
    )
    Builder.create_load = lambda self, pointers, *rest: self.create_masked_load(
        pointers, _all(pointers), None, *rest
    )
    Builder.create_store = lambda self, pointers, value, *_: self.create_masked_store(
        pointers, value, _all(pointers), None, None
    )
    Builder.create_masked_store = _store
    Builder.create_atomic_rmw = _atomic
    Builder.create_gather = lambda self, x, at, axis: Handle(
        np.take_along_axis(x.data, at.data, axis=axis + 1), x.dtype.scalar
    )
    for name in ("create_histogram", "create_make_block_ptr", "create_make_tensor_descriptor"):
        setattr(Builder, name, partial(_not_run, name.removeprefix("create_")))
    interpreter.ScanOps.apply_impl = partial(_not_run, "associative_scan")
    Reduce.to_tensor = _tensor
    Reduce.sum = _sum
    Reduce.min_max = _min_max
    Reduce.generic_reduce = _fold
    interpreter._patch_lang_tensor = _patch_tensor


def together(*handles: Any) -> list[Any]:
    """The handles, each of the batch's shape, in memory of their own."""
    arrays = np.broadcast_arrays(*(h.data for h in handles))
    return [Handle(np.array(a), h.dtype) for a, h in zip(arrays, handles, strict=True)]


def of_each(builder: Any, handle: Any) -> Any:
    """A handle with a row for each program of the batch: all of them store, the same or not."""
    shape = (builder.programs, *handle.data.shape[1:])
    return Handle(np.broadcast_to(handle.data, shape), handle.dtype)


def _not_run(name: str, *_: Any, **__: Any) -> Any:
    raise NotImplementedError(f"{name}, which no kernel here uses, is not interpreted")


def _to(data: Array, shape: Any) -> Array:
    return np.broadcast_to(data, (len(data), *shape))


def _all(pointers: Any) -> Any:
    return Handle(np.ones_like(pointers.data, dtype=bool), tl.int1)


def _program_id(self: Any, axis: int) -> Any:
    return Handle(self.program_ids[axis], tl.int32)


def _make_range(self: Any, _: Any, start: int, stop: int) -> Any:
    return Handle(np.arange(start, stop, dtype=np.int32)[None], tl.int32)


def _splat(self: Any, result: Any, x: Any) -> Any:
    data = x.data.reshape(len(x.data), *(1 for _ in result.shape))
    return Handle(_to(data, result.shape), x.dtype.scalar)


def _expand_dims(self: Any, x: Any, axis: int) -> Any:
    return Handle(np.expand_dims(x.data, axis + 1), x.dtype.scalar)


def _cat(self: Any, a: Any, b: Any) -> Any:
    programs = max(len(a.data), len(b.data))
    parts = [np.broadcast_to(x.data, (programs, *x.data.shape[1:])) for x in (a, b)]
    return Handle(np.concatenate(parts, axis=1), a.dtype.scalar)


_masked_store, _rmw = Builder.create_masked_store, Builder.create_atomic_rmw


def _store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    return _masked_store(self, *together(of_each(self, pointers), value, mask), *rest)


def _atomic(self: Any, kind: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    return _rmw(self, kind, *together(of_each(self, pointers), value, mask), *rest)


# -- reductions ---------------------------------------------------------------------------------


def _tensor(self: Any, data: Any, dtype: Any) -> Any:
    data = np.asarray(data).astype(interpreter._get_np_dtype(dtype))
    shape = list(data.shape[1:])
    handle = Handle(data, dtype.scalar)
    return tl.core.tensor(handle, tl.block_type(dtype, shape) if shape else dtype)


def _axes(self: Any, data: Array) -> int | tuple[int, ...]:
    return tuple(range(1, data.ndim)) if self.axis is None else self.axis + 1


def _sum(self: Any, input: Any) -> Any:
    data = input.handle.data
    total = np.sum(data, axis=_axes(self, data), keepdims=self.keep_dims)
    return self.to_tensor(total, input.dtype)


def _min_max(self: Any, input: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
    input = input[0] if isinstance(input, tuple) else input
    data = input.handle.data
    if self.axis is None and idx_reduce_op is not None:
        raise NotImplementedError("the index of an extreme over all axes")
    axes, keep = _axes(self, data), self.keep_dims
    value = self.to_tensor(val_reduce_op(data, axis=axes, keepdims=keep), input.dtype)
    if idx_reduce_op is None:
        return value
    return value, self.to_tensor(idx_reduce_op(data, axis=axes, keepdims=keep), tl.int32)


def _fold(self: Any, input: Any) -> Any:
    """By a function: fold the two halves of the axis until one element is left, as a GPU does."""
    axis = 1 if self.axis is None else self.axis + 1
    arrays = np.broadcast_arrays(*(x.handle.data for x in input))
    rank = arrays[0].ndim
    if self.axis is None:
        arrays = tuple(a.reshape(len(a), -1) for a in arrays)
    types = [x.dtype for x in input]
    parts = [np.moveaxis(a, axis, -1) for a in arrays]
    while (n := parts[0].shape[-1]) > 1:
        half = n // 2  # extents of tiles are powers of two
        sides = ([p[..., :half] for p in parts], [p[..., half:] for p in parts])
        tensors = [self.to_tensor(p, t) for side in sides for p, t in zip(side, types, strict=True)]
        result = self.combine_fn.fn(*tensors)
        parts = [r.handle.data for r in (result if isinstance(result, tuple) else (result,))]
    done = []
    for part, dtype in zip(parts, types, strict=True):
        value = part[..., 0]
        if self.keep_dims and self.axis is None:
            value = value.reshape(len(value), *(1 for _ in range(rank - 1)))
        elif self.keep_dims:
            value = np.expand_dims(value, axis)
        done.append(self.to_tensor(value, dtype))
    return done


# -- values that control flow asks for ----------------------------------------------------------


def _patch_tensor(tensor: Any, scope: Any) -> None:
    scope.set_attr(tensor, "__index__", lambda self: int(_agreed(self.handle.data)))
    scope.set_attr(tensor, "__bool__", _truth)
    scope.set_attr(tensor, "__repr__", lambda self: repr(self.handle.data))
    scope.set_attr(tensor, "__str__", lambda self: str(self.handle.data))
    scope.set_attr(tensor, "T", property(_transposed))


def _agreed(data: Array) -> Any:
    """The value that all programs have of a scalar."""
    if data.ndim > 1 and data[0].size > 1:
        raise TypeError(f"a tile of {data.shape[1:]} was used as a number")
    values = data.reshape(len(data))
    if (values[1:] != values[0]).any():  # of one program none, be it NaN
        raise Diverged(values)
    return values[0]


def _truth(self: Any) -> bool:
    """Of a scalar; a tile is true, as in Triton's own interpreter."""
    data = self.handle.data
    return True if data[0].size > 1 else bool(_agreed(data))


def _transposed(self: Any) -> Any:
    *first, rows, columns = self.type.shape
    handle = Handle(np.swapaxes(self.handle.data, -1, -2), self.handle.dtype)
    return tl.core.tensor(handle, tl.core.block_type(self.dtype, [*first, columns, rows]))
