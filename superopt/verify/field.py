"""The rung `probable(ε)`: rational functions compared at random points of a finite field.

Where every operator has an exact meaning over the field F_p, p = 2^31 - 1, each element of a
program's output is a rational function N/D of the float inputs (integer inputs, sizes and indices
being fixed). If the candidate's N'/D' differs, P = (N/D - N'/D') * lcm(D, D') is a nonzero
polynomial over F_p. Let d bound its degree (`degree.py` derives it from the expressions at the
sizes at hand). By the Schwartz-Zippel lemma (Schwartz, J. ACM 27(4), 1980; Zippel, EUROSAM 1979) a
nonzero polynomial of degree d is zero at a uniformly random point of F_p^n with a chance of at
most d/p.

A draw at which some evaluated divisor is zero is thrown away and made again. Divisors are
polynomials too; with q the sum of the degrees of all that are evaluated, a draw is kept with a
chance of at least 1 - q/p, so that, given that it is kept, a difference goes unseen with a chance
of at most

    (d/p) / (1 - q/p)  =  d / (p - q)             and  ε = (d / (p - q))^trials

for independent trials. What is reported is the largest such ε over the sizes, and it speaks only
of the sizes and elements evaluated, and of differences that do not vanish modulo p (whose
coefficients, once their denominators are cleared, are not all multiples of p).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from superopt.mugraph.dtypes import is_float
from superopt.mugraph.evaluate import Array, Evaluator, NoFieldMeaning
from superopt.mugraph.expr import Axis, Expr, toposort
from superopt.mugraph.ops import PRIME
from superopt.mugraph.program import KernelGraph, Program
from superopt.mugraph.semantics import Arithmetic
from superopt.verify import draws
from superopt.verify.closed import NotClosed, Pair, as_program, choose_points, pair
from superopt.verify.degree import Degrees
from superopt.verify.tested import describe
from superopt.verify.verdict import Verdict, probable

MOST_WORK = 1_000_000  # scalar operations an output, a trial
MOST_SIZES = 4
REDRAWS = 8


class _ZeroDivisor(ArithmeticError):
    """A divisor is zero at this draw."""


class _Exact(Arithmetic):
    """Arithmetic of residues that does not let a division by zero pass."""

    def apply(self, node: Expr, operands: Sequence[Array]) -> Array:
        if node.op == "div" and is_float(node.dtype) and np.any(operands[1] == 0):
            raise _ZeroDivisor
        if node.op == "pow" and is_float(node.dtype) and np.any(operands[0] == 0):
            raise _ZeroDivisor
        return super().apply(node, operands)


def field_check(
    original: Program, candidate: Program | KernelGraph, seed: int = 0, trials: int = 3
) -> Verdict:
    """`probable`, `refused` with a witness, or `unknown` where the rung cannot be claimed.

    It is not claimed for operators without a field meaning (comparisons of floats among them), and
    where the two differ only while their constants do too: those may have been folded in double
    precision, which no field shows as equal.
    """
    try:
        pairs = pair(original, as_program(candidate))
        return _check(original, pairs, seed, trials)
    except (NoFieldMeaning, NotClosed) as reason:
        return Verdict("unknown", f"field check not claimed: {reason}")


def _check(original: Program, pairs: Sequence[Pair], seed: int, trials: int) -> Verdict:
    worst, tried, sampled = 0.0, [], False
    for n, sizes in enumerate(draws.sample_sizes(original.symbols, zero=False)):
        if n == MOST_SIZES:
            break
        rng = np.random.default_rng(draws.seed_of(seed, n))
        for p in pairs:
            points = choose_points((p.want, p.got), p.axes, sizes, rng, MOST_WORK)
            sampled = sampled or any(
                len(i) < Degrees(sizes).extent(frozenset((a,))) for a, i in points.items()
            )
            miss = miss_chance(p, points, sizes)
            for trial in range(trials):
                witness = _trial(original, p, points, sizes, draws.seed_of(seed, n, trial))
                if witness:
                    return _refusal(p, witness)
            worst = max(worst, miss**trials)
        tried.append(sizes)
    elements = "sampled elements at " if sampled else "all elements at "
    return probable(worst, elements + describe(tried))


def miss_chance(p: Pair, points: Mapping[Axis, Array], sizes: Mapping[str, int]) -> float:
    """A bound on the chance that one kept trial does not see a difference: d / (p - q).

    Raises NoFieldMeaning where the degrees are too large for a bound.
    """
    degrees = Degrees(sizes)
    d = degrees.difference(p.want, p.got)
    q = 0
    for node in toposort(p.want, p.got):
        if node.op in ("div", "pow") and is_float(node.dtype):
            below = node.args[1] if node.op == "div" else node.args[0]
            count = 1
            for a in node.free:
                count *= len(points[a]) if a in points else degrees.extent(frozenset((a,)))
            q += degrees(below).top * count
    if q + d >= PRIME // 2:
        raise NoFieldMeaning(f"degrees {d} and {q} are too large for a field of {PRIME} elements")
    return d / (PRIME - q)


def _trial(
    original: Program,
    p: Pair,
    points: Mapping[Axis, Array],
    sizes: Mapping[str, int],
    seed: int,
) -> dict[str, Any] | None:
    for redraw in range(REDRAWS):
        key = draws.seed_of(seed, redraw)
        inputs = {t.name: draws.draw(t, sizes, key, draws.residue) for t in original.inputs}
        evaluator = Evaluator(inputs, sizes, field=True, points=points)
        evaluator.arithmetic = _Exact(field=True)
        try:
            want, got = evaluator.align(p.want, p.axes), evaluator.align(p.got, p.axes)
        except _ZeroDivisor:
            continue
        bad = np.argwhere(np.not_equal(*np.broadcast_arrays(want, got)))
        if not len(bad):
            return None
        index = [int(points[a][i]) for a, i in zip(p.axes, bad[0], strict=True)]
        return {"sizes": dict(sizes), "tensor": p.tensor.name, "axes": index, "seed": key}
    raise NoFieldMeaning(f"a divisor is zero at each of {REDRAWS} random draws")


def _refusal(p: Pair, witness: dict[str, Any]) -> Verdict:
    want, got = _constants(p.want), _constants(p.got)
    if want != got:
        folded = sorted(want ^ got)[:4]
        return Verdict("unknown", f"field check not claimed: constants differ ({folded})")
    text = f"{p.tensor.name}: different rational functions (at axes {witness['axes']})"
    return Verdict("refused", text, witness=witness)


def _constants(root: Expr) -> set[float]:
    return {n.attr for n in toposort(root) if n.op == "const" and is_float(n.dtype)}
