"""The ladder of verdicts: tested < probable < proved. Unknown and timeout are never a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil, inf, log2
from typing import Any

RUNGS = ("tested", "probable", "proved")
FAILURES = ("refused", "unknown", "timeout")


@dataclass(frozen=True)
class Verdict:
    """What a check found. `kind` is a rung or a failure; `reason` says what a failure saw.

    `log2_epsilon`: of `probable`, the base-2 logarithm of the chance that a wrong candidate passes.
    `scope`: of which sizes and elements the verdict speaks; `notes`: why a rung was not claimed.
    """

    kind: str
    reason: str = ""
    log2_epsilon: float | None = None
    scope: str = ""
    notes: tuple[str, ...] = ()
    witness: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in RUNGS + FAILURES:
            raise ValueError(f"no verdict {self.kind!r}; there are {RUNGS + FAILURES}")
        if (self.kind == "probable") != (self.log2_epsilon is not None):
            raise ValueError("a verdict has an epsilon where it is 'probable', and only there")

    @property
    def passed(self) -> bool:
        return self.kind in RUNGS

    @property
    def rung(self) -> int:
        """The height on the ladder: 0 for a failure."""
        return RUNGS.index(self.kind) + 1 if self.passed else 0

    def __str__(self) -> str:
        if self.log2_epsilon is not None:
            bound = "0" if self.log2_epsilon == -inf else f"2^{ceil(self.log2_epsilon)}"
            return f"probable (ε ≤ {bound})"
        return f"{self.kind}: {self.reason}" if self.reason else self.kind

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["notes"], data["witness"] = list(self.notes), dict(self.witness)
        if self.log2_epsilon == -inf:
            data["log2_epsilon"] = "-inf"
        return data | {"text": str(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        epsilon = data["log2_epsilon"]
        return cls(
            data["kind"],
            data["reason"],
            None if epsilon is None else float(epsilon),
            data["scope"],
            tuple(data["notes"]),
            dict(data["witness"]),
        )


@dataclass(frozen=True)
class Obligation:
    """A claim and how it went: proved, refuted (with a counterexample), assumed, or unknown.

    Assumed is what depends on integers read from memory of which the spec declares no range.

    `smt` is the claim's negation with all that was given, as SMT-LIB text: unsat where proved.
    """

    text: str
    status: str
    counterexample: Mapping[str, int] = field(default_factory=dict)
    smt: str = ""


def probable(epsilon: float, scope: str) -> Verdict:
    """The verdict of a randomized check that errs with a chance of at most `epsilon`.

    >>> str(probable(2.0**-93, "B=1"))
    'probable (ε ≤ 2^-93)'
    """
    return Verdict("probable", log2_epsilon=log2(epsilon) if epsilon else -inf, scope=scope)
