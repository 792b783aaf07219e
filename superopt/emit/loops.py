"""Loops as text, and what stands in them and between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from superopt.emit.code import text
from superopt.emit.ranges import Ranges, Section
from superopt.mugraph.expr import BINDERS, Expr
from superopt.mugraph.schedule import Accumulate, Compute, Item, Loop, Write
from superopt.mugraph.threads import core

INLINE = 60  # columns: a value used once is named where its text is longer


class Loops(Ranges):
    """Writes the items of a schedule."""

    def items(self, items: Sequence[Item]) -> None:
        for kind, group in groupby(items, key=type):
            run = list(group)
            if kind is Compute:
                values = [i.value for i in run if isinstance(i, Compute)]
                for e in sorted(filter(self.written, values), key=self.place.__getitem__):
                    self.compute(e)
            for item in run:
                if isinstance(item, Write):
                    self.store(item.store)
                elif isinstance(item, Accumulate):
                    self.accumulate(item.reduction)
                elif isinstance(item, Loop):
                    self.loop(item)

    def written(self, e: Expr) -> bool:
        """Not a cast that changes nothing, nor a product that a dot does, nor needless here."""
        return core(e) is e and e in self.place and self.uses.get(e, 0) > 0

    def compute(self, e: Expr) -> None:
        order = self.plan.order[e]
        if e.op == "load":
            self.load(e, order)
            return
        if e in self.plan.dots:
            self.assign(e, self.dot(e, order), order)
            return
        if e.op in BINDERS:
            self.reduce_whole(e)
            return
        if self.cheap(e) and self.uses[e] == 1:
            return  # index arithmetic, written where it is used
        code = self.render(e, order)
        if self.cheap(e) and len(text(code)) <= INLINE // 2:
            return
        if self.uses[e] == 1 and self.users[e] <= {self.scope} and len(text(code)) <= INLINE:
            self.values[e] = (code, order)
        else:
            self.assign(e, code, order)

    def loop(self, item: Loop) -> None:
        """A `for` for each section of the range, then what the loop has reduced."""
        a = item.axis
        self.carry(item.reductions)
        sections = self.sections(item)
        texts = [self.turn(item, section) for section in sections]
        for r in item.reductions:
            self.line(f"{self.variables[r]} = {self.initial(r, self.carried[r])}")
        for section, body in zip(sections, texts, strict=True):
            if section.comment:
                self.line(f"# {section.comment}")
            start, step = f"{self.index_names[a]}_start", self.block(a)
            self.line(f"for {start} in range({section.begin}, {section.end}, {step}):")
            self.lines += body or ["    " * (self.depth + 1) + "pass"]
        for r in item.reductions:
            self.finish_loop(r, self.carried[r])

    def turn(self, item: Loop, section: Section) -> list[str]:
        """The lines of one turn of a loop, in a section of its range."""
        a, outer = item.axis, self.lines
        used = (a in self.used_index, a in self.used_mask)
        values, raw, defined = dict(self.values), dict(self.raw), self.defined
        self.defined = {}  # of this turn, which may not be taken
        self.used_index.discard(a)
        self.used_mask.discard(a)
        with self.inside(a), self.given(section, item):
            self.lines = []
            self.items(item.body)
            for old, new in self.renewed(item.reductions):
                self.line(f"{old} = {new}")
            body, self.lines = self.lines, []
            if a in self.used_index:
                self.arange(a, f"{self.index_names[a]}_start")
            body = [*self.lines, *body]
        self.lines, self.values, self.raw = outer, values, raw
        self.defined = {n: code for n, code in defined.items() if n not in self.defined}
        for seen, keep in zip((self.used_index, self.used_mask), used, strict=True):
            (seen.add if keep else seen.discard)(a)
        return body

    @contextmanager
    def given(self, section: Section, item: Loop) -> Iterator[None]:
        """Write lines for tiles that satisfy the section's conditions."""
        before = self.holds, self.masked, self.uses
        if section.inside:
            self.holds |= section.holds
            self.masked = self.masked - {item.axis}
            self.uses = self.uses_left(item)
        yield
        self.holds, self.masked, self.uses = before

    def uses_left(self, loop: Loop) -> dict[Expr, int]:
        """How often a turn of the loop uses each value where conditions hold."""
        uses: dict[Expr, int] = {}
        stack = [u for r in reductions_in(loop) for u in self.plan.used_by(r)]
        while stack:
            e, count = stack.pop()
            e = self.kept(e)
            if e not in uses:
                stack.extend(self.plan.used_by(e))
            uses[e] = uses.get(e, 0) + count
        return uses


def reductions_in(loop: Loop) -> list[Expr]:
    """The reductions of a loop and of those inside it."""
    inner = [r for i in loop.body if isinstance(i, Loop) for r in reductions_in(i)]
    return [*loop.reductions, *inner]
