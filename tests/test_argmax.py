"""Proofs of an index that follows a maximum: of whole rows, kept in a loop, merged from parts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import online_programs as table
import pytest
import torch
from test_values import INSIDE, Found, K, proofs, same, searched_for, x_at

from superopt.mugraph.program import Program
from superopt.spec import Spec, Tensor, spec
from superopt.verify.addresses import Prover
from superopt.verify.forms import Forms
from superopt.verify.integers import TRUE, Cond, between, both, le, negation, symbol
from superopt.verify.reals import (
    Factor,
    Real,
    exponential,
    extreme,
    extreme_over,
    power,
    real,
    total,
    truth,
    zero,
)
from superopt.verify.ttir import Unreadable

HALF, SINGLE = torch.float16, torch.float32


def argmin(x: torch.Tensor) -> torch.Tensor:
    return x.argmin(-1)


def biased(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.amax(-1), x.sum(-1) + 1.0


CODES = {"x": Tensor(64, 16), "codes": Tensor(8192, 16)}
SPECS: dict[str, Spec] = {
    "whole": spec(x=Tensor(64, 1000), dtype=HALF)(table.argmax),
    "looped": spec(x=Tensor(1024, 50257), dtype=HALF)(table.argmax),
    "merged": spec(x=Tensor(2, 262144), dtype=HALF)(table.argmax),
    "smallest": spec(x=Tensor(2, 262144), dtype=HALF)(argmin),
    "top1": spec(x=Tensor(16, 50257), dtype=HALF)(table.top1),
    "of logits": spec(x=Tensor(16, 50257), dtype=HALF)(table.top1_of_logits),
    "nearest": spec(dtype=SINGLE, **CODES)(table.nearest),
    "nearest by root": spec(dtype=SINGLE, **CODES)(table.nearest_cdist),
    "biased": spec(x=Tensor(64, 262144), dtype=SINGLE)(biased),
}
RESTS_ON = {
    "whole": {"maximum by cases"},
    "looped": {"maximum by cases", "between", "induction"},
    "merged": {"maximum by cases", "between", "induction"},
    "smallest": {"maximum by cases", "between", "induction"},
    "top1": {"maximum by cases", "exp grows"},
    "of logits": {"maximum by cases", "where it is reached"},
    "nearest": set(),
    "nearest by root": {"a sum of squares"},
}
REACHED = "(x == x_max_new[:, None])"
KEPT = "(x_max != x_max) | (x_max_new == x_max)"
START = "tl.full((BLOCK_N,), 2147483647, tl.int32)"
INDEX = "k[None, :], 50257"
EDITS = {
    "whole": {
        "not where it is reached": ("(x == x_max[:, None])", "(x <= x_max[:, None])"),
        "masked lanes count": (", 2147483647", ", 7"),
        "the last index": ("tl.min(\n", "tl.max(\n"),
        "an index too far": ("k[None, :], 1000", "(k + 1)[None, :], 1000"),
        "a sum that overflows": (
            "),\n        axis=1,\n    )", ") + 1,\n        axis=1,\n    ) - 1",
        ),
        "a maximum of masked lanes too": ('tl.where(in_k[None, :], x, float("-inf"))', "x"),
    },
    "looped": {
        "compared with the old maximum": (REACHED, "(x == x_max[:, None])"),
        "reached by what is more too": (REACHED, "(x >= x_max[:, None])"),
        "not where it is reached": (REACHED, "(x <= x_max_new[:, None])"),
        "ties go to the last": ("chosen_min = tl.minimum(\n", "chosen_min = tl.maximum(\n"),
        "ties in a tile go to the last": ("tl.min(tl.where(in_k", "tl.max(tl.where(in_k"),
        "the old index is always kept": (KEPT, "(x_max_new == x_max_new)"),
        "the old index is kept where it is no more": (KEPT, "(x_max_new >= x_max)"),
        "the old index is kept where it is beaten": (KEPT, "(x_max_new > x_max)"),
        "the index is the tile's own": (INDEX, "tl.arange(0, BLOCK_K)[None, :], 50257"),
        "an index too far": (INDEX, "(k + 1)[None, :], 50257"),
        "the index starts at 0": (START, "tl.zeros((BLOCK_N,), tl.int32)"),
        "the index starts at the last": (START, START.replace("2147483647", "50256")),
        "the maximum starts at 0": (
            'tl.full((BLOCK_N,), float("-inf"), tl.float32)', "tl.zeros((BLOCK_N,), tl.float32)",
        ),
        "the first tile is left out": ("range(0, K", "range(BLOCK_K, K"),
        "none is told by an index": ("[None, :], 50257", "[None, :], 0"),
        "none is told by the last index": ("chosen_min, 50257", "chosen_min, 50256"),
    },
    "merged": {
        "of all parts": ("(t0 == t0_max[:, None])", "(t0 <= t0_max[:, None])"),
        "the last part's": ("chosen_min = tl.min(tl.where((t0", "chosen_min = tl.max(tl.where((t0"),
        "the part's number": (", t1, 262144", ", k[None, :], 262144"),
        "without where the part begins": ("(m * 4096 + l)[None", "l[None"),
        "parts that overlap": ("(m * 4096 + l)", "(m * 4095 + l)"),
        "indices in another order": ("t1_ptr + k[None, :]", "t1_ptr + (63 - k)[None, :]"),
        "maxima in another order": ("t0_ptr + k[None, :]", "t0_ptr + (63 - k)[None, :]"),
        "a part's old index": (KEPT, "(x_max_new == x_max_new)"),
        "not the largest part": ("t0_max = max_along(t0, 1)", "t0_max = tl.min(t0, axis=1)"),
    },
    "top1": {
        "not where it is reached": (REACHED, "(x <= x_max_new[:, None])"),
        "the old index is always kept": (KEPT, "(x_max_new == x_max_new)"),
        "of another probability": ("tl.exp(x_max - x_max)", "tl.exp(x_max - x_max - 0.1)"),
    },
    "of logits": {
        "not where it is reached": (REACHED, "(x <= x_max_new[:, None])"),
        "of another element": (" - x_max) * exp_sum", " - x_max - 0.1) * exp_sum"),
        "of the sum's square": ("1.0 / product", "1.0 / product / exp_sum"),
    },
    "nearest": {
        "the farthest": ("t0_min = min_along(t0, 1)", "t0_min = tl.max(t0, axis=1)"),
        "not where it is reached": ("(t0 == t0_min[:, None])", "(t0 >= t0_min[:, None])"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return {n: searched_for(s, tmp_path_factory.mktemp("found")) for n, s in SPECS.items()}


def edited(found: Found, folder: Path, *edits: tuple[str, str]) -> tuple[Path, Program, list[str]]:
    """The kernel.py with some text of its jitted functions replaced."""
    path, traced, _ = found
    body, rest = path.read_text().split("\ndef reference(", 1)
    for old, new in edits:
        assert old in body, body
        body = body.replace(old, new)
    new_path = folder / "kernel.py"
    new_path.write_text(f"{body}\ndef reference({rest}")
    return new_path, traced.program, []


def test_the_index_is_proved(kernels: dict[str, Found]) -> None:
    found = proofs([(kernels[n][0], kernels[n][1].program, []) for n in RESTS_ON])
    assert {
        n: f["why"] for n, f in zip(RESTS_ON, found, strict=True) if f["kind"] != "proved"
    } == {}
    laws = {n: set(f["laws"]) for n, f in zip(RESTS_ON, found, strict=True)}
    assert {n: own - laws[n] for n, own in RESTS_ON.items() if not own <= laws[n]} == {}


@pytest.mark.parametrize("name", EDITS)
def test_a_broken_index_is_not_proved(
    name: str, kernels: dict[str, Found], tmp_path_factory: pytest.TempPathFactory
) -> None:
    jobs = [
        edited(kernels[name], tmp_path_factory.mktemp("edited"), e) for e in EDITS[name].values()
    ]
    found = proofs(jobs)
    assert [e for e, f in zip(EDITS[name], found, strict=True) if f["kind"] == "proved"] == []


def test_what_the_first_turn_makes_of_a_start_is_proved(
    kernels: dict[str, Found], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where a maximum is -inf as yet, a turn may do what no later one does: times 5, or 7 more."""
    sums = "x_sum = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)"
    added = "x_sum += x\n    x_sum = tl.sum(x_sum, axis=1)\n"
    starts = """x_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    x_min = tl.full((BLOCK_N,), 0.0, tl.float32)
    x_sum = tl.full((BLOCK_N,), 1.0, tl.float32)"""
    turn = """empty = x_max == float("-inf")
        x_sum = x_sum * tl.where(empty, TIMES, 1.0) + tl.sum(x, axis=1)
        x_sum += tl.where(empty & (x_min < float("inf")), MORE, 0.0)
        x_min = tl.minimum(x_min, tl.min(x, axis=1))
        x_max = maximum(x_max, max_along(x, 1))
"""
    turns = [
        turn.replace("TIMES", times).replace("MORE", more)
        for times, more in (("1.0", "0.0"), ("5.0", "0.0"), ("1.0", "7.0"))
    ]
    jobs = [
        edited(
            kernels["biased"], tmp_path_factory.mktemp("edited"),
            (sums, starts), (added, t), ("x_sum + 1.0", "x_sum"),
        )
        for t in turns
    ]  # fmt: skip
    right, *wrong = proofs(jobs)
    assert right["kind"] == "proved", right["why"]
    assert "proved" not in [f["kind"] for f in wrong]


# -- the laws, at the boundary of what each takes ------------------------------------------------


def at(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.gather(-1, index[:, None])[:, 0]


READ = {
    "the largest": (lambda x: at(x, x.argmax(-1)), lambda x: x.amax(-1), True),
    "the smallest": (lambda x: at(x, x.argmin(-1)), lambda x: x.amin(-1), True),
    "of the contrary": (lambda x: at(x, (-x).argmax(-1)), lambda x: x.amin(-1), True),
    "the other end": (lambda x: at(x, x.argmin(-1)), lambda x: x.amax(-1), False),
    "of the squares": (lambda x: at(x, (x * x).argmax(-1)), lambda x: x.amax(-1), None),
    "the next row's": (lambda x: at(x, x.roll(1, 0).argmax(-1)), lambda x: x.amax(-1), None),
}


@pytest.mark.parametrize("name", READ)
def test_an_element_is_known_where_a_maximum_is_reached(name: str) -> None:
    one, two, known = READ[name]
    tensors = {"x": Tensor(8, 40)}
    if known is None:
        with pytest.raises(Unreadable):
            same(one, two, **tensors)
    else:
        assert same(one, two, **tensors) is known


@pytest.mark.parametrize(("otherwise", "known"), [(0.0, True), (1.0, False)])
def test_zeros_add_nothing_to_the_largest_exp(otherwise: float, known: bool) -> None:
    def one(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.where(m, torch.exp(x), otherwise).amax(-1)

    def two(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.exp(torch.where(m, x, float("-inf")).amax(-1))

    assert same(one, two, x=Tensor(8, 40), m=Tensor(8, 40, dtype=torch.bool)) is known


def least(domain: Cond, body: Real) -> Real:
    return extreme_over("minimum", ["k"], domain, body)


def largest(domain: Cond, body: Real) -> Real:
    return extreme_over("maximum", ["k"], domain, body)


def chosen(c: Cond, one: Real, two: Real) -> Real:
    return truth(c) * one + truth(negation(c)) * two


def equal(one: Real, two: Real, facts: Cond = TRUE) -> bool:
    return Forms(Prover()).equal(one, two, facts)


def test_a_constant_is_its_own_minimum_over_something_only() -> None:
    n = symbol("n")
    some = least(between(0, K, n), real(5))
    assert equal(some, real(5), le(1, n))
    assert not equal(some, real(5), le(0, n))


@pytest.mark.parametrize(("told", "same"), [(7, True), (6, False)])
def test_a_minimum_by_cases_is_no_more_than_what_is_told_otherwise(told: int, same: bool) -> None:
    there = zero(x_at(K) - x_at(symbol("i")))
    by_cases = least(INSIDE, chosen(there, real(K), real(told)))
    assert (
        equal(by_cases, extreme("minimum", real(told), least(both(INSIDE, there), real(K)))) is same
    )


def test_a_minimum_by_cases_is_over_something() -> None:
    n, there = symbol("n"), zero(x_at(K) - x_at(symbol("i")))
    inside = between(0, K, n)
    by_cases = least(inside, chosen(there, real(K), real(n)))
    split = extreme("minimum", real(n), least(both(inside, there), real(K)))
    assert equal(by_cases, split, le(1, n))
    assert not equal(by_cases, split, le(0, n))


def index_of(reached: Real, *more: Cond, within: Cond = INSIDE) -> Real:
    """The least index of a row that is a value, or 8."""
    return extreme("minimum", real(8), least(both(within, zero(x_at(K) - reached), *more), real(K)))


@pytest.mark.parametrize(
    ("part", "whole", "same"),
    [(8, 8, True), (8, 12, True), (12, 12, True), (7, 12, False), (12, 8, False), (8, 7, False)],
)
def test_what_is_reached_by_a_part_and_the_part_by_the_whole(
    part: int, whole: int, same: bool
) -> None:
    """Of k < 8: where all are of the part, and the part is of the whole."""
    p, q = (largest(between(0, symbol("k"), n), x_at(K)) for n in (part, whole))
    chain = index_of(p, zero(p - q))
    assert equal(chain, index_of(q)) is (same or part == whole)


def test_a_chain_of_minima_and_maxima_is_none() -> None:
    p, q = largest(INSIDE, x_at(K)), least(INSIDE, x_at(K))
    assert not equal(index_of(p, zero(p - q)), index_of(q))


@pytest.mark.parametrize(("times", "same"), [(2, True), (-2, True), (1, True), (3, False)])
def test_a_sum_of_squares_is_not_negative(times: int, same: bool) -> None:
    x, y = x_at(K), real(Factor("load", ("y", (K,))))
    squares = total(["k"], INSIDE, x * x - real(times) * x * y + y * y)
    assert equal(extreme("maximum", real(0), squares), squares) is same
    assert not equal(extreme("maximum", real(1), squares), squares)
    assert not equal(extreme("maximum", real(0), x * x - real(1)), x * x - real(1))


def test_exp_grows() -> None:
    x = x_at(K)
    assert equal(largest(INSIDE, exponential(x)), exponential(largest(INSIDE, x)))
    assert equal(least(INSIDE, exponential(-x)), exponential(-largest(INSIDE, x)))
    assert not equal(least(INSIDE, exponential(-x)), exponential(-least(INSIDE, x)))
    y = x_at(symbol("i"))
    assert zero(exponential(x) - exponential(y)) == zero(x - y)
    assert zero(exponential(x) - real(2) * exponential(y)) != zero(x - y)


def test_positive_factors_leave_a_maximum() -> None:
    x, summed = x_at(K), total(["j"], between(0, symbol("j"), 8), exponential(x_at(symbol("j"))))
    over = power(summed, Fraction(-1))
    assert equal(largest(INSIDE, x * over), largest(INSIDE, x) * over)
    signed = power(total(["j"], between(0, symbol("j"), 8), x_at(symbol("j"))), Fraction(-1))
    assert not equal(largest(INSIDE, x * signed), largest(INSIDE, x) * signed)
