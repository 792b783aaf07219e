"""A process that says what a kernel.py launches, and Triton's IR of that: texts in, texts out.

Run as a script, without TRITON_INTERPRET=1. Lines of JSON: {"path": a kernel.py, "calls": lists of
(shape, dtype) for several calls} -> {"launches": ..., "ir": ...}, both texts; no IR where it fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any

import torch
import triton

from superopt.verify.addresses import TYPES
from superopt.verify.ttir import Unreadable, generic_text


class Recorder:
    """Stands for a kernel: notes each launch and runs nothing."""

    def __init__(self, kernel: Any, launches: list[Any]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | options
            self.launches.append((self.kernel, grid, named))

        return launch


def described(x: Any, names: dict[int, str]) -> str:
    if not isinstance(x, torch.Tensor):
        return repr(x)
    name = names.setdefault(id(x), f"tensor {len(names)}")
    return f"{name} {x.dtype} {tuple(x.shape)} {x.stride()}"


def text_of(kernel: Any, named: dict[str, Any]) -> str:
    """Triton's IR for the types and constants of a launch."""
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature = {}
    for name in kernel.arg_names:
        x = named[name]
        kind = str(getattr(x, "dtype", "")).removeprefix("torch.")
        signature[name] = "constexpr" if name in constants else TYPES[kind] if kind else "i32"
    return generic_text(kernel, signature, {n: named[n] for n in named if n in constants})


def answer(path: str, calls: list[list[tuple[list[int], str]]]) -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("kernel_that_launches", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said: list[str] = []
    texts: dict[str, str] = {}
    for call in calls:
        inputs = [torch.empty(s, dtype=getattr(torch, d), device="meta") for s, d in call]
        names = {id(t): f"input {n}" for n, t in enumerate(inputs)}
        launches: list[Any] = []
        returned = module._launch(*inputs, wrap=lambda k, to=launches: Recorder(k, to))
        for kernel, grid, named in launches:
            arguments = [f"{n}={described(x, names)}" for n, x in named.items()]
            said.append(f"{kernel.__name__} {grid} {arguments}")
            constants = [(p.name, named[p.name]) for p in kernel.params if p.is_constexpr]
            key = f"{kernel.__name__} {constants}"
            if key not in texts:
                texts[key] = text_of(kernel, named)
        whole = returned if isinstance(returned, tuple | list) else [returned]
        said.append(str([described(t, names) for t in whole]))
    return {"launches": "\n".join(said), "ir": "\n".join(map(str, texts.items()))}


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            result = answer(job["path"], job["calls"])
        except (Exception, Unreadable) as error:
            result = {"launches": f"{type(error).__name__}: {error}", "ir": ""}
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    assert not triton.knobs.runtime.interpret
    serve()
