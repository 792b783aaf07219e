"""Microseconds of host time in a call of an emitted kernel: guards, allocation, way to the launch.

    python benchmarks/host_overhead.py [DIR/NAME ...]

The launch is stubbed out, so no GPU is needed; inputs are CPU tensors of the least sizes, which
take the path of a CUDA call but for entering the tensors' device. Searches
examples/rmsnorm_linear.py where no folder is named. Exits 1 where a median exceeds 15 us.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # else a call with CPU tensors runs `reference`

import torch

import superopt
from superopt.api import load
from superopt.spec import load_specs

LIMIT_US = 15.0
CALLS, ROUNDS = 200, 50


class Stub:
    """A jitted function that accepts a launch and does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, **kwargs: Any) -> None:
        pass


def stub_launches(module: ModuleType) -> None:
    for name, value in vars(module).items():
        if type(value).__module__.startswith("triton.runtime"):
            setattr(module, name, Stub())


def example_inputs(module: ModuleType) -> list[torch.Tensor]:
    """Tensors of the least sizes that the kernel takes, their contents uninitialised."""
    sizes = {name: low for name, (low, _) in module.RANGES.items()}
    shapes = ([eval(str(e), {}, sizes) for e in shape] for _, shape in module.SIGNATURE.values())
    dtypes = (dtype for dtype, _ in module.SIGNATURE.values())
    return [torch.empty(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]


def overhead_us(folder: Path) -> list[float]:
    """Microseconds a call, a figure for each round."""
    module = load(folder / "kernel.py")
    call = getattr(module, json.loads((folder / "report.json").read_text())["spec"]["name"])
    stub_launches(module)
    inputs = example_inputs(module)
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call(*inputs)
        rounds.append((time.perf_counter() - start) / CALLS * 1e6)
    return rounds


def main() -> int:
    folders = [Path(a) for a in sys.argv[1:]]
    if not folders:
        (spec,) = load_specs(Path(__file__).parents[1] / "examples" / "rmsnorm_linear.py")
        kept = superopt.search(spec)
        folders = [kept.folder]
    torch.set_grad_enabled(False)
    failed = False
    for folder in folders:
        rounds = overhead_us(folder)
        median = statistics.median(rounds)
        failed |= median > LIMIT_US
        print(f"{folder.name:20} median {median:.1f} us, fastest round {min(rounds):.1f} us")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
