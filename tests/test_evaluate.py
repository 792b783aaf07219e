"""The evaluator's meanings: plain float64, chosen points, a finite field, and eager's rounding."""

import numpy as np
import pytest
from core_strategies import P, Q, R, S, scalars, sizes, tensor, tensors_for
from hypothesis import given, settings
from hypothesis import strategies as st

from superopt.errors import IllFormed
from superopt.mugraph.evaluate import Evaluator, NoFieldMeaning, field_const, run_program
from superopt.mugraph.expr import Axis, Tensor, axis, cast, const, index, load, op, reduce, sym
from superopt.mugraph.ops import PRIME
from superopt.mugraph.program import Program, Store, store
from superopt.mugraph.semantics import rounded

x_pq = load(tensor((P, Q)), [axis(P), axis(Q)])
x_qr = load(tensor((Q, R)), [axis(Q), axis(R)])
AT = {"S": 5, "T": 2}


# -- points ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(scalars, sizes, st.data())
def test_points_are_a_selection_of_the_whole(e, at, data):
    whole = Evaluator(tensors_for(at), at)
    chosen = data.draw(st.lists(st.sampled_from([P, Q, R]), unique=True))
    points = {
        a: np.array(data.draw(st.lists(st.integers(0, whole.extent(a) - 1), max_size=3)), np.int64)
        for a in chosen
    }
    few = Evaluator(tensors_for(at), at, points=points)
    axes = tuple(sorted(e.free, key=lambda a: a.name))
    pick = np.ix_(*(points.get(a, np.arange(whole.extent(a))) for a in axes))
    assert np.array_equal(few(e), whole(e)[pick] if axes else whole(e))


def test_a_bound_axis_runs_over_all_of_it_though_its_free_namesake_does_not():
    total = reduce("sum", (Q,), x_pq)
    share = op("div", x_pq, total)
    tensors = {"x_pq": np.arange(1.0, 21.0).reshape(5, 4)}
    few = Evaluator(tensors, AT, points={P: np.array([4, 1]), Q: np.array([2])})
    rows = tensors["x_pq"][[4, 1]]
    assert np.array_equal(few(share), (rows / rows.sum(1, keepdims=True))[:, [2]])
    assert few.shape((P, Q, R)) == [2, 1, 5]


# -- float64 --------------------------------------------------------------------------------------


def test_a_matrix_product():
    tensors = tensors_for(AT)
    product = reduce("sum", (Q,), op("mul", x_pq, x_qr))
    assert np.array_equal(Evaluator(tensors, AT)(product), tensors["x_pq"] @ tensors["x_qr"])


@pytest.mark.parametrize("source, dtype, want", [
    ([1.9, -1.9, np.nan], "i32", [1, -1, 0]),
    ([300.0, -129.0, 128.0], "i8", [44, 127, -128]),
    ([300.0, -1.0, 0.0], "u8", [44, 255, 0]),
    ([0.5, 0.0, np.nan], "bool", [True, False, True]),
])  # fmt: skip
def test_casts(source, dtype, want):
    a = Axis("a", index(3))
    e = cast(load(Tensor("x", (index(3),), "f32"), [axis(a)]), dtype)
    assert Evaluator({"x": np.array(source)}, {})(e).tolist() == want


def test_any_and_counts_of_bools():
    flag = op("gt", x_pq, const(0.0, "f64"))
    tensors = {"x_pq": np.array([[1.0, -1, 2, 0]] * 5)}
    run = Evaluator(tensors, AT)
    assert run(reduce("max", (Q,), flag)).tolist() == [True] * 5
    assert run(reduce("max", (Q,), flag)).dtype == np.bool_
    assert run(reduce("sum", (P, Q), cast(flag, "i64"))) == 10


def test_infinities_and_nan_travel():
    row = {"x_pq": np.array([[np.inf, 1, 2, 3], [np.nan, 1, 2, 3]])}
    run = Evaluator(row, {"S": 2, "T": 2})
    assert np.isposinf(run(reduce("max", (Q,), x_pq))[0])
    assert np.isnan(run(reduce("max", (Q,), x_pq))[1])
    assert np.isnan(run(op("sub", x_pq, reduce("max", (Q,), x_pq)))[0, 0])


def test_a_load_out_of_range_raises_unless_guarded():
    moved = op("add", axis(P), index(1))
    run = Evaluator({"x_p": np.arange(5.0)}, AT)
    guarded = load(tensor((P,)), [moved], op("lt", moved, sym(S)))
    assert run(guarded).tolist() == [1, 2, 3, 4, 0]
    with pytest.raises(IndexError, match="index out of range 0..4"):
        run(load(tensor((P,)), [moved]))


def test_stores_build_on_earlier_ones_and_leave_the_rest_unwritten():
    temp, out = tensor((P,)), Tensor("out", (sym(S),), "f64")
    first = store(temp, (P,), op("neg", load(Tensor("y", (sym(S),), "f64"), [axis(P)])))
    half = Axis("h", index(2))
    second = Store(out, (half,), (axis(half),), load(temp, [axis(half)]))
    p = Program("p", (Tensor("y", (sym(S),), "f64"),), (first, second), (out,))
    got = run_program(p, {"y": np.arange(5.0)}, AT)
    assert got["x_p"].tolist() == [0, -1, -2, -3, -4]
    assert got["out"][:2].tolist() == [0, -1]
    assert np.isnan(got["out"][2:]).all()
    back = Store(out, (half,), (op("sub", axis(half), index(1)),), load(temp, [axis(half)]))
    with pytest.raises(IllFormed, match="store to out: a negative index"):
        run_program(Program("p", p.inputs, (first, back), (out,)), {"y": np.arange(5.0)}, AT)


# -- the finite field ----------------------------------------------------------------------------


def test_field_constants_are_rationals():
    assert field_const(3.0) == 3
    assert field_const(-1.0) == PRIME - 1
    assert field_const(0.5) * 2 % PRIME == 1
    with pytest.raises(NoFieldMeaning, match="constant inf"):
        field_const(float("inf"))


def test_field_identities_hold_exactly():
    random = np.random.default_rng(0)
    tensors = {
        name: random.integers(1, PRIME, shape)
        for name, shape in {"x_pq": (5, 4), "x_qr": (4, 5), "x_p": (5,)}.items()
    }
    run = Evaluator(tensors, AT, field=True)
    scale = load(tensor((P,)), [axis(P)])
    inside = reduce("sum", (Q,), op("mul", op("div", x_pq, scale), x_qr))
    outside = op("div", reduce("sum", (Q,), op("mul", x_pq, x_qr)), scale)
    assert np.array_equal(run(inside), run(outside))
    cube = op("pow", scale, const(3.0, "f64"))
    assert np.array_equal(run(cube), run(op("mul", scale, op("mul", scale, scale))))


@pytest.mark.parametrize(
    "e, message",
    [
        (op("exp", x_pq), "operator exp"),
        (op("lt", x_pq, const(0.0, "f64")), "operator lt"),
        (reduce("max", (Q,), x_pq), "reduction by max"),
        (cast(x_pq, "i32"), "a cast from f64 to i32"),
    ],
)
def test_what_has_no_field_meaning_says_so(e, message):
    with pytest.raises(NoFieldMeaning, match=message):
        Evaluator({"x_pq": np.ones((5, 4), np.int64)}, AT, field=True)(e)


# -- eager's rounding ----------------------------------------------------------------------------


def test_rounding_to_a_type_is_torch_s():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    x = random.standard_normal(4000) * 10.0 ** random.integers(-9, 7, 4000)
    x = np.concatenate([x, [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2.0**-8, 1 + 3 * 2.0**-8]])
    for name, dtype in {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}.items():
        want = torch.from_numpy(x).float().to(getattr(torch, dtype)).double().numpy()
        got = rounded(x.astype(np.float32).astype(np.float64), name)
        assert np.array_equal(got, want, equal_nan=True), name
    assert rounded(x, "f64") is x


def _half(name, *axes):
    return load(Tensor(name, tuple(a.extent for a in axes), "f16"), map(axis, axes))


def test_each_result_is_rounded_to_its_type():
    a, b = _half("a"), _half("b")
    tensors = {"a": np.array(2048.0), "b": np.array(1.0)}
    run = Evaluator(tensors, {}, rounding=True)
    assert run(op("sub", op("add", a, b), a)) == 0.0  # 2049 is no half
    wide = op("sub", op("add", cast(a, "f32"), cast(b, "f32")), cast(a, "f32"))
    assert run(wide) == 1.0
    assert Evaluator(tensors, {})(op("sub", op("add", a, b), a)) == 1.0


def test_sums_accumulate_in_float32_and_round_once():
    k = Axis("k", index(4096))
    ones = {"a": np.ones(4096)}
    run = Evaluator(ones, {}, rounding=True)
    assert run(reduce("sum", (k,), _half("a", k))) == 4096.0  # a half accumulator stops at 2048
    big = {"a": np.array([2.0**24] + [1.0] * 4095)}
    single = load(Tensor("a", (index(4096),), "f32"), [axis(k)])
    error = Evaluator(big, {}, rounding=True)(reduce("sum", (k,), single)) - (2.0**24 + 4095)
    assert 0 < abs(error) <= 4096


def test_products_round_unless_the_program_spelt_a_matrix_product():
    k = Axis("k", index(1))
    two = Axis("k", index(2))
    a = _half("a", two)
    tensors = {"a": np.array([1 + 2.0**-10, 0.0])}
    run = Evaluator(tensors, {}, rounding=True)
    exact = (1 + 2.0**-10) ** 2
    plain = reduce("sum", (two,), op("mul", a, a), dtype="f32")
    dot = reduce("sum", (two,), op("mul", a, a), operand="f16", dtype="f32")
    assert run(dot) == exact
    assert run(plain) == 1 + 2.0**-9
    assert axis(k) is index(0)


def test_constants_keep_the_working_precision():
    a = _half("a")
    e = op("mul", op("add", a, const(1e-6, "f16")), const(1.0, "f16"))
    run = Evaluator({"a": np.array(0.0)}, {}, rounding=True)
    assert run(e) == float(np.float16(np.float32(1e-6)))


def test_eager_s_own_error_is_measured():
    """RMS normalisation times a matrix in half precision: the error torch's eager really makes."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    k, m = Axis("k", index(512)), Axis("m", index(64))
    x, w = random.standard_normal((5, 512)), random.standard_normal((512, 64))
    x, w = (a.astype(np.float16).astype(np.float64) for a in (x, w))
    wide = cast(_half("x", P, k), "f32")
    mean = op("div", reduce("sum", (k,), op("square", wide)), const(512.0, "f32"))
    normal = cast(op("mul", wide, op("rsqrt", op("add", mean, const(1e-6, "f32")))), "f16")
    e = reduce("sum", (k,), op("mul", normal, _half("w", k, m)), operand="f16")
    tensors = {"x": x, "w": w}
    exact = Evaluator(tensors, AT)(cast(e, "f64")).T
    own = np.abs(Evaluator(tensors, AT, rounding=True)(e).T - exact).max()
    h, hw = (torch.from_numpy(a).half() for a in (x, w))
    n = h.float() * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    eager = np.abs((n.half() @ hw).double().numpy() - exact).max()
    assert 0.5 < own / eager < 2
