"""Emitted kernels, run in the interpreter under the meter, against the reference evaluator."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import emit_cases as cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from meter import meter
from torch.export import Dim

from superopt.emit import Notes, emit
from superopt.mugraph.dtypes import DTYPES, accumulator
from superopt.mugraph.expr import (
    Axis,
    Expr,
    Symbol,
    Tensor,
    axis,
    cast,
    const,
    index,
    load,
    op,
    reduce,
    sym,
)
from superopt.mugraph.program import (
    Branch,
    Choice,
    Config,
    Kernel,
    KernelGraph,
    Program,
    Source,
    Traced,
    store,
)
from superopt.mugraph.trace import trace
from superopt.spec import Tensor as Shape
from superopt.spec import spec

B = sym(Symbol("B", 0, 4096))
N = sym(Symbol("N", 0, 4096))
DB = Dim("B", min=0, max=4096)
DN = Dim("N", min=1, max=4096)
HALF = torch.float16


def run(
    module: Any, program: Program, sizes: dict[str, int], seed: int = 0, scale: float = 1.0
) -> Any:
    """Run under the meter on strided inputs and compare; returns the meter."""
    inputs = cases.draw(program, sizes, seed, scale)
    want = cases.expected(program, inputs, sizes)
    with meter() as m:
        got = getattr(module, program.name)(*inputs.values())
    got = got if isinstance(got, tuple | list) else [got]
    m.assert_all_written(*got)
    assert m.extra_launches == 0, m.host_ops
    for x, w, t in zip(got, want, program.outputs, strict=True):
        check(x, np.asarray(w), t.dtype)
    return m


def check(got: torch.Tensor, want: np.ndarray[Any, Any], dtype: str) -> None:
    """Equal to within a few roundings of the output's type at the tensor's largest value."""
    assert got.dtype == getattr(torch, DTYPES[dtype].torch)
    assert got.shape == want.shape
    x, w = got.double().numpy(), want.astype(np.float64)
    finite = np.isfinite(w)
    np.testing.assert_array_equal(np.isnan(x), np.isnan(w))
    np.testing.assert_array_equal(x[~finite & ~np.isnan(w)], w[~finite & ~np.isnan(w)])
    epsilon = max(DTYPES[dtype].epsilon, 2.0**-23 if dtype != "f64" else 0.0)
    budget = 16 * epsilon * max(1.0, np.abs(w[finite]).max(initial=0))
    error = np.abs(np.where(finite, x, 0) - np.where(finite, w, 0)).max(initial=0)
    assert error <= (budget if DTYPES[dtype].kind == "float" else 0)


# -- operators, shapes and roles ----------------------------------------------------------------

PROGRAMS: list[tuple[Callable[..., Any], Any, dict[str, Shape]]] = []


def program(dtype: Any = torch.float32, **tensors: Shape) -> Callable[[Any], Any]:
    def add(fn: Any) -> Any:
        PROGRAMS.append((fn, dtype, tensors))
        return fn

    return add


@program(x=Shape(DB, 37), y=Shape(37))
def pointwise(x, y):  # type: ignore[no-untyped-def]
    return torch.exp(x) + y * x, torch.relu(x), x > y


@program(HALF, x=Shape(DB, 37), g=Shape(37), b=Shape(37))
def norms(x, g, b):  # type: ignore[no-untyped-def]
    return F.layer_norm(x, (37,), g, b), torch.softmax(x, -1), torch.rms_norm(x, (37,))


@program(HALF, x=Shape(DB, 40), w=Shape(40, 24), v=Shape(24, 17))
def chained(x, w, v):  # type: ignore[no-untyped-def]
    return torch.relu(x @ w) @ v


@program(torch.bfloat16, x=Shape(40, DB), w=Shape(24, 40))
def transposed(x, w):  # type: ignore[no-untyped-def]
    return (w @ x).t()


@program(x=Shape(3, DB, 40), w=Shape(3, 24, 40), b=Shape(24))
def batched(x, w, b):  # type: ignore[no-untyped-def]
    return F.gelu(x @ w.transpose(1, 2) + b)


@program(x=Shape(DB, 6, 4))
def views(x):  # type: ignore[no-untyped-def]
    return (
        x.flatten(1).flip(-1),
        x.transpose(1, 2).contiguous(),
        torch.roll(x, 1, 2),
        x.repeat_interleave(2, 1),
        torch.cat([x, x * 2], 2),
        F.pad(x, (1, 2)),
    )


@program(x=Shape(DB, DN))
def reductions(x):  # type: ignore[no-untyped-def]
    return x.sum(0), x.amax(1), x.amin(0), x.prod(1), x.argmax(1), (x > 0).any(1), x.var(1)


@program(
    x=Shape(DB, DN, dtype=torch.int64), i=Shape(11, dtype=torch.int64, range=(0, 7)), t=Shape(7, 9)
)
def integers(x, i, t):  # type: ignore[no-untyped-def]
    return x * 2 + 1, x // 3, x % 3, x.sum(1), F.embedding(i, t), x.float(), t[i].to(torch.int32)


@program(x=Shape(DB, 37, dtype=torch.bool), y=Shape(DB, 37, dtype=torch.uint8))
def small_types(x, y):  # type: ignore[no-untyped-def]
    return ~x, x.float() * 2, y + 1, x.sum(1), torch.where(x, 1.0, 0.0), y.amax(1)


@program(torch.float64, x=Shape(DB, 37))
def double(x):  # type: ignore[no-untyped-def]
    return torch.softmax(x, -1), x.amax(1)


@program(x=Shape(DB, 8))
def constants(x):  # type: ignore[no-untyped-def]
    return torch.arange(5), torch.full((3,), 2.5), x * 0 + torch.arange(8)


ROLES = {  # of (the last stored axis, the others, bound ones)
    "whole": ("whole", "grid", "whole"),
    "loop": ("grid", "grid", "loop"),
    "program": ("whole", "program", "loop"),
    "looped stores": ("loop", "grid", "loop"),
}


def roles_of(p: Program, last: str, others: str, bound: str) -> dict[str, str]:
    roles: dict[str, str] = {}
    for s in p.stores:
        names = [a.name for a in s.axes]
        roles |= {a.name: bound for a in Branch((s,), ()).axes if a.name not in names}
        roles |= dict.fromkeys(names, others) | ({names[-1]: last} if names else {})
    return roles


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("case", PROGRAMS, ids=lambda c: c[0].__name__)
def test_programs_in_every_role(case: Any, roles: str) -> None:
    fn, dtype, tensors = case
    traced = trace(spec(dtype=dtype, **tensors)(fn))
    p = traced.program
    try:
        g = cases.graph(p, roles_of(p, *ROLES[roles]))
    except AssertionError as rule:
        pytest.skip(f"not legal: {rule}")
    _, module = cases.emitted(traced, cases.choice(g))
    symbols = {s.name for s in p.symbols}
    for sizes in ({"B": 5, "N": 19}, {"B": 33, "N": 1}, {"B": 0, "N": 3}):
        run(module, p, {k: v for k, v in sizes.items() if k in symbols})


# -- masks and NaN ------------------------------------------------------------------------------

b, n, k = Axis("b", B), Axis("n", N), Axis("k", index(37))


def rows(dtype: str = "f32") -> tuple[Tensor, Expr]:
    x = Tensor("x", (B, index(37)), dtype)
    return x, load(x, (axis(b), axis(k)))


def of_rows(value: Expr, x: Tensor, *more: Tensor, name: str = "f") -> Program:
    out = Tensor("out", (B,), value.dtype)
    return Program(name, (x, *more), (store(out, (b,), value),), (out,))


@pytest.mark.parametrize("role", ["whole", "loop"])
@pytest.mark.parametrize("monoid", ["sum", "prod", "max", "min"])
def test_masked_lanes_are_neutral(role: str, monoid: str) -> None:
    x, v = rows()
    shifted = op("sub", op("abs", v), const(3.0, "f32"))  # -3 in lanes beyond the end
    p = of_rows(reduce(monoid, (k,), shifted), x)
    _, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {"k": role})))
    run(module, p, {"B": 5}, scale=0.1)


@pytest.mark.parametrize("role", ["whole", "loop"])
def test_a_nan_or_infinity_beyond_the_end_does_not_leak(role: str) -> None:
    x, v = rows()
    p = of_rows(reduce("sum", (k,), op("div", const(1.0, "f32"), v)), x)  # 1/0 beyond the end
    _, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {"k": role})))
    run(module, p, {"B": 5})


@pytest.mark.parametrize("role", ["whole", "loop"])
@pytest.mark.parametrize("monoid", ["max", "min"])
def test_extremes_propagate_nan(role: str, monoid: str) -> None:
    x, v = rows()
    p = of_rows(reduce(monoid, (k,), v), x)
    _, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {"k": role})))
    data = torch.randn(4, 37)
    data[1, 20], data[2, 3] = float("nan"), -float("nan")
    data[3] = float("inf")
    got = module.f(data)
    want = data.amax(1) if monoid == "max" else data.amin(1)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "less, factor, spelt",
    [
        ("max", 1.0, "tl.exp2((x - x_max[:, None]) * 1.4426950408889634)"),
        ("max", 0.5, "tl.exp2((x - x_max[:, None]) * 0.7213475204444817)"),
        ("max", -0.5, "tl.exp((x - x_max[:, None]) * -0.5)"),  # the least is 1, and others large
        ("min", 1.0, "tl.exp(x - x_min[:, None])"),
        ("sum", 1.0, "tl.exp(x - x_sum[:, None])"),
    ],
)
def test_a_power_of_two_for_the_exp_of_a_value_less_its_maximum(
    less: str, factor: float, spelt: str
) -> None:
    x, v = rows()
    difference = op("sub", v, reduce(less, (k,), v))
    scaled = difference if factor == 1.0 else op("mul", difference, const(factor, "f32"))
    p = of_rows(reduce("sum", (k,), op("exp", scaled)), x)
    text, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {"k": "whole"})))
    assert spelt in text
    run(module, p, {"B": 5}, scale=0.1)


def test_no_masks_where_tiles_divide() -> None:
    x = Tensor("x", (index(32), index(64)), "f32")
    i, j = Axis("i", index(32)), Axis("j", index(64))
    out = Tensor("out", (index(32), index(64)), "f32")
    value = op("exp", load(x, (axis(i), axis(j))))
    p = Program("f", (x,), (store(out, (i, j), value),), (out,))
    text, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {})))
    assert "mask" not in text
    assert "mask" in emit(
        cases.traced(p), [cases.choice(cases.graph(p, {}), tile=128)], cases.NOTES
    )
    run(module, p, {})


# -- dots ---------------------------------------------------------------------------------------


def product(
    dtype: str, operand: str | None = None, square: bool = False, rank: int = 40
) -> Program:
    x, w = Tensor("x", (B, index(rank)), dtype), Tensor("w", (index(rank), N), dtype)
    r = Axis("r", index(rank))
    a = load(x, (axis(b), axis(r)))
    a = op("exp", a) if square else a
    out = Tensor("out", (B, N), dtype)
    value = reduce(
        "sum", (r,), op("mul", a, load(w, (axis(r), axis(n)))), operand, accumulator(dtype)
    )
    return Program("f", (x, w), (store(out, (b, n), cast(value, dtype)),), (out,))


@pytest.mark.parametrize(
    "dtype, operand, square, spelt",
    [
        ("f16", None, False, "tl.dot(x, w"),
        ("bf16", None, False, "dot_bf16(x, w"),
        ("f32", None, False, 'input_precision="ieee"'),
        ("f16", None, True, 'input_precision="ieee"'),
        ("f16", "f16", True, ".to(tl.float16), w"),
        ("f64", None, False, "tl.sum("),
    ],
)
def test_dot_operands(dtype: str, operand: str | None, square: bool, spelt: str) -> None:
    p = product(dtype, operand, square)
    text, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {"r": "loop"})))
    assert spelt in text
    run(module, p, {"B": 17, "N": 5}, scale=0.2)


def test_a_dot_with_few_rows_is_padded_and_precision_is_an_option() -> None:
    p = product("f32", rank=3)
    g = cases.graph(p, {"b": "whole"})
    text, module = cases.emitted(
        cases.traced(p), cases.choice(g), notes=Notes("h200", "none", precision="tf32x3")
    )
    assert 'input_precision="tf32x3"' in text
    for rows_ in (0, 1, 17):
        run(module, p, {"B": rows_, "N": 5})


# -- several branches, kernels, µGraphs ---------------------------------------------------------


def projections() -> tuple[Program, KernelGraph]:
    r = Axis("r", index(40))
    x = Tensor("x", (B, index(40)), "f16")
    a = load(x, (axis(b), axis(r)))
    stores, inputs, branches = [], [x], []
    for name, width in (("q", 48), ("k", 24), ("v", 24)):
        w, j = Tensor(f"w{name}", (index(40), index(width)), "f16"), Axis(f"n{name}", index(width))
        out = Tensor(name, (B, index(width)), "f16")
        value = reduce("sum", (r,), op("mul", a, load(w, (axis(r), axis(j)))), "f16", "f32")
        stores.append(store(out, (b, j), cast(value, "f16")))
        inputs.append(w)
        roles = ((b.name, "grid"), (j.name, "grid"), ("r", "loop"))
        branches.append(Branch((stores[-1],), tuple(sorted(roles))))
    outputs = tuple(s.tensor for s in stores)
    p = Program("qkv", tuple(inputs), tuple(stores), outputs)
    return p, KernelGraph("qkv", p.inputs, (Kernel("k", tuple(branches)),), outputs)


def test_branches_share_a_launch_and_equal_ones_a_function() -> None:
    p, g = projections()
    text, module = cases.emitted(cases.traced(p), cases.choice(g))
    assert len(re.findall(r"^def qkv_part\w*\(", text, re.M)) == 2  # k and v have equal masks
    m = run(module, p, {"B": 19})
    assert len(m.launches) == 1


def two_kernels() -> tuple[Program, KernelGraph]:
    x, v = rows()
    peak = Tensor("peak", (B,), "f32")
    out = Tensor("out", (B, index(37)), "f32")
    first = store(peak, (b,), reduce("max", (k,), v))
    second = store(out, (b, k), op("sub", v, load(peak, (axis(b),))))
    one = Program("f", (x,), (first, second), (out,))
    return one, cases.graph(one, {"k": "whole"})


def test_temporaries_and_variants_by_size() -> None:
    p, two = two_kernels()
    _, v = rows()
    fused = store(p.outputs[0], (b, k), op("sub", v, reduce("max", (k,), v)))
    one = KernelGraph(
        "f",
        p.inputs,
        (Kernel("k", (Branch((fused,), (("b", "grid"), ("k", "whole"))),)),),
        p.outputs,
    )
    text, module = cases.emitted(
        cases.traced(p), cases.choice(one, tile=2, B=8), cases.choice(two, B=64)
    )
    for size, launches in ((0, 0), (8, 1), (9, 2), (65, 2)):
        assert len(run(module, p, {"B": size}).launches) == launches
    assert text.count("@triton.jit\ndef f_kernel") == 3


def test_tables_of_two_symbols_choose_the_first_that_fits() -> None:
    p = product("f32")
    g = cases.graph(p, {"r": "loop"})
    _, module = cases.emitted(
        cases.traced(p),
        cases.choice(g, 16, B=16, N=16),
        cases.choice(g, 32, B=16, N=64),
        cases.choice(g, 64, B=64, N=64),
    )
    for sizes, programs in (((17, 16), 1), ((16, 17), 1), ((16, 16), 1), ((70, 70), 4)):
        m = run(module, p, dict(zip("BN", sizes, strict=True)))
        assert m.launches[0].grid[0] == programs


def test_equal_kernels_are_written_once() -> None:
    p = product("f32")
    g = cases.graph(p, {"r": "loop"})
    text = emit(cases.traced(p), [cases.choice(g, 16, B=8), cases.choice(g, 32, B=64)], cases.NOTES)
    assert text.count("@triton.jit\n") == 1


def test_offsets_of_large_tensors_have_64_bits() -> None:
    def of(rows_: int) -> Program:
        x = Tensor("x", (index(rows_), index(2048)), "f32")
        i, j = Axis("i", index(rows_)), Axis("j", index(2048))
        out = Tensor("out", x.shape, "f32")
        value = op("exp", load(x, (axis(i), axis(j))))
        return Program("f", (x,), (store(out, (i, j), value),), (out,))

    last, first = of(2**20 - 1), of(2**20)
    for p, wide in ((last, False), (first, True)):
        text = emit(cases.traced(p), [cases.choice(cases.graph(p, {}))], cases.NOTES)
        assert ("tl.int64" in text) == wide
        assert ("x.is_contiguous()" in text) != wide


# -- the host side ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matmul() -> Any:
    x = Tensor("x", (sym(Symbol("B", 1, 64)), index(40)), "f16")
    w = Tensor("w", (index(40), index(24)), "f16")
    rows_, r, j = Axis("b", x.shape[0]), Axis("r", index(40)), Axis("n", index(24))
    out = Tensor("out", (x.shape[0], index(24)), "f16")
    body = op("mul", load(x, (axis(rows_), axis(r))), load(w, (axis(r), axis(j))))
    value = cast(reduce("sum", (r,), body, "f16", "f32"), "f16")
    p = Program("matmul", (x, w), (store(out, (rows_, j), value),), (out,))
    source = "def matmul(x, w):\n    return (x @ w) * ONE\n"
    t = replace(cases.traced(p), source=Source(source, (("ONE", "ONE = 1"),)))
    return cases.emitted(t, cases.choice(cases.graph(p, {"r": "loop"})))[1]


X, W = torch.ones(5, 40).half(), torch.ones(40, 24).half()


@pytest.mark.parametrize(
    "x, w, error, says",
    [
        (X.float(), W, TypeError, "x: got torch.float32, made for torch.float16"),
        (X, 3, TypeError, "w: got int, made for a torch.float16 tensor"),
        (X[0], W, ValueError, "x: got shape (40,), made for (B, 40)"),
        (X, W[:, :23], ValueError, "w: got shape (40, 23), made for (40, 24)"),
        (X.expand(65, 5, 40)[:, 0], W, ValueError, "B is 65, made for 1 to 64"),
        (X[:0], W, ValueError, "B is 0, made for 1 to 64"),
        (X.to("meta"), W, ValueError, "x: is on meta"),
        (X, W.to("meta"), ValueError, "w: is on meta"),
        (X, W.clone().requires_grad_(), ValueError, "w requires a gradient"),
        (
            X,
            torch.empty_strided((40, 24), (1, 2**27), dtype=HALF, device="meta"),
            ValueError,
            "meta",
        ),
    ],
)
def test_what_it_was_not_made_for_is_refused(
    matmul: Any, x: Any, w: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        matmul.matmul(x, w)


def test_the_last_that_passes_the_guards(matmul: Any) -> None:
    for rows_ in (1, 64):
        got = matmul.matmul(X[:1].expand(rows_, 40), W)  # a stride of 0
        assert torch.equal(got, torch.full((rows_, 24), 40.0).half())
    with torch.no_grad():
        matmul.matmul(X, W.clone().requires_grad_())


def test_reference_is_the_specs_own_function(matmul: Any) -> None:
    assert torch.equal(matmul.reference(X, W), X @ W)


def test_what_the_reference_uses_may_have_the_names_of_the_file() -> None:
    x, v = rows()
    p = of_rows(reduce("max", (k,), v), x)
    context = (
        ("torch", "import torch"),
        ("maximum", "def maximum(x):\n    return x.amax(-1)"),
        ("SIGNATURE", "SIGNATURE = -1"),
    )
    source = Source("def f(x): return maximum(x) * SIGNATURE\n", context)
    text, module = cases.emitted(
        replace(cases.traced(p), source=source), cases.choice(cases.graph(p, {}))
    )
    assert "def maximum(a, b)" in text
    assert torch.equal(module.reference(torch.ones(2, 37)), torch.full((2,), -1.0))
    assert torch.equal(module.f(torch.ones(2, 37)), torch.ones(2))


def test_lists_and_single_tuples_come_back_as_they_were() -> None:
    x, v = rows()
    p = of_rows(reduce("sum", (k,), v), x)
    for returns, kind in (("tuple", tuple), ("list", list)):
        t = cases.traced(p, returns=returns)
        _, module = cases.emitted(t, cases.choice(cases.graph(p, {})))
        result = module.f(torch.ones(2, 37))
        assert isinstance(result, kind)
        assert torch.equal(result[0], torch.full((2,), 37.0))


def test_captured_values_follow_the_parameters() -> None:
    p = product("f32")
    t = Traced(p, ("x",), "tensor", Source(), ("w",))
    _, module = cases.emitted(t, cases.choice(cases.graph(p, {"r": "loop"})))
    run(module, p, {"B": 3, "N": 4})
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        module.reference(None, None)


def test_names_do_not_clash() -> None:
    tl, kernel = Axis("tl", index(5)), Axis("pid", index(7))
    x = Tensor("maximum", (index(5), index(7)), "f32")
    out = Tensor("config", x.shape, "f32")
    v = load(x, (axis(tl), axis(kernel)))
    value = op("maximum", v, op("exp", v))
    p = Program("exp", (x,), (store(out, (tl, kernel), value),), (out,))
    _, module = cases.emitted(cases.traced(p), cases.choice(cases.graph(p, {})))
    run(module, p, {})


def test_text_is_standalone_formatted_and_the_same_each_time() -> None:
    p, g = projections()
    one, two = (emit(cases.traced(p), [cases.choice(g)], cases.NOTES) for _ in range(2))
    assert one == two
    assert not re.search(r"^(import|from) superopt", one, re.M)
    assert max(map(len, one.splitlines())) <= 100
    lint = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,W",
        "--line-length",
        "100",
        "-",
    ]
    done = subprocess.run(lint, input=one, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_config_is_used() -> None:
    p = product("f32")
    g = cases.graph(p, {"r": "loop"})
    tiles = (("b", 16), ("n", 32), ("r", 16))
    text = emit(cases.traced(p), [Choice((), g, (Config(tiles, 8, 4),))], cases.NOTES)
    for item in ('"BLOCK_B": 16', '"BLOCK_N": 32', '"num_warps": 8', '"num_stages": 4'):
        assert item in text
