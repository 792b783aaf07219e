"""Searched kernels, really run on a GPU at odd sizes and compared with their reference in float64.

SUPEROPT_KERNELS names a folder; every kernel.py below it runs. Triton must not interpret:

    TRITON_INTERPRET=0 SUPEROPT_KERNELS=DIR pytest -m gpu tests/test_gpu.py

`benchmarks/gpu_visit.sh --rehearse` runs the same on the CPU, in the interpreter.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import triton

from superopt.bench import Kernel, check

KERNELS = os.environ.get("SUPEROPT_KERNELS", "")
FOLDERS = sorted(p.parent for p in Path(KERNELS).rglob("kernel.py")) if KERNELS else []
REHEARSE = os.environ.get("SUPEROPT_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSE else "cuda"
SIZES = (7, 1) if REHEARSE else (129, 1, 17)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not FOLDERS, reason="SUPEROPT_KERNELS names no folder with kernels"),
    pytest.mark.skipif(
        not (REHEARSE or torch.cuda.is_available()), reason="no CUDA device is visible"
    ),
    pytest.mark.skipif(
        triton.knobs.runtime.interpret and not REHEARSE, reason="set TRITON_INTERPRET=0"
    ),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_kernel_is_right(folder: Path, size: int) -> None:
    """At sizes that no tile divides; a second symbol takes another size."""
    kernel = Kernel.of(folder)
    ranges = kernel.module.RANGES
    if not ranges and size != SIZES[0]:
        pytest.skip("its sizes are fixed: it has run")
    odd = {
        s: min(max(size + 2 * n, low), high) for n, (s, (low, high)) in enumerate(ranges.items())
    }
    at, errors = check(kernel, {"kernel": kernel.function}, odd, size, DEVICE)
    error = errors["kernel"]
    assert not isinstance(error, str), error
    assert error <= 1, f"{folder.name} at {at}, seed {size}: {error:.3g} of what is allowed"
