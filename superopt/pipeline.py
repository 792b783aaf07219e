"""From a spec to a checked kernel: trace, search, check, emit, compile, gate, prove.

A candidate that a stage refuses is replaced by the next of the ranking, until a kernel passes or
none is left. Ctrl-C ends the stage it meets; what was found until then is kept.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from superopt.buckets import Row, by_volume, more_rows
from superopt.compiler import Compiler
from superopt.contention import contenders, fastest, made, problem
from superopt.cost_model.baselines import baselines
from superopt.cost_model.configs import ranked, size_of_space, tile_work
from superopt.cost_model.model import KernelModel, Prediction, predict
from superopt.cost_model.profile import Profile, load_profile
from superopt.cost_model.refit import Case, refit
from superopt.cost_model.timing import refuse_unfit
from superopt.emit import Notes, emit
from superopt.emit.compile import CompileStats
from superopt.errors import IllFormed, UsageError
from superopt.measuring import MOST, Measuring
from superopt.measuring import Row as Timed
from superopt.mugraph.program import Choice, Config, KernelGraph, Program, Traced
from superopt.mugraph.trace import trace
from superopt.search.driver import (
    Candidate,
    Options,
    Outcome,
    as_good,
    choices,
    merit,
    search_program,
    to_choice,
)
from superopt.search.executor import Executor, InProcess
from superopt.search.found import Sizes
from superopt.search.pool import ProcessPool
from superopt.search.ray_cluster import RayExecutor
from superopt.search.scheduler import TASK_LIMIT_S, Progress
from superopt.spec import Spec
from superopt.verify import (
    GateResult,
    Proof,
    Proving,
    SpecShape,
    Verdict,
    Worker,
    check_graph,
    gate,
    gate_sizes,
)

PRECISIONS = ("ieee", "tf32", "tf32x3")
DEFAULT_LARGEST = 4096  # where a spec names no sizes to tune for, extents beyond this are not tuned
HOPELESS = 2.0  # times the allowed error: another order of the same sums will not mend it
LIGHTER = (1.0, 0.5, 0.25, 0.25)  # what the next configuration tried may do of the last one's work


@dataclass(frozen=True)
class Settings:
    """What a call may choose. Seconds for the limits; `top` candidates are kept.

    `jobs`: processes that search, by default one, or with `ray` (local, auto or HOST:PORT) as many
    as the cluster has room for. `task_limit`: a part of the search that takes longer is stopped.

    `measure`: seconds in which configurations are timed on the GPU; `rehearse`: on the CPU, with a
    stubbed clock. Raises UsageError where a value is not allowed.
    """

    target: str = "h200"
    time_limit: float | None = None
    jobs: int | None = None
    top: int = 8
    seed: int = 0
    exhaustive: bool = False
    precision: str = "ieee"
    allow_unsafe: bool = False
    resume: bool = False
    measure: float | None = None
    rehearse: bool = False
    ray: str | None = None
    task_limit: float = TASK_LIMIT_S

    def __post_init__(self) -> None:
        load_profile(self.target)
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}"
            )
        for name in ("jobs", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; at least 1 is needed")
        for name in ("time_limit", "task_limit", "measure"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                title = name.replace("_", " ")
                raise UsageError(f"{title} is {value} s; a positive time is needed")
        if self.rehearse and self.measure is None:
            raise UsageError("only measuring is rehearsed: give the seconds for it by --measure")

    @property
    def times_kernels(self) -> bool:
        """Whether a GPU is needed."""
        return self.measure is not None and not self.rehearse

    def executor(self) -> Executor:
        """What runs the tasks, not started yet."""
        if self.ray is not None:
            return RayExecutor(self.ray, self.jobs)
        return InProcess() if self.jobs in (None, 1) else ProcessPool(self.jobs)


@dataclass(frozen=True)
class Refusal:
    """A candidate that a stage turned away; `rank` is its place in the search's ranking, from 0."""

    rank: int
    stage: str  # check, emit, compile, gate, proof
    reason: str
    witness: Mapping[str, Any] = field(default_factory=dict)
    excess: float = 0.0  # of the gate: the error over what is allowed


@dataclass
class Draft:
    """What runs for one tuned size, once compiled.

    `skipped` says what was wrong with better ranked configurations; `tried` are those, by kernel.
    `in_contention`: compiled only to compare them; `predicted`: all that the model compared.
    """

    sizes: Sizes
    candidate: Candidate
    configs: list[Config]
    compiled: tuple[CompileStats, ...] = ()
    skipped: list[str] = field(default_factory=list)
    tried: dict[int, list[Config]] = field(default_factory=dict)
    in_contention: int = 0
    predicted: int = 0
    timed: list[tuple[tuple[Config, ...], Timed]] = field(default_factory=list)

    @property
    def choice(self) -> Choice:
        choice = to_choice(self.sizes, self.candidate, tuple(self.configs))
        row = self.measured
        if row is None:
            return choice
        if row["kind"] != "measured":
            return replace(choice, note=f"{row['kind']}: no measurement")
        return replace(choice, note=f"{row['median_us']:.1f} us, measured on {row['device']}")

    @property
    def measured(self) -> Timed | None:
        """The fastest that was timed, which is what runs."""
        good = [row for _, row in self.timed if "median_us" in row]
        return min(good, key=lambda row: float(row["median_us"]), default=None)

    def prediction(self, profile: Profile) -> Prediction:
        """By what the compiler made of it, once that is known."""
        known = [made(stats) for stats in self.compiled]
        return predict(self.candidate.graph, self.configs, dict(self.sizes), profile, known)


@dataclass
class Run:
    """All that one run found and refused, for the report. `source` is empty without a kernel."""

    spec: Spec
    settings: Settings
    profile: Profile
    traced: Traced
    sizes: tuple[Sizes, ...]
    outcome: Outcome
    baselines: dict[Sizes, dict[str, Prediction]]
    stop_reason: str
    seconds: dict[str, float] = field(default_factory=dict)
    verdicts: dict[KernelGraph, Verdict] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    left: list[Candidate] = field(default_factory=list)  # not refused
    drafts: dict[tuple[KernelGraph, Sizes], Draft] = field(default_factory=dict)
    picks: tuple[Draft, ...] = ()
    source: str = ""
    gate: GateResult | None = None
    proof: Proof | None = None
    refitted: Profile | None = None  # by what was measured

    @property
    def program(self) -> Program:
        return self.traced.program

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def draft(self, sizes: Sizes, candidate: Candidate) -> Draft:
        """The one draft of a candidate at a size: what was tried for it stays known."""
        made = Draft(sizes, candidate, list(candidate.at[sizes][0]))
        return self.drafts.setdefault((candidate.graph, sizes), made)

    def rank(self, candidate: Candidate) -> int:
        return next(n for n, c in enumerate(self.outcome.candidates) if c is candidate)


def find_kernel(
    spec: Spec,
    settings: Settings,
    progress: Progress | None = None,
    journal: Path | None = None,
    executor: Executor | None = None,
) -> Run:
    """Search, and settle on the best candidates that pass. The run has no source where none did.

    `journal`: a file in which the search keeps its finished tasks, for `settings.resume`.
    `executor`: what runs the search's tasks, in place of what `settings` ask for; it stays open.
    Raises SpecError where the spec cannot be traced, CheckFailed where nothing at all was found.
    """
    with Helpers.started(settings) as helpers:
        run = searched(spec, settings, progress, journal, executor)
        settle(run, helpers)
    return run


def searched(
    spec: Spec,
    settings: Settings,
    progress: Progress | None = None,
    journal: Path | None = None,
    executor: Executor | None = None,
) -> Run:
    """Trace and search only: the candidates are ranked, and nothing is compiled or checked."""
    start = time.monotonic()
    traced = trace(spec)
    traced_in = time.monotonic() - start
    options = options_for(spec, settings, traced.program, journal)
    with ExitStack() as stack:
        own = executor or stack.enter_context(settings.executor())
        outcome = search_program(traced.program, options, progress, own)
    run = ranked_run(spec, settings, traced, outcome)
    run.seconds["trace"] = traced_in
    return run


def options_for(
    spec: Spec, settings: Settings, program: Program, journal: Path | None = None
) -> Options:
    """The search that settings ask for."""
    return Options(
        load_profile(settings.target),
        tuned_sizes(program, spec),
        settings.time_limit,
        settings.top,
        settings.exhaustive,
        settings.allow_unsafe,
        journal,
        settings.resume,
        settings.task_limit,
    )


def ranked_run(spec: Spec, settings: Settings, traced: Traced, outcome: Outcome) -> Run:
    """A run of which the search is done, and nothing else."""
    profile, sizes = load_profile(settings.target), tuned_sizes(traced.program, spec)
    known = {s: baselines(traced.program, dict(s), profile) for s in sizes}
    run = Run(spec, settings, profile, traced, sizes, outcome, known, outcome.stop_reason)
    run.left = list(outcome.candidates)
    return run


def settle(run: Run, helpers: Helpers) -> None:
    """Check, emit, compile, gate and prove what a search found, best first, until one passes."""
    helpers.proving.start()  # it loads Triton while candidates are compiled
    try:
        _settle(run, lambda picked: _try(run, picked, helpers))
        if not run.source:
            _as_written(run)
            _settle(run, lambda picked: _try(run, picked, helpers))
    except KeyboardInterrupt:
        run.stop_reason = "interrupted"
    run.refitted = refit(run.profile, _cases(run)) if run.settings.measure else None


def configure(run: Run, compiler: Compiler) -> None:
    """Choose and compile configurations of the best µGraphs that pass their check: `run.picks` is
    what `find_kernel` would take if gate and proof refused nothing."""

    def attempt(picked: Sequence[tuple[Sizes, Candidate]]) -> Candidate | None:
        for _, candidate in picked:
            if not _checked(run, candidate):
                return candidate
        drafts = _bucketed(run, picked, compiler)
        if isinstance(drafts, Candidate):
            return drafts
        run.picks = tuple(drafts)
        return None

    _settle(run, attempt)


def tuned_sizes(program: Program, spec: Spec) -> tuple[Sizes, ...]:
    """The sizes to choose configurations for: the spec's, else a middle, a small and a large one.

    B in 1..4096 without `tune_at` gives B=64, B=1 and B=4096.
    """
    if spec.tune_at:
        return tuple(dict.fromkeys(tuple(sorted(s.items())) for s in spec.tune_at))
    rows: list[list[tuple[str, int]]] = [[], [], []]
    for s in program.symbols:
        low = max(s.low, 1)
        high = max(low, min(s.high, DEFAULT_LARGEST))
        for row, size in zip(rows, (round((low * high) ** 0.5), low, high), strict=True):
            row.append((s.name, size))
    return tuple(dict.fromkeys(tuple(sorted(row)) for row in rows))


# -- settling on what passes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Helpers:
    """Processes beside this one."""

    worker: Worker
    compiler: Compiler
    proving: Proving
    measuring: Measuring

    @staticmethod
    @contextmanager
    def started(settings: Settings) -> Iterator[Helpers]:
        if settings.times_kernels:
            refuse_unfit()
        measuring = Measuring(settings.measure or 0.0, settings.rehearse)
        with Worker() as worker, Compiler() as compiler, Proving() as proving, measuring:
            worker.start()  # it loads torch while we search
            yield Helpers(worker, compiler, proving, measuring)


class Slower(Exception):
    """What a candidate could be compiled with is slower than another candidate."""


Attempt = Callable[[Sequence[tuple[Sizes, Candidate]]], Candidate | None]


def _as_written(run: Run) -> None:
    """Candidates that compute what the program says as it says it, where all others are refused."""
    options = options_for(run.spec, run.settings, run.program)
    with run.phase("search as written"):
        outcome = search_program(run.program, replace(options, algebra=False))
    known = {c.graph for c in run.outcome.candidates}
    run.left = [c for c in outcome.candidates if c.graph not in known]
    run.outcome.candidates += run.left


def _settle(run: Run, attempt: Attempt) -> None:
    """Let `attempt` try the best candidates until it refuses none of those that it is given."""
    while picked := choices(run.left, run.sizes):
        try:
            refused = attempt(picked)
        except Slower:
            continue
        if refused is None:
            return
        last = run.refusals[-1]
        if last.stage == "compile":  # at one size; it may serve the others
            del refused.at[tuple(last.witness["sizes"].items())]
        if last.stage != "compile" or not refused.at:
            run.left = [c for c in run.left if c is not refused]
        if last.stage == "gate" and last.excess > HOPELESS:
            alike = [c for c in run.left if _values(c) == _values(refused)]
            for c in alike:
                _refuse(run, c, "gate", f"computes the values of candidate {last.rank}", {})
            run.left = [c for c in run.left if all(c is not a for a in alike)]


def _values(candidate: Candidate) -> list[str]:
    """What is computed, however it is split over programs and loops."""
    return [s.value.digest for k in candidate.graph.kernels for s in k.stores]


def _try(run: Run, picked: Sequence[tuple[Sizes, Candidate]], helpers: Helpers) -> Candidate | None:
    """Accept a kernel made of these candidates, or say which of them is refused."""
    for _, candidate in picked:
        if not _checked(run, candidate):
            return candidate
    drafts = _bucketed(run, picked, helpers.compiler)
    if not isinstance(drafts, Candidate) and run.settings.measure:
        drafts = _timed(run, drafts, helpers)
    if isinstance(drafts, Candidate):
        return drafts
    source = _emitted(run, drafts)
    if isinstance(source, Candidate):
        return source
    result, proof = _examined(run, drafts, source, helpers)
    claimed = None if proof is None else proof.addresses.verdict
    if claimed is not None and claimed.kind == "refused":
        guilty = _at_fault(drafts, claimed.witness)
        _refuse(run, guilty, "proof", f"addresses: {claimed}", claimed.witness)
        return guilty
    if not result.passed:
        guilty = _at_fault(drafts, result.witness.get("sizes", {}))
        if not run.settings.allow_unsafe or "raised" in result.witness:
            _refuse(run, guilty, "gate", str(result), result.witness, result.worst)
            return guilty
        run.gate = result  # admitted all the same: the kernel says so
        source = _emitted(run, drafts)
        assert isinstance(source, str)
    run.picks, run.source, run.gate, run.proof = tuple(drafts), source, result, proof
    return None


def _refuse(
    run: Run,
    candidate: Candidate,
    stage: str,
    reason: str,
    witness: Mapping[str, Any],
    excess: float = 0.0,
) -> None:
    run.refusals.append(Refusal(run.rank(candidate), stage, reason, dict(witness), excess))


def _checked(run: Run, candidate: Candidate) -> bool:
    graph = candidate.graph
    if graph not in run.verdicts:
        with run.phase("check"):
            run.verdicts[graph] = check_graph(run.program, graph, run.settings.seed)
        verdict = run.verdicts[graph]
        if not verdict.passed:
            _refuse(run, candidate, "check", str(verdict), verdict.witness)
    return run.verdicts[graph].passed


def _bucketed(
    run: Run, picked: Sequence[tuple[Sizes, Candidate]], compiler: Compiler
) -> list[Draft] | Candidate:
    """`_fitted`, and drafts for the sizes between that need one; see `buckets`."""
    drafts = _fitted(run, picked, compiler)
    if isinstance(drafts, Candidate):
        return drafts
    rows = [Row(d.sizes, d.candidate, tuple(d.configs)) for d in drafts]
    refused = {
        (id(run.outcome.candidates[r.rank]), tuple(r.witness["sizes"].items()))
        for r in run.refusals
        if r.stage == "compile"
    }
    more = more_rows(rows, run.program.symbols, run.profile, refused)
    return _fitted(run, [*picked, *more], compiler) if more else drafts


def _fitted(
    run: Run, picked: Sequence[tuple[Sizes, Candidate]], compiler: Compiler
) -> list[Draft] | Candidate:
    """Drafts whose every launch compiles for the target without spilling, or who has none such.

    What does not compile well gets the model's next best configuration, a few times.
    """
    drafts = [run.draft(sizes, c) for sizes, c in picked]
    while open_ones := [d for d in drafts if not d.compiled]:
        source = _emitted(run, drafts)
        if not isinstance(source, str):
            return source
        with run.phase("compile"):
            calls = [(source, dict(d.sizes)) for d in open_ones]
            found = compiler.all(calls, run.profile.arch)
        for draft, compiled in zip(open_ones, found, strict=True):
            problems = {n: p for n, c in enumerate(compiled) if (p := problem(c, run.profile))}
            if not problems:
                draft.compiled = tuple(compiled)
                if draft.timed:
                    continue  # what was measured is not predicted away
                _contend(run, draft, compiler)
                draft.candidate.at[draft.sizes] = (
                    tuple(draft.configs),
                    draft.prediction(run.profile),
                )
                if _overtaken(run, draft):
                    raise Slower
            elif not _replaced(run, draft, problems):
                reason = "; ".join(draft.skipped)
                _refuse(run, draft.candidate, "compile", reason, {"sizes": dict(draft.sizes)})
                return draft.candidate
            elif _overtaken(run, draft):
                raise Slower
    return drafts


def _overtaken(run: Run, draft: Draft) -> bool:
    """Whether another candidate is predicted faster than this one, now that it had to change."""
    now = draft.candidate.at[draft.sizes][1]
    others = [c.at[draft.sizes][1] for c in run.left if draft.sizes in c.at]
    return not as_good(now, min(others, key=merit))


def _contend(run: Run, draft: Draft, compiler: Compiler) -> None:
    """Compare a draft's configurations with those that may be faster, once; see `contention`."""
    if draft.predicted:
        return
    compiled = draft.compiled
    for n, kernel in enumerate(draft.candidate.graph.kernels):
        model = KernelModel(kernel, dict(draft.sizes), run.profile)
        draft.predicted += size_of_space(model)
        known = {draft.configs[n]: compiled[n]}
        refused = draft.tried.get(n, [])
        while left := contenders(model, known, refused):
            found = _compiled_alone(run, draft, n, left, compiler)
            known.update(zip(left, found, strict=True))
        draft.in_contention += len(known) - 1
        best, _ = fastest(model, known)
        if best != draft.configs[n]:
            draft.configs[n], draft.compiled = best, ()


def _compiled_alone(
    run: Run, draft: Draft, n: int, configs: Sequence[Config], compiler: Compiler
) -> list[CompileStats]:
    """What the compiler makes of kernel `n` in each of some configurations, at the draft's size."""
    calls = []
    for config in configs:
        others = [config if m == n else c for m, c in enumerate(draft.configs)]
        choice = to_choice(draft.sizes, draft.candidate, tuple(others))
        with run.phase("emit"):
            source = emit(run.traced, [choice], notes(run, [draft]))
        calls.append((source, dict(draft.sizes)))
    with run.phase("compile"):
        return [stats[n] for stats in compiler.all(calls, run.profile.arch)]


def _replaced(run: Run, draft: Draft, problems: Mapping[int, str]) -> bool:
    """Give the kernels with problems their next configurations; False where one has none left."""
    for n, wrong in problems.items():
        kernel, config = draft.candidate.graph.kernels[n], draft.configs[n]
        draft.skipped.append(f"{kernel.name} {describe_config(config)}: {wrong}")
        tried = draft.tried.setdefault(n, [])
        tried.append(config)
        if len(tried) > len(LIGHTER):
            return False
        model = KernelModel(kernel, dict(draft.sizes), run.profile)
        most = tile_work(config) * LIGHTER[len(tried) - 1]
        left = [c for c, _ in ranked(model, most) if c not in tried]
        if not left:
            return False
        draft.configs[n] = left[0]
    draft.candidate.at[draft.sizes] = tuple(draft.configs), draft.prediction(run.profile)
    return True


# -- measuring -----------------------------------------------------------------------------------


def _timed(run: Run, drafts: Sequence[Draft], helpers: Helpers) -> list[Draft] | Candidate:
    """Drafts with the fastest of the configurations that were timed for the tuned sizes."""
    waiting = [d for d in drafts if d.sizes in run.sizes and not d.timed]
    for n, draft in enumerate(waiting):
        kept = helpers.measuring.budget * (1 - 1 / (len(waiting) - n))  # for those after it
        for configs in _alternatives(run, draft):
            if helpers.measuring.budget <= kept:
                break
            draft.timed.append((configs, _timed_once(run, draft, configs, helpers)))
        good = {configs: row["median_us"] for configs, row in draft.timed if "median_us" in row}
        best = min(good, key=lambda c: float(good[c]), default=tuple(draft.configs))
        if best != tuple(draft.configs):
            draft.configs, draft.compiled = list(best), ()
    return _fitted(run, [(d.sizes, d.candidate) for d in drafts], helpers.compiler)


def _alternatives(run: Run, draft: Draft) -> list[tuple[Config, ...]]:
    """The best configurations by the model: one kernel's at a time, its others as they are."""
    graph, sizes = draft.candidate.graph, dict(draft.sizes)
    found = {tuple(draft.configs): 0.0}
    for n, kernel in enumerate(graph.kernels):
        for config, _ in ranked(KernelModel(kernel, sizes, run.profile), kept=MOST):
            if config not in draft.tried.get(n, []):
                configs = tuple(config if m == n else c for m, c in enumerate(draft.configs))
                found.setdefault(configs, predict(graph, configs, sizes, run.profile).time_us)
    return sorted(found, key=lambda c: found[c])[:MOST]


def _timed_once(run: Run, draft: Draft, configs: tuple[Config, ...], helpers: Helpers) -> Timed:
    choice = to_choice(draft.sizes, draft.candidate, configs)
    with run.phase("emit"):
        source = emit(run.traced, [choice], notes(run, [draft]))
    with run.phase("compile"):
        compiled = helpers.compiler(source, dict(draft.sizes), run.profile.arch)
    if wrong := next((p for c in compiled if (p := problem(c, run.profile))), ""):
        return {"note": wrong}
    tensors = SpecShape.of(run.spec).tensors
    with run.phase("measure"):
        return helpers.measuring(source, run.program.name, tensors, dict(draft.sizes))


def _cases(run: Run) -> list[Case]:
    return [
        Case(draft.candidate.graph, configs, dict(draft.sizes), float(row["median_us"]))
        for draft in run.drafts.values()
        for configs, row in draft.timed
        if "median_us" in row
    ]


def _emitted(run: Run, drafts: Sequence[Draft]) -> str | Candidate:
    """The kernel.py of some drafts; where it cannot be written, the candidate to blame."""
    with run.phase("emit"):
        try:
            return emit(run.traced, ordered_choices(drafts), notes(run, drafts))
        except IllFormed:
            for draft in drafts:
                try:
                    emit(run.traced, [draft.choice], notes(run, [draft]))
                except IllFormed as error:
                    _refuse(run, draft.candidate, "emit", str(error), {})
                    return draft.candidate
            raise


def describe_config(config: Config) -> str:
    """`b=16 n=64, 4 warps, 3 stages`."""
    tiles = " ".join(f"{name}={size}" for name, size in config.tiles)
    return f"{tiles}, {config.warps} warps, {config.stages} stages".lstrip(", ")


def _examined(
    run: Run, picks: Sequence[Draft], source: str, helpers: Helpers
) -> tuple[GateResult, Proof | None]:
    """What the gate says of a kernel.py, and the proof of it, where it passes."""
    with tempfile.TemporaryDirectory(prefix="superopt-") as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(source)
        limits = [dict(c.limits) for c in ordered_choices(picks)]
        sizes = gate_sizes(run.program, limits)
        ranges = SpecShape.of(run.spec).ranges
        helpers.proving.ask(path, run.program, ranges)  # beside the gate
        with run.phase("gate"):
            seed = run.settings.seed
            found = gate(run.traced, path, worker=helpers.worker, sizes=sizes, seed=seed)
    if not found.passed and not run.settings.allow_unsafe:
        return found, None
    with run.phase("prove"):  # what is left of it
        return found, helpers.proving.result()


def _at_fault(picks: Sequence[Draft], sizes: Mapping[str, int]) -> Candidate:
    """The candidate that a kernel.py runs at these sizes."""
    ordered = _ordered(picks)
    for pick in ordered:
        if all(sizes.get(name, 0) <= limit for name, limit in pick.choice.limits):
            return pick.candidate
    return ordered[-1].candidate


def _ordered(picks: Sequence[Draft]) -> list[Draft]:
    return sorted(picks, key=lambda pick: by_volume(pick.sizes))


def ordered_choices(picks: Sequence[Draft]) -> list[Choice]:
    """A kernel.py's table: the smallest sizes first."""
    return [p.choice for p in _ordered(picks)]


# -- what a kernel.py says of itself -------------------------------------------------------------


def notes(run: Run, picks: Sequence[Draft]) -> Notes:
    """The docstring's facts. The verdict is that of the lowest rung among the picks."""
    lowest = min((run.verdicts[p.candidate.graph] for p in picks), key=lambda v: v.rung)
    return Notes(
        target=run.settings.target,
        verdict=f"{lowest}, on {lowest.scope}" if lowest.scope else str(lowest),
        predicted=tuple(_predicted(run, p) for p in picks if p.sizes in run.baselines),
        sentences=(*_sentences(run, picks[0].candidate.graph), *_warning(run)),
        spec=Path(run.spec.file).name if run.spec.file else "",
        precision=run.settings.precision,
    )


def _warning(run: Run) -> tuple[str, ...]:
    """What the numeric gate says of a kernel that was admitted against it."""
    if run.gate is None or run.gate.passed:
        return ()
    return (f"UNSAFE, admitted by --allow-unsafe. Numeric gate: {run.gate}.",)


def at_sizes(sizes: Sizes) -> str:
    return " at " + ", ".join(f"{k}={v}" for k, v in sizes) if sizes else ""


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _predicted(run: Run, pick: Draft) -> str:
    found = pick.prediction(run.profile)
    unfused, roofline = (run.baselines[pick.sizes][k] for k in ("unfused", "roofline"))
    return (
        f"Predicted{at_sizes(pick.sizes)}: {found.time_us:.1f} us, bound by"
        f" {found.bound} (roofline {roofline.time_us:.1f} us); unfused"
        f" {unfused.time_us:.1f} us in {count(unfused.launches, 'kernel')}."
    )


def _sentences(run: Run, graph: KernelGraph) -> tuple[str, ...]:
    operators = [o.name for o in run.program.source_ops if o.kind != "view"]
    named = ", ".join(dict.fromkeys(operators))
    said = (
        f"{count(len(operators), 'operator')} ({named}) in {count(len(graph.kernels), 'kernel')}."
    )
    between = ", ".join(t.name for t in graph.temporaries)
    return (said, f"Through global memory: {between}.") if between else (said,)
