"""The launching side of a kernel.py: the table of configurations, allocation, the launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from superopt.emit.code import Code, join, quote, text
from superopt.emit.kernels import KernelText, wrapped
from superopt.emit.locals import Locals, indented, tuple_text
from superopt.emit.tiles import least_tile
from superopt.emit.values import Param
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Axis, Tensor, is_const
from superopt.mugraph.index import value
from superopt.mugraph.program import Branch, Choice, Config, KernelGraph

WRAP = "wrap: Callable[[Any], Any] = _as_is"


@dataclass(frozen=True)
class Variant:
    """One µGraph with its kernels' texts."""

    graph: KernelGraph
    kernels: tuple[KernelText, ...]


class Launcher:
    """Writes `_launch` and what it needs."""

    def __init__(
        self, names: Locals, choices: Sequence[Choice], variants: Sequence[Variant]
    ) -> None:
        self.names, self.choices, self.variants = names, choices, variants
        self.limits = sorted({name for c in choices for name, _ in c.limits})
        self.by_size = len(choices) > 1 and bool(self.limits)
        outputs = len(names.program.outputs)
        self.returns = (
            "torch.Tensor" if outputs == 1 else f"tuple[{', '.join(['torch.Tensor'] * outputs)}]"
        )

    def write(self) -> str:
        if len(self.variants) == 1:
            lines = self.names.with_symbols(self.run(self.variants[0]))
            launch = self._define("_launch", self.names.signature(), "Allocate and launch.", lines)
            return f"{self.table()}\n\n\n{launch}"
        runs = [
            self._define(
                self.function(v), ", ".join([self.names.signature(), "configs: Any"]), "",
                self.names.with_symbols(self.run(v)),
            )
            for v in self.variants
        ]  # fmt: skip
        choose = self.names.with_symbols(
            [
                f"run, configs = {self.choose()}",
                f"return run({self.names.call()}, configs, wrap)",
            ]
        )
        doc = "Run what was chosen for the sizes."
        launch = self._define("_launch", self.names.signature(), doc, choose)
        return "\n\n\n".join([*runs, self.table(), launch])

    def _define(self, name: str, arguments: str, doc: str, lines: list[str]) -> str:
        body = indented([f'"""{doc}"""', *lines] if doc else lines)
        arguments = ", ".join(a for a in (arguments, WRAP) if a)
        return f"def {name}({arguments}) -> {self.returns}:\n{body}"

    # -- configurations -------------------------------------------------------------------------

    def table(self) -> str:
        if not self.by_size:
            last = self.choices[-1]
            return f"{_comment(last)}CONFIG = {self.entry(last)}"
        head = f"# {', '.join(self.limits)} up to -> what was chosen for that size"
        rows = [f"    {_comment(c)}{self.key(c)}: {self.entry(c)}," for c in self.choices]
        return "\n".join([head, "CONFIGS = {", *rows, "}"])

    def limit(self, choice: Choice, name: str) -> int:
        high = next((s.high for s in self.names.symbols if s.name == name), 0)
        return dict(choice.limits).get(name, high)

    def key(self, choice: Choice) -> str:
        values = [str(self.limit(choice, name)) for name in self.limits]
        return values[0] if len(values) == 1 else tuple_text(values)

    def entry(self, choice: Choice) -> str:
        variant = next(v for v in self.variants if v.graph == choice.graph)
        configs = [_config(k, c) for k, c in zip(variant.kernels, choice.configs, strict=True)]
        entry = configs[0] if len(configs) == 1 else tuple_text(configs)
        return f"({self.function(variant)}, {entry})" if len(self.variants) > 1 else entry

    def function(self, variant: Variant) -> str:
        return f"_run_{self.variants.index(variant) + 1}"

    def choose(self) -> str:
        """The table's entry for the call's sizes: the first whose limits hold, else the last."""
        if not self.by_size:
            return "CONFIG"
        symbols = {s.name: s for s in self.names.symbols}
        local = [f"{name.lower()}_limit" for name in self.limits]
        target = local[0] if len(local) == 1 else tuple_text(local)
        pairs = zip(self.limits, local, strict=True)
        fits = " and ".join(f"{self.names[symbols[n]]} <= {limit}" for n, limit in pairs)
        found = f"c for {target}, c in CONFIGS.items() if {fits}"
        last = self.choices[-1]
        if all(self.limit(last, n) >= symbols[n].high for n in self.limits):
            return f"next({found})"
        return f"next(({found}), CONFIGS[{self.key(last)}])"

    # -- launches -------------------------------------------------------------------------------

    def run(self, variant: Variant) -> list[str]:
        """Allocate what the µGraph stores, launch its kernels, return the outputs."""
        configs = ["config"] if len(variant.kernels) == 1 else []
        configs = configs or [f"config_{n + 1}" for n in range(len(variant.kernels))]
        source = self.choose() if len(self.variants) == 1 else "configs"
        lines = [f"{', '.join(configs)} = {source}"]
        for t in dict.fromkeys([*self.names.program.outputs, *variant.graph.temporaries]):
            lines.append(f"{self.names[t]} = {empty(self.names, t)}")
        for kernel, config in zip(variant.kernels, configs, strict=True):
            lines += self.launch(kernel, config)
        results = ", ".join(self.names[t] for t in self.names.program.outputs)
        return [*lines, f"return {results}"]

    def launch(self, kernel: KernelText, config: str) -> list[str]:
        counts = [self.programs(b, kernel, config) for b in kernel.kernel.branches]
        programs = text(join("+", counts))
        positional = [
            self.names[p.of]
            for p, _ in kernel.params
            if p.kind in ("pointer", "symbol") and not isinstance(p.of, Axis)
        ]
        fixed = [(p, n) for p, n in kernel.params if _fixed(p, kernel)]
        constants = [f"{n}={self.constant(p, kernel)}" for p, n in fixed]
        call = [f"wrap({kernel.name})[(programs,)]("]
        for group in (positional, self.strides(kernel), constants, [f"**{config}"]):
            call += [f"    {', '.join(line)}," for line in wrapped(group, 84)]
        call.append(")  # fmt: skip")
        if self.may_be_empty(kernel):
            call = ["if programs:", *(f"    {line}" for line in call)]
        return [f"programs = {programs}", *call]

    def strides(self, kernel: KernelText) -> list[str]:
        used: dict[Tensor, list[int]] = {}
        for p, _ in kernel.params:
            if p.kind == "stride" and isinstance(p.of, Tensor):
                used.setdefault(p.of, []).append(p.dim)
        arguments = []
        for t, dims in used.items():
            if dims == list(range(len(t.shape))):
                arguments.append(f"*{self.names[t]}.stride()")
            else:
                arguments += [f"{self.names[t]}.stride({d})" for d in dims]
        return arguments

    def constant(self, param: Param, kernel: KernelText) -> str:
        assert isinstance(param.of, Axis)
        extent = param.of.extent
        if param.kind == "extent":
            return str(extent.attr)
        least = least_tile(_branch_of(param.of, kernel), param.of)
        if is_const(extent):
            return str(max(least, 1 << max(extent.attr - 1, 0).bit_length()))
        size = f"1 << ({text(self.names.extent(extent))} - 1).bit_length()"
        lows = {s.name: s.low for s in self.names.symbols}
        return size if least == 1 and value(extent, lows) >= 1 else f"max({least}, {size})"

    def programs(self, branch: Branch, kernel: KernelText, config: str) -> Code:
        """How many programs run a branch."""
        tiles = {
            p.of.name: n for p, n in kernel.params if p.kind == "tile" and isinstance(p.of, Axis)
        }
        counts = []
        for a in branch.stores[0].axes:
            extent = self.names.extent(a.extent)
            if branch.role(a) == "program":
                counts.append(extent)
            elif branch.role(a) == "grid":
                counts.append(quote("_blocks({0}, " + f"{config}['{tiles[a.name]}'])", extent))
        return join("*", counts) if counts else quote("1")

    def may_be_empty(self, kernel: KernelText) -> bool:
        lows = {s.name: s.low for s in self.names.symbols}
        return any(
            value(a.extent, lows) == 0
            for b in kernel.kernel.branches
            for a in b.axes
            if b.role(a) in ("program", "grid")
        )


def empty(names: Locals, tensor: Tensor) -> str:
    """The expression that allocates an output or a temporary, where the first argument lives."""
    first = names.arguments[0]
    dtype = "" if first.dtype == tensor.dtype else f", dtype=torch.{DTYPES[tensor.dtype].torch}"
    return f"{names[first]}.new_empty({names.shape(tensor)}{dtype})"


def _comment(choice: Choice) -> str:
    """A line before a choice's row."""
    return f"# {choice.note}\n" if choice.note else ""


def _config(kernel: KernelText, config: Config) -> str:
    tiles = {
        n: config.by_name[p.of.name]
        for p, n in kernel.params
        if p.kind == "tile" and isinstance(p.of, Axis) and not _fixed(p, kernel)
    }
    items = [f'"{n}": {tile}' for n, tile in tiles.items()]
    items += [f'"num_warps": {config.warps}', f'"num_stages": {config.stages}']
    return f"{{{', '.join(items)}}}"


def _branch_of(a: Axis, kernel: KernelText) -> Branch:
    return next(b for b in kernel.kernel.branches if a in b.axes)


def _fixed(param: Param, kernel: KernelText) -> bool:
    """Whether the call gives a constant its value, rather than the table."""
    if param.kind == "tile" and isinstance(param.of, Axis):
        return _branch_of(param.of, kernel).role(param.of) == "whole"
    return param.kind == "extent"
