"""Random index expressions, beside their meaning in plain numpy."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from superopt.mugraph.expr import Axis, Expr, Symbol, axis, index, op, sym
from superopt.mugraph.index import value

S, T = Symbol("S", 1, 7), Symbol("T", 2, 5)
AXES = (
    Axis("i", index(6)),
    Axis("j", sym(S)),
    Axis("k", op("mul", sym(S), sym(T))),
    Axis("m", op("floordiv", op("add", sym(S), index(3)), index(2))),
    Axis("n", op("sub", op("mul", sym(T), index(3)), index(1))),
)
Tree = tuple[Any, ...]  # (operator, trees...) | ("int", value) | ("sym", Symbol) | ("axis", Axis)

sizes = st.fixed_dictionaries({"S": st.integers(1, 7), "T": st.integers(2, 5)})
_integers = st.integers(-9, 9).map(lambda v: ("int", v))
_positive = st.one_of(
    st.integers(1, 12).map(lambda v: ("int", v)),
    st.sampled_from([S, T]).map(lambda s: ("sym", s)),
    st.sampled_from([("mul", ("sym", S), ("sym", T)), ("mul", ("sym", S), ("int", 4))]),
    st.just(("add", ("sym", S), ("int", 1))),
)
_leaves = st.one_of(
    _integers,
    st.sampled_from([S, T]).map(lambda s: ("sym", s)),
    st.sampled_from(AXES).map(lambda a: ("axis", a)),
)


def _grow(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    plain = st.tuples(st.sampled_from(["add", "sub", "mul"]), inner, inner)
    divided = st.tuples(st.sampled_from(["floordiv", "mod"]), inner, _positive)
    return st.one_of(plain, divided, divided, st.tuples(st.just("mul"), inner, _positive))


trees = st.recursive(_leaves, _grow, max_leaves=9)
comparisons = st.tuples(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), trees, trees)


def build(tree: Tree) -> Expr:
    """The expression, through the simplifying constructors."""
    match tree:
        case ("int", v):
            return index(v)
        case ("sym", s):
            return sym(s)
        case ("axis", a):
            return axis(a)
    return op(tree[0], *map(build, tree[1:]))


_NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


def meaning(tree: Tree, at: dict[str, int]) -> np.ndarray:
    """The tree's values, without any simplification, over the whole box of AXES."""
    match tree:
        case ("int", v):
            return np.asarray(v)
        case ("sym", s):
            return np.asarray(at[s.name])
        case ("axis", a):
            values = np.arange(value(a.extent, at))
            return values.reshape([-1 if a is b else 1 for b in AXES])
    return _NUMPY[tree[0]](*(meaning(t, at) for t in tree[1:]))


def box(at: dict[str, int]) -> list[int]:
    return [value(a.extent, at) for a in AXES]
