"""Lowering rows that move elements without computing: views, joins, constants, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from superopt.mugraph.expr import TRUE, Expr, axis, cast, const, index, is_const, op
from superopt.mugraph.trace.table import Call, Operand, Scalar, elementwise, lowering, scalar_expr
from superopt.mugraph.trace.value import (
    ZERO,
    Value,
    as_index,
    axes_of,
    choose,
    product,
    reindex,
    reshape,
)

Size = int | Expr


def extent(size: Size) -> Expr:
    return index(size) if isinstance(size, int) else size


def moved(call: Call, x: Value, order: Sequence[int]) -> Value:
    """Dimension n of the result is dimension order[n] of x."""

    def change(out: list[Expr]) -> list[Expr]:
        return [out[list(order).index(d)] for d in range(x.rank)]

    return reindex(x, [x.shape[d] for d in order], change)


# -- views --------------------------------------------------------------------------------------


@lowering("view", "view", "_unsafe_view", "flatten", "unflatten", "view_as", "squeeze", "unsqueeze")
def _view(call: Call, x: Value, **shape: Any) -> Value:
    return reshape(x, call.shape)


@lowering("pointwise", "reshape", "ravel", "reshape_as")
def _reshape(call: Call, x: Value, **shape: Any) -> Value:
    if call.contiguous:
        call.kind = "view"
    return reshape(x, call.shape)


@lowering("view", "permute")
def _permute(call: Call, x: Value, dims: Sequence[int]) -> Value:
    return moved(call, x, [x.dim(d) for d in dims])


@lowering("view", "transpose", "swapaxes", "swapdims")
def _transpose(
    call: Call, x: Value, dim0: int = 0, dim1: int = 1, axis0: int | None = None,
    axis1: int | None = None,
) -> Value:  # fmt: skip
    order = list(range(x.rank))
    a = x.dim(dim0 if axis0 is None else axis0)
    b = x.dim(dim1 if axis1 is None else axis1)
    order[a], order[b] = order[b], order[a]
    return moved(call, x, order)


@lowering("view", "t", "numpy_T", "mT", "matrix_H", "adjoint")
def _t(call: Call, x: Value) -> Value:
    order = list(range(x.rank))
    return moved(call, x, order[:-2] + order[-2:][::-1])


@lowering("view", "movedim", "moveaxis")
def _movedim(call: Call, x: Value, source: Any, destination: Any) -> Value:
    sources = [x.dim(d) for d in ([source] if isinstance(source, int) else source)]
    targets = [x.dim(d) for d in ([destination] if isinstance(destination, int) else destination)]
    order = [d for d in range(x.rank) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return moved(call, x, order)


@lowering("view", "expand", "expand_as", "broadcast_to")
def _expand(call: Call, x: Value, **shape: Any) -> Value:
    axes = axes_of(call.shape)
    return Value(axes, x.on(axes))


@lowering("view", "slice", "narrow")
def _slice(
    call: Call, x: Value, dim: int = 0, start: Size | None = 0, end: Size | None = None,
    step: int = 1, length: Size | None = None,
) -> Value:  # fmt: skip
    d = x.dim(dim)
    first = _start(start, x.shape[d])

    def change(out: list[Expr]) -> list[Expr]:
        out[d] = op("add", first, op("mul", out[d], index(step)))
        return out

    return reindex(x, call.shape, change)


def _start(start: Size | None, length: Expr) -> Expr:
    """The first index of a slice, counted from the front; never past the end."""
    if start is None:
        return ZERO
    if isinstance(start, int) and start < 0:
        first = op("add", length, index(start))
        return ZERO if op("lt", first, ZERO) is TRUE else first
    first = extent(start)
    return length if op("lt", length, first) is TRUE else first


@lowering("view", "select")
def _select(call: Call, x: Value, dim: int, index: Size) -> Value:
    d = x.dim(dim)
    at = _start(index, x.shape[d])
    return reindex(x, call.shape, lambda out: [*out[:d], at, *out[d:]])


def parts(call: Call, x: Value, dim: int) -> tuple[Value, ...]:
    """Consecutive pieces along a dimension, with the result's shapes."""
    d, begin, pieces = x.dim(dim), ZERO, []
    for shape in call.shapes:

        def change(out: list[Expr], begin: Expr = begin) -> list[Expr]:
            return [*out[:d], op("add", begin, out[d]), *out[d + 1 :]]

        pieces.append(reindex(x, shape, change))
        begin = op("add", begin, shape[d])
    return tuple(pieces)


@lowering("view", "split", "split_with_sizes", "chunk", "tensor_split")
def _split(call: Call, x: Value, dim: int = 0, **sizes: Any) -> tuple[Value, ...]:
    return parts(call, x, dim)


@lowering("view", "unbind")
def _unbind(call: Call, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(_select(call, x, dim, n) for n in range(len(call.shapes)))


@lowering("view", "diagonal")
def _diagonal(call: Call, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    a, b = x.dim(dim1), x.dim(dim2)

    def change(out: list[Expr]) -> list[Expr]:
        rest, last = iter(out[:-1]), out[-1]
        along = {
            a: op("add", last, index(max(-offset, 0))),
            b: op("add", last, index(max(offset, 0))),
        }
        return [along[d] if d in along else next(rest) for d in range(x.rank)]

    return reindex(x, call.shape, change)


@lowering("view", "unfold")
def _unfold(call: Call, x: Value, dimension: int, size: int, step: int) -> Value:
    d = x.dim(dimension)

    def change(out: list[Expr]) -> list[Expr]:
        at = op("add", op("mul", out[d], index(step)), out[-1])
        return [*out[:d], at, *out[d + 1 : -1]]

    return reindex(x, call.shape, change)


# -- rearrangements that copy -------------------------------------------------------------------


@lowering("pointwise", "flip", "fliplr", "flipud")
def _flip(call: Call, x: Value, dims: Sequence[int] | None = None) -> Value:
    given = dims if dims is not None else [1] if call.name.endswith("lr") else [0]
    turned = {x.dim(d) for d in given}

    def change(out: list[Expr]) -> list[Expr]:
        ends = [op("sub", e, index(1)) for e in x.shape]
        return [op("sub", ends[d], i) if d in turned else i for d, i in enumerate(out)]

    return reindex(x, x.shape, change)


@lowering("pointwise", "roll")
def _roll(call: Call, x: Value, shifts: Any, dims: Any = ()) -> Value:
    steps = [shifts] if isinstance(shifts, int | Expr) else list(shifts)
    along = [dims] if isinstance(dims, int) else list(dims)
    if not along:
        return reshape(_rolled(reshape(x, [product(x.shape)]), {0: steps[0]}), x.shape)
    return _rolled(x, {x.dim(d): s for d, s in zip(along, steps, strict=True)})


def _rolled(x: Value, steps: dict[int, Size]) -> Value:
    def change(out: list[Expr]) -> list[Expr]:
        for d, step in steps.items():
            out[d] = op("mod", op("sub", out[d], extent(step)), x.shape[d])
        return out

    return reindex(x, x.shape, change)


@lowering("pointwise", "repeat", "tile")
def _repeat(call: Call, x: Value, **repeats: Any) -> Value:
    def change(out: list[Expr]) -> list[Expr]:
        last = out[len(out) - x.rank :]
        return [op("mod", i, e) for i, e in zip(last, x.shape, strict=True)]

    return reindex(x, call.shape, change)


@lowering("pointwise", "repeat_interleave")
def _repeat_interleave(
    call: Call, x: Value, repeats: Any = None, dim: int | None = None, output_size: Any = None
) -> Value:
    if isinstance(repeats, Value) or repeats is None:
        raise call.refuse("repeats must be an integer: a tensor makes the shape depend on data")
    if dim is None:
        x, dim = reshape(x, [product(x.shape)]), 0
    d = x.dim(dim)

    def change(out: list[Expr]) -> list[Expr]:
        out[d] = op("floordiv", out[d], extent(repeats))
        return out

    return reindex(x, call.shape, change)


# -- joins --------------------------------------------------------------------------------------


def joined(call: Call, tensors: Sequence[Value], d: int) -> Value:
    """The tensors one after another along dimension d: a chain of comparisons of its index."""
    axes = axes_of(call.shape)
    here = [axis(a) for a in axes]
    tensors = [t for t in tensors if t.rank == len(axes)]  # torch skips empty 1-d tensors
    ends, end = [], ZERO
    for t in tensors:
        ends.append(end)
        end = op("add", end, t.shape[d])
    result: Expr | None = None
    for t, begin in reversed(list(zip(tensors, ends, strict=True))):
        piece = cast(t.at([*here[:d], op("sub", here[d], begin), *here[d + 1 :]]), call.dtype)
        if result is None:
            result = piece
        else:
            result = choose(op("lt", here[d], op("add", begin, t.shape[d])), piece, result)
    assert result is not None
    return Value(axes, result)


@lowering("pointwise", "cat", "concat", "concatenate")
def _cat(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    return joined(call, tensors, dim + len(call.shape) if dim < 0 else dim)


@lowering("pointwise", "stack")
def _stack(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    d = dim + len(call.shape) if dim < 0 else dim
    return joined(call, [_with_one(t, d) for t in tensors], d)


def _with_one(t: Value, d: int) -> Value:
    shape = [*t.shape[:d], index(1), *t.shape[d:]]
    return reindex(t, shape, lambda out: [*out[:d], *out[d + 1 :]])


@lowering("pointwise", "hstack")
def _hstack(call: Call, tensors: Sequence[Value]) -> Value:
    return joined(call, tensors, 0 if len(call.shape) == 1 else 1)


@lowering("pointwise", "constant_pad_nd", "pad")
def _constant_pad(
    call: Call, x: Value, pad: Sequence[Size], value: Any = 0, mode: str = "constant"
) -> Value:
    if mode != "constant":
        raise call.refuse(f"mode {mode!r} is not supported; pad with a constant")
    axes = axes_of(call.shape)
    at, inside = [axis(a) for a in axes], TRUE
    for n in range(len(pad) // 2):
        d = x.rank - 1 - n
        at[d] = op("sub", at[d], extent(pad[2 * n]))
        inside = op("and", inside, op("ge", at[d], ZERO))
        inside = op("and", inside, op("lt", at[d], x.shape[d]))
    return Value(axes, choose(inside, x.at(at), scalar_expr(value or 0, x.dtype)))


@lowering("pointwise", "slice_scatter")
def _slice_scatter(
    call: Call, x: Value, src: Value, dim: int = 0, start: Size | None = None,
    end: Size | None = None, step: int = 1,
) -> Value:  # fmt: skip
    d = x.dim(dim)
    axes = axes_of(x.shape)
    here = [axis(a) for a in axes]
    offset = op("sub", here[d], _start(start, x.shape[d]))
    at = op("floordiv", offset, index(step))
    inside = op("and", op("ge", offset, ZERO), op("lt", at, src.shape[d]))
    if step != 1:
        inside = op("and", inside, op("eq", op("mod", offset, index(step)), ZERO))
    new = cast(src.at([*here[:d], at, *here[d + 1 :]]), x.dtype)
    return Value(axes, choose(inside, new, x.at(here)))


@lowering("pointwise", "select_scatter")
def _select_scatter(call: Call, x: Value, src: Value, dim: int, index: Size) -> Value:
    d = x.dim(dim)
    axes = axes_of(x.shape)
    here = [axis(a) for a in axes]
    inside = op("eq", here[d], _start(index, x.shape[d]))
    new = cast(src.at([*here[:d], *here[d + 1 :]]), x.dtype)
    return Value(axes, choose(inside, new, x.at(here)))


# -- triangles, constants, ranges ---------------------------------------------------------------


def _triangle(call: Call, x: Value, diagonal: int, lower: bool) -> Value:
    row, column = x.indices[-2:]
    edge = op("add", row, index(diagonal))
    keep = op("le" if lower else "ge", column, edge)
    if x.dtype == "bool":
        return x.with_expr(op("and", keep, x.expr))
    return x.with_expr(op("where", keep, x.expr, const(0, x.dtype)))


@lowering("pointwise", "tril")
def _tril(call: Call, x: Value, diagonal: int = 0) -> Value:
    return _triangle(call, x, diagonal, lower=True)


@lowering("pointwise", "triu")
def _triu(call: Call, x: Value, diagonal: int = 0) -> Value:
    return _triangle(call, x, diagonal, lower=False)


def _filled(call: Call, value: Operand) -> Value:
    assert not isinstance(value, Value)
    return Value(axes_of(call.shape), scalar_expr(value, call.dtype))


@lowering("pointwise", "full", "full_like", "new_full", "scalar_tensor")
def _full(
    call: Call, x: Value | None = None, size: Any = None, fill_value: Operand = 0,
    s: Operand | None = None, dtype: Any = None,
) -> Value:  # fmt: skip
    return _filled(call, fill_value if s is None else s)


@lowering("pointwise", "zeros", "zeros_like", "new_zeros")
def _zeros(call: Call, x: Value | None = None, size: Any = None, dtype: Any = None) -> Value:
    return _filled(call, 0)


@lowering("pointwise", "ones", "ones_like", "new_ones")
def _ones(call: Call, x: Value | None = None, size: Any = None, dtype: Any = None) -> Value:
    return _filled(call, 1)


@lowering("pointwise", "arange")
def _arange(
    call: Call, start: Expr | Scalar = 0, end: Any = None, step: Expr | Scalar = 1,
    dtype: Any = None,
) -> Value:  # fmt: skip
    axes = axes_of(call.shape)
    ends = (start, step)
    whole = all(isinstance(x, int) or (isinstance(x, Expr) and x.dtype == "index") for x in ends)
    wide = "index" if whole else "f64"
    first, by = (scalar_expr(x, wide) for x in ends)
    return Value(axes, cast(op("add", first, op("mul", cast(axis(axes[0]), wide), by)), call.dtype))


@lowering("pointwise", "eye")
def _eye(call: Call, n: Size, m: Size | None = None, dtype: Any = None) -> Value:
    axes = axes_of(call.shape)
    return Value(axes, cast(op("eq", axis(axes[0]), axis(axes[1])), call.dtype))


# -- indexing by tensors ------------------------------------------------------------------------


def _wrapped(position: Expr, length: Expr) -> Expr:
    """An index from data; a negative one counts from the end, unless its bounds exclude that."""
    i = as_index(position)
    if op("ge", i, ZERO) is TRUE:
        return i
    back = op("add", position, cast(length, position.dtype))
    return as_index(op("where", op("lt", position, const(0, position.dtype)), back, position))


@lowering("pointwise", "index_select")
def _index_select(call: Call, x: Value, dim: int, index: Value) -> Value:
    d = x.dim(dim)
    axes = axes_of(call.shape)
    here = [axis(a) for a in axes]
    at = as_index(index.at([here[d]] if index.rank else []))
    return Value(axes, x.at([*here[:d], at, *here[d + 1 :]]))


@lowering("pointwise", "gather")
def _gather(call: Call, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    d = x.dim(dim)
    axes = axes_of(call.shape)
    here = [axis(a) for a in axes]
    return Value(axes, x.at([*here[:d], as_index(index.at(here)), *here[d + 1 :]]))


@lowering("pointwise", "take_along_dim")
def _take_along(call: Call, x: Value, indices: Value, dim: int | None = None) -> Value:
    if dim is None:
        raise call.refuse("give it a dim")
    axes = axes_of(call.shape)
    at = [ZERO if is_const(e, 1) else axis(a) for e, a in zip(x.shape, axes, strict=True)]
    at[x.dim(dim)] = as_index(indices.on(axes))
    return Value(axes, x.at(at))


@lowering("pointwise", "embedding")
def _embedding(
    call: Call, weight: Value, indices: Value, padding_idx: int = -1,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Value:  # fmt: skip
    axes = axes_of(call.shape)
    here = [axis(a) for a in axes]
    return Value(axes, weight.at([as_index(indices.at(here[:-1])), here[-1]]))


@lowering("pointwise", "index")
def _index(call: Call, x: Value, indices: Sequence[Value | None]) -> Value:
    given = [d for d, i in enumerate(indices) if i is not None]
    if any(i is not None and i.dtype in ("bool", "u8") for i in indices):
        raise call.refuse("a mask as index makes the shape depend on data; use torch.where")
    rank = max(i.rank for i in indices if i is not None)
    together = given == list(range(given[0], given[-1] + 1))
    begin = given[0] if together else 0
    axes = axes_of(call.shape)
    here = [axis(a) for a in axes]
    rest = iter(here[:begin] + here[begin + rank :])
    shared = axes[begin : begin + rank]
    at = []
    for d in range(x.rank):
        i = indices[d] if d < len(indices) else None
        at.append(next(rest) if i is None else _wrapped(i.on(shared), x.shape[d]))
    return Value(axes, x.at(at))


@lowering("pointwise", "index_put")
def _index_put(
    call: Call, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != "bool" or values.rank or accumulate:
        raise call.refuse("only x[mask] = scalar is supported; use torch.where")
    axes = axes_of(x.shape)
    chosen = mask.on(axes[: mask.rank])
    new = cast(values.on(axes), x.dtype)
    return Value(axes, op("where", chosen, new, x.on(axes)))


@lowering("pointwise", "one_hot")
def _one_hot(call: Call, x: Value, num_classes: int = -1) -> Value:
    axes = axes_of(call.shape)
    here = [axis(a) for a in axes]
    hit = op("eq", x.at(here[:-1]), cast(here[-1], x.dtype))
    return Value(axes, cast(hit, call.dtype))


@lowering("pointwise", "meshgrid")
def _meshgrid(call: Call, tensors: Sequence[Value], indexing: str = "ij") -> tuple[Value, ...]:
    made = []
    for n, t in enumerate(tensors):
        d = 1 - n if indexing == "xy" and n < 2 else n
        axes = axes_of(call.shapes[n])
        made.append(Value(axes, t.at([axis(axes[d])] if t.rank else [])))
    return tuple(made)


@lowering("pointwise", "outer", "ger")
def _outer(call: Call, x: Value, vec2: Value) -> Value:
    column = reshape(x, [*x.shape, index(1)])
    return elementwise(call, lambda a, b: op("mul", a, b), column, vec2)
