"""The spec's own function, put into a kernel.py under the name `reference`."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable

from superopt.mugraph.program import Traced

COMMENT = "# The spec's own function.\n"
IMPORT = ("import ", "from ")


def reference_text(traced: Traced, call: str, others: Collection[str]) -> tuple[list[str], str]:
    """The imports that `reference` needs; its text, after the constants and helpers that it uses.

    Where one of these has a name that the `others`, texts of the same file, define too, all stand
    inside the function. Where there is no text (a module, a builtin), it says so when called.
    """
    if not traced.source.text or traced.captured:
        return [], (
            f"def reference({call}):\n"
            '    """The original is more than a plain function, and is not carried here."""\n'
            '    raise RuntimeError("CPU tensors need TRITON_INTERPRET=1 for this kernel")'
        )
    node = ast.parse(traced.source.text).body[0]
    assert isinstance(node, ast.FunctionDef)
    own = [(name, text) for name, text in traced.source.context if text not in others]
    if {name for name, _ in own} & _defined(others):
        inside = ast.parse("\n".join(text for _, text in own))
        node.name, node.body = "reference", [*inside.body, *node.body]
        return [], COMMENT + ast.unparse(node)
    imports = [text for _, text in own if text.startswith(IMPORT)]
    before = [text.strip("\n") for _, text in own if not text.startswith(IMPORT)]
    text = traced.source.text.replace(f"def {node.name}(", "def reference(", 1)
    return imports, "\n\n\n".join([*before, COMMENT + text])


def _defined(texts: Iterable[str]) -> set[str]:
    """Names that texts of Python bind in their module."""
    found = set()
    for statement in (s for text in texts for s in ast.parse(text).body):
        if isinstance(statement, ast.FunctionDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {a.asname or a.name for a in statement.names}
        else:
            names = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
            found |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
    return found
