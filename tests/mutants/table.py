"""docs/mutants.md, written from the outcomes of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

CHECKS = (
    "compiling", "addresses", "addresses, undecided", "values", "gate", "every element written",
)  # fmt: skip
ENDS = ("the same program", "accepted")
HEAD = """# Mutants: what `superopt verify` refuses

Written by `make mutants`; do not edit.

The {kernels} programs of `tests/mutants/programs.py` were searched, and what was found is kept in
`tests/mutants/found` as µGraphs. Each is emitted anew and broken by the operators of
`tests/mutants/operators.py`, one edit a mutant, in its jitted functions and in the host code that
allocates and launches. A mutant goes through the checks of `superopt verify`, proofs first, and is
counted at the first that fails. One that passes all of them is either the same program, which is
found without those checks (`tests/mutants/equivalence.py`), or a false accept.

- **compiling**: Triton refuses the text.
- **addresses**: a claim on addresses is false; **undecided**: Z3 shows neither, which is no pass.
- **values**: the values are not proved to be the spec's.
- **gate**, **every element written**: the text was run in Triton's interpreter.
- **the same program**: Triton's IR and the launches are equal; or else the outputs are equal bit
  for bit on the draws of `tests/mutants/runs.py` (or differ by rounding, where the list says so),
  and a row of a closed list says why that is no accident.

"""


NOTE = """## False accepts and false rejects

What passes all checks and is not shown to be the same program counts as accepted. What is
seen of it stands behind it: outputs that differ, though by no more than the gate allows, or the
same outputs for a reason that is not on the list.

"""


class Fate(Protocol):
    """What a table needs of an outcome."""

    kernel: str
    operator: str
    check: str
    means: str
    diff: str

    @property
    def accepted(self) -> bool: ...


def page(outcomes: Sequence[Fate], rejected: Sequence[str], kernels: int, all_of: int) -> str:
    """`rejected`: what failed of the kernels unbroken. `all_of`: how many mutants there are."""
    same = Counter(o.means for o in outcomes if o.means)
    accepted = [o for o in outcomes if o.accepted]
    refused = sum(bool(o.check) for o in outcomes)
    summary = (
        f"{kernels} kernels; {len(outcomes)} of {all_of} mutants were run: {refused} refused,"
        f" {same.total()} the same program, {len(accepted)} false accepts. {len(rejected)} false"
        " rejects of the kernels unbroken."
    )
    parts = [
        HEAD.format(kernels=kernels) + summary,
        "## By operator\n\n" + "\n".join(_table(outcomes, lambda o: o.operator)),
        "## By kernel\n\n" + "\n".join(_table(outcomes, lambda o: o.kernel)),
        "## The same program\n\n" + "\n".join(_rows(["means", "mutants"], same.most_common())),
    ]
    if accepted or rejected:
        parts.append(NOTE + "\n\n".join([*rejected, *map(_shown, accepted)]))
    return "\n\n".join(parts) + "\n"


def _shown(o: Fate) -> str:
    return f"{o}\n\n```diff\n{o.diff}\n```"


def _table(outcomes: Iterable[Fate], of: Callable[[Fate], str]) -> Iterator[str]:
    """A row a group, in the order of its name; a column a check. Checks of no kill have none."""
    counts = Counter((of(o), _fate(o)) for o in outcomes)
    others = sorted({f for _, f in counts} - {*CHECKS, *ENDS})
    checks = [c for c in (*CHECKS, *others) if any(f == c for _, f in counts)]
    columns = [*checks, *ENDS]
    rows = [
        (name, sum(counts[name, c] for c in columns), *(counts[name, c] for c in columns))
        for name in sorted({n for n, _ in counts})
    ]
    totals = ("all", *(sum(int(r[n]) for r in rows) for n in range(1, len(columns) + 2)))
    yield from _rows(["", "mutants", *columns], [*rows, totals])


def _fate(o: Fate) -> str:
    same, accepted = ENDS
    return o.check or (same if o.means else accepted)


def _rows(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |"
    yield "|---|" + "---:|" * (len(titles) - 1)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
