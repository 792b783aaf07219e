"""Reads the text form of `text.py` back: a line at a time, each a recursive descent over tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

from superopt.errors import IllFormed, UsageError
from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import (
    FALSE,
    MARKERS,
    TRUE,
    Axis,
    Expr,
    Reduction,
    Symbol,
    Tensor,
    const,
    make,
    online,
)
from superopt.mugraph.ops import MONOIDS, OPS
from superopt.mugraph.program import Branch, Kernel, KernelGraph, Program, Store
from superopt.mugraph.text import INFIX, implied_dtype

_TOKEN = re.compile(
    r"""\s*(?:(?P<value>%\d+)
    |(?P<number>\d+\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d+)
    |(?P<name>(?:`[^`]*`|[^\W\d]\w*(?:\.\w+)*)(?:\#\d+)?)
    |(?P<sign>\.\.<|\.\.|//|<<|>>|<=|>=|==|!=|[-+*/%<>&|^()\[\],:;=~]))""",
    re.VERBOSE,
)
_BY_SIGN = {sign: (name, level) for name, (sign, level) in INFIX.items()}


T = TypeVar("T")


class ParseError(UsageError):
    """The text is no program or µGraph; the message has the line and what was expected."""


def _name(token: str) -> str:
    """The name itself, without backquotes and without the number that tells it from another."""
    return token.split("`")[1] if token.startswith("`") else token.split("#")[0]


class _Line:
    """The tokens of one line, and where we are in them."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                self.fail(f"a token, found {text[at:].strip()!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self.at = 0

    def fail(self, expected: str) -> NoReturn:
        raise ParseError(f"line {self.number}: expected {expected}, in: {self.text.strip()}")

    def peek(self, ahead: int = 0) -> str:
        position = self.at + ahead
        return self.tokens[position][1] if position < len(self.tokens) else ""

    def accept(self, token: str) -> bool:
        found = self.peek() == token
        self.at += found
        return found

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.fail(f"'{token}', found {self._found()}")

    def take(self, kind: str, what: str) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != kind:
            self.fail(f"{what}, found {self._found()}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        return sign * int(self.take("number", "an integer"))

    def dtype(self) -> str:
        name = self.take("name", "an element type")
        return name if name in DTYPES else self.fail(f"an element type, found '{name}'")

    def end(self) -> None:
        if self.at < len(self.tokens):
            self.fail(f"the end of the line, found {self._found()}")

    def _found(self) -> str:
        return f"'{self.peek()}'" if self.peek() else "the end of the line"


class Parser:
    """One text. `program` and `graph` read it whole, and raise ParseError."""

    def __init__(self, text: str) -> None:
        numbered = enumerate(text.splitlines(), 1)
        self.lines = [_Line(n, line) for n, line in numbered if line.strip()]
        self.lines.append(_Line(len(text.splitlines()) + 1, ""))  # the end of the text
        self.at = 0
        self.symbols: dict[str, Symbol] = {}
        self.axes: dict[str, Axis] = {}
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Expr] = {}

    # -- whole texts ----------------------------------------------------------------------------

    @property
    def line(self) -> _Line:
        return self.lines[self.at]

    def program(self) -> Program:
        name, inputs = self._header("program")
        stores = self._stores()
        return Program(name, inputs, stores, self._returns())

    def graph(self) -> KernelGraph:
        name, inputs = self._header("graph")
        kernels = []
        while self.line.peek() == "kernel":
            kernel = self._begin("kernel")
            branches = []
            while self.line.peek() == "branch":
                branches.append(self._branch())
            kernels.append(Kernel(kernel, tuple(branches)))
        return KernelGraph(name, inputs, tuple(kernels), self._returns())

    def _begin(self, keyword: str) -> str:
        self.line.expect(keyword)
        name = _name(self.line.take("name", f"the name of the {keyword}"))
        self._next()
        return name

    def _next(self) -> None:
        self.line.end()
        self.at += 1

    def _header(self, keyword: str) -> tuple[str, tuple[Tensor, ...]]:
        name = self._begin(keyword)
        inputs: list[Tensor] = []
        while (word := self.line.peek()) in ("where", "axis", "input", "tensor"):
            self.line.at += 1
            if word == "where":
                self._listed(self._symbol)
            elif word == "axis":
                self._listed(self._axis)
            else:
                tensor = self._tensor()
                inputs += [tensor] if word == "input" else []
            self._next()
        return name, tuple(inputs)

    def _returns(self) -> tuple[Tensor, ...]:
        self.line.expect("returns")
        outputs: list[Tensor] = []
        if self.line.peek():
            self._listed(lambda: outputs.append(self._known(self.tensors, "a tensor")))
        self._next()
        if self.at < len(self.lines) - 1:
            self.line.fail("the end of the text")
        return tuple(outputs)

    def _listed(self, item: Callable[[], None]) -> None:
        item()
        while self.line.accept(","):
            item()

    # -- declarations ---------------------------------------------------------------------------

    def _symbol(self) -> None:
        token = self.line.take("name", "a symbol")
        self.line.expect("in")
        low = self.line.integer()
        self.line.expect("..")
        self.symbols[token] = Symbol(_name(token), low, self.line.integer())

    def _axis(self) -> None:
        token = self.line.take("name", "an axis")
        self.line.expect(":")
        self.axes[token] = Axis(_name(token), self._expr())

    def _tensor(self) -> Tensor:
        token = self.line.take("name", "a tensor")
        self.line.expect(":")
        dtype = self.line.dtype()
        self.line.expect("[")
        shape: list[Expr] = []
        if self.line.peek() != "]":
            self._listed(lambda: shape.append(self._expr()))
        self.line.expect("]")
        bounds = None
        if self.line.accept("in"):
            low = self._expr()
            self.line.expect("..<")
            bounds = (low, self._expr())
        tensor = Tensor(_name(token), tuple(shape), dtype, bounds)
        self.tensors[token] = tensor
        return tensor

    def _branch(self) -> Branch:
        self.line.expect("branch")
        roles: list[tuple[str, str]] = []

        def role() -> None:
            name = _name(self.line.take("name", "an axis"))
            self.line.expect(":")
            roles.append((name, self.line.take("name", "a role")))

        if self.line.peek():
            self._listed(role)
        self._next()
        return Branch(self._stores(), tuple(roles))

    def _stores(self) -> tuple[Store, ...]:
        """Lines of values and stores, up to a line of another kind."""
        self.values = {}
        stores = []
        while True:
            if self.line.accept("store"):
                stores.append(self._store())
            elif self.line.peek().startswith("%"):
                number = self.line.take("value", "a value's number")
                self.line.expect("=")
                self.values[number] = self._expr()
            else:
                return tuple(stores)
            self._next()

    def _store(self) -> Store:
        tensor = self._known(self.tensors, "a tensor")
        self.line.expect("[")
        indices: list[Expr] = []
        if self.line.peek() != "]":
            self._listed(lambda: indices.append(self._expr()))
        self.line.expect("]")
        self.line.expect("=")
        value = self._expr()
        axes: list[Axis] = []
        if self.line.accept("for"):
            self._listed(lambda: axes.append(self._known(self.axes, "an axis")))
        try:
            return Store(tensor, tuple(axes), tuple(indices), value)
        except IllFormed as error:
            self.line.fail(f"a store that is well formed ({error})")

    def _known(self, table: Mapping[str, T], what: str) -> T:
        token = self.line.take("name", what)
        if token not in table:
            declared = ", ".join(table) or "none"
            self.line.fail(f"{what} (declared: {declared}), found '{token}'")
        return table[token]

    # -- expressions ----------------------------------------------------------------------------

    def _expr(self, least: int = 0) -> Expr:
        if self.line.peek() in MONOIDS and self.line.peek(1) == "[":
            return self._reduce()
        left = self._prefix()
        while (found := _BY_SIGN.get(self.line.peek())) and found[1] >= least:
            name, level = found
            self.line.at += 1
            right = self._expr(level + 1)
            if name == "sub" and left.dtype == right.dtype == "index" and right.op == "const":
                name, right = "add", const(-right.attr, "index")  # i - 1 is i + -1
            left = self._typed(name, (left, right))
        return left

    def _typed(self, name: str, args: tuple[Expr, ...]) -> Expr:
        return make(name, args, None, implied_dtype(name, args))

    def _suffixed(self, node: Expr) -> Expr:
        """A node in parentheses or a call may be followed by its own type."""
        if node.op in OPS and self.line.accept(":"):
            return make(node.op, node.args, node.attr, self.line.dtype())
        return node

    def _reduce(self) -> Expr:
        monoid = self.line.take("name", "a reduction")
        self.line.expect("[")
        axes: list[Axis] = []
        self._listed(lambda: axes.append(self._known(self.axes, "an axis")))
        operand = None
        if self.line.accept(";"):
            self.line.expect("dot")
            operand = self.line.dtype()
        self.line.expect("]")
        dtype = self.line.dtype() if self.line.accept(":") else None
        body = self._expr()
        return make("reduce", (body,), Reduction(monoid, tuple(axes), operand), dtype or body.dtype)

    def _prefix(self) -> Expr:
        line = self.line
        if line.accept("-"):
            if self._at_number():
                return self._number(-1)
            return self._typed("neg", (self._prefix(),))
        if line.accept("("):
            inner = self._expr()
            line.expect(")")
            return self._suffixed(inner)
        if line.peek().startswith("%") and len(line.peek()) > 1:
            number = line.take("value", "a value's number")
            return self.values[number] if number in self.values else line.fail(f"{number} above")
        if self._at_number():
            return self._number(1)
        token = line.take("name", "an expression")
        if line.accept("("):
            return self._call(token)
        if token == "online" and line.peek() == "[":
            return self._online()
        if line.accept("["):
            return self._load(token)
        return self._named(token)

    def _at_number(self) -> bool:
        kind = self.line.tokens[self.line.at][0] if self.line.peek() else ""
        return kind == "number" or self.line.peek() in ("inf", "nan")

    def _number(self, sign: int) -> Expr:
        token = self.line.peek()
        self.line.at += 1
        whole = token.isdigit()
        dtype = "index" if whole else "f32"
        if self.line.accept(":"):
            dtype = self.line.dtype()
        if whole and not is_float(dtype):
            return const(sign * int(token), dtype)
        return const(sign * float(token), dtype)

    def _named(self, token: str) -> Expr:
        if token in ("true", "false"):
            return TRUE if token == "true" else FALSE
        if token in self.axes:
            return make("axis", (), self.axes[token], "index")
        if token in self.symbols:
            return make("sym", (), self.symbols[token], "index")
        known = ", ".join([*self.axes, *self.symbols]) or "none"
        self.line.fail(f"an axis or a symbol (declared: {known}), found '{token}'")

    def _call(self, name: str) -> Expr:
        args: list[Expr] = []
        self._listed(lambda: args.append(self._expr()))
        self.line.expect(")")
        if name in MARKERS and len(args) == 1:
            return make(name, tuple(args), None, args[0].dtype)
        if name in DTYPES:
            return make("cast", tuple(args), None, name)
        if name not in OPS or OPS[name].arity != len(args):
            self.line.fail(f"an operator of {len(args)} operands, found '{name}'")
        return self._suffixed(self._typed(name, tuple(args)))

    def _online(self) -> Expr:
        self.line.expect("[")
        axes: list[Axis] = []
        self._listed(lambda: axes.append(self._known(self.axes, "an axis")))
        self.line.expect("]")
        self.line.expect("(")
        args: list[Expr] = []
        self._listed(lambda: args.append(self._expr()))
        self.line.expect(")")
        if len(args) < 3 or args[0].op != "reduce" or args[0].attr.axes != tuple(axes):
            self.line.fail("a reduction over these axes, what a tile adds, and the update before")
        return online(*args)

    def _load(self, token: str) -> Expr:
        if token not in self.tensors:
            declared = ", ".join(self.tensors) or "none"
            self.line.fail(f"a tensor (declared: {declared}), found '{token}'")
        tensor = self.tensors[token]
        args: list[Expr] = []
        if self.line.peek() not in ("]", "if"):
            self._listed(lambda: args.append(self._expr()))
        guard = self._expr() if self.line.accept("if") else TRUE
        self.line.expect("]")
        if len(args) != len(tensor.shape):
            self.line.fail(f"{len(tensor.shape)} indices of {token}, found {len(args)}")
        return make("load", (*args, guard), tensor, tensor.dtype)
