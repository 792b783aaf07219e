"""What prints reads back to the same nodes, as text and as JSON; a bad text says where."""

import json

import pytest
from core_strategies import TENSORS, P, Q, build, scalars, stores_of, tensor, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from superopt.errors import UsageError
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
    make,
    op,
    reduce,
    sym,
)
from superopt.mugraph.ops import OPS
from superopt.mugraph.parse import ParseError
from superopt.mugraph.program import (
    Branch,
    Choice,
    Config,
    Kernel,
    KernelGraph,
    Program,
    SourceOp,
    store,
)
from superopt.mugraph.serialize import digest, from_json, to_json
from superopt.mugraph.text import inline, parse_graph, parse_program, print_graph, print_program

B = Symbol("B", 1, 4096)
b, n = Axis("b", sym(B)), Axis("n", index(512))
X = Tensor("x", (sym(B), index(512)), "f16")
OUT = Tensor("out", (sym(B), index(512)), "f16")


def softmax() -> KernelGraph:
    x = cast(load(X, [axis(b), axis(n)]), "f32")
    e = op("exp", op("sub", x, reduce("max", (n,), x)))
    s = store(OUT, (b, n), cast(op("div", e, reduce("sum", (n,), e)), "f16"))
    branch = Branch((s,), (("b", "program"), ("n", "whole")))
    return KernelGraph("softmax", (X,), (Kernel("k0", (branch,)),), (OUT,))


TEXT = """\
graph softmax
  where B in 1..4096
  axis b: B, n: 512
  input x: f16[B, 512]
  tensor out: f16[B, 512]
kernel k0
  branch b: program, n: whole
    %0 = f32(x[b, n])
    %1 = exp(%0 - (max[n] %0))
    store out[b, n] = f16(%1 / (sum[n] %1)) for b, n
returns out
"""


def program(*values: Expr) -> Program:
    stores = stores_of(list(values))
    return Program("p", TENSORS, stores, tuple(s.tensor for s in stores))


def round_trip(p: Program) -> None:
    assert parse_program(print_program(p)) == p, print_program(p)
    assert from_json(json.loads(json.dumps(to_json(p)))) == p


def test_a_graph_prints_and_reads_back():
    graph = softmax()
    assert print_graph(graph) == TEXT
    assert parse_graph(TEXT) == graph
    assert parse_graph(TEXT).kernels[0].stores[0].value is graph.kernels[0].stores[0].value


@settings(max_examples=150, deadline=None)
@given(st.lists(scalars, min_size=1, max_size=3))
def test_random_programs_read_back(values):
    round_trip(program(*values))


@settings(max_examples=150, deadline=None)
@given(trees)
def test_random_index_expressions_read_back(tree):
    round_trip(program(build(tree)))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "i64"])
def test_every_operator_reads_back(name, dtype):
    args = [cast(load(tensor((a,)), [axis(a)]), dtype) for a in (P, Q, P)[: OPS[name].arity]]
    nested = make(name, tuple(args), None, dtype)
    round_trip(program(op(name, *args), make(name, (nested,) * len(args), None, "f64")))


@pytest.mark.parametrize(
    "value, dtype",
    [
        (0.0, "f32"),
        (-0.0, "f32"),
        (1e-6, "f16"),
        (-1.5e300, "f64"),
        (float("inf"), "f32"),
        (float("-inf"), "bf16"),
        (float("nan"), "f32"),
        (True, "bool"),
        (-3, "i8"),
        (2**63 - 1, "i64"),
        (7, "index"),
    ],
)
def test_every_constant_reads_back(value, dtype):
    c = const(value, dtype)
    x = load(tensor((P,), dtype), [axis(P)])
    round_trip(program(make("add", (x, c), None, dtype), make("neg", (c,), None, dtype)))


def test_reductions_keep_operand_and_type():
    x = load(tensor((P, Q), "f16"), [axis(P), axis(Q)])
    dot = reduce("sum", (P,), op("mul", x, x), operand="f16", dtype="f32")
    round_trip(program(op("add", dot, dot), op("mul", reduce("max", (P, Q), x), x)))


def test_things_of_one_name_stay_apart():
    """Symbols, axes and tensors of the same name, names that are words of the text, odd names."""
    one, two = Symbol("N", 1, 8), Symbol("N", 2, 9)
    axes = [Axis("N", sym(one)), Axis("N", sym(two)), Axis("sum", index(5)), Axis("a b", sym(one))]
    names = ["x", "x", "sum", "f32", "for", "self.weight", "0", "a#2"]
    tensors = [Tensor(t, (sym(one), sym(two), index(5), sym(one)), "f32") for t in names[1:]]
    tensors.append(Tensor("x", (index(9),) * 4, "f32", (sym(one), sym(two))))
    total = const(0.5, "f32")
    for t in tensors:
        total = op("add", total, load(t, map(axis, axes)))
    s = store(Tensor("out", tensors[0].shape, "f32"), axes, total)
    p = Program("odd name", tuple(tensors), (s,), (s.tensor, s.tensor))
    round_trip(p)
    branch = Branch((s,), (("N", "grid"), ("a b", "loop"), ("sum", "whole")))
    graph = KernelGraph("g", p.inputs, (Kernel("0", (branch, branch)), Kernel("k", ())), ())
    assert parse_graph(print_graph(graph)) == graph
    assert from_json(to_json(graph)) == graph


def test_json_carries_configurations_and_source_operators():
    config = Config((("b", 2),), warps=8, stages=2)
    choice = Choice((("B", 16),), softmax(), (config,))
    assert from_json(json.loads(json.dumps(to_json(choice)))) == choice
    source = SourceOp("softmax", "reduction", (X,), (OUT,), op("mul", sym(B), index(512)))
    s = softmax().kernels[0].stores
    p = Program("p", (X,), s, (OUT,), (source,))
    assert from_json(to_json(p)).source_ops == (source,)


def test_digests_are_of_the_structure():
    graph = softmax()
    assert digest(graph) == digest(parse_graph(TEXT))
    assert digest(graph) != digest(parse_graph(TEXT.replace("n: whole", "n: loop")))
    assert digest(graph) != digest(parse_graph(TEXT.replace("1..4096", "1..4095")))
    source = SourceOp("o", "view", (X,), (OUT,), index(0))
    s = graph.kernels[0].stores
    plain, annotated = Program("p", (X,), s, (OUT,)), Program("p", (X,), s, (OUT,), (source,))
    assert plain == annotated
    assert digest(plain) == digest(annotated)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("graph softmax", "program softmax", "line 1: expected 'graph', found 'program'"),
        ("1..4096", "1", "line 2: expected '..', found the end of the line"),
        ("n: 512", "n: M", r"line 3: expected an axis or a symbol \(declared: b, B\), found 'M'"),
        ("input x: f16", "input x: f17", "line 4: expected an element type, found 'f17'"),
        ("kernel k0", "kernel", "line 6: expected the name of the kernel"),
        ("n: whole", "n whole", "line 7: expected ':', found 'whole'"),
        ("x[b, n])", "y[b, n])", r"line 8: expected a tensor \(declared: x, out\), found 'y'"),
        ("x[b, n])", "x[b])", "line 8: expected 2 indices of x, found 1"),
        ("x[b, n])", "x[b, n", "line 8: expected ']', found the end of the line"),
        ("%0 - (max", "%7 - (max", "line 9: expected %7 above"),
        ("exp(%0", "exq(%0", "line 9: expected an operator of 1 operands, found 'exq'"),
        ("max[n]", "max[m]", r"line 9: expected an axis \(declared: b, n\), found 'm'"),
        ("%1)) for", "%1)) § for", "line 10: expected a token, found '§ for b, n'"),
        ("for b, n", "for b", "line 10: .*free axes"),
        ("returns out", "", "line 12: expected 'returns', found the end of the line"),
        ("returns out", "returns out\nreturns out", "line 12: expected the end of the text"),
    ],
)
def test_a_bad_text_says_where_and_what_was_expected(old, new, message):
    assert old in TEXT
    with pytest.raises(ParseError, match=message):
        parse_graph(TEXT.replace(old, new, 1))


def test_bad_json_is_refused():
    with pytest.raises(UsageError, match="JSON of kind 'x'; expected one of program"):
        from_json({"kind": "x"})
    damaged = to_json(softmax())
    del damaged["nodes"][-1]
    with pytest.raises(UsageError, match="JSON of a graph is damaged"):
        from_json(damaged)


def test_reprs_are_one_short_line():
    x, w = load(X, [axis(b), axis(n)]), load(OUT, [axis(b), axis(n)])
    assert inline(reduce("sum", (n,), op("mul", x, w))) == "sum[n:512] out[b, n] * x[b, n]"
    assert repr(b) == "b:B"
    assert inline(op("sub", op("mul", axis(b), index(2)), index(3))) == "b * 2 - 3"
    e = x
    for _ in range(200):
        e = op("mul", op("exp", e), op("add", e, e))
    assert len(repr(e)) < 400
    assert "…" in repr(e)
