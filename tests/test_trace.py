"""Tracing: the form of traced programs, modules, and what is refused with which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from superopt.emit.compile import load
from superopt.errors import SpecError, UnsupportedOperator
from superopt.mugraph.evaluate import run_program
from superopt.mugraph.expr import Expr, find, toposort
from superopt.mugraph.program import Source, loads
from superopt.mugraph.text import inline
from superopt.mugraph.trace import captured_tensors, trace, trace_callable
from superopt.mugraph.trace.source import own_source
from superopt.spec import Spec, Tensor, spec

B = Dim("B", min=1, max=64)
EPS = 1e-6


def value(made: Spec) -> Expr:
    return trace(made).program.stores[0].value


def line_of(text: str) -> int:
    """The line of this file that ends with a marker comment."""
    with open(__file__) as f:
        return next(n for n, line in enumerate(f, 1) if line.rstrip().endswith(f"# {text}"))


# -- the form of programs -----------------------------------------------------------------------


def test_a_product_in_half_precision() -> None:
    @spec(x=Tensor(B, 64), w=Tensor(64, 64), dtype=torch.float16)
    def linear(x, w):
        return x @ w

    traced = trace(linear)
    (s,) = traced.program.stores
    assert [a.name for a in s.axes] == ["b", "n64"]
    assert inline(s.value) == "f16(sum[n64_1:64; dot f16] f32(x[b, n64_1]) * f32(w[n64_1, n64]))"
    assert (traced.parameters, traced.returns, traced.captured) == (("x", "w"), "tensor", ())
    assert (s.tensor.name, s.tensor.dtype) == ("out", "f16")


def test_views_leave_nothing_behind() -> None:
    @spec(x=Tensor(B, 6, 4))
    def chain(x):
        y = x.transpose(1, 2).unsqueeze(0).expand(3, -1, -1, -1)
        return y.reshape(3 * x.shape[0], 24).view(3, x.shape[0], 4, 6)[2].transpose(1, 2) * 1.0

    assert inline(value(chain)) == "x[b, n6, n4]"


def test_slicing_a_cat_reads_one_side() -> None:
    @spec(x=Tensor(B, 6), y=Tensor(B, 4))
    def joined(x, y):
        z = torch.cat([x, y], 1)
        return z[:, 6:] * y + z[:, :4]

    body = value(joined)
    assert not list(find(body, "where"))
    assert all(n.args[-1].attr is True for n in loads(body))


def test_a_cat_is_guarded_inside_reductions() -> None:
    @spec(x=Tensor(B, 6, 5), y=Tensor(B, 4, 5))
    def joined(x, y):
        return torch.cat([x.sum(2), y.sum(2)], 1)

    assert all(n.args[-1].op in ("lt", "ge") for n in loads(value(joined)))


def test_half_precision_composites_round_once() -> None:
    @spec(x=Tensor(B, 64), dtype=torch.bfloat16)
    def composite(x):
        return F.layer_norm(F.softmax(x, -1), (64,))

    casts = [n for n in toposort(value(composite)) if n.op == "cast" and n.dtype == "bf16"]
    assert len(casts) == 2
    assert {n.dtype for n in find(value(composite), "exp", "reduce", "rsqrt")} == {"f32"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_the_result_has_torch_s_type(dtype: torch.dtype) -> None:
    @spec(x=Tensor(B, 4, dtype=dtype), y=Tensor(4))
    def mixed(x, y):
        return x * 2, x * 0.5, x + y, x.sum(), x.mean(1, dtype=torch.float32), x > 0.1, x / 3

    inputs = torch.ones(2, 4, dtype=dtype), torch.ones(4)
    names = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    names |= {"i32": "int32", "i64": "int64", "bool": "bool"}
    got = [f"torch.{names[t.dtype]}" for t in trace(mixed).program.outputs]
    assert got == [str(w.dtype) for w in mixed(*inputs)]


def test_bounds_of_an_index() -> None:
    @spec(i=Tensor(B, dtype=torch.int64, range=(0, B)), x=Tensor(B))
    def pick(i, x):
        return x[i]

    program = trace(pick).program
    low, high = program.inputs[0].bounds or ()
    assert (repr(low), repr(high)) == ("0", "B")
    assert not list(find(program.stores[0].value, "where"))  # no wrap-around of negative indices


@pytest.mark.parametrize(
    ("dtype", "size", "exact"),
    [(torch.float32, 4096, True), (torch.float16, 1024, True), (torch.float16, 4096, False)],
)
def test_positions_are_compared_as_such_where_a_float_holds_them(dtype, size, exact) -> None:
    def behind(x):
        i = torch.arange(size, dtype=dtype)
        return torch.where(i[None, :] - i[:, None] > 1, float("-inf"), x)

    (compared,) = find(value(spec(x=Tensor(size, size))(behind)), "gt")
    assert (compared.args[0].dtype == "index") is exact


def test_source_operators() -> None:
    @spec(x=Tensor(B, 64), w=Tensor(64, 32))
    def three(x, w):
        return F.softmax(x[1:].expand(2, -1, -1), -1) @ w

    rows = [
        (s.kind, [t.name for t in s.reads], [repr(e) for e in s.reads[0].shape], repr(s.flops))
        for s in trace(three).program.source_ops
    ]
    assert rows == [
        ("view", ["x"], ["B", "64"], "0"),
        ("view", ["x"], ["B - 1", "64"], "0"),
        ("reduction", ["x"], ["B - 1", "64"], "B * 640 - 640"),
        ("contraction", ["softmax", "w"], ["2", "B - 1", "64"], "B * 8192 - 8192"),
        ("view", ["matmul"], ["2", "B - 1", "32"], "0"),  # what is returned
    ]


def test_returns() -> None:
    def traced(fn: Callable[..., Any]) -> Any:
        return trace(spec(x=Tensor(B))(fn))

    assert traced(lambda x: [x + 1, x * 2]).returns == "list"
    assert traced(lambda x: (x + 1,)).returns == "tuple"
    assert [t.name for t in traced(lambda x: (x + 1, x * 2)).program.outputs] == ["out0", "out1"]


def test_an_output_does_not_take_an_input_s_name() -> None:
    @spec(out=Tensor(B))
    def double(out):
        return out * 2

    assert trace(double).program.outputs[0].name != "out"


def test_tracing_does_not_change_torch() -> None:
    before = torch.SymBool.__bool__
    with pytest.raises(SpecError):
        trace(spec(x=Tensor(B))(lambda x: x if x.shape[0] > 3 else -x))
    assert torch.SymBool.__bool__ is before


# -- modules and plain functions ----------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(6)
        self.out = torch.nn.Linear(6, 3)
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.out(self.norm(x))) * self.scale


def test_a_module_s_parameters_become_inputs() -> None:
    module, x = Block().double().eval(), torch.randn(5, 6, dtype=torch.float64)
    traced = trace_callable(module, (x,), {"x": {0: B}}, name="block")
    held = captured_tensors(module)
    assert set(traced.captured) == set(held) - {"x"} != set()
    assert traced.parameters == ("x",)
    assert traced.program.name == "block"
    x = torch.randn(9, 6, dtype=torch.float64)
    arrays = {n: held[n].detach().numpy() for n in traced.captured} | {"x": x.numpy()}
    got = run_program(traced.program, arrays, {"B": 9})["out"]
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-9)


def test_input_names_are_identifiers() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 3))
    traced = trace_callable(module, (torch.zeros(5, 6),))
    assert traced.captured == ("p_0_weight", "p_0_bias")
    assert set(captured_tensors(module)) == set(traced.captured)


def test_training_mode_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="dropout draws random numbers; call .eval()"):
        trace_callable(Block(), (torch.zeros(5, 6),))


def test_example_arguments_of_any_strides() -> None:
    def double(x, y):
        return x * 2 + y

    x = torch.randn(6, 8)[1:, ::2].t()
    traced = trace_callable(double, (x, x), ({1: B}, (None, B)))
    assert [repr(e) for e in traced.program.inputs[0].shape] == ["4", "B"]
    with pytest.raises(SpecError, match="parameter 'y' is a float, not a tensor"):
        trace_callable(double, (x, 2.0))
    with pytest.raises(SpecError, match="has no name; use torch.export.Dim"):
        trace_callable(double, (x, x), {"x": {0: Dim.AUTO}})


# -- what is refused ----------------------------------------------------------------------------


def branch_on_data(x):
    if x.sum() > 0:  # on data
        return x * 2
    return x * 3


def branch_on_size(x):
    if x.shape[0] % 2 == 0:  # on size
        return x * 2
    return x * 3


def write_into(x):
    x.add_(1)
    return x * 2


def bad_shape(x):
    y = x * 2
    return y @ torch.ones(5, 2)  # bad shape


def unsupported(x):
    y = x + 1
    return y.cumsum(0)  # unsupported


CONSTANT = torch.arange(9.0)

REFUSED = {
    "data": (branch_on_data, "{on data}: .*depends on a tensor's values"),
    "size": (branch_on_size, "{on size}: .*branches on a size that varies"),
    "specialised": (lambda x: x + torch.ones(7, 4), "Dim B is specialised to the constant 7"),
    "slice": (lambda x: x[:5] * 1, "part of the sizes of B"),
    "mutation": (write_into, "writes into parameter 'x'; clone it first"),
    "alias": (lambda x: (x + 1, x.t()), "output 1 is input 'x' or a view of it"),
    "same": (lambda x: x, "output 0 is input 'x'"),
    "none": (lambda x: (x * 2, None), "output 1 is None; return tensors only"),
    "int": (lambda x: (x * 2, 3), "output 1 is 3; return tensors only"),
    "nested": (lambda x: (x * 2, (x + 1, x - 1)), "returns nested collections"),
    "dict": (lambda x: {"a": x * 2}, "returns a dict; return a tensor"),
    "nothing": (lambda x: (), "returns nothing|never used"),
    "shape": (bad_shape, "{bad shape}: .*a and b must have same reduction dim"),
    "divides": (
        lambda x: x.view(-1, 7) * 2,
        "holds only for sizes with Eq\\(Mod\\(4\\*B, 7\\), 0\\)",
    ),
    "nonzero": (lambda x: torch.nonzero(x), "nonzero"),
    "mask": (lambda x: x[x > 0], "a mask as index|depends on"),
    "random": (lambda x: F.dropout(x), "dropout draws random numbers"),
    "large constant": (lambda x: x.sum() + CONSTANT, "constant tensor of \\(9,\\) is captured"),
    "complex": (lambda x: torch.complex(x, x).real, "complex"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    fn, message = REFUSED[case]
    if message.startswith("{"):
        marker = message[1 : message.index("}")]
        message = message.replace(f"{{{marker}}}", f"test_trace.py:{line_of(marker)}")
    with pytest.raises(SpecError, match=message):
        trace(spec(x=Tensor(B, 4))(fn))


def test_equal_extents_need_one_dim() -> None:
    with pytest.raises(SpecError, match="sizes of B, N only .*; use N = B"):
        trace(spec(x=Tensor(B), y=Tensor(Dim("N", max=64)))(lambda x, y: x + y))
    trace(spec(x=Tensor(B), y=Tensor(B))(lambda x, y: x + y))


def test_a_tensor_never_used() -> None:
    with pytest.raises(SpecError, match="tensor 'y' is never used"):
        trace(spec(x=Tensor(B), y=Tensor(B))(lambda x, y: x + 1))
    trace(spec(x=Tensor(B), y=Tensor(B))(lambda x, y: x + 0 * y))  # the nearest that passes


def test_an_operator_outside_the_table() -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        trace(spec(x=Tensor(B, 4))(unsupported))
    message = str(caught.value)
    assert f"test_trace.py:{line_of('unsupported')}: operator aten.cumsum.default" in message
    assert re.search("the nearest that are: .*sum", message)


def test_a_constant_at_the_limit() -> None:
    held = torch.arange(8.0)
    trace(spec(x=Tensor(B, 8))(lambda x: x + held))


# -- the function's text ------------------------------------------------------------------------


def scale_of(x):
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


@spec(x=Tensor(B, 4))
def normalized(x):
    return F.relu(x) * sum(scale_of(v) for v in (x,))


def outside(source: Source) -> dict[str, Any]:
    """The names that a source defines, run on its own."""
    scope: dict[str, Any] = {}
    exec("\n".join([*(text for _, text in source.context), source.text]), scope)
    return scope


def test_the_text_stands_alone() -> None:
    source = own_source(normalized.fn)
    assert [name for name, _ in source.context] == ["F", "EPS", "torch", "scale_of"]
    x = torch.randn(3, 4)
    assert torch.equal(outside(source)["normalized"](x), normalized(x))
    assert source.text.startswith("def normalized(x):")


def test_a_helper_of_another_module_brings_its_own_constants(tmp_path: Path) -> None:
    other = tmp_path / "other_module.py"
    other.write_text("EPS = 3.0\n\n\ndef shifted(x):\n    return x + EPS\n")
    module = load(other)

    def outer(x: unknown):  # noqa: F821
        return module_shifted(x)

    def inner(x: Tensor, eps: float = float("inf")):
        return shifted(x)

    def both(x):
        return shifted(x) + EPS

    shifted = module_shifted = module.shifted
    source = own_source(inner)
    assert "x, eps" in source.text  # no superopt.Tensor is known where the text will stand
    assert outside(source)["inner"](torch.zeros(1)) == 3
    assert own_source(outer) == Source()  # its text says `shifted`
    assert own_source(both) == Source()  # two values of EPS


def test_text_cannot_hold_a_tensor() -> None:
    def shifted(x):
        return x + CONSTANT

    assert own_source(shifted) == Source() == own_source(lambda x: x)
