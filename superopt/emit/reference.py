"""The spec's own function, put into a kernel.py under the name `reference`."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Mapping
from types import FunctionType, ModuleType

from superopt.mugraph.program import Traced

_PLAIN = (int, float, bool, str, type(None))
_KNOWN = {"torch": "import torch", "F": "import torch.nn.functional as F", "math": "import math"}


def reference_text(
    traced: Traced, call: str, outside: Mapping[str, object]
) -> tuple[list[str], str]:
    """The imports that `reference` needs; its text, after what it uses of its own module.

    Where there is no such function (a module, a builtin), one that says so when called.
    """
    if not traced.source or traced.captured:
        return [], (
            f"def reference({call}):\n"
            '    """The original is not a plain function, and is not carried here."""\n'
            '    raise RuntimeError("CPU tensors need TRITON_INTERPRET=1 for this kernel")'
        )
    tree = ast.parse(traced.source)
    imports, before, unknown = _needed(tree, outside)
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    source = traced.source.strip("\n")
    if unknown & _annotation_names(node):
        source = ast.unparse(_without_annotations(node))
    renamed = source.replace(f"def {node.name}(", "def reference(", 1)
    return imports, "\n\n\n".join([*before, "# The spec's own function.\n" + renamed])


def _needed(tree: ast.AST, outside: Mapping[str, object]) -> tuple[list[str], list[str], set[str]]:
    """Imports and definitions of the free names of a function, and the names that have neither."""
    texts: dict[str, str] = {}
    unknown: set[str] = set()
    stack = [tree]
    while stack:
        for name in sorted(_free_names(stack.pop())):
            if name in texts or name == "torch" or hasattr(builtins, name):
                continue
            value = outside.get(name)
            made = _definition(name, value) if name in outside or name in _KNOWN else None
            if made is None:
                unknown.add(name)
                continue
            texts[name] = made
            if made.startswith("def "):
                stack.append(ast.parse(made))
    imports = sorted(t for t in texts.values() if t.startswith(("import ", "from ")))
    others = [t for t in texts.values() if not t.startswith(("import ", "from "))]
    return imports, others[::-1], unknown


def _free_names(tree: ast.AST) -> set[str]:
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    bound = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    bound |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    bound |= {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    return {n.id for n in names} - bound


def _definition(name: str, value: object) -> str | None:
    if isinstance(value, ModuleType):
        plain = value.__name__ == name
        return f"import {name}" if plain else f"import {value.__name__} as {name}"
    if (made := _imported(name, value)) is not None:
        return made
    if isinstance(value, FunctionType):
        try:
            text = textwrap.dedent(inspect.getsource(value))
        except (OSError, TypeError):
            return None
        return text.strip("\n") if value.__name__ == name else None
    if value is None and name in _KNOWN:
        return _KNOWN[name]
    if isinstance(value, _PLAIN) or _is_torch_constant(value):
        return f"{name} = {value!r}"
    if isinstance(value, tuple | list) and all(isinstance(v, _PLAIN) for v in value):
        return f"{name} = {value!r}"
    return None


def _imported(name: str, value: object) -> str | None:
    """The import of a function of torch or of the standard library, from where users find it."""
    own = getattr(value, "__name__", None)
    if own is None or not callable(value):
        return None
    for home in ("torch.nn.functional", "torch", "math", str(getattr(value, "__module__", ""))):
        known = home.partition(".")[0] in {"torch", *sys.stdlib_module_names}
        if known and "._" not in home and getattr(sys.modules.get(home), own, None) is value:
            return f"from {home} import {own}" + ("" if own == name else f" as {name}")
    return None


def _is_torch_constant(value: object) -> bool:
    return type(value).__module__ == "torch" and type(value).__name__ == "dtype"


def _annotation_names(node: ast.FunctionDef) -> set[str]:
    notes = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg) and a.annotation]
    return {n.id for note in [*notes, *([node.returns] if node.returns else [])]
            for n in ast.walk(note) if isinstance(n, ast.Name)}  # fmt: skip


def _without_annotations(node: ast.FunctionDef) -> ast.FunctionDef:
    node.returns = None
    for a in ast.walk(node.args):
        if isinstance(a, ast.arg):
            a.annotation = None
    return node
