"""The emitter's scalar functions in the interpreter, in units in the last place of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from superopt.emit.compile import load
from superopt.mugraph.helpers import HELPERS, with_needed

COUNT = 1 << 13
SPECIAL = np.float32(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 1.5, 2.5, -1.5, 1e-8, -1e-8, 1e-30, 88,
     -88, 89, 100, -104, 1e10, -1e10, 3e38, 2, -2, 3, -3, 0.3, -0.3, 0.49999997, 1e9, 7, -7]
)  # fmt: skip
MEANING: dict[str, Any] = {
    "tanh": np.tanh, "expm1": np.expm1, "log1p": np.log1p, "sinh": np.sinh, "cosh": np.cosh,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "atan": np.arctan,
    "asin": np.arcsin, "acos": np.arccos, "sign": np.sign, "trunc": np.trunc,
    "round_even": np.round, "power": np.power, "remainder": np.mod, "fmod": np.fmod,
    "floor_divide": np.floor_divide, "atan2": np.arctan2, "maximum": np.maximum,
    "minimum": np.minimum,
}  # fmt: skip
BINARY = ("power", "remainder", "fmod", "floor_divide", "atan2", "maximum", "minimum")
EXACT = ("remainder", "fmod", "floor_divide")  # of float32, as torch computes them


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    parts = ["import triton\nimport triton.language as tl\n"]
    parts += [HELPERS[h] for h in with_needed(set(MEANING))]
    for name in MEANING:
        call = f"{name}(x, y)" if name in BINARY else f"{name}(x)"
        parts.append(f"""
@triton.jit
def run_{name}(x_ptr, y_ptr, out_ptr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    tl.store(out_ptr + i, {call})
""")
    path: Path = tmp_path_factory.mktemp("helpers") / "kernel.py"
    path.write_text("\n\n".join(parts))
    return load(path)


def arguments(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    sizes = {"acosh": (-6, 9), "asin": (-4, 0), "acos": (-4, 0), "atanh": (-4, 0)}
    low, high = sizes.get(name, (-8, 2.2))
    x = np.float32(rng.choice([-1, 1], COUNT) * 10 ** rng.uniform(low, high, COUNT))
    x = np.float32(1 + np.abs(x)) if name == "acosh" else x
    x = np.where(x <= -1, -1 / (x - 1e-3), x) if name == "log1p" else x
    x = np.abs(x) if name == "power" else x
    y = np.float32(rng.choice([-1, 1], COUNT) * 10 ** rng.uniform(-2, 1.2, COUNT))
    pairs = np.meshgrid(SPECIAL, SPECIAL)
    x[: SPECIAL.size**2], y[: SPECIAL.size**2] = pairs[0].ravel(), pairs[1].ravel()
    return x.astype(np.float32), y


@pytest.mark.parametrize("name", MEANING)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_within_six_units_in_the_last_place(module: Any, name: str) -> None:
    x, y = arguments(name)
    out = torch.empty(COUNT)
    getattr(module, f"run_{name}")[(1,)](torch.from_numpy(x), torch.from_numpy(y), out, COUNT)
    operands = [a if name in EXACT else a.astype(np.float64) for a in (x, y)]
    want = MEANING[name](*(operands if name in BINARY else operands[:1]))
    got, rounded = out.numpy(), want.astype(np.float32)
    special = ~np.isfinite(rounded) | ~np.isfinite(got)
    np.testing.assert_array_equal(got[special], rounded[special])
    error = np.abs(got.astype(np.float64) - want)[~special]
    assert (error / np.spacing(np.abs(rounded[~special]))).max() <= 6
