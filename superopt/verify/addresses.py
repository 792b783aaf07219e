"""Addresses of an emitted kernel, proved for every call that it takes and every program.

What is read back from Triton's IR (`programs`) under the host's own conditions (`host`) must keep
to these, each proved by Z3 over the integers:

    no access is out of its tensor's bounds, for any strides that the host lets pass;
    no element is stored by two programs; every element of every output is stored;
    nothing is read before it is written; no index that matters overflows 32 bits.

Three facts of arithmetic carry the proofs from indices to addresses. A contiguous tensor's offset
is the number whose digits are its indices in the mixed radix of its extents, so that offsets are
equal where all indices are. An offset is at most the tensor's span where each index is below its
extent. Where programs are mapped one to one into as many blocks, every block has a program.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import combinations, pairwise
from itertools import product as pairs
from math import prod
from types import ModuleType
from typing import Any

import z3

from superopt.verify.host import LaunchOf, Path, Store, accepted, contiguous, paths
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
    either,
    eq,
    le,
    mapped,
    negation,
    poly,
    product,
    symbol,
)
from superopt.verify.models import Models
from superopt.verify.programs import INT32, Access, Touched, lane, touched
from superopt.verify.smt import Encoder
from superopt.verify.ttir import Region, Unreadable, read
from superopt.verify.verdict import Obligation

WORSE = ("proved", "assumed", "unknown", "refuted")
LINEAR, NONLINEAR = 40_000_000, 8_000_000  # Z3's resources for a query: some seconds, and one
Bounds = Mapping[str, tuple[Poly, Poly]]
Ranges = Mapping[str, Sequence[int | str]]  # low, high by tensor; texts such as "B" and "2*B+1"


@dataclass
class Prover:
    """Z3, asked with products as unknown integers first, then with products.

    It is asked without the conditions `aside` before that: an answer that others share.
    """

    cache: dict[tuple[Cond, Cond], Obligation] = field(default_factory=dict)
    models: Models = field(default_factory=Models)
    aside: frozenset[Cond] = frozenset()

    def decided(self, given: Cond, c: Cond) -> bool | None:
        """Whether c follows, or its negation does."""
        if self.prove("", given, c).status == "proved":
            return True
        refuted = self.prove("", both(given, c), FALSE)
        return False if refuted.status == "proved" else None

    def follows(self, given: Sequence[Cond], c: Cond) -> bool:
        return self.prove("", both(*given), c, quick=True).status == "proved"

    def prove(self, text: str, given: Cond, claim: Cond, quick: bool = False) -> Obligation:
        if claim == TRUE:
            return Obligation(text, "proved")
        less = both(*(c for c in conjuncts(given) if c not in self.aside)) if self.aside else given
        if less != given:
            shared = self._cached(less, claim, quick=True)
            if shared.status == "proved":
                return replace(shared, text=text)
        return replace(self._cached(given, claim, quick), text=text)

    def _cached(self, given: Cond, claim: Cond, quick: bool) -> Obligation:
        known = self.cache.get((given, claim))
        if known is None or (known.status != "proved" and not quick):
            known = self._asked(given, claim, quick)
            self.cache[given, claim] = known
        return known

    def _asked(self, given: Cond, claim: Cond, quick: bool) -> Obligation:
        if quick and self.models.refute(given, claim):
            return Obligation("", "unknown")
        vague = any(a.kind == "unknown" for a in atoms_of((given, claim)))
        for nonlinear in (False,) if quick else (False, True):
            encoder = Encoder(nonlinear)
            query = encoder.query(encoder.truth(given), encoder.truth(negation(claim)))
            context = z3.Context()  # of its own: what was asked before has no part in it
            solver = z3.SolverFor("QF_NIA" if nonlinear else "QF_LIA", context)
            solver.set("rlimit", NONLINEAR if nonlinear else LINEAR, "random_seed", 0)
            solver.from_string(query)
            answer = solver.check()
            if answer == z3.unsat:
                return Obligation("", "proved", smt=query)
            if answer != z3.sat:
                continue
            model = solver.model()
            self.models.add(model, given, claim)
            if encoder.exact and not vague:
                found = {
                    d.name(): model[d].as_long() for d in model.decls() if z3.is_int_value(model[d])
                }
                return Obligation("", "refuted", found, query)
        return Obligation("", "unknown", smt=query)


# -- the whole file ------------------------------------------------------------------------------


@dataclass
class Ways:
    """All ways through a kernel.py's host code, and the prover that told them apart.

    `facts` hold of the inputs whichever way is taken.
    """

    inputs: Sequence[Store]
    facts: Cond
    paths: Sequence[Path]
    prover: Prover

    def given(self, path: Path) -> Cond:
        return both(self.facts, path.conditions, path.known)

    def telling(self, launch: LaunchOf) -> frozenset[Cond]:
        """Conditions that only tell ways apart on which a launch is the same."""
        same = [frozenset(conjuncts(self.given(p))) for p in self.paths if launch in p.launches]
        return same[0].union(*same) - same[0].intersection(*same)


@lru_cache(maxsize=1)  # addresses and values are of the same ways
def ways(module: ModuleType) -> Ways:
    """Raises Unreadable where the file does what is not followed."""
    prover = Prover()
    inputs, taken = accepted(module)
    facts = both(taken, *(le(0, s) for t in inputs for s in t.strides or ()))
    return Ways(inputs, facts, list(paths(module, inputs, facts, prover.decided)), prover)


def check_addresses(module: ModuleType, ranges: Ranges) -> list[Obligation]:
    """All obligations of a kernel.py, for each way through its host code.

    `ranges`: the least and the first too large value of an integer tensor's elements, as its spec
    declares them: an assumption. Raises Unreadable where the file does what is not followed; then
    nothing is claimed. Needs a process without TRITON_INTERPRET=1.
    """
    bounds = {name: (_extent(low), _extent(high)) for name, (low, high) in ranges.items()}
    host = ways(module)
    found: dict[str, Obligation] = {}
    for path in host.paths:
        for obligation in _PathCheck(host, path, bounds).run():
            kept = found.setdefault(obligation.text, obligation)
            found[obligation.text] = max(kept, obligation, key=lambda o: WORSE.index(o.status))
    return list(found.values())


def _extent(text: int | str) -> Poly:
    if isinstance(text, int):
        return poly(text)
    found = re.fullmatch(r"(?:(-?\d+)\*)?([A-Za-z_]\w*)([+-]\d+)?", text)
    assert found, text
    return symbol(found[2]) * int(found[1] or 1) + int(found[3] or 0)


PLAIN = ("symbol", "lane")
Site = tuple[Touched, Access, tuple[Poly, ...]]  # a store, and its index along each dimension


TYPES = {
    "float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "float64": "*fp64",
    "int8": "*i8", "int16": "*i16", "int32": "*i32", "int64": "*i64", "uint8": "*u8", "bool": "*i1",
}  # fmt: skip


def call_of(launch: LaunchOf) -> tuple[dict[str, str], list[Poly | str]]:
    """A launch's signature as Triton writes it, and its arguments that are no constants."""
    name, constants = launch.kernel.__name__, launch.constants
    if any(not isinstance(v, int | float | bool) for v in constants.values()):
        raise Unreadable(f"{name}: a constant is not a number")
    signature = {n: "constexpr" if n in constants else "i32" for n in launch.kernel.arg_names}
    arguments: list[Poly | str] = []
    for n, x in launch.arguments.items():
        if isinstance(x, Store):
            kind = str(x.dtype).removeprefix("torch.")
            if kind not in TYPES:
                raise Unreadable(f"{name}: elements of type {kind}")
            signature[n] = TYPES[kind]
            arguments.append(x.name)
        else:
            arguments.append(x)
    return signature, arguments


class _PathCheck:
    """The obligations of one way through the host code."""

    def __init__(self, host: Ways, path: Path, bounds: Bounds) -> None:
        self.host, self.path, self.bounds = host, path, bounds
        self.prover, self.given = host.prover, host.given(path)
        self.tensors = {t.name: t for t in path.tensors}
        self.stores: set[str] = set()  # tensors that are stored, in part at least
        self.written: set[str] = set()  # and those that are, whole
        self.pieces: dict[tuple[int, tuple[Poly, ...]], Touched] = {}  # in blocks
        inputs = ", ".join(map(str, conjuncts(path.conditions)))
        self.where = f" where {inputs}" if path.conditions != TRUE else ""

    def run(self) -> Iterator[Obligation]:
        for launch in self.path.launches:
            yield from self.launch(launch)
        for t in self.path.returned:
            if not t.is_input and t.name not in self.stores:
                yield Obligation(f"every element of {t.name} is stored{self.where}", "refuted")

    def prove(self, text: str, given: Cond, claim: Cond, may_assume: bool = False) -> Obligation:
        """`may_assume`: of integers read from memory, of which the spec declares no range."""
        facts = both(self.given, self.values(given, claim), given)
        found = self.prover.prove(f"{text}{self.where}", facts, claim)
        read = [a.args[0] for a in atoms_of(claim) if a.kind == "loaded"]
        free = [n for n in read if n not in self.bounds and self.tensors[n].is_input]
        if found.status == "proved" or not may_assume or not free:
            return found
        never = self.prover.prove("", both(facts, claim), FALSE).status == "proved"
        return found if never else replace(found, status="assumed")

    def values(self, *conditions: Cond) -> Cond:
        """What is assumed of the values read that are part of addresses."""
        facts = []
        for a in atoms_of(tuple(conditions)):
            if a.kind == "loaded" and a.args[0] in self.bounds and self.signed(a.args[0]):
                low, high = self.bounds[a.args[0]]
                facts.append(between(low, poly(a), high))
        return both(*facts)

    def signed(self, name: str) -> bool:
        """Whether an integer tensor's elements are read as they are: as signed ones."""
        return not str(self.tensors[name].dtype).removeprefix("torch.").startswith("uint")

    def launch(self, launch: LaunchOf) -> Iterator[Obligation]:
        name = launch.kernel.__name__
        self.prover.aside = self.host.telling(launch)
        signature, arguments = call_of(launch)
        body = read(launch.kernel, signature, launch.constants)
        self.also_wide(launch, signature, body)
        self.pieces.clear()

        def follows(given: Sequence[Cond], claim: Cond) -> bool:
            return self.prover.follows([*given, self.values(*given, claim)], claim)

        text = f"{name}: the number of programs fits 32 bits"
        yield self.limit(text, launch.programs + 1)
        parts = touched(body, arguments, launch.programs, self.given, follows)
        for number, part in enumerate(parts):
            yield from self.arithmetic(name + f", part {number}" * (len(parts) > 1), part)
        accesses = [(p, a) for p in parts for a in p.accesses]
        for tensor in dict.fromkeys(a.tensor for _, a in accesses):
            own = [(p, a) for p, a in accesses if a.tensor == tensor]
            store, places = yield from self.tensor(name, self.tensors[tensor], own)
            if any(a.kind == "store" for _, a in own):
                self.stores.add(tensor)
            stores = [(*o, i) for o, i in zip(own, places, strict=True) if o[1].kind == "store"]
            sites = [(p, a, i) for p, a, i in stores if i is not None]
            if len(sites) < len(stores):
                text = f"{name}: every element of {tensor} is stored, by one program"
                yield Obligation(f"{text}{self.where}", "unknown")
            elif sites:
                yield from self.in_some_view(name, store, sites)

    def also_wide(self, launch: LaunchOf, signature: Mapping[str, str], body: Region) -> None:
        """An argument that does not fit 32 bits comes in 64: nothing may cut it down again."""
        wide = {
            n: "i64" if kind == "i32" and not self.fits(launch.arguments[n]) else kind
            for n, kind in signature.items()
        }
        if wide != signature and _cuts(read(launch.kernel, wide, launch.constants)) > _cuts(body):
            raise Unreadable(f"{launch.kernel.__name__}: an argument is cut to 32 bits")

    def fits(self, x: Store | Poly) -> bool:
        return isinstance(x, Poly) and self.prover.follows([self.given], between(-INT32, x, INT32))

    def limit(self, text: str, number: Poly) -> Obligation:
        """That a product of extents is at most 2**31, by the largest that each may be."""
        if self._largest(number) <= INT32:
            return Obligation(f"{text}{self.where}", "proved")
        return self.prove(text, TRUE, le(number, INT32))

    def _largest(self, p: Poly) -> float:
        """At least what the polynomial can be: of atoms that are not negative."""
        return sum(c * prod(map(self._most, m)) for m, c in p.terms if c > 0)

    def _most(self, a: Atom) -> float:
        if a.kind == "quotient" and a.args[1].number:
            return self._largest(a.args[0]) // float(a.args[1].number)
        own = [c for c in conjuncts(self.given) if c.op in ("le", "lt") and c.args[0] == poly(a)]
        limits = [c.args[1].number for c in own if c.args[1].number is not None]
        return min(map(float, limits), default=float("inf"))

    # -- accesses --------------------------------------------------------------------------------

    def arithmetic(self, name: str, part: Touched) -> Iterator[Obligation]:
        for d in part.demands:
            given = both(part.piece.facts, d.given)
            yield self.prove(f"{name}: {d.text}", given, d.claim, may_assume=True)
        for a in part.accesses:
            store, text = self.tensors[a.tensor], f"{name}: {a.name}"
            if a.kind == "load" and not store.is_input and a.tensor not in self.written:
                never = "unknown" if a.tensor in self.stores else "refuted"
                yield Obligation(f"{text} is of what has been stored{self.where}", never)
            both_ways = {b.kind for b in part.accesses if b.tensor == a.tensor} == {"load", "store"}
            if a.kind == "load" and both_ways and not store.is_input:
                yield Obligation(
                    f"{text} is of what no other program stores{self.where}", "unknown"
                )
            if a.kind == "store" and store.is_input:
                yield Obligation(f"{text} leaves inputs alone{self.where}", "refuted")

    def tensor(
        self, name: str, store: Store, accesses: Sequence[tuple[Touched, Access]]
    ) -> Generator[Obligation, None, tuple[Store, list[tuple[Poly, ...] | None]]]:
        """That all accesses of a tensor are within bounds; its shape, and the indices, as seen.

        A contiguous tensor may be seen with dimensions joined, as one axis of a kernel may be all
        of them.
        """
        narrow = any(width <= 32 for _, a in accesses for _, width in a.offsets)
        if narrow and not store.small:
            yield Obligation(f"{name}: {store.name} spans fewer than 2**31 elements", "refuted")
        elif narrow:
            yield self.limit(f"{name}: offsets of {store.name} fit 32 bits", product(store.shape))
        for seen in views(store):
            places = [indices(a.offset, seen) for _, a in accesses]
            found = [
                o for (p, a), i in zip(accesses, places, strict=True)
                for o in self.inside(name, p, a, seen, i)
            ]  # fmt: skip
            if all(o.status == "proved" for o in found):
                break
        yield from found
        return seen, places

    def inside(
        self, name: str, part: Touched, a: Access, store: Store, places: tuple[Poly, ...] | None
    ) -> Iterator[Obligation]:
        given = both(part.piece.facts, a.facts)
        text = f"{name}: {a.name} is within bounds"
        if places is None:
            yield Obligation(f"{text}{self.where}", "unknown")
            return
        for d, (i, extent) in enumerate(zip(places, store.shape, strict=True)):
            along = f"{text} along dimension {d}"
            yield self.prove(along, given, between(0, i, extent), may_assume=True)
        for offset, width in a.offsets if len(a.offsets) > 1 else ():
            own, fits = indices(offset, store), f"{name}: {a.name}: {offset} fits 32 bits"
            if width <= 32 and own is None:
                yield Obligation(f"{fits}{self.where}", "unknown")
            elif width <= 32 and own is not None:
                claim = both(*map(partial(between, 0), own, store.shape))
                yield self.prove(fits, given, claim, may_assume=True)

    # -- stores ----------------------------------------------------------------------------------

    def in_some_view(self, name: str, store: Store, sites: Sequence[Site]) -> Iterator[Obligation]:
        """That each element is stored once, by the indices found within bounds, or by others.

        Where a symbol is 1 an access may be within bounds along dimensions joined or not.
        """
        first = found = list(self.stored(name, store, sites))
        for seen in views(store):
            if all(o.status == "proved" for o in found):
                break
            places = [indices(a.offset, seen) for _, a, _ in sites]
            others = [(p, a, i) for (p, a, _), i in zip(sites, places, strict=True) if i]
            inside = (o for p, a, i in others for o in self.inside(name, p, a, seen, i))
            whole = seen != store and len(others) == len(sites)
            if whole and all(o.status == "proved" for o in inside):
                found = list(self.stored(name, seen, others))
        yield from found if all(o.status == "proved" for o in found) else first

    def stored(self, name: str, store: Store, sites: Sequence[Site]) -> Iterator[Obligation]:
        wholes = [Digits.of(places, store.shape) for _, _, places in sites]
        if all(w.joins == wholes[0].joins for w in wholes):
            store = replace(store, shape=wholes[0].shape)
            sites = [(p, a, w.at) for (p, a, _), w in zip(sites, wholes, strict=True)]
        plain: list[Site] = []
        for site in sites:
            found = yield from self.in_blocks(store, site)
            if found is None:
                text = f"{name}: every element of {store.name} is stored, by one program"
                yield Obligation(f"{text}{self.where}", "unknown")
                return
            plain.append(found)
        yield from self.once(f"{name}: no element of {store.name} is stored by two programs", plain)
        yield from self.every(f"{name}: every element of {store.name} is stored", store, plain)

    def in_blocks(
        self, store: Store, site: Site
    ) -> Generator[Obligation, None, tuple[Touched, Access, tuple[Poly, ...]] | None]:
        """The site with the numbers of its blocks for coordinates, where they are computed from
        the program's: blocks and programs are one to one. None where that is not seen.
        """
        part, access, places = site
        coordinates = part.piece.coordinates
        numbers: dict[Poly, Poly] = {}  # with how many there are
        for i, extent in zip(places, store.shape, strict=True):
            computed = Poly.of({m: c for m, c in i.terms if m and m[0].kind not in PLAIN})
            if computed.terms:
                own = {a for a in i.atoms if a in coordinates}
                computed = computed + Poly.of({m: c for m, c in i.terms if own.intersection(m)})
                tile = poly(min(abs(c) for _, c in computed.terms))
                number, rest = computed.split(tile)
                if rest.terms:
                    return None
                numbers[number] = _blocks(extent, tile)
        if not numbers:
            return site
        within = {*atoms_of(tuple(numbers))}
        moved = [a for a in coordinates if a in within]
        if product(coordinates[a] for a in moved) != product(numbers.values()):
            return None
        yield from self.one_to_one(part, moved, numbers)
        key = (id(part), tuple(numbers))
        blocks = [symbol(f"pid!block{n}") for n in range(len(numbers))]
        change: dict[Atom, Poly] = {}
        for block, number in zip(blocks, numbers, strict=True):
            solved = _solved(number, block)
            if solved is None:
                return None
            change |= [solved]
        if key not in self.pieces:
            left = {a: n for a, n in coordinates.items() if a not in moved}
            left |= {next(iter(b.atoms)): n for b, n in zip(blocks, numbers.values(), strict=True)}
            self.pieces[key] = replace(part, piece=replace(part.piece, coordinates=left))
        return self.pieces[key], access.mapped(change.get), mapped(places, change.get)

    def one_to_one(
        self, part: Touched, moved: Sequence[Atom], numbers: Mapping[Poly, Poly]
    ) -> Iterator[Obligation]:
        """That programs have blocks of their own, of which there are as many as programs."""
        inside = both(*(between(0, number, n) for number, n in numbers.items()))
        same = both(*(eq(number, _primed(number)) for number in numbers))
        claim = both(*(eq(poly(a), _primed(poly(a))) for a in moved))
        given, which = part.piece.facts, ", ".join(map(str, numbers))
        yield self.prove(f"each program has a block: {which}", given, inside)
        yield self.prove(
            f"no two programs have one block: {which}", both(given, _primed(given), same), claim
        )

    def once(self, text: str, sites: Sequence[Site]) -> Iterator[Obligation]:
        for (n, (p, a, i)), (m, (q, b, j)) in pairs(enumerate(sites), enumerate(sites)):
            if n > m:
                continue
            given = both(p.piece.facts, a.facts, _primed(both(q.piece.facts, b.facts)))
            same = both(*map(eq, i, _primed(tuple(j))))
            claim = FALSE
            if p is q:
                claim = both(*(eq(poly(c), _primed(poly(c))) for c in p.piece.coordinates))
            which = f", by {a.name} and {b.name}" if len(sites) > 1 else ""
            found = self.prove(text + which, both(given, same), claim)
            blocks = p in self.pieces.values() or q in self.pieces.values()
            yield _doubted(found) if blocks else found

    def every(self, text: str, store: Store, sites: Sequence[Site]) -> Iterator[Obligation]:
        """Each element has a program, turns and lanes that store it, by dividing its indices."""
        element = [symbol(f"element[{d}]") for d in range(len(store.shape))]
        given = [both(*map(lambda e, n: between(0, e, n), element, store.shape))]
        claims = []
        for n, site in enumerate(sites):
            witness = _witness(site, element)
            if witness is not None:
                given.append(_primed(witness[0], f"@{n}"))
                claims.append(_primed(witness[1], f"@{n}"))
        done = self.prove(text, both(*given), either(*claims))
        if done.status == "proved":
            self.written.add(store.name)
        seen = len(claims) == len(sites) and not any(p in self.pieces.values() for p, *_ in sites)
        yield done if seen else _doubted(done)


def _doubted(found: Obligation) -> Obligation:
    """What was refuted with less known than there is may still be so."""
    return replace(found, status="unknown") if found.status == "refuted" else found


def _witness(site: Site, element: Sequence[Poly]) -> tuple[Cond, Cond] | None:
    """(what defines the program, turns and lanes of an element; what these must keep to).

    Along a dimension an index is a sum of multiples of symbols: the element's is divided by the
    largest, what remains by the next, and what remains of the last must be 0. What is in no index
    is 0. None where that is not seen.
    """
    part, access, places = site
    facts, claims = [], [part.piece.facts, access.facts]
    free = {*part.piece.coordinates, *(loop.turn for loop in access.loops)}
    free |= {a for d in range(len(access.lanes)) for a in lane(d).atoms}
    for d, (i, e) in enumerate(zip(places, element, strict=True)):
        own = sorted(((c, m) for m, c in i.terms if m), key=lambda t: -t[0])
        if not own:
            claims.append(eq(i, e))
            continue
        if any(len(m) > 1 or m[0] not in free for _, m in own) or own[-1][0] < 1:
            return None
        free -= i.atoms
        rest = poly(0) if own[-1][0] == 1 else symbol(f"turn!rest{d}")
        facts.append(eq(i + rest, e))
        claims.append(eq(rest, 0))
        for n, (c, _) in enumerate(own):
            facts.append(between(0, Poly.of({m: k for k, m in own[n + 1 :]}) + rest, c))
    facts += [eq(poly(a), 0) for a in sorted(free, key=str)]
    return both(*facts), both(*claims)


def _solved(number: Poly, block: Poly) -> tuple[Atom, Poly] | None:
    """An atom that is no symbol, and what it is where `number` is `block`."""
    for m, c in number.terms:
        if len(m) == 1 and abs(c) == 1 and m[0].kind not in PLAIN:
            return m[0], (block - (number - poly(m[0]) * c)) * c
    return None


@dataclass(frozen=True)
class Digits:
    """Indices where two of them were the digits of one number: it stands in their place.

    Along dimensions of B and 4, x // 4 and x % 4: x along one of 4 B. `joins` tells, in order,
    which dimension took which, and how long that was.
    """

    at: tuple[Poly, ...]
    shape: tuple[Poly, ...]
    joins: tuple[tuple[int, int, Poly], ...] = ()

    @staticmethod
    def of(at: Sequence[Poly], shape: Sequence[Poly]) -> Digits:
        for d, (i, extent) in enumerate(zip(at, shape, strict=True)):
            if i.atom is None or i.atom.kind != "remainder" or i.atom.args[1] != extent:
                continue
            quotient = Atom("quotient", i.atom.args)
            for o, j in enumerate(at):
                if dict(j.terms).get((quotient,)) == 1:
                    number = (j - poly(quotient)) * extent + i.atom.args[0]
                    found = Digits.of(
                        _taken(at, o, d, number), _taken(shape, o, d, shape[o] * extent)
                    )
                    return replace(found, joins=((o, d, extent), *found.joins))
        return Digits(tuple(at), tuple(shape))

    def element(self, at: Sequence[Poly]) -> tuple[Poly, ...]:
        """An element's indices, joined in the same way."""
        for o, d, extent in self.joins:
            at = _taken(at, o, d, at[o] * extent + at[d])
        return tuple(at)


def _taken(items: Sequence[Poly], place: int, other: int, by: Poly) -> tuple[Poly, ...]:
    """With `by` at a place, and without the other."""
    return tuple(by if n == place else x for n, x in enumerate(items) if n != other)


def views(store: Store) -> Iterator[Store]:
    """The tensor as it is, then with neighbouring dimensions joined, to a single one at last."""
    yield store
    if store.is_input:
        return
    rank = len(store.shape)
    for n in range(rank - 1, 0, -1):
        for cuts in combinations(range(1, rank), n - 1):
            ends = (0, *cuts, rank)
            shape = (product(store.shape[a:b]) for a, b in pairwise(ends))
            yield replace(store, shape=tuple(shape))


def groups(store: Store, seen: Store) -> list[list[int]]:
    """The dimensions of a tensor that each dimension of a view of it joins."""
    left, found = list(range(len(store.shape))), []
    for extent in seen.shape:
        own, size = list[int](), poly(1)
        while left and (size != extent or store.shape[left[0]] == poly(1)):
            own.append(left.pop(0))
            size = size * store.shape[own[-1]]
        found.append(own)
    return found


def apart(at: Sequence[Poly], store: Store, seen: Store) -> tuple[Poly, ...]:
    """The indices along a tensor's own dimensions, of those along a view's."""
    found: list[Poly] = []
    for number, own in zip(at, groups(store, seen), strict=True):
        digits: list[Poly] = []
        for d in reversed(own[1:]):
            extent = store.shape[d]
            digits.append(poly(Atom("remainder", (number, extent))))
            number = poly(Atom("quotient", (number, extent)))
        found += [*([number] if own else []), *reversed(digits)]
    return tuple(found)


def _cuts(body: Region) -> int:
    return sum(o.name == "arith.trunci" for op in body.ops for o in op.all_ops())


def _blocks(extent: Poly, tile: Poly) -> Poly:
    """How many tiles cover an extent, as the host counts them."""
    up = extent + tile - 1
    if up.number is not None and tile.number:
        return poly(up.number // tile.number)
    q, r = up.split(tile)
    return poly(Atom("quotient", (up, tile))) if r.terms else q


def _primed(x: Any, mark: str = "~") -> Any:
    """The same of another program, turn and lane."""

    def change(a: Atom) -> Poly | None:
        if a.kind == "lane" or (a.kind == "symbol" and a.args[0].startswith(("pid!", "turn!"))):
            return poly(Atom("symbol", (f"{a}{mark}",)))
        if a.kind == "unknown":
            return poly(Atom("unknown", (f"{a.args[0]}{mark}", mapped(a.args[1], change))))
        return None

    return mapped(x, change)


def indices(offset: Poly, store: Store) -> tuple[Poly, ...] | None:
    """The index along each dimension that makes up an offset; None where that is not seen.

    Any that are within bounds are the ones.
    """
    found = []
    for stride in store.strides or contiguous(store.shape):
        if len(stride.terms) != 1:
            return None
        q, offset = offset.split(stride)
        found.append(q)
    return None if offset.terms else tuple(found)
