"""What Python programs call: `search` finds a kernel, `optimize` puts one in a function's place."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from superopt.emit.compile import load
from superopt.errors import CheckFailed, SuperoptError, UsageError
from superopt.mugraph.trace import captured_tensors
from superopt.mugraph.trace.lower import spec_of
from superopt.pipeline import Run, Settings, find_kernel
from superopt.report import KERNEL, build_report, write_folder
from superopt.search.driver import Candidate
from superopt.search.executor import Executor
from superopt.search.scheduler import Progress
from superopt.spec import Spec

Function = Callable[..., Any]


@dataclass
class Result:
    """A kernel that passed its checks.

    `kernel` has the original's signature (a module's parameters are bound); `source` is kernel.py's
    text, `report` what report.json holds; `candidates` are the µGraphs kept, best first.
    """

    kernel: Function
    source: str
    report: dict[str, Any]
    candidates: list[Candidate]
    folder: Path
    _kept: Any = field(default=None, repr=False)  # a temporary folder lives as long as its result


def search(
    fn_or_module_or_spec: Function,
    args: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Result:
    """Find a kernel for a spec, or for a function or module at the shapes of example `args`.

    `dynamic_shapes` as torch.export takes them, of `Dim`s. `out`: the folder to write NAME/ into (a
    temporary one by default). `executor`: what runs the search's tasks, such as a
    `superopt.RayExecutor`; it stays open. `options` are those of `superopt.pipeline.Settings`.

    Raises UsageError for a wrong argument, SpecError for what cannot be traced, CheckFailed where
    nothing passed the checks.
    """
    original = fn_or_module_or_spec
    spec = _as_spec(original, args, dynamic_shapes)
    run = find_kernel(spec, _settings(options), progress, executor=executor)
    if not run.source:
        raise CheckFailed(nothing_passed(run))
    kept = tempfile.TemporaryDirectory(prefix="superopt-") if out is None else None
    folder = write_folder(run, Path(kept.name if kept else str(out)))
    kernel: Function = getattr(load(folder / KERNEL), spec.name)
    if isinstance(original, torch.nn.Module):
        kernel = _bound(kernel, original, run.traced.parameters, run.traced.captured)
    report = build_report(run)
    return Result(kernel, run.source, report, run.outcome.candidates, folder, kept)


def _as_spec(original: Function, args: Sequence[Any] | None, dynamic_shapes: Any) -> Spec:
    if isinstance(original, Spec):
        if args is not None or dynamic_shapes is not None:
            raise UsageError(
                f"{original.name}: a spec has its shapes; leave out args and dynamic_shapes"
            )
        return original
    if not callable(original):
        raise UsageError(f"{original!r} is neither a function, a module nor a spec")
    if args is None:
        raise UsageError(
            f"{_name(original)}: give example args, or decorate it with @superopt.spec"
        )
    return spec_of(original, args, dynamic_shapes)


def _settings(options: dict[str, Any]) -> Settings:
    known = list(Settings.__dataclass_fields__)
    for name in options:
        if name not in known:
            raise UsageError(f"unknown option {name!r}; known: {', '.join(known)}")
    return Settings(**options)


def _name(fn: Any) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def nothing_passed(run: Run) -> str:
    """Why a run has no kernel, in a sentence for each of the first refusals."""
    if run.stop_reason == "interrupted":
        return f"{run.spec.name}: interrupted before a candidate had passed its checks"
    reasons = "; ".join(f"candidate {r.rank}, {r.stage}: {r.reason}" for r in run.refusals[:3])
    return f"{run.spec.name}: no candidate passed its checks: {reasons}"


def _bound(
    kernel: Function, module: torch.nn.Module, parameters: Sequence[str], captured: Sequence[str]
) -> Function:
    """The kernel with a module's parameters and buffers, as they are at each call."""
    signature = inspect.signature(module.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        held = captured_tensors(module)
        return kernel(*(given[p] for p in parameters), *(held[c] for c in captured))

    return functools.wraps(module.forward)(forward)


# -- optimize -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What `optimize` does for calls of one kind: `kernel` is None where the original runs.

    `inputs` are the shapes and element types; `reason` says why, with figures; `result` is the
    search's, where there was one that passed.
    """

    inputs: tuple[Any, ...]
    kernel: Function | None
    reason: str
    result: Result | None = None

    def __str__(self) -> str:
        shapes = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in self.inputs)
        return f"{shapes}: {'kernel' if self.kernel else 'eager'}: {self.reason}"


class Optimized:
    """A function that searches when first called with inputs of new shapes and element types.

    The original runs where a gradient is asked for, where nothing can be found, and where it is
    predicted no slower; `reports` says which, and why.
    """

    def __init__(self, fn: Function, options: dict[str, Any]) -> None:
        self.fn = fn
        self.options = options
        self._settings = _settings(options)  # a wrong option is an error at once
        self._decisions: dict[Any, Decision] = {}
        functools.update_wrapper(self, fn if not isinstance(fn, torch.nn.Module) else fn.forward)

    @property
    def reports(self) -> list[Decision]:
        return list(self._decisions.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or kwargs or self._wants_gradient(args):
            return self.fn(*args, **kwargs)
        if not all(type(a) in (torch.Tensor, torch.nn.Parameter) for a in args):
            return self.fn(*args)
        key = tuple((a.shape, a.dtype) for a in args)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decisions[key] = self._decide(key, args)
        return (decision.kernel or self.fn)(*args)

    def _wants_gradient(self, args: Sequence[Any]) -> bool:
        if not torch.is_grad_enabled():
            return False
        held = self.fn.parameters() if isinstance(self.fn, torch.nn.Module) else ()
        return any(isinstance(a, torch.Tensor) and a.requires_grad for a in (*args, *held))

    def _decide(self, key: tuple[Any, ...], args: Sequence[Any]) -> Decision:
        try:
            result = search(self.fn, args, **self.options)
        except SuperoptError as error:
            return Decision(key, None, f"cannot: {error}")
        best, eager = result.report["best"], result.report["baselines"]["unfused"]
        found, target = best["time_us"], result.report["target"]["name"]
        figures = (
            f"found {found:.1f} us in {best['launches']}, eager {eager['time_us']:.1f} us in"
            f" {eager['launches']} launches, predicted for {target}"
        )
        if eager["time_us"] <= found:
            return Decision(key, None, f"not worth it: {figures}", result)
        return Decision(key, result.kernel, figures, result)


def optimize(fn: Function | None = None, **options: Any) -> Any:
    """Decorate a function or wrap a module: `@superopt.optimize` or `@optimize(target=...)`.

    Returns an `Optimized`. `options` are those of `superopt.pipeline.Settings`. Calls with keyword
    arguments, or with arguments that are not tensors, run the original.
    """
    if fn is None:
        return lambda f: Optimized(f, options)
    return Optimized(fn, options)
