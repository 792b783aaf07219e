"""Values of one branch as text: parameters, names, index vectors and masks, operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from superopt.emit.code import Code, number, quote, subscript, text
from superopt.emit.names import Namer
from superopt.emit.scalar import convert, literal, needs_typed_literals, spelling, triton_type
from superopt.emit.tiles import Order, Tiles, plain_division
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import is_float
from superopt.mugraph.expr import (
    BINDERS,
    MARKERS,
    Axis,
    Expr,
    Symbol,
    Tensor,
    body_of,
    find,
    index,
    is_const,
    make,
)
from superopt.mugraph.masks import guards, is_infinite, without
from superopt.mugraph.ops import OPS
from superopt.mugraph.program import Branch, Config
from superopt.mugraph.threads import core, multiple

ENDS = ("start", "begin", "end", "full_begin", "full_end")  # scalars named after an axis

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


class Values:
    """What the text of one branch is made of.

    `contiguous` tensors are allocated by us: extents give their strides.
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
            self.namer.taken |= {f"in_{name}", f"block_{name}", f"blocks_{name}"}
            self.namer.taken |= {f"{name}_{end}" for end in ENDS}
        self.used_index: set[Axis] = set()
        self.used_mask: set[Axis] = set()
        self.used_start: set[Axis] = set()
        self.masked = self.plan.masked  # axes whose tiles may reach beyond the extent
        self.defined: dict[str, str] = {}  # scalars that bound loops, as last assigned
        self.holds: frozenset[Expr] = frozenset()  # conditions that all lanes at hand satisfy
        self.uses = self.plan.uses  # how often each value is used, where they hold
        self.users = self._users()
        self.place = {e: n for n, e in enumerate(self.plan.sorted)}  # a dot's left factor first

    def stem(self, x: Tensor | Axis) -> str:
        return self.alias.get(x, x.name).lower()

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
        if (dot := self.plan.dots.get(e)) is not None:
            tensors = [self.stem(f.attr) for f in (dot.a, dot.b) if f.op == "load"]
            whole = "_".join(tensors) if len(tensors) == 2 else "product"
            return "acc" if self._looped(e) else whole
        if e.op in BINDERS:
            body = core(body_of(e))
            stem = "square" if _is_square(body) else self.name_of(body)
            inner = self._squared_load(body)
            return f"{inner}_{stem}_{e.attr.monoid}" if inner else f"{stem}_{e.attr.monoid}"
        return self._derived_name(e) or STEMS.get(e.op, e.op)

    def _derived_name(self, e: Expr) -> str:
        """A name for what an operator is there for, where its operands tell."""
        if e.op == "where" and guards(e.args[0], e.args[2]):
            chosen = e.args[2].args[0] if e.args[2].op in MARKERS else e.args[2]
            return f"safe_{chosen.attr.monoid}" if chosen.op in BINDERS else "safe"
        if e.op == "where" and any(is_infinite(core(a)) for a in e.args[1:]):
            return "masked"
        if e.op in ("exp", "exp2", "div"):
            of, _ = multiple(core(e.args[0]))
            if any(n.op == "prior" for n in of.args):
                return "rescale"
        scaled = e.op in ("mul", "div") and is_float(e.dtype)
        return "scaled" if scaled and any(core(a).op == "const" for a in e.args) else ""

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
        wanted = [a for a in order if a in axes and a in self.masked]
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
            return self.symbol(e.attr), ()
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

    def symbol(self, symbol: Symbol) -> Code:
        return quote(self.param("symbol", symbol))

    def permute(self, code: Code, own: Order, order: Order) -> Code:
        if len(order) == 2:
            return quote("tl.trans({0})", code)
        return quote("tl.permute({0}, " + repr(tuple(own.index(a) for a in order)) + ")", code)

    def kept(self, e: Expr) -> Expr:
        """What is left of a value where conditions hold in all lanes.

        >>> kept(where(j <= i, s, -inf))              # s, where j <= i holds
        """
        e = core(e)
        if not self.holds:
            return e
        left = without(e, self.holds)
        if left.op in ("add", "mul"):
            unit = 0 if left.op == "add" else 1
            for a, b in (left.args, left.args[::-1]):
                same = self.plan.tile(b) == self.plan.tile(left)
                if same and is_const(self.kept(a), unit):
                    return self.kept(b)
        return left if left is e else self.kept(left)

    def render(self, e: Expr, order: Order) -> Code:
        """An operator or cast node over operands that are named or inlined."""
        if (left := self.kept(e)) is not e:
            if self.plan.tile(left) == self.plan.tile(e):
                return self.at(left, order)
            if left.op == "const":
                return quote(
                    f"tl.full({self.shape(order)}, {{0}}, {triton_type(e.dtype)})",
                    literal(left, False),
                )
            return quote("tl.broadcast_to({0}, " + self.shape(order) + ")", self.at(left, order))
        if e.op == "cast":
            return convert(self.at(e.args[0], order), e, not order and core(e.args[0]).op == "sym")
        if e in self.plan.powers:
            z, c = self.plan.powers[e]
            return quote("tl.exp2({0} * {1})", self.at(z, order), number(c))
        if e.op == "add":
            for a, b in (e.args, e.args[::-1]):
                if (less := negated(b)) is not None:
                    return quote("{0} - {1}", self.at(a, order), self.at(less, order))
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


def negated(e: Expr) -> Expr | None:
    """-e, where e is a negative constant or, in index arithmetic, a multiple by one."""
    if e.op == "const" and e.attr < 0:
        return make("const", (), -e.attr, e.dtype)
    if e.op == "mul" and e.dtype == "index" and is_const(e.args[1]) and e.args[1].attr < 0:
        return ix.mul(e, index(-1))
    return None


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
