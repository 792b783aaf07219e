"""One interface for running tasks: in this process, or in a pool; finished tasks are journalled.

A task is a cut; its result is the µGraphs found for it. Results come in the order of the tasks,
whatever
finishes first, so that nothing downstream depends on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from superopt.cost_model.model import Prediction
from superopt.cost_model.profile import Profile
from superopt.errors import UsageError
from superopt.mugraph.program import Config, KernelGraph, Program
from superopt.mugraph.serialize import from_json, to_json
from superopt.mugraph.text import inline
from superopt.search.extract import Counts
from superopt.search.space import Found, Sizes, Space

Task = tuple[int, ...]
FORMAT = 2  # of the journal: to be raised where class numbers or results change their meaning


@dataclass
class Result:
    """What a task found, and what it counted."""

    task: Task
    found: list[Found]
    counts: Counts
    assigned: int = 0
    configured: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    laws: dict[str, int] = field(default_factory=dict)


@dataclass
class Journal:
    """Results of finished tasks, a JSON line each, in a file that survives a kill.

    `key` identifies the search: lines of another are passed over.
    """

    path: Path
    key: str
    done: dict[Task, Result] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, search: tuple[object, ...], resume: bool) -> Journal:
        """`search`: all that its results depend on. Without `resume` the file starts anew."""
        plain = [to_json(x) if isinstance(x, Program) else x for x in search]
        text = json.dumps([FORMAT, plain], sort_keys=True, default=asdict)
        journal = Journal(path, hashlib.sha256(text.encode()).hexdigest()[:16])
        if not resume:
            path.unlink(missing_ok=True)
        elif path.exists():
            journal._read()
        return journal

    def _read(self) -> None:
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line at which a killed search was writing
            if row.get("key") == self.key:
                result = decode(row["result"])
                self.done[result.task] = result

    def record(self, result: Result) -> None:
        if result.task in self.done:
            return
        self.done[result.task] = result
        try:
            with self.path.open("a") as out:
                out.write(json.dumps({"key": self.key, "result": encode(result)}) + "\n")
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from error


def encode(result: Result) -> dict[str, Any]:
    found = [
        {
            "graph": to_json(f.graph),
            "sizes": f.sizes,
            "configs": [to_json(c) for c in f.configs],
            "parts": [asdict(p) for p in f.parts],
        }
        for f in result.found
    ]
    counts = [asdict(result.counts), result.assigned, result.configured]
    return {"task": result.task, "found": found, "counts": counts, "refused": result.refused,
            "laws": result.laws}  # fmt: skip


def decode(data: dict[str, Any]) -> Result:
    found = []
    for row in data["found"]:
        graph = from_json(row["graph"])
        configs = tuple(from_json(c) for c in row["configs"])
        assert isinstance(graph, KernelGraph)
        assert all(isinstance(c, Config) for c in configs)
        sizes = tuple((str(n), int(v)) for n, v in row["sizes"])
        found.append(Found(graph, sizes, configs, tuple(Prediction(**p) for p in row["parts"])))
    counts, assigned, configured = data["counts"]
    task, laws = tuple(data["task"]), data["laws"]
    refused = data["refused"]
    return Result(task, found, Counts(**counts), assigned, configured, refused, laws)


def run_task(space: Space, task: Task, sizes: Sequence[Sizes]) -> Result:
    """Search one cut at every size. Counts are the task's own, whatever ran before it here."""
    space.forget()
    found = [f for s in sizes for f in space.search_cut(task, s)]
    done = space.tally
    refused = {inline(t): e for t, e in done.refused.items()}
    return Result(task, found, done.counts, done.assigned, done.configured, refused, done.laws)


# -- the pool -----------------------------------------------------------------------------------

BuildSpace = Callable[[Program, Profile], Space]
_worker_space: Space | None = None


def _start_worker(program: Any, profile: Profile, build: BuildSpace) -> None:
    global _worker_space
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    decoded = from_json(program)
    assert isinstance(decoded, Program)
    _worker_space = build(decoded, profile)


def _work(task: Task, sizes: Sequence[Sizes]) -> dict[str, Any]:
    assert _worker_space is not None
    return encode(run_task(_worker_space, task, sizes))


def run_tasks(
    tasks: Sequence[Task],
    space: Space,
    program: Program,
    sizes: Sequence[Sizes],
    jobs: int,
    journal: Journal | None,
    build: BuildSpace,
) -> Iterator[Result]:
    """Results in the order of `tasks`. Close the iterator to stop early."""
    done = journal.done if journal is not None else {}
    todo = [t for t in tasks if t not in done]
    fresh = (
        _pooled(todo, space, program, sizes, jobs, build)
        if jobs > 1 and len(todo) > 1
        else (run_task(space, t, sizes) for t in todo)
    )
    for task in tasks:
        result = done.get(task) or next(fresh)
        if journal is not None:
            journal.record(result)
        yield result


def _pooled(
    tasks: Sequence[Task],
    space: Space,
    program: Program,
    sizes: Sequence[Sizes],
    jobs: int,
    build: BuildSpace,
) -> Iterator[Result]:
    arguments = (to_json(program), space.profile, build)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, arguments) as pool:
        waiting: list[Future[dict[str, Any]]] = [pool.submit(_work, t, sizes) for t in tasks]
        try:
            for future in waiting:
                yield decode(future.result())
        finally:
            for future in waiting:
                future.cancel()
