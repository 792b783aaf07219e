"""Really compiling a kernel.py for a GPU that need not be there: registers, spills, dots.

A call is played through the file's own host code with shapes in place of tensors, and each launch
is compiled with the very specialization that Triton would choose for contiguous arguments: pointers
and multiples of 16 marked as such, extents and strides of 1 folded. Launches compile side by side,
each in a process of its own, and what they told is kept in a `Cache`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from superopt.emit.assembly import dots, inner_loop, resources
from superopt.emit.cache import Cache, cache_folder
from superopt.errors import SuperoptError, UsageError

SECONDS = 30  # of the processor for one launch; a kernel that fits its registers takes one or two
PATIENCE = 8.0  # times as long by the clock, on a machine that does other things too
FORMAT = 1  # of what is kept; another number when CompileStats or how it is found changes
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
    `loop`: instructions of a turn of the inner loop by kind (`assembly.KINDS`), where asked for.
    """

    kernel: str
    target: str
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    dots: tuple[str, ...] = ()
    error: str = ""
    loop: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.error

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CompileStats:
        return CompileStats(**{**data, "dots": tuple(data["dots"])})


@dataclass(frozen=True)
class Launch:
    """A captured launch: a jitted function, its programs and its arguments."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    options: Mapping[str, Any]


Sizes = Mapping[str, int]


def compile_for(
    source: str | Path, sizes: Sizes, target: str, loop: bool = False
) -> list[CompileStats]:
    """Compile every launch of a kernel.py (a path, or its text) for a call of the given sizes.

    `sizes` names every symbol of the file's `RANGES`; `target` is a row of `TARGETS`; `loop` asks
    for the inner loop's instructions. What the compiler refuses is told in `error`. Raises
    SuperoptError under TRITON_INTERPRET=1: Triton's own library is then made for its interpreter,
    so compile in a process of its own.
    """
    return compile_all([(source, sizes)], target, loop)[0]


def compile_all(
    calls: Sequence[tuple[str | Path, Sizes]], target: str, loop: bool = False
) -> list[list[CompileStats]]:
    """`compile_for` of each call, all their launches side by side."""
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    if not isinstance(tl.sum, JITFunction):
        raise SuperoptError("compiling needs a process without TRITON_INTERPRET=1; start another")
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str | Path, Path] = {}
        for n, source in enumerate(dict.fromkeys(source for source, _ in calls)):
            paths[source] = source if isinstance(source, Path) else Path(folder) / f"kernel_{n}.py"
            if isinstance(source, str):
                paths[source].write_text(source)
        modules = {source: load(path) for source, path in paths.items()}
        found = [launches(modules[source], sizes) for source, sizes in calls]
        jobs = [Job.of(launch, target, loop) for own in found for launch in own]
        done = iter(_cached(jobs, Cache(cache_folder() / "compiled")))
        return [[next(done) for _ in own] for own in found]


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


@dataclass(frozen=True)
class Job:
    """A launch as the compiler takes it: a signature, constants, attributes, options, a target."""

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], list[list[Any]]]
    options: Mapping[str, Any]
    target: str
    loop: bool

    @staticmethod
    def of(launch: Launch, target: str, loop: bool = False) -> Job:
        names = launch.kernel.arg_names
        given = dict(zip(names, launch.args, strict=False)) | dict(launch.options)
        options = {k: given.pop(k) for k in ("num_warps", "num_stages")}
        values = {k: given.pop(k) for k in names}  # constants go by position
        assert not given, f"{launch.kernel.__name__} has no parameters {sorted(given)}"
        constexprs = {p.name for p in launch.kernel.params if p.is_constexpr}
        return Job(launch.kernel, *_specialized(values, constexprs), options, target, loop)

    @property
    def key(self) -> list[Any]:
        """All that the result depends on. Where in its file a kernel stands is no part of it."""
        parts = (self.constants, self.attributes)
        marks = [sorted([list(at), value] for at, value in part.items()) for part in parts]
        text = "".join(f.src for f in _with_callees(self.kernel))
        digest = hashlib.sha256(text.encode()).hexdigest()
        facts = [dict(self.signature), *marks, dict(self.options), self.target, self.loop]
        return [FORMAT, version("triton"), self.kernel.__name__, digest, *facts]

    def stats(self, **found: Any) -> CompileStats:
        return CompileStats(self.kernel.__name__, self.target, **found)


def _with_callees(kernel: Any) -> list[Any]:
    """A jitted function and those of its file that it calls, each once."""
    found = [kernel]
    for f in found:
        for name in re.findall(r"[A-Za-z_]\w*", f.src):
            called = f.fn.__globals__.get(name)
            if type(called) is type(kernel) and called not in found:
                found.append(called)
    return found


def _compiled(job: Job) -> CompileStats:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    try:
        source = ASTSource(job.kernel, job.signature, job.constants, job.attributes)
        gpu = GPUTarget(*TARGETS[job.target])
        done = triton.compile(source, target=gpu, options=dict(job.options))
        registers, spilled = resources(done.asm, job.target)
        loop = inner_loop(done.asm) if job.loop else {}
    except Exception as error:  # Triton's own errors have no base class: all are a refusal
        text = f"{type(error).__name__}: {error}".strip()
        return job.stats(error=_too_long() if f"code -{signal.SIGXCPU:d}" in text else text)
    return job.stats(
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=done.metadata.shared,
        dots=dots(done.asm),
        loop=loop,
    )


def _too_long() -> str:
    return f"did not compile in {SECONDS} s"


def _cached(jobs: Sequence[Job], cache: Cache) -> list[CompileStats]:
    """Results in the jobs' order. Kept are those that another run would have too: not those of a
    compiler that crashed, or that the clock ended."""
    keys = [job.key for job in jobs]
    found = {n: CompileStats.from_json(d) for n, k in enumerate(keys) if (d := cache.get(k))}
    left = [n for n in range(len(jobs)) if n not in found]
    for n, (stats, lasting) in zip(left, _side_by_side([jobs[n] for n in left]), strict=True):
        found[n] = stats
        if lasting:
            cache.put(keys[n], asdict(stats))
    return [found[n] for n in range(len(jobs))]


@dataclass
class Child:
    """A forked process that compiles, and is killed where it takes too long: LLVM and ptxas can
    take hours over a tile that is too large, and neither can be interrupted. Its time is counted
    on the processor, so that a busy machine refuses nothing."""

    job: Job
    pid: int
    answer: IO[bytes]
    end: float  # by the clock

    @staticmethod
    def start(job: Job) -> Child:
        receive, send = os.pipe()
        pid = os.fork()
        if not pid:
            os.setsid()  # ptxas is killed with it
            os.close(receive)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            with os.fdopen(send, "wb") as out:
                pickle.dump(_compiled(job), out)
            os._exit(0)
        os.close(send)
        return Child(job, pid, os.fdopen(receive, "rb"), time.monotonic() + SECONDS * PATIENCE)

    def result(self) -> tuple[CompileStats, bool]:
        """What it found, and whether another run would find the same."""
        data = self.answer.read()
        status = self.close()
        if data:
            stats: CompileStats = pickle.loads(data)
            return stats, True
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            return self.job.stats(error=_too_long()), True
        return self.job.stats(error="the compiler crashed"), False

    def close(self) -> int:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.answer.close()
        return os.waitpid(self.pid, 0)[1]


def _side_by_side(jobs: Sequence[Job]) -> list[tuple[CompileStats, bool]]:
    """Compile as many at once as there are processors for us."""
    results: dict[int, tuple[CompileStats, bool]] = {}
    waiting, running = list(enumerate(jobs)), dict[int, Child]()
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                n, job = waiting.pop(0)
                running[n] = Child.start(job)
            patience = min(c.end for c in running.values()) - time.monotonic()
            answers = [c.answer for c in running.values()]
            ready = select.select(answers, [], [], max(patience, 0.0))[0]
            for n, child in list(running.items()):
                if child.answer in ready:
                    results[n] = child.result()
                    del running[n]
                elif time.monotonic() > child.end:
                    child.close()
                    results[n] = child.job.stats(error=_too_long()), False
                    del running[n]
    finally:
        for child in running.values():
            child.close()
    return [results[n] for n in range(len(jobs))]


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
