"""Names for the emitted text: readable, valid, each used once."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable

RESERVED = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "tl", "triton", "torch", "F"}
)


def identifier(text: str) -> str:
    """The nearest Python identifier: `fc.weight` -> `fc_weight`."""
    name = re.sub(r"\W", "_", text)
    return f"_{name}" if not name or name[0].isdigit() else name


class Namer:
    """Hands out names that are free: `x`, then `x_1`, `x_2`, ..."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)

    def new(self, stem: str) -> str:
        stem = identifier(stem)
        name, number = stem, 0
        while name in self.taken or name in RESERVED:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name
