"""proof.json on its own: its claims asked again, as the text that stands there.

Nothing is derived anew: this says that the certificate holds together and is of the kernel beside
it, not that its claims are the right ones. `verify_folder` does that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from superopt.errors import UsageError
from superopt.verify.folder import CheckResult, read_json

RESOURCES = 40_000_000  # of Z3, for one query


def replay(folder: Path, solver: str = "z3") -> list[CheckResult]:
    """Ask a solver (`z3` or `cvc5`) for each claim's negation: unsatisfiable where it was proved.

    Raises UsageError where the folder holds no certificate, or the solver is not there.
    """
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    proof, kernel = read_json(folder / "proof.json"), folder / "kernel.py"
    if not proof.get("addresses") or not kernel.is_file():
        raise UsageError(f"{folder}: it holds no certificate of a kernel.py; search it again")
    same = hashlib.sha256(kernel.read_bytes()).hexdigest() == proof.get("kernel_sha256")
    text = "kernel.py is the file that proof.json speaks of" if same else (
        "kernel.py is not the file that proof.json speaks of: verify it without --certificate-only"
    )  # fmt: skip
    return [
        CheckResult("kernel", same, text),
        *(_asked(kind, proof[kind]["obligations"], solver) for kind in ("addresses", "values")),
    ]


def _asked(kind: str, obligations: Sequence[Mapping[str, Any]], solver: str) -> CheckResult:
    proved = [o for o in obligations if o["status"] == "proved"]
    queries = [o for o in proved if o["smt"]]
    for o in obligations:
        if o["status"] not in ("proved", "assumed"):
            return CheckResult(kind, False, f"{o['status']}: {o['text']}")
    for o in queries:
        answer = SOLVERS[solver](o["smt"])
        if answer != "unsat":
            return CheckResult(kind, False, f"{solver} says {answer}, not unsat: {o['text']}")
    plain = len(proved) - len(queries)
    text = f"{solver} finds all {len(queries)} queries unsat; {plain} claims are of numbers alone"
    return CheckResult(kind, True, text)


def _z3(text: str) -> str:
    import z3

    solver = z3.Solver()
    solver.set("rlimit", RESOURCES, "random_seed", 0)
    solver.from_string(text)
    return str(solver.check())


def _cvc5(text: str) -> str:
    try:
        import cvc5
    except ImportError as error:
        raise UsageError("the solver cvc5 is not installed: pip install cvc5") from error
    solver = cvc5.Solver()
    solver.setOption("rlimit", "2000000")
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, "(set-logic ALL)\n" + text, "claim")
    symbols = parser.getSymbolManager()
    answer = ""
    while not (command := parser.nextCommand()).isNull():
        answer = str(command.invoke(solver, symbols)).strip() or answer
    return answer


SOLVERS: Mapping[str, Callable[[str], str]] = {"z3": _z3, "cvc5": _cvc5}
