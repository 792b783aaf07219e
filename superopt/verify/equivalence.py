"""That an emitted kernel computes its spec: for every size and configuration, over the reals.

The kernel's values (`lift`) and the spec's (`values`) are brought to one normal form (`reals`)
under what is known where an element is stored. What that takes of integers, that two conditions
hold for the same indices, that an index lies in a range, is asked of Z3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Tensor
from superopt.mugraph.program import Program
from superopt.verify.addresses import Digits, Prover, Ways, call_of, groups, indices, views, ways
from superopt.verify.forms import Forms
from superopt.verify.host import LaunchOf, Path, Store
from superopt.verify.integers import (
    TRUE,
    Atom,
    Cond,
    Poly,
    between,
    both,
    conjuncts,
    eq,
    mapped,
    names_of,
    poly,
    symbol,
)
from superopt.verify.laws import LAWS, Remembered, laws
from superopt.verify.lift import Claim, Filled, Lift, Lifted, Written, rows_by_helper
from superopt.verify.programs import Piece, by_piece
from superopt.verify.reals import (
    Change,
    Factor,
    Real,
    changed,
)
from superopt.verify.ttir import Unreadable, read_calls
from superopt.verify.values import Spec, Value, spec_values
from superopt.verify.verdict import Obligation

OFTEN_IDLE = {"counting", "maximum of maxima"}  # laws that apply more often than they are needed


def check_values(module: ModuleType, program: Program) -> tuple[list[Obligation], set[str]]:
    """That a kernel.py's outputs are the program's, for each way through its host code.

    With the laws that it takes: by these without any one something is not proved. The first way
    that is not proved is the last that is looked at.
    """
    host = ways(module)
    _check_signature(host.inputs, host.facts, program, host.prover)
    rows = rows_by_helper(module)
    found: dict[tuple[str, str], Obligation] = {}
    needed: set[str] = set()
    for path in host.paths:
        made = sparing(partial(_check_path, host, path, rows, Known(), program), needed)
        found |= {(o.text, o.smt): o for o in made}
        if any(o.status != "proved" for o in made):
            break
    return list(found.values()), needed


def _check_path(
    host: Ways, path: Path, rows: Mapping[str, str], known: Known, program: Program
) -> Iterator[Obligation]:
    return PathValues(host, path, rows, known).run(program)


def sparing(prove: Callable[[], Iterator[Obligation]], needed: set[str]) -> list[Obligation]:
    """A proof by the laws that are `needed` already and as few more as will do, added to them."""

    def by(allowed: set[str]) -> tuple[list[Obligation], set[str]] | None:
        found = []
        with laws(LAWS.keys() - allowed) as cited, suppress(Unreadable):
            for obligation in prove():
                found.append(obligation)
                if obligation.status != "proved":
                    return None
            return found, cited
        return None

    if needed and (made := by(needed)):
        return made[0]
    made = by(needed | LAWS.keys() - OFTEN_IDLE)
    if made is None:
        with laws() as cited:
            found = list(prove())
        if any(o.status != "proved" for o in found):
            return found
        made = found, cited
    found, cited = made
    more = cited - needed
    for name in sorted(more):
        if fewer := by(needed | more - {name}):
            found, more = fewer[0], more - {name}
    needed |= more
    return found


def _check_signature(
    inputs: Sequence[Store], facts: Cond, program: Program, prover: Prover
) -> None:
    """That the file takes the spec's inputs, in its order."""
    if [t.name for t in inputs] != [t.name for t in program.inputs]:
        raise Unreadable("it takes other inputs than the spec")
    for t, want in zip(inputs, program.inputs, strict=True):
        _check_like(t, want, facts, prover)


def _check_like(t: Store, want: Tensor, given: Cond, prover: Prover) -> None:
    shape = tuple(map(Spec().poly, want.shape))
    kind = str(t.dtype).removeprefix("torch.")
    if kind != DTYPES[want.dtype].torch or len(shape) != len(t.shape):
        raise Unreadable(f"{t.name} is not of the spec's type")
    if not prover.follows([given], both(*map(eq, t.shape, shape))):
        raise Unreadable(f"{t.name} has not the spec's shape")


@dataclass(frozen=True)
class Checked:
    """A claim, and what was asked of indices for it; of a temporary, what fills it."""

    obligations: tuple[Obligation, ...]
    filled: Filled | None = None


@dataclass(frozen=True)
class Known:
    """What was found of one way through the host code, with whatever laws."""

    lifted: Remembered[list[Lifted]] = field(default_factory=Remembered)
    checked: Remembered[Checked] = field(default_factory=Remembered)


class PathValues:
    """One way through the host code."""

    def __init__(self, host: Ways, path: Path, rows: Mapping[str, str], known: Known) -> None:
        self.host, self.path, self.rows = host, path, rows
        self.prover, self.given = host.prover, host.given(path)
        self.known = known
        self.tensors = {t.name: t for t in path.tensors}
        self.filled: dict[str, Filled] = {}
        inputs = ", ".join(map(str, conjuncts(path.conditions)))
        self.where = f" where {inputs}" if path.conditions != TRUE else ""

    def check_outputs(self, program: Program) -> None:
        """That it returns tensors of its own, of the spec's number, types and shapes."""
        returned = self.path.returned
        names = {t.name for t in returned if not t.is_input}
        if not len(names) == len(returned) == len(program.outputs):
            raise Unreadable("it returns other tensors than the spec")
        for t, want in zip(returned, program.outputs, strict=True):
            _check_like(t, want, self.given, self.prover)

    def run(self, program: Program) -> Iterator[Obligation]:
        """What is claimed of it; after each claim what was asked of indices for it."""
        self.check_outputs(program)
        spec = spec_values(program.stores)
        returned = zip(self.path.returned, program.outputs, strict=True)
        wanted = {own.name: spec[t.name] for own, t in returned}
        stored: set[str] = set()
        for number, launch in enumerate(self.path.launches):
            self.prover.aside = self.host.telling(launch)
            key = (number, *self.filled.items())
            for lifted in self.known.lifted.of(key, partial(self.lifted, launch)):
                for claim in lifted.claims:
                    yield from self.claim(launch, claim)
                for written in lifted.stores:
                    tensor = written.access.tensor
                    yield from self.stored(launch, written, lifted.states, wanted.get(tensor))
                    stored.add(tensor)
        for name in wanted.keys() - stored:
            yield Obligation(f"{name} is stored{self.where}", "unknown")

    def lifted(self, launch: LaunchOf) -> list[Lifted]:
        signature, arguments = call_of(launch)
        body, functions = read_calls(launch.kernel, signature, launch.constants)

        def follows(given: Sequence[Cond], claim: Cond) -> bool:
            return self.prover.follows([*given], claim)

        def run(piece: Piece) -> Lifted:
            made = Lift(piece, self.given, follows, self.tensors, self.filled, functions, self.rows)
            made.region(body, arguments)
            return made.lifted

        return by_piece(launch.programs, self.given, follows, run)

    def claim(self, launch: LaunchOf, claim: Claim) -> Sequence[Obligation]:
        text = f"{launch.kernel.__name__}: {claim.text}{self.where}"

        def check() -> Checked:
            return self.equal(text, Forms(self.prover), claim.one, claim.two, claim.given)

        return self.known.checked.of((text, claim), check).obligations

    def equal(self, text: str, forms: Forms, one: Value, two: Value, facts: Cond) -> Checked:
        try:
            ok = forms.equal(one.finite, two.finite, facts)
        except ZeroDivisionError:  # somewhere a divisor is 0
            ok = False
        return Checked((Obligation(text, "proved" if ok else "unknown"), *forms.used()))

    def stored(
        self, launch: LaunchOf, w: Written, states: Mapping[str, Value], own: Any
    ) -> Sequence[Obligation]:
        """That what is stored is the spec's `own`; of a temporary, which has none, what it is."""
        tensor = self.tensors[w.access.tensor]
        text = f"{launch.kernel.__name__}: {w.access.name} is the spec's{self.where}"
        inside = both(self.given, w.piece.facts, w.access.facts)
        key = (text, w.access.offset, inside, w.value, *states.items(), own)
        check = partial(self.element, text, w, states, inside, own)
        found = self.known.checked.of(key, check)
        if found.filled is not None:
            if tensor.name in self.filled:
                raise Unreadable(f"{tensor.name} is stored in two places")
            self.filled[tensor.name] = found.filled
        return found.obligations

    def element(
        self, text: str, w: Written, states: Mapping[str, Value], inside: Cond, own: Any
    ) -> Checked:
        forms, tensor = Forms(self.prover), self.tensors[w.access.tensor]
        whole = resolved(w.value, states, lambda x: forms.tidy(x, inside))
        names = tuple(f"{tensor.name}[{d}]" for d in range(len(tensor.shape)))
        flat = list(map(symbol, names))
        for seen in views(tensor):
            at = indices(w.access.offset, seen)
            if at is None:
                continue
            joined = _joined(flat, tensor, seen)
            within = both(*map(partial(between, 0), at, seen.shape))
            digits = Digits.of(at, seen.shape)
            element = digits.element(joined)
            change = _elements(digits.at, element, partial(forms.follows, inside))
            if change is None or not forms.follows(inside, within):
                continue
            value = whole.changed(change)
            places = [mapped(i, change.get) for i in at]
            facts = both(
                mapped(mapped(inside, change.get), change.get),
                *map(partial(between, 0), flat, tensor.shape),
                *map(eq, places, joined),
            )
            if own is None:
                return Checked(tuple(forms.used()), self.fill(names, forms, value, facts))
            theirs, wanted = own
            rename = {Atom("symbol", (a,)): symbol(b) for a, b in zip(theirs, names, strict=True)}
            return self.equal(text, forms, value, wanted.changed(rename), facts)
        return Checked((Obligation(text, "unknown"),))

    def fill(self, names: tuple[str, ...], forms: Forms, value: Value, facts: Cond) -> Filled:
        value = Value(forms.tidy(value.finite, facts))
        left = [n for n in names_of(value.real) if n.startswith(("pid!", "lane", "turn!"))]
        if left:
            raise Unreadable(f"a temporary depends on {left}")
        return Filled(names, value)


def resolved(v: Value, states: Mapping[str, Value], tidy: Callable[[Real], Real]) -> Value:
    """The value with accumulators' final values in place of their names.

    What several loops have added up is made `tidy` first: one sum, before it is squared.
    """

    def state(f: Factor) -> Real | None:
        if f.kind != "state" or f.args[0] not in states:
            return None
        change = {Atom("lane", (d,)): to for d, to in enumerate(f.args[1])}
        made = changed(states[f.args[0]].changed(change).finite, {}, state)
        return tidy(made) if len(made.terms) > 1 else made

    return v.changed({}, state)


def _joined(flat: Sequence[Poly], tensor: Store, seen: Store) -> list[Poly]:
    """The indices of an element where dimensions are joined."""
    found = []
    for own in groups(tensor, seen):
        number = poly(0)
        for d in own:
            number = number * tensor.shape[d] + flat[d]
        found.append(number)
    return found


def _varies(a: Atom) -> bool:
    return a.kind == "lane" or (a.kind == "symbol" and a.args[0].startswith(("pid!", "turn!")))


def _elements(
    at: Sequence[Poly], joined: Sequence[Poly], follows: Callable[[Cond], bool]
) -> Change | None:
    """What lanes and programs are, of the element at given indices; None where that is not seen."""
    change: dict[Atom, Poly] = {}
    for i, e in zip(at, joined, strict=True):
        i = mapped(i, change.get)
        if i.number is not None:
            continue
        own = sorted((t for t in i.terms if t[0]), key=lambda t: -t[1])
        plain = all(len(m) == 1 and _varies(m[0]) for m, _ in own)
        if plain and own and own[-1][1] >= 1:
            first, step = dict(i.terms).get((), 0), own[-1][1]
            digit = poly(first if 0 < first < step else 0)  # of e itself, below every step
            left = e - first + digit
            for n, ((a,), c) in enumerate(own):
                rest = Poly.of(dict(own[n + 1 :])) + digit
                if rest.terms and not follows(between(0, rest, c)):
                    return None
                exact = c == 1 and not rest.terms
                change[a] = left if exact else poly(Atom("quotient", (left, poly(c))))
                left = left - change[a] * c
            continue
        lanes = [m[0] for m, c in i.terms if c == 1 and len(m) == 1 and m[0].kind == "lane"]
        if not lanes:
            return None
        solved = e - (i - poly(lanes[0]))
        change = {a: mapped(to, {lanes[0]: solved}.get) for a, to in change.items()}
        change[lanes[0]] = solved
    return change
