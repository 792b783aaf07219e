"""`superopt show --cost`: why a kernel is predicted to take the time that its report says."""

from __future__ import annotations

from pathlib import Path

from superopt.compiler import Compiler
from superopt.contention import made
from superopt.cost_model.explain import explain
from superopt.cost_model.model import KernelModel
from superopt.cost_model.profile import load_profile
from superopt.mugraph.program import Config
from superopt.mugraph.text import parse_graph
from superopt.pipeline import at_sizes, describe_config
from superopt.report import KERNEL, chosen, read_report


def show_cost(folder: Path) -> str:
    """Each size's prediction by resource, and what the target's compiler made of its kernels.

    Raises UsageError where the folder holds no report, or none with a winner.
    """
    report = read_report(folder)
    target = report["target"]
    profile = load_profile(report["settings"]["target"])
    lines = [f"on {target['name']} ({target['facts']} figures); predicted, nothing was measured"]
    with Compiler() as compiler:
        for row in report["sizes"]:
            text = chosen(report, row)
            source, sizes = (folder / KERNEL).read_text(), row["sizes"]
            compiled = compiler(source, sizes, target["arch"], loop=True)
            best, bound = row["best"], row["baselines"]["roofline"]
            ratio = f"{best['time_us'] / bound['time_us']:.2f} × the roofline's"
            lines += [
                "",
                f"{report['spec']['name']}{at_sizes(tuple(sizes.items()))}:"
                f" {best['time_us']:.1f} us, {ratio} {bound['time_us']:.1f} us ({bound['bound']})",
            ]
            kernels = zip(parse_graph(text).kernels, best["config"], compiled, strict=True)
            for kernel, c, stats in kernels:
                config = Config(tuple(c["tiles"].items()), c["warps"], c["stages"])
                model = KernelModel(kernel, sizes, profile)
                own = explain(model, config, made(stats), stats.loop)
                lines.append(f"  {kernel.name}, {describe_config(config)}: {own[0]}")
                lines += [f"  {line}" for line in own[1:]]
    return "\n".join(lines)
