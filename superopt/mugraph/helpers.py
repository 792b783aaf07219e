"""Scalar functions that Triton lacks, or has only where its interpreter cannot run them.

Each entry is the text of one jitted function, put into a kernel.py that uses it. They are accurate
to a few units in the last place in fp32; infinities, NaN and small arguments included.
Polynomials are Taylor's unless a source is named.
"""

from __future__ import annotations

import re

_SOURCES = '''
def maximum(a, b):
    """The larger; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


def minimum(a, b):
    """The smaller; NaN if either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


def multiply(a, b):
    return a * b


def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


def sign_int(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


def round_even(x):
    """To the nearest integer, halves to even."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2.0 * tl.floor(low * 0.5) == 1.0
    up = (rest > 0.5) | ((rest == 0.5) & odd)
    return tl.where(up, low + 1.0, low)


def fmod(a, b):
    """The remainder with the sign of the dividend."""
    return a % b


def fmod_int(a, b):
    return a % b


def remainder(a, b):
    """The remainder with the sign of the divisor."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


def remainder_int(a, b):
    """The remainder with the sign of the divisor."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


def floor_divide(a, b):
    """a / b rounded down, exact where the quotient of the rounded remainder is (as torch does)."""
    rest = a % b
    low = (a - rest) / b
    low = tl.where((rest != 0) & ((rest < 0) != (b < 0)), low - 1.0, low)
    nearest = tl.floor(low + 0.5)
    return tl.where(b == 0, a / b, tl.where(low == low, nearest, low))


def floor_divide_int(a, b):
    """a / b rounded down."""
    quotient = a // b
    return tl.where((a % b != 0) & ((a < 0) != (b < 0)), quotient - 1, quotient)


def power(a, b):
    """a ** b, by way of fp64: fp32 would lose the low bits of b * log2(a)."""
    base = a.to(tl.float64)
    exponent = b.to(tl.float64)
    size = tl.exp2(exponent * tl.log2(tl.abs(base)))
    half = exponent * 0.5
    whole = tl.floor(exponent) == exponent
    odd = whole & (tl.floor(half) != half)
    negative = (base < 0) | ((base == 0) & (1.0 / base < 0))
    result = tl.where(negative & odd, -size, size)
    result = tl.where((base < 0) & (base > -float("inf")) & (whole == 0), float("nan"), result)
    result = tl.where((exponent == 0) | (base == 1.0), 1.0, result)
    result = tl.where((base == -1.0) & (tl.abs(exponent) == float("inf")), 1.0, result)
    return result.to(a.dtype)


def power_int(a, b):
    """a ** b for exponents of 0 or more, by squaring."""
    result = a * 0 + 1
    for _ in range(32):
        result = tl.where((b & 1) != 0, result * a, result)
        a = a * a
        b = b >> 1
    return result


def expm1(x):
    """exp(x) - 1 without cancellation near 0."""
    tail = 1.9841270e-4 + x * (2.4801587e-5 + x * 2.7557319e-6)
    tail = 4.1666667e-2 + x * (8.3333333e-3 + x * (1.3888889e-3 + x * tail))
    near = x + x * x * (0.5 + x * (1.6666667e-1 + x * tail))
    return tl.where(tl.abs(x) < 0.5, near, tl.exp(x) - 1.0)


def log1p(x):
    """log(1 + x) = 2 atanh(x / (2 + x)) near 0."""
    s = x / (2.0 + x)
    t = s * s
    tail = 1.1111111e-1 + t * (9.0909091e-2 + t * (7.6923077e-2 + t * 6.6666667e-2))
    tail = 3.3333333e-1 + t * (0.2 + t * (1.4285714e-1 + t * tail))
    near = x - s * (x - 2.0 * t * tail)
    return tl.where(tl.abs(x) < 0.5, near, tl.log(1.0 + x))


def tanh(x):
    """Cephes tanhf: a polynomial below 0.625, 1 - 2 / (exp(2 x) + 1) from there on."""
    size = tl.abs(x)
    z = x * x
    tail = (2.06390887954e-2 - 5.70498872745e-3 * z) * z - 5.37397155531e-2
    near = ((tail * z + 1.33314422036e-1) * z - 3.33332819422e-1) * z * x + x
    far = 1.0 - 2.0 / (tl.exp2(2.8853900817779268 * size) + 1.0)
    return tl.where(size < 0.625, near, tl.where(x < 0, -far, far))


def sinh(x):
    half = tl.exp(0.5 * tl.abs(x))
    far = 0.5 * half * half - 0.5 / half / half
    t = x * x
    tail = 1.9841270e-4 + t * (2.7557319e-6 + t * 2.5052108e-8)
    near = x + x * t * (1.6666667e-1 + t * (8.3333333e-3 + t * tail))
    return tl.where(tl.abs(x) < 1.0, near, tl.where(x < 0, -far, far))


def cosh(x):
    half = tl.exp(0.5 * tl.abs(x))
    return 0.5 * half * half + 0.5 / half / half


def asinh(x):
    size = tl.abs(x)
    t = tl.minimum(size, 1e9)
    near = log1p(t + t * t / (1.0 + tl.sqrt(1.0 + t * t)))
    result = tl.where(size > 1e9, tl.log(size) + 0.6931471805599453, near)
    return tl.where(x < 0, -result, tl.where(x == 0, x, result))


def acosh(x):
    t = tl.minimum(x, 1e9) - 1.0
    near = log1p(t + tl.sqrt(t * (2.0 + t)))
    result = tl.where(x > 1e9, tl.log(x) + 0.6931471805599453, near)
    return tl.where(x >= 1.0, result, float("nan"))


def atanh(x):
    size = tl.abs(x)
    result = 0.5 * log1p(2.0 * size / (1.0 - size))
    result = tl.where(size == 1.0, float("inf"), result)
    return tl.where(x < 0, -result, tl.where(x == 0, x, result))


def atan(x):
    """Cephes atanf: reduced to |x| <= tan(pi/8)."""
    size = tl.abs(x)
    large = size > 2.414213562373095
    middle = (size > 0.4142135623730950) & (large == 0)
    start = tl.where(large, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    t = tl.where(large, -1.0 / size, tl.where(middle, (size - 1.0) / (size + 1.0), size))
    z = t * t
    tail = (8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1
    result = start + ((tail * z - 3.33329491539e-1) * z * t + t)
    return tl.where(x < 0, -result, tl.where(x == 0, x, result))


def asin(x):
    """Cephes asinf: asin(x) = pi/2 - 2 asin(sqrt((1 - x) / 2)) beyond 1/2."""
    size = tl.abs(x)
    far = size > 0.5
    z = tl.where(far, 0.5 * (1.0 - size), size * size)
    t = tl.where(far, tl.sqrt(z), size)
    tail = ((4.2163199048e-2 * z + 2.4181311049e-2) * z + 4.5470025998e-2) * z
    inner = ((tail + 7.4953002686e-2) * z + 1.6666752422e-1) * z * t + t
    result = tl.where(far, 1.5707963267948966 - 2.0 * inner, inner)
    return tl.where(x < 0, -result, tl.where(x == 0, x, result))


def acos(x):
    """acos(x) = 2 asin(sqrt((1 - x) / 2)) from 1/2 up."""
    high = 2.0 * asin(tl.sqrt(0.5 * (1.0 - x)))
    low = 3.141592653589793 - 2.0 * asin(tl.sqrt(0.5 * (1.0 + x)))
    return tl.where(x > 0.5, high, tl.where(x < -0.5, low, 1.5707963267948966 - asin(x)))


def atan2(y, x):
    """The angle of the point (x, y), in (-pi, pi]."""
    infinite = (tl.abs(x) == float("inf")) & (tl.abs(y) == float("inf"))
    ratio = tl.where(infinite, 1.0, tl.abs(y) / tl.abs(x))
    ratio = tl.where((x == 0) & (y == 0), 0.0, ratio)
    angle = atan(ratio)
    left = (x < 0) | ((x == 0) & (1.0 / x < 0))
    angle = tl.where(left, 3.141592653589793 - angle, angle)
    below = (y < 0) | ((y == 0) & (1.0 / y < 0))
    return tl.where(below, -angle, angle)
'''


def _split() -> dict[str, str]:
    parts = re.split(r"(?m)^(?=def )", _SOURCES)
    return {p[4 : p.index("(")]: "@triton.jit\n" + p.strip() + "\n" for p in parts if p.strip()}


_DOT_BF16 = """
if triton.knobs.runtime.interpret:  # it keeps bfloat16 as bits, and would multiply those

    @triton.jit
    def dot_bf16(a, b, acc=None):
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)

else:

    @triton.jit
    def dot_bf16(a, b, acc=None):
        return tl.dot(a, b, acc)
"""
_ALONG = """
if triton.knobs.runtime.interpret:  # it calls a function of two for each element

    @triton.jit
    def {0}_along(x, axis: tl.constexpr):
        found = tl.{0}(x, axis=axis)
        return tl.where(tl.max((x != x).to(tl.int32), axis=axis) > 0, float("nan"), found)

else:

    @triton.jit
    def {0}_along(x, axis: tl.constexpr):
        return tl.reduce(x, axis, {0}imum)  # tl.{0} skips NaN
"""

HELPERS: dict[str, str] = _split() | {
    "dot_bf16": _DOT_BF16,
    "max_along": _ALONG.format("max"),
    "min_along": _ALONG.format("min"),
}
"""Name -> text. A name that ends in `_int` serves integers."""


def with_needed(names: set[str]) -> list[str]:
    """The names with all that they call in turn, in the table's order (callees stand first)."""
    needed: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            called = set(re.findall(r"(?<![\w.])\w+(?=[()])", HELPERS[name])) & HELPERS.keys()
            stack.extend(called - {name})
    return [name for name in HELPERS if name in needed]
