"""A kernel.py's own host code run on symbols: what it launches, under which conditions.

`_fits` says which calls are taken, `_launch` allocates and launches. Both run with tensors whose
extents and strides are symbols; where a comparison of symbols decides, both ways are run in turn.
So what is proved rests on what the file itself checks, not on what was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    both,
    conjuncts,
    eq,
    le,
    lt,
    mapped,
    negation,
    poly,
    product,
    symbol,
)
from superopt.verify.ttir import Unreadable

MOST_PATHS = 4096


@dataclass(frozen=True)
class Store:
    """A tensor as the host knows it. `strides`: in elements, None where the host allocated it.

    `small`: the host has made sure that it is contiguous, or spans fewer than 2**31 elements.
    """

    name: str
    shape: tuple[Poly, ...]
    dtype: Any
    strides: tuple[Poly, ...] | None = None
    small: bool = True

    @property
    def is_input(self) -> bool:
        return self.strides is not None


@dataclass(frozen=True)
class LaunchOf:
    """A launch: a jitted function, how many programs, its arguments by name and its constants."""

    kernel: Any
    programs: Poly
    arguments: Mapping[str, Store | Poly]
    constants: Mapping[str, Any]


@dataclass
class Path:
    """One way through the host code. `conditions` are those under which it is taken, `known` what
    follows from them: which numbers of blocks, and sizes, are 1."""

    conditions: Cond
    known: Cond = TRUE
    launches: list[LaunchOf] = field(default_factory=list)
    tensors: list[Store] = field(default_factory=list)
    returned: list[Store] = field(default_factory=list)


# -- symbols that Python code can use ------------------------------------------------------------


class _Decisions:
    """The answers to comparisons, one run after another: depth first."""

    def __init__(self, decided: Callable[[Cond, Cond], bool | None]) -> None:
        self.decided = decided
        self.plan: list[bool] = []
        self.made: list[tuple[Cond, bool]] = []

    def answer(self, c: Cond) -> bool:
        for made, chosen in self.made:
            if c in (made, negation(made)):
                return chosen == (c == made)
        known = self.decided(self.conditions(), c)
        if known is not None:
            return known
        n = len(self.made)
        chosen = self.plan[n] if n < len(self.plan) else True
        self.made.append((c, chosen))
        return chosen

    def conditions(self) -> Cond:
        return both(*(c if chosen else negation(c) for c, chosen in self.made))

    def next(self) -> bool:
        """Prepare the next run; False where all have been made."""
        answers = [chosen for _, chosen in self.made]
        while answers and not answers[-1]:
            answers.pop()
        if not answers:
            return False
        self.plan, self.made = [*answers[:-1], False], []
        return True


class Extent:
    """A symbolic integer: arithmetic gives more, comparisons ask the decisions."""

    def __init__(self, value: Poly, decisions: _Decisions) -> None:
        self.value, self.decisions = value, decisions

    def _with(self, value: Poly) -> Extent:
        return Extent(value, self.decisions)

    def __add__(self, other: Any) -> Extent:
        return self._with(self.value + _poly(other))

    def __sub__(self, other: Any) -> Extent:
        return self._with(self.value - _poly(other))

    def __rsub__(self, other: Any) -> Extent:
        return self._with(_poly(other) - self.value)

    def __mul__(self, other: Any) -> Extent:
        return self._with(self.value * _poly(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Extent:
        return self._with(-self.value)

    def __floordiv__(self, other: Any) -> Extent:
        """Rounded down, as Python does; of what is not negative, or -a // b as -ceil(a / b)."""
        by = _poly(other)
        if self.decisions.decided(TRUE, lt(0, by)) is not True:
            raise Unreadable(f"the host divides by {by}, which may not be positive")
        q, r = self.value.split(by) if len(by.terms) == 1 else (None, None)
        if q is not None and r is not None and not r.terms:
            return self._with(q)
        if self.decisions.decided(self.decisions.conditions(), le(0, self.value)) is True:
            return self._with(poly(Atom("quotient", (self.value, by))))
        if self.decisions.decided(self.decisions.conditions(), lt(self.value, by)) is not True:
            raise Unreadable(f"the host divides {self.value}, of a sign that is not known")
        up = -self.value + by - 1
        return self._with(-poly(Atom("quotient", (up, by))))

    def _ask(self, c: Cond) -> bool:
        return c == TRUE or (c != FALSE and self.decisions.answer(c))

    def __eq__(self, other: object) -> bool:
        return self._ask(eq(self.value, _poly(other)))

    def __lt__(self, other: Any) -> bool:
        return self._ask(lt(self.value, _poly(other)))

    def __le__(self, other: Any) -> bool:
        return self._ask(le(self.value, _poly(other)))

    def __gt__(self, other: Any) -> bool:
        return self._ask(lt(_poly(other), self.value))

    def __ge__(self, other: Any) -> bool:
        return self._ask(le(_poly(other), self.value))

    def __bool__(self) -> bool:
        return not self._ask(eq(self.value, poly(0)))

    def bit_length(self) -> int:
        """A number: every length that is possible is a way of its own."""
        size = self if self >= 0 else self * -1
        return next(n for n in range(64) if size < 1 << n)

    __hash__ = None  # type: ignore[assignment]


def _poly(x: Any) -> Poly:
    if isinstance(x, Extent):
        return x.value
    if isinstance(x, int):
        return poly(x)
    raise Unreadable(f"the host computes with {x!r}")


class _Device:
    type = "cuda"

    def __getattr__(self, name: str) -> Any:
        raise Unreadable(f"the host asks a device for its {name}")


_DEVICE = _Device()


class Symbolic:
    """A tensor in the host code's eyes: what it may ask and do is here, no more."""

    requires_grad = False
    device = _DEVICE

    def __init__(self, store: Store, decisions: _Decisions, path: Path) -> None:
        self._store, self._decisions, self._path = store, decisions, path
        self.dtype = store.dtype
        self.shape = tuple(Extent(e, decisions) for e in store.shape)

    def __getattr__(self, name: str) -> Any:
        raise Unreadable(f"the host asks a tensor for its {name}")

    def dim(self) -> int:
        return len(self.shape)

    def stride(self, d: int | None = None) -> Any:
        own = self._store.strides or contiguous(self._store.shape)
        all_strides = tuple(Extent(s, self._decisions) for s in own)
        return all_strides if d is None else all_strides[d]

    def is_contiguous(self) -> bool:
        return self._decisions.answer(_contiguous(self._store))

    def new_empty(self, shape: Sequence[Any], dtype: Any = None) -> Symbolic:
        dtype = self.dtype if dtype is None else dtype
        name = f"made!{sum(not t.is_input for t in self._path.tensors)}"
        store = Store(name, tuple(map(_poly, shape)), dtype)
        self._path.tensors.append(store)
        return Symbolic(store, self._decisions, self._path)


def _contiguous(t: Store) -> Cond:
    """That an input is so: an answer of its own, which says nothing of its strides."""
    return Cond("opaque", ("contiguous", t.name))


def contiguous(shape: Sequence[Poly]) -> tuple[Poly, ...]:
    return tuple(product(shape[d + 1 :]) for d in range(len(shape)))


# -- running -------------------------------------------------------------------------------------


Decide = Callable[[Cond, Cond], bool | None]


def accepted(module: ModuleType) -> tuple[list[Store], Cond]:
    """The inputs that `_fits` takes, and what it has checked of their extents.

    Raises Unreadable where the host code does what symbols cannot, or checks too little.
    """
    for name in ("SIGNATURE", "_fits", "_launch"):
        if not hasattr(module, name):
            raise Unreadable(f"it has no {name}: its host code is not that of the emitter")
    inputs, taken = _inputs(module.SIGNATURE), set()
    large: set[str] = set()
    for conditions in _answers(module._fits, inputs):
        facts = conjuncts(conditions)
        for t in inputs:
            flag, span = _contiguous(t), _span_is_small(t)
            if span != TRUE and not {flag, span} & {*facts}:
                large.add(t.name)
            facts = tuple(c for c in facts if c not in (flag, negation(flag), span, negation(span)))
        taken.add(both(*facts))
    inputs = [replace(t, small=t.name not in large) for t in inputs]
    if len(taken) != 1:
        raise Unreadable(f"_fits takes {len(taken)} kinds of calls; one was expected")
    one = symbol("extra!")
    for wrong in inputs:
        for what, other in (
            ("element type", replace(wrong, dtype=None)),
            (
                "rank",
                replace(wrong, shape=(*wrong.shape, one), strides=(*(wrong.strides or ()), one)),
            ),
        ):
            others = [other if t is wrong else t for t in inputs]
            if any(True for _ in _answers(module._fits, others)):
                raise Unreadable(f"_fits does not check the {what} of {wrong.name}")
    return _solved(inputs, taken.pop())


def _span_is_small(t: Store) -> Cond:
    steps = ((n - 1) * s for n, s in zip(t.shape, t.strides or (), strict=True))
    return lt(sum(steps, poly(0)), 1 << 31)


def paths(
    module: ModuleType, inputs: Sequence[Store], facts: Cond, decided: Decide
) -> Iterator[Path]:
    """Every way through `_launch` for such inputs.

    `decided(given, c)`: whether c follows from what is given; False where its negation does.
    """
    decisions = _Decisions(lambda given, c: decided(both(facts, given), c))
    for _ in range(MOST_PATHS):
        path = Path(TRUE, tensors=list(inputs))
        arguments = [Symbolic(s, decisions, path) for s in inputs]
        returned = _run(module._launch, *arguments, wrap=partial(_Captured, path))
        several = returned if isinstance(returned, tuple) else (returned,)
        path.returned = [_store_of(r) for r in several]
        path.conditions = decisions.conditions()
        yield _in_one_block(path, decisions)
        if not decisions.next():
            return
    raise Unreadable(f"more than {MOST_PATHS} ways through the host code")


def _in_one_block(path: Path, decisions: _Decisions) -> Path:
    """The path with 1 for each number of blocks, and each size, of which its conditions leave one;
    programs then have no coordinate along it."""

    def change(a: Atom) -> Poly | None:
        single = eq(poly(a), 1)
        if a.kind not in ("quotient", "symbol") or not decisions.decided(path.conditions, single):
            return None
        path.known = both(path.known, single)
        return poly(1)

    path.launches = [replace(n, programs=mapped(n.programs, change)) for n in path.launches]
    return path


def _inputs(signature: Mapping[str, tuple[Any, Sequence[Any]]]) -> list[Store]:
    """Tensors of free extents, named after the symbols of the file where those stand alone."""
    named: set[str] = set()
    inputs = []
    for name, (dtype, extents) in signature.items():
        shape = []
        for d, e in enumerate(extents):
            own = e if isinstance(e, str) and e.isidentifier() and e not in named else ""
            named.add(own)
            shape.append(symbol(own or f"{name}.shape[{d}]"))
        strides = tuple(symbol(f"{name}.stride[{d}]") for d in range(len(shape)))
        inputs.append(Store(name, tuple(shape), dtype, strides))
    return inputs


def _answers(fits: Any, inputs: Sequence[Store]) -> Iterator[Cond]:
    """The conditions under which `fits` says yes."""
    decisions = _Decisions(lambda given, c: None)
    for _ in range(MOST_PATHS):
        if _run(fits, *(Symbolic(t, decisions, Path(TRUE)) for t in inputs)):
            yield decisions.conditions()
        if not decisions.next():
            return
    raise Unreadable(f"more than {MOST_PATHS} ways through _fits")


def _solved(inputs: Sequence[Store], facts: Cond) -> tuple[list[Store], Cond]:
    """Extents that must equal something are replaced by it; symbols of the file stay."""
    while True:
        found = [s for c in conjuncts(facts) for s in _solutions(c)]
        if not found:
            return list(inputs), facts
        change = dict([min(found, key=lambda s: "." not in str(s[0]))]).get
        facts = mapped(facts, change)
        inputs = [replace(t, shape=mapped(t.shape, change)) for t in inputs]


def _solutions(c: Cond) -> Iterator[tuple[Atom, Poly]]:
    if c.op == "eq":
        for one, two in (c.args, c.args[::-1]):
            a = one.atom
            if a is not None and a.kind == "symbol" and a not in two.atoms:
                yield a, two


def _run(fn: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return fn(*arguments, **options)
    except Unreadable:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise Unreadable(f"its host code does not run on symbols: {what}") from error


def _store_of(x: Any) -> Store:
    if not isinstance(x, Symbolic):
        raise Unreadable(f"the host returns {type(x).__name__}")
    return x._store


class _Captured:
    """Stands for a jitted function: a launch is noted."""

    def __init__(self, path: Path, kernel: Any) -> None:
        self.path, self.kernel = path, kernel

    def __getitem__(self, grid: tuple[Any, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            if len(grid) != 1:
                raise Unreadable("a launch whose programs have more than one number")
            given = dict(zip(self.kernel.arg_names, args, strict=False)) | options
            constants = {
                p.name: given.get(p.name, p.default if p.has_default else None)
                for p in self.kernel.params
                if p.is_constexpr
            }
            arguments: dict[str, Store | Poly] = {}
            for name in self.kernel.arg_names:
                if name not in constants:
                    x = given[name]
                    arguments[name] = x._store if isinstance(x, Symbolic) else _poly(x)
            self.path.launches.append(LaunchOf(self.kernel, _poly(grid[0]), arguments, constants))

        return launch
