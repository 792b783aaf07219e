"""What a run leaves behind: report.json, proof.json, and the table printed at its end."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from superopt.cost_model.model import KernelModel, Prediction
from superopt.cost_model.profile import read_profile
from superopt.cost_model.refit import PARAMETERS
from superopt.errors import UsageError
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.ops import PRIME
from superopt.mugraph.program import Config, KernelGraph
from superopt.mugraph.serialize import to_json
from superopt.mugraph.text import inline, parse_graph, show_schedule
from superopt.pipeline import Draft, Run, at_sizes, count, describe_config
from superopt.search.driver import Candidate
from superopt.search.found import Sizes
from superopt.verify import PROOF_ASSUMES, SpecShape, Verdict
from superopt.verify.rounding import sum_bounds

Json = dict[str, Any]
KERNEL, REPORT, PROOF = "kernel.py", "report.json", "proof.json"
PROFILE = "profile.json"  # refitted to what was measured
ROWS = (("unfused", "as written"), ("greedy", "greedy fusion"), ("roofline", "roofline bound"))


def to_text(data: Json, indent: int | None = None) -> str:
    """JSON as its standard has it: infinities and NaN are text."""
    return json.dumps(_standard(data), indent=indent, ensure_ascii=False, allow_nan=False)


def _standard(value: Any) -> Any:
    match value:
        case float() if value - value != 0:
            return repr(value)
        case dict():
            return {str(k): _standard(v) for k, v in value.items()}
        case list() | tuple():
            return [_standard(v) for v in value]
        case None | bool() | int() | float() | str():
            return value
    return str(value)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# -- report.json ---------------------------------------------------------------------------------


def build_report(run: Run) -> Json:
    """The report as plain data; times are microseconds, predicted, but for `seconds`."""
    main = run.sizes[0]
    rows = [_size_row(run, sizes) for sizes in run.sizes]
    return {
        "spec": describe_spec(run),
        "target": {"name": run.profile.name, "arch": run.profile.arch, "facts": run.profile.kind},
        "settings": asdict(run.settings),
        "versions": versions(),
        "kernel": KERNEL if run.source else None,
        "times": "predicted" if run.settings.measure else "predicted; nothing was measured",
        "search": _search(run),
        "seconds": {name: round(s, 3) for name, s in run.seconds.items()},
        "best": rows[0]["best"],
        "baselines": _baselines(run, main),
        "gate": None if run.gate is None else run.gate.to_json(),
        "addresses": None if run.proof is None else run.proof.addresses.verdict.to_json(),
        "values": None if run.proof is None else run.proof.values.verdict.to_json(),
        "rounding": _rounding(run),
        "sizes": rows,
        "buckets": [_bucket(run, pick) for pick in run.picks if pick.sizes not in run.sizes],
        "candidates": [_candidate(run, n, c) for n, c in enumerate(run.outcome.candidates)],
        "rejected": [asdict(r) for r in run.refusals],
        "fusions_not_taken": _fusions_not_taken(run),
    }


def describe_spec(run: Run) -> Json:
    spec = run.spec
    return SpecShape.of(spec).to_json() | {
        "line": spec.line,
        "source_sha256": sha256(run.traced.source.text),
        "captured": list(run.traced.captured),
        "outputs": [
            {"shape": [inline(e) for e in t.shape], "dtype": DTYPES[t.dtype].torch}
            for t in run.program.outputs
        ],
    }


def _search(run: Run) -> Json:
    o = run.outcome
    reasons: dict[str, int] = {}
    for r in run.refusals:
        reasons[r.stage] = reasons.get(r.stage, 0) + 1
    return {
        "seconds": round(o.seconds, 3),
        "stop_reason": run.stop_reason,
        "enumerated": o.enumerated,
        "counts": {
            "built": o.counts.built,
            "duplicate": o.counts.duplicate,
            "dominated": o.counts.dominated,
            "assigned": o.assigned,
            "configured": o.configured,
            "cuts": o.tasks,
            "cuts_pruned": o.tasks_pruned,
            "kept": len(o.candidates),
            "verified": sum(v.passed for v in run.verdicts.values()),
            "rejected": reasons,
        },
        "saturation": asdict(o.saturation),
        "bound": o.bound,  # operators, of an exhaustive search
        # forms of an output that were found and lose precision where the program does not, with
        # the worst of the hostile inputs
        "refused_forms": o.refused,
        "shifts": o.laws,
        "set_aside": o.set_aside,  # tasks that could not be done, and why
    }


def figures(p: Prediction) -> Json:
    """`bytes` are what loads and stores request; `distinct_bytes` has an address once a launch."""
    return {
        "launches": p.launches,
        "bytes": round(p.bytes),
        "distinct_bytes": round(p.distinct_bytes),
        "flops": round(p.flops),
        "time_us": round(p.time_us, 3),
        "bound": p.bound,
        "measured_us": None,
    }


def config_rows(graph: KernelGraph, configs: tuple[Config, ...]) -> list[Json]:
    return [
        {"kernel": k.name, "tiles": c.by_name, "warps": c.warps, "stages": c.stages}
        for k, c in zip(graph.kernels, configs, strict=True)
    ]


def _size_row(run: Run, sizes: Sizes) -> Json:
    pick = next((p for p in run.picks if p.sizes == sizes), None)
    roofline = run.baselines[sizes]["roofline"]
    row: Json = {
        "sizes": dict(sizes),
        "best": None,
        "baselines": _baselines(run, sizes),
    }
    if pick is not None:
        row["candidate"] = run.rank(pick.candidate)
        row["best"] = _best(run, pick)
        row["time_over_roofline"] = round(
            pick.prediction(run.profile).time_us / roofline.time_us, 3
        )
        row["compiled"] = [asdict(c) for c in pick.compiled]
        row["mma_sync"] = _without_wgmma(run, pick)
        row["measured"] = [
            {"config": config_rows(pick.candidate.graph, configs)} | timed
            for configs, timed in pick.timed
        ]
        row["configs_skipped"] = list(pick.skipped)
        row["configs"] = {
            "predicted": pick.predicted,
            "compiled": len(pick.compiled) + len(pick.skipped) + pick.in_contention,
        }
    return row


def _bucket(run: Run, pick: Draft) -> Json:
    """A row of kernel.py's table beside those of the tuned sizes."""
    return {
        "sizes": dict(pick.sizes),
        "candidate": run.rank(pick.candidate),
        "time_us": round(pick.prediction(run.profile).time_us, 3),
        "config": config_rows(pick.candidate.graph, tuple(pick.configs)),
        "compiled": [asdict(c) for c in pick.compiled],
    }


def _without_wgmma(run: Run, pick: Draft) -> list[Json]:
    """Kernels whose dots run as mma.sync on a GPU that has wgmma, and what wgmma would gain.

    Such dots have fewer rows than wgmma takes; with operands swapped they would have enough.
    """
    if run.profile.mma_sync_fraction == 1.0:
        return []
    faster = replace(run.profile, mma_sync_fraction=1.0)
    rows = []
    for kernel, config, done in zip(
        pick.candidate.graph.kernels, pick.configs, pick.compiled, strict=True
    ):
        if "mma.sync" in done.dots:
            now, then = (
                KernelModel(kernel, dict(pick.sizes), p).predict(config)
                for p in (run.profile, faster)
            )
            rows.append(
                {
                    "kernel": kernel.name,
                    "time_us": round(now.time_us, 3),
                    "at_wgmma_rate_us": round(then.time_us, 3),
                    "why": f"bound by {then.bound} at the rate of wgmma,"
                    f" by {now.bound} at that of mma.sync",
                }
            )
    return rows


def _baselines(run: Run, sizes: Sizes) -> Json:
    """With the winner's keys; a baseline has no kernel, so no verdict and no configuration."""
    nothing: Json = {"verdict": None, "config": []}
    return {name: figures(p) | nothing for name, p in run.baselines[sizes].items()}


def _best(run: Run, pick: Draft) -> Json:
    proved = run.proof is not None and run.proof.complete
    return figures(pick.prediction(run.profile)) | {
        "verdict": "proved" if proved else str(run.verdicts[pick.candidate.graph]),
        "config": config_rows(pick.candidate.graph, tuple(pick.configs)),
        "measured_us": _measured_us(pick),
    }


def _measured_us(pick: Draft) -> float | None:
    """Of a real measurement; a rehearsal's is none."""
    row = pick.measured
    return float(row["median_us"]) if row is not None and row["kind"] == "measured" else None


def _candidate(run: Run, rank: int, candidate: Candidate) -> Json:
    verdict = run.verdicts.get(candidate.graph)
    return {
        "rank": rank,
        "verdict": "not checked" if verdict is None else str(verdict),
        "at": [
            figures(p) | {"sizes": dict(s), "config": config_rows(candidate.graph, configs)}
            for s, (configs, p) in candidate.at.items()
        ],
        "graph": candidate.text,
    }


def _rounding(run: Run) -> Json | None:
    """Bounds for the kernel's sums at the first size, beside the error that was measured."""
    if not run.picks or run.gate is None:
        return None
    pick = run.picks[0]
    bounds = sum_bounds(pick.candidate.graph, pick.configs, dict(pick.sizes))
    return {
        "sums": [asdict(b) for b in bounds],
        "sizes": dict(pick.sizes),
        "relative_to": "the sum of the terms' magnitudes, fp32 accumulators",
        "source": "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2",
        "measured_over_allowed": run.gate.worst,
        "measured_at": run.gate.worst_at,
    }


def _fusions_not_taken(run: Run) -> list[Json]:
    """For each value that the winner keeps in global memory, the best µGraph with fewer."""
    if not run.picks:
        return []
    pick = run.picks[0]
    kept = pick.candidate.graph.temporaries
    able = [c for c in run.outcome.candidates if pick.sizes in c.at]
    fewer = [c.at[pick.sizes][1] for c in able if len(c.graph.temporaries) < len(kept)]
    fused = min(fewer, key=lambda p: p.time_us, default=None)
    if fused is None:
        why = "no µGraph of fewer cuts is among those kept: each is slower, or does not fit"
    else:
        why = f"fused it is predicted to take {fused.time_us:.1f} us, bound by {fused.bound}"
    return [
        {
            "cut": tensor.name,
            "shape": [inline(e) for e in tensor.shape],
            "sizes": dict(pick.sizes),
            "time_us": round(pick.prediction(run.profile).time_us, 3),
            "fused_time_us": None if fused is None else round(fused.time_us, 3),
            "why": why,
        }
        for tensor in kept
    ]


def versions() -> dict[str, str]:
    names = ("superopt", "torch", "triton", "numpy")
    return {"python": platform.python_version()} | {n: _version(n) for n in names}


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"


# -- proof.json ----------------------------------------------------------------------------------


def build_proof(run: Run) -> Json:
    """What was checked of the kernel beside it, with what a second check needs to repeat it."""
    verdicts = {}
    for pick in run.picks:
        verdict: Verdict = run.verdicts[pick.candidate.graph]
        verdicts[at_sizes(pick.sizes).strip() or "its sizes"] = verdict.to_json()
    return {
        "spec": {
            k: v for k, v in describe_spec(run).items() if k in ("name", "file", "source_sha256")
        },
        "kernel_sha256": sha256(run.source),
        "seed": run.settings.seed,
        "field": {"prime": PRIME, "used": any(v["kind"] == "probable" for v in verdicts.values())},
        "verdicts": verdicts,
        "gate": None if run.gate is None else run.gate.to_json(),
        "addresses": None if run.proof is None else run.proof.addresses.to_json(),
        "values": None if run.proof is None else run.proof.values.to_json(),
        "graphs": [to_json(g) for g in dict.fromkeys(p.candidate.graph for p in run.picks)],
        "assumes": [
            "a verdict speaks of the µGraph over the reals, at the sizes and elements it names",
            "the gate speaks of the emitted text in Triton's interpreter, on the inputs it ran",
            "neither speaks of sizes that were not run, nor of the code that the compiler makes",
            *PROOF_ASSUMES,
        ],
        "versions": versions(),
    }


def refitted_profile(run: Run) -> Json:
    """The target's profile with the parameters that were fitted; `--target` takes it."""
    assert run.refitted is not None
    data = read_profile(run.settings.target)
    rows = [row for d in run.drafts.values() for _, row in d.timed if "median_us" in row]
    source = f"fitted to {len(rows)} times of {run.spec.name}"
    if rows:
        source += f", {rows[0]['kind']} on {rows[0]['device']}"
    for name in PARAMETERS:
        if (value := getattr(run.refitted, name)) != getattr(run.profile, name):
            data["facts"][name] = {"value": value, "source": source}
    return data | {"kind": "rehearsed" if run.settings.rehearse else "measured"}


# -- the folder ----------------------------------------------------------------------------------


def write_folder(run: Run, out: Path) -> Path:
    """Write OUT/NAME/ and return it. Raises UsageError where that cannot be written."""
    return write_files(out / run.spec.name, folder_files(run))


def folder_files(run: Run) -> dict[str, str]:
    """What a run's folder holds, by name."""
    files = {REPORT: to_text(build_report(run), indent=1) + "\n"}
    if run.source:
        files[KERNEL] = run.source
        files[PROOF] = to_text(build_proof(run)) + "\n"
    if run.refitted is not None:
        files[PROFILE] = to_text(refitted_profile(run), indent=1) + "\n"
    return files


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Write a folder, without what an earlier run left. Raises UsageError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (KERNEL, PROOF, PROFILE):  # of an earlier run: not this one's
            (folder / stale).unlink(missing_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}; name another with --out"
        ) from error
    return folder


def check_writable(out: Path, name: str) -> None:
    """Raise UsageError before a long search, not after it, where OUT/NAME cannot be written."""
    folder = out / name
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}; name another with --out"
        ) from error


def read_report(folder: Path) -> Json:
    """Raises UsageError where the folder holds no report."""
    path = folder / REPORT
    if not path.is_file():
        raise UsageError(f"{path}: no such file; name a folder that `superopt search` wrote")
    try:
        report: Json = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path}: not a report: {error}") from error
    return report


# -- for people ----------------------------------------------------------------------------------


def comparison(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of the table at a run's end for the main size: what, kernels, MB moved, microseconds."""
    known, best = report["baselines"], report["best"]
    rows = [_row(title, known[name]) for name, title in ROWS]
    if best is not None:
        rows.insert(2, _row("found", best))
    return rows


def _row(title: str, figures: Mapping[str, Any]) -> tuple[str, str, str, str]:
    megabytes = f"{figures['distinct_bytes'] / 1e6:.2f}"
    return title, str(figures["launches"]), megabytes, f"{figures['time_us']:.1f}"


def show(report: Mapping[str, Any], index: int = 0) -> str:
    """The µGraph of a size's winner, its configuration and each kernel's schedule."""
    row = report["sizes"][index]
    text = chosen(report, row)
    graph, lines = parse_graph(text), [text, ""]
    for kernel, config in zip(graph.kernels, row["best"]["config"], strict=True):
        tiles = Config(tuple(config["tiles"].items()), config["warps"], config["stages"])
        lines.append(
            f"{kernel.name}{at_sizes(tuple(row['sizes'].items()))}: {describe_config(tiles)}"
        )
        for branch in kernel.branches:
            lines += ["  " + line for line in show_schedule(branch).splitlines()]
        lines.append("")
    return "\n".join(lines).rstrip()


def chosen(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The text of the µGraph that a size's row chose. Raises UsageError where it has none."""
    if row["best"] is None:
        raise UsageError("the report has no winner: nothing passed the checks")
    return str(report["candidates"][row["candidate"]]["graph"]).rstrip()


def _claims(report: Mapping[str, Any]) -> str:
    """`proved, 70 claims on addresses, 7 claims on values`, or what of each is not."""
    own = [(what, Verdict.from_json(report[what])) for what in ("addresses", "values")]
    if all(v.passed for _, v in own):
        return ", ".join(["proved", *(t for _, v in own for t in (v.scope, *v.notes))])
    return "; ".join(f"{what}: {v}" for what, v in own)


def summary(report: Mapping[str, Any], folder: Path) -> list[str]:
    """What follows the table: verdict, gate, search, and where the kernel is."""
    search, best, gate = report["search"], report["best"], report["gate"]
    lines = []
    if best is not None:
        ratio = report["sizes"][0]["time_over_roofline"]
        lines += [
            f"verdict: {best['verdict']}",
            f"gate:    {gate['text']}",
            f"proof:   {_claims(report)}",
            f"found:   {ratio:.2f} × the roofline's time, bound by {best['bound']}",
        ]
    else:
        lines.append("verdict: nothing passed the checks")
        lines += [
            f"  candidate {r['rank']}, {r['stage']}: {r['reason']}" for r in report["rejected"]
        ]
    others = ", ".join(f"{k} {v:.1f} s" for k, v in report["seconds"].items())
    lines.append(
        f"search:  {search['enumerated']} enumerated in {search['seconds']:.2f} s"
        f" ({search['stop_reason']}); {others}"
    )
    if best is not None:
        configs = [row["configs"] for row in report["sizes"] if row["best"] is not None]
        sums = {k: sum(c[k] for c in configs) for k in ("predicted", "compiled")}
        between = count(len(report["buckets"]), "more row") + " for sizes between"
        told = f"{sums['predicted']} predicted, {sums['compiled']} compiled"
        lines.append(f"configs: {told}{'; ' + between if report['buckets'] else ''}")
    if best is not None and report["rejected"]:
        lines.append(
            f"         {count(len(report['rejected']), 'better candidate')} refused; see the report"
        )
    lines.append(
        f"kernel:  {folder / KERNEL}" if best is not None else f"report:  {folder / REPORT}"
    )
    return lines
