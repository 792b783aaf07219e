"""Broken kernels are refused and unbroken ones are not: a sample, drawn anew in each run.

`make mutants` takes all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from mutants.kernels import specs, unbroken
from mutants.operators import mutants
from mutants.run import Checker

KERNELS, OF_EACH = 5, 12  # what a minute is enough for


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    with Checker() as made:
        yield made


@pytest.mark.parametrize("place", range(KERNELS))
def test_a_kernel_is_accepted_and_its_mutants_are_refused(
    place: int, checker: Checker, testrun_uid: str
) -> None:
    """But for mutants that are shown to be the same program, and those listed as accepted."""
    rng = Random(testrun_uid)  # one for all processes of a run
    kernel = unbroken(rng.sample(list(specs()), KERNELS)[place])
    failed = [r for r in checker.results(kernel, kernel.text) if not r.passed]
    assert not failed
    for mutant in rng.sample(mutants(kernel.text), OF_EACH):
        outcome = checker.outcome(kernel, mutant)
        repeat = f"PYTHONPATH=tests python -m mutants.run {kernel.name}:{mutant.number}"
        assert not outcome.accepted, f"{outcome}\n{outcome.diff}\n{repeat}"


def test_there_are_enough() -> None:
    assert len(specs()) >= 12
    assert sum(len(mutants(unbroken(name).text)) for name in list(specs())[:3]) >= 600
