"""Random PyTorch programs: source text of specs of 3 to 12 operators, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

EXTENTS = (1, 2, 3, 4, 5, 8, 16, 17, 24, 33)
UNARY = (
    "torch.exp(-torch.abs({0}))", "torch.sigmoid({0})", "torch.tanh({0})", "F.relu({0})",
    "F.gelu({0})", "F.silu({0})", "({0} * {0} + 1.0).sqrt()", "torch.rsqrt({0} * {0} + 0.5)",
    "-{0}", "torch.abs({0})", "{0}.clamp(-0.5, 0.75)", "torch.sin({0})",
    "torch.log1p(torch.abs({0}))", "F.leaky_relu({0}, 0.1)", "F.softplus({0})", "torch.erf({0})",
    "{0} * 0.5 + 1.0", "torch.floor({0})",
)  # fmt: skip
BINARY = (
    "{0} + {1}", "{0} - {1}", "{0} * {1}", "{0} / ({1}.abs() + 1.0)", "torch.maximum({0}, {1})",
    "torch.minimum({0}, {1})", "torch.where({0} > {1}, {0}, {1} * 0.5)",
)  # fmt: skip
REDUCE = ("sum", "mean", "amax", "amin")
ROWS = ("torch.softmax({0}, {1})", "F.layer_norm({0}, ({2},))", "torch.log_softmax({0}, {1})")

Shape = tuple[int, ...]


@dataclass
class Draft:
    """A program being drawn: values by name with their shapes, and its lines."""

    rng: random.Random
    shapes: dict[str, Shape] = field(default_factory=dict)
    inputs: dict[str, Shape] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    aliases: set[str] = field(default_factory=set)  # inputs and views of them

    def fresh_input(self, shape: Shape) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = shape
        self.aliases.add(name)
        self.shapes[name] = shape
        return name

    def put(self, text: str, shape: Shape, *reads: str, view: bool = False) -> None:
        name = f"v{len(self.lines)}"
        if view and reads[0] in self.aliases:
            self.aliases.add(name)
        else:
            self.aliases.discard(name)
        self.lines.append(f"{name} = {text}")
        self.shapes[name] = shape
        self.used.update(reads)

    def pick(self, rank: int = 0) -> str:
        able = [n for n, s in self.shapes.items() if len(s) >= rank]
        recent = able[-3:] if self.rng.random() < 0.7 else able
        if not recent:
            return self.fresh_input(self.shape(rank))
        return self.rng.choice(recent)

    def shape(self, rank: int) -> Shape:
        return tuple(self.rng.choice(EXTENTS) for _ in range(rank))


def _unary(d: Draft) -> None:
    a = d.pick()
    d.put(d.rng.choice(UNARY).format(a), d.shapes[a], a)


def _binary(d: Draft) -> None:
    a = d.pick()
    shape = d.shapes[a]
    same = [n for n, s in d.shapes.items() if s == shape and n != a]
    if same and d.rng.random() < 0.6:
        b = d.rng.choice(same)
    else:
        kept = shape[d.rng.randrange(len(shape) + 1) :] if shape else ()
        b = d.fresh_input(tuple(1 if d.rng.random() < 0.3 else n for n in kept))
    d.put(d.rng.choice(BINARY).format(a, b), shape, a, b)


def _reduce(d: Draft) -> None:
    a = d.pick(1)
    shape = d.shapes[a]
    dim = d.rng.randrange(len(shape))
    keep = d.rng.random() < 0.6
    left = tuple(1 if n == dim else s for n, s in enumerate(shape) if keep or n != dim)
    d.put(f"{a}.{d.rng.choice(REDUCE)}(dim={dim}, keepdim={keep})", left, a)


def _row(d: Draft) -> None:
    a = d.pick(1)
    shape = d.shapes[a]
    text = d.rng.choice(ROWS).format(a, -1, shape[-1])
    d.put(text, shape, a)


def _matmul(d: Draft) -> None:
    a = d.pick(2)
    shape = d.shapes[a]
    able = [n for n, s in d.shapes.items() if len(s) == 2 and s[0] == shape[-1]]
    if able and d.rng.random() < 0.5:
        b = d.rng.choice(able)
    else:
        b = d.fresh_input((shape[-1], d.rng.choice(EXTENTS)))
    d.put(f"({a} @ {b}) * 0.25", (*shape[:-1], d.shapes[b][1]), a, b)


def _view(d: Draft) -> None:
    a = d.pick(1)
    shape = d.shapes[a]
    kind = d.rng.choice(
        ("transpose", "flatten", "split", "slice", "cat", "flip", "roll", "unsqueeze")
    )
    dim = d.rng.randrange(len(shape))
    n = shape[dim]
    if kind == "transpose" and len(shape) > 1:
        d.put(f"{a}.transpose(-1, -2)", (*shape[:-2], shape[-1], shape[-2]), a, view=True)
    elif kind == "flatten" and len(shape) > 1:
        d.put(f"{a}.flatten(-2)", (*shape[:-2], shape[-2] * shape[-1]), a, view=True)
    elif kind == "split" and shape[-1] % 4 == 0 and len(shape) < 4:
        d.put(
            f"{a}.unflatten(-1, (4, {shape[-1] // 4}))",
            (*shape[:-1], 4, shape[-1] // 4),
            a,
            view=True,
        )
    elif kind == "slice" and n > 2:
        d.put(
            f"{a}.narrow({dim}, 1, {n - 2})", (*shape[:dim], n - 2, *shape[dim + 1 :]), a, view=True
        )
    elif kind == "cat" and n < 40:
        d.put(f"torch.cat([{a}, -{a}], {dim})", (*shape[:dim], 2 * n, *shape[dim + 1 :]), a)
    elif kind == "flip":
        d.put(f"{a}.flip({dim})", shape, a)
    elif kind == "roll":
        d.put(f"{a}.roll(1, {dim})", shape, a)
    else:
        d.put(f"{a}.unsqueeze({dim})", (*shape[:dim], 1, *shape[dim:]), a, view=True)


ACTIONS = ((_unary, 4), (_binary, 4), (_reduce, 2), (_row, 1), (_matmul, 2), (_view, 3))


def random_spec(seed: int, name: str = "drawn") -> str:
    """The text of a spec file with one random program."""
    rng = random.Random(seed)
    d = Draft(rng)
    d.fresh_input(d.shape(rng.choice((1, 2, 2, 2, 3))))
    actions, weights = zip(*ACTIONS, strict=True)
    for _ in range(rng.randint(3, 12)):
        rng.choices(actions, weights)[0](d)
        if max(len(s) for s in d.shapes.values()) > 4 or _largest(d) > 60_000:
            d.lines.pop()
            d.shapes.popitem()
    unread = [f"v{n}" for n in range(len(d.lines)) if f"v{n}" not in d.used]
    outputs = unread[-3:] or [f"v{len(d.lines) - 1}"]
    return _text(d, name, outputs)


def _largest(d: Draft) -> int:
    def count(s: Shape) -> int:
        total = 1
        for n in s:
            total *= n
        return total

    return max(count(s) for s in d.shapes.values())


def _text(d: Draft, name: str, outputs: list[str]) -> str:
    needed, live = set(outputs), []
    for line in reversed(d.lines):
        target, text = line.split(" = ", 1)
        if target in needed:
            live.append(line)
            needed |= {n for n in (*d.shapes, *d.inputs) if _mentions(text, n)}
    inputs = {n: s for n, s in d.inputs.items() if n in needed}
    results = [f"{o} * 2.0" if o in d.aliases else o for o in outputs]  # views are refused
    tensors = ", ".join(f"{n}=Tensor({', '.join(map(str, s))})" for n, s in inputs.items())
    body = "\n".join(f"    {line}" for line in reversed(live))
    return (
        "import torch\nimport torch.nn.functional as F\n\nimport superopt\n"
        "from superopt import Tensor\n\n\n"
        f"@superopt.spec({tensors}, dtype=torch.float32)\n"
        f"def {name}({', '.join(inputs)}):\n{body}\n    return {', '.join(results)}\n"
    )


def _mentions(text: str, name: str) -> bool:
    import re

    return re.search(rf"\b{name}\b", text) is not None
