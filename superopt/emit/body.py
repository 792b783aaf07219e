"""The text of one branch: index vectors, loads, tile operators, loops with accumulators, stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from superopt.emit.code import Code, join, quote, text
from superopt.emit.loops import Loops
from superopt.emit.values import Param
from superopt.mugraph.expr import Axis

GROUP = 8  # rows of blocks that neighbouring programs of a matrix product share in L2


@dataclass(frozen=True)
class Body:
    """The text of one branch, without its `def` line. `programs`: how many run it."""

    lines: tuple[str, ...]
    params: tuple[tuple[Param, str], ...]  # with their names, in the order of a signature
    programs: Code
    helpers: frozenset[str]


KINDS = ("pointer", "symbol", "stride", "extent", "tile")


def in_signature_order(params: Mapping[Param, str]) -> tuple[tuple[Param, str], ...]:
    """Parameters by kind, in the order met, but a tensor's strides by dimension."""
    pointers = [p.of for p in params if p.kind == "pointer"]

    def place(item: tuple[Param, str]) -> tuple[int, int, int]:
        param = item[0]
        tensor = pointers.index(param.of) if param.kind == "stride" else 0
        return KINDS.index(param.kind), tensor, param.dim

    return tuple(sorted(params.items(), key=place))


class Writer(Loops):
    """Writes one branch."""

    def write(self) -> Body:
        self.items(self.plan.items)
        body, self.lines = self.lines, []
        programs = self.preamble()
        lines = (*self.lines, *body)
        return Body(lines, in_signature_order(self.params), programs, frozenset(self.helpers))

    def preamble(self) -> Code:
        """Define what stands outside of all loops; returns the number of programs."""
        split = [
            a for a in self.branch.stores[0].axes if self.branch.role(a) in ("program", "grid")
        ]
        pair = self.swizzled_pair(split)
        if pair:
            split = [a for a in split if a not in pair] + list(pair)
        counts = [self.programs_along(a) for a in split]
        self.split_program_id(split, counts, bool(pair))
        for a in self.branch.axes:
            if self.branch.role(a) == "whole" and a in self.used_index:
                self.arange(a)
        return join("*", counts) if counts else quote("1")

    def swizzled_pair(self, split: list[Axis]) -> tuple[Axis, Axis] | None:
        for dot in self.plan.dots.values():
            if all(a in split and self.branch.role(a) == "grid" for a in (dot.m, dot.n)):
                first, second = sorted((dot.m, dot.n), key=split.index)
                return first, second
        return None

    def programs_along(self, a: Axis) -> Code:
        if self.branch.role(a) == "program":
            return self.extent(a)
        return quote("tl.cdiv({0}, {1})", self.extent(a), self.block(a))

    def split_program_id(self, split: list[Axis], counts: list[Code], swizzle: bool) -> None:
        """Define the index of every axis that is split over programs; the last varies fastest."""
        place: dict[Axis, Code] = {a: quote("pid") for a in split}
        sizes: list[Code] = []
        for n, a in enumerate(split):
            if self.branch.role(a) == "grid" and n:
                self.line(f"blocks_{self.index_names[a]} = {text(counts[n])}")
                sizes.append(quote(f"blocks_{self.index_names[a]}"))
            else:
                sizes.append(counts[n])
        for n, a in enumerate(split):
            after = sizes[n + 1 :]
            if after:
                place[a] = quote("pid // {0}", join("*", after))
            if n:
                place[a] = quote("{0} % {1}", place[a], sizes[n])
        if swizzle:
            self.swizzle(split, counts, place)
        for a in split:
            self.define_split(a, place[a])

    def swizzle(self, split: list[Axis], counts: list[Code], place: dict[Axis, Code]) -> None:
        """Order the programs so that those running together share operands in L2."""
        first, second = split[-2:]
        one, two = (f"block_{self.index_names[a]}" for a in (first, second))
        rows = counts[-2] if len(split) == 2 else quote(f"blocks_{self.index_names[first]}")
        size = text(rows), f"blocks_{self.index_names[second]}"
        at = f"{text(place[first])}, {text(place[second])}"
        self.line("# programs in groups of rows: those that run together share operands in L2")
        self.line(f"{one}, {two} = tl.swizzle2d({at}, {size[0]}, {size[1]}, {GROUP})")
        place[first], place[second] = quote(one), quote(two)

    def define_split(self, a: Axis, place: Code) -> None:
        name = self.index_names[a]
        if self.branch.role(a) == "grid":
            start = text(quote("{0} * {1}", place, self.block(a)))
            if a in self.used_start:
                self.line(f"{name}_start = {start}")
                start = f"{name}_start"
            if a in self.used_index:
                self.arange(a, start)
        elif a in self.used_index:
            wide = quote("{0}.to(tl.int64)", place) if self.wide else place
            self.line(f"{name} = {text(wide)}")
