"""The command: `superopt search`, `verify`, `show`, `bench` and `profile`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from superopt.errors import CheckFailed, SuperoptError
from superopt.process import ONE_THREAD

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search fused Triton kernels for PyTorch functions, and check them.",
)
EXIT_FAILED = CheckFailed.exit_code

Where = Annotated[
    list[str], typer.Argument(metavar="FILE[:NAME]...", help="Spec files; NAME: one of its specs.")
]
Rehearse = Annotated[
    bool, typer.Option("--rehearse", help="On the CPU, tiny, the clock stubbed: measures nothing.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR/NAME", help="A folder that search wrote.")]


@contextmanager
def errors_reported() -> Iterator[None]:
    """Errors of ours become one line on stderr and the exit code that they carry."""
    try:
        yield
    except SuperoptError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        print("error: interrupted before anything was found", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None


@app.command()
def search(
    where: Where,
    out: Annotated[Path, typer.Option(help="Write DIR/NAME/ for each spec.", metavar="DIR")] = Path(
        "results"
    ),
    target: Annotated[
        str, typer.Option(help="a100, b200, h100, h200, l4, mi300x, or a profile's .json file.")
    ] = "h200",
    time_limit: Annotated[
        float | None, typer.Option(help="Stop each spec's search after so many seconds.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes that search: 1, or with --ray all CPUs.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Search on Ray: local, auto or HOST:PORT.", metavar="ADDRESS"),
    ] = None,
    task_limit: Annotated[
        float, typer.Option(help="Set a task aside that takes more seconds, three times.")
    ] = 1800.0,
    top: Annotated[int, typer.Option(help="Candidates kept for each size.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the random inputs of the checks.")] = 0,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Enumerate without the guide: small programs only.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="Of products of fp32: ieee, tf32 or tf32x3.")
    ] = "ieee",
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Admit what the numeric gate refuses.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up a killed search where its journal ends.")
    ] = False,
    measure: Annotated[
        float | None,
        typer.Option(help="Time the best configurations on the GPU, so many seconds a spec."),
    ] = None,
    rehearse: Rehearse = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the reports as JSON, one a line.")
    ] = False,
) -> None:
    """Search a kernel for each spec of the files; write kernel.py, report.json and proof.json.

    Several specs are searched together.
    """
    with errors_reported():
        from superopt.pipeline import Settings
        from superopt.spec import load_specs

        settings = Settings(
            target,
            time_limit,
            jobs,
            top,
            seed,
            exhaustive,
            precision,
            allow_unsafe,
            resume,
            measure,
            rehearse,
            ray,
            task_limit,
        )
        specs = [spec for one in where for spec in load_specs(*_split(one))]
        if len(specs) == 1:
            code = _search_one(specs[0], settings, out, as_json)
        else:
            code = _search_all(specs, settings, out, as_json)
    raise typer.Exit(code)


def _split(where: str) -> tuple[Path, str | None]:
    """`examples/softmax.py:softmax` as its parts; a file whose own name has a colon stays whole."""
    file, colon, name = where.rpartition(":")
    if not colon or Path(where).exists():
        return Path(where), None
    return Path(file), name or None


def _search_one(spec: Any, settings: Any, out: Path, as_json: bool) -> int:
    from superopt.api import nothing_passed
    from superopt.pipeline import find_kernel
    from superopt.report import build_report, check_writable, write_folder

    check_writable(out, spec.name)
    journal = out / spec.name / "journal.jsonl"
    with _progress(spec.name) as progress:
        run = find_kernel(spec, settings, progress, journal)
    folder = write_folder(run, out)
    if run.stop_reason == "exhausted":
        journal.unlink(missing_ok=True)  # nothing is left to resume
    _say(build_report(run), folder, as_json)
    if run.source:
        return 0
    print(f"error: {nothing_passed(run)}", file=sys.stderr)
    return EXIT_FAILED


def _search_all(specs: list[Any], settings: Any, out: Path, as_json: bool) -> int:
    from superopt.portfolio import search_all
    from superopt.report import check_writable

    for spec in specs:
        check_writable(out, spec.name)
    with _progress(f"{len(specs)} specs") as progress, settings.executor() as executor:
        finished = search_all(specs, settings, out, executor, progress)
    for one in finished:
        if one.report is not None:
            _say(one.report, one.folder, as_json)
    if not as_json:
        _print_summary(finished)
    for one in finished:
        if one.error is not None:
            print(f"error: {one.error}", file=sys.stderr)
    return max(0 if one.error is None else one.error.exit_code for one in finished)


def _say(report: dict[str, Any], folder: Path, as_json: bool) -> None:
    from superopt.report import to_text

    if as_json:
        print(to_text(report | {"folder": str(folder)}))
    else:
        _print_report(report, folder)


@contextmanager
def _progress(name: str) -> Iterator[Any]:
    """A line that follows the search on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Status(f"{name}: tracing", console=console) as status:

        def show(now: Any) -> None:
            status.update(f"{name}: {now}")

        yield show


def _print_report(report: dict[str, Any], folder: Path) -> None:
    from superopt.pipeline import at_sizes
    from superopt.report import comparison, summary

    main = at_sizes(tuple(report["sizes"][0]["sizes"].items()))
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"{report['spec']['name']}{main}, on {report['target']['name']}")
    table.add_column("")
    for title in ("kernels", "MB moved", "predicted us"):
        table.add_column(title, justify="right")
    for row in comparison(report):
        table.add_row(*row)
    console.print(table)
    for line in summary(report, folder):
        console.print(line, markup=False)


def _print_summary(finished: list[Any]) -> None:
    """A line a spec: predicted, of its first size; how its search ended; the verdict."""
    table = Table()
    for title in ("spec", "kernels", "as written us", "found us", "search", "verdict"):
        table.add_column(title, justify="right" if title.endswith(("us", "kernels")) else "left")
    for one in finished:
        best = one.report and one.report["best"]
        if not best:
            table.add_row(one.name, "", "", "", "", "no kernel")
            continue
        written = one.report["baselines"]["unfused"]["time_us"]
        times = (f"{written:.1f}", f"{best['time_us']:.1f}")
        reason = one.report["search"]["stop_reason"]
        table.add_row(one.name, str(best["launches"]), *times, reason, best["verdict"])
    Console(highlight=False, soft_wrap=True).print(table)


@app.command()
def show(
    folder: Folder,
    cost: Annotated[
        bool, typer.Option("--cost", help="Explain the predicted times instead.")
    ] = False,
) -> None:
    """Print the µGraph and the schedule of the kernel that a search chose."""
    with errors_reported():
        if cost:
            from superopt.cost import show_cost

            print(show_cost(folder))
            return
        from superopt.report import read_report
        from superopt.report import show as shown

        print(shown(read_report(folder)))


@app.command()
def verify(
    folder: Folder,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    certificate_only: Annotated[
        bool, typer.Option(help="Only ask the claims of proof.json again, as they stand there.")
    ] = False,
    solver: Annotated[str, typer.Option(help="For --certificate-only: z3 or cvc5.")] = "z3",
) -> None:
    """Check a kernel against its spec again, trusting nothing of the search."""
    with errors_reported():
        from superopt.verify import replay, verify_folder

        results = replay(folder, solver) if certificate_only else verify_folder(folder, seed)
        for r in results:
            print(f"{'ok    ' if r.passed else 'FAILED'} {r.check}: {r.text}")
        failed = [r.check for r in results if not r.passed]
        if failed:
            raise CheckFailed(f"{folder}: {', '.join(failed)} failed")


@app.command()
def bench(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR/NAME...", help="Folders that search wrote.")
    ],
    out: Annotated[
        Path, typer.Option(help="Write bench.csv, bench.json and bench.png.", metavar="DIR")
    ] = Path("results/bench"),
    peers: Annotated[
        Path | None, typer.Option(help="Expert kernels: a Python file with PEERS.", metavar="FILE")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Begin no size after so many seconds.")] = 3600.0,
    each: Annotated[float, typer.Option(help="Seconds for the rounds of a size, about.")] = 1.0,
    rehearse: Rehearse = False,
) -> None:
    """Time kernels against eager, torch.compile and expert kernels; needs a GPU."""
    with errors_reported():
        _interpreted(rehearse)
        from superopt.bench import bench as run
        from superopt.bench import failures, summary
        from superopt.cost_model.timing import clock_for

        data = run(folders, out, clock_for(rehearse), peers, seconds, each)
        for line in summary(data, out):
            print(line)
        if wrong := failures(data):
            raise CheckFailed(f"{', '.join(wrong)}: wrong or failed; see the table in {out}")


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="The profile to write.", metavar="FILE")] = Path(
        "results/profile.json"
    ),
    base: Annotated[
        str, typer.Option(help="The target whose facts stand where nothing measures them.")
    ] = "h200",
    rehearse: Rehearse = False,
) -> None:
    """Measure the GPU at hand; `superopt search --target FILE` then ranks by it."""
    with errors_reported():
        _interpreted(rehearse)
        from superopt.cost_model.microbench import measure_profile
        from superopt.cost_model.timing import clock_for

        for line in measure_profile(out, base, clock_for(rehearse)):
            print(line)


def _interpreted(rehearse: bool) -> None:
    """Triton reads how to run when it is first imported."""
    if rehearse:
        os.environ["TRITON_INTERPRET"] = "1"


def main() -> None:
    """The process is ours: torch and sympy fill it with objects that no collection ever frees."""
    os.environ.update(ONE_THREAD | os.environ)
    gc.set_threshold(100_000, 10, 10)
    try:
        app()
    finally:
        gc.freeze()  # else the process looks for cycles in them as it ends


if __name__ == "__main__":
    main()
