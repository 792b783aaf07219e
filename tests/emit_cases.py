"""Hand-made µGraphs for the emitter's tests: programs with roles chosen here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from superopt.emit import Notes, emit
from superopt.emit.compile import load
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Axis
from superopt.mugraph.index import value
from superopt.mugraph.program import (
    Branch,
    Choice,
    Config,
    Kernel,
    KernelGraph,
    Program,
    Source,
    Traced,
    illegal,
)

NOTES = Notes("h200", "tested on nothing yet", ("Predicted 1 us.",), ("Nothing was fused.",))
TILE = 16  # no extent of the tests is a multiple of it, and dots take it


def graph(
    program: Program, roles: Mapping[str, str], kernels: Sequence[Sequence[int]] = ()
) -> KernelGraph:
    """A µGraph with the stores grouped by their numbers: each group a kernel of one branch.

    `roles` by axis name; other stored axes are `grid`, other bound ones `whole`.
    """
    groups = kernels or [[n] for n in range(len(program.stores))]
    made = []
    for number, group in enumerate(groups):
        stores = tuple(program.stores[n] for n in group)
        bare = Branch(stores, ())
        stored = {a.name for s in stores for a in s.axes}
        names = {a.name for a in bare.axes}
        chosen = {n: roles.get(n, "grid" if n in stored else "whole") for n in names}
        branch = Branch(stores, tuple(sorted(chosen.items())))
        assert illegal(branch) is None, illegal(branch)
        made.append(Kernel(f"k{number}", (branch,)))
    return KernelGraph(program.name, program.inputs, tuple(made), program.outputs)


def config(kernel: Kernel, tile: int = TILE, **options: int) -> Config:
    split = {a.name for b in kernel.branches for a in b.axes if b.role(a) in ("grid", "loop")}
    return Config(tuple((name, tile) for name in sorted(split)), **options)


def choice(g: KernelGraph, tile: int = TILE, **limits: int) -> Choice:
    return Choice(tuple(sorted(limits.items())), g, tuple(config(k, tile) for k in g.kernels))


def traced(program: Program, source: str = "", returns: str = "") -> Traced:
    returns = returns or ("tensor" if len(program.outputs) == 1 else "tuple")
    return Traced(program, tuple(t.name for t in program.inputs), returns, Source(source))


def emitted(t: Traced, *choices: Choice, notes: Notes = NOTES) -> tuple[str, ModuleType]:
    """The text and the loaded module."""
    text = emit(t, choices, notes)
    folder = Path(tempfile.mkdtemp())
    (folder / "kernel.py").write_text(text)
    return text, load(folder / "kernel.py")


def draw(
    program: Program, sizes: Mapping[str, int], seed: int = 0, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """Random inputs whose last dimension is strided, so that no kernel may rely on contiguity."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for t in program.inputs:
        shape = [value(e, dict(sizes)) for e in t.shape]
        dtype = getattr(torch, DTYPES[t.dtype].torch)
        wide = [*shape[:-1], 2 * shape[-1]] if shape else shape
        if t.bounds is not None:
            low, high = (value(e, dict(sizes)) for e in t.bounds)
            x = torch.randint(low, high, wide, generator=generator).to(dtype)
        elif not dtype.is_floating_point:
            x = torch.randint(
                0 if dtype in (torch.bool, torch.uint8) else -5, 6, wide, generator=generator
            ).to(dtype)
        else:
            x = (torch.randn(wide, generator=generator, dtype=torch.float64) * scale).to(dtype)
        drawn[t.name] = x[..., ::2] if shape else x
    return drawn


def expected(
    program: Program, inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> list[Any]:
    """The outputs by the reference evaluator, in float64."""
    arrays = {n: _array(x) for n, x in inputs.items()}
    results = run_program(program, arrays, sizes)
    return [results[t.name] for t in program.outputs]


def _array(x: torch.Tensor) -> np.ndarray[Any, Any]:
    if x.dtype.is_floating_point:
        return x.double().numpy()
    return x.numpy() if x.dtype == torch.bool else x.long().numpy()


def axis_extent(a: Axis, sizes: Mapping[str, int]) -> int:
    return value(a.extent, dict(sizes))
