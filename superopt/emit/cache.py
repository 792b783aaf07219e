"""What compiling told, kept on disk: one small file a launch, shared by processes.

An entry is written beside its place and renamed into it, so that a reader sees a whole entry or
none, whoever writes at the same time and wherever a writer is killed. The place is what
`SUPEROPT_CACHE` names, else `superopt` in `XDG_CACHE_HOME` or `~/.cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

STALE = 3600.0  # seconds after which a part that nobody renamed is taken for a killed writer's


def cache_folder() -> Path:
    """The folder in use; it need not exist."""
    if named := os.environ.get("SUPEROPT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "superopt"


class Cache:
    """Plain data by a key of plain data. What cannot be read or written is as if it were not there:
    a full disk or a folder without permission costs time, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Any) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"

    def get(self, key: Any) -> Any | None:
        """What was put for an equal key, or None."""
        with suppress(OSError, ValueError):
            return json.loads(self.path(key).read_text())
        return None

    def put(self, key: Any, value: Any) -> None:
        path, text = self.path(key), json.dumps(value)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._tidy(path.parent)
            with NamedTemporaryFile(
                "w", dir=path.parent, prefix=path.stem, suffix=".part", delete=False
            ) as part:
                part.write(text)
            os.replace(part.name, path)

    @staticmethod
    def _tidy(folder: Path) -> None:
        """Remove what killed writers left."""
        for part in folder.glob("*.part"):
            with suppress(OSError):  # another process may have been faster
                if time.time() - part.stat().st_mtime > STALE:
                    part.unlink()
