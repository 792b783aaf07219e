"""Indexed expressions: the one node type that every level of superopt is made of.

An expression is a scalar that depends on *axes*: `sum[k] a[i, k] * b[k, j]`. Nodes are immutable
and hash-consed, so equality is `is`, and a DAG shares what it shares. The grammar, whole:

    expr  = const(value) | sym(Symbol) | axis(Axis)          leaves; a Symbol is a symbolic extent
          | load(Tensor; expr..., guard)                     0 where the guard is false
          | reduce(Reduction; expr)                          sum, prod, max, min over bound axes
          | online(Reduction; reduce, expr, expr, online...) the same, kept up to date in a loop
          | running(reduce) | prior(reduce)                  inside an online: values so far
          | cast(expr) | OP(expr...)                         OP: a row of `ops.OPS`

Index arithmetic is the same node type at dtype 'index', kept in the canonical form of `index.py`.
A bound axis may have the name of an axis free elsewhere; substitution avoids capture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from superopt.errors import IllFormed
from superopt.mugraph.dtypes import DTYPES, is_float, promote
from superopt.mugraph.ops import MONOIDS, OPS, identity


@dataclass(frozen=True)
class Symbol:
    """A symbolic extent, with the least and the largest value it is made for."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Axis:
    """A named index that runs over 0 <= i < extent. `extent` is an index expression of symbols."""

    name: str
    extent: Expr

    def __repr__(self) -> str:
        return f"{self.name}:{self.extent}"


@dataclass(frozen=True)
class Tensor:
    """A tensor in global memory. `bounds`: an integer tensor's values, high excluded."""

    name: str
    shape: tuple[Expr, ...]
    dtype: str
    bounds: tuple[Expr, Expr] | None = None


@dataclass(frozen=True)
class Reduction:
    """What a reduce node does: its monoid and its bound axes.

    `operand` is the element type that the program multiplies in, where the reduction is a matrix
    product that the program spelt so: operands may be rounded to it without losing to eager.
    """

    monoid: str
    axes: tuple[Axis, ...]
    operand: str | None = None


class Expr:
    """One node. Make them with the constructors of this module, never directly."""

    __slots__ = ("__weakref__", "args", "attr", "digest", "dtype", "free", "op", "size")

    op: str
    args: tuple[Expr, ...]
    attr: Any
    dtype: str
    free: frozenset[Axis]  # axes not bound by a reduce inside
    digest: str  # of the structure: the same in every process
    size: int  # nodes as a tree, capped

    def __repr__(self) -> str:
        from superopt.mugraph.text import inline

        return inline(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return make, (self.op, self.args, self.attr, self.dtype)

    def __lt__(self, other: Expr) -> bool:  # a stable order: by size, then structure
        return (self.size, self.digest) < (other.size, other.digest)


_interned: dict[tuple[Any, ...], Expr] = {}

BINDERS = ("reduce", "online")  # nodes that bind axes: attr is a Reduction
MARKERS = ("running", "prior")  # accumulators seen from inside a loop


def _digest_attr(attr: Any) -> str:
    if isinstance(attr, Axis):
        return f"{attr.name}:{attr.extent.digest}"
    if isinstance(attr, Reduction):
        axes = ",".join(_digest_attr(a) for a in attr.axes)
        return f"{attr.monoid}[{axes}]{attr.operand}"
    if isinstance(attr, Tensor):
        bounds = ",".join(e.digest for e in attr.bounds or ())
        return f"{attr.name}({','.join(e.digest for e in attr.shape)}){attr.dtype}{bounds}"
    return repr(attr)


def make(op: str, args: tuple[Expr, ...], attr: Any, dtype: str) -> Expr:
    """The interned node; no simplification."""
    tag = (type(attr).__name__, repr(attr)) if isinstance(attr, int | float) else attr
    key = (op, args, tag, dtype)
    node = _interned.get(key)
    if node is not None:
        return node
    node = Expr.__new__(Expr)
    node.op, node.args, node.attr, node.dtype = op, args, attr, dtype
    free = frozenset().union(*(a.free for a in args)) if args else frozenset()
    if op == "axis":
        free = frozenset((attr,))
    elif op in BINDERS:
        free = free - frozenset(attr.axes)
    node.free = free
    node.size = min(1 + sum(a.size for a in args), 1 << 40)
    text = f"{op}|{_digest_attr(attr)}|{dtype}|{'|'.join(a.digest for a in args)}"
    node.digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    _interned[key] = node
    return node


# -- leaves -------------------------------------------------------------------------------------


def const(value: float | int | bool, dtype: str) -> Expr:
    """A constant. Floats stay as written, in double; ints and bools are exact."""
    kind = DTYPES[dtype].kind
    value = float(value) if kind == "float" else bool(value) if kind == "bool" else int(value)
    return make("const", (), value, dtype)


def index(value: int) -> Expr:
    return make("const", (), int(value), "index")


TRUE = const(True, "bool")
FALSE = const(False, "bool")


def sym(symbol: Symbol) -> Expr:
    return make("sym", (), symbol, "index")


def axis(a: Axis) -> Expr:
    """The axis's index; an axis of extent 1 is always 0."""
    return index(0) if is_const(a.extent, 1) else make("axis", (), a, "index")


def load(tensor: Tensor, indices: Iterable[Expr], guard: Expr = TRUE) -> Expr:
    """`tensor[indices]` where guard holds, else zero; memory is not touched there."""
    args = tuple(indices)
    if len(args) != len(tensor.shape):
        raise IllFormed(f"{tensor.name}: {len(args)} indices for {len(tensor.shape)} dimensions")
    if guard is FALSE:
        return const(0, tensor.dtype)
    return make("load", (*args, guard), tensor, tensor.dtype)


def is_const(e: Expr, value: Any = None) -> bool:
    return e.op == "const" and (value is None or e.attr == value)


# -- operators ----------------------------------------------------------------------------------

_NUMPY = {"f64": np.float64, "f32": np.float64, "f16": np.float64, "bf16": np.float64}


def cast(e: Expr, dtype: str) -> Expr:
    """Convert. Between floats it is a precision hint; a float to int conversion truncates."""
    if e.dtype == dtype:
        return e
    if e.op == "const":
        return _cast_const(e, dtype)
    return make("cast", (e,), None, dtype)


def _cast_const(e: Expr, dtype: str) -> Expr:
    kind, bits = DTYPES[dtype].kind, 8 * DTYPES[dtype].bytes
    if kind == "bool":
        return const(e.attr != 0, dtype)
    if kind == "float" or not bits:
        return const(e.attr, dtype)
    if isinstance(e.attr, float) and not -(2.0**63) <= e.attr < 2.0**63:
        return make("cast", (e,), None, dtype)  # infinite, NaN or too large: as the machine does
    low = 0 if dtype == "u8" else -(1 << (bits - 1))
    return const((int(e.attr) - low) % (1 << bits) + low, dtype)


def _fold(name: str, args: tuple[Expr, ...], dtype: str) -> Expr | None:
    if any(a.op != "const" for a in args):
        return None
    with np.errstate(all="ignore"):
        values = [np.float64(a.attr) if is_float(a.dtype) else a.attr for a in args]
        try:
            return const(np.asarray(OPS[name].numpy(*values)).item(), dtype)
        except (ValueError, OverflowError, TypeError):
            return None


def _unit(name: str, args: tuple[Expr, ...], dtype: str) -> Expr | None:
    """Identities that hold for every value, NaN and infinities included."""
    match name, args:
        case ("add", (a, b)) if is_const(b, 0) and a.dtype == dtype:  # x + 0 -> x
            return a
        case ("add", (a, b)) if is_const(a, 0) and b.dtype == dtype:  # 0 + x -> x
            return b
        case ("sub", (a, b)) if is_const(b, 0) and a.dtype == dtype:  # x - 0 -> x
            return a
        case ("mul", (a, b)) if is_const(b, 1) and a.dtype == dtype:  # x * 1 -> x
            return a
        case ("mul", (a, b)) if is_const(a, 1) and b.dtype == dtype:  # 1 * x -> x
            return b
        case ("div", (a, b)) if is_const(b, 1) and a.dtype == dtype:  # x / 1 -> x
            return a
        case ("and", (a, b)) if a is TRUE or b is TRUE:  # true & x -> x
            return b if a is TRUE else a
        case ("and", (a, b)) if a is FALSE or b is FALSE:  # false & x -> false
            return FALSE
        case ("or", (a, b)) if a is FALSE or b is FALSE:  # false | x -> x
            return b if a is FALSE else a
        case ("or", (a, b)) if a is TRUE or b is TRUE:  # true | x -> true
            return TRUE
        case ("and" | "or", (a, b)) if a is b:  # x & x -> x
            return a
        case ("where", (c, a, b)) if c is TRUE or a is b:  # where(true, x, y) -> x
            return a
        case ("where", (c, a, b)) if c is FALSE:  # where(false, x, y) -> y
            return b
    return None


def op(name: str, *args: Expr) -> Expr:
    """Apply a row of the operator table; operands are promoted as torch does.

    Index arithmetic is brought to its canonical form, constants are folded.
    """
    row = OPS.get(name)
    if row is None or len(args) != row.arity:
        raise IllFormed(f"no operator {name} of {len(args)} operands")
    if name in _INDEX and all(a.dtype == "index" for a in args):
        return _INDEX[name](*args)
    operands = args[1:] if name == "where" else args
    dtype = promote(*(a.dtype for a in operands))
    if dtype == "index":
        dtype = "i64"
    if row.result == "float" and not is_float(dtype):
        dtype = "f32"
    operands = tuple(cast(a, dtype) if a.dtype != dtype else a for a in operands)
    args = (args[0], *operands) if name == "where" else operands
    result = "bool" if row.result == "bool" else dtype
    if row.commutative and args[1] < args[0]:
        args = (args[1], args[0])
    folded = _fold(name, args, result) or _unit(name, args, result)
    return folded if folded is not None else make(name, args, None, result)


def reduce(
    monoid: str,
    axes: Iterable[Axis],
    body: Expr,
    operand: str | None = None,
    dtype: str | None = None,
) -> Expr:
    """Reduce `body` over `axes`. Axes that the body does not mention still count for sum and prod.

    >>> reduce("sum", (k,), op("mul", a, b))     # sum[k] a * b
    """
    bound = tuple(sorted((a for a in axes if not is_const(a.extent, 1)), key=lambda a: a.name))
    if not bound:
        return cast(body, dtype) if dtype else body
    return make("reduce", (body,), Reduction(monoid, bound, operand), dtype or body.dtype)


def online(plain: Expr, body: Expr, update: Expr, *others: Expr) -> Expr:
    """A reduction whose body uses reductions over the same axis, brought up to date as they change.

    `plain` is the reduce node that this equals. A tile contributes `body`, in which running(r) is
    the value so far of another reduction r, this tile included; before that the accumulator becomes
    `update`, in which prior(r) is a value so far without this tile. `others`: online forms of
    reductions that only `update` needs. With m = max[k] x[k]:

        online[k](sum[k] exp(x[k] - m), exp(x[k] - running(m)),
                  prior(sum[k] exp(x[k] - m)) * exp(prior(m) - running(m)))
    """
    return make("online", (plain, body, update, *others), plain.attr, plain.dtype)


def running(r: Expr) -> Expr:
    return make("running", (r,), None, r.dtype)


def prior(r: Expr) -> Expr:
    return make("prior", (r,), None, r.dtype)


def body_of(node: Expr) -> Expr:
    """What a tile contributes to a reduce or online node."""
    return node.args[1] if node.op == "online" else node.args[0]


def plain_of(node: Expr) -> Expr:
    """The reduce node that a reduce or online node equals."""
    return node.args[0] if node.op == "online" else node


def without_online(root: Expr) -> Expr:
    """The expression with every online node replaced by the reduction that it equals."""
    memo: dict[Expr, Expr] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        below = node.args[:1] if node.op == "online" else node.args
        if missing := [a for a in below if a not in memo]:
            stack.extend(missing)
            continue
        stack.pop()
        done = tuple(memo[a] for a in below)
        memo[node] = done[0] if node.op == "online" else rebuild(node, done)
    return memo[root]


def in_one_turn(root: Expr) -> Expr:
    """The expression with every online node replaced by what a loop of one turn gives.

    online[k](plain, body, update)   ->   update(start) + reduce[k] body(end)

    with accumulators at their neutral values before the turn, and statistics at their final ones
    after it. It is `plain` wherever that is a number; guards may make it one elsewhere.
    """
    forms = {n.args[0]: n for n in toposort(root) if n.op == "online"}
    memo: dict[Expr, Expr] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        below = _in_one_turn_below(node, forms)
        if missing := [a for a in below if a not in memo]:
            stack.extend(missing)
            continue
        stack.pop()
        done = tuple(memo[a] for a in below)
        if node.op == "running":
            memo[node] = done[0]
        elif node.op == "prior":
            plain = node.args[0]
            memo[node] = const(identity(plain.attr.monoid, plain.dtype), plain.dtype)
        elif node.op == "online":
            spec = node.attr
            added = reduce(spec.monoid, spec.axes, done[0], spec.operand, node.dtype)
            memo[node] = op(MONOIDS[spec.monoid].combine, done[1], added)
        else:
            memo[node] = rebuild(node, done)
    return memo[root]


def _in_one_turn_below(node: Expr, forms: Mapping[Expr, Expr]) -> tuple[Expr, ...]:
    match node.op:
        case "online":
            return node.args[1:3]
        case "running":
            return (forms.get(node.args[0], node.args[0]),)
        case "prior":
            return ()
    return node.args


_INDEX: dict[str, Callable[..., Expr]] = {}  # filled by index.py: the canonical index arithmetic


# -- walking ------------------------------------------------------------------------------------


def toposort(*roots: Expr) -> list[Expr]:
    """All nodes below the roots, operands first, each once; no recursion."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args) if a not in seen)
    return order


def find(root: Expr, *names: str) -> Iterator[Expr]:
    return (n for n in toposort(root) if n.op in names)


def rebuild(node: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node with other operands, through the simplifying constructors; its type is kept."""
    if args == node.args:
        return node
    if node.op == "load":
        return load(node.attr, args[:-1], args[-1])
    if node.op == "cast":
        return cast(args[0], node.dtype)
    if node.op in (*BINDERS, *MARKERS):
        return make(node.op, args, node.attr, node.dtype)
    return cast(op(node.op, *args), node.dtype)


def rewrite(root: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """Bottom-up: each node, its operands rewritten, becomes `change(node)` unless that is None."""
    done: dict[Expr, Expr] = {}
    for node in toposort(root):
        new = rebuild(node, tuple(done[a] for a in node.args))
        changed = change(new)
        done[node] = new if changed is None else changed
    return done[root]


def substitute(root: Expr, binding: Mapping[Axis, Expr]) -> Expr:
    """Replace free axes by index expressions, renaming bound axes that would capture.

    `x[i] - max[j] x[j]` with {i: j + 1} gives `x[j + 1] - max[j] x[j]`.
    """
    memo: dict[tuple[Expr, frozenset[tuple[Axis, Expr]]], Expr] = {}
    stack = [(root, _live(root, binding))]
    while stack:
        node, live = stack[-1]
        key = (node, live)
        if key in memo or not live or node.op == "axis":
            memo.setdefault(key, dict(live)[node.attr] if live and node.op == "axis" else node)
            stack.pop()
            continue
        attr, inner = _renamed(node, dict(live)) if node.op in BINDERS else (None, dict(live))
        below = [(a, _live(a, inner)) for a in node.args]
        if missing := [k for k in below if k not in memo]:
            stack.extend(missing)
            continue
        args = tuple(memo[k] for k in below)
        memo[key] = make(node.op, args, attr, node.dtype) if attr else rebuild(node, args)
        stack.pop()
    return memo[root, _live(root, binding)]


def _live(e: Expr, binding: Mapping[Axis, Expr]) -> frozenset[tuple[Axis, Expr]]:
    return frozenset((a, to) for a, to in binding.items() if a in e.free)


def _renamed(node: Expr, binding: dict[Axis, Expr]) -> tuple[Reduction, dict[Axis, Expr]]:
    """A reduce's bound axes, new where they would capture, and what to substitute in its body."""
    incoming: frozenset[Axis] = frozenset().union(*(e.free for e in binding.values()))
    bound = list(node.attr.axes)
    for position, old in enumerate(bound):
        if old in incoming:
            new = fresh(old, incoming | body_of(node).free | frozenset(bound))
            binding[old] = axis(new)
            bound[position] = new
    return Reduction(node.attr.monoid, tuple(bound), node.attr.operand), binding


def fresh(like: Axis, taken: Iterable[Axis]) -> Axis:
    """An axis of the same extent whose name none of `taken` has: `k`, `k_1`, `k_2`, ..."""
    names = {a.name for a in taken}
    stem = like.name.split("_")[0]
    number = 0
    name = stem
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    return Axis(name, like.extent)
