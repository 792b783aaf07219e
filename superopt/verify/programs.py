"""What the programs of a launch touch: Triton's IR run on symbols, one program and lane for all.

Integers are polynomials over extents, strides, the program's coordinates, turns of loops and lanes
of tiles; floats are not followed. The number of a program is split into coordinates where the
kernel divides it by what divides the number of programs: pid // blocks_n, pid % blocks_n become two
coordinates, each with its extent. A split of a range is a bijection onto its parts, so what holds
for all coordinates holds for all programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeVar

from superopt.verify.integers import (
    FALSE,
    TRUE,
    Atom,
    Cond,
    Poly,
    between,
    both,
    either,
    eq,
    extreme_of,
    le,
    lt,
    mapped,
    negation,
    poly,
    product,
)
from superopt.verify.ttir import Op, Region, Unreadable, Value

T = TypeVar("T")
INT32 = 1 << 31
Prove = Callable[[Sequence[Cond], Cond], bool]


@dataclass(frozen=True)
class Pointer:
    """A tensor's first element, and offsets in elements, each computed in so many bits."""

    tensor: str
    offsets: tuple[tuple[Poly, int], ...] = ()


@dataclass(frozen=True)
class Loop:
    """`start + turn * step` for turns from 0 while that is below `end`."""

    turn: Atom
    start: Poly
    end: Poly
    step: Poly

    @property
    def index(self) -> Poly:
        return self.start + self.step * poly(self.turn)

    @property
    def fact(self) -> Cond:
        return both(le(0, poly(self.turn)), lt(self.index, self.end))


@dataclass(frozen=True)
class Access:
    """A load or store of a tile. `path`: the conditions under which it is met."""

    kind: str
    name: str
    tensor: str
    offsets: tuple[tuple[Poly, int], ...]
    mask: Cond
    path: Cond
    lanes: tuple[int, ...]
    loops: tuple[Loop, ...]

    @property
    def offset(self) -> Poly:
        return sum((o for o, _ in self.offsets), poly(0))

    def mapped(self, change: Callable[[Atom], Poly | None]) -> Access:
        """The access with atoms replaced; its offsets stay."""
        mask, path = mapped((self.mask, self.path), change)
        loops = tuple(Loop(r.turn, *mapped((r.start, r.end, r.step), change)) for r in self.loops)
        return replace(self, mask=mask, path=path, loops=loops)

    @property
    def facts(self) -> Cond:
        """What holds where the access is made, for each of its elements."""
        return both(
            self.path, self.mask, lanes_within(self.lanes), *(loop.fact for loop in self.loops)
        )


@dataclass(frozen=True)
class Demand:
    """What the machine's arithmetic must keep to be that of the integers."""

    text: str
    given: Cond
    claim: Cond


@dataclass
class Piece:
    """Some of a launch's programs, in coordinates: `number` is the program's, of these."""

    number: Poly
    coordinates: dict[Atom, Poly]

    @property
    def facts(self) -> Cond:
        return both(*(between(0, poly(a), extent) for a, extent in self.coordinates.items()))


@dataclass(eq=False)
class Touched:
    """All that one piece of a launch touches."""

    piece: Piece
    accesses: list[Access] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)


def lane(dim: int) -> Poly:
    return poly(Atom("lane", (dim,)))


def lanes_within(shape: Sequence[int]) -> Cond:
    return both(*(between(0, lane(d), n) for d, n in enumerate(shape)))


class Split(Exception):
    """A coordinate is to become two: the quotient and remainder by a divisor of its extent."""

    def __init__(self, coordinate: Atom, divisor: Poly) -> None:
        self.coordinate, self.divisor = coordinate, divisor


class Cut(Exception):
    """Programs below a number do other things than the rest."""

    def __init__(self, at: Poly) -> None:
        self.at = at


def touched(
    body: Region, arguments: Sequence[Poly | str], programs: Poly, facts: Cond, prove: Prove
) -> list[Touched]:
    """What a launch of `programs` programs touches, piece by piece.

    `arguments`: a tensor's name for a pointer, a polynomial for an integer; `facts` hold of them.
    Raises Unreadable where the kernel does what is not followed.
    """

    def run(piece: Piece) -> Touched:
        made = Run(piece, facts, prove)
        made.region(body, list(arguments))
        return made.touched

    return by_piece(programs, facts, prove, run)


def by_piece(programs: Poly, facts: Cond, prove: Prove, run: Callable[[Piece], T]) -> list[T]:
    """What `run` gives for each piece of a launch; it may raise Split or Cut, and is run again."""
    names = count()
    first = Atom("symbol", (f"pid!{next(names)}",))
    waiting, done = [Piece(poly(first), {first: programs})], []
    while waiting:
        piece = _without_single(waiting.pop())
        try:
            done.append(run(piece))
        except Split as s:
            extent = piece.coordinates.pop(s.coordinate)
            outer, inner = (Atom("symbol", (f"pid!{next(names)}",)) for _ in range(2))
            piece.coordinates |= {outer: extent.split(s.divisor)[0], inner: s.divisor}
            both_parts = poly(outer) * s.divisor + poly(inner)
            number = mapped(piece.number, {s.coordinate: both_parts}.get)
            waiting.append(Piece(number, piece.coordinates))
        except Cut as c:
            ((coordinate, extent),) = piece.coordinates.items()
            below = c.at - (piece.number - poly(coordinate))
            if not prove([facts], both(le(0, below), le(below, extent))):
                raise Unreadable(f"{c.at} may be more than the programs there are") from None
            rest = Atom("symbol", (f"pid!{next(names)}",))
            waiting.append(Piece(c.at + poly(rest), {rest: extent - below}))
            waiting.append(Piece(piece.number, {coordinate: below}))
    return done


def _without_single(piece: Piece) -> Piece:
    """The piece without coordinates that can only be 0."""
    single = {a: poly(0) for a, extent in piece.coordinates.items() if extent.number == 1}
    left = {a: e for a, e in piece.coordinates.items() if a not in single}
    return Piece(mapped(piece.number, single.get), left)


Known = Poly | Cond | Pointer | None  # None: a float, not followed


class Run:
    """One piece of a launch, operation by operation."""

    def __init__(self, piece: Piece, facts: Cond, prove: Prove) -> None:
        self.touched = Touched(piece)
        self.piece = piece
        self.given = both(facts, piece.facts)
        self.prove = prove
        self.values: dict[Value, Any] = {}  # Known, and what a subclass follows
        self.path = TRUE
        self.loops: tuple[Loop, ...] = ()
        self.numbers = count()

    # -- what is known ---------------------------------------------------------------------------

    def holds(self, claim: Cond, shape: Sequence[int] = ()) -> bool:
        facts = [self.given, self.path, *(loop.fact for loop in self.loops), lanes_within(shape)]
        return self.prove(facts, claim)

    def demand(self, text: str, claim: Cond, shape: Sequence[int]) -> None:
        given = both(self.path, lanes_within(shape), *(loop.fact for loop in self.loops))
        asked = Demand(text, given, claim)
        if claim != TRUE and asked not in self.touched.demands:
            self.touched.demands.append(asked)

    def exact(self, v: Value) -> Poly:
        """An integer that the machine must hold as it is: what follows is no ring operation."""
        x = self.values[v]
        if not isinstance(x, Poly):
            raise Unreadable("an operation on integers has an operand that is not followed")
        if not _held(x):
            self.fits(x, v)
        return x

    def fits(self, x: Poly, v: Value) -> None:
        width = int(v.type.element[1:])
        limit = 1 << width - 1
        self.demand(f"{x} fits {width} bits", between(-limit, x, limit), v.type.shape)

    def unknown(self, v: Value) -> Known:
        if not v.type.element.startswith("i"):
            return None
        lanes = tuple(map(lane, range(len(v.type.shape))))
        anything = poly(Atom("unknown", (str(next(self.numbers)), lanes)))
        return eq(anything, 0) if v.type.element == "i1" else anything

    # -- running ---------------------------------------------------------------------------------

    def region(self, region: Region, arguments: Sequence[Any]) -> list[Value]:
        """Run a region; what its last operation yields. A branch may be empty."""
        for value, given in zip(region.args, arguments, strict=True):
            self.values[value] = Pointer(given) if isinstance(given, str) else given
        for op in region.ops[:-1]:
            self.op(op)
        return region.ops[-1].operands if region.ops else []

    def op(self, op: Op) -> None:
        if HINTS & op.attributes.keys():
            raise Unreadable(f"{op.name} has a hint, which is believed unseen")
        run = getattr(self, "_" + op.name.replace(".", "_"), None)
        if run is not None:
            result = run(op)
            if op.results and op.name not in _STRUCTURES:
                self.values[op.results[0]] = result
            return
        pure = op.results and not op.regions and not op.name.startswith(_MEMORY)
        pure = pure and op.attributes.get("pure", "true") == "true"
        if not pure and op.name not in _HARMLESS:
            raise Unreadable(f"{op.name} is not followed")
        for r in op.results:
            if r.type.pointee:
                raise Unreadable(f"{op.name} makes a pointer")
            self.values[r] = self.unknown(r)

    def moved(self, v: Value, dims: Mapping[int, int | None]) -> Known:
        """A value whose lanes have other dimensions; None for one that is always 0."""

        def change(a: Atom) -> Poly | None:
            if a.kind != "lane":
                return None
            to = dims[a.args[0]]
            return poly(0) if to is None else lane(to)

        x = self.values[v]
        if isinstance(x, Pointer):
            return Pointer(x.tensor, tuple((mapped(o, change), w) for o, w in x.offsets))
        return None if x is None else mapped(x, change)

    # -- shapes ----------------------------------------------------------------------------------

    def _tt_splat(self, op: Op) -> Any:
        return self.values[op.operands[0]]

    def _tt_broadcast(self, op: Op) -> Known:
        before = op.operands[0].type.shape
        return self.moved(op.operands[0], {d: None if n == 1 else d for d, n in enumerate(before)})

    def _tt_expand_dims(self, op: Op) -> Known:
        at, rank = op.number("axis"), len(op.operands[0].type.shape)
        return self.moved(op.operands[0], {d: d + (d >= at) for d in range(rank)})

    def _tt_trans(self, op: Op) -> Known:
        text = op.attributes["order"]
        order = [int(n) for n in text[text.index(":") + 1 : text.index(">")].split(",")]
        return self.moved(op.operands[0], {d: order.index(d) for d in range(len(order))})

    def _tt_reshape(self, op: Op) -> Known:
        (before,), (after,) = op.operands, op.results
        wide = [[d for d, n in enumerate(v.type.shape) if n > 1] for v in (before, after)]
        kept = [before.type.shape[d] for d in wide[0]] == [after.type.shape[d] for d in wide[1]]
        if not kept or "allow_reorder" in op.attributes:
            return self.unknown(after)
        to: dict[int, int | None] = dict.fromkeys(range(len(before.type.shape)))
        return self.moved(before, to | dict(zip(*wide, strict=True)))

    def _tt_make_range(self, op: Op) -> Known:
        low, high = op.number("start"), op.number("end")
        return lane(0) + low if high - low > 1 else poly(low)

    def _tt_bitcast(self, op: Op) -> Any:
        one, two = op.operands[0].type, op.results[0].type
        if one.pointee == "i1" and two.pointee == "i8":
            return self.values[op.operands[0]]
        if two.pointee:
            raise Unreadable("a pointer to one type is taken for one to another")
        return self.unknown(op.results[0])

    # -- integers --------------------------------------------------------------------------------

    def _arith_constant(self, op: Op) -> Known:
        type_, text = op.results[0].type, op.attributes["value"]
        text = text.removeprefix("dense<").split(">")[0].split(":")[0].strip()
        if type_.element == "i1":
            return TRUE if text == "true" else FALSE
        return poly(int(text)) if type_.element.startswith("i") else None

    def _tt_get_program_id(self, op: Op) -> Known:
        return self.piece.number if op.number("axis") == 0 else poly(0)

    def _integers(self, op: Op) -> tuple[Poly, Poly]:
        one, two = (self.values[v] for v in op.operands)
        if not isinstance(one, Poly) or not isinstance(two, Poly):
            raise Unreadable(f"{op.name} has an operand that is not followed")
        return one, two

    def _arith_addi(self, op: Op) -> Known:
        one, two = self._integers(op)
        return one + two

    def _arith_subi(self, op: Op) -> Known:
        one, two = self._integers(op)
        return one - two

    def _arith_muli(self, op: Op) -> Known:
        one, two = self._integers(op)
        return one * two

    def _arith_extsi(self, op: Op) -> Known:
        if op.operands[0].type.element == "i1":
            return self.unknown(op.results[0])
        return self.exact(op.operands[0])

    def _arith_extui(self, op: Op) -> Known:
        c = self.values[op.operands[0]]
        if not isinstance(c, Cond):
            return self.unknown(op.results[0])
        return _choice(c, poly(1), poly(0))

    def _arith_trunci(self, op: Op) -> Known:
        x, result = self.values[op.operands[0]], op.results[0]
        limit = 1 << int(result.type.element[1:]) - 1
        if isinstance(x, Poly) and x.number is not None and 0 <= x.number < limit:
            return x
        if result.type.element != "i32" or not isinstance(x, Poly):
            return self.unknown(result)
        self.fits(x, result)
        return x

    def _arith_sitofp(self, op: Op) -> Known:
        if isinstance(self.values[op.operands[0]], Poly):
            self.exact(op.operands[0])
        return self.unknown(op.results[0])

    def _arith_divsi(self, op: Op) -> Known:
        return self.divided(op)[0]

    def _arith_remsi(self, op: Op) -> Known:
        return self.divided(op)[1]

    def divided(self, op: Op) -> tuple[Poly, Poly]:
        over, by = map(self.exact, op.operands)
        return self._division(over, by, op.results[0].type.shape)

    def _division(self, over: Poly, by: Poly, shape: Sequence[int]) -> tuple[Poly, Poly]:
        """Quotient and remainder, towards 0."""
        n, d = over.number, by.number
        if n is not None and d:
            whole = abs(n) // abs(d) * (1 if n * d >= 0 else -1)
            return poly(whole), poly(n - whole * d)
        if d is None or d <= 0:
            self.demand(f"{by} is positive", lt(0, by), shape)
        if len(by.terms) == 1:
            q, r = over.split(by)
            if self.holds(le(0, q), shape) and (
                self.below(r, by) or self.holds(between(0, r, by), shape)
            ):
                return q, r
            ((factors, times),) = by.terms
            unit = Poly.of({factors: 1})
            if factors and times > 1:  # (c*S + r) / (8*S) is c / 8 where r is below S
                c, r = over.split(unit)
                if self.below(r, unit) and self.holds(le(0, c), shape):
                    q, rest = self._division(c, poly(times), shape)
                    return q, rest * unit + r
                r = over.split(by)[1]
            for coordinate, extent in self.piece.coordinates.items():
                if r == poly(coordinate) and extent != by and not extent.split(by)[1].terms:
                    raise Split(coordinate, by)
        if d is not None and d > 1 and self.holds(between(d, over, 2 * d), shape):
            return poly(1), over - d  # one block is enough for so few
        args = (over, by)
        return poly(Atom("quotient", args)), poly(Atom("remainder", args))

    def below(self, x: Poly, limit: Poly) -> bool:
        """Whether 0 <= x < limit with each coordinate in x at its largest: x grows with all."""
        if any(c < 0 for _, c in x.terms) or not all(self.holds(le(0, poly(a))) for a in x.atoms):
            return False
        largest = {a: extent - 1 for a, extent in self.piece.coordinates.items()}
        most = poly(0)
        for (
            m,
            c,
        ) in x.terms:  # only where a coordinate is a factor: a remainder need not grow with it
            most = most + product(largest.get(a, poly(a)) for a in m) * c
        room = (limit - 1 - most).number
        return room is not None and room >= 0

    def _arith_minsi(self, op: Op) -> Known:
        return self.extreme("minimum", op)

    def _arith_maxsi(self, op: Op) -> Known:
        return self.extreme("maximum", op)

    def extreme(self, kind: str, op: Op) -> Poly:
        return extreme_of(kind, *map(self.exact, op.operands))

    def _math_absi(self, op: Op) -> Known:
        (x,), (result,) = map(self.exact, op.operands), op.results
        found = extreme_of("maximum", x, -x)
        self.fits(found, result)  # the least integer has no contrary
        return found

    def _arith_cmpi(self, op: Op) -> Known:
        predicate = op.number("predicate")
        if op.operands[0].type.element == "i1":
            other = self._arith_xori(op)
            if predicate > 1 or not isinstance(other, Cond):
                return self.unknown(op.results[0])
            return other if predicate else negation(other)
        one, two = map(self.exact, op.operands)
        match predicate:
            case 0:
                return eq(one, two)
            case 1:
                return negation(eq(one, two))
            case 2:
                return lt(one, two)
            case 3:
                return le(one, two)
            case 4:
                return lt(two, one)
            case 5:
                return le(two, one)
        return self.unknown(op.results[0])

    def _arith_select(self, op: Op) -> Known:
        c, one, two = (self.values[v] for v in op.operands)
        if isinstance(c, Cond) and isinstance(one, Poly) and isinstance(two, Poly):
            return _choice(c, one, two)
        if isinstance(c, Cond) and isinstance(one, Cond) and isinstance(two, Cond):
            return either(both(c, one), both(negation(c), two))
        return self.unknown(op.results[0])

    def _truths(self, op: Op) -> tuple[Cond, Cond] | None:
        one, two = (self.values[v] for v in op.operands)
        return (one, two) if isinstance(one, Cond) and isinstance(two, Cond) else None

    def _arith_andi(self, op: Op) -> Known:
        truths = self._truths(op)
        return both(*truths) if truths else self.unknown(op.results[0])

    def _arith_ori(self, op: Op) -> Known:
        truths = self._truths(op)
        return either(*truths) if truths else self.unknown(op.results[0])

    def _arith_xori(self, op: Op) -> Known:
        truths = self._truths(op)
        if not truths:
            return self.unknown(op.results[0])
        one, two = truths
        return either(both(one, negation(two)), both(negation(one), two))

    # -- memory ----------------------------------------------------------------------------------

    def _tt_addptr(self, op: Op) -> Known:
        pointer, offset = (self.values[v] for v in op.operands)
        if not isinstance(pointer, Pointer) or not isinstance(offset, Poly):
            raise Unreadable("an address that is not followed")
        width = int(op.operands[1].type.element[1:])
        if width < 32:
            self.fits(offset, op.operands[1])
        return Pointer(pointer.tensor, (*pointer.offsets, (offset, width)))

    def _tt_load(self, op: Op) -> Known:
        mask = self.values[op.operands[1]] if len(op.operands) > 1 else TRUE
        access = self.access("load", op, mask)
        (result,) = op.results
        if not result.type.element.startswith("i") or result.type.element == "i1":
            return self.unknown(result)
        read = poly(Atom("loaded", (access.tensor, access.offset)))  # within the tensor's bounds
        other = self.values[op.operands[2]] if len(op.operands) > 2 else None
        if not isinstance(other, Poly):
            other = self.unknown(result)
        assert isinstance(other, Poly)
        return _choice(access.mask, read, other)

    def _tt_store(self, op: Op) -> None:
        self.access("store", op, self.values[op.operands[2]] if len(op.operands) > 2 else TRUE)

    def access(self, kind: str, op: Op, mask: Known) -> Access:
        pointer = self.values[op.operands[0]]
        if not isinstance(pointer, Pointer) or not isinstance(mask, Cond):
            raise Unreadable(f"a {kind} whose address or mask is not followed")
        own = [a for a in self.touched.accesses if (a.kind, a.tensor) == (kind, pointer.tensor)]
        made = Access(
            kind, f"{kind} {len(own) + 1} of {pointer.tensor}", pointer.tensor, pointer.offsets,
            mask, self.path, op.operands[0].type.shape, self.loops,
        )  # fmt: skip
        self.touched.accesses.append(made)
        return made

    # -- structures ------------------------------------------------------------------------------

    def _scf_for(self, op: Op) -> None:
        start, end, step = map(self.exact, op.operands[:3])
        if not self.holds(lt(0, step)):
            raise Unreadable(f"a loop's step, {step}, is not known to be positive")
        loop = Loop(Atom("symbol", (f"turn!{next(self.numbers)}",)), start, end, step)
        width = int(op.operands[1].type.element[1:])
        # the last turn's index and one step more
        self.demand(f"{end} + {step} fits {width} bits", lt(end + step, 1 << width - 1), ())
        outer = self.loops
        self.loops = (*outer, loop)
        states = [self.unknown(v) for v in op.regions[0].args[1:]]
        self.region(op.regions[0], [loop.index, *states])
        self.loops = outer
        for r in op.results:
            self.values[r] = self.unknown(r)

    def _scf_if(self, op: Op) -> None:
        c = self.values[op.operands[0]]
        if not isinstance(c, Cond):
            raise Unreadable("a branch whose condition is not followed")
        if self.holds(c):
            taken, c = [(TRUE, op.regions[0])], TRUE
        elif self.holds(negation(c)):
            taken = [(TRUE, r) for r in op.regions[1:]]
        else:
            self._cut(c)
            taken = list(zip((c, negation(c)), op.regions, strict=False))
        yields = []
        outer = self.path
        for condition, region in taken:
            self.path = both(outer, condition)
            yields.append(self.region(region, []))
        self.path = outer
        for n, r in enumerate(op.results):
            known = [self.values[y[n]] for y in yields]
            self.values[r] = known[0] if len(known) == 1 else self.unknown(r)

    def _cut(self, c: Cond) -> None:
        """Programs below a number that does not vary among them become a piece of their own."""
        if c.op != "lt" or len(self.piece.coordinates) != 1 or self.path != TRUE:
            return
        (coordinate,) = self.piece.coordinates
        if c.args[0] == self.piece.number and coordinate not in c.args[1].atoms:
            raise Cut(c.args[1])

    def _tt_reduce(self, op: Op) -> None:
        for r in op.results:
            self.values[r] = self.unknown(r)


HINTS = {"tt.constancy", "tt.contiguity", "tt.divisibility"}
_STRUCTURES = ("scf.for", "scf.if", "tt.reduce", "tt.call")
_MEMORY = ("tt.atomic", "tt.descriptor", "tt.call", "tt.experimental", "ttg.", "ttng.")
_HARMLESS = ("tt.assert", "tt.print")


def _choice(c: Cond, one: Poly, two: Poly) -> Poly:
    if c in (TRUE, FALSE):
        return one if c == TRUE else two
    return one if one == two else poly(Atom("choice", (c, one, two)))


def _held(x: Poly) -> bool:
    """Whether an integer is a value of the machine as it stands: no sum that may be too large."""
    if x.atom is not None and x.atom.kind == "choice":
        return all(map(_held, x.atom.args[1:]))
    return x.number is not None or x.atom is not None
