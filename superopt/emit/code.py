"""Expressions of the emitted language, built as Python syntax trees.

`ast.unparse` then writes the parentheses that are needed and no others.
"""

from __future__ import annotations

import ast
import copy
import math
from functools import cache

Code = ast.expr


@cache
def _template(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class _Fill(ast.NodeTransformer):
    def __init__(self, parts: tuple[Code, ...]) -> None:
        self.parts = parts

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.parts[int(node.id[2:])] if node.id.startswith("__") else node


def quote(template: str, *parts: Code | str) -> Code:
    """A template's expression with `{0}`, `{1}`, ... replaced by expressions.

    >>> text(quote("{0} * {1}", quote("a + b"), "c"))
    '(a + b) * c'
    """
    trees = tuple(quote(p) if isinstance(p, str) else p for p in parts)
    holes = template.format(*(f"__{n}" for n in range(len(trees)))) if trees else template
    return _Fill(trees).visit(copy.deepcopy(_template(holes)))  # type: ignore[no-any-return]


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
