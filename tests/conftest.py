"""Kernels run in Triton's interpreter, which must be chosen before triton is first imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
