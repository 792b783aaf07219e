"""`superopt bench`: searched kernels against eager, torch.compile and expert kernels.

Each kernel is first compared with its own `reference` in float64, by the gate's criterion; so is
each peer. Then all are timed in one process, in interleaved rounds, called and as CUDA graphs.
What fails is a row that says so. Rows are kept in bench.json after each size, and not run again.
A rehearsal's files are called rehearsed.*.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from superopt.cost_model.beforehand import beforehand
from superopt.cost_model.microbench import empty_kernel
from superopt.cost_model.profile import load_profile
from superopt.cost_model.timing import (
    Clock,
    CudaClock,
    Timing,
    environment,
    failure,
    interleaved,
    write_csv,
    write_json,
)
from superopt.emit.compile import load
from superopt.errors import CheckFailed, UsageError
from superopt.mugraph.dtypes import DTYPES
from superopt.verify.judge import judge, pooled

Sizes = dict[str, int]
Function = Callable[..., Any]
Peers = Mapping[str, Mapping[str, Function]]
OURS, EAGER, COMPILED, TUNED = "superopt", "eager", "torch.compile", "torch.compile max-autotune"
JUDGED = 1 << 18  # elements of an output that the criterion is asked of, in whole rows
STEMS = {"measured": "bench", "rehearsed": "rehearsed"}  # of the files' names
TOY = 8  # the largest size of a rehearsal
FASTER_THAN_EXPERT, FASTER_THAN_TUNED = 1.1, 2.0  # beyond these, a person should look
NAMES = {getattr(torch, row.torch): row.name for row in DTYPES.values() if row.name != "index"}


@dataclass(frozen=True)
class Kernel:
    """A folder that a search wrote: kernel.py as a module, and report.json."""

    name: str
    module: ModuleType
    report: dict[str, Any]
    digest: str  # of kernel.py

    @staticmethod
    def of(folder: Path) -> Kernel:
        """Raises UsageError where the folder holds no kernel and report."""
        try:
            report = json.loads((folder / "report.json").read_text())
            text = (folder / "kernel.py").read_bytes()
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder}: not a folder that search wrote: {error}") from error
        digest = hashlib.sha256(text).hexdigest()[:16]
        return Kernel(report["spec"]["name"], load(folder / "kernel.py"), report, digest)

    @property
    def function(self) -> Function:
        function: Function = getattr(self.module, self.name)
        return function

    def toy(self, sizes: Mapping[str, int]) -> Sizes:
        """The sizes of a rehearsal, within the kernel's ranges."""
        return {k: max(self.module.RANGES[k][0], min(v, TOY)) for k, v in sizes.items()}

    def inputs(self, sizes: Sizes, seed: int, device: str) -> list[torch.Tensor]:
        """Random inputs; those of two fixed extents, as weights are, scaled to keep sums near 1."""
        generator = torch.Generator(device).manual_seed(seed)
        made = []
        for name, (dtype, extents) in self.module.SIGNATURE.items():
            shape = [_extent(e, sizes) for e in extents]
            ends = self.report["spec"]["tensors"].get(name, {}).get("range") or (0, 4)
            if dtype.is_floating_point:
                fixed = len(shape) == 2 and all(isinstance(e, int) for e in extents)
                tensor = torch.randn(shape, generator=generator, device=device, dtype=dtype)
                made.append(tensor.mul_(min(shape) ** -0.5) if fixed else tensor)
            elif dtype == torch.bool:
                made.append(torch.rand(shape, generator=generator, device=device) < 0.7)
            else:
                low, high = (_extent(e, sizes) for e in ends)
                tensor = torch.randint(low, high, shape, generator=generator, device=device)
                made.append(tensor.to(dtype))
        return made


def _extent(extent: int | str, sizes: Sizes) -> int:
    return extent if isinstance(extent, int) else int(eval(extent, {}, dict(sizes)))


# -- correctness ------------------------------------------------------------------------------


class _InFloat64(TorchFunctionMode):
    """Casts to narrower floats keep float64."""

    narrow = (torch.float16, torch.bfloat16, torch.float32)
    casts = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func in self.casts else func
        named = {k: self._widened(v) for k, v in (kwargs or {}).items()}
        return func(*map(self._widened, args), **named)

    def _widened(self, value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in self.narrow else value


def in_float64(function: Function, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What the function gives where every float in it is float64."""
    with _InFloat64(), torch.no_grad():
        return outputs(function(*(t.double() if t.is_floating_point() else t for t in inputs)))


def outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _rows(tensor: torch.Tensor) -> Any:
    """Whole rows of an output spread over it, JUDGED elements at most, as a numpy array."""
    flat = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    count = min(len(flat), max(1, JUDGED // max(flat.shape[1], 1)))
    which = torch.linspace(0, max(len(flat) - 1, 0), count).long().to(flat.device)
    chosen = flat[which] if len(flat) else flat
    return chosen.to(torch.float64).cpu().numpy()


@dataclass(frozen=True)
class Comparison:
    """What calls at some sizes are compared with: float64's outputs `want`, and eager's."""

    sizes: Sizes
    inputs: Sequence[torch.Tensor]
    want: Sequence[torch.Tensor]
    eager: Sequence[torch.Tensor]

    @staticmethod
    def of(kernel: Kernel, sizes: Sizes, seed: int, device: str) -> Comparison:
        """Where float64 does not fit into memory, the largest size is halved until it does."""
        sizes = dict(sizes)
        while True:
            try:
                inputs = kernel.inputs(sizes, seed, device)
                want = in_float64(kernel.module.reference, inputs)
                eager = outputs(kernel.module.reference(*inputs))
                return Comparison(sizes, inputs, want, eager)
            except torch.OutOfMemoryError:
                largest = max(sizes, key=lambda k: sizes[k], default="")
                if not largest or sizes[largest] <= max(1, kernel.module.RANGES[largest][0]):
                    raise
                sizes[largest] = max(sizes[largest] // 2, kernel.module.RANGES[largest][0])
            torch.cuda.empty_cache()

    def error_of(self, function: Function) -> float:
        """The error over what the gate's criterion allows: at most 1 passes, inf for a wrong NaN.

        Memory that the call may allocate holds NaN before, so that what it does not write is seen.
        Raises ValueError where an output has another shape or element type than eager's.
        """
        poison = [torch.full_like(t, float("nan")) for t in self.eager if t.is_floating_point()]
        del poison
        got = outputs(function(*self.inputs))
        worst = 0.0
        for n, (g, w, e) in enumerate(zip(got, self.want, self.eager, strict=True)):
            if (g.shape, g.dtype) != (e.shape, e.dtype):
                raise ValueError(
                    f"output {n} is {tuple(g.shape)} {g.dtype}, eager's {tuple(e.shape)} {e.dtype}"
                )
            worst = max(worst, pooled([judge(_rows(g), _rows(w), _rows(e), NAMES[e.dtype])]))
        return worst


def check(
    kernel: Kernel, peers: Mapping[str, Function], sizes: Sizes, seed: int, device: str
) -> tuple[Sizes, dict[str, float | str]]:
    """Each peer's error over what is allowed, or how it failed, and the sizes of the comparison."""
    comparison = Comparison.of(kernel, sizes, seed, device)
    found: dict[str, float | str] = {}
    for name, peer in peers.items():
        try:
            found[name] = comparison.error_of(peer)
        except Exception as error:  # a peer's own failure is a result
            found[name] = failure(error)
    return comparison.sizes, found


# -- one kernel at one size -------------------------------------------------------------------


def peers_of(kernel: Kernel, compiler: str, experts: Peers, tuned: bool) -> dict[str, Function]:
    """What a kernel is compared with, itself first: eager, torch.compile and experts' kernels, or
    (`tuned`) torch.compile's long search alone, which takes minutes."""
    reference = kernel.module.reference
    compiled = partial(torch.compile, reference, dynamic=False, backend=compiler)
    if tuned:
        mode = {} if compiler == "eager" else {"mode": "max-autotune-no-cudagraphs"}
        return {OURS: kernel.function, TUNED: compiled(**mode)}
    found = {OURS: kernel.function, EAGER: reference, COMPILED: compiled()}
    return found | dict(experts.get(kernel.name, {}))


def measure(
    kernel: Kernel,
    row: Mapping[str, Any],
    clock: Clock,
    experts: Peers,
    tuned: bool,
    seconds: float,
) -> list[dict[str, Any]]:
    """Rows of the table for one size: each peer, called and as a graph. `row`: of the report."""
    torch._dynamo.reset()
    sizes = kernel.toy(row["sizes"]) if clock.kind == "rehearsed" else dict(row["sizes"])
    peers = peers_of(kernel, clock.compiler, experts, tuned)
    rows = _measured(kernel, row, sizes, peers, clock, seconds, seed=0)
    if flag := suspicious(rows, experts.get(kernel.name, {})):
        again = _measured(kernel, row, sizes, peers, clock, seconds, seed=1)
        still = suspicious(again, experts.get(kernel.name, {}))
        rows[0]["note"] = f"LOOK: {flag}; on fresh inputs: {still or 'no longer so'}"
    return rows


def _measured(
    kernel: Kernel, row: Mapping[str, Any], sizes: Sizes, peers: Mapping[str, Function],
    clock: Clock, seconds: float, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    checked_at, errors = check(kernel, peers, sizes, seed, clock.device)
    inputs = kernel.inputs(sizes, seed, clock.device)
    calls = {n: partial(peers[n], *inputs) for n in peers if not isinstance(errors[n], str)}
    if not _right(errors[OURS]):
        calls.pop(OURS, None)  # the time of a wrong kernel is of no interest
    found: dict[str, dict[str, Timing | str]] = {"call": interleaved(calls, clock, seconds)}
    captured: dict[str, Any] = {}  # after the calls: graphs hold what they allocate
    failed: dict[str, Timing | str] = {}
    for name, call in calls.items():
        try:
            captured[name] = clock.graph(call)
        except Exception as error:  # a peer's own failure is a result
            failed[name] = failure(error)
    found["graph"] = interleaved(captured, clock, seconds) | failed
    return [
        _row(kernel, row, sizes, name, mode, errors[name], found[mode].get(name), clock)
        | {"checked_at": _at(checked_at)}
        for mode in found
        for name in peers
    ]


def _right(error: float | str) -> bool:
    return isinstance(error, float) and error <= 1.0


def _at(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{k}={v}" for k, v in sizes.items())


def _row(
    kernel: Kernel, row: Mapping[str, Any], sizes: Sizes, name: str, mode: str,
    error: float | str, timing: Timing | str | None, clock: Clock,
) -> dict[str, Any]:  # fmt: skip
    """`status`: ok, wrong (its error is more than is allowed) or failed; `note` says how."""
    out: dict[str, Any] = {"kernel": kernel.name, "digest": kernel.digest, "sizes": _at(sizes)}
    out |= {"peer": name, "mode": mode, "kind": clock.kind, "status": "ok", "note": ""}
    text = error if isinstance(error, str) else timing if isinstance(timing, str) else ""
    if text:
        return out | {"status": "failed", "note": text}
    out["error_over_allowed"] = error
    if not _right(error):
        out["status"] = "wrong"
    if isinstance(timing, Timing):
        out |= asdict(timing)
    if isinstance(timing, Timing) and clock.kind == "measured":
        moved, flops, ideal_us = roofline(kernel, row)
        out["roofline_us"] = round(ideal_us, 3)
        out["of_roofline"] = round(ideal_us / timing.median_us, 4)
        out["gb_per_s"] = round(moved / timing.median_us / 1e3, 1)
        out["tflop_per_s"] = round(flops / timing.median_us / 1e6, 2)
        out["predicted_us"] = row["best"]["time_us"]
    return out


def roofline(kernel: Kernel, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Bytes, flops and the least microseconds for them at the target's peaks, without a launch.

    Inputs are read and outputs written once; of the flops of the program as written and those of
    the kernel, which leaves out masked tiles, the fewer count.
    """
    known, best = row["baselines"]["roofline"], row["best"]
    moved, flops = known["distinct_bytes"], min(known["flops"], best["flops"])
    profile = load_profile(kernel.report["target"]["name"])
    floats = [NAMES[d] for d, _ in kernel.module.SIGNATURE.values() if d.is_floating_point]
    dots = any(c["dots"] for c in row["compiled"])
    peak = profile.dot_rate(floats[0]) if dots else profile.scalar_per_s
    return moved, flops, 1e6 * max(moved / profile.dram_bytes_per_s, flops / peak)


def suspicious(rows: Sequence[Mapping[str, Any]], experts: Mapping[str, Any]) -> str:
    """Why the kernel's own time is too good to be taken without a look, or nothing."""
    for mode in ("call", "graph"):
        times = {
            r["peer"]: r["median_us"]
            for r in rows
            if r["mode"] == mode and r["status"] == "ok" and "median_us" in r
        }
        best = min((t for n, t in times.items() if n in experts), default=0.0)
        tuned = times.get(TUNED, 0.0)
        ours = times.get(OURS, float("inf"))
        if best > FASTER_THAN_EXPERT * ours:
            return f"{best / ours:.2f} times as fast as the best expert kernel ({mode})"
        if tuned >= FASTER_THAN_TUNED * ours:
            return f"{tuned / ours:.2f} times as fast as {TUNED} ({mode})"
    return ""


# -- all of them ------------------------------------------------------------------------------


def read_peers(path: Path | None) -> Peers:
    """`PEERS` of a Python file: a kernel's name -> a peer's name -> a function of its arguments."""
    if path is None:
        return {}
    found = getattr(load(path), "PEERS", None)  # by a name that torch.compile can import
    if not isinstance(found, dict):
        raise UsageError(f"{path}: it defines no dict PEERS (kernel -> peer -> function)")
    return found


def in_turn(kernels: Sequence[Kernel]) -> Iterator[tuple[Kernel, int]]:
    """Every kernel's first size, then every second: what is cut short has seen them all."""
    for n in range(max((len(k.report["sizes"]) for k in kernels), default=0)):
        yield from ((k, n) for k in kernels if n < len(k.report["sizes"]))


def stages(kernels: Sequence[Kernel]) -> list[list[tuple[Kernel, int, bool]]]:
    """Every kernel's first size, torch.compile's long search at these, then the other sizes."""
    steps = list(in_turn(kernels))
    return [
        [(k, n, False) for k, n in steps if n == 0],
        [(k, n, True) for k, n in steps if n == 0],
        [(k, n, False) for k, n in steps if n > 0],
    ]


def nothing(clock: Clock) -> dict[str, float]:
    """Microseconds that the clock sees where an empty kernel is called, and replayed as a graph:
    every time of a row holds as much."""
    out = torch.empty(1, device=clock.device)
    call = partial(empty_kernel[(1,)], out)
    call()
    found = interleaved({"call": call, "graph": clock.graph(call)}, clock, 0.1)
    return {mode: t.median_us for mode, t in found.items() if isinstance(t, Timing)}


loaded = cache(Kernel.of)
experts_of = cache(read_peers)


def compile_peers(folder: Path, n: int, peers: Path | None) -> str:
    """In a process of its own: call what compiles once, at the kernel's nth size."""
    kernel = loaded(folder)
    compiled = peers_of(kernel, CudaClock.compiler, experts_of(peers), tuned=False)
    inputs = kernel.inputs(dict(kernel.report["sizes"][n]["sizes"]), 0, CudaClock.device)
    for name in compiled.keys() - {EAGER}:
        with suppress(Exception):  # it is met again, and recorded, where it is timed
            compiled[name](*inputs)
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    return ""


def bench(
    folders: Sequence[Path],
    out: Path,
    clock: Clock,
    peers: Path | None,
    seconds: float,
    each: float,
) -> dict[str, Any]:
    """Measure until `seconds` are over, about `each` for the rounds of a size; write `out`.

    `peers`: a file as `read_peers` takes. Goes by `stages`. Returns what bench.json holds; what
    stands there for the same kernel is not run again.
    """
    experts = read_peers(peers)
    kernels = [Kernel.of(f) for f in folders]
    where = dict(zip((k.digest for k in kernels), folders, strict=True))
    _refuse_other_gpu(kernels, clock)
    stem = STEMS[clock.kind]
    path, start = out / f"{stem}.json", time.monotonic()
    data: dict[str, Any] = {"environment": environment(clock), "rows": [], "left_out": []}
    data["environment"]["nothing_us"] = nothing(clock)
    if path.exists():
        data["rows"] = [r for r in json.loads(path.read_text())["rows"] if r["kind"] == clock.kind]
    done = {(r["kernel"], r["digest"], r["size"], r["tuned"]) for r in data["rows"]}
    for stage in stages(kernels):
        todo = [(k, n, t) for k, n, t in stage if (k.name, k.digest, n, t) not in done]
        if clock.kind == "measured" and time.monotonic() - start < seconds:
            wait(beforehand(
                partial(compile_peers, where[k.digest], n, peers) for k, n, t in todo if not t
            ))  # fmt: skip
        for kernel, n, tuned in todo:
            row = kernel.report["sizes"][n]
            if time.monotonic() - start > seconds:
                against = f" against {TUNED}" if tuned else ""
                at = f"{kernel.name} at {_at(row['sizes'])}{against}"
                data["left_out"].append(f"{at}: no time was left")
                continue
            lost = None
            try:
                rows = measure(kernel, row, clock, experts, tuned, each)
            except Exception as error:  # of a size, not of all: it stands in the table
                rows = [_failed(kernel, row, clock, error)]
                lost = error if isinstance(error, CheckFailed) else None
            data["rows"] += [r | {"size": n, "tuned": tuned} for r in rows]
            write_json(path, data)
            write_csv(out / f"{stem}.csv", data["rows"])
            if lost is not None:  # the GPU, for this process
                raise lost
    data["plot"] = plot(data["rows"], out / f"{stem}.png", clock.kind)
    write_json(path, data)
    return data


def failures(data: Mapping[str, Any]) -> list[str]:
    """Kernels of ours that are wrong or failed, with their sizes; peers' failures are not ours."""
    bad = [r for r in data["rows"] if r["peer"] == OURS and r["status"] != "ok"]
    return list(dict.fromkeys(f"{r['kernel']} {r['sizes']}".strip() for r in bad))


def summary(data: Mapping[str, Any], out: Path) -> list[str]:
    """A line for each size: every peer's median as a graph, in microseconds."""
    lines = []
    for key in dict.fromkeys((r["kernel"], r["size"], r["tuned"]) for r in data["rows"]):
        own = [r for r in data["rows"] if (r["kernel"], r["size"], r["tuned"]) == key]
        told = [f"{r['peer']} {_median(r)}" for r in own if r["mode"] == "graph"]
        lines.append(f"{key[0]} {own[0]['sizes']}: {', '.join(told) or own[0]['note']}")
    lines += [f"LEFT OUT {text}" for text in data["left_out"]]
    lines += [f"{r['kernel']} {r['sizes']}: {r['note']}" for r in data["rows"] if _look(r)]
    kind = data["environment"]["kind"]
    empty = ", ".join(
        f"{us:.1f} us as a {m}" for m, us in data["environment"]["nothing_us"].items()
    )
    lines.append(f"an empty kernel takes {empty}, in each time")
    return [*lines, f"plot: {data['plot']}", f"{kind}; in {out}/{STEMS[kind]}.csv and .json"]


def _median(row: Mapping[str, Any]) -> str:
    return f"{row['median_us']:.1f}" if row["status"] == "ok" else str(row["status"])


def _look(row: Mapping[str, Any]) -> bool:
    return str(row["note"]).startswith("LOOK")


def _failed(
    kernel: Kernel, row: Mapping[str, Any], clock: Clock, error: Exception
) -> dict[str, Any]:
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return _row(kernel, row, dict(row["sizes"]), OURS, "call", text, None, clock)


def _refuse_other_gpu(kernels: Sequence[Kernel], clock: Clock) -> None:
    if clock.device != "cuda":
        return
    major, minor = torch.cuda.get_device_capability()
    for k in kernels:
        made = k.report["target"]["arch"]
        if made != f"sm_{major}{minor}":
            raise UsageError(
                f"{k.name} was searched for {made}, this GPU is sm_{major}{minor}: search it again"
                " with another --target"
            )


def plot(rows: Sequence[Mapping[str, Any]], path: Path, kind: str) -> str:
    """Times over the kernel's own at each kernel's first size; says what was drawn, or why not."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "left out: matplotlib is not installed"
    timed = [r for r in rows if r["mode"] == "graph" and r["size"] == 0 and "median_us" in r]
    names = list(dict.fromkeys(r["kernel"] for r in timed))
    peers = list(dict.fromkeys(r["peer"] for r in timed))
    figure = Figure(figsize=(3 + 0.8 * len(names), 5), layout="constrained")
    axes = figure.subplots()
    for n, peer in enumerate(peers):
        own = {r["kernel"]: r for r in reversed(timed) if r["peer"] == peer}
        at = [x + 0.8 * n / len(peers) for x, name in enumerate(names) if name in own]
        shown = [own[name] for name in names if name in own]
        spread = [[r["median_us"] - r["low_us"] for r in shown],
                  [r["high_us"] - r["median_us"] for r in shown]]  # fmt: skip
        axes.bar(at, [r["median_us"] for r in shown], 0.8 / len(peers), yerr=spread, label=peer)
    axes.set_yscale("log")
    axes.set_ylabel(f"microseconds ({kind}; graph replay, median and quartiles)")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.legend(fontsize="small")
    figure.savefig(path)
    return str(path)
