"""The text form: what prints reads back to the identical nodes.

    graph weights                                  kernel graph (or `program NAME`, without kernels)
      where B in 1..4096                           symbols
      axis b: B, n: 512                            axes with their extents
      input x: f16[B, 512]                         tensors; integer ones may add `in LOW..<HIGH`
      tensor out: f16[B, 512]
    kernel k0
      branch b: program, n: whole                  a role an axis; then values and stores
        %0 = f32(x[b, n])                          a value used twice, or long, has a number
        %1 = exp(%0 - (max[n] %0))
        store out[b, n] = f16(%1 / (sum[n] %1)) for b, n
    returns out

An expression is a constant (`1` an index, `1.0` an f32, else `1.0:f16`), a name (symbol or axis), a
load `x[b, n if guard]`, a reduction `sum[k; dot f16]:f32 body` (operand type and own type where it
has them), a cast `f32(e)`, a call or an infix of the operator table. A node's type follows from its
operands, or is written after it: `exp(e):f64`. Where two things have one name, the second is `b#2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import (
    BINDERS,
    MARKERS,
    Axis,
    Expr,
    Symbol,
    Tensor,
    body_of,
    plain_of,
    toposort,
)
from superopt.mugraph.ops import MONOIDS, OPS
from superopt.mugraph.program import Branch, KernelGraph, Program, Store
from superopt.mugraph.schedule import Accumulate, Compute, Item, Loop, schedule

INFIX = {
    "or": ("|", 1),
    "xor": ("^", 2),
    "and": ("&", 3),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "gt": (">", 4),
    "ge": (">=", 4),
    "eq": ("==", 4),
    "ne": ("!=", 4),
    "shl": ("<<", 5),
    "shr": (">>", 5),
    "add": ("+", 6),
    "sub": ("-", 6),
    "mul": ("*", 7),
    "div": ("/", 7),
    "floordiv": ("//", 7),
    "mod": ("%", 7),
}  # operator: (spelling, how tightly it binds)
TIGHT = 9  # binds as an atom
RESERVED = frozenset({*MONOIDS, "true", "false", "inf", "nan", "if", "for", "in", "dot"})
WIDTH = 60  # longer values get a line of their own
SHORT = 12  # shared indices up to this length are written out where they are used

Piece = tuple[str, int]  # text, how tightly it binds


def implied_dtype(name: str, args: tuple[Expr, ...]) -> str:
    """The type that an operator node has unless its text says otherwise."""
    return "bool" if OPS[name].result == "bool" else args[-1].dtype


def quoted(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d]\w*(\.\w+)*", name) else f"`{name}`"


class Names:
    """What symbols, axes and tensors are called in one text; tensors have a space of their own."""

    def __init__(self) -> None:
        self.of: dict[Symbol | Axis | Tensor, str] = {}
        self.taken: dict[tuple[bool, str], int] = {}

    def __getitem__(self, thing: Symbol | Axis | Tensor) -> str:
        if thing not in self.of:
            key = (isinstance(thing, Tensor), thing.name)
            count = self.taken[key] = self.taken.get(key, 0) + 1
            plain = count == 1 and thing.name not in RESERVED and thing.name not in DTYPES
            self.of[thing] = quoted(thing.name) + ("" if plain else f"#{count}")
        return self.of[thing]


# -- one node over the text of its operands -----------------------------------------------------


def _number(node: Expr) -> str:
    if node.dtype == "bool":
        return "true" if node.attr else "false"
    plain = node.dtype in ("index", "f32")
    return repr(node.attr) if plain else f"{node.attr!r}:{node.dtype}"


def _wrap(piece: Piece, least: int) -> str:
    return piece[0] if piece[1] >= least else f"({piece[0]})"


def _reduce(node: Expr, body: Piece, axes: str) -> Piece:
    operand = f"; dot {node.attr.operand}" if node.attr.operand else ""
    own = "" if node.dtype == node.args[0].dtype else f":{node.dtype}"
    return f"{node.attr.monoid}[{axes}{operand}]{own} {body[0]}", 0


def _load(node: Expr, args: list[Piece], name: str) -> Piece:
    inside = ", ".join(text for text, _ in args[:-1])
    guard = "" if args[-1][0] == "true" else f"{' ' if inside else ''}if {args[-1][0]}"
    return f"{name}[{inside}{guard}]", TIGHT


def _operator(node: Expr, args: list[Piece]) -> Piece:
    spelling, level = INFIX.get(node.op, ("", TIGHT))
    left, right = node.args[0], node.args[-1]
    negative = right.op == "const" and right.dtype == "index" and right.attr < 0
    if node.op == "add" and node.dtype == "index" and negative:
        text = f"{_wrap(args[0], level)} - {-right.attr}"  # i + -1
    elif spelling and not (node.op == "sub" and node.dtype == "index"):
        text = f"{_wrap(args[0], level)} {spelling} {_wrap(args[1], level + 1)}"
    elif node.op == "neg" and left.op != "const":
        text, level = f"-{_wrap(args[0], TIGHT - 1)}", TIGHT - 1
    else:
        text, level = f"{node.op}({', '.join(a for a, _ in args)})", TIGHT
    if node.dtype == implied_dtype(node.op, node.args):
        return text, level
    return f"{_wrap((text, level), TIGHT)}:{node.dtype}", TIGHT


def render(node: Expr, args: list[Piece], names: Names, extents: bool = False) -> Piece:
    """The text of a node whose operands' text is known."""
    match node.op:
        case "const":
            return _number(node), TIGHT
        case "sym" | "axis":
            return names[node.attr], TIGHT
        case "load":
            return _load(node, args, names[node.attr])
        case "cast":
            return f"{node.dtype}({args[0][0]})", TIGHT
        case "reduce":
            axes = [names[a] + (f":{inline(a.extent)}" if extents else "") for a in node.attr.axes]
            return _reduce(node, args[0], ", ".join(axes))
        case "online":
            axes = [names[a] for a in node.attr.axes]
            return f"online[{', '.join(axes)}]({', '.join(a for a, _ in args)})", TIGHT
        case "running" | "prior":
            return f"{node.op}({args[0][0]})", TIGHT
    return _operator(node, args)


def inline(root: Expr, limit: int = 160) -> str:
    """One line, for people: bound axes with their extents, deep or long parts left out as `…`.

    >>> inline(reduce("sum", (k,), op("mul", x, w)))
    'sum[k:4096] x[b, k] * w[k, n]'
    """
    names, depth = Names(), 6
    while True:
        text = _inline(root, names, depth)[0]
        if len(text) <= limit or depth == 1:
            return text if len(text) <= 2 * limit else text[: 2 * limit] + "…"
        depth -= 1


def _inline(node: Expr, names: Names, depth: int) -> Piece:
    if node.args and not depth:
        return "…", TIGHT
    return render(node, [_inline(a, names, depth - 1) for a in node.args], names, extents=True)


# -- values with numbers ------------------------------------------------------------------------


class Listing:
    """Gives values numbers as they are defined, and writes others inside their one user."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.pieces: dict[Expr, Piece] = {}
        self.count = 0

    def piece(self, node: Expr) -> Piece:
        return render(node, [self.pieces[a] for a in node.args], self.names)

    def number(self, node: Expr) -> str:
        text = f"%{self.count}"
        self.count += 1
        self.pieces[node] = (text, TIGHT)
        return text

    def define(self, roots: Iterable[Expr]) -> Iterator[str]:
        """Lines for what the roots share or what is too long for one line."""
        roots = list(roots)
        nodes = toposort(*roots)
        users: dict[Expr, int] = dict.fromkeys(nodes, 0)
        for e in [*roots, *(a for n in nodes for a in n.args)]:
            users[e] += 1
        for node in nodes:
            if node in self.pieces:
                continue
            piece = self.piece(node)
            short = SHORT if node.dtype in ("index", "bool") else 0
            if node.args and len(piece[0]) > (WIDTH if users[node] == 1 else short):
                yield f"{self.number(node)} = {piece[0]}"
            else:
                self.pieces[node] = piece

    def store(self, s: Store) -> str:
        at = ", ".join(self.pieces[e][0] for e in s.indices)
        over = f" for {', '.join(self.names[a] for a in s.axes)}" if s.axes else ""
        return f"store {self.names[s.tensor]}[{at}] = {self.pieces[s.value][0]}{over}"

    def stores(self, stores: tuple[Store, ...]) -> Iterator[str]:
        yield from self.define(e for s in stores for e in (*s.indices, s.value))
        yield from map(self.store, stores)


# -- whole texts --------------------------------------------------------------------------------


def _things(
    stores: Iterable[Store], tensors: Iterable[Tensor]
) -> tuple[list[Symbol], list[Axis], list[Tensor]]:
    """All symbols, axes and tensors that the text mentions, in the order met."""
    symbols: dict[Symbol, None] = {}
    axes: dict[Axis, None] = {}
    found: dict[Tensor, None] = dict.fromkeys(tensors)
    stores = list(stores)
    for s in stores:
        found[s.tensor] = None
        axes.update(dict.fromkeys(s.axes))
    for node in toposort(*(e for s in stores for e in (*s.indices, s.value))):
        if node.op == "load":
            found[node.attr] = None
        elif node.op == "axis":
            axes[node.attr] = None
        elif node.op in BINDERS:
            axes.update(dict.fromkeys(node.attr.axes))
    sizes = [e for t in found for e in (*t.shape, *(t.bounds or ()))] + [a.extent for a in axes]
    for node in toposort(*sizes, *(e for s in stores for e in (*s.indices, s.value))):
        if node.op == "sym":
            symbols[node.attr] = None
    return list(symbols), list(axes), list(found)


def _plain(e: Expr, names: Names) -> str:
    listing = Listing(names)
    for node in toposort(e):
        listing.pieces[node] = listing.piece(node)
    return listing.pieces[e][0]


def _tensor(t: Tensor, names: Names) -> str:
    text = f"{names[t]}: {t.dtype}[{', '.join(_plain(e, names) for e in t.shape)}]"
    if t.bounds is None:
        return text
    low, high = (_plain(e, names) for e in t.bounds)
    return f"{text} in {low}..<{high}"


def _header(
    stores: Iterable[Store], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], names: Names
) -> Iterator[str]:
    symbols, axes, tensors = _things(stores, (*inputs, *outputs))
    if symbols:
        yield "  where " + ", ".join(f"{names[s]} in {s.low}..{s.high}" for s in symbols)
    if axes:
        yield "  axis " + ", ".join(f"{names[a]}: {_plain(a.extent, names)}" for a in axes)
    for t in inputs:
        yield f"  input {_tensor(t, names)}"
    for t in tensors:
        if t not in inputs:
            yield f"  tensor {_tensor(t, names)}"


def _footer(outputs: tuple[Tensor, ...], names: Names) -> str:
    return f"returns {', '.join(names[t] for t in outputs)}".rstrip() + "\n"


def print_program(program: Program) -> str:
    """The program's text; its source operators, which take no part in comparison, are left out."""
    names = Names()
    lines = [f"program {quoted(program.name)}"]
    lines += _header(program.stores, program.inputs, program.outputs, names)
    lines += (f"  {line}" for line in Listing(names).stores(program.stores))
    return "\n".join([*lines, _footer(program.outputs, names)])


def print_graph(graph: KernelGraph) -> str:
    """The µGraph's text: a block a kernel, in it a block a branch; values are numbered a branch."""
    names = Names()
    lines = [f"graph {quoted(graph.name)}"]
    stores = (s for k in graph.kernels for s in k.stores)
    lines += _header(stores, graph.inputs, graph.outputs, names)
    for kernel in graph.kernels:
        lines.append(f"kernel {quoted(kernel.name)}")
        for branch in kernel.branches:
            lines.append(f"  branch {_roles(branch.roles)}".rstrip())
            lines += (f"    {line}" for line in Listing(names).stores(branch.stores))
    return "\n".join([*lines, _footer(graph.outputs, names)])


def _roles(roles: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{quoted(name)}: {role}" for name, role in roles)


# -- the block graph ----------------------------------------------------------------------------


def show_schedule(branch: Branch) -> str:
    """What one program of the branch does, in order; a looped reduction is an accumulator.

    loop n over N:
      %0 = x[b, n]
      %1 max= %0                     the row's maximum so far
    """
    names = Names()
    split = [a for a in branch.axes if branch.role(a) in ("program", "grid")]
    held = [a for a in branch.axes if branch.role(a) == "whole"]
    head = [f"each program: {_extents(split, names)}"] if split else ["one program:"]
    if held:
        head.append(f"  holds {_extents(held, names)}")
    return "\n".join([*head, *_items(schedule(branch), Listing(names), "  ")]) + "\n"


def _extents(axes: Iterable[Axis], names: Names) -> str:
    return ", ".join(f"{names[a]}: {_plain(a.extent, names)}" for a in axes)


def _items(items: Iterable[Item], listing: Listing, indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, Loop):
            over = _plain(item.axis.extent, listing.names)
            yield f"{indent}loop {listing.names[item.axis]} over {over}:"
            yield from _items(item.body, listing, indent + "  ")
        elif isinstance(item, Accumulate):
            r = item.reduction
            _leaves((body_of(r), *r.args[2:3]), listing)
            added = f"{r.attr.monoid}= {listing.pieces[body_of(r)][0]}"
            if r.op == "online":
                added = f"= {listing.pieces[r.args[2]][0]}, then {added}"
            if plain_of(r) not in listing.pieces:
                listing.number(plain_of(r))
            listing.pieces[r] = listing.pieces[plain_of(r)]
            yield f"{indent}{listing.pieces[r][0]} {added}"
        elif isinstance(item, Compute):
            _leaves(item.value.args, listing)
            piece = listing.piece(item.value)
            if item.value.dtype in ("index", "bool") and len(piece[0]) <= WIDTH:
                listing.pieces[item.value] = piece
            else:
                yield f"{indent}{listing.number(item.value)} = {piece[0]}"
        else:
            _leaves((*item.store.indices, item.store.value), listing)
            yield indent + listing.store(item.store)


def _leaves(args: Iterable[Expr], listing: Listing) -> None:
    for a in args:
        if a.op in MARKERS:
            if a.args[0] not in listing.pieces:
                listing.number(a.args[0])
            listing.pieces[a] = f"{a.op}({listing.pieces[a.args[0]][0]})", TIGHT
        elif not a.args:
            listing.pieces[a] = listing.piece(a)


def parse_program(text: str) -> Program:
    """The program that prints so. Raises ParseError."""
    from superopt.mugraph.parse import Parser

    return Parser(text).program()


def parse_graph(text: str) -> KernelGraph:
    """The µGraph that prints so. Raises ParseError."""
    from superopt.mugraph.parse import Parser

    return Parser(text).graph()
