"""The process that proves: jobs in, proofs out, as lines of JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import patch

import triton.language  # noqa: F401  before torch is something else

from superopt.mugraph.program import Program
from superopt.mugraph.serialize import from_json
from superopt.verify.addresses import check_addresses
from superopt.verify.equivalence import check_values
from superopt.verify.proving import Claims, Proof
from superopt.verify.ttir import Unreadable
from superopt.verify.verdict import Obligation, Verdict


def prove(module: ModuleType, program: Program, ranges: Mapping[str, Sequence[int | str]]) -> Proof:
    """What can be proved of a kernel.py. Needs a process without TRITON_INTERPRET=1."""
    return Proof(addresses(module, ranges), values(module, program))


def addresses(module: ModuleType, ranges: Mapping[str, Sequence[int | str]]) -> Claims:
    """What can be proved of what a kernel.py touches."""
    return _claims("addresses", lambda: (check_addresses(module, ranges), set()))


def values(module: ModuleType, program: Program) -> Claims:
    """What can be proved of what it computes."""
    return _claims("values", lambda: check_values(module, program))


def _claims(what: str, check: Callable[[], tuple[Sequence[Obligation], set[str]]]) -> Claims:
    try:
        obligations, needed = check()
    except Unreadable as error:
        return Claims(Verdict("unknown", str(error)))
    except Exception as error:  # a kernel that was not thought of is not proved
        return Claims(Verdict("unknown", f"{type(error).__name__}: {error}"))
    return Claims(_verdict(what, obligations), tuple(obligations), tuple(sorted(needed)))


def _verdict(what: str, obligations: Sequence[Obligation]) -> Verdict:
    for status, kind in (("refuted", "refused"), ("unknown", "unknown")):
        for o in obligations:
            if o.status == status:
                return Verdict(kind, o.text, witness=dict(o.counterexample))
    assumed = sum(o.status == "assumed" for o in obligations)
    claims = [o for o in obligations if not o.text.startswith("indices: ")]
    scope = f"{len(claims) - assumed} claims on {what}"
    text = f"{assumed} assumed: of integers whose range the spec does not declare"
    return Verdict("proved", scope=scope, notes=(text,) if assumed else ())


class _Name:
    """Stands for anything of torch: a name, of which there are further names, all the same at once.

    A kernel.py names element types, tensors and decorators of torch when it is imported; what its
    host code asks of tensors is in `host`. Without torch the process takes a third of the memory.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.__path__: list[str] = []  # a package, to `import torch.nn.functional`

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(f"{self.__name__}.{name}")
        setattr(self, name, made)
        return made

    def __call__(self, *_: Any, **__: Any) -> _Name:
        return self

    def __bool__(self) -> bool:
        raise Unreadable(f"the file asks whether {self.__name__} is so")

    def __or__(self, other: Any) -> _Name:
        return self

    __ror__ = __or__

    def __str__(self) -> str:
        return self.__name__


def load(path: Path) -> ModuleType:
    """Import a kernel.py, with names in torch's place; with torch itself where names do not do."""
    torch = _Name("torch")
    modules = {"torch": torch, "torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional}
    try:
        with patch.dict(sys.modules, modules):
            return _imported(path)
    except (Exception, Unreadable):  # the file computes with torch at its top level
        return _imported(path)


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("superopt_kernel_to_prove", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve() -> None:
    """Answer jobs, a line each, until the input ends. What is printed on the way goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        with TemporaryDirectory(prefix="superopt-") as folder:
            path = Path(folder) / "kernel.py"
            path.write_text(job["source"])
            proof = prove(load(path), from_json(job["program"]), job["ranges"])
        answers.write(json.dumps(proof.to_json()) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
