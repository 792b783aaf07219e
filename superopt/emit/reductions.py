"""Reductions as text: dots, sums along a tile, accumulators of a loop."""

from __future__ import annotations

from collections.abc import Sequence

from superopt.emit.accesses import Accesses
from superopt.emit.code import Code, join, quote, text
from superopt.emit.scalar import literal, triton_type
from superopt.emit.tiles import Order, reads_prior
from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import Expr, body_of, make, plain_of, prior, running
from superopt.mugraph.ops import identity
from superopt.mugraph.threads import Dot, core


class Reductions(Accesses):
    """Writes what reduces a tile, and what takes a tile into an accumulator."""

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
        if dot.k in self.masked and not self.plan.zero_outside(e, dot.k):
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
        if body.op == "const":  # a tile of it, as a literal has no shape to be broadcast from
            kind = "tl.int32" if body.dtype == "bool" else triton_type(body.dtype)
            code = quote("tl.full(" + self.shape(order) + ", {0}, " + kind + ")", code)
        bound = [a for a in e.attr.axes if a in self.masked]
        if body.dtype == "bool":
            code = quote("{0}.to(tl.int32)", code)
        if monoid == "sum":
            bound = [a for a in bound if not self.plan.zero_outside(body, a)]
        conditions = self.masks(bound, order)
        if conditions:
            neutral = literal(_neutral(e), e.dtype not in ("f32", "f16", "bf16", "i32", "bool"))
            code = quote("tl.where({0}, {1}, {2})", join("&", conditions), code, neutral)
        if self.plan.tile(body) != set(order) and body.op != "const":
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

    # -- accumulators ---------------------------------------------------------------------------

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
