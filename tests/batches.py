"""Runs kernels in batches of programs and alone, for test_batch.py; prints what it found as JSON.

A process of its own: `faithful()` changes Triton's interpreter for good.
"""

import json
from typing import Any

import torch
import triton
import triton.language as tl

from superopt.verify import interpreter
from superopt.verify.interpreter import Watch, faithful


@triton.jit
def larger(a, i, b, j):
    first = (a > b) | ((a == b) & (i < j))
    return tl.where(first, a, b), tl.where(first, i, j)


@triton.jit
def parting(x_ptr, y_ptr, out_ptr, at_ptr, N, BLOCK: tl.constexpr):
    """Stores, then goes as far as its row, and on some rows does more: batches part twice."""
    row, half = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, BLOCK)
    place = (half * tl.num_programs(0) + row) * BLOCK
    tl.store(out_ptr + place + k, tl.zeros((BLOCK,), tl.float32) + half)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, (row + 1) * BLOCK // 2, BLOCK):
        x = tl.load(x_ptr + k[:, None] * N + (start + k)[None, :], mask=(start + k)[None, :] < N,
                    other=0.0)  # fmt: skip
        acc = tl.dot(x, tl.trans(x), acc)
    if row % 3 == 1:
        acc *= tl.load(y_ptr + row)
    value, at = tl.reduce((acc, tl.broadcast_to(k[None, :], (BLOCK, BLOCK))), 1, larger)
    total = tl.sum(acc) + tl.max(tl.reshape(acc, (BLOCK * BLOCK,)), axis=0)
    tl.store(at_ptr + place + k, at)
    tl.store(y_ptr + 64 + place + k, value + total)


@triton.jit
def outside(x_ptr, out_ptr, limit):
    row = tl.program_id(0)
    tl.store(out_ptr + tl.where(row == limit, 1 << 30, row), tl.load(x_ptr + row))


@triton.jit
def twice(x_ptr, out_ptr, limit):
    row = tl.program_id(0)
    tl.store(out_ptr + tl.minimum(row, limit), tl.load(x_ptr + row))


@triton.jit
def one_place(x_ptr, out_ptr, limit):
    tl.store(out_ptr, tl.load(x_ptr))


@triton.jit
def counted(x_ptr, out_ptr, limit):
    tl.atomic_add(out_ptr, tl.load(x_ptr))


class Counted(interpreter._Chosen):
    """Counts batches."""

    batches = 0

    def run(self, arguments: dict[str, Any], ids: Any) -> None:
        Counted.batches += 1
        super().run(arguments, ids)


def parts() -> list[Any]:
    torch.manual_seed(0)
    x = torch.randn(16, 64).half()
    Counted.batches = 0
    with Watch(lambda *_: None, [x]) as watch:
        out, at = torch.empty(20, 16), torch.empty(20, 16, dtype=torch.int32)
        y = torch.ones(64 + 20 * 16)
        parting[(10, 2)](x, y, out, at, 64, 16)
    written = all(watch.written(t).all() for t in (out, at))
    return [y.tolist(), out.tolist(), at.tolist(), written, Counted.batches]


def failure(kernel: Any) -> str:
    x = torch.arange(8.0)
    try:
        with Watch(lambda *_: None, [x]):
            out = torch.zeros(8) if kernel is counted else torch.empty(8)
            kernel[(8,)](x + 1, out, 5)
    except Exception as error:
        return str(error)
    return str(out.tolist())


if __name__ == "__main__":
    faithful()
    interpreter._Chosen = Counted  # type: ignore[misc]
    bad = (outside, twice, one_place, counted)
    together = [parts(), *map(failure, bad)]
    interpreter.WIDEST = 1
    print(json.dumps({"together": together, "alone": [parts(), *map(failure, bad)]}))
