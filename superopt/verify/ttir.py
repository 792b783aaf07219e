"""Triton's IR of a kernel, read back: made without a GPU, printed in MLIR's generic form, parsed.

    %13 = "arith.addi"(%12, %11) <{overflowFlags = ...}> : (tensor<2xi32>, tensor<2xi32>) -> ...

Attributes stay text: what reads them decides how (hexadecimal floats, `dense<...>`). No argument is
specialized, no extent folded: what is read holds for every call of these constants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

TARGET = ("cuda", 90, 32)  # Triton's IR hardly depends on it


class Unreadable(BaseException):
    """A kernel or its host code does what is not followed; the message says what.

    No Exception: host code that catches those must not take it for an answer.
    """


@dataclass(frozen=True)
class Type:
    """`tensor<2x64xi32>` is shape (2, 64), element i32; a scalar has shape ()."""

    shape: tuple[int, ...]
    element: str

    @property
    def pointee(self) -> str:
        """The element type that a pointer points to; empty for other types."""
        found = re.fullmatch(r"!tt\.ptr<(\w+)(, \d+)?>", self.element)
        return found[1] if found else ""


@dataclass(eq=False)
class Value:
    """A result of an operation, or an argument of a region; compared by identity."""

    type: Type


@dataclass(eq=False)
class Region:
    args: list[Value]
    ops: list[Op]


@dataclass(eq=False)
class Op:
    name: str
    operands: list[Value]
    results: list[Value]
    attributes: dict[str, str]
    regions: list[Region] = field(default_factory=list)

    def all_ops(self) -> Iterator[Op]:
        """The operation and those in its regions."""
        yield self
        for region in self.regions:
            for op in region.ops:
                yield from op.all_ops()

    def number(self, attribute: str) -> int:
        """An integer attribute: `axis = 1 : i32` is 1."""
        return int(self.attributes[attribute].split(":")[0])


Signature = tuple[tuple[str, str], ...]
Constants = tuple[tuple[str, type, Any], ...]


def read(kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any]) -> Region:
    """The body of a jitted function; the region's arguments are those that are no constants.

    `signature`: a parameter's type as Triton writes it (`*fp16`, `i32`, `constexpr`). Raises
    Unreadable where Triton refuses the kernel, or the text is not understood.
    """
    return _read(kernel, tuple(signature.items()), _typed(constants))


@lru_cache(maxsize=16)
def _read(kernel: Any, signature: Signature, constants: Constants) -> Region:
    return parse(generic_text(kernel, dict(signature), {n: c for n, _, c in constants}))


def _typed(constants: Mapping[str, Any]) -> Constants:
    return tuple((n, type(c), c) for n, c in constants.items())  # True is not 1


def read_calls(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any]
) -> tuple[Region, dict[str, Region]]:
    """The same before Triton has put functions in place of their calls; and those, by name."""
    return _read_calls(kernel, tuple(signature.items()), _typed(constants))


@lru_cache(maxsize=16)
def _read_calls(
    kernel: Any, signature: Signature, constants: Constants
) -> tuple[Region, dict[str, Region]]:
    values = {n: c for n, _, c in constants}
    found = functions(generic_text(kernel, dict(signature), values, inline=False))
    return found[kernel.__name__], found


def generic_text(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], inline: bool = True
) -> str:
    """Triton's IR in generic form. Needs a process without TRITON_INTERPRET=1."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    target = GPUTarget(*TARGET)
    backend = make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({})
    at = {(list(signature).index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, dict(signature), at)
    try:
        codegen = backend.get_codegen_implementation(options)
        module = source.make_ir(target, options, codegen, backend.get_module_map(), context)
        if inline:
            module = backend.make_ttir(module, {}, options, TARGET[1])
    except Exception as error:  # Triton's own errors have no base class
        raise Unreadable(f"Triton refuses it: {type(error).__name__}: {error}") from error
    # an attribute without a dialect makes the printer fall back to the generic form
    module.set_attr("generic", ir.builder(context).get_unit_attr())
    return str(module.str_nodebug())


# -- parsing -------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r'\s*(?:(?P<value>%[\w#]+)|(?P<block>\^\w+)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<arrow>->)'
    r"|(?P<open><\{)|(?P<close>\}>)|(?P<punct>[(){}:,=])|(?P<word>[^\s(){}:,=]+))"
)


def parse(text: str) -> Region:
    """The body of the one function of a module in generic form."""
    found = functions(text)
    if len(found) != 1:
        raise Unreadable(f"{len(found)} functions; calls are not followed")
    return next(iter(found.values()))


def functions(text: str) -> dict[str, Region]:
    """The bodies of a module's functions by name."""
    module = _Parser(text).operation()
    own = [op for op in module.regions[0].ops if op.name == "tt.func"]
    return {op.attributes["sym_name"].strip('"'): op.regions[0] for op in own}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = re.sub(r"(\^\w+:)\s*//.*", r"\1", text), 0
        self.values: dict[str, Value] = {}

    # -- tokens ---------------------------------------------------------------------------------

    def peek(self) -> str:
        found = _TOKEN.match(self.text, self.at)
        return found[0].strip() if found else ""

    def take(self, wanted: str = "") -> str:
        found = _TOKEN.match(self.text, self.at)
        token = found[0].strip() if found else ""
        if found is None or (wanted and token != wanted):
            here = self.text[self.at : self.at + 40].strip()
            raise Unreadable(f"Triton's IR: {wanted or 'more'!r} expected at {here!r}")
        self.at = found.end()
        return token

    def skip(self, wanted: str) -> bool:
        if self.peek() != wanted:
            return False
        self.take()
        return True

    def balanced(self, *ends: str) -> str:
        """The text up to one of some characters outside all brackets and strings."""
        start, depth, quoted = self.at, 0, False
        while self.at < len(self.text):
            c = self.text[self.at]
            if c == '"':
                quoted = not quoted
            elif not quoted:
                if depth == 0 and c in ends:
                    break
                arrow = c == ">" and self.text[self.at - 1] == "-"
                depth += (c in "(<[{") - (c in ")>]}" and not arrow)
            self.at += 1
        return self.text[start : self.at].strip()

    # -- grammar --------------------------------------------------------------------------------

    def operation(self) -> Op:
        names = list(self._results()) if self.peek().startswith("%") else []
        name = self.take().strip('"')
        self.take("(")
        operands = [self._value(n) for n in self._list(")")]
        attributes = self._attributes("<{", "}>")
        regions = []
        if self.skip("("):
            regions.append(self._region())
            while self.skip(","):
                regions.append(self._region())
            self.take(")")
        attributes |= self._attributes("{", "}")
        self.take(":")
        self.balanced("-")  # the operands' types: they are known
        self.take("->")
        types = self._result_types()
        results = [Value(t) for t in types]
        for result, key in zip(results, names, strict=True):
            self.values[key] = result
        return Op(name, operands, results, attributes, regions)

    def _results(self) -> Iterator[str]:
        """`%14:2 =` names %14#0 and %14#1."""
        name = self.take()
        if self.skip(":"):
            for n in range(int(self.take())):
                yield f"{name}#{n}"
        else:
            yield name
        self.take("=")

    def _value(self, name: str) -> Value:
        if name not in self.values and f"{name}#0" in self.values:
            return self.values[f"{name}#0"]
        return self.values[name]

    def _list(self, end: str) -> Iterator[str]:
        while not self.skip(end):
            yield self.take()
            self.skip(",")

    def _attributes(self, first: str, last: str) -> dict[str, str]:
        found: dict[str, str] = {}
        if not self.skip(first):
            return found
        while not self.skip(last):
            key = self.take()
            found[key] = self.balanced(",", "}") if self.skip("=") else "unit"
            self.skip(",")
        return found

    def _region(self) -> Region:
        self.take("{")
        args: list[Value] = []
        if self.peek().startswith("^"):
            self.take()
            if self.skip("("):
                while not self.skip(")"):
                    name = self.take()
                    self.take(":")
                    self.values[name] = Value(_type(self.balanced(",", ")")))
                    args.append(self.values[name])
                    self.skip(",")
            self.take(":")
        ops: list[Op] = []
        kept = ops
        while not self.skip("}"):
            if self.peek().startswith("^"):
                if not kept or kept[-1].name != "tt.return":
                    raise Unreadable("control flow between blocks")
                self.take()  # no way leads from the first block, which returns, to this one
                self.take(":")
                ops = []
            ops.append(self.operation())
        return Region(args, kept)

    def _result_types(self) -> list[Type]:
        if not self.skip("("):
            return [_type(self.balanced("\n"))]
        found = []
        while not self.skip(")"):
            found.append(_type(self.balanced(",", ")")))
            self.skip(",")
        return found


def _type(text: str) -> Type:
    found = re.fullmatch(r"tensor<((?:\d+x)*)(.+)>", text)
    if found is None:
        return Type((), text)
    return Type(tuple(int(n) for n in found[1].split("x")[:-1]), found[2])
