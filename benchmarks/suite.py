"""The suite: programs at the sizes that are measured, and the kernels that experts wrote for them.

    python benchmarks/suite.py --out DIR [--jobs N] [NAME ...]   search them all into DIR/suite

Where no names are given, examples that are not in the suite are searched into DIR/examples. What is
complete in DIR is not searched again. `superopt bench DIR/suite/* --peers benchmarks/suite.py`
compares with `PEERS`; `benchmarks/suite_table.py` predicts times without searching whole kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from superopt import Tensor
from superopt.spec import Spec, build, load_specs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import online_programs as programs  # noqa: E402
from online_programs import (  # noqa: E402
    CAP,
    WINDOW,
    masked,
    normed,
    positions,
    scores,
    weighted,
)

TOKENS, WIDTH = 16384, 2048  # of attention: batch × S, heads × D
B, N, S = (Dim(n, min=1, max=high) for n, high in (("B", 4096), ("N", 262144), ("S", 16384)))
BATCH, KEYS = Dim("B", min=1, max=64), Dim("S", min=1, max=131072)
WIDTHS = (4096, 1024, 16384, 65536, 262144)
LENGTHS = (4096, 512, 1024, 2048, 8192, 16384)
DECODE = ((1, 8192), (1, 1024), (1, 32768), (1, 131072), (16, 4096), (64, 1024), (64, 8192))


# Names are imported one by one: a kernel.py carries the functions that its reference calls.
def softcap_window(q, k, v):
    i, j = positions(q, k)
    s = CAP * torch.tanh(scores(q, k) / CAP)
    return masked(s, (j <= i) & (i - j < WINDOW), v)


def qk_norm_gqa(q, k, v, wq, wk):
    k = normed(k.transpose(-1, -2), wk).transpose(-1, -2)
    s = (normed(q, wq) @ k).float() * q.shape[-1] ** -0.5
    return weighted(s, v)


def _made(name: str, fn: Any, tune_at: Any = (), **tensors: Tensor) -> Spec:
    return build(fn, torch.float16, tune_at, tensors, name)


def _heads(d: int) -> dict[str, Tensor]:
    return {name: Tensor(BATCH, WIDTH // d, S, d) for name in ("q", "k", "v")}


def _attention() -> list[Spec]:
    at = [{"B": TOKENS // s, "S": s} for s in LENGTHS]
    fns = {"attention": programs.attention_float, "causal": programs.causal}
    return [_made(f"{n}_{d}", f, at, **_heads(d)) for n, f in fns.items() for d in (64, 128)]


def suite() -> dict[str, Spec]:
    """All specs by name, in the order in which they are worth measuring."""
    examples = ("rmsnorm_linear", "gated_mlp", "lora", "ngpt_update", "softmax", "layernorm_linear")
    own = {n: load_specs(ROOT / f"examples/{n}.py")[0] for n in examples}
    vocabulary = 128256
    target = Tensor(B, dtype=torch.int64, range=(0, vocabulary))
    rows = [{"B": 1024, "N": n} for n in WIDTHS]
    at = [{"B": b, "S": s} for b, s in DECODE]
    keys = Tensor(BATCH, 8, KEYS, 128)
    specs = [
        *_attention(),
        _made("gqa_decode_64", programs.gqa_interleave, at,
              q=Tensor(BATCH, 64, 1, 128), k=keys, v=keys),
        _made("qk_norm_gqa", qk_norm_gqa, q=Tensor(2, 256, 64), k=Tensor(2, 64, 4096),
              v=Tensor(2, 4096, 64), wq=Tensor(64), wk=Tensor(64)),
        own["rmsnorm_linear"], own["gated_mlp"], own["lora"], own["ngpt_update"],
        _made("cross_entropy_128256", programs.cross_entropy, [{"B": 4096}],
              x=Tensor(B, vocabulary), target=target),
        own["softmax"],
        _made("rmsnorm", programs.normed, rows, x=Tensor(B, N), w=Tensor(N)),
        own["layernorm_linear"],
        _made("softcap_window", softcap_window, [{"B": 4, "S": 4096}, {"B": 1, "S": 16384}],
              **_heads(64)),
        _made("linear_cross_entropy", programs.linear_cross_entropy, [{"B": 4096}],
              h=Tensor(B, 4096), w=Tensor(vocabulary, 4096), target=target),
        _made("linear_attention", programs.linear_attention, [{"B": 4, "S": 4096}], **_heads(64)),
    ]  # fmt: skip
    own["softmax"].tune_at = tuple(rows)
    return {s.name: s for s in specs}


# -- kernels that experts wrote ---------------------------------------------------------------


def _sdpa(backend: SDPBackend, **options: Any) -> Any:
    def attention(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attention


def _sdpas(**options: Any) -> dict[str, Any]:
    backends = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                SDPBackend.EFFICIENT_ATTENTION)  # fmt: skip
    return {f"sdpa {b.name.lower()}": _sdpa(b, **options) for b in backends}


def _in_window(batch, head, i, j):
    return (j <= i) & (i - j < programs.WINDOW)


def _causal(batch, head, i, j):
    return j <= i


def _capped(score, batch, head, i, j):
    return programs.CAP * torch.tanh(score / programs.CAP)


@cache
def _blocks(mask: Any, s: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(mask, None, None, s, s, device=device)


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(q, k, v, mask=None, score=None):
    """FlexAttention, compiled; its block mask is made once, before anything is timed."""
    blocks = mask and _blocks(mask, q.shape[-2], q.device.type)
    return _flex()(q, k, v, score_mod=score, block_mask=blocks)


def liger_cross_entropy(x, target):
    from liger_kernel.transformers.functional import liger_cross_entropy as loss

    return loss(x, target, reduction="none").float()


def normed_then_cublas(x, g, w):
    return F.rms_norm(x, (x.shape[-1],), g, 1e-6) @ w


def fused_rms_norm(x, w):
    return F.rms_norm(x, (x.shape[-1],), w, programs.EPS)


ATTENTION = _sdpas() | {"flex": flex}
CAUSAL = _sdpas(is_causal=True) | {"flex": partial(flex, mask=_causal)}
PEERS = {
    "attention_64": ATTENTION,
    "attention_128": ATTENTION,
    "causal_64": CAUSAL,
    "causal_128": CAUSAL,
    "gqa_decode_64": _sdpas(enable_gqa=True),
    "softcap_window": {"flex": partial(flex, mask=_in_window, score=_capped)},
    "rmsnorm_linear": {"rms_norm, cuBLAS": normed_then_cublas},
    "rmsnorm": {"F.rms_norm": fused_rms_norm},
    "cross_entropy_128256": {"liger": liger_cross_entropy},
}


# -- searching --------------------------------------------------------------------------------


def search_all(specs: list[Spec], out: Path, jobs: int) -> int:
    """Search what is not in `out` yet; returns how many have no kernel."""
    import superopt
    from superopt.errors import SuperoptError

    failed = 0
    for spec in specs:
        if (out / spec.name / "proof.json").exists():
            continue
        try:
            report = superopt.search(spec, out=out, jobs=jobs).report
        except SuperoptError as error:
            failed += 1
            print(f"{spec.name}: {error}", flush=True)
            continue
        best = report["best"]
        print(f"{spec.name}: {best['time_us']} us predicted, {best['verdict']}", flush=True)
    return failed


def others(known: Mapping[str, Spec]) -> list[Spec]:
    """The examples that are not in the suite."""
    found = [s for p in sorted((ROOT / "examples").glob("*.py")) for s in load_specs(p)]
    return [s for s in found if s.name not in known]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="search into DIR")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    known = suite()
    unknown = [n for n in options.names if n not in known]
    if unknown:
        parser.error(f"no {unknown[0]!r} in the suite: {', '.join(known)}")
    specs = [known[n] for n in options.names] or list(known.values())
    failed = search_all(specs, options.out / "suite", options.jobs)
    if not options.names:
        failed += search_all(others(known), options.out / "examples", options.jobs)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
