"""The cache of compilations: whole entries or none, whoever writes and wherever one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from superopt.emit.assembly import GCN, SASS, mix
from superopt.emit.cache import STALE, Cache

ROOT = Path(__file__).parents[1]
KEY = ["kernel", {"num_warps": 4}, "sm_90"]
KILLED = """
import os, signal, sys, time
from pathlib import Path
from superopt.emit.cache import Cache

folder = Path(sys.argv[1])
cache = Cache(folder)
KEY = ["kernel", {"num_warps": 4}, "sm_90"]
MANY = 8_000_000  # characters, so that most of a writer's time goes into writing

def writer(digit):
    child = os.fork()
    while not child:
        cache.put(KEY, digit * MANY)
    return child

cache.put(KEY, "0" * MANY)
seen = set()
for attempt in range(24):
    two = [writer(digit) for digit in "12"]
    time.sleep(0.02 + 0.003 * attempt)
    seen.add(cache.get(KEY))  # beside both
    for child in two:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seen.add(cache.get(KEY))
print(len(list(folder.glob("*/*.part"))), *("torn" if x is None else x[:1] for x in seen))
assert seen <= {digit * MANY for digit in "012"}, "an entry is torn"
"""


def python(code: str, folder: Path, **environment: str) -> str:
    """Run a script on a folder, without the interpreter's setting; its output."""
    known = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True,
        env=known | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_entry_is_whole_wherever_its_writers_are_killed(tmp_path: Path) -> None:
    parts, *seen = python(KILLED, tmp_path).split()
    assert int(parts) > 0, "no writer was killed while it wrote: the test has shown nothing"
    assert {"1", "2"} & set(seen), "no writer ended an entry: the test has shown nothing"
    for part in tmp_path.glob("*/*.part"):
        os.utime(part, (time.time() - STALE - 1,) * 2)
    cache = Cache(tmp_path)
    cache.put(KEY, "another")
    assert cache.get(KEY) == "another"
    assert not list(tmp_path.glob("*/*.part"))


def test_what_cannot_be_read_or_written_is_not_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get(KEY) is None
    cache.put(KEY, {"registers": 40})
    assert cache.get(KEY) == {"registers": 40}
    assert cache.get([*KEY, "more"]) is None
    cache.path(KEY).write_text('{"registers"')
    assert cache.get(KEY) is None
    (tmp_path / "file").touch()
    Cache(tmp_path / "file").put(KEY, 1)  # no folder can be made there


KERNELS = """
import triton
import triton.language as tl

@triton.jit
def twice(x):
    return x * {factor}

@triton.jit
def quick(x_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        total += tl.exp(twice(tl.load(x_ptr + start + tl.arange(0, BLOCK))))
    tl.store(x_ptr + tl.arange(0, BLOCK), total)

@triton.jit
def endless(x_ptr, n, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    for _ in tl.static_range(20000):
        x = tl.sin(x) + n
    tl.store(x_ptr + tl.arange(0, BLOCK), x)
"""
CACHED = """
import sys
from pathlib import Path
import torch
from superopt.emit import compile as c
from superopt.emit.cache import Cache

folder = Path(sys.argv[1])
compiled = []
real = c._side_by_side
c._side_by_side = lambda jobs: compiled.append(len(jobs)) or real(jobs)

def run(name, kernel="quick", target="sm_90", block=128):
    x = torch.empty(4096, device="meta")
    options = {"BLOCK": block, "num_warps": 4, "num_stages": 1}
    launch = c.Launch(getattr(c.load(folder / name), kernel), 1, (x, 4096), options)
    jobs = [c.Job.of(launch, target, loop=True)]
    (stats,) = c._cached(jobs, Cache(folder / "cache"))
    return stats

first = run("a.py")
assert first.ok and first.loop["special"] >= 1 and first.loop["memory"] >= 1, first
assert compiled == [1]
assert run("moved.py") == first and compiled[1:] == [0]
assert run("changed.py").ok and compiled[2:] == [1]  # what it calls is part of it
assert run("a.py", block=256).ok and compiled[3:] == [1]
assert run("a.py", target="gfx942").loop["special"] >= 1 and compiled[4:] == [1]

c.SECONDS = 1
slow = run("a.py", "endless")
assert slow.error == "did not compile in 1 s", slow
assert run("a.py", "endless") == slow and compiled[5:] == [1, 0]
c.SECONDS, c.PATIENCE = 100, 0.001  # the clock's verdict is not kept
slow = run("b.py", "endless")
assert slow.error and run("b.py", "endless").error and compiled[7:] == [1, 1]
"""


def test_compilations_are_kept_by_text_configuration_and_target(tmp_path: Path) -> None:
    text = KERNELS.format(factor="2.0")
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "moved.py").write_text('"""Other words."""\n\n' + text)
    (tmp_path / "changed.py").write_text(KERNELS.format(factor="3.0"))
    (tmp_path / "b.py").write_text(text.replace("tl.sin", "tl.cos"))
    python(CACHED, tmp_path, TRITON_CACHE_DIR=str(tmp_path / "triton"))


LISTING = """
.L_x_0:
        /*0010*/  @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   MUFU.EX2 R1, R1 ;
.L_x_2:
        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24 ;
        /*0040*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
        /*0060*/                   FADD R1, R1, R2 ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
        /*0080*/                   LDG.E R1, [R2] ;
"""


def test_the_inner_loop_is_counted_and_no_loop_around_it() -> None:
    none = dict.fromkeys(SASS, 0) | {"other": 0}
    assert mix(LISTING, SASS) == none | {"tensor": 1, "integer": 1, "other": 1}
    assert mix("LDG.E R1, [R2] ;", SASS) == {}
    loop = ".LBB0_1:\n  v_mfma_f32_32x32x8_f16 a0\n  ds_read_b64 v1\n  s_cbranch_scc1 .LBB0_1\n"
    assert mix(loop, GCN) == none | {"tensor": 1, "memory": 1, "other": 1}
