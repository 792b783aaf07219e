"""Numbers that showed some claim not to follow, tried on the next: most that fail, fail for these.

lt(i, 8) under le(0, i): Z3 says i = 8. Then lt(i, n) under le(0, i) and le(1, n) does not follow
either: n, which had no value, is taken to be 0; if that does not do, Z3 is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import z3

from superopt.verify.integers import Atom, Cond, Poly, atoms_of

MOST = 24  # that are kept, those that were last of use first
COMPUTED = ("quotient", "remainder", "minimum", "maximum", "choice")


class Models:
    """The last models, by atoms and opaque conditions."""

    def __init__(self) -> None:
        self.known: deque[Mapping[str, int]] = deque(maxlen=MOST)

    def add(self, model: z3.ModelRef, *conditions: Cond) -> None:
        """What Z3 gives for what is not computed of others in some conditions."""
        free = {a.key for a in atoms_of(conditions) if a.kind not in COMPUTED}
        own = [(d.name(), model[d]) for d in model.decls()]
        self.known.appendleft(
            {n: v.as_long() for n, v in own if n in free and z3.is_int_value(v)}
            | {n: int(z3.is_true(v)) for n, v in own if z3.is_bool(v)}
        )

    def refute(self, given: Cond, claim: Cond) -> bool:
        """Whether one of them is an example where `claim` does not follow."""
        for model in self.known:
            at = _At(model)
            if at.shown(given, claim):
                self.known.remove(model)
                self.known.appendleft(model)
                return True
        return False


class _At:
    """Values at one model. What it does not say is 0; a division by 0 or less may be anything."""

    def __init__(self, model: Mapping[str, int]) -> None:
        self.known = dict(model)

    def shown(self, given: Cond, claim: Cond) -> bool:
        try:
            return not self.truth(claim) and self.truth(given)
        except ZeroDivisionError:
            return False

    def integer(self, p: Poly) -> int:
        total = 0
        for m, c in p.terms:
            for a in m:
                c *= self.atom(a)
            total += c
        return total

    def atom(self, a: Atom) -> int:
        if a.key not in self.known:
            self.known[a.key] = self._atom(a)
        return self.known[a.key]

    def _atom(self, a: Atom) -> int:
        match a.kind:
            case "quotient" | "remainder":
                n, d = map(self.integer, a.args)
                if d <= 0:
                    raise ZeroDivisionError
                whole = abs(n) // d * (1 if n >= 0 else -1)  # as C does
                return whole if a.kind == "quotient" else n - whole * d
            case "minimum":
                return min(map(self.integer, a.args))
            case "maximum":
                return max(map(self.integer, a.args))
            case "choice":
                return self.integer(a.args[1 if self.truth(a.args[0]) else 2])
        return 0

    def truth(self, c: Cond) -> bool:
        match c.op:
            case "lt" | "le" | "eq":
                one, two = map(self.integer, c.args)
                return {"lt": one < two, "le": one <= two, "eq": one == two}[c.op]
            case "and":
                return all(map(self.truth, c.args))
            case "or":
                return any(map(self.truth, c.args))
            case "not":
                return not self.truth(c.args[0])
        return bool(self.known.get(str(c), 0))
