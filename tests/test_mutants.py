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

OF_EACH = 4  # of the mutants of each of 15 kernels


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    with Checker() as made:
        yield made


@pytest.mark.parametrize("name", specs())
def test_a_kernel_is_accepted_and_its_mutants_are_refused(
    name: str, checker: Checker, testrun_uid: str
) -> None:
    """But for mutants that are shown to be the same program."""
    kernel = unbroken(name)
    failed = [r for r in checker.results(kernel, kernel.text) if not r.passed]
    assert not failed
    for mutant in Random(f"{testrun_uid} {name}").sample(mutants(kernel.text), OF_EACH):
        outcome = checker.outcome(kernel, mutant)
        repeat = f"PYTHONPATH=tests python -m mutants.run {name}:{mutant.number}"
        assert not outcome.accepted, f"{outcome}\n{outcome.diff}\n{repeat}"


def test_there_are_enough() -> None:
    assert len(specs()) >= 12
    assert sum(len(mutants(unbroken(name).text)) for name in list(specs())[:3]) > 300
