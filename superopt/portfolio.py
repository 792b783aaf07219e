"""Many specs at once: tracing, searches, checks and code of all of them are tasks of one scheduler.

Each spec has a report of its own, and one that fails does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from superopt.api import nothing_passed
from superopt.errors import CheckFailed, SpecError, SuperoptError, UsageError
from superopt.mugraph.program import Program, Traced
from superopt.mugraph.serialize import from_json, to_json
from superopt.mugraph.trace import trace as trace_spec
from superopt.pipeline import Helpers, Settings, options_for, ranked_run, settle
from superopt.report import REPORT, folder_files, write_files
from superopt.search.driver import conclude, decode_outcome, encode_outcome, open_frontier
from superopt.search.executor import Executor
from superopt.search.found import Json
from superopt.search.frontier import Frontier
from superopt.search.scheduler import Progress, Progressed, Scheduler
from superopt.search.tasks import Kind, State, Task
from superopt.spec import Spec, load_specs

TRACE = Kind("trace", "superopt.portfolio:traced", 2.0)
SETTLE = Kind("settle", "superopt.portfolio:settled", 6.0)  # check, emit, compile, gate, prove
JOURNAL = "journal.jsonl"
UNSEEN: Json = {"jobs": None, "ray": None, "resume": False}  # settings that no kernel depends on


@dataclass
class Finished:
    """What became of a spec: its report, or why it has no kernel, or both."""

    name: str
    folder: Path
    report: Json | None = None
    error: SuperoptError | None = None

    @property
    def exhausted(self) -> bool:
        report = self.report
        return report is not None and report["search"]["stop_reason"] == "exhausted"


def search_all(
    specs: Sequence[Spec],
    settings: Settings,
    out: Path,
    executor: Executor,
    progress: Progress | None = None,
) -> list[Finished]:
    """Search all specs and write a folder each. Ctrl-C keeps those that are finished.

    Journals stay until all specs are done with: what is resumed repeats no search.
    Raises UsageError where two specs have one name, or kernels are to be timed and no GPU is there.
    """
    names = [s.name for s in specs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two specs are called {name!r}; their results would share a folder")
    if settings.times_kernels:
        executor.start()
        executor.require_gpu()
    searches = [_Pursuit(s, settings, out / s.name) for s in specs]
    try:
        Scheduler(executor, settings.task_limit, progress).run(searches)
    except KeyboardInterrupt:
        for s in searches:
            if not s.over:
                s.fail(CheckFailed(f"{s.spec.name}: interrupted; --resume goes on with it"))
    finished = [s.finished for s in searches]
    if all(f.exhausted for f in finished):
        for f in finished:
            (f.folder / JOURNAL).unlink(missing_ok=True)  # nothing is left to resume
    return finished


class _Pursuit:
    """A `Source`: one spec, from its file to its folder."""

    def __init__(self, spec: Spec, settings: Settings, folder: Path) -> None:
        self.spec = spec
        self.settings = settings
        self.finished = Finished(spec.name, folder)
        self.over = False
        self.described = describe(spec, settings)
        self._next: Task | None = Task(TRACE, (spec.name,))
        self._frontier: Frontier | None = None
        self._search: tuple[Program, float] | None = None
        self._outcome: Json = {}

    @property
    def waiting(self) -> int:
        if self._outcome or self._frontier is None:
            return int(self._next is not None)
        return self._frontier.waiting

    @property
    def gpu(self) -> bool:
        return self._next is not None and self._next.gpu

    def take(self) -> Task | None:
        if self._frontier is not None and not self._outcome:
            task = self._frontier.take()
            self._conclude()
            if task is not None or self.gpu:
                return task
        task, self._next = self._next, None
        return None if task is None or self._settled_before(task) else task

    def setup(self, task: Task) -> str:
        if task.kind in (TRACE, SETTLE) or self._frontier is None:
            return self.described
        return self._frontier.setup(task)

    def argument(self, task: Task) -> Any:
        if task.kind is TRACE:
            return None
        if task.kind is SETTLE:
            return self._outcome
        assert self._frontier is not None
        return self._frontier.argument(task)

    def finish(self, results: Sequence[tuple[Task, str]]) -> None:
        task, text = results[0]
        if task.kind is TRACE:
            self._start(json.loads(text))
        elif task.kind is SETTLE:
            self._write(task, text)
        elif self._frontier is not None:
            self._frontier.finish(results)
            self._conclude()

    def set_aside(self, task: Task, why: str) -> None:
        if task.kind in (TRACE, SETTLE):
            self.fail(CheckFailed(f"{self.spec.name}: {task.kind.name} was set aside: {why}"))
        elif self._frontier is not None:
            self._frontier.set_aside(task, why)
            self._conclude()

    def fail(self, error: Exception) -> None:
        if not isinstance(error, SuperoptError):
            raise error
        self.finished.error = error
        self._end()

    def status(self) -> Progressed:
        if self._frontier is None:
            return Progressed(0, "", 1, 0)
        return self._frontier.status()

    # -- from one stage to the next ---------------------------------------------------------------

    def _start(self, result: Json) -> None:
        program = from_json(result)
        assert isinstance(program, Program)
        journal = self.finished.folder / JOURNAL
        options = options_for(self.spec, self.settings, program, journal)
        self._frontier = open_frontier(program, options)
        self._search = program, time.monotonic()

    def _conclude(self) -> None:
        """Where the search is at its end, what it found is to be settled."""
        if self._frontier is None or self._search is None or not self._frontier.over:
            return
        program, start = self._search
        options = options_for(self.spec, self.settings, program)
        try:
            outcome = conclude(program, options, self._frontier)
        except CheckFailed as error:
            self.fail(error)
            return
        outcome.seconds = time.monotonic() - start
        self._outcome = encode_outcome(outcome)
        same = replace(self.settings, **UNSEEN)
        digest = hashlib.sha256(describe(self.spec, same).encode()).hexdigest()[:16]
        self._next = Task(SETTLE, (self.spec.name, digest), gpu=self.settings.times_kernels)
        self._search = None

    def _settled_before(self, task: Task) -> bool:
        journal = None if self._frontier is None else self._frontier.journal
        if task.kind is not SETTLE or journal is None or task.key not in journal.done:
            return False
        self._write(task, journal.done[task.key])
        return True

    def _write(self, task: Task, text: str) -> None:
        assert self._frontier is not None
        assert self._frontier.journal is not None
        result = json.loads(text)
        write_files(self.finished.folder, result["files"])
        if self._outcome["stop_reason"] == "exhausted":
            self._frontier.journal.record([(task.key, text)])
        self.finished.report = json.loads(result["files"][REPORT])
        if result["failed"]:
            self.finished.error = CheckFailed(result["failed"])
        self._end()

    def _end(self) -> None:
        self.over = True


# -- in workers -----------------------------------------------------------------------------------


def describe(spec: Spec, settings: Settings) -> str:
    """A spec as workers get it: the Python files of its folder, and which spec is meant."""
    path = Path(spec.file)
    files = {p.name: p.read_text() for p in sorted(path.parent.glob("*.py"))}
    return json.dumps([files, path.name, spec.file, spec.name, asdict(settings)])


def _loaded(state: State, setup: str) -> tuple[Spec, Settings, Traced]:
    """The spec, traced: once a worker, for the last one that was asked for.

    Its files stay with it: a kernel.py quotes the functions that the spec uses.
    """
    if state.get("traced", ("", None))[0] != setup:
        files, file, named, name, settings = json.loads(setup)
        folder = tempfile.TemporaryDirectory(prefix="superopt-")
        path = Path(folder.name) / file
        for other, text in files.items():
            (path.parent / other).write_text(text)
        try:
            (spec,) = load_specs(path, name)
            made = trace_spec(spec)
        except SpecError as error:  # as the user named the file
            raise SpecError(str(error).replace(str(path), named)) from error
        spec.file = named
        state["traced"] = setup, (spec, Settings(**settings), made), folder
    found: tuple[Spec, Settings, Traced] = state["traced"][1]
    return found


def traced(state: State, setup: str, argument: Any) -> Json:
    """The program of a spec."""
    _, _, made = _loaded(state, setup)
    return to_json(made.program)


def settled(state: State, setup: str, argument: Json) -> Json:
    """The files of a spec's folder, from what its search found; why there is no kernel, if so."""
    start = time.monotonic()
    spec, settings, made = _loaded(state, setup)
    traced_in = time.monotonic() - start
    run = ranked_run(spec, settings, made, decode_outcome(argument))
    with Helpers.started(settings) as helpers:
        settle(run, helpers)
    run.seconds = {"trace": traced_in} | run.seconds
    return {"files": folder_files(run), "failed": "" if run.source else nothing_passed(run)}
