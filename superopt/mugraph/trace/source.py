"""The text of a traced function, with what it needs of its own module, for a file that stands alone."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from typing import Any


def source_text(fn: Any) -> str:
    """The function's own text, without decorators; empty where there is none."""
    if not isinstance(fn, types.FunctionType):
        return ""
    try:
        text = textwrap.dedent(inspect.getsource(fn))
        tree = ast.parse(text)
    except (OSError, SyntaxError, TypeError):
        return ""
    node = tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        return ""
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"
