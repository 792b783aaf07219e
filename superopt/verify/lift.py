"""What an emitted kernel computes: its Triton IR, run on symbols, as values over the reals.

Loops are solved by induction. An accumulator's value after some turns is taken to be the reduction,
over those turns, of what one turn adds to a neutral start, with the maxima of the moment in it;
that a turn keeps this is then a claim, to be proved like any other.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from superopt.mugraph.helpers import HELPERS, with_needed
from superopt.mugraph.ops import OPS
from superopt.verify.addresses import apart, indices, views
from superopt.verify.host import Store
from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    atoms_of,
    between,
    both,
    conjuncts,
    eq,
    le,
    lt,
    mapped,
    negation,
    poly,
    symbol,
)
from superopt.verify.laws import law
from superopt.verify.programs import Access, Loop, Piece, Pointer, Run, lane, lanes_within
from superopt.verify.reals import (
    Factor,
    Real,
    alone,
    changed,
    compares,
    cond_changed,
    extreme,
    factors_in,
    real,
    truth,
)
from superopt.verify.ttir import Op, Region, Unreadable
from superopt.verify.ttir import Value as Name
from superopt.verify.values import (
    HIGHEST,
    LOWEST,
    Value,
    add,
    apply,
    compare,
    is_nan,
    largest,
    multiply,
    number,
    reduce_over,
    select,
)

_UNDEFINED = count()
NEUTRAL = {"sum": number(0), "maximum": LOWEST, "minimum": HIGHEST}
KEPT = ("arith.extf", "arith.truncf")


@dataclass(frozen=True)
class Claim:
    """That two values are equal wherever a condition holds."""

    text: str
    given: Cond
    one: Value
    two: Value


@dataclass
class Written:
    """What a store writes, at the indices of its elements."""

    access: Access
    piece: Piece
    value: Value


@dataclass
class Lifted:
    """What a launch's programs store, and the claims about loops on which that rests."""

    stores: list[Written] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    states: dict[str, Value] = field(default_factory=dict)  # by name, over its lanes


@dataclass(frozen=True)
class Filled:
    """A temporary tensor: what its elements are, as a function of their indices."""

    names: tuple[str, ...]
    value: Value


class Lift(Run):
    """One piece of a launch, floats followed."""

    def __init__(
        self, piece: Piece, facts: Cond, prove: Callable[[Sequence[Cond], Cond], bool],
        tensors: Mapping[str, Store], temporaries: Mapping[str, Filled],
        functions: Mapping[str, Region], known: Mapping[str, str],
    ) -> None:  # fmt: skip
        super().__init__(piece, facts, prove)
        self.tensors, self.temporaries = tensors, temporaries
        self.functions, self.known = functions, known
        self.lifted = Lifted()
        self.watched: dict[Name, Value] = {}
        self.seen: dict[Name, Value] = {}
        self.missing = FALSE  # where a maximum's tile has no elements: taken to be everywhere
        self.firsts: list[tuple[Cond, Sequence[int]]] = []  # that maxima's tiles have an element
        self.masks: set[Cond] = set()  # where elements of maxima's tiles are -inf

    # -- values ----------------------------------------------------------------------------------

    def value(self, v: Name) -> Value:
        x = self.values[v]
        if isinstance(x, Poly):
            if any(a.kind == "unknown" for a in atoms_of(x)):
                raise Unreadable("an integer that is not followed")
            return Value(_of_poly(x))
        if isinstance(x, Cond):
            return Value(truth(x))
        if not isinstance(x, Value):
            raise Unreadable("a value that is not followed")
        return x

    def cond(self, v: Name) -> Cond:
        x = self.values[v]
        if not isinstance(x, Cond):
            raise Unreadable("a condition that is not followed")
        return x

    def op(self, op: Op) -> None:
        before = op.name.replace(".", "_")
        floats = any(isinstance(self.values.get(v), Value) for v in op.operands)
        if op.name in KEPT:
            self.values[op.results[0]] = self.values[op.operands[0]]
        elif (row := _ROWS.get(op.name)) is not None:
            self.values[op.results[0]] = apply(row, *map(self.value, op.operands))
        elif floats and op.name in _INTEGER:
            found = apply(_INTEGER[op.name], *map(self.value, op.operands))
            bits = int(op.results[0].type.element.removeprefix("i"))
            if _INTEGER[op.name] in ("add", "sub", "mul") and _reaches(found, bits - 2):
                raise Unreadable("a sum of integers that may overflow")
            self.values[op.results[0]] = found
        elif hasattr(self, f"_{before}") or not op.results or op.name.startswith(("tt.", "scf.")):
            super().op(op)
        else:
            super().op(op)
            if any(self.values[r] is None for r in op.results):
                raise Unreadable(f"{op.name} of floats is not followed")
        for r in op.results:
            x = self.values[r]
            if self.missing != FALSE and isinstance(x, Value):
                self.values[r] = self.without(x)
            if r in self.watched:
                self.seen[r] = self.value(r)
                self.values[r] = self.watched[r]

    def without(self, x: Value) -> Value:
        """A value where there are no elements."""
        if self.missing in (x.below, x.above):
            return LOWEST if self.missing == x.below else HIGHEST
        if x.real is None:
            return x
        there = {real(truth(c)) for c in conjuncts(negation(self.missing))}
        kept = [
            (p, c) for p, c in x.real.terms
            if not there <= {real(f) for f, _ in p if f.kind == "truth"}
        ]  # fmt: skip
        return Value(Real(tuple(kept)), x.below, x.above)

    def moved(self, v: Name, dims: Mapping[int, int | None]) -> Any:
        x = self.values[v]
        if not isinstance(x, Value):
            return super().moved(v, dims)

        change = {Atom("lane", (d,)): poly(0) if to is None else lane(to) for d, to in dims.items()}
        return x.changed(change)

    def _arith_constant(self, op: Op) -> Any:
        type_, text = op.results[0].type, op.attributes["value"]
        if type_.element.startswith("i"):
            return super()._arith_constant(op)
        text = text.removeprefix("dense<").split(">")[0].split(":")[0].strip()
        return number(_float(text, type_.element))

    def _ub_poison(self, op: Op) -> Any:
        return self.unknown(op.results[0])

    def _arith_sitofp(self, op: Op) -> Any:
        super()._arith_sitofp(op)
        return self.signed(op.operands[0])

    def _arith_uitofp(self, op: Op) -> Any:
        return self.unsigned(op.operands[0])

    def _arith_bitcast(self, op: Op) -> Any:
        (one,), (two,) = op.operands, op.results
        if one.type != two.type:
            raise Unreadable("the bits of one type are taken for another's")
        return self.values[one]

    def _arith_fptosi(self, op: Op) -> Any:
        return apply("trunc", self.value(op.operands[0]))

    def _arith_extsi(self, op: Op) -> Any:
        x = self.signed(op.operands[0])
        return x if isinstance(self.values[op.operands[0]], Value) else super()._arith_extsi(op)

    def _arith_extui(self, op: Op) -> Any:
        x = self.values[op.operands[0]]
        if isinstance(x, Cond) and not compares(x):
            return super()._arith_extui(op)
        found = self.unsigned(op.operands[0])
        return found if isinstance(x, Value | Cond) else x

    def _arith_trunci(self, op: Op) -> Any:
        if isinstance(self.values[op.operands[0]], Value):
            raise Unreadable("an integer made of floats is cut")
        return super()._arith_trunci(op)

    def signed(self, v: Name) -> Value:
        """A value of signed integers; bytes without a sign are none."""
        x = self.values[v]
        if isinstance(x, Poly) and self.bytes_in(x):
            raise Unreadable("unsigned bytes are taken for signed ones")
        return self.value(v)

    def unsigned(self, v: Name) -> Value:
        """A value of integers that are not negative, whatever their type."""
        x, found = self.values[v], self.value(v)
        if isinstance(x, Poly):
            byte = x.atom is not None and self.bytes_in(x)
            known = byte or self.holds(le(0, x), v.type.shape)
        else:
            known = found.real is not None and found.real * found.real == found.real  # 0 or 1
        if not known:
            raise Unreadable("integers that may be negative are taken for unsigned ones")
        return found

    def bytes_in(self, x: Poly) -> bool:
        read = [a.args[0] for a in atoms_of(x) if a.kind == "loaded"]
        return any(str(self.tensors[t].dtype).endswith("uint8") for t in read)

    def _arith_cmpf(self, op: Op) -> Any:
        name = op.number("predicate")
        a, b = map(self.value, op.operands)
        match name:
            case 1 | 8:
                return compare("eq", a, b)
            case 2 | 9:
                return compare("lt", b, a)
            case 3 | 10:
                return compare("le", b, a)
            case 4 | 11:
                return compare("lt", a, b)
            case 5 | 12:
                return compare("le", a, b)
            case 6 | 13:
                return negation(compare("eq", a, b))
            case 7 | 14:
                nan = is_nan(a) or is_nan(b)
                return TRUE if nan == (name == 14) else FALSE
        raise Unreadable("a comparison that is not followed")

    def _arith_cmpi(self, op: Op) -> Any:
        if not any(isinstance(self.values[v], Value) for v in op.operands):
            return self.decided(super()._arith_cmpi(op))
        a, b = map(self.value, op.operands)
        predicates = {
            0: lambda: compare("eq", a, b), 1: lambda: negation(compare("eq", a, b)),
            2: lambda: compare("lt", a, b), 3: lambda: compare("le", a, b),
            4: lambda: compare("lt", b, a), 5: lambda: compare("le", b, a),
        }  # fmt: skip
        if op.number("predicate") not in predicates:
            raise Unreadable("an unsigned comparison of values")
        return predicates[op.number("predicate")]()

    def decided(self, c: Any) -> Any:
        """A condition on the program alone, or TRUE or FALSE where that follows."""
        if not isinstance(c, Cond) or any(a.kind in ("lane", "loaded") for a in atoms_of(c)):
            return c
        return TRUE if self.holds(c) else FALSE if self.holds(negation(c)) else c

    def _arith_select(self, op: Op) -> Any:
        c, one, two = (self.values[v] for v in op.operands)
        mixed = isinstance(c, Cond) and compares(c) and isinstance(one, Poly)
        if isinstance(one, Value) or isinstance(two, Value) or mixed:
            a, b = map(self.value, op.operands[1:])
            c = self.cond(op.operands[0])
            if self.missing != FALSE and set(conjuncts(negation(self.missing))) <= {*conjuncts(c)}:
                return b
            return select(c, a, b)
        return super()._arith_select(op)

    def _math_fma(self, op: Op) -> Any:
        a, b, c = map(self.value, op.operands)
        return add(multiply(a, b), c)

    def _tt_bitcast(self, op: Op) -> Any:
        if isinstance(self.values[op.operands[0]], Value):
            raise Unreadable("the bits of a float")
        return super()._tt_bitcast(op)

    def _tt_reshape(self, op: Op) -> Any:
        moved = super()._tt_reshape(op)
        if moved is None:
            raise Unreadable("a reshape that moves elements")
        return moved

    def _tt_call(self, op: Op) -> None:
        name = op.attributes["callee"].strip('@"')
        short = name.split("__")[0].rsplit(".", 1)[-1] if "__" in name else name
        row = self.known.get(short)
        integers = all(isinstance(self.values[v], Poly) for v in op.operands)
        if row is not None and len(op.operands) == OPS[row].arity and not integers:
            self.values[op.results[0]] = apply(row, *map(self.value, op.operands))
            return
        body = self.functions.get(name)
        if body is None:
            raise Unreadable(f"a call of {short}, which is not there")
        found = self.region(body, [self.values[v] for v in op.operands])
        for r, v in zip(op.results, found, strict=True):
            self.values[r] = self.values[v]

    # -- memory ----------------------------------------------------------------------------------

    def places(self, access: Access) -> tuple[Poly, ...]:
        store = self.tensors[access.tensor]
        for seen in views(store):
            found = indices(access.offset, seen)
            if found is not None and (store.is_input or self.inside(access, found, seen)):
                return apart(found, store, seen)
        raise Unreadable(f"the indices of {access.name} are not known")

    def inside(self, access: Access, at: Sequence[Poly], seen: Store) -> bool:
        """That these are the indices, which the claims on addresses need not say of loads."""
        inside = both(*map(partial(between, 0), at, seen.shape))
        return self.prove([self.given, access.facts], inside)

    def _tt_load(self, op: Op) -> Any:
        mask = self.cond(op.operands[1]) if len(op.operands) > 1 else TRUE
        access, (result,) = self.access("load", op, mask), op.results
        at = self.places(access)
        other: Any = self.values[op.operands[2]] if len(op.operands) > 2 else None
        if access.tensor not in self.temporaries and not self.tensors[access.tensor].is_input:
            raise Unreadable(f"{access.tensor} is read where it is written")
        if access.tensor in self.temporaries:
            if other is not None:
                other = self.value(op.operands[2])
            filled = self.temporaries[access.tensor]
            change = dict(zip((Atom("symbol", (n,)) for n in filled.names), at, strict=True))
            read: Any = filled.value.changed(change)
        elif result.type.element.startswith("i"):
            read = poly(Atom("loaded", (access.tensor, at)))
            if mask == TRUE:
                return read if result.type.element != "i1" else negation(eq(read, 0))
            if isinstance(other, Poly):
                return poly(Atom("choice", (mask, read, other)))
            return super().unknown(result)
        else:
            read = Value(real(Factor("load", (access.tensor, at))))
        if mask == TRUE:
            return read
        if other is None:
            anything = Factor("load", (f"undefined!{next(_UNDEFINED)}", at))
            other = Value(real(anything))
        return select(mask, read, other)

    def _tt_store(self, op: Op) -> None:
        mask = self.cond(op.operands[2]) if len(op.operands) > 2 else TRUE
        access = self.access("store", op, mask)
        self.lifted.stores.append(Written(access, self.piece, self.value(op.operands[1])))

    def access(self, kind: str, op: Op, mask: Any) -> Access:
        pointer = self.values[op.operands[0]]
        if not isinstance(pointer, Pointer):
            raise Unreadable(f"a {kind} whose address is not followed")
        return Access(
            kind, f"{kind} of {pointer.tensor}", pointer.tensor, pointer.offsets,
            mask, self.path, op.operands[0].type.shape, self.loops,
        )  # fmt: skip

    # -- reductions ------------------------------------------------------------------------------

    def _tt_dot(self, op: Op) -> Any:
        a, b, c = map(self.value, op.operands)
        (rank, length) = len(op.operands[0].type.shape), op.operands[0].type.shape[-1]
        name = f"k!{next(self.numbers)}"
        k = symbol(name)
        left = a.changed({Atom("lane", (rank - 1,)): k})
        right = b.changed({Atom("lane", (rank - 2,)): k})  # those before are the batch's
        summed = reduce_over("sum", [name], between(0, k, length), multiply(left, right))
        return add(c, summed)

    def _tt_reduce(self, op: Op) -> None:
        if len(op.operands) != 1:
            raise Unreadable("a reduction of several values")
        kind = self.combined(op.regions[0])
        axis, shape = op.number("axis"), op.operands[0].type.shape
        name = f"k!{next(self.numbers)}"
        dims = {d: poly(Atom("lane", (d - 1,))) for d in range(axis + 1, len(shape))}
        dims[axis] = symbol(name) if shape[axis] > 1 else poly(0)
        change = {Atom("lane", (d,)): to for d, to in dims.items()}
        moved = self.value(op.operands[0]).changed(change)
        domain = between(0, symbol(name), shape[axis])
        own = self.value(op.operands[0])
        self.masks |= {own.below, own.above} - {TRUE, FALSE}
        if kind in ("maximum", "minimum"):
            self.something(own, axis, shape)
        self.values[op.results[0]] = (
            reduce_over(kind, [name], domain, moved) if shape[axis] > 1 else moved
        )

    def something(self, x: Value, axis: int, shape: Sequence[int]) -> None:
        """That a maximum's tile has its first element: noted in a loop, to be known elsewhere.

        Masks that depend on data are excused there: as in the spec, they may leave nothing.
        """
        along = Atom("lane", (axis,))
        parts = conjuncts(both(negation(x.below), negation(x.above)))
        parts = tuple(c for c in parts if along.key in c.names)
        if self.loops:
            self.firsts.append((cond_changed(both(*parts), {along: poly(0)}), shape))
            return
        plain = both(*(c for c in parts if not compares(c) and not _of_data(c)))
        if not self.holds(mapped(plain, {along: poly(0)}.get), shape):
            raise Unreadable("a maximum that may be over nothing")

    def combined(self, region: Region) -> str:
        """The monoid of a reduction's function of two: known by what it gives of two symbols."""
        two = [real(Factor("state", (f"reduced!{n}", ()))) for n in range(2)]
        (result,) = self.region(region, [Value(x) for x in two])
        known = {
            two[0] + two[1]: "sum", two[0] * two[1]: "prod",
            extreme("maximum", *two): "maximum", extreme("minimum", *two): "minimum",
        }  # fmt: skip
        kind = known.get(self.value(result).finite)
        if kind is None:
            raise Unreadable("a reduction by an unknown function")
        return kind

    # -- loops -----------------------------------------------------------------------------------

    def _scf_for(self, op: Op) -> None:
        start, end, step = map(self.exact, op.operands[:3])
        if not self.holds(lt(0, step)):
            raise Unreadable(f"a loop's step, {step}, is not known to be positive")
        number_ = next(self.numbers)
        loop = Loop(Atom("symbol", (f"turn!{number_}",)), start, end, step)
        Solved(self, op, loop, f"loop {number_}").run()


class Solved:
    """A loop and its accumulators.

    Statistics are maxima and minima of what the loop does not accumulate. All others follow them:
    after some turns they are the reduction of what each turn adds, by the statistics of the moment.
    Of a sum that holds whatever these are. An index follows only its own maximum: there they are
    written out, over the turns so far.
    """

    def __init__(self, lift: Lift, op: Op, loop: Any, name: str) -> None:
        self.lift, self.op, self.loop, self.name = lift, op, loop, name
        self.region = op.regions[0]
        self.yields = self.region.ops[-1].operands
        self.shapes = [r.type.shape for r in op.results]
        self.kinds: list[str] = []
        self.statistics: set[int] = set()
        self.followed: set[int] = set()  # statistics, and sums by which a turn adds to others

    def held(self, when: str, n: int) -> Real:
        lanes = tuple(lane(d) if size > 1 else poly(0) for d, size in enumerate(self.shapes[n]))
        return real(Factor("state", (f"{self.name} {when} {n}", lanes)))

    def turn(self, states: Sequence[Value], after: Sequence[Value] = ()) -> list[Value]:
        """What a turn makes of accumulators; those it makes stand as `after` in each other."""
        lift = self.lift
        outer, lift.loops = lift.loops, (*lift.loops, self.loop)
        watched, seen = lift.watched, lift.seen
        after = after or [Value(self.held("after", n)) for n in range(len(self.yields))]
        lift.watched = dict(zip(self.yields, after, strict=True))
        lift.seen = {}
        lift.region(self.region, [self.loop.index, *states])
        made = [lift.seen[v] if v in lift.seen else lift.value(v) for v in self.yields]
        lift.loops, lift.watched, lift.seen = outer, watched, seen
        return made

    def run(self) -> None:
        lift = self.lift
        inits = [lift.value(v) for v in self.op.operands[3:]]
        stores = len(lift.lifted.stores)
        made = self.turn([Value(self.held("before", n)) for n in range(len(inits))])
        if not inits:
            return
        if not law("induction"):
            raise Unreadable("a loop, without induction")
        if len(lift.lifted.stores) > stores:
            raise Unreadable("a store in a loop that accumulates")
        self.kinds = [self.kind(n, v) for n, v in enumerate(made)]
        self.statistics = {n for n, v in enumerate(made) if self.gathers(n, v)}
        lift.masks, lift.firsts = set(), []
        self.added = self.turn([NEUTRAL[k] for k in self.kinds])
        self.followed = self.statistics | set(self.sums_followed())
        self.start = self.starts(inits)
        self.first(inits)
        self.claims(made)
        self.empty()
        for n, r in enumerate(self.op.results):
            lift.values[r] = self.result(n)

    def empty(self) -> None:
        """Claims that a turn whose tile is masked whole changes no accumulator, nor its start.

        Where each turn has an element, there are none.
        """
        lift = self.lift
        given = (lift.given, lift.path, self.loop.fact)
        full = (lift.prove([*given, lanes_within(s)], c) for c, s in lift.firsts)
        if all(full):
            return
        if len(lift.masks) != 1:
            raise Unreadable("a maximum in a loop that may be over nothing")
        outer, lift.missing = lift.missing, next(iter(lift.masks))
        neutral = [NEUTRAL[k] for k in self.kinds]
        before = [Value(self.held("before", n)) for n in range(len(self.kinds))]
        for states in (neutral, before):
            for n, v in enumerate(self.turn(states, states)):
                text = f"{self.name}: accumulator {n} is left by a turn without elements"
                want = states[n]
                if states is neutral:  # infinities among them
                    text, v, want = f"{text}, at its start", _truth(v == want), _truth(True)
                lift.lifted.claims.append(Claim(text, both(*given), v, want))
        lift.missing = outer

    def kind(self, n: int, made: Value) -> str:
        (before,) = self.held("before", n).factors
        for kind in ("maximum", "minimum"):
            for f in made.finite.factors:
                if f.kind == kind and any(before in a.factors for a in f.args):
                    return kind
        return "sum"

    def gathers(self, n: int, made: Value) -> bool:
        """Whether it is a statistic: the maximum of itself and of what a turn adds."""
        before, kind = self.held("before", n), self.kinds[n]
        return any(f.kind == kind and before in f.args for f in made.finite.factors)

    def sums_followed(self) -> Iterator[int]:
        mark = f"{self.name} after "
        for n, v in enumerate(self.added):
            inside = factors_in([v.real] if v.real is not None else [])
            states = (f.args[0] for f in inside if f.kind == "state")
            others = {int(name.removeprefix(mark)) for name in states if name.startswith(mark)}
            yield from (m for m in others - {n} if self.kinds[m] == "sum")

    def starts(self, inits: Sequence[Value]) -> list[Real | None]:
        """What accumulators are at first, in terms of those that they follow, as these are then;
        None where neutral."""
        results: list[Real | None] = []
        followed = {
            n: f
            for n, v in enumerate(inits)
            if n in self.followed and v.below == v.above == FALSE and v.real is not None
            and (f := alone(v.real)) is not None and f.kind == "state"
        }  # fmt: skip
        for n, v in enumerate(inits):
            if v == NEUTRAL[self.kinds[n]]:
                results.append(None)
                continue
            others = {f: self.held("now", m) for m, f in followed.items() if m != n}
            results.append(_placed(v.finite, others))
        return results

    def closed(self, n: int, until: Cond, bound: str, now: Callable[[int], Real]) -> Real:
        """Accumulator n after the turns `bound` for which `until` holds; statistics are `now`."""
        at = {self.loop.turn: symbol(bound)}

        def placed(f: Factor) -> Real | None:
            return self.state_of(f, "after", now)

        def first(f: Factor) -> Real | None:
            return self.state_of(f, "now", now)

        body = self.added[n].changed(at).changed({}, placed)
        found = reduce_over(self.kinds[n], [bound], both(le(0, symbol(bound)), until), body)
        start = self.start[n]
        if start is None:
            return found.finite
        own = changed(start, {}, first)
        if self.kinds[n] == "sum":
            return own + found.finite
        return extreme(self.kinds[n], own, found.finite)

    def state_of(self, f: Factor, when: str, values: Callable[[int], Real]) -> Real | None:
        """What stands for one of this loop's accumulators, at its lanes."""
        if f.kind != "state" or not f.args[0].startswith(f"{self.name} {when} "):
            return None
        n = int(f.args[0].rsplit(" ", 1)[1])
        change = {Atom("lane", (d,)): to for d, to in enumerate(f.args[1])}
        return changed(values(n), change)

    def before(self, n: int) -> Real:
        """Accumulator n before the turn; of a statistic, its symbol."""
        return self.held("before", n) if n in self.statistics else self.so_far(n, self.before)

    def after(self, n: int) -> Real:
        """The same after the turn."""
        if n in self.statistics:
            return self.held("after", n)
        return self.with_turn(n, self.so_far(n, self.after))

    def so_far(self, n: int, now: Callable[[int], Real]) -> Real:
        """Accumulator n before the turn, where statistics are `now`."""
        until = lt(symbol(f"n!{self.name}"), poly(self.loop.turn))
        return self.closed(n, until, f"n!{self.name}", now)

    def with_turn(self, n: int, before: Real | None) -> Real:
        """Accumulator n after a turn, of what it was before: None where that is neutral."""
        added = changed(self.added[n].finite, {}, lambda f: self.state_of(f, "after", self.after))
        if before is None:
            return added
        return before + added if self.kinds[n] == "sum" else extreme(self.kinds[n], before, added)

    def written_out(self, x: Real) -> Real:
        """The value with statistics as the maxima and minima that they are."""

        def states(f: Factor) -> Real | None:
            found = self.state_of(f, "before", lambda n: self.so_far(n, self.before))
            if found is not None:
                return found
            return self.state_of(
                f, "after", lambda n: self.with_turn(n, self.so_far(n, self.before))
            )

        return changed(x, {}, states)

    def first(self, inits: Sequence[Value]) -> None:
        """Claims that the first turn adds to what accumulators are before it.

        Later turns begin with statistics that are numbers; this one need not. Where nothing is
        accumulated yet, what it makes is what a turn adds.
        """
        if all(v == NEUTRAL[k] for v, k in zip(inits, self.kinds, strict=True)):
            return
        infinite = any(inits[n] == NEUTRAL[self.kinds[n]] for n in self.statistics)
        made, at = self.turn(inits), {self.loop.turn: poly(0)}
        given = both(self.lift.given, self.lift.path, mapped(self.loop.fact, at.get))
        for n, v in enumerate(made):
            if n in self.statistics:
                if infinite and v != largest(self.kinds[n], inits[n], self.added[n]):
                    raise Unreadable("a maximum of something else in the first turn")
                continue
            if self.kinds[n] == "sum" and not infinite:
                continue
            start, begun = self.start[n], None
            if start is not None:
                begun = changed(start, {}, lambda f: self.state_of(f, "now", self.after))
            own = changed(v.finite, {}, lambda f: self.state_of(f, "after", self.after))
            one, two = (Value(changed(x, at)) for x in (own, self.with_turn(n, begun)))
            text = f"{self.name}: accumulator {n} is what the first turn adds"
            self.lift.lifted.claims.append(Claim(text, given, one, two))

    def claims(self, made: Sequence[Value]) -> None:
        given = both(self.lift.given, self.lift.path, self.loop.fact)
        for n, v in enumerate(made):
            text = f"{self.name}: accumulator {n} is kept by a turn"
            if n in self.statistics:
                added = self.added[n].real
                if added is None:
                    raise Unreadable("a turn that adds NaN")
                states_ = [f for f in factors_in([added]) if f.kind == "state"]
                if any(f.args[0].startswith(f"{self.name} ") for f in states_):
                    raise Unreadable("a maximum of what the loop accumulates")
                claimed = largest(self.kinds[n], Value(self.held("before", n)), self.added[n])
                self.lift.lifted.claims.append(Claim(text, given, v, claimed))
                continue

            def states(f: Factor) -> Real | None:
                found = self.state_of(f, "before", self.before)
                return found if found is not None else self.state_of(f, "after", self.after)

            one, two, known = changed(v.finite, {}, states), self.after(n), given
            if self.kinds[n] != "sum":
                one, two = map(self.written_out, (one, two))
                known = both(given, le(1, poly(self.loop.turn)))
            self.lift.lifted.claims.append(Claim(text, known, Value(one), Value(two)))

    def result(self, n: int) -> Value:
        until = lt(self.loop.start + self.loop.step * symbol(f"n!{self.name}"), self.loop.end)
        final = self.closed(n, until, f"n!{self.name}", self.final)
        goes_on = self.start[n] is not None and not self.statistics  # from a sum of another loop
        if n not in self.followed and (self.kinds[n] != "sum" or not goes_on):
            return Value(final)
        held = self.held("end", n)
        (f,) = held.factors
        self.lift.lifted.states[f.args[0]] = Value(final)
        return Value(held)

    def final(self, n: int) -> Real:
        if n in self.followed:
            return self.held("end", n)
        until = lt(self.loop.start + self.loop.step * symbol(f"n!{self.name}"), self.loop.end)
        return self.closed(n, until, f"n!{self.name}", self.final)


def _placed(x: Real, statistics: Mapping[Factor, Real]) -> Real:
    """The value with statistics of an earlier loop replaced, at whatever lanes they stand."""
    names = {f.args[0]: (f.args[1], to) for f, to in statistics.items() if f.kind == "state"}

    def states(f: Factor) -> Real | None:
        if f.kind != "state" or f.args[0] not in names:
            return None
        own, to = names[f.args[0]]
        change = {next(iter(p.atoms)): q for p, q in zip(own, f.args[1], strict=True) if p.atoms}
        return changed(to, change)

    return changed(x, {}, states)


def _truth(c: bool) -> Value:
    return Value(real(int(c)))


def _reaches(x: Value, bits: int) -> bool:
    """Whether a constant of so many bits is in it: of what is told where there is no index."""
    inside = [a for f in factors_in([x.finite]) for a in f.args if isinstance(a, Real)]
    return any(abs(c) >= 1 << bits for r in (x.finite, *inside) for _, c in r.terms)


def _of_data(c: Cond) -> bool:
    return any(a.kind in ("loaded", "unknown") for a in atoms_of(c))


def _of_poly(x: Poly) -> Real:
    """Integers as reals; a choice by comparisons of values as one."""

    def change(f: Factor) -> Real | None:
        a = f.args[0].atom if f.kind == "integer" else None
        if a is None or a.kind != "choice":
            return None
        c, one, two = a.args
        return select(c, Value(_of_poly(one)), Value(_of_poly(two))).finite

    return changed(real(x), {}, change)


_ROWS = {
    "arith.addf": "add", "arith.subf": "sub", "arith.mulf": "mul", "arith.divf": "div",
    "arith.negf": "neg", "arith.remf": "fmod", "arith.maximumf": "maximum",
    "arith.minimumf": "minimum", "arith.maxnumf": "maximum", "arith.minnumf": "minimum",
    "math.exp": "exp", "math.exp2": "exp2", "math.log": "log", "math.log2": "log2",
    "math.sqrt": "sqrt", "math.rsqrt": "rsqrt", "math.erf": "erf", "math.absf": "abs",
    "math.sin": "sin", "math.cos": "cos", "math.floor": "floor", "math.ceil": "ceil",
    "tt.precise_sqrt": "sqrt", "tt.precise_divf": "div",
}  # fmt: skip
_INTEGER = {
    "arith.addi": "add", "arith.subi": "sub", "arith.muli": "mul", "arith.maxsi": "maximum",
    "arith.minsi": "minimum",
}  # fmt: skip
_FORMATS = {"f16": ("<H", "<e"), "f32": ("<I", "<f"), "f64": ("<Q", "<d")}


def _float(text: str, element: str) -> float:
    """A constant as MLIR prints it: decimal, or its bits in hexadecimal."""
    if not text.startswith("0x"):
        return float(text)
    bits = int(text, 16)
    if element == "bf16":
        bits, element = bits << 16, "f32"
    if element not in _FORMATS:
        raise Unreadable(f"a constant of type {element}")
    whole, floating = _FORMATS[element]
    return float(struct.unpack(floating, struct.pack(whole, bits))[0])


def rows_by_helper(module: Any) -> dict[str, str]:
    """Functions of a kernel.py that are the emitter's own helpers, word for word: their rows.

    Each must be defined once, call none but such, and mean by `tl` what the emitter does.
    """
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    spelt = {row.triton.split("(")[0]: row.name for row in OPS.values()}
    tree = ast.parse(Path(module.__file__).read_text())
    defined = [d for d in ast.walk(tree) if isinstance(d, ast.FunctionDef)]
    found, same = {}, set()
    for name, text in HELPERS.items():
        row, own = spelt.get(name.removesuffix("_int")), getattr(module, name, None)
        theirs = [d for d in defined if d.name == name or d.name.startswith(f"{name}__")]
        ours = [d for d in ast.walk(ast.parse(text)) if isinstance(d, ast.FunctionDef)]
        if not isinstance(own, JITFunction) or own.fn.__globals__.get("tl") is not tl:
            continue
        if row is not None:
            found[name] = row
        if len(theirs) == len(ours) and all(map(_same, ours, theirs)):
            same.add(name)
    return {n: r for n, r in found.items() if set(with_needed({n})) <= same}


def _same(one: ast.FunctionDef, two: ast.FunctionDef) -> bool:
    return ast.dump(ast.Module(one.body, [])) == ast.dump(ast.Module(two.body, [])) and (
        ast.dump(one.args) == ast.dump(two.args) and one.name == two.name
    )
