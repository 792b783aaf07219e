"""Emitted kernels compiled for GPUs that are not there, and seen by torch.compile and export.

All of it runs in processes without TRITON_INTERPRET, which the rest of the tests set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emit_cases as cases
import pytest
import torch
from torch.export import Dim

from superopt.emit import emit
from superopt.emit.compile import compile_for
from superopt.errors import SuperoptError
from superopt.mugraph.helpers import HELPERS, with_needed
from superopt.mugraph.trace import trace
from superopt.spec import Tensor, spec

B = Dim("B", min=1, max=4096)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matmul with an epilogue and a row reduction, in half precision."""

    def gated(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tanh(x @ w), x.amax(1)

    traced = trace(spec(dtype=torch.float16, x=Tensor(B, 256), w=Tensor(256, 512))(gated))
    bound = {a.name for s in traced.program.stores for a in _bound(s)}
    g = cases.graph(traced.program, dict.fromkeys(bound, "loop"))
    path = tmp_path_factory.mktemp("kernel") / "kernel.py"
    path.write_text(
        emit(traced, [cases.choice(g, 16, B=16), cases.choice(g, 64, B=4096)], cases.NOTES)
    )
    return path


def _bound(s: object) -> list[object]:
    from superopt.mugraph.program import Branch, Store

    assert isinstance(s, Store)
    return [a for a in Branch((s,), ()).axes if a not in s.axes]


def python(code: str, *arguments: str) -> str:
    """Run a script without the interpreter's setting; its output."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPILE = """
import sys
from pathlib import Path
from superopt.emit.compile import compile_for
for target, size in (("sm_80", 16), ("sm_90", 16), ("sm_80", 4096), ("sm_90", 4096)):
    for stats in compile_for(Path(sys.argv[1]), {"B": size}, target):
        assert stats.ok, stats.error
        assert stats.spilled_bytes == 0 and 16 <= stats.registers <= 255, stats
        print(target, size, stats.kernel, *stats.dots)
"""


def test_compiles_for_two_generations_without_spills(kernel: Path) -> None:
    lines = python(COMPILE, str(kernel)).splitlines()
    assert "sm_90 4096 gated_kernel_1 wgmma" in lines  # 64 rows or more
    assert "sm_90 16 gated_kernel_1 mma.sync" in lines
    assert "sm_80 4096 gated_kernel_1 mma.sync" in lines
    assert "sm_90 16 gated_kernel_2" in lines
    assert len(lines) == 8


def test_refuses_to_compile_under_the_interpreter(kernel: Path) -> None:
    with pytest.raises(SuperoptError, match="TRITON_INTERPRET"):
        compile_for(kernel, {"B": 16}, "sm_90")


def test_what_the_compiler_refuses_is_an_answer(kernel: Path, tmp_path: Path) -> None:
    broken = tmp_path / "kernel.py"
    broken.write_text(kernel.read_text().replace("tl.store(", "tl.nothing("))
    code = """
import sys
from pathlib import Path
from superopt.emit.compile import compile_for
print([s.ok for s in compile_for(Path(sys.argv[1]), {"B": 16}, "sm_90")])
"""
    assert python(code, str(broken)).strip() == "[False, False]"


ORDER = """
import sys
from pathlib import Path
from superopt.emit.compile import Job, Launch, _compiled, load
kernel = load(Path(sys.argv[1])).sizes
options = {"B": 32, "A": 16, "num_warps": 4, "num_stages": 1}
print(_compiled(Job.of(Launch(kernel, 1, (), options), "sm_90")))
"""
SIZES = """
import triton
import triton.language as tl

@triton.jit
def sizes(A: tl.constexpr, B: tl.constexpr):
    tl.static_assert(A == 16)
    tl.static_assert(B == 32)
"""


def test_constants_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(SIZES)
    assert "error=''" in python(ORDER, str(tmp_path / "kernel.py"))


HELPER = """
@triton.jit
def run(x_ptr, i_ptr, out_ptr, keys_ptr):
    lanes = tl.arange(0, 128)
    x = tl.load(x_ptr + lanes)
    i = tl.load(i_ptr + lanes)
{lines}
"""
COMPILE_HELPERS = """
import sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from superopt.emit.compile import load
run = load(Path(sys.argv[1])).run
types = {"x_ptr": "*fp32", "i_ptr": "*i32", "out_ptr": "*fp32", "keys_ptr": "*i32"}
for arch in (80, 90):
    triton.compile(ASTSource(run, types, {}, {}), target=GPUTarget("cuda", arch, 32))
"""


def test_every_helper_compiles(tmp_path: Path) -> None:
    lines = []
    for number, name in enumerate(HELPERS):
        if name == "dot_bf16":
            continue  # its own test is a dot
        operand = "i" if name.endswith("_int") else "x"
        count = HELPERS[name].split(f"{name}(", 1)[1].split(")")[0].count(",") + 1
        call = f"{name}({operand}, 0)" if name.endswith("_along") else (
            f"{name}({', '.join([operand] * count)})")  # fmt: skip
        out = "keys_ptr" if operand == "i" else "out_ptr"
        at = "" if name.endswith("_along") else " + lanes"
        lines.append(f"    tl.store({out} + {number * 128}{at}, {call})")
    parts = ["import triton\nimport triton.language as tl\n"]
    parts += [HELPERS[h] for h in with_needed(set(HELPERS))]
    path = tmp_path / "helpers.py"
    path.write_text("\n\n".join([*parts, HELPER.format(lines="\n".join(lines))]))
    python(COMPILE_HELPERS, str(path))


SEEN = """
import sys
from pathlib import Path
import torch
from superopt.emit.compile import load
first, again = load(Path(sys.argv[1])), load(Path(sys.argv[1]))
x, w = torch.randn(5, 256).half(), torch.randn(256, 512).half()
assert torch.equal(again.gated(x, w)[0], again.reference(x, w)[0])  # cpu tensors, no interpreter

class Model(torch.nn.Module):
    def forward(self, x, w):
        return again.gated(x, w)[0] * 2

sizes = ({0: torch.export.Dim("B", min=2, max=4096)}, None)
graph = torch.export.export(Model(), (x, w), dynamic_shapes=sizes).graph
print([str(n.target) for n in graph.nodes if "superopt" in str(n.target)])
from torch._subclasses import FakeTensorMode
with FakeTensorMode() as mode:
    print(again.gated(mode.from_tensor(x), mode.from_tensor(w))[1].shape)
"""


def test_export_and_fake_tensors_see_one_operator(kernel: Path) -> None:
    operator, shape = python(SEEN, str(kernel)).splitlines()
    assert operator.count("superopt.gated_") == 1
    assert shape == "torch.Size([5])"
