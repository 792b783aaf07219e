"""Names and extents as the host side of a kernel.py spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from superopt.emit.code import Code, number, quote, text
from superopt.emit.names import Namer, identifier
from superopt.errors import IllFormed
from superopt.mugraph.expr import Expr, Symbol, Tensor
from superopt.mugraph.index import poly
from superopt.mugraph.program import Traced

_OPERATORS = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "floordiv": "{0} // {1}",
              "mod": "{0} % {1}"}  # fmt: skip


def tuple_text(items: list[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def indented(lines: Iterable[str], depth: int = 1) -> str:
    return "\n".join("    " * depth + line if line else "" for line in lines)


class Locals:
    """The arguments in order, and a local name for all that a host function holds.

    Raises IllFormed where a parameter of the function has no tensor.
    """

    def __init__(self, traced: Traced, reserved: Iterable[str]) -> None:
        self.program = traced.program
        by_name = {t.name: t for t in self.program.inputs}
        missing = set(traced.parameters) - by_name.keys()
        if missing:
            raise IllFormed(f"{self.program.name}: parameters {sorted(missing)} have no tensor")
        order = [*traced.parameters, *(n for n in by_name if n not in traced.parameters)]
        self.arguments = [by_name[n] for n in order]
        self.symbols = self.program.symbols
        self.names: dict[Tensor | Symbol, str] = {t: identifier(t.name) for t in self.arguments}
        self.namer = Namer({*reserved, *self.names.values()})
        local: list[Tensor | Symbol] = [*self.symbols, *self.program.outputs]
        for item in local:
            self.names.setdefault(item, self.namer.new(item.name))

    def __getitem__(self, item: Tensor | Symbol) -> str:
        if item not in self.names:
            self.names[item] = self.namer.new(item.name)
        return self.names[item]

    def signature(self) -> str:
        return ", ".join(f"{self[t]}: torch.Tensor" for t in self.arguments)

    def call(self) -> str:
        return ", ".join(self[t] for t in self.arguments)

    def extent(self, e: Expr) -> Code:
        """An extent over the symbols' local names."""
        if e.op == "const":
            return number(e.attr)
        if e.op == "sym":
            return quote(self[e.attr])
        return quote(_OPERATORS[e.op], *(self.extent(a) for a in e.args))

    def shape(self, tensor: Tensor) -> str:
        return tuple_text([text(self.extent(e)) for e in tensor.shape])

    def with_symbols(self, lines: list[str]) -> list[str]:
        """The lines, after those that read the symbols they use off the arguments' shapes."""
        text = "\n".join(lines)
        used = [s for s in self.symbols if re.search(rf"\b{self[s]}\b", text)]
        return [*(f"{self[s]} = {self._source(s)}" for s in used), *lines]

    def _source(self, symbol: Symbol) -> str:
        """The simplest of `x.shape[0]`, `x.shape[0] // 2`, `(x.shape[0] - 1) // 2`."""
        found: list[tuple[int, int, str]] = []
        for t in self.arguments:
            for dim, e in enumerate(t.shape):
                terms = [(m, c) for m, c in poly(e).items() if m]
                if len(terms) != 1 or [a.attr for a in terms[0][0] if a.op == "sym"] != [symbol]:
                    continue
                size, offset, scale = f"{self[t]}.shape[{dim}]", poly(e).get((), 0), terms[0][1]
                moved = f"({size} - {offset})" if offset else size
                found.append((scale, abs(offset), f"{moved} // {scale}" if scale != 1 else moved))
        if not found:
            raise IllFormed(f"{self.program.name}: no argument's shape gives {symbol.name}")
        return min(found, key=lambda f: f[:2])[2]
