"""What the compiler made of a kernel: registers, spills, and what its inner loop executes.

NVIDIA's code is read by the cuobjdump and nvdisasm that come with Triton; AMD's is the assembly
text that Triton keeps.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from superopt.errors import SuperoptError

# The first pattern that an instruction's name starts with says what it is; the rest is `other`
# (moves, branches, barriers).
SASS = {
    "tensor": r"[HQIDO]G?MMA|UTC\w*MMA",
    "special": r"MUFU",
    "memory": r"LD|ST|ATOM|RED\b|UBLK|UTMA",
    "float": r"F(ADD|MUL|FMA|MNMX|SEL|SETP|CHK|SWZ|2F)|H(ADD|MUL|FMA|MNMX|SET)|D(ADD|MUL|FMA)|F2",
    "integer": r"U?(IMAD|IADD|VIADD|LEA|LOP|SHF|SHL|SHR|ISETP|IMNMX|VIMNMX|PRMT|SGXT|IABS|I2)",
}
GCN = {
    "tensor": r"v_(mfma|smfmac)",
    "special": r"v_(exp|log|rsq|rcp|sqrt|sin|cos)_",
    "memory": r"(global|buffer|flat|scratch|ds|s_load|s_buffer)_",
    "float": r"v_(pk_)?\w+_(f16|f32|f64|bf16)",
    "integer": r"[sv]_\w+_(u16|i16|u32|i32|u64|i64|b32|b64)",
}
KINDS = (*SASS, "other")


def resources(asm: Mapping[str, Any], target: str) -> tuple[int, int]:
    """Registers of a thread, and the bytes of them that it spills."""
    if "amdgcn" in asm:
        count = re.search(r"\.vgpr_count:\s*(\d+)", asm["amdgcn"])
        spills = re.search(r"\.vgpr_spill_count:\s*(\d+)", asm["amdgcn"])
        return int(count.group(1)) if count else 0, 4 * int(spills.group(1)) if spills else 0
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        cubin.write_bytes(asm["cubin"])
        shown = _run(_tool("cuobjdump"), "-res-usage", str(cubin))
        registers, stack = (int(n) for n in _found(r"REG:(\d+) STACK:(\d+)", shown))
        if not stack:
            return registers, 0
        # a stack is not yet a spill (sin has a table on it): ptxas tells them apart
        ptx.write_text(asm["ptx"])
        arch = _found(r"\.target (sm_\w+)", asm["ptx"])[0]
        ptxas = _tool("ptxas-blackwell" if target == "sm_100" else "ptxas")
        shown = _run(ptxas, "-v", f"--gpu-name={arch}", str(ptx), "-o", str(cubin))
        return registers, int(_found(r"(\d+) bytes spill stores", shown)[0])


def _tool(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise SuperoptError(f"the CUDA tools printed no {pattern!r}: {text[:200]}")
    return match.groups()


_INSTRUCTIONS = ("wgmma", "mma.sync", "tcgen05", "mfma")


def dots(asm: Mapping[str, Any]) -> tuple[str, ...]:
    """The tensor-core instructions in use."""
    text = asm.get("ptx") or asm.get("amdgcn") or ""
    found = [name for name in _INSTRUCTIONS if re.search(rf"\b(v_)?{re.escape(name)}", text)]
    if "wgmma" in found and not re.search(r"(?<!wg)mma\.sync", text.replace("wgmma.mma_async", "")):
        found = [name for name in found if name != "mma.sync"]
    return tuple(found)


# -- the inner loop ------------------------------------------------------------------------------


def inner_loop(asm: Mapping[str, Any]) -> dict[str, int]:
    """How many instructions of each of `KINDS` a turn of the busiest innermost loop has.

    The busiest has most tensor-core instructions; of equals, the shortest, as it has no masks to
    apply. Without such instructions it is the longest. {} where nothing loops.
    """
    if "amdgcn" in asm:
        return mix(asm["amdgcn"], GCN)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        return mix(_run(_tool("nvdisasm"), "-c", str(cubin)), SASS)


def mix(listing: str, patterns: Mapping[str, str]) -> dict[str, int]:
    """`inner_loop` of a listing with labels, as nvdisasm and AMD's assembler write them.

    >>> mix(".L_x_1:\\n  MUFU.EX2 R1, R1 ;\\n  FADD R2, R2, R1 ;\\n  @P0 BRA `(.L_x_1) ;", SASS)
    {'tensor': 0, 'special': 1, 'memory': 0, 'float': 1, 'integer': 0, 'other': 1}
    """
    lines = listing.splitlines()
    counts = [_count(lines[a:b], patterns) for a, b in _innermost(lines)]
    return max(counts, key=_busy, default={})


def _busy(counts: Mapping[str, int]) -> tuple[int, int]:
    length = sum(counts.values())
    return counts["tensor"], -length if counts["tensor"] else length


_LABEL = re.compile(r"^(\.L\w+):")
_BRANCH = re.compile(r"\b(?:BRA|s_cbranch_\w+|s_branch)\b[^.]*?(\.L\w+)")
_NAME = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Za-z_][\w.]*)")


def _innermost(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Loops that hold no other: from a label to the last branch back to it."""
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for n, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label.group(1)] = n
        elif (branch := _BRANCH.search(line)) and branch.group(1) in labels:
            ends[labels[branch.group(1)]] = n + 1
    loops = [(a, b) for a, b in ends.items() if b - a > 3]  # less only waits for something
    inside = {x for x in loops for y in loops if x != y and x[0] <= y[0] and y[1] <= x[1]}
    return [x for x in loops if x not in inside]


def _count(lines: Sequence[str], patterns: Mapping[str, str]) -> dict[str, int]:
    counts = dict.fromkeys(KINDS, 0)
    for name in _names(lines):
        kind = next((k for k, p in patterns.items() if re.match(p, name)), "other")
        counts[kind] += 1
    return counts


def _names(lines: Sequence[str]) -> Iterator[str]:
    """The instructions' names; labels, directives and comments have none."""
    for line in lines:
        if (match := _NAME.match(line)) and not _LABEL.match(line) and match.group(1) != "NOP":
            yield match.group(1)
