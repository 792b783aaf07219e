"""`superopt profile`: machine facts measured by small Triton kernels.

Each benchmark yields cases; its docstring has the formula of a case's rate. Facts that no case
measures are the base profile's, with its source. The peaks of matrix products are among these: the
model scales them by what a tile shape reaches, and what tile shapes reached stands in
`measurements`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from superopt.cost_model.beforehand import beforehand
from superopt.cost_model.profile import read_profile
from superopt.cost_model.timing import (
    Call,
    Clock,
    environment,
    interleaved,
    write_json,
)

SECONDS = 0.1  # for the rounds of a case
LAUNCHES = 100  # empty kernels in a row


@dataclass(frozen=True)
class Case:
    """A call that does `amount` of `unit` (bytes, operations, launches)."""

    benchmark: str
    parameters: Mapping[str, Any]
    amount: float
    unit: str
    call: Call
    flush: bool = True
    graph: bool = False


@triton.jit
def copy_kernel(src, dst, n, programs, BLOCK: tl.constexpr):
    for start in range(tl.program_id(0) * BLOCK, n, programs * BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(dst + at, tl.load(src + at, mask=at < n), mask=at < n)


@triton.jit
def reread_kernel(src, out, blocks, turns, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in range(turns):
        total += tl.load(
            src + (pid + 7 * turn) % blocks * BLOCK + tl.arange(0, BLOCK),
            cache_modifier=".cg",  # not from L1
        )
    tl.store(out + pid, tl.sum(total))


@triton.jit
def dot_kernel(
    a, b, out, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    wide = N // BLOCK_N
    row, column = tl.swizzle2d(pid // wide, pid % wide, M // BLOCK_M, wide, 8)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(a + m[:, None] * K + k[None, :])
        right = tl.load(b + k[:, None] * N + n[None, :])
        acc = tl.dot(left, right, acc, input_precision="tf32")
    tl.store(out + m[:, None] * N + n[None, :], acc)


@triton.jit
def chain_kernel(out, turns, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-6
    for _ in range(turns):
        if OP == "exp":
            x = tl.exp(-x)
        elif OP == "log":
            x = tl.log(x + 2.0)
        elif OP == "rsqrt":
            x = tl.rsqrt(x + 1.0)
        else:
            x = x * 0.999 + 0.001
    tl.store(out + at, x)


@triton.jit
def rows_kernel(x, out, width, MAX: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row.to(tl.int64) * width + at, mask=at < width, other=0.0)
    tl.store(out + row, tl.max(values) if MAX else tl.sum(values))


@triton.jit
def empty_kernel(out):
    pass


@triton.jit
def atomic_kernel(out, addresses, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + at % addresses, 1.0)


Run = Callable[[str, bool], Iterator[Case]]


def _floats(n: int, device: str) -> torch.Tensor:
    return torch.randn(n, device=device)


def copies(device: str, toy: bool) -> Iterator[Case]:
    """DRAM bandwidth: a copy of n bytes reads and writes them; rate = 2 n / t."""
    sizes = (1 << 12,) if toy else (1 << 20, 1 << 24, 1 << 28, 1 << 31)
    for size in sizes:
        src, dst = _floats(size // 4, device), torch.empty(size // 4, device=device)
        for programs in (1, 2) if toy else (132, 264, 528, 2112, 16896):
            call = partial(
                copy_kernel[(programs,)], src, dst, size // 4, programs, BLOCK=2048, num_warps=8
            )
            yield Case("copy", {"bytes": size, "programs": programs}, 2 * size, "byte", call)


def rereads(device: str, toy: bool) -> Iterator[Case]:
    """L2 bandwidth: programs read blocks of a buffer it holds; rate = programs turns block / t."""
    for size in (1 << 14,) if toy else (1 << 22, 1 << 23, 1 << 24):
        blocks, turns = size // 4 // 1024, 2 if toy else 256
        src = _floats(size // 4, device)
        for programs in (2,) if toy else (1056, 2112, 4224):
            out = torch.empty(programs, device=device)
            call = partial(reread_kernel[(programs,)], src, out, blocks, turns, BLOCK=1024)
            done = programs * turns * 4096
            yield Case("l2", {"bytes": size, "programs": programs}, done, "byte", call, flush=False)


TILES = ((128, 256, 64), (128, 128, 64), (64, 256, 64), (64, 64, 64), (16, 128, 128))


def dots(device: str, toy: bool) -> Iterator[Case]:
    """Matrix products C = A B by element type, tile, warps and stages; rate = 2 M N K / t."""
    side = 128 if toy else 8192
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty(side, side, device=device)
        few = toy or dtype != torch.float16
        for m, n, k in ((64, 64, 64),) if toy else TILES[:2] if few else TILES:
            k = k // 2 if dtype == torch.float32 else k
            for warps, stages in ((4, 3),) if toy else ((4, 3), (8, 3), (8, 4)):
                call = partial(
                    dot_kernel[(side // m * (side // n),)], a, b, out, side, side, side,
                    BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, num_warps=warps, num_stages=stages,
                )  # fmt: skip
                name = "tf32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
                given = {"dtype": name, "tile": f"{m}x{n}x{k}", "warps": warps, "stages": stages}
                yield Case("dot", given, 2 * side**3, "operation", call)


def chains(device: str, toy: bool) -> Iterator[Case]:
    """A chain of exp, log, rsqrt or fused multiply-adds on each lane; rate = lanes turns / t."""
    programs, turns = (2, 2) if toy else (4224, 1024)
    out = torch.empty(programs * 1024, device=device)
    for op in ("exp", "log", "rsqrt", "fma"):
        call = partial(chain_kernel[(programs,)], out, turns, OP=op, BLOCK=1024)
        yield Case("chain", {"op": op}, programs * 1024 * turns, "operation", call)


def rows(device: str, toy: bool) -> Iterator[Case]:
    """A program reduces a row that it holds; rate = rows width 4 / t, in bytes."""
    total = 1 << 12 if toy else 1 << 27
    x = _floats(total, device)
    for width in (64,) if toy else (1024, 4096, 16384):
        out = torch.empty(total // width, device=device)
        for largest in (False, True):
            warps = 4 if width < 8192 else 8
            call = partial(
                rows_kernel[(total // width,)], x, out, width,
                MAX=largest, BLOCK=width, num_warps=warps,
            )  # fmt: skip
            given = {"op": "max" if largest else "sum", "width": width, "warps": warps}
            yield Case("rows", given, 4 * total, "byte", call)


def launches(device: str, toy: bool) -> Iterator[Case]:
    """Empty kernels in a row, from the host and in a graph; seconds of each = t / launches."""
    out, count = torch.empty(1, device=device), 2 if toy else LAUNCHES

    def call() -> None:
        for _ in range(count):
            empty_kernel[(1,)](out)

    for graph in (False, True):
        yield Case("launch", {"graph": graph}, count, "launch", call, False, graph)


def atomics(device: str, toy: bool) -> Iterator[Case]:
    """Atomic additions of fp32 to so many addresses in turn; rate = programs block / t."""
    programs = 2 if toy else 16896
    for addresses in (1, 64) if toy else (1, 1024, 1 << 20):
        out = torch.zeros(addresses, device=device)
        call = partial(atomic_kernel[(programs,)], out, addresses, BLOCK=256)
        yield Case("atomic", {"addresses": addresses}, programs * 256, "operation", call)


PARTS = 8  # of the cases, compiled side by side


def compile_part(part: int) -> str:
    """In a process of its own: call every PARTS-th case once."""
    cases = (case for run in BENCHMARKS for case in run("cuda", False))
    for case in islice(cases, part, None, PARTS):
        with suppress(Exception):  # it is met again, and recorded, where it is timed
            case.call()
    torch.cuda.empty_cache()
    return ""


BENCHMARKS: tuple[Run, ...] = (copies, launches, chains, rereads, rows, atomics, dots)


@dataclass(frozen=True)
class Fact:
    """A fact of the profile: the best of some cases, as a rate or its inverse (seconds each)."""

    name: str
    benchmark: str
    where: Mapping[str, Any]
    inverse: bool = False


FACTS = (
    Fact("dram_bytes_per_s", "copy", {}),
    Fact("l2_bytes_per_s", "l2", {}),
    Fact("scalar_per_s", "chain", {"op": "fma"}),
    Fact("special_per_s", "chain", {"op": "exp"}),
    Fact("launch_s", "launch", {"graph": True}, inverse=True),
)
LARGE = 1 << 28  # bytes of a copy that no L2 holds


def measure_profile(out: Path, base: str, clock: Clock) -> list[str]:
    """Run all benchmarks, writing the profile after each; returns lines on what was measured.

    Raises UsageError where `base` is no profile.
    """
    data, about = read_profile(base), environment(clock)
    found: list[dict[str, Any]] = []
    if clock.kind == "measured":
        wait(beforehand(partial(compile_part, n) for n in range(PARTS)))
    for run in BENCHMARKS:
        found += [_measured(c, clock) for c in run(clock.device, clock.kind == "rehearsed")]
        known = _facts(found, about)
        profile = {"name": data["name"], "arch": data["arch"], "kind": clock.kind}
        profile |= {"facts": data["facts"] | known, "base": base, "environment": about}
        write_json(out, profile | {"measurements": found})  # what is cut here has the rest
    lines = [f"{name}: {fact['value']:.4g}, {fact['source']}" for name, fact in known.items()]
    failed = [r for r in found if "note" in r]
    lines += [f"failed: {r['benchmark']} {r['parameters']}: {r['note']}" for r in failed]
    return [*lines, f"{clock.kind}: {len(found) - len(failed)} cases, in {out}"]


def _facts(found: list[dict[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that what was found so far tells."""
    facts: dict[str, Any] = {}
    for fact in FACTS:
        row = _best(found, fact, about["kind"] == "rehearsed")
        if row is not None:
            facts[fact.name] = _value(row, fact, about)
    if "dram_bytes_per_s" in facts:
        facts["dram_fraction"] = {"value": 1.0, "source": "dram_bytes_per_s is that of a copy"}
    if about["kind"] == "measured":
        count = torch.cuda.get_device_properties().multi_processor_count
        facts["multiprocessors"] = {"value": count, "source": "the driver"}
    return facts


def _measured(case: Case, clock: Clock) -> dict[str, Any]:
    row = {"benchmark": case.benchmark, "parameters": dict(case.parameters), "kind": clock.kind}
    if case.graph:
        case.call()  # compiled before it is captured
        case = replace(case, call=clock.graph(case.call))
    timing = interleaved({"case": case.call}, clock, SECONDS, case.flush)["case"]
    if isinstance(timing, str):
        return row | {"note": timing}
    rates = {f"{case.unit}s_per_s": case.amount / timing.median_us * 1e6}
    return row | asdict(timing) | {"amount": case.amount} | rates


def _best(found: list[dict[str, Any]], fact: Fact, toy: bool) -> dict[str, Any] | None:
    fitting = [
        r
        for r in found
        if r["benchmark"] == fact.benchmark
        and "note" not in r
        and fact.where.items() <= r["parameters"].items()
        and (toy or fact.benchmark != "copy" or r["parameters"]["bytes"] >= LARGE)
    ]
    return max(fitting, key=lambda r: r["amount"] / r["median_us"], default=None)


def _value(row: Mapping[str, Any], fact: Fact, about: Mapping[str, Any]) -> dict[str, Any]:
    """A fact with its quartiles, in seconds each or a second."""
    seconds = {"value": row["median_us"], "low": row["low_us"], "high": row["high_us"]}
    each = {k: us * 1e-6 / row["amount"] for k, us in seconds.items()}
    if not fact.inverse:
        each = {"value": 1 / each["value"], "low": 1 / each["high"], "high": 1 / each["low"]}
    given = ", ".join(f"{k} {v}" for k, v in row["parameters"].items())
    source = f"{about['kind']} {about['date']} on {about['device']}: {row['benchmark']} ({given})"
    return each | {"source": source}
