"""Proofs of addresses: sound kernels pass, edited ones do not, and the parts mean what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import emit_cases as cases
import pytest
import torch
import z3
from torch.export import Dim

from superopt.cost_model.profile import load_profile
from superopt.emit import emit
from superopt.mugraph.program import Choice, Program
from superopt.mugraph.trace import trace
from superopt.search.driver import Options, search_program
from superopt.search.found import Sizes
from superopt.spec import Tensor, spec
from superopt.verify import Proving
from superopt.verify.addresses import Prover
from superopt.verify.host import accepted, paths
from superopt.verify.integers import FALSE, Atom, between, both, eq, lt, poly, symbol
from superopt.verify.smt import Encoder

B, N = Dim("B", min=1, max=4096), Dim("N", min=1, max=65536)
HALF = torch.float16


class Kernel(NamedTuple):
    path: Path
    program: Program


def written(
    fn: Callable, roles: dict[str, str], folder: Path, size: int, **tensors: Tensor
) -> Kernel:
    """A kernel.py of a function."""
    traced = trace(spec(dtype=HALF, **tensors)(fn))
    g = cases.graph(traced.program, roles)
    sizes = {s.name: 64 for s in traced.program.symbols}
    path = folder / "kernel.py"
    path.write_text(emit(traced, [cases.choice(g, size, **sizes)], cases.NOTES))
    return Kernel(path, traced.program)


def best(fn: Callable, folder: Path, size: Sizes, **tensors: Tensor) -> Kernel:
    """A kernel.py of what the search predicts to be the fastest at a size."""
    traced = trace(spec(dtype=HALF, **tensors)(fn))
    found = search_program(traced.program, Options(load_profile("h200"), (size,))).candidates[0]
    path = folder / "kernel.py"
    choice = Choice(size, found.graph, found.at[size][0])
    path.write_text(emit(traced, [choice], cases.NOTES))
    return Kernel(path, traced.program)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """A product over a swizzled grid, and the maximum of rows: two launches."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tanh(x @ w), x.amax(1)

    folder = tmp_path_factory.mktemp("gated")
    return written(fn, {"k": "loop"}, folder, 32, x=Tensor(B, 250), w=Tensor(250, 512))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Sums of rows of any length, kept, and the rows over them."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        return x / x.float().sum(-1, keepdim=True)

    return written(fn, {"n": "loop"}, tmp_path_factory.mktemp("rows"), 16, x=Tensor(B, N))


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    def fn(table: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return table[i] * 2

    tensors = {"table": Tensor(50, 40), "i": Tensor(B, dtype=torch.int64, range=(0, 50))}
    return written(fn, {}, tmp_path_factory.mktemp("picked"), 16, **tensors)


@pytest.fixture(scope="module")
def swizzled(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Blocks of rows in groups, both counts symbols: products of unknowns."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w)

    folder = tmp_path_factory.mktemp("swizzled")
    return written(fn, {"k": "loop"}, folder, 32, x=Tensor(B, 96), w=Tensor(96, N))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """An output stored in two pieces, one of them read through a remainder."""

    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.roll(1, 0), y], -1) * 2

    folder = tmp_path_factory.mktemp("joined")
    return written(fn, {}, folder, 16, x=Tensor(B, 40), y=Tensor(B, 24))


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Neighbours turned into one another: two stores, of every second element each."""

    def fn(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * c - b, a + b * c), -1).flatten(-2)

    tensors = {"x": Tensor(B, 64), "c": Tensor(B, 32)}
    return best(fn, tmp_path_factory.mktemp("paired"), (("B", 64),), **tensors)


@pytest.fixture(scope="module")
def squared(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Rows of an extent held whole: each power of two is a path, on which one tile may be all."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x @ w, x.float().amax(1)

    folder = tmp_path_factory.mktemp("squared")
    return written(fn, {"b1": "whole"}, folder, 32, x=Tensor(B, B), w=Tensor(B, B))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """A tile holds rows of several batches; in the output a row's two numbers stand apart."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.einsum("btd,dhe->bhte", x, w)

    tensors = {"x": Tensor(B, 4, 512), "w": Tensor(512, 8, 64)}
    return best(fn, tmp_path_factory.mktemp("packed"), (("B", 64),), **tensors)


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """A temporary's rows are those of two axes, stored and read by one number."""

    def fn(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w) @ v

    tensors = {"x": Tensor(B, N, 512), "w": Tensor(512, 1024), "v": Tensor(1024, 512)}
    size = (("B", 8), ("N", 5))
    kernel = best(fn, tmp_path_factory.mktemp("batched"), size, **tensors)
    assert " < N * B" in kernel.path.read_text()
    return kernel


SOUND = ["gated", "rows", "swizzled", "joined", "paired", "squared", "packed", "batched"]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_kernel_is_proved(name: str, request: pytest.FixtureRequest) -> None:
    with Proving() as proving:
        proving.ask(*request.getfixturevalue(name), {})
        proof = proving.result()
    for claims in (proof.addresses, proof.values):
        assert str(claims.verdict) == "proved", claims.verdict.witness
        assert {o.status for o in claims.obligations} == {"proved"}


def test_indices_from_memory_need_their_range(picked: Kernel) -> None:
    with Proving() as proving:
        proving.ask(*picked, {"i": (0, 50)})
        assert proving.result().addresses.verdict.kind == "proved"
        proving.ask(*picked, {"i": (0, 51)})
        refused = proving.result().addresses.verdict
        proving.ask(*picked, {})
        undeclared = proving.result().addresses.verdict
    assert refused.kind == "refused"
    assert "load 1 of table is within bounds along dimension 0" in refused.reason
    assert 50 in refused.witness.values()
    assert undeclared.kind == "proved"
    assert undeclared.notes == ("1 assumed: of integers whose range the spec does not declare",)


def test_a_loop_may_end_at_a_length_of_64_bits(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def fn(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        inside = torch.arange(96) < lengths[:, None]
        return x.float().masked_fill(~inside, 0.0).sum(-1)

    tensors = {"x": Tensor(B, 96), "lengths": Tensor(B, dtype=torch.int64, range=(0, 97))}
    roles = {"b": "program", "n96": "loop"}
    kernel = written(fn, roles, tmp_path_factory.mktemp("cut"), 16, **tensors)
    assert ".to(tl.int32)" in kernel.path.read_text()
    with Proving() as proving:
        proving.ask(*kernel, {"lengths": (0, 97)})
        assert proving.result().addresses.verdict.kind == "proved"


def test_a_proof_that_takes_too_long_is_a_timeout(gated: Kernel) -> None:
    with Proving() as proving:
        proving.ask(*gated, {})
        assert proving.result(seconds=0.0).addresses.verdict.kind == "timeout"
        proving.ask(*gated, {})  # a process of its own again
        assert proving.result().addresses.verdict.kind == "proved"


EDITS = {
    "gated": (
        ("in_b = b < B", "in_b = b <= B"),
        ("in_b = b < B", "in_b = b < B - 1"),
        ("pid = tl.program_id(0)", "pid = tl.program_id(0) + 1"),
        ("pid = tl.program_id(0)", "pid = tl.program_id(0) // 2"),
        ("blocks_n512, 8\n", "blocks_n512 - 1, 8\n"),
        ("pid // blocks_n512, pid % blocks_n512", "pid % blocks_n512, pid // blocks_n512"),
        ("tl.arange(0, BLOCK_N512)", "1 + tl.arange(0, BLOCK_N512)"),
        ("* stride_x_b", "* stride_x_n250"),
        ("* stride_w_n512", "* stride_w_n250"),
        ("* N512 + n512[None, :]", "* (N512 + 1) + n512[None, :]"),
        ("* N512 + n512[None, :]", "* N512 + 2 * n512[None, :]"),
        ("mask=in_b[:, None] & in_n250[None, :]", "mask=in_b[:, None]"),
        ('_blocks(512, config_1["BLOCK_N512"])', '_blocks(512, 2 * config_1["BLOCK_N512"])'),
        ('_blocks(512, config_1["BLOCK_N512"])', '(1 + _blocks(512, config_1["BLOCK_N512"]))'),
        ("x.new_empty((B, 512))", "x.new_empty((B, 511))"),
        ("and x.shape == (B, 250)", "and x.shape[0] == B"),
        ("and (x.is_contiguous() or _span(x) < 2**31)", ""),
        ("x.dtype == w.dtype == torch.float16", "w.dtype == torch.float16"),
    ),
    "rows": (
        ("tl.store(", "if pid > 0:\n                tl.store("),
        ("* N + n[None, :]", "* N + n[None, :] + 1"),
        ("            mask=in_b[:, None] & in_n[None, :],\n        )\n\n", "        )\n\n"),
        ("x / x_sum[:, None]", "tl.load(out_ptr + b)[:, None] + x"),
        ("out_ptr + b[:, None]", "x_ptr + b[:, None]"),
        ("1 <= N <= 65536", "1 <= N"),
        ("b = pid * BLOCK_B", "b = (pid // 4 * 4 + (pid % 4 - 4) % 4) * BLOCK_B"),  # C's remainder
        ("_span(x) < 2**31", "x.numel() < 2**31"),  # which no symbol has: not a False
        ("in_b = b < B", "in_b = tl.max_constancy(b < B, 16)"),
        ("n = n_start +", "n = tl.where(n_start < N, n_start * 70000, 0) // 70000 +"),
    ),
    "packed": (
        ("(h // 4)[:, None] * (M", "(h // 8)[:, None] * (M"),
        ("(h // 4)[:, None] * (M", "(h % 4)[:, None] * (M"),
        ("(h % 4)[:, None] * N", "(h % 8)[:, None] * N"),
        ("(h % 4)[:, None] * N", "(3 - h % 4)[:, None] * (2 * N)"),
        ("in_h = h < B * 4", "in_h = h < B * 2"),
        ("in_h = h < B * 4", "in_h = h < B * 8"),
        ("x.new_empty((B, 8, 4, 64))", "x.new_empty((B, 8, 2, 64))"),
    ),
    "paired": (
        ("out_ptr + b[:, None] * 64 + (n * 2)", "out_ptr + b[:, None] * 64 + (n * 2 + 1)"),
        ("out_ptr + b[:, None] * 64 + (n * 2 + 1)", "out_ptr + b[:, None] * 64 + (n * 2 + 3)"),
        ("out_ptr + b[:, None] * 64 + (n * 2 + 1)", "out_ptr + b[:, None] * 64 + (n * 4 + 1)"),
        ("out_ptr + b[:, None] * 64 + (n * 2 + 1)", "out_ptr + b[:, None] * 64 + (n + 32)"),
    ),
}
PROVE_ALL = """
import json, sys
from pathlib import Path
from superopt.verify.prover import addresses, load
for path in sys.argv[1:]:
    print(json.dumps(addresses(load(Path(path)), {}).verdict.to_json()))
"""


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_kernel_is_not_proved(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(name).path.read_text()
    files = []
    for n, (old, new) in enumerate(EDITS[name]):
        assert old in text, old
        files.append(tmp_path / f"kernel{n}.py")
        files[-1].write_text(text.replace(old, new, 1))
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROVE_ALL, *map(str, files)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    passed = [e for e, kind in zip(EDITS[name], kinds, strict=True) if kind == "proved"]
    assert not passed


# -- the parts ----------------------------------------------------------------------------------

X, Y = symbol("x"), symbol("y")


@pytest.mark.parametrize("by", [3, 1])
def test_division_is_that_of_c(by: int) -> None:
    encoder = Encoder()
    for kind in ("quotient", "remainder"):
        encoder.atom(Atom(kind, (X, poly(by))))
    for n in (-7, -3, -1, 0, 2, 3, 8):
        solver = z3.Solver()
        solver.from_string(encoder.query(encoder.truth(eq(X, n))))
        assert solver.check() == z3.sat
        model = {d.name(): solver.model()[d].as_long() for d in solver.model().decls()}
        whole = int(n / by)
        assert model[f"quotient(x, {by})"] == whole
        assert model[f"remainder(x, {by})"] == n - whole * by


def test_a_polynomial_is_divided_by_a_product() -> None:
    whole = X * Y * 6 + X * 4 + 5
    assert whole.split(X * 2) == (Y * 3 + 2, poly(5))
    assert whole.split(Y * 4) == (poly(0), whole)
    assert str(X * Y * 6 + 5) == "5 + 6*x*y"


def test_what_holds_of_products_only_is_not_proved_of_unknowns() -> None:
    prover = Prover()
    small = both(between(0, X, 10), between(0, Y, 10))
    assert prover.prove("", small, lt(X * Y, 100)).status == "proved"
    refuted = prover.prove("", small, lt(X * Y, 81))
    assert refuted.status == "refuted"
    assert refuted.counterexample == {"x": 9, "y": 9}
    assert prover.prove("", both(small, lt(X, 0)), FALSE).status == "proved"  # nothing is so


HOST = """
import torch
SIGNATURE = {"x": (torch.float16, ("B", 6)), "y": (torch.float16, ("B",))}

def _fits(x, y):
    B = x.shape[0]
    shapes = x.shape == (B, 6) and y.shape == (B,)
    return 1 <= B <= 100 and x.dtype == y.dtype == torch.float16 and shapes

def _launch(x, y, wrap=None):
    B = x.shape[0]
    size = 1 << (B - 1).bit_length()
    return x.new_empty((size if B > 60 else -(-B // 8),))
"""


def test_the_host_is_run_every_way_it_can_go() -> None:
    module = ModuleType("kernel")
    exec(HOST, module.__dict__)
    inputs, facts = accepted(module)
    assert [str(e) for t in inputs for e in t.shape] == ["B", "6", "B"]
    assert not any(t.small for t in inputs)  # it does not ask for their spans
    found = [str(p.returned[0].shape[0]) for p in paths(module, inputs, facts, Prover().decided)]
    assert sorted(set(found)) == ["128", "64", "quotient(7 + B, 8)"]
