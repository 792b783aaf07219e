"""The model's few parameters, fitted to measured times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log

from superopt.cost_model.model import predict
from superopt.cost_model.profile import Profile
from superopt.mugraph.program import Config, KernelGraph

# What datasheets do not say: shares of the peaks that are reached, at most 1, and a launch's cost.
SHARES = ("dram_fraction", "dot_fraction")
PARAMETERS = (*SHARES, "launch_s")
FACTORS = (0.5, 0.7, 0.85, 0.95, 1.0, 1.05, 1.18, 1.4, 2.0)
TURNS = 3  # over all parameters
LEAST = 4  # measured times, or nothing is fitted


@dataclass(frozen=True)
class Case:
    """A µGraph in a configuration at some sizes, and its measured microseconds."""

    graph: KernelGraph
    configs: tuple[Config, ...]
    sizes: Mapping[str, int]
    measured_us: float


def refit(profile: Profile, cases: Sequence[Case]) -> Profile:
    """The profile with those PARAMETERS that predict the cases best, one after another.

    Least squares of the logarithms of predicted over measured. With fewer than LEAST cases, or
    where nothing is better, the profile stays as it is.
    """
    if len(cases) < LEAST:
        return profile
    best, least = profile, error(profile, cases)
    for _ in range(TURNS):
        for name in PARAMETERS:
            tried = [_with(best, name, f) for f in FACTORS]
            found = min(tried, key=lambda p: error(p, cases))
            if error(found, cases) < least:
                best, least = found, error(found, cases)
    return best


def _with(profile: Profile, name: str, factor: float) -> Profile:
    value = getattr(profile, name) * factor
    change: Callable[..., Profile] = replace
    return change(profile, **{name: min(value, 1.0) if name in SHARES else value})


def error(profile: Profile, cases: Sequence[Case]) -> float:
    """The mean square of log(predicted / measured)."""
    total = 0.0
    for case in cases:
        predicted = predict(case.graph, case.configs, case.sizes, profile).time_us
        total += log(predicted / case.measured_us) ** 2
    return total / len(cases)
