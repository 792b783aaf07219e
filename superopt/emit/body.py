"""The text of one branch: index vectors, loads, tile operators, loops with accumulators, stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from superopt.emit.code import Code, join, quote, subscript, text
from superopt.emit.names import Namer
from superopt.emit.scalar import convert, literal, needs_typed_literals, spelling, triton_type
from superopt.emit.tiles import Order, Tiles, plain_division, reads_prior
from superopt.mugraph.dtypes import DTYPES, accumulator, is_float
from superopt.mugraph.expr import (
    BINDERS,
    TRUE,
    Axis,
    Expr,
    Symbol,
    Tensor,
    body_of,
    find,
    is_const,
    make,
    plain_of,
    prior,
    running,
)
from superopt.mugraph.ops import OPS, identity
from superopt.mugraph.program import Branch, Config, Store
from superopt.mugraph.schedule import Accumulate, Compute, Item, Loop, Write
from superopt.mugraph.threads import Dot, core

INLINE = 60  # columns: a value used once is named where its text is longer
GROUP = 8  # rows of blocks that neighbouring programs of a matrix product share in L2

STEMS = {
    "add": "total", "sub": "difference", "mul": "product", "div": "ratio", "neg": "negated",
    "square": "squared", "rsqrt": "scale", "sqrt": "root", "where": "chosen", "sigmoid": "gate",
    "maximum": "upper", "minimum": "lower", "lt": "less", "le": "at_most", "gt": "greater",
    "ge": "at_least", "eq": "equal", "ne": "differs", "and": "both", "or": "either",
    "not": "negated", "cast": "value", "pow": "raised", "abs": "size",
}  # fmt: skip


@dataclass(frozen=True)
class Param:
    """A parameter of a kernel. `of`: the tensor, symbol or axis that it is for."""

    kind: str  # pointer, symbol, stride, extent, tile; the last two are constexpr
    of: Tensor | Symbol | Axis
    dim: int = 0


@dataclass(frozen=True)
class Body:
    """The text of one branch, without its `def` line. `programs`: how many run it."""

    lines: tuple[str, ...]
    params: tuple[tuple[Param, str], ...]  # with their names, in the order of a signature
    programs: Code
    helpers: frozenset[str]


KINDS = ("pointer", "symbol", "stride", "extent", "tile")


def in_signature_order(params: Mapping[Param, str]) -> tuple[tuple[Param, str], ...]:
    """Parameters by kind, in the order met, but a tensor's strides by dimension."""
    pointers = [p.of for p in params if p.kind == "pointer"]

    def place(item: tuple[Param, str]) -> tuple[int, int, int]:
        param = item[0]
        tensor = pointers.index(param.of) if param.kind == "stride" else 0
        return KINDS.index(param.kind), tensor, param.dim

    return tuple(sorted(params.items(), key=place))


class Writer:
    """Writes one branch. `contiguous` tensors are allocated by us: extents give their strides.

    `alias` fixes the names of tensors and axes, so that a branch can be compared with another.
    """

    def __init__(
        self,
        branch: Branch,
        configs: tuple[Config, ...],
        contiguous: frozenset[Tensor],
        wide: bool,
        precision: str,
        reserved: frozenset[str],
        alias: Mapping[Tensor | Axis, str],
    ) -> None:
        self.branch, self.contiguous, self.wide = branch, contiguous, wide
        self.precision, self.alias = precision, alias
        self.plan = Tiles(branch, configs)
        self.namer = Namer({*reserved, "pid"})
        self.params: dict[Param, str] = {}
        self.helpers: set[str] = set()
        self.lines: list[str] = []
        self.depth = 1
        self.scope: tuple[Axis, ...] = ()
        self.values: dict[Expr, tuple[Code, Order]] = {}
        self.raw: dict[Expr, Code] = {}  # half-precision loads, as they are in memory
        self.variables: dict[Expr, str] = {}
        self.at_once: set[Expr] = set()  # accumulators that take tiles already reduced
        self.carried: dict[Expr, Order] = {}  # the accumulators' orders
        self.renamed: dict[Expr, str] = {}  # the new values of those still needed as they were
        self.symbols: dict[str, str] = {}
        for symbol in _symbols(branch):
            self.symbols[symbol.name] = self.namer.new(symbol.name)
        self.index_names = {a: self.namer.new(self.stem(a)) for a in branch.axes}
        for name in self.index_names.values():  # derived names that no value may take
            self.namer.taken |= {f"in_{name}", f"{name}_start", f"block_{name}", f"blocks_{name}"}
        self.used_index: set[Axis] = set()
        self.used_mask: set[Axis] = set()
        self.users = self._users()
        self.place = {e: n for n, e in enumerate(self.plan.sorted)}  # a dot's left factor first

    def stem(self, x: Tensor | Axis) -> str:
        return self.alias.get(x, x.name).lower()

    def write(self) -> Body:
        self.items(self.plan.items)
        body, self.lines = self.lines, []
        programs = self.preamble()
        lines = (*self.lines, *body)
        return Body(lines, in_signature_order(self.params), programs, frozenset(self.helpers))

    # -- parameters -----------------------------------------------------------------------------

    def param(self, kind: str, of: Tensor | Symbol | Axis, dim: int = 0, stem: str = "") -> str:
        key = Param(kind, of, dim)
        if key not in self.params:
            if isinstance(of, Symbol):
                self.params[key] = self.symbols[of.name]
            else:
                self.params[key] = self.namer.new(stem)
        return self.params[key]

    def extent(self, a: Axis) -> Code:
        if is_const(a.extent):
            return quote(self.param("extent", a, stem=self.stem(a).upper()))
        return self.at(a.extent, ())

    def block(self, a: Axis) -> str:
        return self.param("tile", a, stem=f"BLOCK_{self.stem(a).upper()}")

    def shape(self, order: Order) -> str:
        blocks = [self.block(a) for a in order]
        return f"({', '.join(blocks)}{',' if len(blocks) == 1 else ''})"

    def helper(self, name: str) -> str:
        self.helpers.add(name)
        return name

    # -- lines ----------------------------------------------------------------------------------

    def line(self, content: str) -> None:
        self.lines.append("    " * self.depth + content)

    def assign(self, e: Expr, code: Code, order: Order) -> None:
        if e not in self.variables:
            self.variables[e] = self.namer.new(self.name_of(e))
        name = self.variables[e]
        self.line(f"{name} = {text(code)}")
        self.values[e] = (quote(name), order)

    def name_of(self, e: Expr) -> str:
        if e.op == "load":
            return self.stem(e.attr)
        if e in self.plan.dots:
            return "acc"
        if e.op in BINDERS:
            body = core(body_of(e))
            stem = "square" if _is_square(body) else self.name_of(body)
            inner = self._squared_load(body)
            return f"{inner}_{stem}_{e.attr.monoid}" if inner else f"{stem}_{e.attr.monoid}"
        return STEMS.get(e.op, e.op)

    def _squared_load(self, body: Expr) -> str:
        if not _is_square(body):
            return ""
        factor = core(body.args[0])
        return self.stem(factor.attr) if factor.op == "load" else ""

    @contextmanager
    def inside(self, a: Axis) -> Iterator[None]:
        """Write lines of a loop's body."""
        self.depth += 1
        self.scope = (*self.scope, a)
        yield
        self.depth -= 1
        self.scope = self.scope[:-1]

    # -- index vectors and masks ----------------------------------------------------------------

    def index(self, a: Axis) -> tuple[Code, Order]:
        self.used_index.add(a)
        order = () if self.branch.role(a) == "program" else (a,)
        return quote(self.index_names[a]), order

    def mask(self, a: Axis) -> Code:
        self.used_mask.add(a)
        self.used_index.add(a)
        return quote(f"in_{self.index_names[a]}")

    def masks(self, axes: Sequence[Axis], order: Order) -> list[Code]:
        wanted = [a for a in order if a in axes and a in self.plan.masked]
        return [subscript(self.mask(a), [b == a for b in order]) for a in wanted]

    def arange(self, a: Axis, start: str = "") -> None:
        """Define an axis's index vector, and its mask where one is used."""
        name = self.index_names[a]
        lanes = f"tl.arange(0, {self.block(a)})"
        code = f"{start} + {lanes}" if start else lanes
        if self.wide:
            code = f"({code}).to(tl.int64)" if start else f"{code}.to(tl.int64)"
        self.line(f"{name} = {code}")
        if a in self.used_mask:
            self.line(f"in_{name} = {text(quote('{0} < {1}', name, self.extent(a)))}")

    def preamble(self) -> Code:
        """Define what stands outside of all loops; returns the number of programs."""
        split = [
            a for a in self.branch.stores[0].axes if self.branch.role(a) in ("program", "grid")
        ]
        pair = self.swizzled_pair(split)
        if pair:
            split = [a for a in split if a not in pair] + list(pair)
        counts = [self.programs_along(a) for a in split]
        self.split_program_id(split, counts, bool(pair))
        for a in self.branch.axes:
            if self.branch.role(a) == "whole" and a in self.used_index:
                self.arange(a)
        return join("*", counts) if counts else quote("1")

    def swizzled_pair(self, split: list[Axis]) -> tuple[Axis, Axis] | None:
        for dot in self.plan.dots.values():
            if all(a in split and self.branch.role(a) == "grid" for a in (dot.m, dot.n)):
                first, second = sorted((dot.m, dot.n), key=split.index)
                return first, second
        return None

    def programs_along(self, a: Axis) -> Code:
        if self.branch.role(a) == "program":
            return self.extent(a)
        return quote("tl.cdiv({0}, {1})", self.extent(a), self.block(a))

    def split_program_id(self, split: list[Axis], counts: list[Code], swizzle: bool) -> None:
        """Define the index of every axis that is split over programs; the last varies fastest."""
        place: dict[Axis, Code] = {a: quote("pid") for a in split}
        sizes: list[Code] = []
        for n, a in enumerate(split):
            if self.branch.role(a) == "grid" and n:
                self.line(f"blocks_{self.index_names[a]} = {text(counts[n])}")
                sizes.append(quote(f"blocks_{self.index_names[a]}"))
            else:
                sizes.append(counts[n])
        for n, a in enumerate(split):
            after = sizes[n + 1 :]
            if after:
                place[a] = quote("pid // {0}", join("*", after))
            if n:
                place[a] = quote("{0} % {1}", place[a], sizes[n])
        if swizzle:
            self.swizzle(split, counts, place)
        for a in split:
            self.define_split(a, place[a])

    def swizzle(self, split: list[Axis], counts: list[Code], place: dict[Axis, Code]) -> None:
        """Order the programs so that those running together share operands in L2."""
        first, second = split[-2:]
        one, two = (f"block_{self.index_names[a]}" for a in (first, second))
        rows = counts[-2] if len(split) == 2 else quote(f"blocks_{self.index_names[first]}")
        size = text(rows), f"blocks_{self.index_names[second]}"
        at = f"{text(place[first])}, {text(place[second])}"
        self.line("# programs in groups of rows: those that run together share operands in L2")
        self.line(f"{one}, {two} = tl.swizzle2d({at}, {size[0]}, {size[1]}, {GROUP})")
        place[first], place[second] = quote(one), quote(two)

    def define_split(self, a: Axis, place: Code) -> None:
        if a not in self.used_index:
            return
        if self.branch.role(a) == "grid":
            self.arange(a, text(quote("{0} * {1}", place, self.block(a))))
            return
        wide = quote("{0}.to(tl.int64)", place) if self.wide else place
        self.line(f"{self.index_names[a]} = {text(wide)}")

    # -- items ----------------------------------------------------------------------------------

    def items(self, items: Sequence[Item]) -> None:
        for kind, group in groupby(items, key=type):
            run = list(group)
            if kind is Compute:
                values = [i.value for i in run if isinstance(i, Compute)]
                for e in sorted(filter(self.written, values), key=self.place.__getitem__):
                    self.compute(e)
            for item in run:
                if isinstance(item, Write):
                    self.store(item.store)
                elif isinstance(item, Accumulate):
                    self.accumulate(item.reduction)
                elif isinstance(item, Loop):
                    self.loop(item)

    def written(self, e: Expr) -> bool:
        """Not a cast that changes nothing, nor a product that a dot does."""
        return core(e) is e and e in self.place

    def compute(self, e: Expr) -> None:
        order = self.plan.order[e]
        if e.op == "load":
            self.load(e, order)
            return
        if e in self.plan.dots:
            self.assign(e, self.dot(e, order), order)
            return
        if e.op in BINDERS:
            self.reduce_whole(e)
            return
        if self.cheap(e) and self.plan.uses[e] == 1:
            return  # index arithmetic, written where it is used
        code = self.render(e, order)
        if self.cheap(e) and len(text(code)) <= INLINE // 2:
            return
        if self.plan.uses[e] == 1 and self.users[e] <= {self.scope} and len(text(code)) <= INLINE:
            self.values[e] = (code, order)
        else:
            self.assign(e, code, order)

    def _users(self) -> dict[Expr, set[tuple[Axis, ...]]]:
        """The loops around each use of a value."""
        found: dict[Expr, set[tuple[Axis, ...]]] = {e: set() for e in self.plan.sorted}
        scopes = self.plan.scopes
        for s in self.branch.stores:
            for root in (*s.indices, s.value):
                found[core(root)].add(scopes[s])
        for node in self.plan.sorted:
            for a in self.plan.reads(node):
                looped = node.op in BINDERS and self._looped(node)
                found[a].add((*scopes.get(node, ()), looped) if looped else scopes.get(node, ()))
        return found

    def _looped(self, node: Expr) -> Axis | None:
        return next((a for a in node.attr.axes if self.branch.role(a) == "loop"), None)

    # -- values ---------------------------------------------------------------------------------

    def cheap(self, e: Expr) -> bool:
        """Arithmetic on indices alone, which may be written again in another order."""
        return self.plan.pure[e] and not is_float(e.dtype)

    def at(self, e: Expr, order: Order) -> Code:
        """The value with a dimension for each axis of `order`, of size 1 where it does not vary."""
        e = core(e)
        code, own = self.value(e, self.plan.restrict(order, e))
        return subscript(code, [a in own for a in order])

    def value(self, e: Expr, order: Order) -> tuple[Code, Order]:
        if e.op == "const":
            return literal(e, False), ()
        if e.op == "sym":
            return quote(self.param("symbol", e.attr)), ()
        if e.op == "axis":
            return self.index(e.attr)
        if e not in self.values:
            return self.render(e, order), order
        code, own = self.values[e]
        if own == order:
            return code, own
        if self.cheap(e):
            return self.render(e, order), order
        return self.permute(code, own, order), order

    def permute(self, code: Code, own: Order, order: Order) -> Code:
        if len(order) == 2:
            return quote("tl.trans({0})", code)
        return quote("tl.permute({0}, " + repr(tuple(own.index(a) for a in order)) + ")", code)

    def render(self, e: Expr, order: Order) -> Code:
        """An operator or cast node over operands that are named or inlined."""
        if e.op == "cast":
            return convert(self.at(e.args[0], order), e, not order and core(e.args[0]).op == "sym")
        if e.op == "add" and is_const(e.args[1]) and e.args[1].attr < 0:
            less = make("const", (), -e.args[1].attr, e.dtype)
            return quote("{0} - {1}", self.at(e.args[0], order), literal(less, False))
        template, helpers = spelling(e, plain_division(e))
        typed = needs_typed_literals(e, helpers)
        for name in helpers:
            self.helper(name)
        args = e.args[::-1] if e.args[0].op == "const" and OPS[e.op].commutative else e.args
        operands = [
            literal(core(a), True) if typed and core(a).op == "const" else self.at(a, order)
            for a in args
        ]
        return quote(template, *operands)

    # -- memory ---------------------------------------------------------------------------------

    def stride(self, tensor: Tensor, dim: int, indices: Sequence[Expr]) -> Code | None:
        """A dimension's stride; None stands for 1."""
        if tensor not in self.contiguous:
            i = indices[dim]
            suffix = self.stem(i.attr) if i.op == "axis" else str(dim)
            name = f"stride_{self.stem(tensor)}_{suffix}"
            return quote(self.param("stride", tensor, dim, stem=name))
        after = list(range(dim + 1, len(tensor.shape)))
        parts = [self.dimension(tensor, d, indices[d]) for d in after]
        parts = [p for p in parts if text(p) != "1"]
        return join("*", parts) if parts else None

    def dimension(self, tensor: Tensor, dim: int, i: Expr) -> Code:
        if i.op == "axis" and i.attr.extent is tensor.shape[dim]:
            return self.extent(i.attr)
        return self.at(tensor.shape[dim], ())

    def pointer(self, tensor: Tensor, indices: Sequence[Expr], order: Order) -> Code:
        code = quote(self.param("pointer", tensor, stem=f"{self.stem(tensor)}_ptr"))
        for dim, i in enumerate(indices):
            if is_const(i, 0):
                continue
            stride = self.stride(tensor, dim, indices)
            offset = self.at(i, order)
            code = quote(
                "{0} + {1}", code, offset if stride is None else quote("{0} * {1}", offset, stride)
            )
        return code

    def load(self, e: Expr, order: Order) -> None:
        indices, guard = e.args[:-1], e.args[-1]
        varies = frozenset().union(*(self.plan.tile(i) for i in indices))
        pointer = self.pointer(e.attr, indices, order)
        if varies and varies != set(order):
            pointer = quote("tl.broadcast_to({0}, " + self.shape(order) + ")", pointer)
        conditions = self.masks(order, order)
        if guard is not TRUE:
            conditions.append(self.at(guard, order))
        if order and not varies and conditions:
            pointer = quote("tl.broadcast_to({0}, " + self.shape(order) + ")", pointer)
        if conditions:
            other = "0.0" if is_float(e.dtype) else "0"
            code = quote(
                "tl.load({0}, mask={1}, other=" + other + ")", pointer, join("&", conditions)
            )
        else:
            code = quote("tl.load({0})", pointer)
        self.name_load(e, code, order)

    def name_load(self, e: Expr, code: Code, order: Order) -> None:
        """Half-precision loads are widened for arithmetic, not for dots and copies."""
        if accumulator(e.dtype) == e.dtype:
            self.assign(e, code, order)
            return
        as_is = self.plain_uses(e)
        if not as_is:
            self.assign(e, quote("{0}.to(" + triton_type(e.dtype) + ")", code), order)
            return
        self.assign(e, code, order)
        self.raw[e] = self.values[e][0]
        widened = quote("{0}.to(" + triton_type(e.dtype) + ")", self.raw[e])
        if self.plan.uses[e] - as_is > 1:
            wide = make("cast", (e,), None, accumulator(e.dtype))
            self.variables.setdefault(wide, self.namer.new(f"{text(self.raw[e])}_wide"))
            self.line(f"{self.variables[wide]} = {text(widened)}")
            widened = quote(self.variables[wide])
        self.values[e] = (widened, order)

    def plain_uses(self, e: Expr) -> int:
        """Uses that take the loaded element type itself: dots in it, copies."""
        dots = sum((d.a is e) + (d.b is e) for d in self.plan.dots.values() if d.operand == e.dtype)
        copies = sum(core(s.value) is e and s.tensor.dtype == e.dtype for s in self.branch.stores)
        return dots + copies

    def store(self, s: Store) -> None:
        order = tuple(a for a in s.axes if self.branch.role(a) != "program")
        value = core(s.value)
        code = self.at(value, order)
        if value in self.raw and value.dtype == s.tensor.dtype:
            code = self.reordered(value, self.raw[value], order)
        arguments = [self.pointer(s.tensor, s.indices, order), code]
        template = "tl.store({0}, {1})"
        conditions = self.masks(order, order)
        if conditions:
            arguments.append(join("&", conditions))
            template = "tl.store({0}, {1}, mask={2})"
        self.line(text(quote(template, *arguments)))

    def reordered(self, e: Expr, code: Code, order: Order) -> Code:
        own, want = self.values[e][1], self.plan.restrict(order, e)
        if own != want:
            code = self.permute(code, own, want)
        return subscript(code, [a in want for a in order])

    # -- reductions -----------------------------------------------------------------------------

    def dot(self, e: Expr, order: Order, acc: str = "") -> Code:
        dot = self.plan.dots[e]
        sides = [self.operand(x, o, dot) for x, o in self.plan.dot_operands(e, order)]
        options = f", {acc}" if acc else ""
        if dot.operand == "f32":
            options += f", input_precision='{self.precision}'"
        function = self.helper("dot_bf16") if dot.operand == "bf16" else "tl.dot"
        return quote(f"{function}({{0}}, {{1}}{options})", *sides)

    def operand(self, e: Expr, order: Order, dot: Dot) -> Code:
        """A factor in the dot's element type, zero beyond the end of the summed axis."""
        if e in self.raw and e.dtype == dot.operand:
            return self.reordered(e, self.raw[e], order)
        code = self.at(e, order)
        if dot.k in self.plan.masked and not self.plan.zero_outside(e, dot.k):
            code = quote("tl.where({0}, {1}, 0.0)", self.masks((dot.k,), order)[0], code)
        if dot.operand == "f32":
            return code
        return quote("{0}.to(tl." + DTYPES[dot.operand].triton + ")", code)

    def body_order(self, e: Expr) -> Order:
        """The order of what a reduction reduces, its bound axes that the body lacks last."""
        body = core(body_of(e))
        own = self.values[body][1] if body in self.values else self.plan.order[body]
        if not own and body.op == "axis":
            own = self.plan.restrict((body.attr,), body)
        return own + tuple(a for a in e.attr.axes if a not in own)

    def masked_body(self, e: Expr, order: Order) -> Code:
        """What is reduced, neutral in lanes beyond the bound axes' extents."""
        body, monoid = core(body_of(e)), e.attr.monoid
        code = self.at(body, order)
        bound = [a for a in e.attr.axes if a in self.plan.masked]
        if body.dtype == "bool":
            code = quote("{0}.to(tl.int32)", code)
        if monoid == "sum":
            bound = [a for a in bound if not self.plan.zero_outside(body, a)]
        conditions = self.masks(bound, order)
        if conditions:
            neutral = literal(_neutral(e), e.dtype not in ("f32", "f16", "bf16", "i32", "bool"))
            code = quote("tl.where({0}, {1}, {2})", join("&", conditions), code, neutral)
        if self.plan.tile(body) != set(order):
            code = quote("tl.broadcast_to({0}, " + self.shape(order) + ")", code)
        return code

    def reduce_tile(self, e: Expr, code: Code, order: Order) -> tuple[Code, Order]:
        """Reduce a tile along all bound axes that it has, the last first."""
        for a in [a for a in reversed(order) if a in e.attr.axes]:
            function, position = self.along(e), order.index(a)
            code = quote(function, code, str(position))
            order = tuple(b for b in order if b != a)
        return code, order

    def along(self, e: Expr) -> str:
        monoid = e.attr.monoid
        if monoid == "sum":
            return "tl.sum({0}, axis={1})"
        if monoid == "prod":
            return "tl.reduce({0}, {1}, " + self.helper("multiply") + ")"
        if is_float(e.dtype):
            return self.helper(f"{monoid}_along") + "({0}, {1})"
        return f"tl.{monoid}({{0}}, axis={{1}})"

    def joined(self, e: Expr, acc: str, before: Code, code: Code) -> str:
        """The statement that takes a value into an accumulator."""
        monoid = e.attr.monoid
        if monoid in ("sum", "prod"):
            sign = "+" if monoid == "sum" else "*"
            if text(before) == acc:
                return f"{acc} {sign}= {text(code)}"
            return f"{acc} = {text(join(sign, [before, code]))}"
        function = {"max": "maximum", "min": "minimum"}[monoid]
        function = self.helper(function) if is_float(e.dtype) else f"tl.{function}"
        return f"{acc} = {function}({text(before)}, {text(code)})"

    def reduce_whole(self, e: Expr) -> None:
        order = self.body_order(e)
        code, left = self.reduce_tile(e, self.masked_body(e, order), order)
        self.assign(e, self.finish(e, code), left)

    def finish(self, e: Expr, code: Code) -> Code:
        """A reduced value in the node's own type: booleans and small integers were widened."""
        if e.dtype == "bool":
            return quote("{0} != 0", code)
        if DTYPES[e.dtype].kind == "int" and DTYPES[e.dtype].bytes < 4:
            return quote("{0}.to(" + triton_type(e.dtype) + ")", code)
        return code

    def loop(self, item: Loop) -> None:
        a = item.axis
        self.carry(item.reductions)
        outer, self.lines = self.lines, []
        used = (a in self.used_index, a in self.used_mask)
        self.used_index.discard(a)
        self.used_mask.discard(a)
        with self.inside(a):
            self.items(item.body)
            for old, new in self.renewed(item.reductions):
                self.line(f"{old} = {new}")
            body, self.lines = self.lines, []
            start = f"{self.index_names[a]}_start"
            if a in self.used_index:
                self.arange(a, start)
            head, self.lines = self.lines, outer
        for r in item.reductions:
            self.line(f"{self.variables[r]} = {self.initial(r, self.carried[r])}")
        self.line(f"for {start} in range(0, {text(self.extent(a))}, {self.block(a)}):")
        self.lines += [*head, *body] or ["    " * (self.depth + 1) + "pass"]
        for r in item.reductions:
            self.finish_loop(r, self.carried[r])
        for seen, keep in zip((self.used_index, self.used_mask), used, strict=True):
            (seen.add if keep else seen.discard)(a)

    def carry(self, reductions: Sequence[Expr]) -> None:
        """Name a loop's accumulators.

        Beside a dot, and where others use it online, an accumulator takes tiles that have been
        reduced; else it has the tile's shape, and threads exchange values only after the loop.
        """
        has_dot = any(r in self.plan.dots for r in reductions)
        self.at_once |= {r for r in reductions if has_dot or r in self.plan.groups}
        for r in reductions:
            self.variables.setdefault(r, self.namer.new(self.name_of(r)))
            if r in self.plan.groups:
                before = self.finish(r, quote(self.variables[r]))
                self.values[prior(plain_of(r))] = before, self.plan.order[r]

    def renewed(self, reductions: Sequence[Expr]) -> list[tuple[str, str]]:
        """Accumulators whose new value has had a name of its own until the turn's end."""
        return [(self.variables[r], self.renamed[r]) for r in reductions if r in self.renamed]

    def accumulate(self, e: Expr) -> None:
        """Take one tile into the accumulator."""
        acc = self.variables[e]
        before, target = quote(acc), acc
        if e.op == "online":
            before = self.at(e.args[2], self.plan.order[e])
        if e in self.plan.groups and reads_prior(self.plan.groups[e], e):
            target = self.renamed.setdefault(e, self.namer.new(f"{acc}_new"))
        if e in self.plan.dots:
            order = self.plan.order[e]
            self.line(f"{target} = {text(self.dot(e, order, text(before)))}")
        else:
            order = self.body_order(e)
            code = self.masked_body(e, order)
            if e in self.at_once:
                code, order = self.reduce_tile(e, code, order)
            if e in self.plan.groups and order != self.plan.order[e]:
                code, order = self.permute(code, order, self.plan.order[e]), self.plan.order[e]
            self.line(self.joined(e, target, before, code))
        self.carried[e] = order
        if e in self.plan.groups:
            self.values[running(plain_of(e))] = self.finish(e, quote(target)), order

    def initial(self, e: Expr, order: Order) -> str:
        dtype = "tl.int32" if e.dtype == "bool" else triton_type(e.dtype)
        neutral = _neutral(e)
        if neutral.attr == 0 and order:
            return f"tl.zeros({self.shape(order)}, {dtype})"
        shape = self.shape(order) if order else "()"
        return f"tl.full({shape}, {text(literal(neutral, False))}, {dtype})"

    def finish_loop(self, e: Expr, order: Order) -> None:
        acc = quote(self.variables[e])
        code, left = self.reduce_tile(e, acc, order)
        done = self.finish(e, code)
        if done is acc:
            self.values[e] = (acc, left)
        else:
            self.assign(e, done, left)


def _neutral(e: Expr) -> Expr:
    dtype = "i32" if e.dtype == "bool" else e.dtype
    value = identity(e.attr.monoid, e.dtype)
    return make("const", (), float(value) if is_float(dtype) else int(value), dtype)


def _is_square(e: Expr) -> bool:
    return e.op == "square" or (e.op == "mul" and core(e.args[0]) is core(e.args[1]))


def _symbols(branch: Branch) -> list[Symbol]:
    found: dict[Symbol, None] = {}
    for s in branch.stores:
        roots = [s.value, *s.indices, *s.tensor.shape, *(a.extent for a in branch.axes)]
        for root in roots:
            for node in find(root, "sym", "load"):
                shapes = node.attr.shape if node.op == "load" else (node,)
                for e in shapes:
                    found.update((n.attr, None) for n in find(e, "sym"))
    return list(found)
