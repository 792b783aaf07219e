"""Expressions of the emitted language, built as Python syntax trees.

`ast.unparse` then writes the parentheses that are needed and no others.
"""

from __future__ import annotations

import ast
import math
from functools import cache
from typing import Any

Code = ast.expr


@cache
def _template(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _filled(node: Any, parts: tuple[Code, ...]) -> Any:
    """A copy of a template's tree, with parts in place of the names `__0`, `__1`, ..."""
    if isinstance(node, list):
        return [_filled(n, parts) for n in node]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Name) and node.id.startswith("__"):
        return parts[int(node.id[2:])]
    return type(node)(**{name: _filled(value, parts) for name, value in ast.iter_fields(node)})


def quote(template: str, *parts: Code | str) -> Code:
    """A template's expression with `{0}`, `{1}`, ... replaced by expressions.

    >>> text(quote("{0} * {1}", quote("a + b"), "c"))
    '(a + b) * c'
    """
    trees = tuple(quote(p) if isinstance(p, str) else p for p in parts)
    holes = template.format(*(f"__{n}" for n in range(len(trees)))) if trees else template
    return _filled(_template(holes), trees)  # type: ignore[no-any-return]


def text(code: Code) -> str:
    return ast.unparse(code)


def number(value: float | int | bool) -> Code:
    """A literal; infinities and NaN are spelt as a call."""
    if isinstance(value, float) and not math.isfinite(value):
        return quote(f"float('{value}')")
    return quote(repr(value))


def subscript(code: Code, present: list[bool]) -> Code:
    """`x[:, None]`: a new dimension for each False."""
    if all(present) or not any(present):
        return code
    return quote("{0}[" + ", ".join(":" if p else "None" for p in present) + "]", code)


def join(operator: str, parts: list[Code]) -> Code:
    """`a + b + c`."""
    total = parts[0]
    for part in parts[1:]:
        total = quote("{0} " + operator + " {1}", total, part)
    return total
