"""The meter's counts are exact, and each trap stands beside the last access that passes."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import pytest
import torch
import triton
import triton.language as tl
from meter import (
    DoubleWrite,
    Meter,
    OutOfBounds,
    UninitialisedRead,
    Unwritten,
    load_kernel,
    meter,
)

BLOCK = 64
Wrapper = Callable[[torch.Tensor], torch.Tensor]


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, stride, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(out_ptr + i, tl.load(x_ptr + i * stride, mask=i < n), mask=i < n)
    else:
        tl.store(out_ptr + i, tl.load(x_ptr + i * stride))


@triton.jit
def shifted_store_kernel(out_ptr, step, BLOCK: tl.constexpr):
    i = tl.program_id(0) * step + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, i.to(tl.float32))


@triton.jit
def same_lane_kernel(out_ptr, divisor, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK) // divisor, 1.0)


@triton.jit
def read_at_kernel(x_ptr, out_ptr, offset):
    tl.store(out_ptr, tl.load(x_ptr + offset))


@triton.jit
def rows_kernel(x_ptr, out_ptr, stride, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    x = tl.load(x_ptr + row[:, None] * stride + col[None, :])
    tl.store(out_ptr + row, tl.sum(x, axis=1))


@triton.jit
def add_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr + i % 8, tl.load(x_ptr + i))


@triton.jit
def words_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    words = tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + i)
    tl.store(out_ptr.to(tl.pointer_type(tl.int32)) + i, words)


@triton.jit
def address_kernel(address, out_ptr, offset):
    pointer = address.to(tl.int64).to(tl.pointer_type(tl.float32), bitcast=True)
    tl.store(out_ptr, tl.load(pointer + offset))


def copy(
    x: torch.Tensor, n: int | None = None, masked: bool = True, stride: int = 1
) -> torch.Tensor:
    """x[::stride], its first n elements, by one launch."""
    n = len(x) // stride if n is None else n
    out = x.new_empty(n)
    copy_kernel[(triton.cdiv(n, BLOCK),)](x, out, n, stride, MASKED=masked, BLOCK=BLOCK)
    return out


def metered(fn: Wrapper, *args: torch.Tensor) -> Meter:
    with meter() as m:
        fn(*args)
    return m


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.bool])
def test_copy_is_counted_exactly(dtype: torch.dtype) -> None:
    x = torch.ones(4 * BLOCK, dtype=dtype)
    with meter() as m:
        out = copy(x, masked=False)
    assert torch.equal(out, x)
    assert (m.requested_read, m.requested_written) == (x.nbytes, x.nbytes)
    assert (m.distinct_read, m.distinct_written) == (x.nbytes, x.nbytes)
    assert m.of(x).distinct_read == m.by_tensor["out_ptr"].distinct_written == x.nbytes
    assert [(launch.kernel, launch.grid) for launch in m.launches] == [("copy_kernel", (4, 1, 1))]
    assert m.sector_bytes == m.needed_sector_bytes == 2 * x.nbytes
    assert m.extra_launches == 0
    m.assert_all_written(out)


def test_masked_lanes_are_not_counted() -> None:
    x = torch.randn(100)
    m = metered(copy, x)
    assert m.requested_read == m.requested_written == m.distinct_read == m.distinct_written == 400
    assert m.sectors == 2 * (8 + 5)  # 64 fp32 in 8 sectors, 36 in 5


def test_distinct_counts_again_in_another_launch_and_not_in_the_same() -> None:
    x, out = torch.randn(BLOCK), torch.zeros(2)

    def twice(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            rows_kernel[(1,)](x, out, 0, ROWS=2, COLS=32)  # stride 0: both rows the same 32
        return out

    m = metered(twice, x)
    assert (m.requested_read, m.distinct_read) == (2 * 256, 2 * 128)
    assert [launch.by_tensor["x_ptr"].distinct_read for launch in m.launches] == [128, 128]


def test_out_of_bounds_at_the_boundary() -> None:
    x = torch.randn(BLOCK)
    metered(lambda x: copy(x, masked=False), x)
    with pytest.raises(
        OutOfBounds, match=r"copy_kernel, program \(0, 0, 0\): load at byte \+252 .*x_ptr"
    ):
        metered(lambda x: copy(x[:-1], n=BLOCK, masked=False), x)
    with pytest.raises(OutOfBounds, match=r"store at byte \+252 \(element \+63\) of out_ptr"):
        metered(lambda x: copy(x, n=BLOCK - 1, masked=False), x)


@pytest.mark.parametrize(("offset", "passes"), [(0, True), (-1, False), (7, True), (8, False)])
def test_one_read_at_each_end(offset: int, passes: bool) -> None:
    buffer, out = torch.randn(24), torch.zeros(1)
    run = lambda x: read_at_kernel[(1,)](x, out, offset)  # noqa: E731
    if passes:
        metered(run, buffer[8:16])
    else:
        with pytest.raises(OutOfBounds):
            metered(run, buffer[8:16])


def test_straying_into_another_live_tensor_is_trapped() -> None:
    buffer, out = torch.randn(16), torch.zeros(1)

    @triton.jit
    def two_kernel(x_ptr, y_ptr, out_ptr, offset):
        tl.store(out_ptr, tl.load(x_ptr + offset) + tl.load(y_ptr))

    with meter():
        two_kernel[(1,)](buffer[:8], buffer[8:], out, 7)
        with pytest.raises(OutOfBounds, match=r"element \+8\) of x_ptr"):
            two_kernel[(1,)](buffer[:8], buffer[8:], out, 8)


@pytest.mark.parametrize(("cols", "passes"), [(16, True), (32, False)])
def test_hole_between_rows_is_trapped(cols: int, passes: bool) -> None:
    x, out = torch.randn(4, 40), torch.zeros(4)
    run = lambda x: rows_kernel[(1,)](x, out, 40, ROWS=4, COLS=cols)  # noqa: E731
    m = metered(run, x[:, :32] if passes else x)
    assert m.of(x).distinct_read == 4 * cols * 4
    with pytest.raises(OutOfBounds, match=rf"element \+{cols - 1}\) of x_ptr"):
        metered(run, x[:, : cols - 1])


def test_double_store_is_trapped() -> None:
    def store(step: int) -> Wrapper:
        return lambda out: shifted_store_kernel[(2,)](out, step, BLOCK=BLOCK)

    metered(store(BLOCK), torch.zeros(2 * BLOCK))
    with pytest.raises(DoubleWrite, match=r"program \(1, 0, 0\).*element \+63\) of out_ptr"):
        metered(store(BLOCK - 1), torch.zeros(2 * BLOCK))


def test_double_store_within_one_access_and_across_launches() -> None:
    out = torch.zeros(BLOCK)
    with meter() as m:
        for _ in range(2):  # a later launch may store again
            same_lane_kernel[(1,)](out, 1, BLOCK=BLOCK)
        with pytest.raises(DoubleWrite, match="twice in one store"):
            same_lane_kernel[(1,)](out, 2, BLOCK=BLOCK)
    assert len(m.launches) == 3


def test_uninitialised_read_is_trapped() -> None:
    def through_scratch(x: torch.Tensor, n: int) -> torch.Tensor:
        scratch = torch.empty_like(x)
        copy_kernel[(1,)](x, scratch, n, 1, MASKED=True, BLOCK=BLOCK)
        return copy(scratch)

    x = torch.randn(BLOCK)
    metered(lambda x: through_scratch(x, BLOCK), x)
    with pytest.raises(UninitialisedRead, match=r"element \+63\) of x_ptr"):
        metered(lambda x: through_scratch(x, BLOCK - 1), x)


def test_all_written() -> None:
    x = torch.randn(BLOCK)
    with meter() as m:
        out = x.new_empty(BLOCK)
        copy_kernel[(1,)](x, out, BLOCK - 1, 1, MASKED=True, BLOCK=BLOCK)
    m.assert_all_written(out[:-1])
    with pytest.raises(Unwritten, match=r"1 of 64 elements never written, first \(63,\)"):
        m.assert_all_written(out)
    with pytest.raises(Unwritten):
        m.assert_all_written()


def test_operators_of_the_wrapper_are_extra_launches() -> None:
    def wasteful(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        copy_kernel[(1,)](x.view(8, 8).t().contiguous(), out, BLOCK, 1, MASKED=True, BLOCK=BLOCK)
        return out[:3].view(3, 1)

    m = metered(wasteful, torch.randn(BLOCK))
    assert [op.name for op in m.host_ops] == ["aten::zeros_like", "aten::clone"]
    assert [op.bytes for op in m.host_ops] == [512, 512]
    assert m.extra_launches == 2
    m.assert_all_written()


def test_operators_inside_a_custom_operator_are_seen() -> None:
    @torch.library.triton_op("meter_test::filled", mutates_args={})
    def filled(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x).zero_()
        kernel = torch.library.wrap_triton(copy_kernel)
        kernel[(1,)](x, out, BLOCK - 1, 1, MASKED=True, BLOCK=BLOCK)
        return out

    m = metered(filled, torch.randn(BLOCK))
    assert [op.name for op in m.host_ops] == ["aten::zero_"]
    assert len(m.launches) == 1


@pytest.mark.parametrize(("stride", "sectors"), [(1, 8), (2, 16), (8, 64), (16, 64)])
def test_sectors_of_a_strided_read(stride: int, sectors: int) -> None:
    m = metered(lambda x: copy(x, stride=stride), torch.randn(BLOCK * stride))
    read = m.by_tensor["x_ptr"]
    assert (read.sectors, read.needed_sector_bytes, read.distinct_bytes) == (sectors, 256, 256)
    assert read.sector_ratio == sectors / 8


def test_atomics_read_and_write_and_may_repeat() -> None:
    out = torch.zeros(8)
    m = metered(lambda x: add_kernel[(2,)](x, out, BLOCK=BLOCK), torch.ones(2 * BLOCK))
    assert torch.equal(out, torch.full((8,), 16.0))
    added = m.of(out)
    assert (added.requested_read, added.requested_written) == (512, 512)
    assert (added.distinct_read, added.distinct_written) == (32, 32)


def test_access_wider_than_the_elements() -> None:
    x = torch.arange(BLOCK, dtype=torch.int8)
    run = lambda x: words_kernel[(1,)](x, torch.empty_like(x), BLOCK=16)  # noqa: E731
    assert metered(run, x).distinct_bytes == 2 * BLOCK
    with pytest.raises(OutOfBounds, match=r"byte \+60"):
        metered(run, x[:-1])


def test_tensors_reached_through_integer_addresses() -> None:
    x, out = torch.arange(8.0), torch.zeros(1)
    with meter(tensors=[x]) as m:
        address_kernel[(1,)](x.data_ptr(), out, 7)
        assert out.item() == 7.0
        with pytest.raises(OutOfBounds, match=r"element \+8\) of tensors\[0\]"):
            address_kernel[(1,)](x.data_ptr(), out, 8)
    assert m.of(x).distinct_read == 4


def test_hooks_are_undone() -> None:
    interpreter = triton.runtime.interpreter
    places = (interpreter.InterpreterBuilder, interpreter.GridExecutor)
    before = [dict(vars(place)) for place in places], interpreter._implicit_cvt
    with pytest.raises(OutOfBounds):
        metered(lambda x: copy(x, n=BLOCK + 1), torch.randn(BLOCK))
    assert ([dict(vars(place)) for place in places], interpreter._implicit_cvt) == before
    with meter(), pytest.raises(RuntimeError, match="do not nest"), meter():
        pass


def test_load_kernel_is_fresh_each_time(tmp_path: Path) -> None:
    source = """
import triton
import triton.language as tl

@triton.jit
def fill_kernel(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), VALUE)

def fill(out):
    fill_kernel[(1,)](out, BLOCK=16)
"""
    for value in (1.0, 2.0):
        path = tmp_path / "kernel.py"
        path.write_text(source.replace("VALUE", str(value)))
        out = torch.zeros(16)
        assert metered(load_kernel(path).fill, out).distinct_written == 64
        assert torch.equal(out, torch.full((16,), value))
