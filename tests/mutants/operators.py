"""Mutation operators: a table of edits to the syntax tree of an emitted kernel.py.

They edit the jitted functions and the host functions that allocate and launch. A row looks at one
node and yields what may stand in its place; it knows the language, never a program.
"""

from __future__ import annotations

import ast
import difflib
import textwrap
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

Edits = Iterator[ast.AST]


@dataclass(frozen=True)
class Scope:
    """What is known around a node.

    `carried`: names that a loop around it both reads from the turn before and assigns. `strides`:
    the function's parameters that are strides, by tensor.
    """

    carried: frozenset[str] = frozenset()
    strides: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def carries(self, node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in self.carried for n in ast.walk(node))


@dataclass(frozen=True)
class Operator:
    name: str
    edits: Callable[[ast.AST, Scope], Edits]
    on_host: bool = False


@dataclass(frozen=True)
class Mutant:
    """A kernel.py with one edit. `line` and `statement` are of the unbroken text."""

    operator: str
    line: int
    text: str
    statement: str
    number: int = 0

    def diff(self, unbroken: str) -> str:
        before, after = unbroken.splitlines(), self.text.splitlines()
        changed = difflib.unified_diff(before, after, "unbroken", "mutant", "", "", 1, "")
        return "\n".join(changed)


# -- matching -------------------------------------------------------------------------------------


def _call(node: ast.AST, *names: str) -> bool:
    """Whether the node calls one of some functions: `tl.load`, `maximum`."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """The node with some fields changed; `_with(call, args=...)`."""
    made = deepcopy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _keyword(node: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in node.keywords if k.arg == name), None)


def _with_keyword(node: ast.Call, name: str, value: ast.expr | None) -> ast.AST:
    """The call with a keyword changed, or without it."""
    kept = [k for k in node.keywords if k.arg != name]
    return _with(node, keywords=kept + ([ast.keyword(name, value)] if value else []))


def _number(node: ast.AST) -> int | float | None:
    number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return node.value if number else None  # type: ignore[attr-defined]


def _infinity(node: ast.AST) -> bool:
    return ast.unparse(node) == "float('-inf')"


# -- arithmetic -----------------------------------------------------------------------------------

OTHER_OPERATOR: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod)
OTHER_COMPARISON: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip


def _other_operator(node: ast.AST, scope: Scope) -> Edits:
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER_OPERATOR:
        yield _with(node, op=OTHER_OPERATOR[type(node.op)]())


def _swapped_operands(node: ast.AST, scope: Scope) -> Edits:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ORDERED):
        yield _with(node, left=node.right, right=node.left)
    if _call(node, "tl.where"):
        assert isinstance(node, ast.Call)
        yield _with(node, args=[node.args[0], node.args[2], node.args[1]])
    if _call(node, "tl.swizzle2d"):
        assert isinstance(node, ast.Call)
        yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
        yield _with(node, args=[*node.args[:2], node.args[3], node.args[2], *node.args[4:]])


def _dropped_sign(node: ast.AST, scope: Scope) -> Edits:
    if isinstance(node, ast.UnaryOp) and _number(node.operand) is None:
        yield node.operand


def _comparison(node: ast.AST, scope: Scope) -> Edits:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield _with(node, ops=[OTHER_COMPARISON[type(node.ops[0])]()])


def _shifted_bound(node: ast.AST, scope: Scope) -> Edits:
    """n < N -> n < N - 1, n < N + 1; and the end of a loop."""
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.LtE):
        bound = node.comparators[0]
        for op in (ast.Sub(), ast.Add()):
            yield _with(node, comparators=[ast.BinOp(bound, op, ast.Constant(1))])
    if _call(node, "range"):
        assert isinstance(node, ast.Call)
        start, stop, *step = node.args
        yield _with(node, args=[start, ast.BinOp(stop, ast.Sub(), ast.Constant(1)), *step])


def _constant(node: ast.AST, scope: Scope) -> Edits:
    """3% more; 1 more of an integer."""
    number = _number(node)
    if isinstance(number, float) and number != 0:
        yield ast.Constant(float(f"{number * 1.03:.9g}"))
    elif isinstance(number, int):
        yield ast.Constant(number + 1)


def _condition(node: ast.AST, scope: Scope) -> Edits:
    """tl.where(c, a, b) -> a, b."""
    if _call(node, "tl.where"):
        assert isinstance(node, ast.Call)
        yield node.args[1]
        yield node.args[2]


# -- functions ------------------------------------------------------------------------------------

RELATIVES = {
    "tl.exp": ("tl.exp2",), "tl.exp2": ("tl.exp",), "tl.log": ("tl.log2",), "tl.log2": ("tl.log",),
    "tl.max": ("tl.min",), "tl.min": ("tl.max",), "tl.sum": ("tl.max",),
    "tl.maximum": ("tl.minimum",), "tl.minimum": ("tl.maximum",),
    "maximum": ("tl.maximum", "tl.minimum"), "minimum": ("tl.minimum", "tl.maximum"),
    "max_along": ("tl.max", "tl.min"), "min_along": ("tl.min", "tl.max"),
    "tl.rsqrt": ("tl.sqrt",), "tl.sqrt": ("tl.rsqrt",), "tl.sigmoid": ("tl.exp", "tl.cos"),
    "tl.sin": ("tl.cos",), "tl.cos": ("tl.sin",), "tl.floor": ("tl.ceil",),
    "tl.ceil": ("tl.floor",), "tl.abs": ("",), "tanh": ("tl.sigmoid",), "expm1": ("tl.exp",),
    "tl.cdiv": ("tl.maximum",),
}  # fmt: skip


def _relative(node: ast.AST, scope: Scope) -> Edits:
    if isinstance(node, ast.Call):
        for name in RELATIVES.get(ast.unparse(node.func), ()):
            yield _with(node, func=_expression(name)) if name else node.args[0]
    if _call(node, "tl.reduce"):
        assert isinstance(node, ast.Call)
        other = {"maximum": "minimum", "minimum": "maximum"}.get(ast.unparse(node.args[2]))
        if other:
            builtin = "tl.max" if other == "minimum" else "tl.min"
            yield ast.Call(_expression(builtin), node.args[:2], node.keywords)


def _clamp(node: ast.AST, scope: Scope) -> Edits:
    """minimum(maximum(x, low), high) -> its bounds exchanged, or one of them gone."""
    pairs = {"minimum": "maximum", "maximum": "minimum"}
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) in pairs):
        return
    outer, inner = ast.unparse(node.func), node.args[0]
    if len(node.args) == 2 and _call(inner, pairs[outer]):
        assert isinstance(inner, ast.Call)
        x, first, second = inner.args[0], inner.args[1], node.args[1]
        yield _with(node, args=[_with(inner, args=[x, second]), first])
        yield _with(node, args=[x, second])


def _axis(node: ast.AST, scope: Scope) -> Edits:
    """The other axis: of a reduction, and of x[:, None]."""
    if isinstance(node, ast.Call) and isinstance(_keyword(node, "axis"), ast.Constant):
        axis = _number(_keyword(node, "axis"))  # type: ignore[arg-type]
        yield _with_keyword(node, "axis", ast.Constant(0 if axis else 1))
    if isinstance(node, ast.Subscript) and ast.unparse(node.slice) in ("(:, None)", "(None, :)"):
        column = ast.unparse(node.slice) == "(:, None)"
        yield _expression(f"({ast.unparse(node.value)})[{'None, :' if column else ':, None'}]")


# -- loads and stores -----------------------------------------------------------------------------


def _mask(node: ast.AST, scope: Scope) -> Edits:
    """A mask dropped, or one of its parts."""
    if not _call(node, "tl.load", "tl.store"):
        return
    assert isinstance(node, ast.Call)
    mask = _keyword(node, "mask")
    if mask is None:
        return
    dropped = _with_keyword(node, "mask", None)
    assert isinstance(dropped, ast.Call)
    yield _with_keyword(dropped, "other", None)
    for n in range(len(_parts(mask))):
        rest = _parts(mask)[:n] + _parts(mask)[n + 1 :]
        if rest:
            yield _with_keyword(node, "mask", _expression(" & ".join(rest)))


def _parts(mask: ast.expr) -> list[str]:
    """`a & b & c` as its parts."""
    if isinstance(mask, ast.BinOp) and isinstance(mask.op, ast.BitAnd):
        return _parts(mask.left) + _parts(mask.right)
    return [f"({ast.unparse(mask)})"]


def _other(node: ast.AST, scope: Scope) -> Edits:
    """What masked lanes hold: something else, or nothing definite."""
    if not _call(node, "tl.load"):
        return
    assert isinstance(node, ast.Call)
    other = _keyword(node, "other")
    if other is not None:
        yield _with_keyword(node, "other", ast.Constant(1.0 if _number(other) == 0 else 0.0))
        yield _with_keyword(node, "other", None)


def _stride(node: ast.AST, scope: Scope) -> Edits:
    """stride_x_b -> x's next stride."""
    if isinstance(node, ast.Name):
        for names in scope.strides.values():
            if node.id in names and len(names) > 1:
                yield ast.Name(names[(names.index(node.id) + 1) % len(names)])


def _past_the_end(node: ast.AST, scope: Scope) -> Edits:
    if _call(node, "tl.store"):
        assert isinstance(node, ast.Call)
        beyond = ast.BinOp(node.args[0], ast.Add(), ast.Constant(1))
        yield _with(node, args=[beyond, *node.args[1:]])


def _lanes(node: ast.AST, scope: Scope) -> Edits:
    if _call(node, "tl.arange"):
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))


def _program(node: ast.AST, scope: Scope) -> Edits:
    if _call(node, "tl.program_id"):
        yield _with(node, args=[ast.Constant(1)])
        yield ast.BinOp(node, ast.Add(), ast.Constant(1))


# -- loops and accumulators -----------------------------------------------------------------------


def _tiles(node: ast.AST, scope: Scope) -> Edits:
    """The first or the last tile skipped, or one more taken."""
    if _call(node, "range"):
        assert isinstance(node, ast.Call)
        if len(node.args) == 3:
            start, stop, step = node.args
            yield _with(node, args=[ast.BinOp(start, ast.Add(), step), stop, step])
            yield _with(node, args=[start, ast.BinOp(stop, ast.Sub(), step), step])
            yield _with(node, args=[start, ast.BinOp(stop, ast.Add(), step), step])


def _rescale(node: ast.AST, scope: Scope) -> Edits:
    """acc * factor -> acc, acc / factor; where acc is carried."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for mine, factor in ((node.left, node.right), (node.right, node.left)):
            if isinstance(mine, ast.Name) and mine.id in scope.carried:
                yield mine
                yield ast.BinOp(mine, ast.Div(), factor)


def _accumulate(node: ast.AST, scope: Scope) -> Edits:
    """acc + term -> term, acc; the like of a running maximum and of a dot."""
    if isinstance(node, ast.AugAssign):
        yield ast.Assign([node.target], node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _one_side(node.left, node.right, scope)
    if _call(node, "maximum", "minimum", "tl.maximum", "tl.minimum"):
        assert isinstance(node, ast.Call)
        yield from _one_side(node.args[0], node.args[1], scope)
    if _call(node, "tl.dot", "dot_bf16"):
        assert isinstance(node, ast.Call)
        if len(node.args) == 3:
            yield _with(node, args=node.args[:2])
            yield node.args[2]


def _one_side(a: ast.expr, b: ast.expr, scope: Scope) -> Edits:
    if scope.carries(a) or scope.carries(b):
        yield a
        yield b


def _not_carried(node: ast.AST, scope: Scope) -> Edits:
    """x_max = x_max_new at the end of a loop's body, dropped."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in scope.carried:
            yield ast.Pass()


def _start(node: ast.AST, scope: Scope) -> Edits:
    """What an accumulator starts with; what stands in for an empty prefix."""
    if _call(node, "tl.zeros"):
        assert isinstance(node, ast.Call)
        yield ast.Call(_expression("tl.full"), [node.args[0], ast.Constant(1.0), node.args[1]], [])
    if _infinity(node):
        yield ast.Constant(0.0)
        yield _expression("float('inf')")
    if _number(node) == 0 and isinstance(_number(node), float):
        yield ast.Constant(1.0)


# -- the host -------------------------------------------------------------------------------------


def _arguments(node: ast.AST, scope: Scope) -> Edits:
    """Neighbouring arguments of a launch exchanged; another stride of a tensor."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
        for n in range(len(node.args) - 1):
            a, b = node.args[n : n + 2]
            yield _with(node, args=[*node.args[:n], b, a, *node.args[n + 2 :]])
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".stride") and node.args:
        dimension = _number(node.args[0])
        assert isinstance(dimension, int)
        yield _with(node, args=[ast.Constant(dimension - 1 if dimension else 1)])


def _grid(node: ast.AST, scope: Scope) -> Edits:
    """One program fewer, or more; a factor of their number left out."""
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "programs":
        for op in (ast.Sub(), ast.Add()):
            yield _with(node, value=ast.BinOp(node.value, op, ast.Constant(1)))
        if isinstance(node.value, ast.BinOp):
            yield _with(node, value=node.value.left)
            yield _with(node, value=node.value.right)


TABLE = (
    Operator("another operator", _other_operator, on_host=True),
    Operator("operands swapped", _swapped_operands, on_host=True),
    Operator("sign dropped", _dropped_sign),
    Operator("comparison with or without its bound", _comparison),
    Operator("bound shifted", _shifted_bound),
    Operator("constant changed", _constant, on_host=True),
    Operator("condition dropped", _condition),
    Operator("near relative of a function", _relative),
    Operator("bounds of a clamp", _clamp),
    Operator("another axis", _axis),
    Operator("mask dropped or widened", _mask),
    Operator("other value of masked lanes", _other),
    Operator("wrong stride", _stride),
    Operator("store past the end", _past_the_end),
    Operator("lanes shifted", _lanes),
    Operator("wrong program id", _program),
    Operator("tile skipped or added", _tiles),
    Operator("rescale dropped or reversed", _rescale),
    Operator("accumulate dropped", _accumulate),
    Operator("value not carried over", _not_carried),
    Operator("start of an accumulator", _start),
    Operator("arguments of a launch", _arguments, on_host=True),
    Operator("number of programs", _grid, on_host=True),
)


# -- mutants --------------------------------------------------------------------------------------


def mutants(text: str) -> list[Mutant]:
    """All mutants of a kernel.py, in the order of its lines; none twice, none the same program."""
    found: dict[str, Mutant] = {}
    for function, on_host in _functions(ast.parse(text)):
        seen = {_normal_form(text, text, function)}
        for node, scope, statement in _sites(function):
            for operator in TABLE:
                if on_host and not operator.on_host:
                    continue
                for new in operator.edits(node, scope):
                    edited = _replaced(text, node, new)
                    form = _normal_form(edited, text, function)
                    if form not in seen:
                        seen.add(form)
                        found[edited] = Mutant(operator.name, node.lineno, edited, statement)
    ordered = sorted(found.values(), key=lambda m: (m.line, m.operator, m.text))
    return [replace(m, number=n) for n, m in enumerate(ordered)]


def _functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """The jitted functions, and the host's that launch: those that may be given a `wrap`.

    Without what runs only in Triton's interpreter: if triton.knobs.runtime.interpret: A else: B.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "triton.knobs.runtime.interpret":
            yield from _functions(ast.Module(node.orelse, []))
        elif isinstance(node, ast.FunctionDef):
            jitted = any(ast.unparse(d) == "triton.jit" for d in node.decorator_list)
            if jitted or any(a.arg == "wrap" for a in node.args.args):
                yield node, not jitted


Site = tuple[ast.AST, Scope, str]


def _sites(function: ast.FunctionDef) -> Iterator[Site]:
    """The nodes of a function's body, each with its scope and its statement's text."""
    strides: dict[str, list[str]] = {}
    for a in function.args.args:
        if a.arg.startswith("stride_"):
            tensor = a.arg.removeprefix("stride_").rpartition("_")[0]
            strides.setdefault(tensor, []).append(a.arg)
    scope = Scope(strides={t: tuple(names) for t, names in strides.items()})
    for statement in function.body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            yield from _walk(statement, scope, "")


def _walk(node: ast.AST, scope: Scope, statement: str) -> Iterator[Site]:
    if isinstance(node, ast.For):
        scope = Scope(scope.carried | _carried(node), scope.strides)
    if isinstance(node, ast.stmt):
        statement = ast.unparse(node).partition("\n")[0]
    if isinstance(node, ast.expr | ast.stmt):
        yield node, scope, statement
    for name, child in ast.iter_fields(node):
        if name in ("annotation", "func", "ctx", "dtype"):
            continue
        for c in child if isinstance(child, list) else [child]:
            if isinstance(c, ast.AST):
                yield from _walk(c, scope, statement)


def _carried(loop: ast.For) -> frozenset[str]:
    """Names that a turn reads before it assigns them."""
    assigned: set[str] = set()
    early: set[str] = set()
    for statement in loop.body:
        names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
        early |= {n.id for n in names if isinstance(n.ctx, ast.Load)} - assigned
        stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        if isinstance(statement, ast.AugAssign):
            early |= stored - assigned
        assigned |= stored
    return frozenset(early & assigned)


def _replaced(text: str, old: ast.AST, new: ast.AST) -> str:
    """The text with one node's source replaced."""
    assert isinstance(old, ast.expr | ast.stmt)
    assert old.end_lineno is not None
    assert old.end_col_offset is not None
    written = ast.unparse(ast.fix_missing_locations(new))
    if isinstance(new, ast.BinOp | ast.Compare | ast.UnaryOp | ast.BoolOp):
        written = f"({written})"
    lines = text.splitlines(keepends=True)
    first, last = lines[old.lineno - 1].encode(), lines[old.end_lineno - 1].encode()
    before = first[: old.col_offset].decode()
    after = last[old.end_col_offset :].decode()
    lines[old.lineno - 1 : old.end_lineno] = [before + written + after]
    return "".join(lines)


class _Normal(ast.NodeTransformer):
    """Operands of +, *, & and | in one order, numbers as they are valued."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr):
            operands = [node.left, node.right]
            node.left, node.right = sorted(operands, key=ast.dump)
        return node


def _normal_form(edited: str, text: str, function: ast.FunctionDef) -> str:
    """Of a function in an edited text: the same where operands that commute change places."""
    assert function.end_lineno is not None
    more = edited.count("\n") - text.count("\n")
    lines = edited.splitlines()[function.lineno - 1 : function.end_lineno + more]
    return ast.dump(_Normal().visit(ast.parse(textwrap.dedent("\n".join(lines)))))
