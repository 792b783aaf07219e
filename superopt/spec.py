"""Spec files: plain PyTorch functions with the shapes and element types they are made for.

B = Dim("B", min=1, max=4096)

@superopt.spec(x=Tensor(B, 4096), w=Tensor(4096, 4096), dtype=torch.float16)
def linear(x, w):
    return x @ w
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import keyword
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from superopt.errors import SpecError


@dataclass(frozen=True, init=False)
class Tensor:
    """A parameter's shape, element type and, for an integer tensor, the values it may hold.

    Extents are ints or `torch.export.Dim`s. `dtype` is a torch.dtype; None takes the spec's.
    `range` is (low, high), high excluded, each an int or a `Dim`.
    """

    extents: tuple[Any, ...]
    dtype: Any
    range: tuple[Any, Any] | None

    def __init__(
        self, *extents: Any, dtype: Any = None, range: tuple[Any, Any] | None = None
    ) -> None:
        object.__setattr__(self, "extents", extents)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "range", range)


@dataclass(eq=False)
class Spec:
    """A function with its tensors, in the function's order; calls the function when called.

    `tune_at` are the sizes to choose configurations for, by Dim name.
    """

    name: str
    fn: Callable[..., Any]
    tensors: Mapping[str, Tensor]
    tune_at: tuple[Mapping[str, int], ...] = ()
    file: str = ""
    line: int = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def dims(self) -> dict[str, Any]:
        """The root `Dim`s of all extents, by name, in the order met."""
        found = (root_dim(e) for t in self.tensors.values() for e in t.extents)
        return {d.__name__: d for d in found if d is not None}


def is_dim(extent: Any) -> bool:
    return all(hasattr(extent, a) for a in ("__name__", "min", "max"))


def root_dim(extent: Any) -> Any:
    """The Dim itself, or the one that a derived extent (`2*B`) comes from; None for an int."""
    return getattr(extent, "root", extent) if is_dim(extent) else None


_loading: list[Spec] | None = None  # specs met while a file is being loaded


def spec(
    dtype: Any = None, tune_at: Iterable[Mapping[str, int]] = (), **tensors: Tensor
) -> Callable[[Callable[..., Any]], Spec]:
    """Mark a function as a spec: a `Tensor` for each of its parameters.

    `dtype` is the element type of tensors that name none (torch.float32 by default). Raises
    SpecError where tensors and parameters disagree, or `tune_at` leaves its Dim's range.
    """

    def mark(fn: Callable[..., Any]) -> Spec:
        made = build(fn, dtype, tune_at, tensors)
        if _loading is not None:
            _loading.append(made)
        return made

    return mark


def build(
    fn: Callable[..., Any],
    dtype: Any,
    tune_at: Iterable[Mapping[str, int]],
    tensors: Mapping[str, Tensor],
    name: str | None = None,
    parameters: tuple[str, ...] | None = None,
) -> Spec:
    """The checked Spec of a function; `parameters` where not all of its own are tensors."""
    import torch

    code: Any = getattr(inspect.unwrap(fn), "__code__", None)
    made = Spec(
        name or kernel_name(fn),
        fn,
        tensors,
        tuple(dict(sizes) for sizes in tune_at),
        str(code.co_filename) if code else "<unknown>",
        int(code.co_firstlineno) if code else 0,
    )
    default = torch.float32 if dtype is None else dtype
    if not isinstance(default, torch.dtype):
        _fail(made, f"dtype={default!r} is not a torch.dtype; rename a parameter called dtype")
    if code:
        functools.update_wrapper(made, fn)
    names = _parameters(made) if parameters is None else parameters
    for parameter, tensor in tensors.items():
        _check_tensor(made, parameter, tensor, torch.dtype)
    ordered = {n: _resolved(tensors[n], default) for n in names}
    made.tensors = ordered
    _check_dims(made)
    _check_sizes(made)
    return made


def kernel_name(fn: Any) -> str:
    """What a function's kernel is called; a lambda's is `function`."""
    name = str(getattr(fn, "__name__", type(fn).__name__))
    return name if name.isidentifier() and not keyword.iskeyword(name) else "function"


def _resolved(tensor: Tensor, dtype: Any) -> Tensor:
    return Tensor(*tensor.extents, dtype=tensor.dtype or dtype, range=tensor.range)


def _fail(made: Spec, message: str) -> NoReturn:
    raise SpecError(f"{made.where}: {made.name}: {message}")


def _parameters(made: Spec) -> list[str]:
    kinds = inspect.Parameter
    names = []
    for name, parameter in inspect.signature(made.fn).parameters.items():
        if name in ("dtype", "tune_at"):
            _fail(made, f"parameter {name!r} clashes with spec's own argument; rename it")
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            _fail(made, f"parameter {parameter} is not supported; name each tensor")
        if name not in made.tensors:
            hint = "make it a constant in the body, or give it a Tensor"
            _fail(made, f"parameter {name!r} has no Tensor in @spec; {hint}")
        names.append(name)
    extra = sorted(set(made.tensors) - set(names))
    if extra:
        _fail(made, f"@spec gives a Tensor for {extra[0]!r}, which is not a parameter: {names}")
    return names


def _check_tensor(made: Spec, name: str, tensor: Any, dtype: type) -> None:
    if not isinstance(tensor, Tensor):
        _fail(made, f"{name}={tensor!r}: a superopt.Tensor is wanted")
    if tensor.dtype is not None and not isinstance(tensor.dtype, dtype):
        _fail(made, f"{name}: dtype={tensor.dtype!r} is not a torch.dtype")
    for extent in tensor.extents:
        whole = isinstance(extent, int) and not isinstance(extent, bool) and extent >= 0
        if not (whole or is_dim(extent)):
            _fail(made, f"{name}: extent {extent!r} is neither an int >= 0 nor a torch.export.Dim")
    if tensor.range is not None and len(tensor.range) != 2:
        _fail(made, f"{name}: range={tensor.range!r} is not (low, high)")


def _check_dims(made: Spec) -> None:
    dims = made.dims
    for name, tensor in made.tensors.items():
        for extent in tensor.extents:
            root = root_dim(extent)
            if root is None:
                continue
            known = dims[root.__name__]
            if (known.min, known.max) != (root.min, root.max):
                _fail(made, f"{name}: two Dims named {root.__name__!r} with different ranges")
        for end in tensor.range or ():
            root = root_dim(end)
            if root is not None and root.__name__ not in dims:
                _fail(made, f"{name}: range names Dim {root.__name__!r}, which no tensor has")


def _check_sizes(made: Spec) -> None:
    dims = made.dims
    for sizes in made.tune_at:
        for name, size in sizes.items():
            if name not in dims:
                known = ", ".join(sorted(dims)) or "it has none"
                _fail(made, f"tune_at names {name!r}, which is no Dim of it: {known}")
            if not dims[name].min <= size <= dims[name].max:
                low, high = dims[name].min, dims[name].max
                _fail(made, f"tune_at has {name}={size}, outside its Dim's range {low} to {high}")
        missing = sorted(set(dims) - set(sizes))
        if missing:
            _fail(made, f"tune_at entry {dict(sizes)} has no size for {missing[0]!r}")


# -- files --------------------------------------------------------------------------------------


def load_specs(path: Path, name: str | None = None) -> list[Spec]:
    """The specs of a file, or the one called `name`, in the order in which they stand there.

    Raises SpecError where there is no such file, it does not import, it holds no spec, two specs
    have one name, or none is called `name`.
    """
    if not path.is_file():
        raise SpecError(f"{path}: no such file")
    file = str(path.resolve())
    specs = [s for s in _import(path, file) if s.file == file]
    if not specs:
        raise SpecError(f"{path}: no spec in it; decorate a function with @superopt.spec(...)")
    first: dict[str, Spec] = {}
    for s in specs:
        s.file = str(path)  # as the user named it
        if s.name in first:
            line = first[s.name].line
            raise SpecError(
                f"{s.where}: a second spec named {s.name!r}; the first is at line {line}"
            )
        first[s.name] = s
    if name is None:
        return specs
    if name not in first:
        raise SpecError(f"{path}: no spec named {name!r}; it has {', '.join(first)}")
    return [first[name]]


@contextmanager
def _collecting(folder: str) -> Iterator[list[Spec]]:
    global _loading
    before, _loading = _loading, []
    sys.path.insert(0, folder)
    try:
        yield _loading
    finally:
        _loading = before
        sys.path.remove(folder)


def _import(path: Path, file: str) -> list[Spec]:
    unique = hashlib.blake2b(file.encode(), digest_size=4).hexdigest()
    found = importlib.util.spec_from_file_location(f"superopt_spec_{path.stem}_{unique}", file)
    if found is None or found.loader is None:
        raise SpecError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module
    with _collecting(str(path.resolve().parent)) as specs:
        try:
            found.loader.exec_module(module)
        except SpecError:
            raise
        except SyntaxError as error:
            raise SpecError(_syntax_error(path, file, error)) from error
        except Exception as error:
            where = error_line(error, file)
            line = f"{path}:{where}" if where else str(path)
            raise SpecError(f"{line}: {type(error).__name__}: {error}") from error
    return specs


def _syntax_error(path: Path, file: str, error: SyntaxError) -> str:
    shown = str(path) if error.filename == file else error.filename
    caret = f"\n    {' ' * (max(error.offset or 1, 1) - 1)}^"
    text = f"\n    {error.text.rstrip()}{caret}" if error.text else ""
    return f"{shown}:{error.lineno}: syntax error: {error.msg}{text}"


def error_line(error: BaseException, file: str) -> int | None:
    """The innermost line of `file` in an exception's traceback."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return lines[-1] if lines else None
