"""Running torch.export on stand-in tensors, and saying in the user's terms why it could not."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from superopt.errors import SpecError
from superopt.mugraph.trace.table import LOWERINGS
from superopt.spec import Spec, error_line, is_dim, root_dim

HINTS = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


class _Call(torch.nn.Module):
    """A function as the module that torch.export wants."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def _seen_by_torch(fn: Any) -> Any:
    """A copy of a function that torch.fx records lines of: it looks for frames named forward."""
    if not isinstance(fn, types.FunctionType):
        return fn
    code = fn.__code__.replace(co_name="forward")
    copy = types.FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    copy.__kwdefaults__ = fn.__kwdefaults__
    return copy


def source_file(fn: Any) -> str:
    """The file that a function, or a module's forward, stands in."""
    fn = type(fn).forward if isinstance(fn, torch.nn.Module) else fn
    code = getattr(fn, "__code__", None)
    return code.co_filename if code else ""


def hints(spec: Spec) -> dict[str, int]:
    """A size for each Dim to trace at: neither 0 nor 1, nor a size that something else has."""
    fixed = {e for t in spec.tensors.values() for e in t.extents if isinstance(e, int)}
    chosen: dict[str, int] = {}
    for name, dim in spec.dims.items():
        low = max(int(dim.min), 2)
        candidates = [h for h in (*HINTS, *range(low, low + 32)) if dim.min <= h <= dim.max]
        free = [h for h in candidates if h not in fixed and h not in chosen.values()]
        chosen[name] = next(iter(free or candidates), int(dim.max))
    return chosen


def _stand_ins(spec: Spec, sizes: dict[str, int]) -> tuple[Any, ...]:
    made = []
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        for tensor in spec.tensors.values():
            shape = [_size(e, sizes) for e in tensor.extents]
            made.append(torch.empty(shape, dtype=tensor.dtype))
    return tuple(made)


def _size(extent: Any, sizes: dict[str, int]) -> int:
    if not is_dim(extent):
        return int(extent)
    size = sizes[root_dim(extent).__name__]
    return int(extent.fn(size)) if hasattr(extent, "fn") else size


def export(spec: Spec) -> torch.export.ExportedProgram:
    """The function as an ATen graph without mutation, of operators that have rows where possible.

    Raises SpecError, at the user's line, where torch.export cannot.
    """
    dynamic = tuple(
        {d: e for d, e in enumerate(t.extents) if is_dim(e)} for t in spec.tensors.values()
    )
    module: torch.nn.Module
    if isinstance(spec.fn, torch.nn.Module):
        module, shapes = spec.fn, dynamic
    else:
        module, shapes = _Call(_seen_by_torch(spec.fn)), (dynamic,)  # type: ignore[assignment]
    with _quiet(), _no_branches(spec):
        try:
            args = _stand_ins(spec, hints(spec))
            exported = torch.export.export(
                module,
                args,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except SpecError:
            raise
        except Exception as error:
            _translate(spec, error)
        _check_assumptions(spec, exported)
        return _legalized(exported)


@contextlib.contextmanager
def _no_branches(spec: Spec) -> Iterator[None]:
    """Refuse a branch on a size in the user's own code.

    Torch assumes inequalities of sizes, such as `B != 2`, where it picks a memory layout: those
    say nothing of the values, and we ask it to defer them. It would do the same for
    `if x.shape[0] % 2:`.
    """
    file, original = source_file(spec.fn), torch.SymBool.__bool__

    def both_ways(node: Any) -> bool:
        return len(_outcomes(spec, _in_dims(spec, node.expr, node.shape_env))) > 1

    def watched(condition: torch.SymBool) -> bool:
        frame = sys._getframe(1)
        if frame.f_code.co_filename == file and both_ways(condition.node):
            raise SpecError(
                f"{spec.file}:{frame.f_lineno}: {spec.name}: branches on a size that varies, but a"
                " kernel holds for all sizes of its Dims; narrow the Dim, or write a spec a case"
            )
        return bool(original(condition))  # type: ignore[no-untyped-call]

    torch.SymBool.__bool__ = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]


def _check_assumptions(spec: Spec, exported: torch.export.ExportedProgram) -> None:
    """Refuse what holds for some sizes only, such as a view by 7: torch defers that guard too."""
    vals = [n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder"]
    env = next((v.fake_mode.shape_env for v in vals if hasattr(v, "fake_mode")), None)
    if env is None:
        return
    for assumed in itertools.chain(*env.deferred_runtime_asserts.values()):
        condition = _in_dims(spec, assumed.expr, env)
        if type(condition).__name__ != "Unequality" and False in _outcomes(spec, condition):
            raise SpecError(
                f"{spec.where}: {spec.name}: holds only for sizes with {condition}; use one Dim for"
                " equal extents, a multiple of a Dim (8*B) for one that is divided, or an int"
            )


def _in_dims(spec: Spec, condition: Any, env: ShapeEnv) -> Any:
    """A condition on torch's symbols, written in the Dims of the spec."""
    names = {}
    for s in condition.free_symbols:
        for source in env.var_to_sources.get(s, ()):
            found = _SIZE.fullmatch(source.name)
            extent: Any = _extent(spec, found) if found else None
            if is_dim(extent):
                symbol = sympy.Symbol(root_dim(extent).__name__, integer=True, nonnegative=True)
                names[s] = extent.fn(symbol) if hasattr(extent, "fn") else symbol
    return condition.subs(names)


def _extent(spec: Spec, found: re.Match[str]) -> Any:
    return spec.tensors[_parameter(spec, found)].extents[int(found["dim"])]


def _parameter(spec: Spec, found: re.Match[str]) -> str:
    return list(spec.tensors)[int(found["number"])] if found["number"] else found["name"]


def _outcomes(spec: Spec, condition: Any) -> set[bool]:
    """What a condition on Dims comes out as within their ranges, on a sample of sizes."""
    dims, symbols = spec.dims, sorted(condition.free_symbols, key=str)
    if any(str(s) not in dims for s in symbols) or len(symbols) > 3:
        return set()  # it depends on data: torch says so itself
    samples = []
    for s in symbols:
        low, high = int(dims[str(s)].min), dims[str(s)].max
        last = int(high) if high < 2**31 else 2**31
        samples.append(sorted({*range(low, min(low + 9, last)), last}))
    points = itertools.product(*samples)
    return {bool(condition.subs(dict(zip(symbols, p, strict=True)))) for p in points}


def _legalized(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Functionalized and decomposed, where an operator mutates or has no row."""
    targets = {n.target for n in exported.graph.nodes if n.op == "call_function"}
    operators = [t for t in targets if isinstance(t, torch._ops.OpOverload)]
    mutates = any(t._schema.is_mutable and name_of(t) not in LOWERINGS for t in operators)
    unknown = any(name_of(t) not in LOWERINGS and not ignored(t) for t in operators)
    if not (mutates or unknown):
        return exported
    table = torch.export.default_decompositions()
    for target in list(table):
        if name_of(target) in LOWERINGS:
            del table[target]
    lowered: torch.export.ExportedProgram = exported.run_decompositions(table)
    return lowered


def name_of(target: Any) -> str:
    """The operator's name without namespace and overload."""
    return target._schema.name.split("::")[-1] if hasattr(target, "_schema") else str(target)


IGNORED = ("_assert_tensor_metadata", "_assert_scalar", "sym_size", "sym_constrain_range_for_size")


def ignored(target: Any) -> bool:
    return name_of(target) in IGNORED


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of torch's own about what we report ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


# -- what went wrong ----------------------------------------------------------------------------


def _translate(spec: Spec, error: Exception) -> NoReturn:
    line = error_line(error, source_file(spec.fn))
    where = f"{spec.file}:{line}" if line else spec.where
    text = str(error)
    names = {type(e).__name__ for e in _causes(error)}
    if "GuardOnDataDependentSymNode" in names or "data-dependent" in text:
        raise SpecError(
            f"{where}: {spec.name}: control flow or a shape depends on a tensor's values, which a"
            " kernel made ahead cannot follow; use torch.where in place of if"
        ) from error
    if found := _OUTSIDE.search(text):
        dims = [d for d, size in hints(spec).items() if size == int(found[1])]
        if dims:
            raise SpecError(f"{where}: {spec.name}: {_specialised(dims[0], found[2])}") from error
    if "Constraints violated" in text:
        raise SpecError(f"{where}: {spec.name}: {_constraint(spec, text)}") from error
    first = text.strip().splitlines()[0] if text.strip() else ""
    raise SpecError(f"{where}: {spec.name}: {type(error).__name__}: {first}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_CONSTANT = re.compile(r"marked (\S+) as dynamic but your code specialized it .* \((\d+)\)")
_OUTSIDE = re.compile(r"^(\d+) not in VR\[(\d+), \2\]")  # the size traced at, the size fixed
_EQUAL = re.compile(r"^  (\w+) = (\d+)$", re.M)
_GUARD = re.compile(r"satisfy the generated guard (.*?)\.?$", re.M)
_FIXES = re.compile(r"Suggested fixes:\n((?:  .*\n?)+)")


def _specialised(dim: str, size: str) -> str:
    return (
        f"Dim {dim} is specialised to the constant {size}: the function fixes that size, for"
        f" instance by an operand or a view of a fixed shape; write the size as x.shape[...],"
        f" or give the extent as {size} instead of Dim {dim}"
    )


def _constraint(spec: Spec, text: str) -> str:
    found = _CONSTANT.search(text) or _EQUAL.search(text)
    if found and found.group(1) in spec.dims:
        return _specialised(*found.groups())
    fixes = _FIXES.search(text)
    advice = "; ".join(f.strip() for f in fixes.group(1).splitlines() if f.strip()) if fixes else ""
    guard = _GUARD.search(text)
    needs = f", those with {_in_users_names(spec, guard.group(1))}" if guard else ""
    return (
        f"the function holds for part of the sizes of {', '.join(spec.dims)} only{needs} (a"
        f" reshape or slice past some size); use {advice or 'a narrower range'}"
    )


_SIZE = re.compile(r"L\['(?P<name>\w+)'\](\[(?P<number>\d+)\])?\.size\(\)\[(?P<dim>\d+)\]")


def _in_users_names(spec: Spec, guard: str) -> str:
    """`L['args'][0].size()[1]` as `x.shape[1]`."""
    return _SIZE.sub(lambda m: f"{_parameter(spec, m)}.shape[{m['dim']}]", guard)
