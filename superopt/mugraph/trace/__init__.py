"""Tracing: from a PyTorch function, by torch.export, to a program of indexed expressions."""

from superopt.mugraph.trace.lower import captured_tensors, trace, trace_callable

__all__ = ["captured_tensors", "trace", "trace_callable"]
