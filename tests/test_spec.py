"""Spec files: what is taken, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from superopt.errors import SpecError
from superopt.spec import Spec, Tensor, load_specs

HEAD = """\
import torch
from torch.export import Dim
from superopt.spec import Tensor, spec
B = Dim("B", min=1, max=64)
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "specs.py"
    path.write_text(HEAD + text)
    return path


TWO = """
@spec(x=Tensor(B, 4), w=Tensor(4, 4, dtype=torch.float32), dtype=torch.float16, tune_at=[{"B": 64}])
def first(x, w):
    "What it does."
    return x @ w.to(x.dtype)

@spec(i=Tensor(B, dtype=torch.int64, range=(0, B)))
def second(i):
    return i + 1
"""


def test_a_file_of_specs(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    first, second = load_specs(path)
    assert isinstance(first, Spec)
    assert (first.name, first.file, first.line, first.tune_at) == (
        "first",
        str(path),
        6,
        ({"B": 64},),
    )
    assert [t.dtype for t in first.tensors.values()] == [torch.float16, torch.float32]
    assert first.__doc__ == "What it does."
    assert first.__wrapped__ is first.fn
    assert second.tensors["i"].range[1].__name__ == "B"
    x = torch.ones(2, 4)
    assert torch.equal(first(x, w=x.new_ones(4, 4)), torch.full((2, 4), 4.0))
    assert [s.name for s in load_specs(path, "second")] == ["second"]


def test_tensors_come_in_the_function_s_order(tmp_path: Path) -> None:
    (made,) = load_specs(
        write(tmp_path, "@spec(b=Tensor(1), a=Tensor(2))\ndef f(a, b): return a + b")
    )
    assert list(made.tensors) == ["a", "b"]


PLAIN = "\ndef f(x): return x"

REFUSED = {
    "no spec": ("x = 1", "specs.py: no spec in it; decorate a function"),
    "syntax": ("def f(:\n  pass", "specs.py:5: syntax error: .*\n    def f\\(:\n    +\\^"),
    "import": ("\nimport nowhere_to_be_found", "specs.py:6: ModuleNotFoundError: No module named"),
    "raises": ("\n\n1 / 0", "specs.py:7: ZeroDivisionError"),
    "twice": (TWO + TWO, "specs.py:15: a second spec named 'first'; the first is at line 6"),
    "missing": ("@spec(x=Tensor(4))\ndef f(x, y): return x", "5: f: parameter 'y' has no Tensor"),
    "extra": ("@spec(x=Tensor(4), z=Tensor(4))" + PLAIN, "'z', which is not a parameter"),
    "varargs": ("@spec(x=Tensor(4))\ndef f(x, *r): return x", "parameter \\*r is not supported"),
    "named dtype": ("@spec(dtype=Tensor(4))\ndef f(dtype): return dtype", "rename a parameter"),
    "named tune_at": ("@spec(x=Tensor(4))\ndef f(x, tune_at): return x", "'tune_at' clashes"),
    "not a Tensor": ("@spec(x=4)" + PLAIN, "x=4: a superopt.Tensor is wanted"),
    "extent": ("@spec(x=Tensor(-4))" + PLAIN, "extent -4 is neither an int >= 0"),
    "hint": ("@spec(x=Tensor(Dim.AUTO))" + PLAIN, "extent .* is neither an int >= 0"),
    "dtype": ("@spec(x=Tensor(4, dtype='f16'))" + PLAIN, "'f16' is not a torch.dtype"),
    "range": ("@spec(x=Tensor(4, range=(0, B)))" + PLAIN, "Dim 'B', which no tensor has"),
    "outside": ("@spec(x=Tensor(B), tune_at=[{'B': 65}])" + PLAIN, "B=65, outside .*64"),
    "unknown dim": ("@spec(x=Tensor(B), tune_at=[{'N': 6}])" + PLAIN, "'N', which is no"),
    "no size": ("@spec(x=Tensor(B), tune_at=[{}])" + PLAIN, "has no size for 'B'"),
    "two Dims": ("@spec(x=Tensor(B, Dim('B')))" + PLAIN, "two Dims named 'B'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused(tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(SpecError, match=message) as caught:
        load_specs(write(tmp_path, text))
    assert caught.value.exit_code == 2


def test_the_largest_size_passes(tmp_path: Path) -> None:
    text = "@spec(x=Tensor(B), tune_at=[{'B': 64}, {'B': 1}])" + PLAIN
    assert load_specs(write(tmp_path, text))[0].tune_at == ({"B": 64}, {"B": 1})


def test_no_such_file_and_no_such_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="missing.py: no such file"):
        load_specs(tmp_path / "missing.py")
    with pytest.raises(SpecError, match="no spec named 'third'; it has first, second"):
        load_specs(write(tmp_path, TWO), "third")


def test_a_spec_imported_from_another_file_is_not_this_file_s(tmp_path: Path) -> None:
    (tmp_path / "other_specs.py").write_text(HEAD + TWO)
    path = write(
        tmp_path, "from other_specs import first\n@spec(x=Tensor(4))\ndef f(x): return x + 1"
    )
    assert [s.name for s in load_specs(path)] == ["f"]


def test_tensor_defaults() -> None:
    assert (Tensor(2, 3).extents, Tensor(2, 3).dtype, Tensor().range) == ((2, 3), None, None)
