"""Element types, a row each. Adding a type is adding a row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One element type: its names in the languages we speak, its size, its precision.

    `epsilon` is the distance from 1 to the next larger value; 0 for exact types.
    """

    name: str
    kind: str  # float, int, bool, index
    bytes: int
    torch: str
    triton: str
    epsilon: float = 0.0


DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        DType("bool", "bool", 1, "bool", "int1"),
        DType("u8", "int", 1, "uint8", "uint8"),
        DType("i8", "int", 1, "int8", "int8"),
        DType("i16", "int", 2, "int16", "int16"),
        DType("i32", "int", 4, "int32", "int32"),
        DType("i64", "int", 8, "int64", "int64"),
        DType("f16", "float", 2, "float16", "float16", 2.0**-10),
        DType("bf16", "float", 2, "bfloat16", "bfloat16", 2.0**-7),
        DType("f32", "float", 4, "float32", "float32", 2.0**-23),
        DType("f64", "float", 8, "float64", "float64", 2.0**-52),
        DType("index", "index", 0, "int64", "int32"),  # axis indices and extents, never stored
    )
}

_RANK = {name: rank for rank, name in enumerate(DTYPES)}
_KIND_RANK = {"index": 0, "bool": 1, "int": 2, "float": 3}


def is_float(dtype: str) -> bool:
    return DTYPES[dtype].kind == "float"


def promote(*dtypes: str) -> str:
    """The type that torch computes in for operands of these types, scalars aside.

    >>> promote("f16", "f32"), promote("f16", "bf16"), promote("i32", "bool")
    ('f32', 'f32', 'i32')
    """
    top = max((DTYPES[d].kind for d in dtypes), key=_KIND_RANK.__getitem__)
    same = {d for d in dtypes if DTYPES[d].kind == top}
    if same == {"f16", "bf16"}:
        return "f32"
    if "u8" in same and len(same) > 1:
        same = (same - {"u8"}) | ({"i16"} if same == {"u8", "i8"} else set())
    return max(same, key=_RANK.__getitem__)


def accumulator(dtype: str) -> str:
    """The type that values of `dtype` are computed and accumulated in."""
    if DTYPES[dtype].kind == "float":
        return "f64" if dtype == "f64" else "f32"
    return dtype
