"""Which configurations of a kernel are compiled, and which of these is taken.

The model ranks all of them by registers and shared memory that it estimates. What the compiler
really makes of the best may let fewer programs live together; then those that are predicted clearly
faster than that are in contention, and are compiled too. The rest never is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from superopt.cost_model.configs import INDIFFERENT, ranked
from superopt.cost_model.model import KernelModel, Made
from superopt.cost_model.profile import Profile
from superopt.emit.compile import CompileStats
from superopt.mugraph.program import Config

AT_ONCE = 2  # compiled side by side; a fixed number, so that the choice depends on no machine
MOST = 6  # compiled of one kernel beyond the first

Known = Mapping[Config, CompileStats]


def made(stats: CompileStats) -> Made:
    return Made(stats.registers, stats.shared_bytes)


def problem(stats: CompileStats, profile: Profile) -> str:
    """Why a compiled launch is not good enough; empty where it is."""
    if not stats.ok:
        return stats.error
    if stats.spilled_bytes:
        return f"spills {stats.spilled_bytes} bytes a thread"
    if stats.shared_bytes > profile.shared_bytes_per_program:
        return f"needs {stats.shared_bytes} bytes of shared memory"
    return ""


def fastest(model: KernelModel, known: Known) -> tuple[Config, float]:
    """The first of the fastest good ones among those compiled, and its microseconds."""
    good = {c: s for c, s in known.items() if not problem(s, model.profile)}
    times = {c: model.predict(c, made(s)).time_us for c, s in good.items()}
    best = next(iter(times))
    for config, time in times.items():
        if time * INDIFFERENT < times[best]:
            best = config
    return best, times[best]


def contenders(model: KernelModel, known: Known, refused: Sequence[Config]) -> list[Config]:
    """What to compile next: best first, AT_ONCE at most; [] where the choice is made."""
    bar = fastest(model, known)[1]
    left = [
        config
        for config, prediction in ranked(model)
        if prediction.time_us * INDIFFERENT < bar and config not in known and config not in refused
    ]
    return left[: min(AT_ONCE, 1 + MOST - len(known))]
