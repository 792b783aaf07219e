"""What the search may not know: workloads by name, or rules made for one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from programs import traced

import superopt
from superopt.cost_model.profile import load_profile
from superopt.mugraph.expr import find
from superopt.search import rules
from superopt.search.found import fastest
from superopt.search.tasks import build_space

ROOT = Path(superopt.__file__).parent
WORKLOADS = (
    "softmax", "attention", "flash", "causal", "sdpa", "layernorm", "layer_norm", "rmsnorm",
    "rms_norm", "groupnorm", "group_norm", "batchnorm", "batch_norm", "entropy", "welford",
    "logsumexp", "swiglu", "geglu", "gelu", "silu", "leaky", "llama", "convolution",
)  # fmt: skip
SHORT = ("attn", "gqa", "mqa", "moe", "rope", "alibi", "relu", "lora", "mlp", "bert", "gpt", "conv")
NAME = re.compile(rf"{'|'.join(WORKLOADS)}|(?<![a-z])(?:{'|'.join(SHORT)})(?![a-z])", re.IGNORECASE)
OPERATOR = re.compile(r"[-+*/]|\b(?:sum|max|min|prod)\[[^\]]*\]|\b[a-z]\w+(?=\()")
RULES = [pytest.param(r, id=r.name) for r in rules.RULES]
LARGE = pytest.mark.xfail(reason="two sums and two products")
SMALL = [
    pytest.param(r, id=r.name, marks=LARGE if r.name == "sums-exchange" else ())
    for r in rules.RULES
]


def sources() -> Iterator[Path]:
    """The search, the emitter and the µGraph; the lowering of torch's operators names these."""
    for package in ("search", "emit", "mugraph"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "trace" not in path.relative_to(ROOT).parts:
                yield path


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_workload_by_name(path: Path) -> None:
    """Not in identifiers or strings, and not in comments."""
    lines = enumerate(path.read_text().splitlines(), start=1)
    found = [f"{path}:{n}: {line.strip()}" for n, line in lines if NAME.search(line)]
    assert not found, "\n".join(found)


def test_the_pattern_knows_a_workload() -> None:
    assert NAME.search("def _RMSNorm(x):")
    assert NAME.search("x_rope, _moe")
    assert not NAME.search("a norm of the rows, normalised; @property; remote")


def operators(text: str) -> list[str]:
    return OPERATOR.findall(text)


def test_operators_are_counted() -> None:
    assert operators("sum[k] c*(a+b)") == ["sum[k]", "*", "+"]
    assert operators("1/sqrt(a)") == ["/", "sqrt"]


@pytest.mark.parametrize("rule", SMALL)
def test_a_rule_is_small(rule: rules.Rule) -> None:
    """At most three operators on the left."""
    assert len(operators(rule.rewrite.split(" -> ")[0])) <= 3


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_holds_no_recurrence(rule: rules.Rule) -> None:
    """No rule knows of a maximum and an exponential at once."""
    left, right = rule.rewrite.split(" -> ")
    used = operators(left) + operators(right)
    assert not (any(o.startswith("max[") for o in used) and any("exp" in o for o in used))


def weighted(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_is_needed_to_go_over_the_keys_once(
    rule: rules.Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RULES", tuple(r for r in rules.RULES if r is not rule))
    program = traced(weighted, dtype=torch.float16, q=(128, 32), k=(4096, 32), v=(4096, 32))
    space, _ = build_space(program, load_profile("h200"))
    plans = space.plans(())
    options = {
        group: fastest(
            o for n in range(len(space.splits(group))) for o in space.explore(group, n, ())
        )
        for plan in plans
        for stage in plan
        for group in stage
    }
    graphs = [found.graph for plan in plans for found in space.assemble(plan, options, ())]
    stores = [g.kernels[0].stores for g in graphs if len(g.kernels) == 1]
    assert any(any(find(s.value, "online")) for own in stores for s in own)
