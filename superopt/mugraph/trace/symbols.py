"""Symbolic extents: from torch's sympy expressions to index expressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from superopt.errors import SpecError
from superopt.mugraph.expr import Expr, Symbol, cast, const, index, op, sym

_INTEGER = {
    "FloorDiv": "floordiv",
    "CleanDiv": "floordiv",
    "Mod": "mod",
    "PythonMod": "mod",
}
_FLOAT = {
    "IntTrueDiv": "div",
    "FloatTrueDiv": "div",
    "FloatPow": "pow",
    "PowByNatural": "pow",
    "Max": "maximum",
    "Min": "minimum",
}
_UNARY = "OpaqueUnaryFn_"


class Symbols:
    """Converts sizes and scalars that torch keeps symbolic; knows a Symbol for each of torch's."""

    def __init__(self, known: Mapping[sympy.Symbol, Symbol]) -> None:
        self.known = dict(known)

    def extent(self, size: Any) -> Expr:
        """An int or torch.SymInt as an index expression."""
        return index(size) if isinstance(size, int) else self._integer(size.node.expr)

    def scalar(self, number: Any) -> Any:
        """A Python number as it is; a SymInt as an index expression; a SymFloat as an f64 one."""
        node = getattr(number, "node", None)
        if node is None:
            return number
        e = node.expr
        if e.is_Integer or e.is_Float:
            return int(e) if e.is_Integer else float(e)
        return self._integer(e) if type(number).__name__ == "SymInt" else self._float(e)

    def _integer(self, e: Any) -> Expr:
        if e.is_Integer:
            return index(int(e))
        if e in self.known:
            return sym(self.known[e])
        name = type(e).__name__
        if name in ("Add", "Mul"):
            total = self._integer(e.args[0])
            for a in e.args[1:]:
                total = op(name.lower(), total, self._integer(a))
            return total
        if name in ("Pow", "PowByNatural") and e.args[1].is_Integer and e.args[1] > 0:
            base = total = self._integer(e.args[0])
            for _ in range(int(e.args[1]) - 1):
                total = op("mul", total, base)
            return total
        if name in _INTEGER:
            return op(_INTEGER[name], self._integer(e.args[0]), self._integer(e.args[1]))
        raise self._unsupported(e)

    def _float(self, e: Any) -> Expr:
        name = type(e).__name__
        if e.is_number:
            return const(float(e), "f64")
        if name == "ToFloat":
            return cast(self._integer(e.args[0]), "f64")
        if e.is_Symbol or name in _INTEGER:
            return cast(self._integer(e), "f64")
        if name.startswith(_UNARY):
            return op(name.removeprefix(_UNARY), self._float(e.args[0]))
        known = {"Add": "add", "Mul": "mul", "Pow": "pow"} | _FLOAT
        if name not in known:
            raise self._unsupported(e)
        total = self._float(e.args[0])
        for a in e.args[1:]:
            total = op(known[name], total, self._float(a))
        return total

    def _unsupported(self, e: Any) -> SpecError:
        strange = sorted(str(s) for s in e.free_symbols - set(self.known))
        if strange:
            return SpecError("a shape or number that depends on a tensor's data is not supported")
        return SpecError(f"the size expression {self.named(e)} is not supported")

    def named(self, e: Any) -> str:
        """The sympy expression with the user's own names for its symbols."""
        return str(e.subs({s: sympy.Symbol(k.name) for s, k in self.known.items()}))
