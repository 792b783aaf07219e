"""How well the model ranks configurations: regret of its picks, over kernels and sizes.

    python benchmarks/regret.py DIR/NAME... --out FILE [--profile TARGET] [--seconds S] [--rehearse]

For each kernel of one launch and each of its sizes, the configurations that fit (the model's first
eight, and others spread over its ranking) are timed, interleaved. Regret of the top k: the best
time among the model's first k over the best of all, minus 1; Spearman: the correlation of ranks of
predicted and measured times. A configuration that fails or is wrong stands in the table and counts
as infinitely slow. Resumes where FILE has a pair already.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

from superopt.bench import Comparison, Kernel, in_turn
from superopt.cost_model.beforehand import beforehand
from superopt.cost_model.configs import ranked
from superopt.cost_model.model import KernelModel, Prediction
from superopt.cost_model.profile import load_profile
from superopt.cost_model.timing import (
    Clock,
    Timing,
    clock_for,
    environment,
    failure,
    interleaved,
    write_json,
)
from superopt.emit.compile import launches
from superopt.errors import CheckFailed
from superopt.mugraph.program import Config
from superopt.mugraph.text import parse_graph

TIMED, FIRST = 16, 8  # configurations of a pair; of these, the model's first
ALL = 10_000
AHEAD = 4  # pairs whose configurations compile while others are timed


def entry_of(config: Config, known: dict[str, int]) -> dict[str, int]:
    """A configuration as kernel.py's table has it; `known` is an entry of that table."""
    tiles = {f"BLOCK_{axis.upper()}": size for axis, size in config.tiles}
    entry = {name: tiles[name] for name in known if name in tiles}
    return entry | {"num_warps": config.warps, "num_stages": config.stages}


Slots = list[dict[str, int]]  # equal entries of kernel.py's table


def slots(module: ModuleType, sizes: dict[str, int]) -> Slots:
    """The table's entry that a call of these sizes takes, and its equals; [] where it launches more
    than one kernel."""
    found = launches(module, sizes)
    if len(found) != 1:
        return []
    table = [module.CONFIG] if hasattr(module, "CONFIG") else list(module.CONFIGS.values())
    entries = [e[1] if isinstance(e, tuple) and callable(e[0]) else e for e in table]
    options = found[0].options
    fitting = [e for e in entries if isinstance(e, dict) and e.items() <= options.items()]
    most = max(fitting, key=len, default=None)  # another µGraph's entry may lack a tile
    return [e for e in fitting if e == most]


def put(own: Slots, entry: dict[str, int]) -> None:
    """Change entries in place: calls that took them now launch `entry`."""
    for known in own:
        known.clear()
        known.update(entry)


def candidates(
    kernel: Kernel, n: int, target: str, sizes: dict[str, int], known: dict[str, int]
) -> list[tuple[dict[str, int], Prediction]]:
    """Configurations to time, as entries, in the model's order; [] where names do not map."""
    row = kernel.report["sizes"][n]
    graph = parse_graph(kernel.report["candidates"][row["candidate"]]["graph"].rstrip())
    model = KernelModel(graph.kernels[0], sizes, load_profile(target))
    found = ranked(model, kept=ALL)
    entries = [(entry_of(config, known), prediction) for config, prediction in found]
    if any(entry.keys() != known.keys() for entry, _ in entries):
        return []
    rest = entries[FIRST:]
    step = max(1, len(rest) // (TIMED - FIRST))
    return entries[:FIRST] + rest[::step][: TIMED - FIRST]


loaded = cache(Kernel.of)


def compile_one(folder: Path, sizes: dict[str, int], entry: dict[str, int]) -> str:
    """In a process of its own: fill Triton's cache; returns an error's text or nothing."""
    import torch

    kernel = loaded(folder)
    own = slots(kernel.module, sizes)
    original = dict(own[0])
    put(own, entry)
    try:
        for launch in launches(kernel.module, sizes):
            given = [
                torch.empty(1, dtype=a.dtype, device="cuda") if isinstance(a, torch.Tensor) else a
                for a in launch.args
            ]
            launch.kernel.warmup(*given, grid=(launch.programs,), **launch.options)
    except Exception as error:  # the configuration's own failure is met again, and recorded, below
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        put(own, original)
    return ""


@dataclass(frozen=True)
class Task:
    """A pair that is to be timed: its sizes and candidates, and their compilations under way."""

    sizes: dict[str, int]
    found: list[tuple[dict[str, int], Prediction]]
    compiling: list[Future[str]]


def prepared(kernel: Kernel, folder: Path, n: int, target: str, clock: Clock) -> Task | str:
    """Begin to compile a pair's candidates; a text says why it is left out."""
    sizes = dict(kernel.report["sizes"][n]["sizes"])
    if clock.kind == "rehearsed":
        sizes = kernel.toy(sizes)
    own = slots(kernel.module, sizes)
    if not own:
        return "more than one launch"
    found = candidates(kernel, n, target, sizes, own[0])
    if not found:
        return "the µGraph's axes do not map to kernel.py's tiles"
    if clock.kind == "rehearsed":
        return Task(sizes, found[:3], [])
    tasks = [partial(compile_one, folder, sizes, entry) for entry, _ in found]
    return Task(sizes, found, beforehand(tasks))


def study(kernel: Kernel, task: Task, clock: Clock) -> dict[str, Any]:
    """Time a pair's candidates, those that are right."""
    for compiling in task.compiling:
        if text := compiling.result():
            print(f"  compiling beforehand: {text}", flush=True)
    own = slots(kernel.module, task.sizes)
    original = dict(own[0])
    comparison = Comparison.of(kernel, task.sizes, 0, clock.device)
    checked = slots(kernel.module, comparison.sizes)  # another row, where float64 took too much
    if not checked or checked[0].keys() != original.keys():
        raise MemoryError(f"float64 fits at {comparison.sizes} only, which takes another kernel")
    inputs = kernel.inputs(task.sizes, 0, clock.device)
    other = dict(checked[0])
    rows: list[dict[str, Any]] = []
    calls: dict[str, Any] = {}
    for rank, (entry, prediction) in enumerate(task.found):
        rows.append({"rank": rank, "config": entry, "predicted_us": prediction.time_us})
        put([*own, *checked], entry)
        try:
            error = comparison.error_of(kernel.function)
            if error > 1:
                rows[-1]["note"] = f"wrong: {error:.3g} of what is allowed"
            else:
                calls[str(rank)] = clock.graph(partial(kernel.function, *inputs))
        except Exception as failed:  # a configuration's own failure is a result
            rows[-1]["note"] = failure(failed)
    put(own, original)
    put(checked, other)
    for rank_text, timing in interleaved(calls, clock, 0.5).items():
        row = rows[int(rank_text)]
        row |= {"measured_us": timing.median_us} if isinstance(timing, Timing) else {"note": timing}
    return figures(rows)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Regret of the first and of the first eight, Spearman, and the rows; in the model's order.

    >>> f = figures([{"predicted_us": p, "measured_us": m} for p, m in ((1, 2), (2, 1), (3, 4))])
    >>> f["top_1"], f["top_8"], f["spearman"]
    (1.0, 0.0, 0.5)
    """
    times = [row.get("measured_us", inf) for row in rows]
    best = min(times, default=inf)
    timed = [row for row in rows if "measured_us" in row]
    out: dict[str, Any] = {"top_1": None, "top_8": None, "spearman": None, "rows": rows}
    if best < inf:
        out |= {"top_1": times[0] / best - 1, "top_8": min(times[:8]) / best - 1}
    if len({row["measured_us"] for row in timed}) > 1 < len({r["predicted_us"] for r in timed}):
        predicted, measured = ([row[k] for row in timed] for k in ("predicted_us", "measured_us"))
        out["spearman"] = statistics.correlation(ranks(predicted), ranks(measured))
    return out


def ranks(values: list[float]) -> list[float]:
    """The place of each among all; equal values share theirs.

    >>> ranks([5.0, 1.0, 5.0])
    [2.0, 0.5, 2.0]
    """
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v)) / 2 for v in values]


def summary(pairs: list[dict[str, Any]]) -> Iterator[str]:
    """Medians over the pairs and the worst, in percent."""
    for name in ("top_1", "top_8"):
        found = [p[name] for p in pairs if p.get(name) is not None]
        if found and max(found) < inf:
            middle, worst = statistics.median(found), max(found)
            yield f"regret {name}: median {middle:.1%}, worst {worst:.1%}, {len(found)} pairs"
        elif found:
            yield f"regret {name}: infinite for a pair: its picks all failed"
    ranks = [p["spearman"] for p in pairs if p.get("spearman") is not None]
    if ranks:
        yield f"Spearman: median {statistics.median(ranks):.2f}, least {min(ranks):.2f}"


def key_of(kernel: Kernel, n: int, clock: Clock) -> dict[str, Any]:
    return {"kernel": kernel.name, "digest": kernel.digest, "size": n, "kind": clock.kind}


def attempt(step: Callable[..., Any], *given: Any) -> Any:
    """What the step gives, or why it failed: of a pair, not of all."""
    try:
        return step(*given)
    except CheckFailed:  # the GPU is lost
        raise
    except Exception as error:
        return failure(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR/NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--profile", default="h200", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    clock, start = clock_for(options.rehearse), time.monotonic()
    kernels = [Kernel.of(folder) for folder in options.folders]
    where = dict(zip((k.digest for k in kernels), options.folders, strict=True))
    data: dict[str, Any] = {"environment": environment(clock), "pairs": [], "left_out": []}
    if options.out.exists():
        data["pairs"] = json.loads(options.out.read_text())["pairs"]
    done = {(p["kernel"], p["digest"], p["size"], p["kind"]) for p in data["pairs"]}
    todo = [(k, n) for k, n in in_turn(kernels) if tuple(key_of(k, n, clock).values()) not in done]
    tasks: list[Task | str] = []
    for place, (kernel, n) in enumerate(todo):
        about = f"{kernel.name} at {kernel.report['sizes'][n]['sizes']}"
        result: dict[str, Any] | str = "no time was left"
        if time.monotonic() - start < options.seconds:
            for k, at in todo[len(tasks) : place + AHEAD]:
                tasks.append(attempt(prepared, k, where[k.digest], at, options.profile, clock))
            task = tasks[place]
            result = task if isinstance(task, str) else attempt(study, kernel, task, clock)
        if isinstance(result, str):
            data["left_out"].append(f"{about}: {result}")
        else:
            data["pairs"].append(key_of(kernel, n, clock) | {"at": about} | result)
            print(f"{about}: top 1 {result['top_1']}, top 8 {result['top_8']}", flush=True)
        write_json(options.out, data)
    for task in tasks:
        for compiling in [] if isinstance(task, str) else task.compiling:
            compiling.cancel()  # where no time was left
    for line in [*data["left_out"], *summary(data["pairs"]), f"{clock.kind}: {options.out}"]:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
