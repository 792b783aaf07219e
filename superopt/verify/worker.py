"""The process that runs emitted kernels: `python -m superopt.verify.worker`.

TRITON_INTERPRET=1 must be set. Jobs come in and results go out as lines of JSON; `gate.py` holds
the other end.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.evaluate import Array, Evaluator, run_program
from superopt.mugraph.expr import Axis, Tensor, toposort
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import Program, Store
from superopt.mugraph.serialize import from_json
from superopt.verify import closed, draws
from superopt.verify.hostile import ROWS, Inputs, Row
from superopt.verify.interpreter import Launch, Watch, faithful, widen
from superopt.verify.judge import Judgement, judge, pooled
from superopt.verify.tested import describe

TAME = (
    0.0,
    4096.0,
    -4096.0,
)  # what stands for values that are not finite, where masks may hide them
MOST_PROGRAMS = 16  # of the last launch, for one set of inputs
MORE_AT_ONCE = 1.25  # times what one of them takes: so long they may take in any case
MOST_POOL = 16  # of the last launch, for all sets of inputs of one size
MOST_ELEMENTS = 4096  # compared in one output, for one set of inputs
ROW_ELEMENTS = 128  # of each row compared, to know its largest value and eager's error
LEAST_OF_ROW = 8  # of these, however long each takes
MOST_WORK = 8_000_000  # scalar operations of a reference, for one output and set of inputs
MOST_ROW_WORK = 16 * MOST_WORK  # of a row that tells what is allowed
EAGER_WORK = 3_000_000  # up to here eager itself is run; beyond, its rounding is emulated
MARGINAL = 16.0  # times what is allowed: up to here more draws decide
MORE_ROWS = 16  # of each dimension, for eager's errors, where a verdict is marginal
REDRAWS = 4
MOST_REDRAWN = 1 << 27  # elements of input drawn anew for one set of inputs: fewer draws beyond
SHORT = ", short tiles"  # said of inputs that a kernel was given with its tiles shortened
SHORT_TILE = 16  # their length, the least that a dot takes; longer where an extent is fixed and
TURNING = ("ordinary", "rows that rise", "rows that begin with -inf")  # rows run with short tiles
MOST_TURNS = 32  # would take more turns of a loop than so many
LARGE = 1 << 24  # elements of an input, of which only the rows that are read are made hostile
MOST_COST = 6.0  # estimated seconds of running all programs of launches before the last


def to_numpy(t: torch.Tensor) -> Array:
    """The values of a CPU tensor, float64 for bfloat16."""
    if t.dtype == torch.bfloat16:
        return widen(t.contiguous().view(torch.int16).numpy().view(np.uint16)).astype(np.float64)
    return t.numpy()


def lazily(t: torch.Tensor) -> Any:
    """A tensor for the evaluator, which takes out and widens only the elements that it reads."""
    if t.dim() == 0 or t.dtype != torch.bfloat16:
        return to_numpy(t)
    bits = t.view(torch.int16).numpy().view(np.uint16)
    return draws.Indexed(t.shape, np.float64, lambda at: widen(bits[at]).astype(np.float64))


def _finite(x: Any, value: float) -> Any:
    """The same with a number in place of NaN and infinities, as it is read."""
    if not isinstance(x, draws.Indexed | np.ndarray) or not np.issubdtype(x.dtype, np.floating):
        return x
    if not x.shape:
        return np.where(np.isfinite(x), x, value)

    def element(at: tuple[Array, ...]) -> Array:
        found = x[at]
        return np.where(np.isfinite(found), found, value)

    return draws.Indexed(x.shape, x.dtype, element)


@dataclass
class Failure(Exception):
    """The gate's witness."""

    witness: dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """An output's judgement, and its worst element as a witness."""

    judgement: Judgement
    witness: dict[str, Any]


class Job:
    """One kernel against one program."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.program: Program = from_json(job["program"])
        self.sizes: list[dict[str, int]] = job["sizes"]
        self.seed: int = job["seed"]
        self.seconds: float = job["seconds"]
        self.full: bool = job["full"]
        self.module = load(job["kernel"])
        self.kernel: Callable[..., Any] = getattr(self.module, job["name"])
        self.tables = tables(self.module)
        self.arguments: list[str] = job["arguments"]
        self.has_reference: bool = job["reference"]  # a module's kernel.py carries none that runs
        self.inputs = Inputs(self.program, self.seed)
        self.worst, self.worst_at = 0.0, ""
        self.eager: set[str] = set()
        self.left_out: list[str] = []
        self.runs = self.ran = self.compared = 0
        self.costs: dict[str, list[Launch]] = {}  # sizes -> what one program of each launch does
        self.spent = 0.0  # estimated seconds of earlier launches
        self.rows: dict[str, dict[str, torch.Tensor]] = {}  # sizes -> rows read of large inputs
        self.widest: dict[str, int] = {}  # lanes of each kernel's largest tile

    def run(self) -> dict[str, Any]:
        plan = list(self.plan())
        try:
            for n, (row, sizes, tables) in enumerate(plan):
                self.module.__dict__.update(tables)
                self.one(n, len(plan), row, sizes)
        except Failure as failure:
            return self.result(failure.witness)
        return self.result({})

    def result(self, witness: dict[str, Any]) -> dict[str, Any]:
        ran = f"{self.runs} sets of inputs, {self.ran} programs, {self.compared} elements compared"
        return {
            "passed": not witness,
            "worst": witness.get("ratio", self.worst),
            "worst_at": self.worst_at,
            "witness": witness,
            "eager": sorted(self.eager),
            "left_out": self.left_out,
            "scope": f"{describe(self.sizes)}; {ran}",
        }

    def plan(self) -> Iterator[tuple[Row, dict[str, int], Tables]]:
        """Ordinary inputs at every size; each hostile row at one size, a different one in turn.

        What is refused is mostly refused by hostile inputs: these come before the other sizes.
        Where tiles are long, rows that tell turns of a loop apart are run with short ones too.
        A full run is about which elements are written: it takes ordinary inputs alone.
        """
        first, *others = self.sizes
        yield ROWS[0], first, self.tables
        if not self.full:
            elements = [sum(self.numel(t, s) for t in self.program.inputs) for s in self.sizes]
            least = min(elements)
            large = [s for s, n in zip(self.sizes, elements, strict=True) if n > least]
            small = [s for s in large if all(v <= 32 for v in s.values())] or large or self.sizes
            for n, row in enumerate(ROWS[1:]):
                yield row, small[n % len(small)], self.tables
        for sizes in others:
            yield ROWS[0], sizes, self.tables
        shortened = with_short_tiles(self.tables, short_tile(self.program))
        if not self.full and shortened != self.tables:
            several = max(self.sizes, key=turns)
            for row in (r for r in ROWS if r.name in TURNING):
                yield replace(row, name=row.name + SHORT), several, shortened

    def numel(self, t: Tensor, sizes: Mapping[str, int]) -> int:
        return int(np.prod([extent_value(e, dict(sizes)) for e in t.shape]))

    # -- one set of inputs ----------------------------------------------------------------------

    def one(self, n: int, of: int, row: Row, sizes: dict[str, int]) -> None:
        where = {"inputs": row.name, "sizes": sizes}
        drawn = self.inputs.make(ROWS[0], sizes)
        chosen = self.choose(n, of, drawn, sizes, where)
        if chosen is None:
            self.left_out.append(f"{row.name} at {sizes}" if sizes else row.name)
            return
        inputs = self.inputs.make(row, sizes, self.rows_read(drawn, chosen, where))
        outputs, watch = self.launch(inputs, lambda launch, _: chosen[launch], where)
        self.runs += 1
        self.ran += sum(launch.ran for launch in watch.launches)
        written = [watch.written(t) for t in outputs]
        self.check_shapes(outputs, sizes, where)
        everything = self.full or all(c is None for c in chosen)
        if everything:
            self.check_whole(written, where)
        rng = random.Random(f"{self.seed} {n}")
        found = self.compare(row, inputs, outputs, written, sizes, where, rng)
        if any(1 < c.judgement.ratio <= MARGINAL for c in found):
            found = self.compare(row, inputs, outputs, written, sizes, where, rng, MORE_ROWS)
            found = self.pool([found])
        if any(1 < c.judgement.ratio <= MARGINAL for c in found):
            found = self.pool([found, *self.redrawn(row, sizes, chosen, rng)])
        for c in found:
            self.compared += c.judgement.compared
            if c.judgement.ratio > self.worst:
                self.worst, self.worst_at = c.judgement.ratio, f"{row.name} at {sizes}"
            if c.judgement.ratio > 1:
                raise Failure(c.witness)

    def rows_read(
        self,
        drawn: Mapping[str, torch.Tensor],
        chosen: Sequence[set[int] | None],
        where: Mapping[str, Any],
    ) -> dict[str, torch.Tensor]:
        """Which rows of large inputs a lone launch reads, of which some programs are run at all."""
        large = {n: t for n, t in drawn.items() if t.numel() > LARGE and t.is_floating_point()}
        if not large or len(chosen) != 1 or chosen[0] is None:
            return {}
        key = self.kind_of(where)
        if key not in self.rows:
            pool = set(self.pool_of(self.costs[key][0].programs))
            _, watch = self.launch(drawn, lambda *_: pool, where, noting=True)
            self.rows[key] = {
                name: torch.tensor(sorted(watch.rows.get(t.untyped_storage().data_ptr(), ())))
                for name, t in large.items()
            }
        return self.rows[key]

    def kind_of(self, where: Mapping[str, Any]) -> str:
        """The sizes of a set of inputs, and whether tiles are short: what the programs do."""
        return json.dumps([where["sizes"], where["inputs"].endswith(SHORT)], sort_keys=True)

    def redrawn(
        self,
        row: Row,
        sizes: dict[str, int],
        chosen: Sequence[set[int] | None],
        rng: random.Random,
    ) -> Iterator[list[Compared]]:
        """What some more draws of a kind of input give."""
        elements = sum(self.numel(t, sizes) for t in self.program.inputs)
        redraws = min(REDRAWS, MOST_REDRAWN // max(elements, 1))
        for again in range(1, redraws + 1):
            where = {"inputs": f"{row.name}, draw {again}", "sizes": sizes}
            inputs = Inputs(self.program, self.seed + again).make(row, sizes)
            outputs, watch = self.launch(inputs, lambda launch, _: chosen[launch], where)
            written = [watch.written(t) for t in outputs]
            yield self.compare(row, inputs, outputs, written, sizes, where, rng, MORE_ROWS)

    @staticmethod
    def pool(draws: Sequence[Sequence[Compared]]) -> list[Compared]:
        """Each output's draws of one kind of input, judged together."""
        result = []
        for own in zip(*draws, strict=True):
            worst = max(own, key=lambda c: c.judgement.ratio)
            ratio = pooled([c.judgement for c in own])
            judgement = replace(worst.judgement, ratio=ratio)
            result.append(Compared(judgement, {**worst.witness, "ratio": ratio}))
        return result

    def launch(
        self,
        inputs: Mapping[str, torch.Tensor],
        plan: Callable[[int, int], set[int] | None],
        where: Mapping[str, Any],
        noting: bool = False,
    ) -> tuple[list[torch.Tensor], Watch]:
        try:
            watch = Watch(plan, list(inputs.values()), noting=noting, widest=self.widest)
            with watch, torch.no_grad():
                result = self.kernel(*(inputs[name] for name in self.arguments))
        except Exception as error:
            cause = error
            while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
                cause = cause.__cause__
            message = f"{type(cause).__name__}: {cause}"
            raise Failure({**where, "raised": message, "ratio": float("inf")}) from error
        return list(result) if isinstance(result, tuple | list) else [result], watch

    def choose(
        self,
        n: int,
        of: int,
        inputs: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
        where: Mapping[str, Any],
    ) -> list[set[int] | None] | None:
        """The programs of each launch to run (None: all); None where that would take too long.

        Of the last launch some are run, of those before it all, as the last may read all they
        store. Costs come from running the first program of each launch, once for each sizes, and
        are counted, not timed, so that the choice is the same everywhere.
        """
        key = self.kind_of(where)
        if key not in self.costs:
            _, watch = self.launch(inputs, lambda *_: {0}, where)
            self.costs[key] = watch.launches
        costs = self.costs[key]
        if self.full:
            total = sum(launch.seconds(launch.programs) for launch in costs)
            return None if n and total > self.seconds else [None] * len(costs)
        if not costs:
            return []
        *before, last = costs
        earlier = sum(launch.seconds(launch.programs) for launch in before)
        if n and self.spent + earlier > MOST_COST:
            return None
        self.spent += earlier
        programs, count = last.programs, MOST_PROGRAMS
        share = max(self.seconds / of, MORE_AT_ONCE * last.seconds(1))
        while count > 1 and last.seconds(count) > share:
            count -= 1
        if count >= programs:
            return [None] * len(costs)
        pool = self.pool_of(programs)
        chosen = {pool[(n * count + i) % len(pool)] for i in range(count)}
        return [*([None] * (len(costs) - 1)), chosen]

    def pool_of(self, programs: int) -> list[int]:
        """Programs of a last launch, of which each set of inputs runs some in turn."""
        inner = random.Random(f"{self.seed} {programs}").sample(
            range(programs), min(programs, MOST_POOL)
        )
        return list(dict.fromkeys([0, programs - 1, *inner]))[:MOST_POOL]

    def check_shapes(
        self, outputs: Sequence[torch.Tensor], sizes: Mapping[str, int], where: Mapping[str, Any]
    ) -> None:
        wanted = [
            ([extent_value(e, dict(sizes)) for e in t.shape], DTYPES[t.dtype].torch)
            for t in self.program.outputs
        ]
        got = [(list(t.shape), str(t.dtype).removeprefix("torch.")) for t in outputs]
        if got != wanted:
            text = f"returns {got}, want {wanted}"
            raise Failure({**where, "raised": text, "ratio": float("inf")})

    def check_whole(self, written: Sequence[Array], where: Mapping[str, Any]) -> None:
        for tensor, mask in zip(self.program.outputs, written, strict=True):
            if not mask.all():
                index = [int(i) for i in np.argwhere(~mask)[0]]
                text = f"no program writes element {index} of {tensor.name}"
                raise Failure(
                    {
                        **where,
                        "output": tensor.name,
                        "index": index,
                        "raised": text,
                        "ratio": float("inf"),
                    }
                )

    # -- comparing ------------------------------------------------------------------------------

    def compare(
        self,
        row: Row,
        inputs: Mapping[str, torch.Tensor],
        outputs: Sequence[torch.Tensor],
        written: Sequence[Array],
        sizes: Mapping[str, int],
        where: dict[str, Any],
        rng: random.Random,
        more_rows: int = 0,
    ) -> list[Compared]:
        """A judgement for each output; eager's errors are taken over some more rows too."""
        found = []
        references = self.references(row, inputs, written, sizes, rng, more_rows)
        for tensor, output, reference in zip(
            self.program.outputs, outputs, references, strict=True
        ):
            at = reference.at
            got = to_numpy(output)[at].astype(np.float64)
            verdict, want, eager = reference.judge(got, reference.eager, tensor.dtype)
            if verdict.ratio > 1:  # on a CPU eager adds rows of fp32 up in double; no GPU does
                self.eager.add("emulated")
                again = reference.judge(got, reference.emulated(), tensor.dtype)
                verdict, want, eager = min((verdict, want, eager), again, key=lambda j: j[0].ratio)
            if 1 < verdict.ratio < float("inf") and reference.disturbed is not None:
                self.eager.add("disturbed")
                again = reference.judge(got, reference.disturbed(), tensor.dtype)
                verdict, want, eager = min((verdict, want, eager), again, key=lambda j: j[0].ratio)
            witness: dict[str, Any] = {}
            if verdict.at is not None:
                spot = verdict.at
                index = [int(np.broadcast_to(i, got.shape)[spot]) for i in at]
                values = {"got": got[spot], "want": want[spot], "eager": eager[spot]}
                numbers = {k: float(v) for k, v in values.items()}
                witness = {**where, "output": tensor.name, "index": index, **numbers}
            found.append(Compared(verdict, witness | {"ratio": verdict.ratio}))
        return found

    def references(
        self,
        row: Row,
        inputs: Mapping[str, torch.Tensor],
        written: Sequence[Array],
        sizes: Mapping[str, int],
        rng: random.Random,
        more_rows: int,
    ) -> Iterator[Reference]:
        """What each output is compared with."""
        arrays = {name: lazily(t) for name, t in inputs.items()}
        tamed = tame(self.program, arrays) if row.wild else []
        work = closed.work(self.program.roots, {}, sizes)
        cheap = work <= EAGER_WORK and self.has_reference
        whole = self.eager_outputs(inputs) if cheap else None
        try:
            stores = closed.plain_stores(self.program)
        except closed.NotClosed:
            yield from self.whole_references(arrays, tamed, written, sizes, whole)
            return
        regrouped = regroup(stores.values(), arrays) if row.wild else []
        for n, (tensor, mask) in enumerate(zip(self.program.outputs, written, strict=True)):
            store = stores[tensor]
            points = points_in(mask, store, sizes, rng, more_rows)
            at = grid(store, points, mask.shape)
            full = mask[at].shape
            exact, *finite = (
                values_at(store, points, x, sizes).reshape(full)
                for x in (arrays, *tamed, *regrouped)
            )
            finite, lost = finite[: len(tamed)], finite[len(tamed) :]
            emulated = partial(_rounded_at, store, points, arrays, sizes, full)
            disturbed = partial(emulated, self.seed) if closed.continuous([store.value]) else None
            if whole is None:
                self.eager.add("emulated")
            eager = emulated() if whole is None else to_numpy(whole[n])[at].reshape(full)
            yield Reference(at, mask[at], exact, eager, finite, emulated, disturbed, lost)

    def whole_references(
        self,
        arrays: Mapping[str, Array],
        tamed: Sequence[Mapping[str, Array]],
        written: Sequence[Array],
        sizes: Mapping[str, int],
        whole: Sequence[torch.Tensor] | None,
    ) -> Iterator[Reference]:
        given = {name: np.asarray(a) for name, a in arrays.items()}
        want = run_program(self.program, given, sizes)
        finite = [
            run_program(self.program, {n: np.asarray(a) for n, a in x.items()}, sizes)
            for x in tamed
        ]
        smooth = closed.continuous(self.program.roots)

        @cache
        def rounding(chance: int | None = None) -> dict[str, Array]:
            return run_program(self.program, given, sizes, rounding=True, chance=chance)

        for n, (tensor, mask) in enumerate(zip(self.program.outputs, written, strict=True)):
            at = tuple(np.ix_(*(np.arange(k) for k in mask.shape)))
            eager = rounding()[tensor.name] if whole is None else to_numpy(whole[n])
            found = [x[tensor.name] for x in finite]
            emulated = partial(_named, rounding, tensor.name)
            disturbed = partial(emulated, self.seed) if smooth else None
            yield Reference(at, mask, want[tensor.name], eager, found, emulated, disturbed)

    def eager_outputs(self, inputs: Mapping[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            result = self.module.reference(*(inputs[name].clone() for name in self.arguments))
        self.eager.add("run")
        return result if isinstance(result, tuple | list) else [result]


@dataclass(frozen=True)
class Reference:
    """What some elements of an output are compared with.

    `at`: their indices; `mask`: which were written. `exact`: float64's values; `tamed`: the same
    with each of `TAME` in place of inputs that are not finite. `eager`: eager's; `emulated`: what
    it gives where every operator is rounded to its own type; `disturbed`: and then is off by up to
    one unit in its last place, where no rounding can decide a comparison. `lost`: finite where an
    infinity may come out as NaN; see `unless_regrouped`.
    """

    at: tuple[Array, ...]
    mask: Array
    exact: Array
    eager: Array
    tamed: Sequence[Array]
    emulated: Callable[[], Array]
    disturbed: Callable[[], Array] | None
    lost: Sequence[Array] = ()

    def judge(self, got: Array, eager: Array, dtype: str) -> tuple[Judgement, Array, Array]:
        """The verdict on `got` where eager gives this, with the values asked for and eager's."""
        want, own = unless_masked(got, self.exact, eager, self.tamed)
        want, own = unless_regrouped(got, want, own, self.lost)
        want, own = want.astype(np.float64), own.astype(np.float64)
        return judge(got, want, own, dtype, self.mask), want, own


def values_at(
    store: Store,
    points: Mapping[Axis, Array],
    tensors: Mapping[str, Array],
    sizes: Mapping[str, int],
    rounding: bool = False,
    chance: int | None = None,
) -> Array:
    """What a plain store puts at some points, a dimension an axis."""
    axes = order(store)
    evaluator = Evaluator(tensors, sizes, points=points, rounding=rounding, chance=chance)
    return np.broadcast_to(evaluator.align(store.value, axes), [len(points[a]) for a in axes])


def _rounded_at(
    store: Store,
    points: Mapping[Axis, Array],
    tensors: Mapping[str, Array],
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    chance: int | None = None,
) -> Array:
    return values_at(store, points, tensors, sizes, rounding=True, chance=chance).reshape(shape)


def _named(
    values: Callable[[int | None], dict[str, Array]], name: str, chance: int | None = None
) -> Array:
    return values(chance)[name]


def tame(program: Program, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs with each of some numbers in place of NaN and infinities.

    None where the program has no condition that could mask them.
    """
    if not any(e.dtype == "bool" and e.op != "const" for e in toposort(*program.roots)):
        return []
    return [{n: _finite(x, v) for n, x in arrays.items()} for v in TAME]


def unless_masked(
    got: Array, want: Array, eager: Array, tamed: Sequence[Array]
) -> tuple[Array, Array]:
    """What is asked, where an element does not depend on the inputs that are not finite.

    A weight of 0 times a masked NaN is NaN; a kernel that skips what is masked need not give that.
    """
    if not tamed:
        return want, eager
    with np.errstate(invalid="ignore"):
        free = np.isfinite(tamed[0]) & ~np.isfinite(want.astype(np.float64)) & np.isfinite(got)
        for other in tamed[1:]:
            free &= other == tamed[0]
    return np.where(free, tamed[0], want), np.where(free, tamed[0], eager)


def regroup(stores: Iterable[Store], arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs with 1 in place of NaN and infinities, where products and sums are all that is
    made of them; none where there are no such inputs."""
    names = {t.name for t in closed.factors(s.value for s in stores)}
    if not names & set(arrays):
        return []
    return [{n: _finite(x, 1.0) if n in names else x for n, x in arrays.items()}]


def unless_regrouped(
    got: Array, want: Array, eager: Array, lost: Sequence[Array]
) -> tuple[Array, Array]:
    """What is asked, where an infinity went through products and sums alone: no number.

    (a @ b) @ c is infinite where an element of c is, and a @ (b @ c) is NaN, as its sums meet that
    infinity with both signs.
    """
    for finite in lost:
        free = np.isfinite(finite) & ~np.isfinite(want.astype(np.float64)) & ~np.isfinite(got)
        want, eager = np.where(free, got, want), np.where(free, got, eager)
    return want, eager


def order(store: Store) -> tuple[Axis, ...]:
    """A plain store's axes, in the order of the tensor's dimensions."""
    return tuple(i.attr for i in store.indices if i.op == "axis")


def grid(store: Store, points: Mapping[Axis, Array], shape: Sequence[int]) -> Any:
    """The indices that pick the points out of an output of this shape."""
    at = [points[i.attr] if i.op == "axis" else np.zeros(1, np.int64) for i in store.indices]
    return np.ix_(*at) if shape else ()


def points_in(
    mask: Array, store: Store, sizes: Mapping[str, int], rng: random.Random, more_rows: int = 0
) -> dict[Axis, Array]:
    """Index values whose product lies mostly among the elements written.

    The last dimension gets others too: what is allowed in a row depends on the row as a whole;
    fewer where each is a long reduction. The rest get `more_rows` others each, or fewer where that
    is too much work.
    """
    lines = _lines(mask, rng)
    dims = [(d, i.attr) for d, i in enumerate(store.indices) if i.op == "axis"]
    values = {a: lines[d] for d, a in dims}
    count = {a: len(v) for a, v in values.items()}
    last = dims[-1][1] if dims else None
    others = {
        a: rng.sample(range(n), min(n, ROW_ELEMENTS if a is last else more_rows))
        for n, a in ((mask.shape[d], a) for d, a in dims)
        if mask.any()
    }

    def work(wide: Mapping[Axis, int]) -> float:
        return closed.work([store.value], wide, sizes)

    def too_many() -> bool:
        wide = {a: n + len(others.get(a, ())) for a, n in count.items()}
        total = float(np.prod([float(n) for n in wide.values()]))
        return total > MOST_ELEMENTS or work(wide) > MOST_WORK

    if last is not None and last in others:
        ones = dict.fromkeys(count, 1)
        while (
            len(others[last]) > LEAST_OF_ROW
            and work({**ones, last: len(others[last])}) > MOST_ROW_WORK
        ):
            others[last] = others[last][: len(others[last]) // 2]
    while too_many() and any(own for a, own in others.items() if a is not last):
        others = {a: own if a is last else own[: len(own) // 2] for a, own in others.items()}
    while max(count.values(), default=1) > 1 and too_many():
        several = [a for a in count if count[a] > 1]
        widest = max(several, key=lambda a: (count[a] / (8 if a is last else 1), a.name))
        count[widest] = -(-count[widest] // 2)
    return {
        a: np.asarray(sorted({*rng.sample(list(map(int, v)), count[a]), *others.get(a, ())}), int)
        for a, v in values.items()
    }


def _lines(mask: Array, rng: random.Random) -> list[Array]:
    """For each dimension, the indices written on lines through some of the elements written."""
    flat = np.flatnonzero(mask)
    if not len(flat):
        return [np.arange(0) for _ in mask.shape]
    picks = {int(flat[0]), int(flat[-1]), *(int(flat[rng.randrange(len(flat))]) for _ in range(3))}
    lines: list[set[int]] = [set() for _ in mask.shape]
    for pick in sorted(picks):
        at = np.unravel_index(pick, mask.shape)
        for d in range(mask.ndim):
            line = mask[tuple(slice(None) if e == d else i for e, i in enumerate(at))]
            lines[d].update(map(int, np.flatnonzero(line)))
    return [np.asarray(sorted(line), np.int64) for line in lines]


Tables = Mapping[str, Any]  # a kernel.py's tables of configurations, by the name of the variable


def tables(module: ModuleType) -> Tables:
    return {n: getattr(module, n) for n in ("CONFIG", "CONFIGS") if hasattr(module, n)}


def short_tile(program: Program) -> int:
    """The length of short tiles, a power of two."""
    tensors = (*program.inputs, *program.outputs)
    fixed = [e.attr for t in tensors for e in t.shape if e.op == "const"]
    return max(SHORT_TILE, 1 << (max(fixed, default=1) // MOST_TURNS).bit_length())


def with_short_tiles(tables: Tables, most: int) -> Tables:
    """The tables with no tile longer than so much."""
    return {name: _short(table, most) for name, table in tables.items()}


def _short(entry: Any, most: int) -> Any:
    """BLOCK_N=128 -> BLOCK_N=16 in a configuration, or in those of a table."""
    if isinstance(entry, tuple):
        return tuple(_short(e, most) for e in entry)
    if not isinstance(entry, dict):
        return entry
    return {
        name: min(value, most) if str(name).startswith("BLOCK_") else _short(value, most)
        for name, value in entry.items()
    }


def turns(sizes: Mapping[str, int]) -> tuple[int, int]:
    """How many of the sizes a loop over short tiles takes several turns for, and the largest."""
    long = [v for v in sizes.values() if v > SHORT_TILE]
    return len(long), max(long, default=0)


def load(path: str) -> ModuleType:
    """Import a kernel.py, its kernels decorated for the interpreter but written as for a GPU."""
    spec = importlib.util.spec_from_file_location("superopt_kernel_under_test", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    tree = _ForGpu().visit(ast.parse(Path(path).read_text()))
    exec(compile(tree, path, "exec"), module.__dict__)
    return module


class _ForGpu(ast.NodeTransformer):
    """Leaves out what stands in for Triton's interpreter alone: it is not what a GPU runs.

    if triton.knobs.runtime.interpret: A else: B -> B
    """

    def visit_If(self, node: ast.If) -> Any:
        alone = ast.unparse(node.test) == "triton.knobs.runtime.interpret"
        return node.orelse if alone else self.generic_visit(node)


def serve() -> None:
    """Answer jobs until the input ends. What kernels print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    faithful()
    for line in sys.stdin:
        try:
            result = Job(json.loads(line)).run()
        except Exception:
            result = {"error": traceback.format_exc()}
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
