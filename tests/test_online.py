"""The table of dependent reductions: launches and bytes of what the search finds for each row.

At full sizes the cost model's counts stand for the kernel's (they are exact, and the interpreter
would take minutes); some rows are emitted at small sizes and metered there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import online_programs as table
import pytest
import torch
from disguise import DISGUISES, Disguise, rewritten
from meter import meter
from test_disguise import draw

import superopt
from superopt.cost_model import features as ft
from superopt.cost_model.model import KernelModel, Prediction
from superopt.cost_model.profile import load_profile
from superopt.mugraph import index as ix
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Axis, Expr, Tensor, axis, substitute
from superopt.mugraph.program import Config, Kernel, KernelGraph, Program
from superopt.mugraph.text import inline
from superopt.mugraph.trace import trace
from superopt.pipeline import Settings, find_kernel, tuned_sizes
from superopt.search.driver import Options, choices, search_program
from superopt.spec import Spec
from superopt.verify.judge import judge

H200 = load_profile("h200")
EVERY_ROW = os.environ.get("SUPEROPT_TABLE") == "all"  # by hand: the whole table, for minutes
SEARCHED = (
    "attention", "causal", "sliding_window", "key_lengths", "tree_mask", "sink_joined",
    "gqa_expand-b1-256", "gqa_expand-b1-4096", "logsumexp-262144", "softmax-50257",
    "cross_entropy-50257", "entropy-4096", "variance-262144", "argmax", "top1_of_logits",
    "group_norm_silu", "linear_cross_entropy", "skewness-262144", "kl_divergence-262144",
    "norm_linear", "correlation-262144",
)  # fmt: skip
WHOLE = ("sliding_window", "argmax")
DISGUISED = (
    "attention", "logsumexp-262144", "cross_entropy-50257", "entropy-4096", "kl_divergence-262144",
    "group_norm_silu",
)  # fmt: skip
MULTIPLIED_OUT = ("norm_linear", "norm_linear_gelu")
METERED = (
    "logsumexp-262144", "variance-262144", "argmax", "cross_entropy_ignoring", "causal",
    "tree_mask_sdpa",
)  # fmt: skip


def marked(names: Sequence[str]) -> list:
    return [pytest.param(r, id=r.name) for r in table.TABLE if EVERY_ROW or r.name in names]


# -- what a µGraph asks of memory ---------------------------------------------------------------


def shapes(kernel: Kernel, config: Config, sizes: Mapping[str, int]) -> Iterator:
    """Each branch's features with its extents and tiles."""
    model = KernelModel(kernel, sizes, H200)
    tiles = {name: np.full(1, float(size)) for name, size in config.tiles}
    for f, extents in zip(model.parts, model.extents, strict=True):
        yield f, ft.shape(f, extents, tiles)


def asked(graph: KernelGraph, configs: Sequence[Config], sizes: Mapping[str, int]) -> dict:
    """By tensor: bytes requested, and bytes if each program that needs some read them once."""
    found: dict[str, list[float]] = {}
    for kernel, config in zip(graph.kernels, configs, strict=True):
        once: dict[tuple[str, str], float] = {}
        for f, s in shapes(kernel, config, sizes):
            for a in f.accesses:
                total, place = found.setdefault(a.tensor.name, [0.0, 0.0]), place_of(a)
                total[0] += float(ft.elements(f, s, a.free, a.context)[0]) * ft.bytes_of(a.tensor)
                once[place] = max(once.get(place, 0.0), part_of(f, s, a))
        for (name, _), size in once.items():
            found[name][1] += size
    return found


def place_of(a: ft.Access) -> tuple[str, str]:
    """Of which tensor and which elements of it: the same for another loop over as many."""
    indices = a.node.args[:-1] if isinstance(a.node, Expr) else map(axis, a.node.axes)
    alike = {b: axis(Axis(f"of {b.extent}", b.extent)) for b in a.free}
    return a.tensor.name, ", ".join(inline(substitute(e, alike)) for e in indices)


def part_of(f: ft.Features, s: ft.Shape, a: ft.Access) -> float:
    """Bytes of an access, were it made once in every program with all its axes."""
    split = prod(s.extent[x] if x in a.free else float(s.count(x)[0]) for x in f.split)
    return split * prod(s.extent[x] for x in a.free if x not in f.split) * ft.bytes_of(a.tensor)


def bytes_of(t: Tensor, sizes: Mapping[str, int]) -> float:
    return float(prod(ix.value(e, dict(sizes)) for e in t.shape) * DTYPES[t.dtype].bytes)


def byte_problems(
    row: table.Row, program: Program, graph: KernelGraph, configs: Sequence[Config], p: Prediction
) -> list[str]:
    """What a row's bounds on bytes are broken by, a sentence each."""
    found = asked(graph, configs, {})
    tensors = {t.name: t for t in (*program.inputs, *program.outputs)}
    problems = []
    for bound in row.bytes:
        named = bound.of or tuple(tensors)
        if "out" in named:
            named = (*named, *(t.name for t in program.outputs))
        names = [n for n in dict.fromkeys(named) if n in tensors]
        whole = sum(found[n][1] if bound.programs else bytes_of(tensors[n], {}) for n in names)
        wanted = sum(found[n][0] for n in names)
        if not bound.of:
            wanted = p.distinct_bytes if bound.distinct else p.bytes
        if wanted > bound.most * whole:
            what = "distinct" if bound.distinct else "requested"
            problems.append(
                f"{what} bytes of {', '.join(names)} are {wanted / whole:.4g} of reading once,"
                f" at most {bound.most} allowed"
            )
    if row.held is not None:
        held = sum(bytes_of(t, {}) for t in graph.temporaries) / (2 * prod(row.whole))
        if held > row.held:
            problems.append(
                f"temporaries are {held:.4g} of {row.whole}, at most {row.held} allowed"
            )
    return problems


def written_flops(program: Program) -> float:
    return float(sum(ix.value(o.flops, {}) for o in program.source_ops))


def problems(row: table.Row, program: Program) -> list[str]:
    """What the best µGraph found for a row's program misses, a sentence each."""
    sizes = tuned_sizes(program, row.spec())
    outcome = search_program(program, Options(H200, sizes))
    (_, best), *_ = choices(outcome.candidates, sizes)
    return missed(row, program, best.graph, *best.at[sizes[0]])


def missed(
    row: table.Row, program: Program, graph: KernelGraph, configs: Sequence[Config], p: Prediction
) -> list[str]:
    """What a µGraph misses of a row, a sentence each."""
    found = byte_problems(row, program, graph, configs, p)
    if p.launches > row.launches:
        found.append(f"{p.launches} launches, at most {row.launches} allowed")
    if row.flops is not None and p.flops > row.flops * written_flops(program):
        found.append(f"{p.flops / written_flops(program):.3g} of the flops as written")
    return found


@pytest.mark.parametrize("row", marked(SEARCHED))
def test_launches_and_bytes(row: table.Row) -> None:
    found = problems(row, trace(row.spec()).program)
    assert not found, f"{row}:\n  " + "\n  ".join(found)


@pytest.mark.parametrize("row", marked(WHOLE))
def test_end_to_end(row: table.Row) -> None:
    """What is compiled, passes the gate and is proved keeps to the row's bounds."""
    run = find_kernel(row.spec(), Settings())
    assert run.picks, [str(r) for r in run.refusals]
    draft, *_ = run.picks
    chosen = draft.candidate.graph, draft.configs, draft.prediction(run.profile)
    found = missed(row, run.program, *chosen)
    assert run.proof is not None
    if not run.proof.complete:
        found.append(f"{run.proof.addresses.verdict}; {run.proof.values.verdict}")
    assert not found, f"{row}:\n  " + "\n  ".join(found)


@pytest.mark.parametrize("disguise", DISGUISES, ids=str)
@pytest.mark.parametrize("row", marked(DISGUISED))
def test_a_disguise_does_not_hide_it(row: table.Row, disguise: Disguise) -> None:
    found = problems(row, disguise.of(trace(row.spec()).program))
    assert not found, f"{row}, {disguise}:\n  " + "\n  ".join(found)


@pytest.mark.parametrize("row", marked(MULTIPLIED_OUT))
def test_what_is_multiplied_out_is_gathered(row: table.Row) -> None:
    """`weight*x*scale - weight*mean*scale`: one pass only where it is (x - mean) that is summed."""
    program = trace(row.spec()).program
    found = problems(row, next(d for d in DISGUISES if d.of is rewritten).of(program))
    assert not found, f"{row}:\n  " + "\n  ".join(found)


# -- metered, and on the row's hostile inputs ---------------------------------------------------

Given = dict[str, torch.Tensor]


def tensors(value: object) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


def floats(given: Given, change: Callable[[torch.Tensor], torch.Tensor]) -> Given:
    return {n: change(t) if t.is_floating_point() else t for n, t in given.items()}


HOSTILE: dict[str, Callable[[Given], Given]] = {
    "rows of -inf, masks false": lambda g: {
        n: torch.zeros_like(t) if t.dtype is torch.bool else t for n, t in g.items()
    },
    "rows of -inf": lambda g: floats(g, lambda t: t.index_fill(0, torch.tensor([0]), -torch.inf)),
    "lengths of 0": lambda g: g | {n: g[n] * 0 for n in ("length",) if n in g},
    "ignored targets": lambda g: g | {"target": g["target"] * torch.tensor([0, 1, 1])},
    "mean 1e6, deviation 1": lambda g: floats(g, lambda t: t + 1e6),
    "mean over spread 30": lambda g: floats(g, lambda t: t + 30),
    "ties": lambda g: floats(g, torch.round),
    "a few NaN": lambda g: floats(g, lambda t: t.index_fill(1, torch.tensor([5]), torch.nan)),
}


def assert_no_worse(kernel: Callable, spec: Spec, program: Program, given: Given) -> None:
    """Against float64, errors as the gate allows them; whole numbers as eager's.

    Torch sums rows in double on the CPU: each operator rounded to its own type counts as eager too.
    """
    arrays = {n: t.double().numpy() if t.is_floating_point() else t.numpy()
              for n, t in given.items()}  # fmt: skip
    want = run_program(program, arrays, {})
    rounded = run_program(program, arrays, {}, rounding=True)
    found, eager = tensors(kernel(**given)), tensors(spec.fn(**given))
    for t, got, own in zip(program.outputs, found, eager, strict=True):
        if not got.is_floating_point():
            assert got.equal(own)
            continue
        judged = [
            judge(got.double().numpy(), want[t.name], e, t.dtype)
            for e in (own.double().numpy(), rounded[t.name])
        ]
        assert min(j.ratio for j in judged) <= 1, judged


@pytest.mark.parametrize("row", marked(METERED))
def test_metered_at_a_small_size(row: table.Row, tmp_path: Path) -> None:
    """The emitted kernel traps nothing, launches as often and asks for as much as was predicted."""
    spec = row.spec(**row.small)
    program = trace(spec).program
    result = superopt.search(spec, out=tmp_path)
    best = result.report["best"]
    given = {
        name: torch.from_numpy(x).to(spec.tensors[name].dtype) for name, x in draw(program).items()
    }
    with meter() as m:
        found = tensors(result.kernel(**given))
    m.assert_all_written(*found)
    assert len(m.launches) + m.extra_launches == best["launches"]
    assert m.requested_bytes <= 1.02 * best["bytes"] + 1024
    assert_no_worse(result.kernel, spec, program, given)
    for name in row.hostile:
        assert_no_worse(result.kernel, spec, program, HOSTILE[name](given))


# -- the table itself ---------------------------------------------------------------------------


def test_names_are_distinct_and_hostile_inputs_known() -> None:
    assert len(table.BY_NAME) == len(table.TABLE)
    assert {name for row in table.TABLE for name in row.hostile} <= set(HOSTILE)
