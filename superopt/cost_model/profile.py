"""Machine facts, one JSON file a GPU, each figure with its source (datasheet, paper or
measured)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from superopt.errors import UsageError

KINDS = ("datasheet", "measured")
_FOLDER = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Profile:
    """A GPU. Bandwidths in bytes/s, rates in operations/s, times in s, sizes in bytes."""

    name: str
    arch: str
    kind: str  # datasheet or measured
    multiprocessors: float
    clock_ghz: float
    dram_bytes_per_s: float
    dram_fraction: float  # of it that the best copies reach
    dram_bytes: float
    l2_bytes: float
    l2_bytes_per_s: float
    multiprocessor_bytes_per_s: float
    dram_latency_s: float
    l2_latency_s: float
    dot_f16: float
    dot_bf16: float
    dot_tf32: float
    dot_f32: float
    dot_f64: float
    dot_fraction: float  # of these that the largest tiles reach
    scalar_per_s: float  # lanes of ordinary instructions: what the schedulers issue
    special_per_s: float
    registers_per_multiprocessor: float
    registers_per_thread: float
    threads_per_warp: float
    shared_bytes_per_multiprocessor: float
    shared_bytes_per_program: float
    warps_per_multiprocessor: float
    programs_per_multiprocessor: float
    launch_s: float
    wgmma_rows: float
    mma_sync_fraction: float

    def scaled(self, **factors: float) -> Profile:
        """The same machine with some facts multiplied: `scaled(launch_s=100)`."""
        return replace(self, **{k: getattr(self, k) * v for k, v in factors.items()})

    def dot_rate(self, dtype: str) -> float:
        """Dense matrix-product operations/s for operands of an element type."""
        return float(getattr(self, f"dot_{dtype}", self.scalar_per_s))


def targets() -> list[str]:
    return sorted(p.stem for p in _FOLDER.glob("*.json"))


@cache
def load_profile(target: str) -> Profile:
    """The facts of a GPU by name, or of a file that `superopt profile` wrote (ends in .json).

    Raises UsageError where there is no such profile, or it lacks facts.
    """
    data = read_profile(target)
    if data["kind"] not in KINDS:
        raise UsageError(f"target {target!r}: its figures are {data['kind']}, not measured")
    facts = {name: row["value"] for name, row in data["facts"].items()}
    try:
        return Profile(name=data["name"], arch=data["arch"], kind=data["kind"], **facts)
    except TypeError as error:
        raise UsageError(f"target {target!r}: not a profile of this version: {error}") from error


def read_profile(target: str) -> dict[str, Any]:
    """A profile as it stands in its file: each fact with its source, and all that was measured."""
    path = Path(target) if target.endswith(".json") else _FOLDER / f"{target}.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        return {k: data[k] for k in ("name", "arch", "kind", "facts")} | data
    except FileNotFoundError:
        known = ", ".join(targets())
        raise UsageError(f"unknown target {target!r}; known: {known}, or a .json file") from None
    except (ValueError, KeyError) as error:
        raise UsageError(f"target {target!r}: not a profile: {error!r}") from error
