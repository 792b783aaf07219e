"""Integer arithmetic on positions as index arithmetic: what masks are made of.

    i64(j) <= i64(i) & i64(i) - i64(j) < 256         as torch computes with two aranges
    j <= i & i - j < 256                             comparisons of axes, which bound a loop

Values of integer tensors take part where their declared range says that they are small, and
positions in a float type that holds them exactly: (i - j).float() > 0 is i - j > 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES, is_float
from superopt.mugraph.expr import FALSE, TRUE, Expr, cast, index, op

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
ARITHMETIC = ("add", "sub", "mul", "neg", "floordiv", "mod")
LARGEST = 2**31  # what fits the machine's index arithmetic


def _small(e: Expr, dtype: str) -> bool:
    """Whether an index expression surely is held exactly: in 32 bits, and in a float's fraction."""
    epsilon = DTYPES[dtype].epsilon
    most = index(min(LARGEST, int(2 / epsilon)) if epsilon else LARGEST)
    return ix.less(e, most) is True and ix.less(op("neg", most), e) is True


def _position(e: Expr) -> Expr | None:
    """The index expression that a number is, where it is one."""
    if DTYPES[e.dtype].kind not in ("int", "float") or e.dtype in ("u8", "i8", "i16"):
        return None
    if e.op == "const" and e.attr == e.attr // 1:
        found = index(int(e.attr))
    elif e.op == "cast" and e.args[0].dtype == "index":
        found = e.args[0]
    elif e.op == "load" and e.attr.bounds is not None:
        found = cast(e, "index")
    else:
        return None
    return found if _small(found, e.dtype) else None


def _loaded(e: Expr) -> bool:
    return e.op == "load"


def indexed(name: str, args: Sequence[Expr]) -> Expr | None:
    """The operator applied as index arithmetic; None where operands are no positions.

    Comparisons among loaded values and constants alone stay as they are unless they are decided.
    """
    if name not in COMPARISONS + ARITHMETIC:
        return None
    positions = [p for a in args if (p := _position(a)) is not None]
    if len(positions) < len(args) or all(a.op == "const" for a in args):
        return None
    floats = any(is_float(a.dtype) for a in args)
    if floats and name not in (*COMPARISONS, "add", "sub"):  # others may give -0.0, or no number
        return None
    if name in ("floordiv", "mod") and not (args[1].op == "const" and args[1].attr > 0):
        return None
    result = op(name, *positions)
    if all(_loaded(a) or a.op == "const" for a in args) and result not in (TRUE, FALSE):
        return None
    if name in COMPARISONS:
        return result
    dtype = next(a.dtype for a in args if a.op != "const")
    return cast(result, dtype) if _small(result, dtype) else None


def widened(e: Expr, dtype: str) -> Expr:
    """The value in another type; a position goes there directly, as every integer type holds it."""
    if e.op == "cast" and e.args[0].dtype == "index" and DTYPES[e.dtype].bytes >= 4:
        return cast(e.args[0], dtype)
    return cast(e, dtype)
