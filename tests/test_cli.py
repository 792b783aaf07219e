"""The command: what it writes and prints, its exit codes, and what it says of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import meter  # noqa: F401  (sets TRITON_INTERPRET before triton is imported)
import pytest
from typer.testing import CliRunner

import superopt
import superopt.api  # it keeps `find_kernel`, not what a test puts in its place
from superopt import cli, pipeline
from superopt.cost_model.profile import load_profile
from superopt.errors import UnsupportedOperator
from superopt.mugraph.trace import trace
from superopt.search.driver import Options, search_program
from superopt.spec import load_specs

HEAD = """
import torch
from torch.export import Dim
import superopt
from superopt import Tensor

B = Dim("B", min=1, max=64)

"""
DOUBLE = """
@superopt.spec(x=Tensor(B, 32), tune_at=[{"B": 8}])
def double(x):
    return x * 2
"""
TWO_PRODUCTS = """
@superopt.spec(x=Tensor(64, 64), v=Tensor(64, 64), w=Tensor(64, 64), dtype=torch.float16)
def two_products(x, v, w):
    return torch.relu(x @ v) @ w
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> Any:
    def write(body: str, head: str = HEAD) -> Path:
        path = tmp_path / "spec.py"
        path.write_text(head + dedent(body))
        return path

    return write


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def line_of(path: Path, text: str) -> int:
    return 1 + next(n for n, line in enumerate(path.read_text().splitlines()) if text in line)


# -- what goes well -------------------------------------------------------------------------------


def test_search_writes_shows_and_verifies(spec_file: Any, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = call("search", spec_file(DOUBLE), "--out", out)
    assert done.exit_code == 0, done.output
    folder = out / "double"
    for expected in ("as written", "greedy fusion", "found", "verdict: ", "gate:    passed"):
        assert expected in done.output
    assert f"kernel:  {folder / 'kernel.py'}" in done.output
    assert sorted(p.name for p in folder.iterdir()) == ["kernel.py", "proof.json", "report.json"]

    report = json.loads((folder / "report.json").read_text())
    assert report["search"]["stop_reason"] == "exhausted"
    assert report["search"]["enumerated"] > 0
    assert report["search"]["seconds"] > 0
    keys = {"launches", "bytes", "distinct_bytes", "flops", "time_us", "verdict", "config"}
    for row in (report["best"], *report["baselines"].values()):
        assert keys <= set(row)
    assert set(report["baselines"]) == {"unfused", "greedy", "roofline"}
    assert report["best"]["distinct_bytes"] == 2 * 8 * 32 * 4

    shown = call("show", folder)
    assert shown.exit_code == 0, shown.output
    assert "graph double" in shown.output
    assert "each program:" in shown.output
    explained = call("show", "--cost", folder)
    assert explained.exit_code == 0, explained.output
    assert f"predicted {report['best']['time_us']:.1f} us, bound by " in explained.output
    assert "registers a thread" in explained.output

    verified = call("verify", folder)
    assert verified.exit_code == 0, verified.output
    assert "FAILED" not in verified.output


def test_verify_fails_a_kernel_that_was_changed(spec_file: Any, tmp_path: Path) -> None:
    assert call("search", spec_file(DOUBLE), "--out", tmp_path).exit_code == 0
    kernel = tmp_path / "double" / "kernel.py"
    text = kernel.read_text()
    assert text.count("* 2.0") == 1
    kernel.write_text(text.replace("* 2.0", "* 2.5"))
    done = call("verify", tmp_path / "double")
    assert done.exit_code == 1, done.output
    assert "FAILED gate" in done.output


def test_a_name_picks_one_spec(spec_file: Any, tmp_path: Path) -> None:
    helper = "\ndef two(x):\n    return x * 2\n"
    path = spec_file(helper + DOUBLE + DOUBLE.replace("double", "twice").replace("x * 2", "two(x)"))
    assert call("search", f"{path}:twice", "--out", tmp_path / "one").exit_code == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["twice"]
    done = call("search", path, "--out", tmp_path / "both")
    assert done.exit_code == 0, done.output
    assert "│ twice  │" in done.output  # the summary
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["double", "twice"]


def test_json_is_the_report(spec_file: Any, tmp_path: Path) -> None:
    done = call("search", spec_file(DOUBLE), "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed.pop("folder") == str(tmp_path / "double")
    stored = json.loads((tmp_path / "double" / "report.json").read_text())
    assert printed.keys() == stored.keys()
    assert printed["best"] == stored["best"]


@pytest.mark.slow
def test_workers_do_not_change_the_kernel(spec_file: Any, tmp_path: Path) -> None:
    path = spec_file(TWO_PRODUCTS)
    for jobs in (1, 2):
        done = call("search", path, "--out", tmp_path / str(jobs), "--jobs", jobs)
        assert done.exit_code == 0, done.output
    one, two = (tmp_path / jobs / "two_products" / "kernel.py" for jobs in "12")
    assert one.read_bytes() == two.read_bytes()


def test_the_package_starts_without_torch() -> None:
    """Worker processes import it too; the command answers --help without it."""
    program = "import superopt, superopt.cli, sys; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(superopt.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "False"


# -- bad input ------------------------------------------------------------------------------------

BAD = {  # name: (file's text after the head, what the error must say, text on the line it names)
    "no spec": ("x = 1", "no spec in it; decorate a function with @superopt.spec", ""),
    "two of a name": (DOUBLE + DOUBLE, "a second spec named 'double'; the first is at line", ""),
    "syntax error": ("def broken(:\n    pass", "syntax error", "def broken"),
    "unknown operator": (
        """
        @superopt.spec(x=Tensor(8, 8))
        def f(x):
            y = x + 1
            return torch.linalg.inv(y)
        """,
        "is not supported",
        "torch.linalg.inv",
    ),
    "unused tensor": (
        """
        @superopt.spec(x=Tensor(8), y=Tensor(8))
        def f(x, y):
            return x + 1
        """,
        "'y'",
        "",
    ),
    "specialised extent": (
        """
        @superopt.spec(x=Tensor(B, 8))
        def f(x):
            return x + torch.ones(17, 8)
        """,
        "Dim B is specialised to the constant 17",
        "",
    ),
    "data-dependent control flow": (
        """
        @superopt.spec(x=Tensor(8))
        def f(x):
            if x.sum() > 0:
                return x
            return -x
        """,
        "depends on a tensor's values",
        "if x.sum() > 0",
    ),
    "no Tensor for a parameter": (
        """
        @superopt.spec(x=Tensor(8))
        def f(x, y):
            return x + y
        """,
        "parameter 'y' has no Tensor",
        "",
    ),
    "an exception in the file": ("raise RuntimeError('oh')", "RuntimeError: oh", "raise Runtime"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_spec_files(case: str, spec_file: Any, tmp_path: Path) -> None:
    body, message, at = BAD[case]
    path = spec_file(body)
    done = call("search", path, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {path}")
    assert message in done.stderr
    assert "Traceback" not in done.output
    if at:
        assert done.stderr.startswith(f"error: {path}:{line_of(path, at)}")


def test_unknown_operators_are_named() -> None:
    error = UnsupportedOperator("linalg_inv", "spec.py:3", "write it out")
    assert str(error) == "spec.py:3: operator linalg_inv is not supported; write it out"


def test_no_such_file(tmp_path: Path) -> None:
    done = call("search", tmp_path / "none.py")
    assert done.exit_code == 2
    assert done.stderr == f"error: {tmp_path / 'none.py'}: no such file\n"


def test_no_such_name(spec_file: Any) -> None:
    path = spec_file(DOUBLE)
    done = call("search", f"{path}:triple")
    assert done.exit_code == 2
    assert done.stderr == f"error: {path}: no spec named 'triple'; it has double\n"


@pytest.mark.parametrize(
    "option, value, message",
    [
        (
            "--target",
            "h300",
            "unknown target 'h300'; known: a100, b200, h100, h200, l4, mi300x, or a .json file",
        ),
        ("--precision", "fp8", "unknown precision 'fp8'; known: ieee, tf32, tf32x3"),
        ("--jobs", "0", "jobs is 0; at least 1 is needed"),
        ("--top", "0", "top is 0; at least 1 is needed"),
        ("--time-limit", "0", "time limit is 0.0 s; a positive time is needed"),
    ],
)
def test_wrong_options(option: str, value: str, message: str, spec_file: Any) -> None:
    done = call("search", spec_file(DOUBLE), option, value)
    assert done.exit_code == 2
    assert done.stderr == f"error: {message}\n"


def test_an_unknown_option_is_refused(spec_file: Any) -> None:
    done = call("search", spec_file(DOUBLE), "--fast")
    assert done.exit_code == 2
    assert "--fast" in done.stderr


def test_an_unwritable_folder_is_told_before_searching(
    spec_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(pipeline, "find_kernel", None)  # calling it would fail otherwise
    done = call("search", spec_file(DOUBLE), "--out", file)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: cannot write {file}/double: ")
    assert "--out" in done.stderr


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_folder_that_no_search_wrote(command: str, tmp_path: Path) -> None:
    done = call(command, tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'report.json'}: ")


# -- stopped early --------------------------------------------------------------------------------


def test_ctrl_c_in_the_search_keeps_what_was_found(
    spec_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupting(name: str) -> Iterator[Any]:
        yield lambda now: now.best == "inf us" or signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli, "_progress", interrupting)
    done = call("search", spec_file(TWO_PRODUCTS), "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "(interrupted)" in done.output
    report = json.loads((tmp_path / "two_products" / "report.json").read_text())
    assert report["search"]["stop_reason"] == "interrupted"
    assert report["best"]["verdict"].startswith(("tested", "probable", "proved"))
    assert (tmp_path / "two_products" / "kernel.py").exists()


def test_ctrl_c_in_the_checks_claims_no_kernel(
    spec_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "gate", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    done = call("search", spec_file(DOUBLE), "--out", tmp_path)
    assert done.exit_code == 1, done.output
    assert "interrupted before a candidate had passed its checks" in done.stderr
    report = json.loads((tmp_path / "double" / "report.json").read_text())
    assert report["search"]["stop_reason"] == "interrupted"
    assert report["best"] is None
    assert report["candidates"]
    assert not (tmp_path / "double" / "kernel.py").exists()


def test_a_time_limit_is_reported(spec_file: Any, tmp_path: Path) -> None:
    large = TWO_PRODUCTS.replace("64, 64", "512, 512")  # whose cuts are worth a look
    done = call("search", spec_file(large), "--out", tmp_path, "--time-limit", "0.001")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "two_products" / "report.json").read_text())
    assert report["search"]["stop_reason"] == "time limit"


def test_a_killed_search_resumes_from_its_journal(tmp_path: Path) -> None:
    """What a search had finished is read back, and the journal goes once the search is done."""
    file = Path(__file__).parents[1] / "examples" / "lora.py"
    (spec,) = load_specs(file, None)
    program = trace(spec).program
    journal = tmp_path / "lora" / "journal.jsonl"
    journal.parent.mkdir()
    options = Options(load_profile("h200"), pipeline.tuned_sizes(program, spec), journal=journal)
    search_program(program, options)
    assert journal.exists()
    done = call("search", file, "--out", tmp_path, "--resume")
    assert done.exit_code == 0, done.output
    assert not journal.exists()
