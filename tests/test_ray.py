"""The search on Ray: several nodes on this machine, and what befalls them."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import searches
from test_executors import assert_set_aside, misbehaving, one_by_one
from test_journal import cut, environment, kill_after_progress
from typer.testing import CliRunner

from superopt import cli, portfolio
from superopt.errors import RayUnavailable
from superopt.pipeline import Settings
from superopt.report import check_writable
from superopt.search.ray_cluster import RayExecutor
from superopt.search.scheduler import Status
from superopt.search.tasks import Kind
from superopt.spec import load_specs

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENT = os.environ.get("SUPEROPT_FAULTS") == "all"
by_hand = pytest.mark.skipif(not PATIENT, reason="takes long; SUPEROPT_FAULTS=all runs it")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a CPU for workers, and two nodes of one each."""
    utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for `faults`
    made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.small = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()
    patch.undo()


def pids(executor: RayExecutor) -> list[int]:
    return sorted(executor.pids.values())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_worker_and_two_find_the_same(cluster: Any) -> None:
    for workers in (1, 2):
        with RayExecutor(cluster.address, workers) as ray:
            outcome = searches.run(ray)
        searches.assert_same(outcome)
        assert outcome.enumerated == searches.expected().enumerated


def test_workers_killed_five_times(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one(monkeypatch)
    killed: list[int] = []
    seen = [0]
    with RayExecutor(cluster.address) as ray:

        def kill(now: Status) -> None:
            alive = [p for p in pids(ray) if p not in killed]
            if len(killed) < 5 and now.done >= seen[0] + 4 and alive:
                killed.append(alive[0])
                seen[0] = now.done
                os.kill(alive[0], signal.SIGKILL)

        outcome = searches.run(ray, kill)
    assert len(killed) == 5
    searches.assert_same(outcome)


def test_a_node_goes_and_another_comes(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one(monkeypatch)
    changes: list[str] = []
    workers: list[int] = []
    with RayExecutor(cluster.address) as ray:
        ray.start()
        while ray.workers() < 2:  # the search is short: one could end it before another starts
            ray.wait(1.0)

        def change(now: Status) -> None:
            workers.append(now.workers)
            if not changes and now.done > 4:
                changes.append("gone")
                cluster.remove_node(cluster.small.pop(), allow_graceful=False)
                while all(map(alive, pids(ray))):  # its worker outlives it for a while
                    time.sleep(0.1)
            elif changes == ["gone"] and now.workers == 1:
                changes.append("come")
                cluster.small.append(cluster.add_node(num_cpus=1))

        outcome = searches.run(ray, change)
    searches.assert_same(outcome)
    assert changes == ["gone", "come"]
    assert 1 in workers[workers.index(2) :]


def test_a_task_that_always_crashes_is_set_aside(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehaving(monkeypatch, "crash")
    with RayExecutor(cluster.address) as ray:
        assert_set_aside(searches.run(ray), "its worker was killed, or its node")


@by_hand
def test_a_task_that_never_returns_is_set_aside(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehaving(monkeypatch, "hang")
    with RayExecutor(cluster.address) as ray:
        assert_set_aside(searches.run(ray, task_limit=6.0), "did not end in 6 s")


@by_hand
def test_a_worker_out_of_memory_counts_as_killed(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehaving(monkeypatch, "hoard")
    with RayExecutor(cluster.address, memory=2 << 30) as ray:
        assert_set_aside(searches.run(ray), "its worker ran out of its 2048 MiB")


def test_a_cluster_that_is_too_small_says_so(cluster: Any) -> None:
    executor = RayExecutor(cluster.address, memory=1 << 50)
    with pytest.raises(RayUnavailable, match="has a CPU and .* MiB of memory for a worker.*--jobs"):
        executor.start()


# -- GPUs, which are declared and not there -------------------------------------------------------

DOUBLES = """
import superopt
from superopt import Tensor


@superopt.spec(x=Tensor(64, 32))
def double(x):
    return x * 2


@superopt.spec(x=Tensor(64, 32))
def treble(x):
    return x * 3
"""


@pytest.mark.parametrize("measure", [1.0, pytest.param(None, marks=by_hand)])
def test_kernels_are_timed_in_actors_that_have_a_gpu(
    cluster: Any, measure: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One after another, as there is one; all else has none."""
    monkeypatch.setattr(portfolio, "TRACE", Kind("trace", "faults:traced", 2.0))
    monkeypatch.setattr(portfolio, "SETTLE", Kind("settle", "faults:settled", 6.0))
    (tmp_path / "a.py").write_text(DOUBLES)
    specs = load_specs(tmp_path / "a.py")
    for spec in specs:
        check_writable(tmp_path, spec.name)
    node = cluster.add_node(num_cpus=0, num_gpus=1)
    try:
        with RayExecutor(cluster.address) as ray:
            done = portfolio.search_all(specs, Settings(measure=measure), tmp_path, ray)
    finally:
        cluster.remove_node(node)
    assert [f.error for f in done] == [None, None]
    reports = [f.report for f in done if f.report is not None]
    assert len(reports) == 2
    if measure is None:
        assert all(r["gpus"] == [] for r in reports)
        return
    assert all(r["gpus"] == [0] and r["visible"] == "0" for r in reports)
    first, second = sorted(r["span"] for r in reports)
    assert first[1] <= second[0]


def test_timing_without_a_gpu_is_refused_at_the_start(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(DOUBLES)
    options = ("--ray", cluster.address, "--measure", 1, "--out", tmp_path / "r")
    done = call("search", tmp_path / "a.py", *options)
    assert done.exit_code == 2, done.output
    assert "has a GPU, and several specs are timed in workers: leave --measure out" in done.stderr
    assert not list(tmp_path.glob("r/*/*"))


# -- the command ----------------------------------------------------------------------------------


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_without_ray_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    done = call("search", EXAMPLES / "lora.py", "--ray", "local", "--out", tmp_path)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: Ray is not installed: pip install 'superopt[ray]'; or")
    assert done.stderr.endswith("with --jobs N\n")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere"])
def test_a_cluster_that_is_not_there(host: str, tmp_path: Path) -> None:
    address = host if host == "nowhere" else f"{host}:{free_port()}"
    done = call("search", EXAMPLES / "lora.py", "--ray", address, "--out", tmp_path)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: no Ray cluster at {address!r}: ")
    assert "give local, auto or HOST:PORT" in done.stderr
    assert "--jobs N" in done.stderr


AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def marked(mark: str, agents: bool) -> dict[int, bytes]:
    """Processes that have this mark in their environment, Ray's agents among them or not."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                environ = (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes().rstrip(b"\0")
            except OSError:
                continue
            if mark.encode() in environ and (agents or not command.startswith(AGENTS)):
                found[int(process.name)] = command
    return found


DRIVER = """
import pathlib, sys, searches
from superopt.search import scheduler
from superopt.search.ray_cluster import RayExecutor
if __name__ == "__main__":
    scheduler.COARSE_S = 0.0001
    with RayExecutor("local", 2) as ray:
        done = searches.run(ray, journal=pathlib.Path(sys.argv[1]), resume=True)
    print(done.stop_reason, len(done.candidates))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C keeps what was found; after a kill the search goes on without Ray.

    A killed driver stops no one: its raylet's agents may look for the head for a minute.
    """
    agents = how == signal.SIGINT or PATIENT
    name, value = "SUPEROPT_TEST_MARK", f"{tmp_path.name}.{os.getpid()}"
    script, journal = tmp_path / "driver.py", tmp_path / "journal"
    script.write_text(DRIVER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(journal)],
        env=environment() | {name: value},
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (journal.exists() and b"assemble" in journal.read_bytes()):
        time.sleep(0.02)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 120  # Ray's own processes see that we are gone
    while marked(f"{name}={value}", agents) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = marked(f"{name}={value}", agents)
    for pid in marked(f"{name}={value}", True):
        os.kill(pid, signal.SIGKILL)
    assert left == {}
    if how == signal.SIGINT:
        assert process.returncode == 0
        reason, candidates = output.split()[-2:]
        assert reason == "interrupted"
        assert int(candidates) > 0
    else:
        assert process.returncode == -signal.SIGKILL
    searches.assert_same(searches.run(journal=journal, resume=True))


@pytest.mark.slow
@by_hand
def test_a_driver_killed_ten_times_writes_the_same_kernel(tmp_path: Path) -> None:
    """On Ray, its journal once cut at a random byte; it ends without Ray."""
    seed = time.time_ns()
    chance = random.Random(seed)
    command = [sys.executable, "-m", "superopt.cli", "search", str(EXAMPLES / "attention.py")]
    command += ["--out", str(tmp_path / "killed"), "--resume"]
    journal = tmp_path / "killed" / "attention" / "journal.jsonl"
    for turn in range(10):
        killed = kill_after_progress([*command, "--ray", "local", "--jobs", "2"], journal, chance)
        print(f"kill {turn}: {killed}, journal of {journal.stat().st_size} bytes")
        assert killed, seed
        if turn == 4:
            cut(journal, chance)
            print(f"cut to {journal.stat().st_size} bytes")
    assert subprocess.run(command, env=environment()).returncode == 0, seed
    alone = call("search", EXAMPLES / "attention.py", "--out", tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    kernels = [(tmp_path / n / "attention" / "kernel.py").read_bytes() for n in ("killed", "alone")]
    assert kernels[0] == kernels[1], seed


TWO_SPECS = """
import torch
import superopt
from superopt import Tensor


@superopt.spec(x=Tensor(64, 32))
def double(x):
    return x * 2


@superopt.spec(x=Tensor(64, 64), v=Tensor(64, 64), w=Tensor(64, 64), dtype=torch.float16)
def two_products(x, v, w):
    return torch.relu(x @ v) @ w


@superopt.spec(x=Tensor(64, 32))
def broken(x):
    return torch.linalg.inv(x[:32])
"""


@pytest.mark.slow
@by_hand
def test_specs_together_give_the_kernels_that_they_give_alone(tmp_path: Path) -> None:
    """On Ray, traced and checked there too; one that fails does not stop the others."""
    (tmp_path / "a.py").write_text(TWO_SPECS)
    done = call("search", tmp_path / "a.py", "--ray", "local", "--jobs", 2, "--out", tmp_path / "r")
    assert done.exit_code == 2, done.output
    assert f"error: {tmp_path / 'a.py'}" in done.stderr
    assert "is not supported" in done.stderr
    for name in ("double", "two_products"):
        alone = call("search", f"{tmp_path / 'a.py'}:{name}", "--out", tmp_path / "alone")
        assert alone.exit_code == 0, alone.output
        kernels = [(tmp_path / out / name / "kernel.py").read_bytes() for out in ("r", "alone")]
        assert kernels[0] == kernels[1]
