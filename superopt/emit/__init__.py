"""From µGraphs to Triton: `emit` writes a kernel.py, `compile_for` compiles its kernels."""

from superopt.emit.module import Notes, emit

__all__ = ["Notes", "emit"]
