"""`superopt verify DIR/NAME`: a kernel folder re-checked against its spec, the search not trusted.

What is trusted is the spec: the file that report.json names, where it still holds it, else the
`reference` in kernel.py with the shapes in report.json. It is traced anew, the kernel's own code
is run on hostile inputs, and every element must be written.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from superopt.errors import SpecError, UsageError
from superopt.mugraph.program import KernelGraph, Program, Traced
from superopt.mugraph.serialize import from_json
from superopt.spec import Spec, Tensor, build, is_dim, load_specs, root_dim
from superopt.verify.field import field_check
from superopt.verify.gate import SECONDS, GateResult, Worker, gate, gate_sizes
from superopt.verify.proving import Proving
from superopt.verify.tested import tested
from superopt.verify.verdict import Verdict

FULL_SECONDS = 60.0  # about what running every program may take


@dataclass(frozen=True)
class SpecShape:
    """What a spec says beside its function: `file`, `name`, tensors and Dims, as plain data.

    `tensors`: by parameter, `shape` (ints, or texts such as "B" and "2*B+1"), `dtype` (torch's
    name) and `range` (None, or two of the like). `dims`: least and largest size by name.
    """

    file: str
    name: str
    tensors: dict[str, dict[str, Any]]
    dims: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec) -> SpecShape:
        tensors = {
            name: {
                "shape": [_extent_text(e) for e in t.extents],
                "dtype": str(t.dtype).removeprefix("torch."),
                "range": None if t.range is None else [_extent_text(e) for e in t.range],
            }
            for name, t in spec.tensors.items()
        }
        dims = {name: [int(d.min), int(d.max)] for name, d in spec.dims.items()}
        return cls(spec.file, spec.name, tensors, dims)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpecShape:
        try:
            return cls(data["file"], data["name"], dict(data["tensors"]), dict(data["dims"]))
        except (KeyError, TypeError) as error:
            raise UsageError(f"report.json: its spec entry lacks {error}") from error

    @property
    def ranges(self) -> dict[str, list[Any]]:
        """What the spec declares of integer tensors' elements: by parameter, low and high."""
        return {name: t["range"] for name, t in self.tensors.items() if t["range"]}

    def spec(self, fn: Callable[..., Any]) -> Spec:
        """The spec of a function with these shapes."""
        import torch
        from torch.export import Dim

        dims = {name: Dim(name, min=low, max=high) for name, (low, high) in self.dims.items()}
        tensors = {}
        for name, t in self.tensors.items():
            shape = [_extent(e, dims) for e in t["shape"]]
            bounds = tuple(_extent(e, dims) for e in t["range"]) if t["range"] else None
            tensors[name] = Tensor(*shape, dtype=getattr(torch, t["dtype"]), range=bounds)
        return build(fn, None, (), tensors, self.name)


def _extent_text(e: Any) -> int | str:
    if not is_dim(e):
        return int(e)
    name = str(root_dim(e).__name__)
    if not hasattr(e, "fn"):
        return name
    plus = int(e.fn(0))
    return f"{int(e.fn(1)) - plus}*{name}{plus:+d}"


def _extent(text: int | str, dims: Mapping[str, Any]) -> Any:
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"(?:(-?\d+)\*)?([A-Za-z_]\w*)([+-]\d+)?", text)
    if found is None or found[2] not in dims:
        raise UsageError(f"report.json: extent {text!r} names none of the Dims {sorted(dims)}")
    times, plus = int(found[1] or 1), int(found[3] or 0)
    scaled = times * dims[found[2]] if times != 1 else dims[found[2]]
    return scaled + plus if plus else scaled


@dataclass(frozen=True)
class CheckResult:
    """One check: `passed`, a sentence, and where it failed the counterexample."""

    check: str
    passed: bool
    text: str
    witness: Mapping[str, Any] = field(default_factory=dict)


def check_graph(program: Program, graph: KernelGraph | Program, seed: int = 0) -> Verdict:
    """The highest rung that a candidate reaches before it is emitted: `tested`, then `probable`.

    Where the field check cannot be claimed the verdict stays `tested` and its notes say why.
    """
    first = tested(program, graph, seed)
    if not first.passed:
        return first
    second = field_check(program, graph, seed)
    if second.kind != "unknown":
        return second
    return Verdict("tested", scope=first.scope, notes=(second.reason,))


def verify_folder(path: Path, seed: int = 0) -> list[CheckResult]:
    """Check DIR/NAME anew; the kernel passes where every result has passed.

    Raises UsageError where the folder does not hold what a search writes, SpecError where its
    function cannot be traced.
    """
    report = read_json(path / "report.json")
    shape = SpecShape.from_json(report.get("spec", {}))
    kernel = path / "kernel.py"
    module = load_kernel(kernel)
    reference = getattr(module, "reference", None)
    if reference is None or not hasattr(module, shape.name):
        raise UsageError(f"{kernel}: it must define {shape.name} and reference")
    traced, results = _traced(shape, reference, seed)
    with Worker() as worker, Proving() as proving:
        worker.start()
        proving.ask(kernel, traced.program, shape.ranges)
        results += [_graph(traced.program, g, seed) for g in _graphs(path)]
        results += run_checks(traced, kernel, module, worker, seed)
        results += proof_checks(proving)
    return results


def run_checks(
    traced: Traced, kernel: Path, module: ModuleType, worker: Worker, seed: int = 0
) -> Iterator[CheckResult]:
    """What a kernel.py does when it is run; a caller may stop at the first that fails.

    `module`: the kernel.py, of which only the table of configurations is read.
    """
    sizes = gate_sizes(traced.program, _limits(module, traced.program))
    common: dict[str, Any] = {"worker": worker, "seed": seed}
    yield _gated("gate", gate(traced, kernel, sizes=sizes, seconds=SECONDS, **common))
    small = gate_sizes(traced.program)[:3]
    whole = gate(traced, kernel, sizes=small, full=True, seconds=FULL_SECONDS, **common)
    yield _gated("every element written", whole)


def proof_checks(proving: Proving) -> Iterator[CheckResult]:
    """What is proved of the kernel.py that was asked about."""
    proof = proving.result()
    for check, claims in (("addresses", proof.addresses), ("values", proof.values)):
        verdict = claims.verdict
        yield CheckResult(check, verdict.passed, str(claims), verdict.witness)


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; give the folder of one kernel, DIR/NAME"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: not a JSON object")
    return data


def load_kernel(path: Path) -> ModuleType:
    """Import a kernel.py. Raises UsageError where that fails."""
    spec = importlib.util.spec_from_file_location(f"superopt_verified_{path.parent.name}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{path}: no such file; give the folder of one kernel, DIR/NAME")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path}: it does not import: {type(error).__name__}: {error}") from error
    return module


def _traced(
    shape: SpecShape, reference: Callable[..., Any], seed: int
) -> tuple[Traced, list[CheckResult]]:
    """The program to check against: the spec file's own, where it still is there."""
    from superopt.mugraph.trace import trace

    stated = trace(shape.spec(reference))
    try:
        (spec,) = load_specs(Path(shape.file), shape.name)
    except SpecError:
        text = f"{shape.file} holds no spec {shape.name} any more: checked against `reference`"
        return stated, [CheckResult("spec", True, text)]
    original = trace(spec)
    try:
        verdict = tested(original.program, stated.program, seed)
    except ValueError as error:  # other outputs
        verdict = Verdict("refused", str(error))
    text = f"`reference` against {spec.where}: {verdict}"
    return original, [CheckResult("spec", verdict.passed, text, verdict.witness)]


def _graphs(path: Path) -> list[KernelGraph]:
    """The µGraphs that proof.json speaks of."""
    proof = path / "proof.json"
    return [from_json(g) for g in read_json(proof).get("graphs", [])] if proof.exists() else []


def _graph(program: Program, graph: KernelGraph, seed: int) -> CheckResult:
    verdict = check_graph(program, graph, seed)
    return CheckResult("µGraph", verdict.passed, f"{graph.name}: {verdict}", verdict.witness)


def _gated(check: str, result: GateResult) -> CheckResult:
    left = f"; not run: {'; '.join(result.left_out)}" if result.left_out else ""
    return CheckResult(check, result.passed, f"{result}{left}", result.witness)


def _limits(module: ModuleType, program: Program) -> list[dict[str, int]]:
    """The sizes up to which each row of a kernel.py's table of configurations is chosen."""
    names = [s.name for s in program.symbols]
    limits = []
    for key in getattr(module, "CONFIGS", {}):
        values = key if isinstance(key, tuple) else (key,) * len(names)
        if len(values) == len(names):
            limits.append(dict(zip(names, values, strict=True)))
    return limits
