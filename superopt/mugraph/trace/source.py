"""The text of a traced function, and of what it uses of its module, to stand in a file alone."""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import textwrap
import types
from typing import Any

import torch

PLAIN = (int, float, str, bool, type(None), torch.dtype)


def source_text(fn: Any) -> str:
    """The function's own text, dedented, without decorators; empty where there is none."""
    node, text = _parsed(fn)
    if node is None:
        return ""
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"


def source_context(fn: Any) -> str | None:
    """Imports, constants and helper functions that the function's text refers to, as text.

    None where it refers to what text cannot hold: a tensor, a module object with state, a closure
    over either.
    """
    lines: dict[str, str] = {}
    return "".join(lines.values()) if _collect(fn, lines, set()) else None


def _parsed(fn: Any) -> tuple[ast.FunctionDef | None, str]:
    if not isinstance(fn, types.FunctionType):
        return None, ""
    try:
        text = textwrap.dedent(inspect.getsource(fn))
        node = ast.parse(text).body[0]
    except (OSError, SyntaxError, IndexError):
        return None, ""
    return (node, text) if isinstance(node, ast.FunctionDef) else (None, "")


def _collect(fn: Any, lines: dict[str, str], seen: set[Any]) -> bool:
    """Fill in a text for each outer name that fn uses, what it needs itself first."""
    node, _ = _parsed(fn)
    if node is None:
        return False
    seen.add(fn)
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    outer = dict(fn.__globals__) | {name: c.cell_contents for name, c in cells}
    for name in sorted(_free_names(node)):
        if name in lines or (name not in outer and hasattr(builtins, name)):
            continue
        if name not in outer or not _define(name, outer[name], lines, seen):
            return False
    return True


def _free_names(node: ast.FunctionDef) -> set[str]:
    """Names that the function reads and does not bind, its annotations included."""
    inside = [n for part in (node.args, *node.body) for n in ast.walk(part)]
    read = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in inside if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    return read - bound - {n.arg for n in inside if isinstance(n, ast.arg)}


def _define(name: str, value: Any, lines: dict[str, str], seen: set[Any]) -> bool:
    value = getattr(value, "fn", value)  # a spec is the function it marks
    if isinstance(value, types.FunctionType) and value in seen:
        return True
    if isinstance(value, types.ModuleType):
        lines[name] = f"import {value.__name__}" + _as(value.__name__, name)
    elif isinstance(value, PLAIN):
        odd = isinstance(value, float) and not math.isfinite(value)
        text = f'float("{value}")' if odd else repr(value)
        lines[name] = f"{name} = {text}\n"
    elif isinstance(value, types.FunctionType) and value.__name__ == name and _own(value):
        if not _collect(value, lines, seen):
            return False
        lines[name] = source_text(value)
    elif _importable(value):
        module = value.__module__
        lines[name] = f"from {module} import {value.__name__}" + _as(value.__name__, name)
    else:
        return False
    return True


def _as(real: str, name: str) -> str:
    return "\n" if real == name else f" as {name}\n"


def _own(value: Any) -> bool:
    """Whether a function is the user's, not a library's: its text is then copied."""
    return "site-packages" not in (value.__code__.co_filename or "")


def _importable(value: Any) -> bool:
    module = inspect.getmodule(value)
    return module is not None and getattr(module, getattr(value, "__name__", ""), None) is value
