"""Random index expressions, beside their meaning in plain numpy."""

from itertools import permutations
from typing import Any

import numpy as np
from hypothesis import strategies as st

from superopt.mugraph.expr import Axis, Expr, Symbol, Tensor, axis, index, load, op, reduce, sym
from superopt.mugraph.index import value
from superopt.mugraph.program import Store, store

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
_term = st.tuples(
    st.just("mul"),
    st.sampled_from([*AXES, S, T]).map(lambda a: ("axis" if isinstance(a, Axis) else "sym", a)),
    st.sampled_from([1, 1, 2, 3, 4, 6, 8, 12, -1, -4]).map(lambda v: ("int", v)),
)
_affine = st.builds(lambda a, b, c: ("add", ("add", a, b), c), _term, _term, _integers)
_divisor = st.sampled_from([2, 3, 4, 6, 8, 12]).map(lambda v: ("int", v)) | _positive
_split = st.tuples(st.sampled_from(["floordiv", "mod"]), _affine, _divisor)
divisions = _split | st.tuples(st.sampled_from(["floordiv", "mod"]), _split, _divisor)

_term = st.tuples(
    st.just("mul"),
    st.sampled_from([*AXES, S, T]).map(lambda a: ("axis" if isinstance(a, Axis) else "sym", a)),
    st.sampled_from([1, 1, 2, 3, 4, 6, 8, 12, -1, -4]).map(lambda v: ("int", v)),
)
_affine = st.builds(lambda a, b, c: ("add", ("add", a, b), c), _term, _term, _integers)
_divisor = st.sampled_from([2, 3, 4, 6, 8, 12]).map(lambda v: ("int", v)) | _positive
_split = st.tuples(st.sampled_from(["floordiv", "mod"]), _affine, _divisor)
divisions = _split | st.tuples(st.sampled_from(["floordiv", "mod"]), _split, _divisor)

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


# -- scalar expressions -------------------------------------------------------------------------

P, Q, R, U = Axis("p", sym(S)), Axis("q", index(4)), Axis("r", sym(S)), Axis("u", index(3))
POOL = (P, Q, R, U)


def tensor(axes: tuple[Axis, ...], dtype: str = "f64") -> Tensor:
    return Tensor("x_" + "".join(a.name for a in axes), tuple(a.extent for a in axes), dtype)


TENSORS = tuple(
    tensor(axes) for n in (0, 1, 2) for axes in permutations(POOL, n)
)  # one for each choice of axes: loads are in range by construction


@st.composite
def load_of(draw: st.DrawFn) -> Expr:
    """x[p, q], or shifted and guarded: x[p + 1, q if p + 1 < S]."""
    axes = tuple(draw(st.lists(st.sampled_from(POOL), max_size=2, unique=True)))
    if axes and draw(st.booleans()):
        shifted = op("add", axis(axes[0]), index(draw(st.sampled_from([-1, 1]))))
        inside = op("and", op("ge", shifted, index(0)), op("lt", shifted, axes[0].extent))
        return load(tensor(axes), [shifted, *map(axis, axes[1:])], inside)
    return load(tensor(axes), map(axis, axes))


def _grow_scalar(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    names = st.sampled_from(["add", "sub", "mul", "maximum"])
    masked = st.builds(
        lambda a, b, e, f: op("where", op("lt", axis(a), axis(b)), e, f),
        st.sampled_from(POOL),
        st.sampled_from(POOL),
        inner,
        inner,
    )
    binding = st.lists(st.sampled_from(POOL), min_size=1, max_size=2, unique=True)
    reduced = st.builds(reduce, st.sampled_from(["sum", "max", "min", "sum"]), binding, inner)
    return st.one_of(st.builds(op, names, inner, inner), reduced, reduced, masked)


scalars = st.recursive(load_of(), _grow_scalar, max_leaves=6)


def tensors_for(at: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Small integers in float64: sums and products of them are exact in any order."""
    random = np.random.default_rng(seed)
    shapes = {t.name: [value(e, at) for e in t.shape] for t in TENSORS}
    return {
        name: random.integers(-3, 4, shape).astype(np.float64) for name, shape in shapes.items()
    }


def stores_of(values: list[Expr]) -> tuple[Store, ...]:
    """A store a value, over its free axes and no others."""
    stores = []
    for number, e in enumerate(values):
        axes = tuple(sorted(e.free, key=lambda a: a.name, reverse=bool(number % 2)))
        out = Tensor(f"out{number}", tuple(a.extent for a in axes), e.dtype)
        stores.append(store(out, axes, e))
    return tuple(stores)
