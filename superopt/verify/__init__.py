"""Checking: of µGraphs before they are emitted, and of the emitted kernels themselves."""

from superopt.verify.certificate import replay
from superopt.verify.folder import CheckResult, SpecShape, check_graph, verify_folder
from superopt.verify.gate import GateResult, Worker, gate, gate_sizes
from superopt.verify.proving import ASSUMES as PROOF_ASSUMES
from superopt.verify.proving import Proof, Proving
from superopt.verify.verdict import Verdict

__all__ = [
    "PROOF_ASSUMES",
    "CheckResult",
    "GateResult",
    "Proof",
    "Proving",
    "SpecShape",
    "Verdict",
    "Worker",
    "check_graph",
    "gate",
    "gate_sizes",
    "replay",
    "verify_folder",
]
