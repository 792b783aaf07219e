"""Results of finished tasks, in a file that survives a kill, a cut and a full disk.

A line a result: the CRC-32 of the rest, in hexadecimal, then the search, the task and its result as
JSON, with tabs between, which JSON has none of. A line whose checksum is wrong counts as not
written. Lines are in the file before anything builds on them, so that a killed
process loses none; they are synced to the disk once in SYNC_S: a loss of power may cost as much.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from superopt.errors import JournalError
from superopt.mugraph.program import Program
from superopt.mugraph.serialize import to_json

SYNC_S = 1.0
FORMAT = 4  # to be raised where class numbers or results change their meaning


@dataclass
class Journal:
    """`done`: results by task, as JSON. `key` identifies the search: lines of another are passed
    over."""

    path: Path
    key: str
    done: dict[str, str] = field(default_factory=dict)
    _synced: float = 0.0  # when it was, in monotonic seconds

    @staticmethod
    def open(path: Path, search: tuple[object, ...], resume: bool) -> Journal:
        """`search`: all that its results depend on. Without `resume` the file starts anew.

        Raises JournalError where the file cannot be read or written.
        """
        plain = [to_json(x) if isinstance(x, Program) else x for x in search]
        text = json.dumps([FORMAT, plain], sort_keys=True, default=asdict)
        journal = Journal(path, hashlib.sha256(text.encode()).hexdigest()[:16])
        try:
            if resume and path.exists():
                journal._read()
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(path, error.strerror or str(error), len(journal.done)) from error
        return journal

    def _read(self) -> None:
        """Take up what is whole; cut off a torn end, so that what follows starts a line."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        for line in data[:whole].splitlines():
            key, task, result = _checked(line)
            if key == self.key:
                self.done[task] = result

    def record(self, results: Iterable[tuple[str, str]]) -> None:
        """Append results that are not there yet.

        Raises JournalError where that fails; the file is then as it was before.
        """
        fresh = {task: result for task, result in results if task not in self.done}
        if not fresh:
            return
        lines = b"".join(_line(self.key, task, result) for task, result in fresh.items())
        try:
            late = time.monotonic() - self._synced > SYNC_S
            _append(self.path, lines, late)
            if late:
                self._synced = time.monotonic()
        except OSError as error:
            raise JournalError(self.path, error.strerror or str(error), len(self.done)) from error
        self.done.update(fresh)


def _line(key: str, task: str, result: str) -> bytes:
    text = f"{key}\t{task}\t{result}".encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> list[str]:
    """What a line says; of no search where it is damaged."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return ["", "", ""]
    return text.decode().split("\t")


def _append(path: Path, lines: bytes, sync: bool) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(file).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(file, left) :]
            if sync:
                os.fsync(file)
        except OSError:
            os.ftruncate(file, before)  # no half of a line stays
            raise
    finally:
        os.close(file)
