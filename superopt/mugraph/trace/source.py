"""The text of a traced function, and of what it uses of its module, to stand in a file alone."""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import sys
import textwrap
from types import FunctionType, ModuleType
from typing import Any

import torch

from superopt.mugraph.program import Source

_PLAIN = (int, float, bool, str, type(None), torch.dtype)
_HOMES = ("torch.nn.functional", "torch", "math")  # where users find functions, the best first


def own_source(fn: Any) -> Source:
    """The function's text without decorators, and all that it needs of the modules around it.

    Annotations are left out where nothing can stand for a name in them. Where the body, a default
    or a helper function needs a name that text cannot hold (a tensor, an object with state), or two
    modules mean different things by one name, there is none: `Source.text` is empty.
    """
    made: dict[str, str] = {}
    text = _carried(fn, made, {fn})
    if text is None:
        return Source()
    return Source(text, tuple(made.items()))


def _parsed(fn: Any) -> tuple[ast.FunctionDef | None, str]:
    if not isinstance(fn, FunctionType):
        return None, ""
    try:
        text = textwrap.dedent(inspect.getsource(fn))
        node = ast.parse(text).body[0]
    except (OSError, SyntaxError, IndexError):
        return None, ""
    if not isinstance(node, ast.FunctionDef):
        return None, ""
    node.decorator_list = []
    return node, "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"


def _carried(fn: Any, made: dict[str, str], seen: set[Any]) -> str | None:
    """The function's text, after a text for each outer name in it was put into `made`."""
    node, text = _parsed(fn)
    if node is None:
        return None
    if not all(_resolved(fn, name, made, seen) for name in sorted(_annotated(node))):
        node = _without_annotations(node)
        text = ast.unparse(node) + "\n"
    names = sorted(_free_names(node))
    return text if all(_resolved(fn, name, made, seen) for name in names) else None


def _resolved(fn: FunctionType, name: str, made: dict[str, str], seen: set[Any]) -> bool:
    """Whether a name that fn reads means the same where the texts of `made` stand."""
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    outer = {**fn.__globals__, **{name: c.cell_contents for name, c in cells}}
    if name not in outer:
        return hasattr(builtins, name)
    value = getattr(outer[name], "fn", outer[name])  # a spec is the function it marks
    text = _definition(name, value)
    if text is None and isinstance(value, FunctionType) and value.__name__ == name:
        if value in seen:
            return True
        text = _carried(value, made, seen | {value})
    return text is not None and made.setdefault(name, text) == text


def _free_names(node: ast.FunctionDef) -> set[str]:
    """Names that the function reads and does not bind, its annotations and defaults included."""
    inside = list(ast.walk(node))
    names = [n for n in inside if isinstance(n, ast.Name)]
    bound = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in inside if isinstance(n, ast.arg)}
    bound |= {n.name for n in inside if isinstance(n, ast.FunctionDef) and n is not node}
    return {n.id for n in names} - bound


def _definition(name: str, value: Any) -> str | None:
    """The import or the assignment that makes `value`; None where it takes more than that."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" + _as(value.__name__, name)
    if isinstance(value, tuple | list) and all(isinstance(v, _PLAIN) for v in value):
        return f"{name} = {type(value).__name__}(({''.join(_literal(v) + ', ' for v in value)}))"
    if isinstance(value, _PLAIN):
        return f"{name} = {_literal(value)}"
    own = getattr(value, "__name__", None)
    for home in (*_HOMES, str(getattr(value, "__module__", ""))) if own else ():
        known = home.partition(".")[0] in {"torch", *sys.stdlib_module_names}
        if known and "._" not in home and getattr(sys.modules.get(home), str(own), None) is value:
            return f"from {home} import {own}" + _as(str(own), name)
    return None


def _literal(value: Any) -> str:
    odd = isinstance(value, float) and not math.isfinite(value)
    return f'float("{value}")' if odd else repr(value)


def _as(real: str, name: str) -> str:
    return "" if real == name else f" as {name}"


def _annotated(node: ast.FunctionDef) -> set[str]:
    notes = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
    inside = [n for note in [*notes, node.returns] if note for n in ast.walk(note)]
    return {n.id for n in inside if isinstance(n, ast.Name)}


def _without_annotations(node: ast.FunctionDef) -> ast.FunctionDef:
    node.returns = None
    for a in ast.walk(node.args):
        if isinstance(a, ast.arg):
            a.annotation = None
    return node
