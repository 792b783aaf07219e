"""The range of a loop as text: scalars that bound it, and its sections with and without masks."""

from __future__ import annotations

from dataclasses import dataclass

from superopt.emit.code import Code, join, quote, text
from superopt.emit.reductions import Reductions
from superopt.emit.scalar import literal
from superopt.emit.values import negated
from superopt.mugraph import index as ix
from superopt.mugraph.bounds import LIMIT, Bound, Bounds, Known, Pick, loop_bounds
from superopt.mugraph.expr import Axis, Expr, Symbol, make, toposort
from superopt.mugraph.ops import OPS, identity
from superopt.mugraph.schedule import Compute, Loop

SPOKEN = {
    "and": "{0} and {1}", "or": "{0} or {1}", "floordiv": "{0} // {1}", "mod": "{0} % {1}",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A part of a loop's range. `holds` are conditions that all lanes of its tiles satisfy.

    `inside`: its tiles lie inside the axis's extent.
    """

    begin: str
    end: str
    comment: str = ""
    holds: frozenset[Expr] = frozenset()
    inside: bool = False


class Ranges(Reductions):
    """Writes the bounds of loops."""

    def sections(self, loop: Loop) -> list[Section]:
        """The parts of the loop's range; writes the lines that define their ends.

        A loop that only adds up is memory-bound, and tests its masks on the way.
        """
        bounds = loop_bounds(self.branch, loop)
        if bounds is None:
            end = text(self.extent(loop.axis))
            online = any(r.op == "online" for r in loop.reductions)
            if online and loop.axis in self.masked and self.has_dot(loop):
                return self.whole_and_last(loop.axis, end)
            return [Section("0", end)]
        begin, end = self.begin(bounds), self.end(bounds)
        if not bounds.tested or not self.has_dot(loop):
            return [Section(begin, end)]
        return self.split(bounds, begin, end)

    def whole_and_last(self, a: Axis, end: str) -> list[Section]:
        """Tiles that lie inside the axis's extent, and the one that may not."""
        last, block = f"{self.index_names[a]}_full_end", self.block(a)
        self.define(last, quote("{0} // {1} * {1}", quote(end), block))
        return [Section("0", last, inside=True), Section(last, end, "the tile at the end")]

    def has_dot(self, loop: Loop) -> bool:
        inner = [i for i in loop.body if isinstance(i, Loop)]
        values = [i.value for i in loop.body if isinstance(i, Compute)]
        return any(e in self.plan.dots for e in (*loop.reductions, *values)) or any(
            map(self.has_dot, inner)
        )

    def split(self, bounds: Bounds, begin: str, end: str) -> list[Section]:
        """Tiles to test, tiles that need no test, tiles to test."""
        name, block = self.index_names[bounds.axis], self.block(bounds.axis)
        conditions = " and ".join(text(self.spoken(c)) for c in bounds.tested)
        sections: list[Section] = []
        first, last = begin, self.whole_tiles(bounds, end)
        if bounds.full_lower is not None:
            first = f"{name}_full_begin"
            low = self.at_least_zero(bounds.full_lower)
            self.define(first, quote("tl.cdiv({0}, {1}) * {1}", low, block))
            last = quote("tl.maximum({0}, {1})", last, first)
            limit = f"tl.minimum({first}, {end})"
            sections.append(Section(begin, limit, f"tiles in which {conditions} must be tested"))
        self.define(f"{name}_full_end", last)
        holds = frozenset(bounds.tested)
        everywhere = f"tiles in which {conditions} holds everywhere"
        middle = Section(first, f"{name}_full_end", everywhere, holds, inside=True)
        tail = Section(f"{name}_full_end", end, f"tiles in which {conditions} must be tested")
        return [*sections, middle, tail]

    def spoken(self, e: Expr) -> Code:
        """A condition for a comment: without types, dimensions and indices of what is loaded."""
        if e.op == "axis":
            return quote(self.index_names[e.attr])
        if e.op == "sym":
            return quote(self.symbols[e.attr.name])
        if e.op == "load":
            return quote(self.stem(e.attr))
        if e.op == "const":
            return literal(e, False)
        operands = [self.spoken(a) for a in e.args]
        if e.op == "cast":
            return operands[0]
        if e.op == "add":
            for a, b in (e.args, e.args[::-1]):
                if (less := negated(b)) is not None:
                    return quote("{0} - {1}", self.spoken(a), self.spoken(less))
        template = SPOKEN.get(e.op, OPS[e.op].triton)
        constant_first = e.args[0].op == "const" and OPS[e.op].commutative
        return quote(template, *(operands[::-1] if constant_first else operands))

    def define(self, name: str, code: Code) -> None:
        """Assign a scalar, unless it is what it was assigned before."""
        if self.defined.get(name) != text(code):
            self.defined[name] = text(code)
            self.line(f"{name} = {text(code)}")

    # -- ends -----------------------------------------------------------------------------------

    def begin(self, bounds: Bounds) -> str:
        """Where the range begins, a multiple of the tile."""
        if bounds.lower is None:
            return "0"
        name, block = f"{self.index_names[bounds.axis]}_begin", self.block(bounds.axis)
        low = self.at_least_zero(bounds.lower)
        self.define(name, quote("{0} // {1} * {1}", low, block))
        return name

    def end(self, bounds: Bounds) -> str:
        """Where the range ends, within the axis's extent."""
        if bounds.upper is None:
            return text(self.extent(bounds.axis))
        name = f"{self.index_names[bounds.axis]}_end"
        self.define(name, self.within(bounds.upper, bounds.axis))
        return name

    def whole_tiles(self, bounds: Bounds, end: str) -> Code:
        """Where the whole tiles end in which no lane fails a test from above."""
        block, code = self.block(bounds.axis), quote(end)
        if bounds.full_upper is None:
            return quote("{0} // {1} * {1}", code, block)
        if bounds.full_upper != bounds.upper:
            code = self.within(bounds.full_upper, bounds.axis)
        if not _at_least_zero(bounds.full_upper):
            code = quote("tl.maximum({0}, 0)", code)
        return quote("{0} // {1} * {1}", code, block)

    def within(self, bound: Bound, a: Axis) -> Code:
        return self.narrow(quote("tl.minimum({0}, {1})", self.bound(bound), self.extent(a)), bound)

    def at_least_zero(self, bound: Bound) -> Code:
        code = self.bound(bound)
        if not _at_least_zero(bound):
            code = quote("tl.maximum({0}, 0)", code)
        return self.narrow(code, bound)

    def narrow(self, code: Code, bound: Bound) -> Code:
        """A number of up to 64 bits, now within the extent of an axis, as an index."""
        return quote("({0}).to(tl.int32)", code) if _has_64_bits(bound) and not self.wide else code

    def bound(self, bound: Bound) -> Code:
        if isinstance(bound, Pick):
            first, *others = (self.bound(b) for b in bound.among)
            for other in others:
                name = "maximum" if bound.largest else "minimum"
                first = quote(f"tl.{name}({{0}}, {{1}})", first, other)
            return first
        if bound.op == "sym" and isinstance(bound.attr, Known):
            return self.known(bound.attr, alone=True)
        return self.at(bound, ())

    def symbol(self, symbol: Symbol) -> Code:
        return self.known(symbol) if isinstance(symbol, Known) else super().symbol(symbol)

    def known(self, number: Known, alone: bool = False) -> Code:
        """What a bound is made of: a tile's start or size, or a loaded number; `alone` or in a sum.

        A sum with a loaded number of any size must not wrap around.
        """
        of = number.of
        if isinstance(of, Expr):
            code = self.extreme(number.kind, of)
            if alone or not _may_wrap(number):
                return code
            if of.dtype != "i64":
                return quote("{0}.to(tl.int64)", code)
            return quote(f"tl.minimum(tl.maximum({{0}}, {-LIMIT}), {LIMIT})", code)
        if number.kind == "tile":
            return quote(self.block(of))
        if self.branch.role(of) == "program":
            return self.index(of)[0]
        self.used_start.add(of)
        return quote(f"{self.index_names[of]}_start")

    def extreme(self, kind: str, e: Expr) -> Code:
        """The least or greatest of what is loaded, over its lanes inside the extents."""
        code, order = self.value(e, self.plan.order[e])
        monoid = "min" if kind == "least" else "max"
        neutral = literal(make("const", (), identity(monoid, e.dtype), e.dtype), False)
        if masks := self.masks(order, order):
            code = quote("tl.where({0}, {1}, {2})", join("&", masks), code, neutral)
        for _ in order:
            code = quote(f"tl.{monoid}({{0}}, axis=0)", code)
        return code


def _has_64_bits(bound: Bound) -> bool:
    if isinstance(bound, Pick):
        return any(map(_has_64_bits, bound.among))
    known = [n.attr for n in toposort(bound) if n.op == "sym" and isinstance(n.attr, Known)]
    summed = bound.op != "sym"
    return any(
        k.of.dtype == "i64" or (summed and _may_wrap(k)) for k in known if isinstance(k.of, Expr)
    )


def _may_wrap(number: Known) -> bool:
    """Whether 32 bits may not hold a loaded number and what is added to it."""
    return isinstance(number.of, Expr) and max(-number.low, number.high) >= LIMIT


def _at_least_zero(bound: Bound) -> bool:
    """Whether a bound is 0 or more for all sizes and places."""
    if isinstance(bound, Pick):
        return (any if bound.largest else all)(map(_at_least_zero, bound.among))
    return ix.at_least_zero(bound)
