"""Timing calls on a GPU: in rounds, interleaved, the L2 cache flushed before each, and as graphs.

`CudaClock` measures. `RehearsedClock` runs the same calls on the CPU and says 1 us for each: what
it returns is marked `rehearsed` wherever it is written, and is no measurement.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from superopt.errors import CheckFailed, UsageError

Call = Callable[[], Any]
FLUSH_BYTES = 1 << 28  # several times the L2 of any GPU at hand
LEAST_ROUNDS, MOST_ROUNDS = 5, 50
WARM_GRAPH = 3  # calls before a capture, as torch's documentation asks
BUSY_PERCENT, BUSY_MIB = 10, 1024  # beyond either, someone else uses the GPU


@dataclass(frozen=True)
class Timing:
    """Microseconds of a call over the rounds: the median and the two quartiles."""

    median_us: float
    low_us: float
    high_us: float
    rounds: int

    @staticmethod
    def of(samples: Sequence[float]) -> Timing:
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Timing(median, low, high, len(samples))


class Clock(Protocol):
    """`kind` marks every result; `compiler` is the torch.compile backend that peers use."""

    kind: str
    device: str
    compiler: str

    def once(self, call: Call, flush: bool = True) -> float:
        """Microseconds of one call, after all earlier work; with a cold L2 cache if `flush`."""

    def graph(self, call: Call) -> Call:
        """A call that replays what `call` launches, as one CUDA graph."""


class CudaClock:
    """Events around each call. The flush before it keeps the GPU busy while the host launches."""

    kind, device, compiler = "measured", "cuda", "inductor"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise UsageError("no CUDA device is visible to torch; run this where a GPU is")
        self._cache = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def once(self, call: Call, flush: bool = True) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush:
            self._cache.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    def graph(self, call: Call) -> Call:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_GRAPH):
                call()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        return lambda: captured.replay()


class RehearsedClock:
    """Runs each call on the CPU and says 1 us: the same code paths without a GPU."""

    kind, device, compiler = "rehearsed", "cpu", "eager"

    def once(self, call: Call, flush: bool = True) -> float:
        call()
        return 1.0

    def graph(self, call: Call) -> Call:
        return call


def clock_for(rehearse: bool) -> Clock:
    """Raises UsageError where there is no GPU, or another program uses it."""
    if rehearse:
        return RehearsedClock()
    refuse_unfit()
    return CudaClock()


def refuse_unfit() -> None:
    """Raises UsageError where there is no GPU, or another program uses it; touches none."""
    refuse_busy(lambda: nvidia_smi("utilization.gpu", "memory.used"))


def nvidia_smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the first visible GPU, a text a field. UsageError where it cannot."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*command, f"--id={visible}"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"nvidia-smi does not answer, so no GPU is measured: {error}") from error
    return [text.strip() for text in done.stdout.splitlines()[0].split(",")]


def refuse_busy(ask: Callable[[], Sequence[str]], pause: float = 1.0) -> None:
    """Raise UsageError where `ask`, percent in use and MiB held, shows another's work each time.

    To be asked before this process has touched the GPU. nvidia-smi's percentage looks back a
    second, at a process that may have ended: it is asked three times, `pause` seconds apart.
    """
    for last in (False, False, True):
        percent, held = (float(x) if x.replace(".", "").isdigit() else 0.0 for x in ask())
        if percent <= BUSY_PERCENT and held <= BUSY_MIB:
            return
        if not last:
            time.sleep(pause)
    raise UsageError(
        f"the GPU is busy: {percent:.0f}% utilised, {held:.0f} MiB held by other processes"
        f" (allowed: {BUSY_PERCENT}%, {BUSY_MIB} MiB); wait, or choose another one by"
        " CUDA_VISIBLE_DEVICES"
    )


def failure(error: BaseException) -> str:
    """An exception as one line for a table. Re-raises as CheckFailed what has lost the GPU."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"[:300]
    if "CUDA error" in text and _lost():
        raise CheckFailed(f"{text}; run again: what was finished is kept") from error
    return text


def _lost() -> bool:
    """Whether every later call of this process would fail too; a refused capture is no such."""
    try:
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        return True
    return False


def interleaved(
    calls: Mapping[str, Call], clock: Clock, seconds: float, flush: bool = True
) -> dict[str, Timing | str]:
    """Time calls in rounds, each once a round in a new order; a text says how a call failed.

    As many rounds as fit into about `seconds`, within LEAST_ROUNDS and MOST_ROUNDS.
    """
    found: dict[str, Timing | str] = {}
    each = 1e-9
    for name, call in calls.items():
        try:
            clock.once(call)  # compiles
            start = time.monotonic()
            clock.once(call, flush)
        except Exception as error:  # a peer's own failure is a result
            found[name] = failure(error)
            continue
        each += time.monotonic() - start
    order = [name for name in calls if name not in found]
    samples: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(0).shuffle
    for _ in range(max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / each)))):
        shuffle(order)
        for name in order:
            samples[name].append(clock.once(calls[name], flush))
    return found | {name: Timing.of(us) for name, us in samples.items()}


# -- what is written --------------------------------------------------------------------------


def environment(clock: Clock) -> dict[str, Any]:
    """Machine, driver, versions and date, for the head of a file of results."""
    facts: dict[str, Any] = {
        "kind": clock.kind,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "device": "none: CPU, stubbed clock; no figure here is a measurement",
    }
    if clock.device == "cuda":
        driver, clock_mhz = nvidia_smi("driver_version", "clocks.max.sm")
        major, minor = torch.cuda.get_device_capability()
        facts |= {"device": torch.cuda.get_device_name(), "arch": f"sm_{major}{minor}"}
        facts |= {"driver": driver, "max_sm_mhz": clock_mhz, "cuda": torch.version.cuda}
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    os.replace(beside, path)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The columns are the keys of all rows, in the order met."""
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())
