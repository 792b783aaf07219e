"""Helper processes: modules of ours that answer lines of JSON, in Triton's interpreter or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

# numpy's products of small tiles: threads that wait for one another take three times as long
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def helper(module: str, interpret: bool, errors: IO[str] | None = None) -> subprocess.Popen[str]:
    """Start `python -m module`. `errors`: where its stderr goes, ours by default."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        bufsize=1,
        start_new_session=True,  # Ctrl-C is the caller's to handle
        env=ONE_THREAD | os.environ | {"TRITON_INTERPRET": str(int(interpret)), "PYTHONPATH": path},
    )
