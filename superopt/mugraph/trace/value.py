"""Values of a traced program: lambdas from index to scalar, and how to access them.

A value has an axis for each dimension and an expression over those axes. A consumer accesses it at
index expressions by substitution, so views leave nothing behind but index arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import (
    FALSE,
    TRUE,
    Axis,
    Expr,
    Reduction,
    Tensor,
    axis,
    cast,
    fresh,
    index,
    is_const,
    load,
    make,
    op,
    rewrite,
    substitute,
)

ZERO, ONE = index(0), index(1)


def axis_stem(extent: Expr) -> str:
    """The mechanical name of an axis: `b` for Dim B, `n4096` for 4096, `m` for other extents."""
    if extent.op == "const":
        return f"n{extent.attr}"
    if extent.op == "sym":
        name: str = extent.attr.name.lower().replace("_", "")
        return f"{name}x" if re.fullmatch(r"m|n\d+", name) else name
    return "m"


def axes_of(shape: Iterable[Expr], taken: Iterable[Axis] = ()) -> tuple[Axis, ...]:
    """An axis for each extent, with names distinct among themselves and from `taken`."""
    used = list(taken)
    made = []
    for extent in shape:
        made.append(fresh(Axis(axis_stem(extent), extent), used))
        used.append(made[-1])
    return tuple(made)


def product(extents: Iterable[Expr]) -> Expr:
    total = ONE
    for e in extents:
        total = op("mul", total, e)
    return total


@dataclass(frozen=True)
class Value:
    """A tensor as a function of its index. `base` is the memory that it is, or is a view of."""

    axes: tuple[Axis, ...]
    expr: Expr
    base: Tensor | None = None

    @property
    def dtype(self) -> str:
        return self.expr.dtype

    @property
    def shape(self) -> tuple[Expr, ...]:
        return tuple(a.extent for a in self.axes)

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def indices(self) -> list[Expr]:
        return [axis(a) for a in self.axes]

    def at(self, indices: Sequence[Expr]) -> Expr:
        """The element at the given index expressions, one a dimension."""
        pairs = zip(self.axes, indices, strict=True)
        return substitute(self.expr, {a: i for a, i in pairs if axis(a) is not i})

    def on(self, axes: Sequence[Axis]) -> Expr:
        """The element for an index over `axes`, this value broadcast to them as torch does."""
        last = axes[len(axes) - self.rank :]
        return self.at([ZERO if is_const(a.extent, 1) else axis(b) for a, b in self.over(last)])

    def over(self, axes: Sequence[Axis]) -> list[tuple[Axis, Axis]]:
        return list(zip(self.axes, axes, strict=True))

    def dim(self, d: int) -> int:
        """A dimension counted from the front."""
        return d + self.rank if d < 0 else d

    def dims(self, dims: int | Sequence[int] | None) -> list[int]:
        """Dimensions counted from the front; none given means all."""
        if dims is None or dims == []:
            return list(range(self.rank))
        return sorted(self.dim(d) for d in ([dims] if isinstance(dims, int) else dims))

    def cast(self, dtype: str) -> Value:
        return replace(self, expr=cast(self.expr, dtype))

    def with_expr(self, expr: Expr) -> Value:
        return Value(self.axes, expr)


def tensor_value(tensor: Tensor) -> Value:
    """The value of a tensor in memory."""
    axes = axes_of(tensor.shape)
    return Value(axes, load(tensor, [axis(a) for a in axes]), tensor)


def reindex(v: Value, shape: Iterable[Expr], change: Callable[[list[Expr]], list[Expr]]) -> Value:
    """The value of another shape whose element i is v's element `change(i)`."""
    axes = axes_of(shape)
    return Value(axes, v.at(change([axis(a) for a in axes])))


def as_index(e: Expr) -> Expr:
    """An integer as an index; what was one before it became a torch integer is that again."""
    if e.op == "cast" and e.args[0].dtype == "index" and DTYPES[e.dtype].bytes >= 4:
        return e.args[0]
    return cast(e, "index")


# -- piecewise values ---------------------------------------------------------------------------


def choose(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`where(condition, yes, no)` that touches no memory of the side not taken."""
    if condition is TRUE or condition is FALSE:
        return yes if condition is TRUE else no
    return op("where", condition, guarded(yes, condition), guarded(no, negation(condition)))


_OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


def negation(e: Expr) -> Expr:
    if e is TRUE or e is FALSE:
        return FALSE if e is TRUE else TRUE
    if e.op in _OPPOSITE and e.args[0].dtype == "index":
        return op(_OPPOSITE[e.op], *e.args)
    if e.op in ("and", "or"):
        return op("or" if e.op == "and" else "and", *map(negation, e.args))
    return op("not", e)


def guarded(e: Expr, condition: Expr) -> Expr:
    """The expression with `condition` joined to the guard of every load, inside reductions too."""

    def apart(node: Expr) -> Expr | None:
        if node.op != "reduce" or not condition.free.intersection(node.attr.axes):
            return None
        body, bound = node.args[0], list(node.attr.axes)
        for position, old in enumerate(bound):
            if old in condition.free:
                bound[position] = fresh(old, condition.free | body.free | set(bound))
                body = substitute(body, {old: axis(bound[position])})
        spec = Reduction(node.attr.monoid, tuple(bound), node.attr.operand)
        return make("reduce", (body,), spec, node.dtype)

    def guard(node: Expr) -> Expr | None:
        if node.op != "load":
            return None
        return load(node.attr, node.args[:-1], op("and", node.args[-1], condition))

    return rewrite(rewrite(e, apart), guard)


# -- reshape ------------------------------------------------------------------------------------


def reshape(v: Value, shape: Sequence[Expr]) -> Value:
    """The same elements, in order, in another shape: indices by mixed radix."""
    if any(is_const(e, 0) for e in shape):
        return reindex(v, shape, lambda _: [ZERO] * v.rank)

    def change(out: list[Expr]) -> list[Expr]:
        found: list[Expr] = [ZERO] * v.rank
        for source, target in _groups(v.shape, shape):
            flat = _flat([out[d] for d in target], [shape[d] for d in target])
            for d, e in zip(source, _unflat(flat, [v.shape[d] for d in source]), strict=True):
                found[d] = e
        return found

    return reindex(v, shape, change)


def _groups(source: Sequence[Expr], target: Sequence[Expr]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions that hold the same elements on both sides, as short as they can be."""
    s = [d for d, e in enumerate(source) if not is_const(e, 1)]
    t = [d for d, e in enumerate(target) if not is_const(e, 1)]
    ends = {product(source[d] for d in s[: n + 1]): n + 1 for n in range(len(s))}
    groups, begin_s, begin_t = [], 0, 0
    for n in range(len(t)):
        end = ends.get(product(target[d] for d in t[: n + 1]))
        if end is not None and end > begin_s:
            groups.append((s[begin_s:end], t[begin_t : n + 1]))
            begin_s, begin_t = end, n + 1
    if begin_s < len(s) or begin_t < len(t):
        groups.append((s[begin_s:], t[begin_t:]))
    return groups


def _flat(indices: Sequence[Expr], extents: Sequence[Expr]) -> Expr:
    total = ZERO
    for i, extent in zip(indices, extents, strict=True):
        total = op("add", op("mul", total, extent), i)
    return total


def _unflat(flat: Expr, extents: Sequence[Expr]) -> list[Expr]:
    out: list[Expr] = []
    for d in range(len(extents)):
        i = op("floordiv", flat, product(extents[d + 1 :]))
        out.append(op("mod", i, extents[d]) if d else i)
    return out


def flat_index(v: Value) -> Expr:
    """The position of an element of v in row-major order."""
    return _flat(v.indices, v.shape)
