"""Proofs of values: sound kernels pass, broken ones do not, and laws are needed."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import emit_cases as cases
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from superopt.cost_model.profile import load_profile
from superopt.emit import emit
from superopt.errors import IllFormed, SuperoptError
from superopt.mugraph.expr import MARKERS, Expr, const, make, op, toposort
from superopt.mugraph.program import KernelGraph, Program, Store, Traced
from superopt.mugraph.serialize import to_json
from superopt.mugraph.text import print_graph
from superopt.mugraph.trace import trace
from superopt.pipeline import tuned_sizes
from superopt.search.driver import Options, search_program, to_choice
from superopt.spec import Spec, Tensor, spec
from superopt.verify.addresses import Prover
from superopt.verify.forms import Forms
from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    between,
    both,
    eq,
    le,
    lt,
    negation,
    poly,
    symbol,
)
from superopt.verify.laws import LAWS, laws
from superopt.verify.reals import (
    Factor,
    Real,
    cond_changed,
    exponential,
    extreme_over,
    power,
    real,
    total,
    truth,
    zero,
)
from superopt.verify.ttir import Unreadable
from superopt.verify.values import (
    HIGHEST,
    LOWEST,
    Value,
    add,
    apply,
    compare,
    is_nan,
    multiply,
    select,
    spec_values,
)

B, N = Dim("B", min=1, max=4096), Dim("N", min=1, max=65536)
HALF = torch.float16
PROVE = """
import json, sys
from superopt.mugraph.serialize import from_json
from superopt.verify.prover import load, values
from superopt.verify.laws import laws
for job in map(json.loads, sys.stdin):
    with laws(job["without"]):
        claims = values(load(job["path"]), from_json(job["program"]))
    print(json.dumps({"kind": claims.verdict.kind, "laws": claims.laws, "why": str(claims)}))
"""


def proofs(jobs: list[tuple[Path, Program, list[str]]]) -> list[dict[str, Any]]:
    """What becomes of the values of each kernel.py, without some laws, in one process."""
    lines = [
        json.dumps({"path": str(path), "program": to_json(program), "without": without})
        for path, program, without in jobs
    ]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROVE], input="\n".join(lines), env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- kernels -------------------------------------------------------------------------------------


def weighted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (torch.softmax(x.float() * 0.125, -1) * y).sum(-1)


def spread(x: torch.Tensor) -> torch.Tensor:
    return torch.rsqrt(x.float().var(-1) + 1e-5)


def summed(x: torch.Tensor) -> torch.Tensor:
    return x.float().sum(-1)


def entropy(x: torch.Tensor) -> torch.Tensor:
    logged = torch.log_softmax(x.float(), dim=-1)
    return -(logged.exp() * logged).sum(-1)


SHAPES = {
    entropy: {"x": Tensor(B, 50257)},
    weighted: {"x": Tensor(B, 39999), "y": Tensor(B, 39999)},
    spread: {"x": Tensor(B, 262144)},
    summed: {"x": Tensor(B, 64)},
}


Found = tuple[Path, Traced, KernelGraph]


def searched(fn: Callable, out: Path) -> Found:
    return searched_for(spec(dtype=HALF, **SHAPES[fn])(fn), out)


def searched_for(own: Spec, out: Path, mark: str = "") -> Found:
    """The kernel.py of what the search ranks first, of what has a mark: no gate has seen it."""
    traced = trace(own)
    sizes = tuned_sizes(traced.program, own)
    found = search_program(traced.program, Options(load_profile("h200"), sizes)).candidates
    best = next(c for c in found if mark in print_graph(c.graph))
    path = out / "kernel.py"
    path.write_text(emit(traced, [to_choice(s, best) for s in best.at], cases.NOTES))
    return path, traced, best.graph


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return searched(weighted, tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return searched(spread, tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return searched(entropy, tmp_path_factory.mktemp("logged"))


@pytest.mark.parametrize("name", ["online", "moments", "logged"])
def test_each_law_that_is_cited_is_needed(name: str, request: pytest.FixtureRequest) -> None:
    path, traced, _ = request.getfixturevalue(name)
    (whole,) = proofs([(path, traced.program, [])])
    assert whole["kind"] == "proved", whole["why"]
    assert {"induction", "two indices as one"} <= set(whole["laws"])
    assert ("exp of a log" in whole["laws"]) is (name == "logged")
    others = [law for law in LAWS if law not in whole["laws"]]
    jobs = [(path, traced.program, [law, *others]) for law in whole["laws"]]
    assert "proved" not in [found["kind"] for found in proofs(jobs)]
    (rest,) = proofs([(path, traced.program, others)])
    assert rest["kind"] == "proved", rest["why"]


EDITS = {
    "online": (
        ("0.125", "0.1289"),
        ("/ 8.0", "/ 8.1"),
        ("tl.exp(", "tl.exp2("),
        ("* 1.4426950408889634", "* 1.443"),
        ("tl.sum(", "tl.max("),
        ("tl.zeros((BLOCK_B,), tl.float32)", "tl.full((BLOCK_B,), 1.0, tl.float32)"),
        ("range(0, N", "range(BLOCK_N, N"),
        (" * tl.exp(", " / tl.exp("),
        ("product_sum * rescale", "product_sum"),
        ("1.0 / exp_sum", "2.0 / exp_sum"),
    ),
    "moments": (
        ("1e-05", "1.03e-05"),
        ("262143.0", "262144.0"),
        ("tl.rsqrt(", "tl.sqrt("),
        ("range(0, N", "range(BLOCK_N, N"),
        ("range(0, K", "range(BLOCK_K, K"),
        ("tl.zeros((BLOCK_B,), tl.float32)", "tl.full((BLOCK_B,), 1.0, tl.float32)"),
        (" + tl.sum(", " - tl.sum("),
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_kernel_is_not_proved(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, traced, _ = request.getfixturevalue(name)
    text = path.read_text()
    body, rest = text.split("\ndef reference(", 1)
    jobs, edits = [], [(old, new) for old, new in EDITS[name] if old in body]
    assert len(edits) >= 4, text
    for n, (old, new) in enumerate(edits):
        edited = tmp_path / f"kernel{n}.py"
        edited.write_text(body.replace(old, new) + "\ndef reference(" + rest)
        jobs.append((edited, traced.program, []))
    found = proofs(jobs)
    assert [e for e, f in zip(edits, found, strict=True) if f["kind"] == "proved"] == []


def test_a_loop_over_the_whole_of_its_input_may_take_one_turn(tmp_path: Path) -> None:
    path, traced, _ = searched(summed, tmp_path)
    text = path.read_text()
    (old,) = re.findall(r"    (\w+) = (tl\.sum\(.*\))\n", text)
    jobs = []
    for turns in (1, 2, 3):
        loop = f"{old[0]} = tl.zeros((BLOCK_B,), tl.float32)\n    for _ in range({turns}):\n"
        edited = tmp_path / f"turns{turns}.py"
        edited.write_text(
            text.replace(" = ".join(old), f"{loop}        {old[0]} = {old[0]} + {old[1]}")
        )
        jobs.append((edited, traced.program, []))
    one, *more = proofs(jobs)
    assert one["kind"] == "proved", one["why"]
    assert "proved" not in [found["kind"] for found in more]


def quantized(a: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (a.float() @ w.float() * s[:, None]).half()


def pooled(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    mean = torch.where(m[..., None], x, 0).float().sum(1) / m.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)


def distant(x: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.arange(x.shape[0]), torch.arange(64)
    return (x * (rows[:, None] - columns).abs()).sum(-1)


def normed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Rows of masked scores times v: two loops add them up before they are squared."""
    rows = torch.arange(2048)
    scores = torch.where(rows[:, None] >= rows, (q @ k.mT).float(), 0)
    out = scores @ v.float()
    return out * torch.rsqrt(out.square().mean(-1, keepdim=True) + 1e-5)


def surest(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An index beside sums that follow one another; it is not neutral at first."""
    logged = torch.log_softmax(x.float(), dim=-1)
    return x.argmax(-1), -(logged.exp() * logged).sum(-1)


def of_squares(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.relu((q @ k.mT).float()).square()
    return (weights / (weights.sum(-1, keepdim=True) + 1e-6)).to(v.dtype) @ v


def by_groups(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Channels are looped over as one axis; groups of 8 of them have a mean."""
    groups = x.unflatten(1, (32, 8)).float()
    centred = groups - groups.mean((2, 3), keepdim=True)
    return w @ F.silu(centred.flatten(1, 2)).to(w.dtype)


def flattened(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ w


HEADS = {n: Tensor(2, 2048, 16) for n in "qkv"}
OTHERS = {
    normed: (HEADS, ("tl.minimum(m_start + BLOCK_M, ", "tl.minimum(m_start, ")),
    of_squares: (HEADS, (" + 1e-06))[:, None]", " + 2e-06))[:, None]")),
    surest: ({"x": Tensor(B, 50257)}, ("(log_1 - safe)", "(log_1 + safe)")),
    distant: ({"x": Tensor(B, 64)}, ("tl.abs(", "(")),
    flattened: ({"x": Tensor(B, 64, 7, 7), "w": Tensor(3136, 256)}, ("k // 49", "k // 48")),
    by_groups: ({"x": Tensor(8, 256, 1024), "w": Tensor(512, 256)}, ("k // 8", "k // 16")),
    quantized: (
        {
            "a": Tensor(B, 64, dtype=torch.int8), "w": Tensor(64, 32, dtype=torch.int8),
            "s": Tensor(B, dtype=torch.float32),
        },
        ("a.to(tl.float32)", "(a + 1).to(tl.float32)"),
    ),
    pooled: (
        {"x": Tensor(4, N, 32), "m": Tensor(4, N, dtype=torch.bool)},
        ("other=0\n", "other=1\n"),  # of the mask: elements past the end count then
    ),
}  # fmt: skip


@pytest.mark.parametrize("fn", OTHERS, ids=lambda fn: fn.__name__)
def test_other_programs_are_followed(fn: Callable, tmp_path: Path) -> None:
    tensors, (old, new) = OTHERS[fn]
    path, traced, _ = searched_for(spec(dtype=HALF, **tensors)(fn), tmp_path)
    text = path.read_text()
    assert old in text, text
    edited = tmp_path / "edited.py"
    edited.write_text(text.replace(old, new))
    whole, broken = proofs([(path, traced.program, []), (edited, traced.program, [])])
    assert whole["kind"] == "proved", whole["why"]
    assert broken["kind"] != "proved"


def test_a_loop_goes_on_by_the_sum_of_another(tmp_path: Path) -> None:
    """Weights are normalised in both loops, as their squares would not fit half precision: what the
    first has added up is rescaled by what the second adds to its sum."""

    def causal_squares(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(2048)
        weights = torch.where(rows[:, None] >= rows, (q @ k.mT).float(), 0).square()
        return (weights / (weights.sum(-1, keepdim=True) + 1e-6)).to(v.dtype) @ v

    own = spec(dtype=HALF, **HEADS)(causal_squares)
    path, traced, _ = searched_for(own, tmp_path, "online[")
    text = path.read_text()
    first, _, second = text.partition("# tiles in which m >= j must be tested")
    assert "square_sum_new" in first
    assert "square_sum_new" in second
    edited = tmp_path / "edited.py"
    edited.write_text(first + second.replace(" + 1e-06", " + 2e-06"))
    whole, broken = proofs([(path, traced.program, []), (edited, traced.program, [])])
    assert whole["kind"] == "proved", whole["why"]
    assert broken["kind"] != "proved"


# -- µGraphs -------------------------------------------------------------------------------------


def broken(e: Expr) -> Iterator[Expr]:
    """The expression with one node changed, and each update of an accumulator changed."""
    for node in toposort(e):
        if node.op == "online":
            yield from _updates(e, node)
        elif node.op == "reduce" or node.dtype in ("index", "bool") or node.op in MARKERS:
            continue
        elif node.op in ("mul", "add", "sub", "div"):
            other = {"mul": "add", "add": "sub", "sub": "add", "div": "mul"}[node.op]
            yield _with(e, node, op(other, *node.args))
        elif node.op == "exp":
            yield _with(e, node, op("exp2", *node.args))
        elif node.op == "const" and isinstance(node.attr, float) and 1 < abs(node.attr) < 1e30:
            yield _with(e, node, const(node.attr * 1.03, node.dtype))


def _updates(e: Expr, node: Expr) -> Iterator[Expr]:
    plain, body, update, *others = node.args
    for inner in toposort(update):
        if inner.op in ("exp", "mul", "sub"):
            for new in inner.args[:1]:
                changed = _with(update, inner, new)
                if changed is not update:
                    yield _with(e, node, make("online", (plain, body, changed, *others),
                                              node.attr, node.dtype))  # fmt: skip


def _with(e: Expr, old: Expr, new: Expr) -> Expr:
    memo: dict[Expr, Expr] = {}
    for node in toposort(e):
        args = tuple(memo[a] for a in node.args)
        same = args == node.args
        memo[node] = new if node is old else node if same else make(
            node.op, args, node.attr, node.dtype
        )  # fmt: skip
    return memo[e]


def written(traced: Traced, g: KernelGraph, folder: Path, number: int) -> Path | None:
    """A kernel.py of the µGraph with tiles of 16; None where it cannot be written."""
    sizes = {s.name: 64 for s in traced.program.symbols}
    try:
        text = emit(traced, [cases.choice(g, 16, **sizes)], cases.NOTES)
    except (SuperoptError, IllFormed):
        return None
    path = folder / f"graph{number}.py"
    path.write_text(text)
    return path


def test_a_broken_graph_is_not_proved(online: Found, tmp_path: Path) -> None:
    """Also where what is broken is the law by which an accumulator follows its statistics."""
    _, traced, graph = online
    (kernel,) = graph.kernels
    (branch,) = kernel.branches
    (store,) = branch.stores
    whole = written(traced, graph, tmp_path, 0)
    assert whole is not None
    jobs = [(whole, traced.program, [])]
    for n, value in enumerate(islice(broken(store.value), 14), 1):
        own = replace(branch, stores=(Store(store.tensor, store.axes, store.indices, value),))
        changed = replace(graph, kernels=(replace(kernel, branches=(own,)),))
        edited = written(traced, changed, tmp_path, n)
        if edited is not None and edited.read_text() != whole.read_text():
            jobs.append((edited, traced.program, []))
    first, *rest = proofs(jobs)
    assert first["kind"] == "proved", first["why"]
    assert len(rest) >= 6
    text = whole.read_text().splitlines()
    passed = [job[0] for job, f in zip(jobs[1:], rest, strict=True) if f["kind"] == "proved"]
    diffs = [difflib.unified_diff(text, p.read_text().splitlines(), n=0) for p in passed]
    assert ["\n".join(d) for d in diffs] == []


# -- normal forms --------------------------------------------------------------------------------

K = symbol("k")
INSIDE = between(0, K, 8)


def x_at(*indices: Any) -> Any:
    return real(Factor("load", ("x", tuple(map(poly, indices)))))


def same(one: Callable, two: Callable, **tensors: Tensor) -> bool:
    """Whether two functions have one normal form."""
    programs = [trace(spec(dtype=torch.float32, **tensors)(fn)).program for fn in (one, two)]
    found = [spec_values(p.stores)[p.outputs[0].name] for p in programs]
    (names, first), (_, second) = found
    inside = [between(0, symbol(n), size) for n, size in zip(names, (8, 40), strict=False)]
    return Forms(Prover()).equal(first.finite, second.finite, both(*inside))


ROW = {"x": Tensor(8, 40)}
PAIRS: dict[str, tuple[Callable, Callable, bool]] = {
    "a rectifier": (lambda x: torch.relu(x), lambda x: torch.maximum(x / 2, x), False),
    "a root of a square": (lambda x: (x * x).sqrt(), lambda x: x.clone(), False),
    "exp of log": (lambda x: x.log().exp(), lambda x: x.clone(), False),
    "log of exp": (lambda x: x.exp().log(), lambda x: x.clone(), True),
    "clamped": (lambda x: x.clamp(0, 1), lambda x: x.clamp(-5, 3), False),
    "eps outside": (
        lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-5).sqrt(),
        lambda x: x / (x.square().sum(-1, keepdim=True).sqrt() + 1e-5),
        False,
    ),
    "shifted softmax": (
        lambda x: torch.softmax(x, -1),
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
        True,
    ),
    "half of a softmax": (
        lambda x: torch.softmax(x, -1),
        lambda x: torch.softmax(x / 2, -1),
        False,
    ),
    "variance": (
        lambda x: x.var(-1, correction=0),
        lambda x: x.square().mean(-1) - x.mean(-1).square(),
        True,
    ),
    "corrected variance": (
        lambda x: x.var(-1),
        lambda x: x.square().mean(-1) - x.mean(-1).square(),
        False,
    ),
    "maximum of what is scaled": (
        lambda x: (3 * x + 1).amax(-1),
        lambda x: 3 * x.amax(-1) + 1,
        True,
    ),
    "maximum of what is turned": (lambda x: (-x).amax(-1), lambda x: -x.amax(-1), False),
    "minimum of what is turned": (lambda x: (-x).amax(-1), lambda x: -x.amin(-1), True),
    "a mean over a mask": (
        lambda x: torch.where(x > 0, x, 0).mean(-1),
        lambda x: torch.where(x > 0, x, 0).sum(-1) / (x > 0).sum(-1),
        False,
    ),
    "a divisor in parts": (
        lambda x: x.sum(-1) / (1 + x.square().sum(-1)),
        lambda x: (
            x.sum(-1)
            * (1 + x[:, :20].square().sum(-1) + x[:, 20:].square().sum(-1))
            / (1 + x.square().sum(-1)).square()
        ),
        True,
    ),
    "a divisor short of a part": (
        lambda x: x.sum(-1) / (1 + x.square().sum(-1)),
        lambda x: (
            x.sum(-1)
            * (1 + x[:, :20].square().sum(-1) + x[:, 21:].square().sum(-1))
            / (1 + x.square().sum(-1)).square()
        ),
        False,
    ),
    "sums across a mask": (
        lambda x: torch.where(x > 0, x, 0).sum(-1) + torch.where(x > 0, 0, x).sum(-1),
        lambda x: x.sum(-1),
        True,
    ),
    "one more of a row": (
        lambda x: torch.cat([x, x[:, :1]], 1).exp().sum(-1),
        lambda x: x.exp().sum(-1) + x[:, 0].exp(),
        True,
    ),
    "one other of a row": (
        lambda x: torch.cat([x, x[:, :1]], 1).exp().sum(-1),
        lambda x: x.exp().sum(-1) + x[:, 1].exp(),
        False,
    ),
    "the largest of one more": (
        lambda x: torch.cat([x, 2 * x[:, :1]], 1).exp().amax(-1),
        lambda x: torch.maximum(x.exp().amax(-1), (2 * x[:, 0]).exp()),
        True,
    ),
    "a view of a view": (
        lambda x: x.view(8, 5, 8).flatten(1).view(4, 2, 40).exp().sum(-1).view(8),
        lambda x: x.exp().sum(-1),
        True,
    ),
    "a steep exponential": (lambda x: (x / 8e-6).exp(), lambda x: (125000 * x).exp(), True),
    "the second largest": (
        lambda x: x.masked_fill(x == x.amax(-1, keepdim=True), -torch.inf).amax(-1),
        lambda x: x.masked_fill(x == x.amin(-1, keepdim=True), -torch.inf).amax(-1),
        False,
    ),
    "other rows": (lambda x: x.roll(1, 0), lambda x: x.roll(-1, 0), False),
    "rolled round": (lambda x: x.roll(3, 0), lambda x: x.roll(-5, 0), True),
    "halves": (lambda x: torch.cat([x[:, 20:], x[:, :20]], 1), lambda x: x.roll(20, 1), True),
    "remainders": (
        lambda x: x[torch.arange(-8, 0) % 8],
        lambda x: x[(-torch.arange(-8, 0)) % 8],
        False,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    one, two, equal = PAIRS[name]
    assert same(one, two, **ROW) is equal


def test_bound_names_are_not_captured() -> None:
    """max[k: x[k] != max[k] x[k]] x[k]: the inner index is not the outer one."""
    inner = extreme_over("maximum", ["k"], INSIDE, x_at(K))
    differs = Cond("not", (Cond("zero", (x_at(K) - inner,)),))
    outer = extreme_over("maximum", ["k"], both(INSIDE, differs), x_at(K))
    ((f,),) = ([f for f, _ in p] for p, _ in outer.terms)
    (name,) = f.args[0]
    assert name not in str(inner)
    assert str(inner) in str(f.args[1])


def test_a_sum_takes_out_what_does_not_vary() -> None:
    y = x_at(symbol("i"))
    assert total(["k"], INSIDE, y * x_at(K)) == y * total(["k"], INSIDE, x_at(K))
    with laws(without=["sums are linear"]):
        assert total(["k"], INSIDE, y * x_at(K)) != y * total(["k"], INSIDE, x_at(K))


def test_indices_that_have_nothing_in_common_are_summed_apart() -> None:
    j = symbol("j")
    apart = total(["j"], between(0, j, 4), x_at(j)) * total(["k"], INSIDE, x_at(K))
    assert total(["j", "k"], both(INSIDE, between(0, j, 4)), x_at(j) * x_at(K)) == apart
    assert total(["j", "k"], both(INSIDE, between(0, j, K)), x_at(j) * x_at(K)) != apart


def test_powers() -> None:
    x = x_at(K)
    half = power(x * x, Fraction(1, 2))
    assert half != x  # it may be negative
    assert half * half == x * x
    assert power(exponential(x), Fraction(1, 2)) == exponential(x * real(Fraction(1, 2)))
    assert power(real(0), Fraction(1, 2)) == real(0)
    with pytest.raises(ZeroDivisionError):
        power(real(0), Fraction(-1))


def test_sums_over_two_domains_are_one_where_they_do_not_meet() -> None:
    forms, n = Forms(Prover()), symbol("n")
    low, high = both(between(0, K, n)), both(between(n, K, 8))
    facts = between(0, n, 9)
    parts = total(["k"], low, x_at(K)) + total(["k"], high, x_at(K))
    assert forms.equal(parts, total(["k"], INSIDE, x_at(K)), facts)
    assert not forms.equal(parts, total(["k"], INSIDE, x_at(K)), both())
    twice = total(["k"], INSIDE, x_at(K)) + total(["k"], both(between(3, K, 8)), x_at(K))
    assert not forms.equal(twice, total(["k"], INSIDE, x_at(K)), both())


def test_a_sum_of_exps_is_zero_only_where_it_has_no_term() -> None:
    forms, n = Forms(Prover()), symbol("n")
    exps, plain = (total(["k"], between(0, K, n), v) for v in (exponential(x_at(K)), x_at(K)))
    none = truth(le(n, 0))
    assert forms.equal(truth(zero(exps)), none, both())
    assert not forms.equal(truth(zero(plain)), none, both())
    assert not forms.equal(truth(zero(exps)), truth(le(n, 1)), both())
    guarded = power(exps + truth(zero(exps)), Fraction(-1))
    assert forms.equal(exps * guarded, real(1) - none, both())
    assert forms.equal(exps * exps * guarded, exps, both())
    with laws(without=["a sum of exps"]):
        assert not Forms(Prover()).equal(truth(zero(exps)), none, both())
    sparse = total(["k"], both(between(0, K, n), lt(K * 3, n)), exponential(x_at(K)))
    assert not forms.equal(truth(zero(sparse)), none, both())  # a part bounds no index by 1


def test_two_indices_are_one_only_where_they_cover_each_once() -> None:
    forms, turn, lane = Forms(Prover()), symbol("turn"), symbol("lane")
    for width, step, covered in ((4, 4, True), (4, 5, False), (4, 3, False), (5, 4, False)):
        domain = both(between(0, turn, 2), between(0, lane, width))
        parts = total(["turn", "lane"], domain, x_at(turn * step + lane))
        assert forms.equal(parts, total(["k"], INSIDE, x_at(K)), both()) is covered


def test_a_sum_is_the_same_however_its_domain_is_written() -> None:
    forms, n = Forms(Prover()), symbol("n")
    least = poly(Atom("minimum", (n, poly(8))))
    clipped = total(["k"], between(0, K, least), x_at(K))
    for most, same in ((8, True), (7, False)):
        both_hold = total(["k"], both(between(0, K, n), between(0, K, most)), x_at(K))
        assert forms.equal(clipped, both_hold, both()) is same


def test_a_sum_over_one_index_is_its_body_where_the_mask_lets_it_through() -> None:
    forms, n = Forms(Prover()), symbol("n")
    there = negation(eq(poly(Atom("loaded", ("m", (K,)))), 0))
    masked = total(["k"], both(between(0, K, n), there), x_at(K))
    first = {Atom("symbol", ("k",)): poly(0)}
    alone = truth(cond_changed(there, first)) * x_at(poly(0))
    assert forms.equal(masked, alone, between(1, n, 2))
    assert not forms.equal(masked, x_at(poly(0)), between(1, n, 2))
    assert not forms.equal(masked, alone, between(1, n, 3))


def test_a_size_that_can_only_be_1_is() -> None:
    forms, n = Forms(Prover()), symbol("n")
    mean = total(["k"], between(0, K, n), x_at(K)) * power(real(n), Fraction(-1))
    cube = mean * power(real(n), Fraction(-2))
    assert forms.equal(cube, mean, between(1, n, 2))
    assert not forms.equal(cube, mean, between(1, n, 3))


def test_an_index_is_two_where_a_condition_inside_divides_it() -> None:
    """Heads beside their elements, and all of them as one axis: h, d and h * 4 + d."""
    forms, h, d, i = Forms(Prover()), symbol("h"), symbol("d"), symbol("i")
    quotient = poly(Atom("quotient", (K, poly(4))))

    def weight(head: Poly, width: int) -> Real:
        inner = total(["i"], both(between(0, i - head * width, 4)), x_at(i))
        return exponential(inner)

    whole = total(["k"], INSIDE, weight(quotient, 4) * x_at(K))
    for width, same in ((4, True), (3, False)):
        parts = both(between(0, h, 2), between(0, d, 4))
        assert forms.equal(total(["h", "d"], parts, weight(h, width) * x_at(h * 4 + d)), whole,
                           both()) is same  # fmt: skip


def test_blocks_are_counted() -> None:
    """8 * (blocks of 8 up to n), less what is past n, is n: from 0 on."""
    forms, n = Forms(Prover()), symbol("n")
    blocks = total(["k"], both(le(0, K), lt(K * 8, n)), real(1))
    quotient = poly(Atom("quotient", (K, poly(8))))
    past = total(["k"], both(le(n, K), lt(quotient * 8, n)), real(1))
    assert forms.equal(blocks * real(8) - past, real(n), le(0, n))
    assert not forms.equal(blocks * real(8), real(n), le(0, n))
    assert not forms.equal(blocks * real(8) - past, real(n), le(-9, n))


def test_the_sizes_of_parts_add_up() -> None:
    """max(0, min(size, n - k * size)) of part k are n, where the parts cover all of it."""
    forms, n = Forms(Prover()), symbol("n")
    size = poly(Atom("quotient", (n + 7, poly(8))))

    def sizes(parts: int) -> Real:
        own = poly(Atom("maximum", (poly(0), poly(Atom("minimum", (size, n - K * size))))))
        return total(["k"], between(0, K, parts), real(own))

    assert forms.equal(sizes(8), real(n), between(1, n, 100))
    assert not forms.equal(sizes(7), real(n), between(1, n, 100))
    weighted = total(["k"], INSIDE, real(size) * x_at(K))  # inside a sum, and outside
    assert forms.equal(weighted, real(size) * total(["k"], INSIDE, x_at(K)), le(1, n))
    with laws(without=["counting"]):
        assert not Forms(Prover()).equal(sizes(8), real(n), between(1, n, 100))


def test_a_name_is_never_captured() -> None:
    inner = total(["k"], INSIDE, x_at(K))
    (bound,) = next(iter(inner.factors)).args[0]
    with pytest.raises(AssertionError, match="captured"):
        total(["j"], between(0, symbol("j"), symbol(bound)), real(1))


def test_constants_that_differ_by_a_rounding_cancel() -> None:
    c, turn, lane = Fraction(1, 10**8), symbol("turn"), symbol("lane")
    whole = total(["k"], INSIDE, x_at(K))
    covered = both(between(0, turn, 2), between(0, lane, 4))
    parts = total(["turn", "lane"], covered, x_at(turn * 4 + lane))
    for off, cancels in ((Fraction(1, 10**8), True), (Fraction(1, 10**3), False)):
        difference = whole * real(c) - parts * real(c * (1 + off))
        assert (Forms(Prover()).tidy(difference, both()) == real(0)) is cancels


def test_functions_of_zero() -> None:
    for name in ("abs", "erf", "sin", "tan", "tanh"):
        assert apply(name, Value(real(0))) == Value(real(0))
    assert apply("abs", Value(real(-2))) == Value(real(2))
    assert apply("cos", Value(real(0))) != Value(real(0))


def test_what_is_not_followed_may_only_be_left_out() -> None:
    """An infinity times what may be 0 or negative, where a guard chooses something else."""
    scaled = add(multiply(LOWEST, Value(x_at(K))), Value(real(1)))
    assert select(TRUE, Value(x_at(K)), scaled) == Value(x_at(K))
    uses: tuple[Callable[[], object], ...] = (
        lambda: compare("lt", scaled, LOWEST), lambda: is_nan(scaled), lambda: scaled.finite,
        lambda: select(eq(K, 0), scaled, LOWEST),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(Unreadable):
            use()


def test_the_size_of_an_infinity_is_one() -> None:
    masked = apply("abs", Value(x_at(K), below=eq(K, 0)))
    assert (masked.below, masked.above) == (FALSE, eq(K, 0))
    assert compare("eq", masked, HIGHEST) == eq(K, 0)
    assert compare("eq", masked, LOWEST) == FALSE
