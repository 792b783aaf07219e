"""Really compiling a kernel.py for a GPU that need not be there: registers, spills, dots.

A call is played through the file's own host code with shapes in place of tensors, and each launch
is compiled with the very specialization that Triton would choose for contiguous arguments: pointers
and multiples of 16 marked as such, extents and strides of 1 folded.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from superopt.errors import SuperoptError, UsageError

SECONDS = 30.0  # for one launch; a kernel that fits its registers takes one or two
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class CompileStats:
    """One launch, compiled. `error` is empty where it compiled.

    `registers` are a thread's; `spilled_bytes` are a thread's local memory; `shared_bytes` a
    program's; `dots` are the tensor-core instructions in use: wgmma, mma.sync, tcgen05, mfma.
    """

    kernel: str
    target: str
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    dots: tuple[str, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(frozen=True)
class Launch:
    """A captured launch: a jitted function, its programs and its arguments."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    options: Mapping[str, Any]


def compile_for(source: str | Path, sizes: Mapping[str, int], target: str) -> list[CompileStats]:
    """Compile every launch of a kernel.py (a path, or its text) for a call of the given sizes.

    `sizes` names every symbol of the file's `RANGES`; `target` is a row of `TARGETS`. What the
    compiler refuses is told in `error`. Raises SuperoptError under TRITON_INTERPRET=1: Triton's own
    library is then made for its interpreter, so compile in a process of its own.
    """
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    if not isinstance(tl.sum, JITFunction):
        raise SuperoptError("compiling needs a process without TRITON_INTERPRET=1; start another")
    with tempfile.TemporaryDirectory() as folder:
        path = source if isinstance(source, Path) else Path(folder) / "kernel.py"
        if isinstance(source, str):
            path.write_text(source)
        module = load(path)
        return [_within(SECONDS, launch, target) for launch in launches(module, sizes)]


def load(path: Path) -> ModuleType:
    """Import a kernel.py under a name of its own."""
    name = f"superopt_kernel_{path.parent.name}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def launches(module: ModuleType, sizes: Mapping[str, int]) -> list[Launch]:
    """What a call of the given sizes would launch, for contiguous arguments; nothing is run."""
    import torch

    found: list[Launch] = []

    class Captured:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def call(*args: Any, **options: Any) -> None:
                found.append(Launch(self.kernel, grid[0], args, options))

            return call

    tensors = [
        torch.empty([_size(e, sizes) for e in shape], dtype=dtype, device="meta")
        for dtype, shape in module.SIGNATURE.values()
    ]
    module._launch(*tensors, wrap=Captured)
    return found


def _size(extent: int | str, sizes: Mapping[str, int]) -> int:
    return extent if isinstance(extent, int) else int(eval(extent, {}, dict(sizes)))


def _compiled(launch: Launch, target: str) -> CompileStats:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name = launch.kernel.__name__
    names = launch.kernel.arg_names
    given = dict(zip(names, launch.args, strict=False)) | dict(launch.options)
    options = {k: given.pop(k) for k in ("num_warps", "num_stages")}
    values = {k: given.pop(k) for k in names}  # constants go by position
    assert not given, f"{name} has no parameters {sorted(given)}"
    constexprs = {p.name for p in launch.kernel.params if p.is_constexpr}
    signature, constants, attributes = _specialized(values, constexprs)
    try:
        source = ASTSource(launch.kernel, signature, constants, attributes)
        done = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
        registers, spilled = _resources(done.asm, target)
    except Exception as error:  # Triton's own errors have no base class: all are a refusal
        return CompileStats(name, target, error=f"{type(error).__name__}: {error}".strip())
    return CompileStats(name, target, registers, spilled, done.metadata.shared, _dots(done.asm))


def _within(seconds: float, launch: Launch, target: str) -> CompileStats:
    """Compile in a forked child, which is killed if it takes longer: LLVM and ptxas can take hours
    over a tile that is too large, and neither can be interrupted."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()  # ptxas is killed with it
        os.close(receive)
        with os.fdopen(send, "wb") as out:
            pickle.dump(_compiled(launch, target), out)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        ready = select.select([answer], [], [], seconds)[0]
        if not ready:
            os.killpg(child, signal.SIGKILL)
        data = answer.read() if ready else b""
    os.waitpid(child, 0)
    name = launch.kernel.__name__
    if not ready:
        return CompileStats(name, target, error=f"did not compile in {seconds:.0f} s")
    if not data:
        return CompileStats(name, target, error="the compiler crashed")
    stats: CompileStats = pickle.loads(data)
    return stats


def _specialized(
    values: Mapping[str, Any], constexprs: set[str]
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    """The signature, constants and attributes that Triton's launcher would find for the values."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, (name, value) in enumerate(values.items()):
        if name in constexprs or (isinstance(value, int) and value == 1):
            signature[name], constants[(position,)] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if not isinstance(value, int) or value % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _type_of(value: Any) -> str:
    from triton.runtime.jit import type_canonicalisation_dict

    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "*" + str(type_canonicalisation_dict[str(value.dtype).split(".")[-1]])


def _resources(asm: Mapping[str, Any], target: str) -> tuple[int, int]:
    """Registers of a thread, and the bytes of them that it spills."""
    if "amdgcn" in asm:
        count = re.search(r"\.vgpr_count:\s*(\d+)", asm["amdgcn"])
        spills = re.search(r"\.vgpr_spill_count:\s*(\d+)", asm["amdgcn"])
        return int(count.group(1)) if count else 0, 4 * int(spills.group(1)) if spills else 0
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        cubin.write_bytes(asm["cubin"])
        shown = _run(tools / "cuobjdump", "-res-usage", str(cubin))
        registers, stack = (int(n) for n in _found(r"REG:(\d+) STACK:(\d+)", shown))
        if not stack:
            return registers, 0
        # a stack is not yet a spill (sin has a table on it): ptxas tells them apart
        ptx.write_text(asm["ptx"])
        arch = _found(r"\.target (sm_\w+)", asm["ptx"])[0]
        ptxas = tools / ("ptxas-blackwell" if target == "sm_100" else "ptxas")
        shown = _run(ptxas, "-v", f"--gpu-name={arch}", str(ptx), "-o", str(cubin))
        return registers, int(_found(r"(\d+) bytes spill stores", shown)[0])


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise SuperoptError(f"the CUDA tools printed no {pattern!r}: {text[:200]}")
    return match.groups()


_INSTRUCTIONS = ("wgmma", "mma.sync", "tcgen05", "mfma")


def _dots(asm: Mapping[str, Any]) -> tuple[str, ...]:
    text = asm.get("ptx") or asm.get("amdgcn") or ""
    found = [name for name in _INSTRUCTIONS if re.search(rf"\b(v_)?{re.escape(name)}", text)]
    if "wgmma" in found and not re.search(r"(?<!wg)mma\.sync", text.replace("wgmma.mma_async", "")):
        found = [name for name in found if name != "mma.sync"]
    return tuple(found)
