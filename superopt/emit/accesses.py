"""Loads and stores as text."""

from __future__ import annotations

from collections.abc import Sequence

from superopt.emit.code import Code, join, quote, subscript, text
from superopt.emit.scalar import triton_type
from superopt.emit.tiles import Order
from superopt.emit.values import Values
from superopt.mugraph.dtypes import accumulator, is_float
from superopt.mugraph.expr import TRUE, Expr, Tensor, index, is_const, make, op
from superopt.mugraph.program import Store
from superopt.mugraph.threads import core


def joined(tensor: Tensor, indices: Sequence[Expr]) -> list[Expr]:
    """The indices of a contiguous tensor, neighbours that are digits of one number put together.

    [r // 4, r % 4, n] of a tensor of (B, 4, N) are [0, r, n].
    """
    found = list(indices)
    for d in range(1, len(found)):
        extent, digit = tensor.shape[d], found[d]
        whole = digit.op == "mod" and digit.args[1] is extent
        if whole and found[d - 1] is op("floordiv", digit.args[0], extent):
            found[d - 1 : d + 1] = index(0), digit.args[0]
    return found


class Accesses(Values):
    """Writes loads and stores."""

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
        if tensor in self.contiguous:
            indices = joined(tensor, indices)
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
        indices, guard = e.args[:-1], self.kept(e.args[-1])
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
        if self.uses[e] - as_is > 1:
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
