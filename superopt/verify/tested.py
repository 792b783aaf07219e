"""The rung `tested`: a candidate against the original on random inputs, in float64.

Both are evaluated at the same elements; the tolerance is not a constant but what float64 itself
leaves open: how far the original's own result moves when every input moves by about one unit in
its last place (a forward error of that size is what any stable order of evaluation has), and the
spacing of doubles at the result. Where that is too little since terms cancel, and no rounding can
decide a comparison: how far it moves when every operator's result moves by as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.evaluate import Array, Evaluator, run_program
from superopt.mugraph.expr import Expr
from superopt.mugraph.index import value as extent_value
from superopt.mugraph.program import KernelGraph, Program
from superopt.verify import draws
from superopt.verify.closed import (
    NotClosed,
    Pair,
    as_program,
    choose_points,
    continuous,
    covered,
    pair,
    work,
)
from superopt.verify.verdict import Verdict

SLACK = 2.0**10  # over one unit in the last place: long sums, and functions called in another order
UNIT = 2.0**-52
ENOUGH = 64  # elements of an output: a comparison that falls one way in few of them shows itself
MOST_DRAWS = 16
HEAVY = 1 << 26  # operations for one element of all outputs, over the draws at one size


def tested(original: Program, candidate: Program | KernelGraph, seed: int) -> Verdict:
    """Compare on normal inputs, on those of one sign, and on few whole numbers (zeros, ties).

    At the sizes of `sample_sizes`; elements are sampled where evaluating all would be slow, and
    where an output has few, normal inputs are drawn several times. Where one element takes many
    operations there are fewer draws, and from HEAVY on one at the first size. A refusal's witness
    has the sizes, tensor, index, and both values.
    """
    program = as_program(candidate)
    try:
        pairs = pair(original, program)
    except NotClosed:
        return _whole(original, program, seed)
    tried: list[Mapping[str, int]] = []
    for n, sizes in enumerate(draws.sample_sizes(original.symbols)):
        if message := _uncovered(pairs, sizes):
            return Verdict("refused", message, witness={"sizes": sizes})
        most = HEAVY // _work(original, sizes)
        if tried and not most:
            continue
        for draw, floats in enumerate(_draws(original, sizes)[: max(most, 1)]):
            witness = _compare(original, pairs, sizes, draws.seed_of(seed, n, draw), floats)
            if witness:
                return Verdict("refused", _sentence(witness), witness=witness)
        tried.append(sizes)
    return Verdict("tested", scope=describe(tried))


def _draws(program: Program, sizes: Mapping[str, int]) -> list[Callable[[Array], Array]]:
    """How the inputs are drawn, each time."""
    least = min(
        int(np.prod([extent_value(e, dict(sizes)) for e in t.shape])) for t in program.outputs
    )
    normal = min(MOST_DRAWS, 1 + ENOUGH // max(least, 1))
    others = [draws.positive, draws.negative, draws.few]
    return [draws.normal, *others, *[draws.normal] * (normal - 1)]


def _work(program: Program, sizes: Mapping[str, int]) -> int:
    """Operations for one element of each store."""
    return max(1, work(program.roots, {a: 1 for s in program.stores for a in s.axes}, sizes))


def describe(tried: Sequence[Mapping[str, int]]) -> str:
    """`B = 1, 7, 16`, or that there is nothing to vary.

    >>> describe([{"B": 1}, {"B": 7}])
    'sizes B=1; B=7'
    """
    if not any(tried):
        return "its fixed sizes"
    return "sizes " + "; ".join(" ".join(f"{k}={v}" for k, v in s.items()) for s in tried)


def _sentence(witness: Mapping[str, Any]) -> str:
    at = ", ".join(f"{k}={v}" for k, v in witness["sizes"].items())
    where = f"{witness['tensor']}{witness['index']}" + (f" at {at}" if at else "")
    return f"{where}: got {witness['got']:.17g}, want {witness['want']:.17g}"


def _uncovered(pairs: Sequence[Pair], sizes: Mapping[str, int]) -> str | None:
    for tensor in dict.fromkeys(p.tensor for p in pairs):
        own = [p for p in pairs if p.tensor is tensor]
        if len(own) == 1 and all(i.op == "axis" for i in own[0].indices):
            continue
        shape = [extent_value(e, dict(sizes)) for e in tensor.shape]
        if message := covered(own, sizes, shape):
            return f"{tensor.name}: {message}"
    return None


def perturbed(array: Any, seed: int) -> Any:
    """The tensor with each element off by up to one unit in its last place."""
    if array.dtype != np.float64:
        return array

    def element(indices: tuple[Array, ...]) -> Array:
        flat: Any = np.zeros((), np.int64)
        for i, n in zip(indices, array.shape, strict=True):
            flat = flat * n + np.asarray(i, np.int64)
        with np.errstate(over="ignore"):
            off = draws.uniform(draws.splitmix(flat, seed)) * 2 - 1
        return np.asarray(array[indices] * (1 + 2 * UNIT * off), np.float64)

    return draws.Indexed(array.shape, np.float64, element) if array.shape else array


def _compare(
    original: Program,
    pairs: Sequence[Pair],
    sizes: Mapping[str, int],
    seed: int,
    floats: Callable[[Array], Array],
) -> dict[str, Any] | None:
    inputs = {t.name: draws.draw(t, sizes, seed, floats) for t in original.inputs}
    moved = {name: perturbed(a, seed) for name, a in inputs.items()}
    rng = np.random.default_rng(seed)
    for p in pairs:
        points = choose_points((p.want, p.got), p.axes, sizes, rng)
        evaluator = Evaluator(inputs, sizes, points=points)
        want = evaluator.align(p.want, p.axes)
        got = evaluator.align(p.got, p.axes)
        want, got = np.broadcast_arrays(want, got)
        if _same(want, got):
            continue
        near = Evaluator(moved, sizes, points=points).align(p.want, p.axes)
        near = np.broadcast_to(near, want.shape)
        at = _differs(want, got, near, is_float(p.tensor.dtype))
        if at is not None and continuous([p.want]):
            disturbed = Evaluator(inputs, sizes, points=points, chance=seed)
            near = np.broadcast_to(disturbed.align(p.want, p.axes), want.shape)
            at = _differs(want, got, near, is_float(p.tensor.dtype))
        if at is not None:
            where = [evaluator.align(i, p.axes) for i in p.indices]
            index = [int(np.broadcast_to(i, want.shape)[at]) for i in where]
            return _witness(p.tensor.name, sizes, index, got[at], want[at])
    return None


def _witness(
    tensor: str, sizes: Mapping[str, int], index: list[int], got: Any, want: Any
) -> dict[str, Any]:
    values = {"got": float(got), "want": float(want)}
    return {"sizes": dict(sizes), "tensor": tensor, "index": index, **values}


def _same(want: Array, got: Array) -> bool:
    """Whether the two are as equal as any tolerance leaves room for."""
    same = _alike(want, got)
    if np.issubdtype(want.dtype, np.floating):
        with np.errstate(all="ignore"):
            same = same | (np.abs(want - got) <= SLACK * UNIT * np.abs(want))
    return bool(same.all())


def _differs(want: Array, got: Array, near: Array, floating: bool) -> tuple[int, ...] | None:
    """The first element at which the two differ by more than the tolerance."""
    if not want.size:
        return None
    if not floating:
        bad = (want != got) & (want == near)
    else:
        with np.errstate(all="ignore"):
            finite = np.isfinite(want) & np.isfinite(got) & np.isfinite(near)
            error = np.where(finite, np.abs(want - got), 0.0)
            shift = np.max(np.where(finite, np.abs(want - near), 0.0), initial=0.0)
            tolerance = SLACK * (shift + UNIT * np.abs(np.where(finite, want, 0.0)))
        settled = _alike(want, near) | (np.isfinite(want) & np.isfinite(near))
        bad = np.where(finite, error > tolerance, ~_alike(want, got) & settled)
    return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None


def _alike(a: Array, b: Array) -> Array:
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))


def _whole(original: Program, program: Program, seed: int) -> Verdict:
    """Both run whole: for programs that store a tensor in pieces."""
    tried: list[Mapping[str, int]] = []
    for n, sizes in enumerate(draws.sample_sizes(original.symbols)):
        roots: list[Expr] = [*original.roots, *program.roots]
        if work(roots, {}, sizes) > 30_000_000:
            continue
        for draw, floats in enumerate(_draws(original, sizes)):
            lazy = {
                t.name: draws.draw(t, sizes, draws.seed_of(seed, n, draw), floats)
                for t in original.inputs
            }
            inputs = {name: np.asarray(a) for name, a in lazy.items()}
            moved = {name: np.asarray(perturbed(a, seed)) for name, a in inputs.items()}
            want, near = (run_program(original, x, sizes) for x in (inputs, moved))
            got = run_program(program, inputs, sizes)
            for a, b in zip(original.outputs, program.outputs, strict=True):
                at = _differs(want[a.name], got[b.name], near[a.name], is_float(a.dtype))
                if at is not None and continuous(original.roots):
                    disturbed = run_program(original, inputs, sizes, chance=seed)[a.name]
                    at = _differs(want[a.name], got[b.name], disturbed, is_float(a.dtype))
                if at is not None:
                    values = got[b.name][at], want[a.name][at]
                    witness = _witness(b.name, sizes, list(at), *values)
                    return Verdict("refused", _sentence(witness), witness=witness)
        tried.append(sizes)
    if not tried:
        return Verdict("unknown", f"{original.name}: stored in pieces, and too large to run whole")
    return Verdict("tested", scope=describe(tried))
