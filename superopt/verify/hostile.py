"""The hostile inputs: one table, a row each. Used inside the worker, where torch is loaded.

`data` makes a float input out of base values of mean 0 and deviation 1; `weight` does so for an
input of which every extent is fixed, where another input's are not (or where it does not share the
first extent of an output). Results are clipped to the type's range. Tables of integers stay within
their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Tensor
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import Program, weights
from superopt.verify.draws import seed_of

Change = Callable[[torch.Tensor], torch.Tensor]
PERIOD = 1_000_003  # base values repeat after so many: a prime, so that no two rows agree


def scaled(factor: float) -> Change:
    return lambda t: t * factor


def around(mean: float) -> Change:
    return lambda t: t + mean


def _steady(t: torch.Tensor) -> torch.Tensor:
    """Rows of almost one value, which stay so behind functions that are bounded."""
    return t * 0.01 + 0.7


def _sprinkled(*values: float) -> Change:
    """A few elements, in different rows where there are several, take these values."""

    def change(t: torch.Tensor) -> torch.Tensor:
        flat = t.clone().reshape(-1)
        for n, v in enumerate(values):
            if len(flat):
                flat[(2 * n + 1) * len(flat) // (2 * len(values))] = v
        return flat.reshape(t.shape)

    return change


def _rising(t: torch.Tensor) -> torch.Tensor:
    """Rows that rise by 30: what is known of a row changes at each turn of a loop along it."""
    width = t.shape[-1] if t.dim() else 1
    return t + (torch.arange(width) * (30.0 / width)).to(t.dtype)


def _begun(v: float) -> Change:
    """The first half of each row takes this value."""

    def change(t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        if t.dim():
            t[..., : t.shape[-1] // 2] = v
        return t

    return change


def _in_each_row(v: float) -> Change:
    """One element of each row, here and there, takes this value."""

    def change(t: torch.Tensor) -> torch.Tensor:
        rows = t.clone().reshape(-1, t.shape[-1] if t.dim() else 1)
        if rows.numel():
            which = torch.arange(len(rows))
            rows[which, which * 7 % rows.shape[1]] = v
        return rows.reshape(t.shape)

    return change


def _of_all_magnitudes(t: torch.Tensor) -> torch.Tensor:
    """A sixth is beyond 100, a sixth below 1e-5: what is large meets what is small.

    In half precision 255 is the most: a product of two is a number.
    """
    large = (1.2 * t) ** 9
    return large.clamp(-255, 255) if t.dtype == torch.float16 else large


def _whole(t: torch.Tensor) -> torch.Tensor:
    """Whole numbers from -2 to 2: ties, and what a comparison meets exactly."""
    return t.round().clamp(-2, 2)


def _every_third(v: float) -> Change:
    """Whole rows, every third one and the first among them, take this value."""

    def change(t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        t.reshape(-1, t.shape[-1] if t.dim() else 1)[::3] = v
        return t

    return change


def _transposed(t: torch.Tensor) -> torch.Tensor:
    """The same values with the last two axes exchanged in memory, or with gaps between them."""
    if t.dim() >= 2:
        return t.mT.contiguous().mT
    return torch.stack([t, t], dim=-1)[..., 0]


def same(t: torch.Tensor) -> torch.Tensor:
    return t


@dataclass(frozen=True)
class Row:
    name: str
    data: Change = same
    weight: Change = same
    bools: Change = same
    apart: int = 0  # inputs are large and small in turn; -1: small and large

    @property
    def wild(self) -> bool:
        """Whether values may be NaN or infinite."""
        return self.name.startswith(("a few", "a NaN", "rows"))


# In order of what they are likely to show: where a kernel is slow to run, the last are left out.
ROWS = (
    Row("ordinary"),
    Row("data scale 1e4", scaled(1e4)),
    Row("mean over spread 1000", around(1000.0)),
    Row("mean over spread -200", around(-200.0)),
    Row("rows of -inf, masks false", _every_third(float("-inf")), bools=torch.zeros_like),
    Row("data scale 1e2", scaled(1e2)),
    Row("weight scale 8", weight=scaled(8.0)),
    Row("values of all magnitudes", _of_all_magnitudes, _of_all_magnitudes),
    Row("inputs far apart", apart=1),
    Row("data scale 1e-5", scaled(1e-5)),
    Row("a few infinities", _sprinkled(float("inf"), float("-inf"))),
    Row("a few NaN", _sprinkled(float("nan"))),
    Row("a NaN in each row", _in_each_row(float("nan"))),
    Row("whole numbers", _whole),
    Row("data scale 4", scaled(4.0)),
    Row("rows that rise", _rising),
    Row("rows that begin with -inf", _begun(float("-inf"))),
    Row("mean over spread -30", around(-30.0)),
    Row("zeros", torch.zeros_like),
    Row("other strides", _transposed),
    Row("inputs far apart, the other way", apart=-1),
    Row("data scale 1e-2", scaled(1e-2)),
    Row("weight scale 1e-2", weight=scaled(1e-2)),
    Row("values near 0.7", _steady),
)


LARGE = {"f16": 32.0}  # of inputs far apart: a product of two is a number


class Inputs:
    """Makes a program's inputs on the CPU; base values are drawn once and kept for fixed shapes.

    Of large inputs only the rows that a kernel reads are made hostile, where these are known; what
    was made so is as drawn again when the next are made.
    """

    def __init__(self, program: Program, seed: int) -> None:
        self.program, self.seed = program, seed
        self.pool = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed % 2**63))
        self.kept: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        self.weights = weights(program)
        self.changed: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def make(
        self, row: Row, sizes: Mapping[str, int], read: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """`read`: numbers of rows, along the last axis, that alone need be hostile, by input."""
        for lines, numbers, values in self.changed:
            lines[numbers] = values
        self.changed = []
        return {t.name: self._input(t, row, sizes, read or {}) for t in self.program.inputs}

    def _input(
        self, tensor: Tensor, row: Row, sizes: Mapping[str, int], read: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        shape = tuple(extent_value(e, dict(sizes)) for e in tensor.shape)
        kind = DTYPES[tensor.dtype].kind
        if kind == "bool":
            return row.bools(self._base(tensor, shape) < 0.7)
        if kind == "int":
            return self._integers(tensor, shape, sizes)
        dtype = getattr(torch, DTYPES[tensor.dtype].torch)
        change = row.weight if tensor in self.weights else row.data
        if row.apart:
            floats = [t for t in self.program.inputs if DTYPES[t.dtype].kind == "float"]
            power = row.apart if floats.index(tensor) % 2 == 0 else -row.apart
            change = scaled(LARGE.get(tensor.dtype, 1e2) ** power)
        base = self._base(tensor, shape, dtype)
        if change is same:
            return base
        if change is _transposed or tensor.name not in read:
            return self._within(change(base), row)
        lines, numbers = base.view(-1, shape[-1]), read[tensor.name]
        self.changed.append((lines, numbers, lines[numbers]))
        lines[numbers] = self._within(change(lines[numbers]), row)
        return base

    @staticmethod
    def _within(x: torch.Tensor, row: Row) -> torch.Tensor:
        most = torch.finfo(x.dtype).max
        return x if row.wild else x.clamp_(-most, most)

    def _base(
        self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        key = (tensor.name, shape)
        if key not in self.kept:
            if tensor not in self.weights:  # one set of sizes at a time
                self.kept = {k: t for k, t in self.kept.items() if k[0] != tensor.name}
            count = torch.Size(shape).numel()
            pool = self.pool.roll(seed_of(tensor.name) % PERIOD).to(dtype)
            self.kept[key] = pool.repeat(-(-max(count, 1) // PERIOD))[:count].reshape(shape)
        return self.kept[key]

    def _integers(
        self, tensor: Tensor, shape: tuple[int, ...], sizes: Mapping[str, int]
    ) -> torch.Tensor:
        low, high = 0, 4
        if tensor.bounds is not None:
            low, high = (extent_value(e, dict(sizes)) for e in tensor.bounds)
        generator = torch.Generator().manual_seed(seed_of(self.seed, tensor.name) % 2**63)
        dtype = getattr(torch, DTYPES[tensor.dtype].torch)
        return torch.randint(low, max(high, low + 1), shape, generator=generator).to(dtype)
