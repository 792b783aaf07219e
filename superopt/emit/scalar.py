"""Spelling of one scalar operator in Triton, by the table's column and the operands' types."""

from __future__ import annotations

import re

from superopt.emit.code import Code, number, quote
from superopt.mugraph.dtypes import DTYPES, accumulator, is_float
from superopt.mugraph.expr import Expr
from superopt.mugraph.helpers import HELPERS
from superopt.mugraph.ops import OPS
from superopt.mugraph.threads import core

_CALL = re.compile(r"(?<![\w.])([a-z_]\w*)\(")
_LITERAL_TYPES = ("f16", "bf16", "f32", "i32", "bool", "index")  # a bare literal has the right type


def triton_type(dtype: str) -> str:
    """The type that values of an element type are computed in."""
    return f"tl.{DTYPES[accumulator(dtype)].triton}"


def literal(e: Expr, typed: bool) -> Code:
    """A constant; `typed` where nothing beside it gives the literal its type."""
    value = number(e.attr)
    return quote("tl.full((), {0}, " + triton_type(e.dtype) + ")", value) if typed else value


def spelling(e: Expr, nonnegative: bool) -> tuple[str, set[str]]:
    """The template of an operator node, and the helper functions that it calls.

    `nonnegative`: the dividend of an index division is, so that truncating rounds down.
    """
    of = core(e.args[-1]).dtype
    float_kind = is_float(of)
    template = OPS[e.op].triton
    if e.op in ("floordiv", "mod") and nonnegative:
        return ("{0} // {1}" if e.op == "floordiv" else "{0} % {1}"), set()
    if of == "f64":
        template = template.replace("tl.sqrt_rn(", "tl.sqrt(")
    if e.op in ("maximum", "minimum") and not float_kind:
        return f"tl.{template}", set()
    if e.op in ("floor", "ceil", "trunc", "round") and not float_kind:
        return "{0}", set()
    helpers = set()
    for name in set(_CALL.findall(template)) - {"float"}:
        chosen = f"{name}_int" if not float_kind and f"{name}_int" in HELPERS else name
        template = re.sub(rf"(?<![\w.]){name}\(", f"{chosen}(", template)
        helpers.add(chosen)
    return template, helpers


def needs_typed_literals(e: Expr, helpers: set[str]) -> bool:
    """Whether literals among the operands of a node would take a wrong type, or none."""
    operands = [core(a) for a in (e.args[1:] if e.op == "where" else e.args)]
    alone = all(a.op == "const" for a in operands)
    return bool(helpers - {"maximum", "minimum"}) or (alone and e.dtype not in _LITERAL_TYPES)


def convert(code: Code, e: Expr, is_literal_type: bool) -> Code:
    """A cast node's text: float casts that only hint at a precision have been dropped before.

    `is_literal_type`: the operand may be a Python number at run time, which has no `.to`.
    """
    source, target = e.args[0].dtype, e.dtype
    if DTYPES[target].kind == "bool":
        return quote("{0} != 0", code)
    if target == "index" or (source, target) == ("index", "i32"):
        return code
    if is_literal_type:
        return quote("tl.cast({0}, " + triton_type(target) + ")", code)
    return quote("{0}.to(" + triton_type(target) + ")", code)
