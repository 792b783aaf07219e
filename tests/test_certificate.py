"""Certificates: proof.json replayed by two solvers, and tampered with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import superopt
from superopt.errors import UsageError
from superopt.verify import replay


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Searched for symbolic rows, so that its blocks are swizzled."""
    out = tmp_path_factory.mktemp("out")
    rows = torch.export.Dim("B", min=1, max=4096)
    half = (torch.ones(300, 96, dtype=torch.float16), torch.ones(96, 256, dtype=torch.float16))
    superopt.search(product, half, dynamic_shapes={"x": {0: rows}, "w": None}, out=out)
    return out / "product"


@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_two_solvers_agree(folder: Path, solver: str) -> None:
    kernel, *claims = replay(folder, solver)
    assert kernel.passed
    assert [c.check for c in claims] == ["addresses", "values"]
    for c in claims:
        assert c.passed, c.text
        assert f"{solver} finds all" in c.text


def edited(folder: Path, to: Path) -> tuple[Path, dict]:
    shutil.copytree(folder, to / "copy")
    return to / "copy", json.loads((folder / "proof.json").read_text())


def test_another_kernel_is_not_the_one(folder: Path, tmp_path: Path) -> None:
    copy, _ = edited(folder, tmp_path)
    kernel = copy / "kernel.py"
    kernel.write_text(kernel.read_text() + "\n")
    assert [r.passed for r in replay(copy)] == [False, True, True]


@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_a_claim_that_does_not_hold_is_named(folder: Path, tmp_path: Path, solver: str) -> None:
    copy, proof = edited(folder, tmp_path)
    one = next(
        o for o in proof["addresses"]["obligations"] if "is stored" in o["text"] and o["smt"]
    )
    one["smt"] = one["smt"].replace("(check-sat)", "").split("(assert")[0] + "(check-sat)"
    (copy / "proof.json").write_text(json.dumps(proof))
    _, addresses, _ = replay(copy, solver)
    assert addresses.text == f"{solver} says sat, not unsat: {one['text']}"


def test_what_is_no_certificate_is_an_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown solver 'yices'; known: z3, cvc5"):
        replay(folder, "yices")
    with pytest.raises(UsageError, match=r"proof\.json: No such file"):
        replay(tmp_path)
