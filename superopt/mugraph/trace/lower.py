"""Lowering an exported graph, node by node, to a program with one store an output."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from superopt.errors import SpecError, UnsupportedOperator
from superopt.mugraph import index as _index  # noqa: F401  (fills in the index arithmetic)
from superopt.mugraph.expr import Expr, Symbol, Tensor, const, index, op, sym
from superopt.mugraph.program import Program, SourceOp, Traced, loads, store
from superopt.mugraph.trace import contractions, pointwise, reductions, views  # noqa: F401
from superopt.mugraph.trace.export import export, ignored, name_of, source_file
from superopt.mugraph.trace.source import own_source
from superopt.mugraph.trace.symbols import Symbols
from superopt.mugraph.trace.table import LOWERINGS, Call, our_dtype
from superopt.mugraph.trace.value import Value, axes_of, flat_index, product, tensor_value
from superopt.spec import Spec, build, is_dim, kernel_name, root_dim
from superopt.spec import Tensor as SpecTensor

CONSTANT_ELEMENTS = 8  # a longer constant tensor is refused: it would be a chain of selections
UNUSED = (
    "device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "requires_grad"
)  # fmt: skip
HIGHEST = 2**31 - 1


def trace(spec: Spec) -> Traced:
    """The program of a spec.

    Raises SpecError where torch.export refuses the function or its results cannot be a kernel's,
    and UnsupportedOperator, at the user's line, for an operator without a row.
    """
    return _Lowerer(spec).traced()


def trace_callable(
    fn_or_module: Callable[..., Any],
    args: Sequence[Any],
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> Traced:
    """The program of a function or module at the shapes and types of example tensors.

    `dynamic_shapes` as in torch.export: by parameter name or position, named `Dim`s only. A
    module's parameters and buffers become inputs, listed in `captured`.
    """
    return trace(spec_of(fn_or_module, args, dynamic_shapes, name))


def spec_of(
    fn: Callable[..., Any], args: Sequence[Any], dynamic_shapes: Any = None, name: str | None = None
) -> Spec:
    """The spec that example arguments amount to. Raises SpecError for what is not a tensor."""
    called = name or (kernel_name(fn) if hasattr(fn, "__name__") else type(fn).__name__.lower())
    target = type(fn).forward if isinstance(fn, torch.nn.Module) else fn
    try:
        parameters = list(inspect.signature(target).parameters)
    except ValueError as error:
        hint = "its parameters cannot be read; wrap it in a Python function that calls it"
        raise SpecError(f"{called}: {hint}") from error
    if isinstance(fn, torch.nn.Module):
        parameters = parameters[1:]
    if len(args) > len(parameters):
        raise SpecError(f"{called}: {len(args)} arguments for the parameters {parameters}")
    tensors = {}
    for n, (parameter, arg) in enumerate(zip(parameters, args, strict=False)):
        if not isinstance(arg, torch.Tensor):
            what = type(arg).__name__
            raise SpecError(f"{called}: parameter {parameter!r} is a {what}, not a tensor; bind it")
        dims = _dims_of(called, dynamic_shapes, parameter, n)
        extents = [dims.get(d, size) for d, size in enumerate(arg.shape)]
        tensors[parameter] = SpecTensor(*extents, dtype=arg.dtype)
    return build(fn, torch.float32, (), tensors, called, tuple(tensors))


def _dims_of(called: str, shapes: Any, parameter: str, position: int) -> dict[int, Any]:
    if shapes is None:
        return {}
    if isinstance(shapes, Mapping):
        given = shapes.get(parameter)
    else:
        given = shapes[position] if position < len(shapes) else None
    items = given.items() if isinstance(given, Mapping) else enumerate(given or ())
    found = {d: e for d, e in items if e is not None and not isinstance(e, int)}
    for e in found.values():
        if not is_dim(e):
            raise SpecError(f"{called}: {parameter}: {e} has no name; use torch.export.Dim(name)")
    return found


def captured_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers by the input names that tracing gives them."""
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return {input_name(name): tensor for name, tensor in itertools.chain(parameters, buffers)}


def input_name(target: str) -> str:
    """`0.norm.weight` as an identifier, `p_0_norm_weight`."""
    return re.sub(r"\W", "_", target if target[0].isalpha() else f"p_{target}")


class _Lowerer:
    """Lowers one exported program; `values` holds what each node computes."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.exported = export(spec)
        self.graph = self.exported.graph
        self.values: dict[torch.fx.Node, Any] = {}
        self.source_ops: list[SourceOp] = []
        self.inputs: dict[str, Tensor] = {}
        self.captured: list[str] = []
        self.file = source_file(spec.fn)

    def traced(self) -> Traced:
        self._placeholders()
        for node in self.graph.nodes:
            if node.op == "call_function":
                self._node(node)
        outputs, returns = self._outputs()
        self._check_used(outputs)
        names = outputs_named(len(outputs), set(self.inputs))
        tensors = [Tensor(n, v.shape, v.dtype) for n, v in zip(names, outputs, strict=True)]
        stores = tuple(store(t, v.axes, v.expr) for t, v in zip(tensors, outputs, strict=True))
        program = Program(
            self.spec.name,
            tuple(self.inputs.values()),
            stores,
            tuple(tensors),
            tuple(self.source_ops),
        )
        parameters = tuple(self.spec.tensors)
        return Traced(program, parameters, returns, own_source(self.spec.fn), tuple(self.captured))

    # -- inputs -------------------------------------------------------------------------------

    def _placeholders(self) -> None:
        nodes = {n.name: n for n in self.graph.nodes if n.op == "placeholder"}
        specs = self.exported.graph_signature.input_specs
        users = [nodes[s.arg.name] for s in specs if s.kind is InputKind.USER_INPUT]
        self.symbols = self._symbols(users)
        for node, name in zip(users, self.spec.tensors, strict=True):
            self._input(node, name)
        for s in specs:
            node = nodes[s.arg.name]
            if s.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                if node.users:
                    self._input(node, input_name(s.target))
                    self.captured.append(input_name(s.target))
            elif s.kind is InputKind.CONSTANT_TENSOR:
                self.values[node] = self._constant(node, self.exported.constants[s.target])

    def _symbols(self, users: list[torch.fx.Node]) -> Symbols:
        known = {}
        for node, tensor in zip(users, self.spec.tensors.values(), strict=True):
            for size, extent in zip(node.meta["val"].shape, tensor.extents, strict=True):
                if is_dim(extent):
                    dim = root_dim(extent)
                    high = int(dim.max) if dim.max < HIGHEST else HIGHEST
                    for s in size.node.expr.free_symbols:
                        known[s] = Symbol(dim.__name__, int(dim.min), high)
        return Symbols(known)

    def _input(self, node: torch.fx.Node, name: str) -> None:
        shape, dtype = self._meta(node.meta["val"])
        given = self.spec.tensors.get(name) if name not in self.captured else None
        bounds = None
        if given is not None and given.range is not None:
            low, high = (self._bound(e) for e in given.range)
            bounds = (low, high)
        tensor = Tensor(name, shape, dtype, bounds)
        if name in self.inputs:
            raise SpecError(f"{self.spec.where}: {self.spec.name}: two inputs named {name!r}")
        self.inputs[name] = tensor
        self.values[node] = tensor_value(tensor)

    def _bound(self, end: Any) -> Expr:
        if not is_dim(end):
            return index(int(end))
        by_name = {s.name: s for s in self.symbols.known.values()}
        return sym(by_name[root_dim(end).__name__])

    def _constant(self, node: torch.fx.Node, tensor: torch.Tensor) -> Value:
        shape, dtype = self._meta(tensor)
        if tensor.numel() > CONSTANT_ELEMENTS or tensor.numel() == 0:
            raise SpecError(
                f"{self._user_of(node)}: {self.spec.name}: a constant tensor of"
                f" {tuple(tensor.shape)} is captured; make it a parameter of the function"
            )
        value = Value(axes_of(shape), const(0, dtype))
        position, items = flat_index(value), tensor.flatten().tolist()
        result = const(items[-1], dtype)
        for n, item in reversed(list(enumerate(items[:-1]))):
            result = op("where", op("le", position, index(n)), const(item, dtype), result)
        return value.with_expr(result)

    def _meta(self, val: Any) -> tuple[tuple[Expr, ...], str]:
        return tuple(self.symbols.extent(s) for s in val.shape), our_dtype(val.dtype)

    # -- nodes --------------------------------------------------------------------------------

    def _node(self, node: torch.fx.Node) -> None:
        val = node.meta.get("val")
        if getattr(node.target, "__name__", "") == "getitem":
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        elif isinstance(node.target, torch._ops.OpOverload) and not ignored(node.target):
            self.values[node] = self._call(node, val)

    def _call(self, node: torch.fx.Node, val: Any) -> Any:
        name = name_of(node.target)
        row = LOWERINGS.get(name)
        arguments = self._arguments(node)
        if row is None or not row.accepts(list(arguments)):
            raise self._unsupported(node, name)
        vals = list(val) if isinstance(val, list | tuple) else [val]
        metas = self._located(node, lambda: [self._meta(v) for v in vals])
        shapes, dtypes = zip(*metas, strict=True)
        call = Call(name, self._where(node), shapes, dtypes, self._contiguous(node), row.kind)
        result = row.lower(call, **arguments)
        results = result if isinstance(result, tuple) else (result,)
        based = self._record(node, call, row.weight, arguments, results)
        return based if isinstance(result, tuple) else based[0]

    def _arguments(self, node: torch.fx.Node) -> dict[str, Any]:
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = dict(zip([a.name for a in schema], node.args, strict=False)) | dict(node.kwargs)
        return {
            "x" if name in ("self", "input") else name: self._argument(a)
            for name, a in given.items()
            if name not in UNUSED
        }

    def _argument(self, a: Any) -> Any:
        if isinstance(a, torch.fx.Node):
            if a not in self.values:  # a size, or a number made of sizes
                self.values[a] = self._located(a, lambda: self.symbols.scalar(a.meta["val"]))
            return self.values[a]
        if isinstance(a, list | tuple):
            return [self._argument(x) for x in a]
        return a

    def _contiguous(self, node: torch.fx.Node) -> bool:
        first = next((a for a in node.args if isinstance(a, torch.fx.Node)), None)
        val = first.meta.get("val") if first is not None else None
        return isinstance(val, torch.Tensor) and val.is_contiguous()

    def _record(
        self, node: torch.fx.Node, call: Call, weight: int, arguments: dict[str, Any],
        results: tuple[Value, ...],
    ) -> tuple[Value, ...]:  # fmt: skip
        """Note the operator for the baselines, and give its results their memory."""
        tensors = [v for a in arguments.values() for v in _values_in(a)]
        reads = tuple(dict.fromkeys(v.base for v in tensors if v.base is not None))
        if call.kind == "view":
            based = tuple(_viewed(v, tensors[0].base, call.name) for v in results)
            writes = tuple(dict.fromkeys(v.base for v in based if v.base is not None))
        else:
            based = tuple(
                Value(v.axes, v.expr, Tensor(node.name + (f"_{n}" if n else ""), v.shape, v.dtype))
                for n, v in enumerate(results)
            )
            writes = tuple(v.base for v in based if v.base is not None)
        flops = call.flops
        if flops is None:
            over = tensors[0].shape if call.kind == "reduction" else call.shape
            flops = op("mul", product(over), index(0 if call.kind == "view" else weight))
        self.source_ops.append(SourceOp(node.name, call.kind, reads, writes, flops))
        return based

    # -- outputs ------------------------------------------------------------------------------

    def _outputs(self) -> tuple[list[Value], str]:
        where, called = self.spec.where, self.spec.name
        found = []
        by_name = {n.name: n for n in self.graph.nodes}
        for s in self.exported.graph_signature.output_specs:
            if s.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                raise SpecError(f"{where}: {called}: writes into {self._target(s)}; clone it first")
        for n, s in enumerate(self.exported.graph_signature.output_specs):
            value = self.values.get(by_name.get(getattr(s.arg, "name", "")))  # type: ignore[arg-type]
            if not isinstance(value, Value):
                got = getattr(s.arg, "value", None)
                raise SpecError(f"{where}: {called}: output {n} is {got!r}; return tensors only")
            if value.base is not None and value.base.name in self.inputs:
                raise SpecError(
                    f"{where}: {called}: output {n} is input {value.base.name!r} or a view of it;"
                    " return a copy of it (.clone()), or leave it out"
                )
            if value.base is not None:
                self.source_ops.append(SourceOp("output", "view", (value.base,), (), index(0)))
            found.append(value)
        if not found:
            raise SpecError(f"{where}: {called}: returns nothing")
        return found, self._returns()

    def _target(self, s: Any) -> str:
        names = {n.name: v for n, v in self.values.items() if n.op == "placeholder"}
        value = names.get(s.target)
        if isinstance(value, Value) and value.base is not None:
            return f"parameter {value.base.name!r}"
        return f"buffer {s.target!r}"

    def _returns(self) -> str:
        kind = self.exported.call_spec.out_spec.type
        if kind is tuple or kind is list:
            if any(not c.is_leaf() for c in self.exported.call_spec.out_spec.children()):
                raise SpecError(f"{self.spec.where}: {self.spec.name}: returns nested collections")
            return str(kind.__name__)
        if kind is None:
            return "tensor"
        raise SpecError(
            f"{self.spec.where}: {self.spec.name}: returns a {kind.__name__};"
            " return a tensor, or a tuple or list of tensors"
        )

    def _check_used(self, outputs: list[Value]) -> None:
        used = {n.attr.name for n in loads(*(v.expr for v in outputs))}
        for node in self.graph.nodes:
            value = self.values.get(node)
            if node.op != "placeholder" or not isinstance(value, Value) or value.base is None:
                continue
            name = value.base.name
            real = [u for u in node.users if not name_of(u.target).startswith("_assert")]
            if name in self.spec.tensors and name not in used and not real:
                raise SpecError(
                    f"{self.spec.where}: {self.spec.name}: tensor {name!r} is never used;"
                    " take it out of the function and of @spec"
                )

    # -- where --------------------------------------------------------------------------------

    def _where(self, node: torch.fx.Node) -> str:
        frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        lines = [line for file, line in frames if file == self.file]
        if lines:
            return f"{self.spec.file}:{lines[-1]}"
        return f"{frames[-1][0]}:{frames[-1][1]}" if frames else self.spec.where

    def _user_of(self, node: torch.fx.Node) -> str:
        return next((self._where(u) for u in node.users), self.spec.where)

    def _located(self, node: torch.fx.Node, convert: Callable[[], Any]) -> Any:
        try:
            return convert()
        except SpecError as error:
            name = name_of(node.target)
            raise SpecError(f"{self._where(node)}: {self.spec.name}: {name}: {error}") from error

    def _unsupported(self, node: torch.fx.Node, name: str) -> UnsupportedOperator:
        near = difflib.get_close_matches(name, LOWERINGS, 3, 0.5)
        known = f"the nearest that are: {', '.join(near)}" if near else "no similar one is"
        return UnsupportedOperator(str(node.target), self._where(node), known)


def _values_in(a: Any) -> list[Value]:
    if isinstance(a, list):
        return [v for x in a for v in _values_in(x)]
    return [a] if isinstance(a, Value) else []


def _viewed(v: Value, base: Tensor | None, name: str) -> Value:
    """The view with the part of its base that it touches, so that reads are counted right."""
    if base is None or name.startswith(("expand", "broadcast", "_unsafe_expand")):
        return Value(v.axes, v.expr, base)
    return Value(v.axes, v.expr, Tensor(base.name, v.shape, base.dtype, base.bounds))


def outputs_named(number: int, taken: set[str]) -> list[str]:
    names = ["out"] if number == 1 else [f"out{n}" for n in range(number)]
    return [next(n for n in (name, *(f"{name}_{k}" for k in range(99))) if n not in taken)
            for name in names]  # fmt: skip
