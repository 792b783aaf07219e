"""The roofline with parallelism: predicted time of a µGraph at given sizes and configurations.

Per kernel: launch + latency of dependent passes + the slowest of DRAM, L2, tensor cores, scalar and
special-function units, each slowed by how little of the machine the grid fills. DRAM reaches its
bandwidth only with enough bytes in flight (Little's law).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt

from superopt.cost_model import features as ft
from superopt.cost_model.profile import Profile
from superopt.mugraph.expr import Axis
from superopt.mugraph.program import Config, Kernel, KernelGraph
from superopt.mugraph.threads import MIN_TILE

REGISTERS_A_THREAD = 255
L2_SHARE = 0.5  # of L2 that one kernel's reuse may count on


@dataclass(frozen=True)
class Prediction:
    """One kernel or a whole µGraph. Bytes count a launch's requests, `distinct_bytes` each address once."""

    time_us: float
    launches: int
    bytes: float
    distinct_bytes: float
    flops: float
    bound: str
    programs: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)  # seconds by resource


class KernelModel:
    """The cost of one kernel as a function of its configuration; features are counted once."""

    def __init__(self, kernel: Kernel, sizes: Mapping[str, int], profile: Profile) -> None:
        self.kernel = kernel
        self.sizes = dict(sizes)
        self.profile = profile
        self.parts = [ft.features(b) for b in kernel.branches]
        self.extents = [ft.extents(f, self.sizes) for f in self.parts]

    def shapes(self, config: Config) -> list[ft.Shape]:
        tiles = config.by_name
        return [ft.shape(f, e, tiles) for f, e in zip(self.parts, self.extents, strict=True)]

    # -- resources of one program ---------------------------------------------------------------

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that pipelined dot operands take; bytes."""
        worst = 0
        for f, s in zip(self.parts, self.shapes(config), strict=True):
            total = 0
            for w in f.work:
                if w.dot is None:
                    continue
                stages = max(config.stages, 1) if w.dot.k in w.context else 1
                width = 4 if w.dot.operand == "f32" else 2
                for axes in ((w.dot.m, w.dot.k), (w.dot.k, w.dot.n)):
                    total += stages * width * s.tile[axes[0]] * s.tile[axes[1]]
            worst = max(worst, total)
        return worst

    def registers(self, config: Config) -> float:
        """Registers a thread: in the loop its accumulators and widest tile, outside it what is held.

        After a loop the values computed from an accumulator take its place.
        """
        worst = 0.0
        for f, s in zip(self.parts, self.shapes(config), strict=True):
            loop = float(sum(ft.tile_elements(s, free) for free, _ in f.accumulators))
            straight = 0.0
            wide = {True: 0.0, False: 0.0}
            for w in f.work:
                free = w.free - {w.dot.k} if w.dot else w.free
                if not (w.dot and w.context):
                    inside = bool(w.context)
                    wide[inside] = max(wide[inside], ft.tile_elements(s, free))
            for a in dict.fromkeys(a.free for a in f.accesses if not a.is_store and not a.context):
                straight += ft.tile_elements(s, a)
            for a in f.accesses:
                if a.context and not a.is_store and not a.free & f.dot_axes:
                    wide[True] = max(wide[True], ft.tile_elements(s, a.free))
            worst = max(worst, loop + 1.5 * wide[True], straight + 1.2 * wide[False])
        return worst / (32 * config.warps) + 30

    def fits(self, config: Config) -> bool:
        """Whether the configuration is worth compiling."""
        for f, s in zip(self.parts, self.shapes(config), strict=True):
            if any(s.tile[a] < MIN_TILE for a in f.dot_axes if s.roles[a] != "program"):
                return False
            if any(ft.tile_elements(s, w.free) > 2**20 for w in f.work if w.dot is None):
                return False
        return (
            self.registers(config) <= REGISTERS_A_THREAD
            and self.shared_bytes(config) <= self.profile.shared_bytes_per_program
        )

    # -- the launch -----------------------------------------------------------------------------

    def predict(self, config: Config) -> Prediction:
        p = self.profile
        shapes = self.shapes(config)
        count = sum(ft.programs(f, s) for f, s in zip(self.parts, shapes, strict=True))
        resident = self._resident(config)
        active = min(count, p.multiprocessors * resident)
        waves = count / max(p.multiprocessors * resident, 1)
        quantum = ceil(waves) / waves if waves > 1 else 1.0
        busy = min(1.0, count / p.multiprocessors)
        requested, distinct, dram = self._traffic(shapes, active)
        flops, seconds = self._arithmetic(shapes, config)
        in_flight = active * self._bytes_in_flight(shapes, config)
        fill = min(1.0, in_flight / (p.dram_bytes_per_s * p.dram_latency_s))
        ports = busy * p.multiprocessors * p.multiprocessor_bytes_per_s
        times = {
            "dram": dram / max(min(p.dram_bytes_per_s * fill, ports), 1.0),
            "l2": requested / max(min(p.l2_bytes_per_s, ports), 1.0),
        }
        for name, t in seconds.items():
            times[name] = t / max(busy, 1e-9) * quantum
        bound = max(times, key=lambda k: times[k])
        overlap = 0.1 * (sum(times.values()) - times[bound])  # units overlap, not wholly
        chain = p.dram_latency_s * (1 + max((f.passes for f in self.parts), default=0))
        total = p.launch_s + chain + times[bound] + overlap
        times["launch"] = p.launch_s + chain
        if times["launch"] > times[bound]:
            bound = "launch"
        return Prediction(total * 1e6, 1, requested, distinct, flops, bound, count, times)

    def _resident(self, config: Config) -> int:
        p = self.profile
        by_warps = p.warps_per_multiprocessor // config.warps
        shared = self.shared_bytes(config)
        by_shared = p.shared_bytes_per_multiprocessor // shared if shared else by_warps
        threads = 32 * config.warps
        by_registers = p.registers_per_multiprocessor // max(self.registers(config) * threads, 1)
        return int(max(1, min(by_warps, by_shared, by_registers, p.programs_per_multiprocessor)))

    def _traffic(self, shapes: Sequence[ft.Shape], active: float) -> tuple[float, float, float]:
        """(requested, distinct, DRAM) bytes of the launch."""
        requested = dram = 0.0
        touched: dict[str, float] = {}
        size: dict[str, float] = {}
        cache = self.profile.l2_bytes * L2_SHARE
        for f, s in zip(self.parts, shapes, strict=True):
            count = max(ft.programs(f, s), 1)
            seen: set[object] = set()
            for a in f.accesses:
                width = ft.bytes_of(a.tensor)
                total = ft.elements(f, s, a.free, a.context) * width
                once = 1.0 * width
                for axis in a.free:
                    once *= s.extent[axis]
                requested += total
                again = a.node in seen
                seen.add(a.node)
                if again:
                    if total / count * active > cache:  # a later pass finds it evicted
                        dram += total
                    continue
                name = a.tensor.name
                size[name] = ft.tensor_elements(a.tensor, self.sizes) * width
                touched[name] = touched.get(name, 0.0) + once
                if once > cache and total > once:
                    sharing = max(1.0, sqrt(active))  # programs of a wave read it together
                    dram += max(0.0, total / sharing - once)
        distinct = sum(min(v, size[name]) for name, v in touched.items())
        return requested, distinct, dram + distinct

    def _arithmetic(
        self, shapes: Sequence[ft.Shape], config: Config
    ) -> tuple[float, dict[str, float]]:
        p = self.profile
        seconds = {"tensor": 0.0, "scalar": 0.0, "special": 0.0}
        flops = 0.0
        for f, s in zip(self.parts, shapes, strict=True):
            for w in f.work:
                amount = ft.lanes(f, s, w.free, w.context) * w.amount
                flops += ft.elements(f, s, w.free, w.context) * w.amount
                if w.dot is not None:
                    rate = p.dot_rate(w.dot.operand) * self._dot_efficiency(s, w, config)
                    seconds["tensor"] += amount / rate
                elif w.kind == "special":
                    seconds["special"] += amount / 2 / p.special_per_s
                    seconds["scalar"] += amount / p.scalar_per_s
                else:
                    seconds["scalar"] += amount / p.scalar_per_s
        return flops, seconds

    def _dot_efficiency(self, s: ft.Shape, w: ft.Work, config: Config) -> float:
        """The share of peak that a dot tile reaches; assumed until profiles are measured."""
        assert w.dot is not None
        m, n = s.tile[w.dot.m], s.tile[w.dot.n]
        if w.dot.operand == "f32":
            return 0.6
        reuse = min(1.0, (m * n / (m + n)) / 64)  # operand bytes against flops
        rows = max(m, n) if min(m, n) < 64 else m
        unit = 1.0 if self.profile.wgmma_rows <= rows and config.warps % 4 == 0 else None
        return (unit or self.profile.mma_sync_fraction) * (0.35 + 0.4 * reuse)

    def _bytes_in_flight(self, shapes: Sequence[ft.Shape], config: Config) -> float:
        """Bytes that one program has requested and not yet received, at its best."""
        best = 0.0
        for f, s in zip(self.parts, shapes, strict=True):
            straight = looped = 0.0
            for a in f.accesses:
                tile = ft.tile_elements(s, a.free) * ft.bytes_of(a.tensor)
                if a.context:
                    looped += tile
                else:
                    straight += tile
            best = max(best, straight, looped * max(config.stages - 1, 1))
        return best


def predict(
    graph: KernelGraph, configs: Sequence[Config], sizes: Mapping[str, int], profile: Profile
) -> Prediction:
    """A whole µGraph: its kernels one after another."""
    parts = [
        KernelModel(k, sizes, profile).predict(c)
        for k, c in zip(graph.kernels, configs, strict=True)
    ]
    return total(parts)


def total(parts: Sequence[Prediction]) -> Prediction:
    worst = max(parts, key=lambda q: q.time_us)
    resources: dict[str, float] = {}
    for q in parts:
        for name, t in q.resources.items():
            resources[name] = resources.get(name, 0.0) + t
    return Prediction(
        sum(q.time_us for q in parts),
        sum(q.launches for q in parts),
        sum(q.bytes for q in parts),
        sum(q.distinct_bytes for q in parts),
        sum(q.flops for q in parts),
        worst.bound,
        sum(q.programs for q in parts),
        resources,
    )


def axes_of(model: KernelModel) -> list[Axis]:
    found: dict[str, Axis] = {}
    for f in model.parts:
        for a, role in f.roles.items():
            if role in ("grid", "loop"):
                found.setdefault(a.name, a)
    return list(found.values())
