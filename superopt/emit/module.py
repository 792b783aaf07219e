"""A whole kernel.py: docstring, configurations, kernels, the spec's own function, the host side."""

from __future__ import annotations

import hashlib
import re
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from superopt.emit.guards import REFUSE, SPAN, fits, signature_table
from superopt.emit.guards import traced as traced_text
from superopt.emit.kernels import KernelText, Options, write_kernel
from superopt.emit.launch import Launcher, Variant, empty
from superopt.emit.locals import Locals, indented
from superopt.emit.names import identifier
from superopt.emit.reference import reference_text
from superopt.mugraph.expr import Tensor
from superopt.mugraph.helpers import HELPERS, with_needed
from superopt.mugraph.program import Choice, Config, Kernel, KernelGraph, Traced
from superopt.mugraph.text import inline

LINE = 100

IMPORTS = (
    "from collections.abc import Callable",
    "from typing import Any",
    "import torch",
    "import triton",
    "import triton.language as tl",
)

BLOCKS = """
def _blocks(extent: int, tile: int) -> int:
    return -(-extent // tile)
"""

AS_IS = """
def _as_is(kernel: Any) -> Any:
    return kernel
"""


@dataclass(frozen=True)
class Notes:
    """What a kernel.py's docstring says, and what its text needs from outside the program.

    `predicted`: a line for each size. `sentences`: what was fused and why. `precision`: of fp32
    dots.
    """

    target: str
    verdict: str
    predicted: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    spec: str = ""
    precision: str = "ieee"


def emit(traced: Traced, choices: Sequence[Choice], notes: Notes) -> str:
    """The text of a kernel.py that runs `choices` and stands alone, formatted.

    Raises IllFormed where a choice is not a µGraph of the traced program.
    """
    name = identifier(traced.program.name)
    reserved = frozenset({name, "reference", *HELPERS})
    variants = _variants(choices, name, notes.precision, reserved)
    kernels = list(dict.fromkeys(k for v in variants for k in v.kernels))
    names = Locals(traced, {*reserved, *(k.name for k in kernels), *_HOST_NAMES})
    helpers = with_needed(set().union(*(k.helpers for k in kernels)))
    launcher = Launcher(names, choices, variants)
    guard, launch = fits(names, _narrow(kernels)), launcher.write()
    before = [*(HELPERS[h] for h in helpers), *(k.source for k in kernels)]
    after = [
        signature_table(names),
        REFUSE,
        *([SPAN] if "_span(" in guard else []),
        guard,
        traced_text(names),
        *([BLOCKS] if "_blocks(" in launch else []),
        AS_IS,
        launch,
    ]
    entry = partial(_entry, traced, names, launcher.returns, name)
    others = [*IMPORTS, *before, *after, entry("")]
    imports, reference = reference_text(traced, names.call(), others)
    text = "\n\n\n".join(part.strip("\n") for part in (*before, reference, *after))
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    head = [_docstring(traced, notes, name), _imports(imports)]
    return formatted("\n\n".join(head) + "\n\n\n" + text + "\n\n\n" + entry(digest))


def _imports(more: Sequence[str]) -> str:
    """All imports, the standard library's first."""
    lines = dict.fromkeys([*IMPORTS, *more])

    def ours(line: str) -> bool:
        return line.split()[1].split(".")[0] in ("torch", "triton")

    standard = sorted((x for x in lines if not ours(x)), key=lambda x: (x.startswith("from"), x))
    return "\n".join([*standard, "", *sorted(x for x in lines if ours(x))])


_HOST_NAMES = {
    "SIGNATURE", "RANGES", "CONFIG", "CONFIGS", "Callable", "Any", "programs", "config", "configs",
    "wrap", "run", "result", "device", "PLAIN",
}  # fmt: skip


def formatted(text: str) -> str:
    """The text as `ruff format` lays it out."""
    from ruff import find_ruff_bin  # a machine that only runs and times kernels may be without

    command = [find_ruff_bin(), "format", "--isolated", "--line-length", str(LINE), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"emitted text does not parse: {done.stderr.strip()}\n{text}")
    return done.stdout


def _variants(
    choices: Sequence[Choice], name: str, precision: str, reserved: frozenset[str]
) -> list[Variant]:
    """The distinct µGraphs, with the text of each kernel, good for all its configurations."""
    graphs = list(dict.fromkeys(c.graph for c in choices))
    configs: dict[tuple[Kernel, frozenset[Tensor]], dict[Config, None]] = {}
    for choice in choices:
        for kernel, config in zip(choice.graph.kernels, choice.configs, strict=True):
            configs.setdefault((kernel, _allocated(choice.graph)), {})[config] = None
    texts: dict[tuple[Kernel, frozenset[Tensor]], KernelText] = {}
    for key, used in configs.items():
        number = f"_{len(texts) + 1}" if len(configs) > 1 else ""
        options = Options(tuple(used), key[1], precision, reserved)
        texts[key] = write_kernel(key[0], f"{name}_kernel{number}", options)
    return [Variant(g, tuple(texts[k, _allocated(g)] for k in g.kernels)) for g in graphs]


def _allocated(graph: KernelGraph) -> frozenset[Tensor]:
    """Tensors that the wrapper allocates, contiguous."""
    return frozenset(s.tensor for k in graph.kernels for s in k.stores)


def _narrow(kernels: Sequence[KernelText]) -> set[Tensor]:
    """Tensors that some kernel addresses with 32-bit offsets."""
    return {
        p.of for k in kernels if not k.wide for p, _ in k.params
        if p.kind == "pointer" and isinstance(p.of, Tensor)
    }  # fmt: skip


def _docstring(traced: Traced, notes: Notes, name: str) -> str:
    source = f" of {notes.spec}" if notes.spec else ""
    lines = [f"{name}: found by superopt from spec `{traced.program.name}`{source}.", ""]
    lines += [f"Target {notes.target}. Verdict: {notes.verdict}.", ""]
    for paragraph in (" ".join(notes.sentences), *notes.predicted):
        lines += textwrap.wrap(paragraph, LINE)
    text = "\n".join(lines).strip().replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""'


def _shape_text(tensor: Tensor) -> str:
    return f"({', '.join(inline(e) for e in tensor.shape)}) {tensor.dtype}"


def _entry(traced: Traced, names: Locals, returns: str, name: str, digest: str) -> str:
    """The registered operator and the function that users call."""
    call, signature = names.call(), names.signature()
    first = names[names.arguments[0]]
    shapes = ", ".join(f"{names[t]} {_shape_text(t)}" for t in names.arguments)
    results = ", ".join(_shape_text(t) for t in names.program.outputs)
    wraps = {"tensor": "{}", "tuple": "{}", "list": "list({})"}[traced.returns]
    if len(names.program.outputs) == 1:
        wraps = {"tensor": "{}", "tuple": "({},)", "list": "[{}]"}[traced.returns]
    public = {"tensor": returns, "tuple": returns, "list": "list[torch.Tensor]"}[traced.returns]
    if traced.returns == "tuple" and len(names.program.outputs) == 1:
        public = "tuple[torch.Tensor]"
    allocate = [f"{names[t]} = {empty(names, t)}" for t in names.program.outputs]
    allocate.append(f"return {', '.join(names[t] for t in names.program.outputs)}")
    doc = "\n".join(textwrap.wrap(f"{shapes}, any strides -> {results}.", LINE - 8))
    lines = [
        f'"""{doc}"""',
        f"if not _fits({call}):",
        f"    _refuse({call})",
        f"device = {first}.device",
        f"if _traced({call}):",
        f"    result = _op({call})",
        'elif device.type == "cpu":',
        "    if not triton.knobs.runtime.interpret:",
        f"        return reference({call})",
        f"    result = _launch({call})",
        "else:",
        "    with torch.cuda.device(device):",
        f"        result = _launch({call})",
        f"return {wraps.format('result')}",
    ]
    return "\n".join(
        [
            f'@torch.library.triton_op("superopt::{name}_{digest}", mutates_args={{}})',
            f"def _op({signature}) -> {returns}:",
            f"    return _launch({call}, torch.library.wrap_triton)",
            "",
            "",
            "@_op.register_fake",
            f"def _fake({signature}) -> {returns}:",
            indented(names.with_symbols(allocate)),
            "",
            "",
            f"def {name}({signature}) -> {public}:",
            re.sub(r"(?m)^    +$", "", indented("\n".join(lines).split("\n"))),
        ]
    )
