"""The text of one launch: a jitted function, and one for each kind of branch if it has several."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from superopt.emit.body import KINDS, Body, Writer, in_signature_order
from superopt.emit.code import text
from superopt.emit.names import Namer
from superopt.emit.values import Param
from superopt.mugraph.expr import Axis, Tensor
from superopt.mugraph.index import value
from superopt.mugraph.program import Branch, Config, Kernel, loads, symbols_of

INDEX_LIMIT = 2**31  # elements: offsets beyond need 64 bits


@dataclass(frozen=True)
class KernelText:
    """A kernel's text and what a host must pass it: every parameter with its name, in order.

    `source` holds the branches' functions first; `helpers` names entries of `helpers.HELPERS`.
    """

    kernel: Kernel
    name: str
    source: str
    params: tuple[tuple[Param, str], ...]
    helpers: frozenset[str]
    wide: bool

    def tiles(self) -> list[tuple[Axis, str]]:
        return [(p.of, name) for p, name in self.params if p.kind == "tile"]  # type: ignore[misc]


@dataclass(frozen=True)
class Options:
    """What holds for all branches of a kernel: see `body.Writer`."""

    configs: tuple[Config, ...]
    contiguous: frozenset[Tensor]
    precision: str
    reserved: frozenset[str]


def write_kernel(kernel: Kernel, name: str, options: Options) -> KernelText:
    """One kernel's text, good for all of its configurations."""
    wide = exceeds_int32(kernel)
    bodies = [_body(branch, options, wide, {}) for branch in kernel.branches]
    if len(bodies) > 1:
        return _joined(kernel, name, bodies, options, wide)
    (body,) = bodies
    lines = list(body.lines)
    if any("pid" in line for line in lines):
        lines.insert(0, "    pid = tl.program_id(0)")
    source = _def(name, _signature(body.params), lines)
    return KernelText(kernel, name, source, body.params, body.helpers, wide)


def _body(branch: Branch, options: Options, wide: bool, alias: Mapping[Tensor | Axis, str]) -> Body:
    return Writer(
        branch,
        options.configs,
        options.contiguous,
        wide,
        options.precision,
        options.reserved,
        alias,
    ).write()


def exceeds_int32(kernel: Kernel) -> bool:
    """Whether a tensor of the kernel may have 2**31 elements or more."""
    tensors = {s.tensor for s in kernel.stores}
    tensors |= {n.attr for n in loads(*(r for s in kernel.stores for r in (s.value, *s.indices)))}
    return any(most_elements(t) >= INDEX_LIMIT for t in tensors)


def most_elements(tensor: Tensor) -> int:
    highs = {s.name: s.high for s in symbols_of([tensor])}
    return prod(value(e, highs) for e in tensor.shape)


def _twin(
    branches: Sequence[Branch], bodies: Sequence[Body], number: int, options: Options, wide: bool
) -> int:
    """The first branch whose text this one's is, but for the names of tensors and axes."""
    ours = _named(branches[number], bodies[number])
    for other in range(number):
        theirs = _named(branches[other], bodies[other])
        if len(theirs) != len(ours):
            continue
        alias = {mine: their.name for mine, their in zip(ours, theirs, strict=True)}
        renamed = _body(branches[number], options, wide, alias)
        same_names = [n for _, n in renamed.params] == [n for _, n in bodies[other].params]
        if same_names and renamed.lines == bodies[other].lines:
            return other
    return number


def _named(branch: Branch, body: Body) -> list[Tensor | Axis]:
    tensors = [p.of for p, _ in body.params if p.kind == "pointer" and isinstance(p.of, Tensor)]
    return [*tensors, *branch.axes]


def _def(name: str, signature: list[str], lines: list[str]) -> str:
    head = "\n".join(f"    {line}" for line in signature)
    body = "\n".join(lines)
    return f"@triton.jit\ndef {name}(\n{head}\n):  # fmt: skip\n{body}\n"


def _signature(params: tuple[tuple[Param, str], ...], first: str = "") -> list[str]:
    """The parameters' lines, a kind a line."""
    lines = [[first]] if first else []
    for kind in KINDS:
        mark = ": tl.constexpr" if kind in ("extent", "tile") else ""
        lines.extend(wrapped([f"{name}{mark}" for p, name in params if p.kind == kind]))
    return [", ".join(group) + "," for group in lines]


def wrapped(items: list[str], width: int = 92) -> list[list[str]]:
    """Items in lines of up to `width` columns."""
    lines: list[list[str]] = []
    for item in items:
        if lines and sum(len(x) + 2 for x in lines[-1]) + len(item) < width:
            lines[-1].append(item)
        else:
            lines.append([item])
    return lines


class _Rename(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id))


def _joined(
    kernel: Kernel, name: str, bodies: list[Body], options: Options, wide: bool
) -> KernelText:
    """The launch of several branches, each with a range of programs of its own."""
    twins = [_twin(kernel.branches, bodies, n, options, wide) for n in range(len(bodies))]
    stem = name.removesuffix("_kernel")
    function = {twin: f"{stem}_part{n or ''}" for n, twin in enumerate(dict.fromkeys(twins))}
    namer = Namer({*options.reserved, "pid", *function.values()})
    outer: dict[Param, str] = {}
    lines, start = ["    pid = tl.program_id(0)"], "0"
    calls: list[str] = []
    for number, (branch, body) in enumerate(zip(kernel.branches, bodies, strict=True)):
        names = {local: _outer(outer, namer, branch, p, local) for p, local in body.params}
        place = f"pid - {start}" if number else "pid"
        calls.append(_condition(number, len(bodies)))
        arguments = wrapped([place, *(names[n] for _, n in body.params)], 84)
        calls += [
            f"        {function[twins[number]]}(",
            *(f"            {', '.join(group)}," for group in arguments),
            "        )  # fmt: skip",
        ]
        if number < len(bodies) - 1:
            programs, end = text(_Rename(names).visit(copy.deepcopy(body.programs))), f"end{number}"
            lines.append(
                f"    {end} = {start} + {programs}" if number else f"    {end} = {programs}"
            )
            start = end
    lines += calls
    params = in_signature_order(outer)
    parts = [
        _def(function[n], _signature(bodies[n].params, "pid"), list(bodies[n].lines))
        for n in function
    ]
    source = "\n\n".join([*parts, _def(name, _signature(params), lines)])
    helpers = frozenset().union(*(b.helpers for b in bodies))
    return KernelText(kernel, name, source, params, helpers, wide)


def _condition(number: int, count: int) -> str:
    if number == count - 1:
        return "    else:"
    return f"    {'elif' if number else 'if'} pid < end{number}:"


def _outer(outer: dict[Param, str], namer: Namer, branch: Branch, param: Param, local: str) -> str:
    """A branch's parameter as one of the launch: branches share tiles by the axis's name."""
    if param.kind == "tile" and isinstance(param.of, Axis) and branch.role(param.of) != "whole":
        for other, name in outer.items():
            if (
                other.kind == "tile"
                and isinstance(other.of, Axis)
                and other.of.name == param.of.name
            ):
                return name
    if param not in outer:
        outer[param] = namer.new(local)
    return outer[param]
