"""The journal: what is in it survives a kill, a cut, a changed byte and a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import searches

import superopt
from superopt.errors import JournalError
from superopt.search.journal import Journal

KEY = ("a search",)
RESULTS = [(f"task {n}", json.dumps({"value": n, "text": "x" * 40})) for n in range(12)]


def filled(path: Path) -> Journal:
    journal = Journal.open(path, KEY, resume=False)
    for row in RESULTS:
        journal.record([row])
    return journal


def read(path: Path) -> dict[str, str]:
    return Journal.open(path, KEY, resume=True).done


def test_what_is_written_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "journal")
    assert read(tmp_path / "journal") == dict(RESULTS)
    assert Journal.open(tmp_path / "journal", ("another search",), resume=True).done == {}


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    filled(tmp_path / "journal")
    assert Journal.open(tmp_path / "journal", KEY, resume=False).done == {}
    assert not (tmp_path / "journal").exists()


def test_cut_at_any_byte_it_keeps_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        journal = Journal.open(path, KEY, resume=True)
        assert journal.done == dict(RESULTS[:whole]), size
        journal.record([("after", "{}")])  # starts a line of its own
        assert read(path) == dict([*RESULTS[:whole], ("after", "{}")]), size


def test_a_changed_byte_costs_its_line_at_most_two(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path)
    data = path.read_bytes()
    for at in range(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x08]) + data[at + 1 :])
        kept = read(path)
        assert kept.items() <= dict(RESULTS).items(), at
        assert len(kept) >= len(RESULTS) - (2 if data[at : at + 1] == b"\n" else 1), at


def limited(size: int) -> None:
    """What a child process may write to a file: beyond it writing fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


FILLING = """
import sys, test_journal
from superopt.errors import JournalError
test_journal.limited(400)
try:
    test_journal.filled(test_journal.Path(sys.argv[1]))
except JournalError as error:
    print(error)
"""


def test_a_file_that_can_grow_no_more_ends_at_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(path)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    kept = read(path)
    assert kept == dict(RESULTS[: len(kept)])
    assert 0 < len(kept) < len(RESULTS)
    assert path.read_bytes().endswith(b"\n")
    assert done.stdout.startswith(
        f"{path}: cannot keep the journal: File too large; the {len(kept)}"
    )
    assert "go on with --resume" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_search_and_costs_nothing(small_disk: Path) -> None:
    path = small_disk / "journal"
    with pytest.raises(JournalError, match="No space left on device.*--resume"):
        searches.run(journal=path)
    assert path.read_bytes().endswith(b"\n")
    elsewhere = small_disk.parent / "journal"
    elsewhere.write_bytes(path.read_bytes())  # there is room
    kept = len(elsewhere.read_bytes().splitlines())
    assert kept > 3
    searches.assert_same(searches.run(journal=elsewhere, resume=True))
    assert len(elsewhere.read_bytes().splitlines()) > kept


# -- a killed driver ------------------------------------------------------------------------------

DRIVER = """
import sys, hashlib, pathlib, searches
from superopt.search import scheduler
from superopt.search.pool import ProcessPool
if __name__ == "__main__":
    scheduler.COARSE_S = 0.0001
    with ProcessPool(2) as pool:
        done = searches.run(pool, journal=pathlib.Path(sys.argv[1]), resume=True)
    print(done.stop_reason, hashlib.sha256(repr(searches.kept(done)).encode()).hexdigest())
"""


def environment() -> dict[str, str]:
    paths = [str(Path(superopt.__file__).parents[1]), str(Path(__file__).parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_after_progress(command: list[str], journal: Path, chance: random.Random) -> bool:
    """Start a search and kill it at a random moment once it has added to its journal.

    False where it ended first.
    """
    before = size_of(journal)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and size_of(journal) <= before:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.3))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def cut(journal: Path, chance: random.Random) -> None:
    os.truncate(journal, chance.randrange(size_of(journal)))


def test_a_driver_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """The journal then cut at a random byte. A seed is printed where it fails."""
    seed = time.time_ns()
    chance = random.Random(seed)
    script, journal = tmp_path / "driver.py", tmp_path / "journal"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(journal)]
    assert kill_after_progress(command, journal, chance), seed
    cut(journal, chance)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    kept = hashlib.sha256(repr(searches.kept(searches.expected())).encode()).hexdigest()
    assert done.stdout.split() == ["exhausted", kept], seed
