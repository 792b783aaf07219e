"""Programs that the gate runs side by side give what each gives alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    script = Path(__file__).with_name("batches.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_programs_that_part_give_what_they_give_alone(found: dict[str, Any]) -> None:
    *together, batches = found["together"][0]
    *alone, programs = found["alone"][0]
    assert together == alone
    assert together[-1], "each element was stored"
    assert programs == 20
    # one alone, all others, 5 ways round the loop, 2 ways at the branch for each
    assert batches <= 1 + 1 + 5 + 10


def test_a_bad_access_names_its_program(found: dict[str, Any]) -> None:
    assert found["together"][1:] == found["alone"][1:]
    outside, twice, one_place, counted = found["together"][1:]
    assert "outside, program (5, 0, 0): store outside of every tensor" in outside
    assert "twice, program (6, 0, 0): stores an element twice" in twice
    assert "one_place, program (1, 0, 0): stores an element twice" in one_place
    assert counted == str([8.0] + [0.0] * 7), "what was added is taken back before it runs again"
