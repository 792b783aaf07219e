"""The process that proves: jobs in, proofs out, as lines of JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from superopt.verify.addresses import check_addresses
from superopt.verify.proving import Proof
from superopt.verify.ttir import Unreadable
from superopt.verify.verdict import Verdict


def prove(module: ModuleType, ranges: Mapping[str, Sequence[int | str]]) -> Proof:
    """What can be proved of a kernel.py's addresses. Needs a process without TRITON_INTERPRET=1."""
    try:
        obligations = tuple(check_addresses(module, ranges))
    except Unreadable as error:
        return Proof(Verdict("unknown", f"addresses: {error}"))
    for status, kind in (("refuted", "refused"), ("unknown", "unknown")):
        for o in obligations:
            if o.status == status:
                witness = dict(o.counterexample)
                return Proof(Verdict(kind, f"addresses: {o.text}", witness=witness), obligations)
    return Proof(Verdict("proved", scope=f"{len(obligations)} claims on addresses"), obligations)


def load(path: Path) -> ModuleType:
    """Import a kernel.py without making it a torch operator: that takes two seconds of imports."""

    def unregistered(*_: Any, **__: Any) -> Any:
        return lambda fn: SimpleNamespace(register_fake=lambda fake: fake)

    spec = importlib.util.spec_from_file_location("superopt_kernel_to_prove", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.object(torch.library, "triton_op", unregistered):
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
            proof = prove(load(path), job["ranges"])
        answers.write(json.dumps(proof.to_json()) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
