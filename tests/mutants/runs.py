"""A process that runs two kernel.py files on many inputs and says whether they ever differ.

Run as a script with TRITON_INTERPRET=1. Lines of JSON: {"unbroken": a path, "mutant": a path,
"program": the program's JSON, "arguments": names in order, "sizes": a list} -> {"differs": where,
"" if nowhere, "runs": how many}. Outputs must be equal bit for bit, but for the sign of zero; a NaN
equals a NaN, and where the original itself gives NaN a kernel that does not may give anything.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Tensor
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import Program
from superopt.mugraph.serialize import from_json
from superopt.verify.draws import seed_of
from superopt.verify.interpreter import Watch, faithful
from superopt.verify.worker import load, short_tile, tables, with_short_tiles

Draw = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def _prefix(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Rows that begin with -inf, up to somewhere."""
    width = x.shape[-1] if x.dim() else 1
    upto = torch.randint(0, width + 1, (*x.shape[:-1], 1), generator=g)
    return torch.where(torch.arange(width) < upto, float("-inf"), x)


def _sprinkled(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    kinds = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, 1e4, -1e4])
    put = torch.rand(x.shape, generator=g) < 0.05
    return torch.where(put, kinds[torch.randint(0, 6, x.shape, generator=g)], x)


def _ties(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return x.round().clamp(-2, 2)


def _rising(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Rows that rise by 200, so that a running maximum moves at each tile."""
    width = x.shape[-1] if x.dim() else 1
    return x + torch.arange(width) * (200.0 / width)


DRAWS: dict[str, Draw] = {
    "normal": lambda x, g: x,
    "ties": _ties,
    "large": lambda x, g: x * 1e3,
    "shifted": lambda x, g: x + 30.0,
    "prefixes of -inf": _prefix,
    "sprinkled": _sprinkled,
    "rising": _rising,
    "falling": lambda x, g: -_rising(x, g),
    "zeros": lambda x, g: x * 0,
}


def made(t: Tensor, sizes: Mapping[str, int], draw: Draw, g: torch.Generator) -> torch.Tensor:
    """An input, its last two dimensions exchanged in memory half of the time."""
    shape = [extent_value(e, dict(sizes)) for e in t.shape]
    dtype = getattr(torch, DTYPES[t.dtype].torch)
    if t.bounds is not None:
        low, high = (extent_value(e, dict(sizes)) for e in t.bounds)
        return torch.randint(low, max(high, low + 1), shape, generator=g).to(dtype)
    if not dtype.is_floating_point:
        return torch.randint(0, 2, shape, generator=g).to(dtype)
    x = draw(torch.randn(shape, generator=g), g).to(dtype)
    turned = x.dim() >= 2 and int(torch.randint(0, 2, (), generator=g))
    return x.mT.contiguous().mT if turned else x


def bits(t: torch.Tensor) -> Any:
    if t.dtype.is_floating_point:
        t = torch.where(t.isnan(), torch.full_like(t, float("nan")), t + 0.0)
        return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize])
    return t


@cache
def original(path: str) -> Kernel:
    return Kernel(path)


class Kernel:
    """A kernel.py, and what it returned."""

    def __init__(self, path: str) -> None:
        self.module = load(path)
        self.known: dict[Any, list[torch.Tensor]] = {}

    def run(self, case: Case, program: Program, arguments: Sequence[str]) -> list[torch.Tensor]:
        if case not in self.known:
            whole = tables(self.module)
            if case.short:
                self.module.__dict__.update(with_short_tiles(whole, short_tile(program)))
            try:
                self.known[case] = self._run(case.inputs(program), arguments)
            finally:
                self.module.__dict__.update(whole)
        return self.known[case]

    def _run(
        self, inputs: Mapping[str, torch.Tensor], arguments: Sequence[str]
    ) -> list[torch.Tensor]:
        with Watch(lambda *_: None, list(inputs.values())):
            return called(self.module._launch, inputs, arguments)


def called(
    fn: Callable[..., Any], inputs: Mapping[str, torch.Tensor], arguments: Sequence[str]
) -> list[torch.Tensor]:
    with torch.no_grad():
        result = fn(*(inputs[a] for a in arguments))
    return list(result) if isinstance(result, tuple | list) else [result]


@dataclass(frozen=True)
class Case:
    """One call: how inputs are drawn, of which sizes, and whether tiles are shortened."""

    draw: str
    sizes: tuple[tuple[str, int], ...]
    short: bool

    def inputs(self, program: Program) -> dict[str, torch.Tensor]:
        sizes = dict(self.sizes)
        g = torch.Generator().manual_seed(seed_of(self) % 2**63)
        return {t.name: made(t, sizes, DRAWS[self.draw], g) for t in program.inputs}

    def __str__(self) -> str:
        return f"{self.draw} at {dict(self.sizes)}" + ", short tiles" * self.short


def cases(sizes: Sequence[Mapping[str, int]]) -> Iterator[Case]:
    """All draws with short tiles, where loops take several turns; a few at every size."""
    for draw in DRAWS:
        yield Case(draw, tuple(sizes[0].items()), True)
    for n, some in enumerate(sizes):
        for draw in list(DRAWS)[n::3]:
            yield Case(draw, tuple(some.items()), False)


def equal(
    want: Sequence[torch.Tensor], got: Sequence[torch.Tensor], eager: Sequence[torch.Tensor]
) -> bool:
    if [t.shape for t in want] != [t.shape for t in got]:
        return False
    free = [e.isnan() & ~w.isnan() for e, w in zip(eager, want, strict=True)]
    triples = zip(want, got, free, strict=True)
    return all(bool(((bits(w) == bits(g)) | f).all()) for w, g, f in triples)


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    program, arguments = from_json(job["program"]), job["arguments"]
    unbroken, mutant = original(job["unbroken"]), Kernel(job["mutant"])
    runs = 0
    for case in cases(job["sizes"]):
        want = unbroken.run(case, program, arguments)
        eager = called(unbroken.module.reference, case.inputs(program), arguments)
        try:
            got = mutant.run(case, program, arguments)
        except Exception as error:
            return {"differs": f"{case}: {type(error).__name__}: {error}", "runs": runs}
        runs += 1
        if not equal(want, got, eager):
            return {"differs": str(case), "runs": runs}
    return {"differs": "", "runs": runs}


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    faithful()
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
