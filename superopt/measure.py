"""The process that times candidate kernels on a GPU: `python -m superopt.measure`.

Jobs come in and results go out as lines of JSON; `measuring.py` holds the other end, and starts
another where a kernel takes this one down.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from superopt.bench import Kernel, check
from superopt.cost_model.timing import Clock, clock_for, environment, failure, interleaved
from superopt.emit.compile import load
from superopt.errors import CheckFailed


@cache
def clock(rehearse: bool) -> Clock:
    return clock_for(rehearse)


def timed(job: dict[str, Any]) -> dict[str, Any]:
    """Compare a kernel.py with its reference on inputs of the job's seed, then time it as a graph.

    `note` says how it failed, or that it is wrong; `lost`: that this process is of no more use.
    """
    c = clock(job["rehearse"])
    known: dict[str, Any] = {"kind": c.kind, "device": environment(c)["device"]}
    try:
        report = {"spec": {"tensors": job["tensors"]}}
        kernel = Kernel(job["name"], load(Path(job["path"])), report, "")
        sizes = kernel.toy(job["sizes"]) if job["rehearse"] else job["sizes"]
        _, errors = check(kernel, {"kernel": kernel.function}, sizes, job["seed"], c.device)
        error = errors["kernel"]
        if isinstance(error, str):
            return known | {"note": error}
        if error > 1:
            return known | {"note": f"wrong: {error:.3g} of what is allowed"}
        call = partial(kernel.function, *kernel.inputs(sizes, job["seed"], c.device))
        timing = interleaved({"kernel": c.graph(call)}, c, job["seconds"])["kernel"]
        if isinstance(timing, str):
            return known | {"note": timing}
        return known | asdict(timing) | {"error_over_allowed": error}
    except CheckFailed as error:  # the GPU, for this process
        return known | {"note": str(error), "lost": True}
    except Exception as error:  # a candidate's own failure is a result
        try:
            return known | {"note": failure(error)}
        except CheckFailed as lost:
            return known | {"note": str(lost), "lost": True}


def serve() -> None:
    """Answer jobs until the input ends. What kernels print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        result = timed(json.loads(line))
        answers.write(json.dumps(result) + "\n")
        answers.flush()
        if result.get("lost"):
            return


if __name__ == "__main__":
    serve()
