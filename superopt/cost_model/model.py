"""The roofline with parallelism: predicted time of a µGraph at given sizes and configurations.

Per kernel: launch + latency of dependent passes + the slowest of DRAM, L2, tensor cores, special
functions and issue slots, each slowed by how little of the machine the grid fills, and what the
others do not hide behind it. DRAM reaches its bandwidth only with enough bytes in flight (Little's
law). `latency` bounds it too: what one program waits for, step by step, in as many waves as there
are. All configurations of a kernel are predicted at once, as arrays. Constants that name no source
were chosen with the timed configurations of results/h200 at hand (`benchmarks/replay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from superopt.cost_model import features as ft
from superopt.cost_model.features import Numbers
from superopt.cost_model.profile import Profile
from superopt.mugraph.expr import Axis, Expr
from superopt.mugraph.program import Config, Kernel, KernelGraph, Store
from superopt.mugraph.threads import MIN_TILE

SPARE_REGISTERS = 5  # that the compiler takes for itself
STRAIGHT_REGISTERS = 176  # outside loops: a full file gains nothing there, and costs occupancy
UNROLLED = 2048  # multiplications of a thread in a lone fp32 dot without tensor cores
L2_SHARE = 0.5  # of L2 that one kernel's reuse may count on
UNHIDDEN = 0.1  # of what the other resources take, beside the slowest one
GROUP = 4  # warps that go through a loop's phases together: one a scheduler
# Instructions counted in SASS of inner loops for sm_90, of 6 kernels in 90 configurations:
VECTOR_SLOTS = 10  # of 16 bytes that a thread loads or stores: addresses, bounds, waiting
VECTOR = 16  # bytes that a thread moves at once
LOOP_SLOTS = 60  # of a warp a turn: barriers, waiting for copies, their addresses
STALL = 1.5  # clocks an instruction of a warp that is alone on its scheduler
ROUND_TRIPS = 0.5e-6  # seconds a turn, through shared memory and its barriers, of rows across warps
ASYNC = 4  # bytes a thread, or a loop's copy to shared memory waits for its data


Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]  # an element a configuration


@dataclass(frozen=True)
class Prediction:
    """One kernel or a whole µGraph. Bytes count a launch's requests, `distinct_bytes` each address
    once."""

    time_us: float
    launches: int
    bytes: float
    distinct_bytes: float
    flops: float
    bound: str
    programs: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)  # seconds by resource


@dataclass(frozen=True)
class Space:
    """Configurations side by side: tile sizes by axis name, warps and stages, each an array."""

    tiles: Mapping[str, Numbers]
    warps: Numbers
    stages: Numbers

    @staticmethod
    def of(config: Config) -> Space:
        tiles = {name: np.full(1, float(size)) for name, size in config.tiles}
        return Space(tiles, np.full(1, float(config.warps)), np.full(1, float(config.stages)))


@dataclass(frozen=True)
class Made:
    """What the compiler made of a configuration: registers of a thread, bytes of shared memory."""

    registers: int
    shared: int


@dataclass
class Costs:
    """Arrays over a space. `fits`: worth compiling; `resident`: programs of a multiprocessor;
    `turns`: of loops that round an accumulator of a row at each; `times`: seconds by resource,
    with the launch and what the busiest does not hide."""

    fits: Flags
    seconds: Numbers
    bytes: Numbers
    moved: Numbers  # bytes in whole sectors
    distinct: float
    flops: Numbers
    programs: Numbers
    resident: Numbers
    waves: Numbers
    turns: Numbers
    times: dict[str, Numbers]


class KernelModel:
    """The cost of one kernel as a function of its configuration; features are counted once."""

    def __init__(self, kernel: Kernel, sizes: Mapping[str, int], profile: Profile) -> None:
        self.kernel = kernel
        self.sizes = dict(sizes)
        self.profile = profile
        self.parts = [ft.features(b) for b in kernel.branches]
        self.extents = [ft.extents(f, self.sizes) for f in self.parts]

    def axes(self) -> list[Axis]:
        """The axes that have a tile size, one a name."""
        found: dict[str, Axis] = {}
        for f in self.parts:
            for a, role in f.roles.items():
                if role in ("grid", "loop"):
                    found.setdefault(a.name, a)
        return list(found.values())

    def predict(self, config: Config, made: Made | None = None) -> Prediction:
        return self.prediction(self.costs(Space.of(config), made), 0)

    def fits(self, config: Config) -> bool:
        return bool(self.costs(Space.of(config)).fits[0])

    def prediction(self, c: Costs, n: int) -> Prediction:
        def at(x: Numbers) -> float:
            return float(x[n] if len(x) > 1 else x[0])

        times = {name: at(t) for name, t in c.times.items()}
        bound = max((k for k in times if k != "unhidden"), key=lambda k: times[k])
        return Prediction(
            at(c.seconds) * 1e6, 1, at(c.bytes), c.distinct, at(c.flops), bound,
            int(at(c.programs)), times,
        )  # fmt: skip

    # -- the launch -----------------------------------------------------------------------------

    def costs(self, space: Space, made: Made | None = None) -> Costs:
        """`made`: what the compiler made of a space's only configuration, where that is known."""
        p = self.profile
        shapes = [
            ft.shape(f, e, space.tiles) for f, e in zip(self.parts, self.extents, strict=True)
        ]
        pairs = list(zip(self.parts, shapes, strict=True))
        count = np.maximum(sum(ft.programs(f, s) for f, s in pairs), 1.0)
        shared = self._shared(pairs, space)
        registers, fits = self._registers(pairs, space)
        if made is not None:
            shared, registers = np.full(1, float(made.shared)), np.full(1, float(made.registers))
        resident = self.resident(space.warps, shared, registers)
        slots = p.multiprocessors * resident
        active = np.minimum(count, slots)
        waves = count / slots
        each_has = count / p.multiprocessors  # programs, on average: the busiest one has most
        quantum = np.where(waves > 1, np.ceil(waves) / waves, np.ceil(each_has) / each_has)
        requested, moved, distinct, dram, evicted = self._traffic(pairs, active)
        flops, seconds = self._arithmetic(pairs, space)
        in_flight = active * self._bytes_in_flight(pairs, space)
        fill = np.minimum(1.0, in_flight / (p.dram_bytes_per_s * p.dram_latency_s))
        ports = p.multiprocessors / quantum * p.multiprocessor_bytes_per_s
        times = {
            "dram": dram / np.minimum(p.dram_bytes_per_s * p.dram_fraction * fill, ports),
            "l2": moved / np.minimum(p.l2_bytes_per_s, ports),
        }
        times.update({name: t * quantum for name, t in seconds.items()})
        each = {name: t * p.multiprocessors / count for name, t in seconds.items()}
        far = np.minimum(1.0, dram / np.maximum(requested, 1.0))  # the share that is not in L2
        latency = p.l2_latency_s + (p.dram_latency_s - p.l2_latency_s) * far
        passes = max((f.passes for f in self.parts), default=0)
        later = np.where(evicted, p.dram_latency_s, p.l2_latency_s) * max(passes - 1, 0)
        first = p.dram_latency_s * (1 + min(passes, 1)) + later  # bytes of each pass
        steps = np.ceil(waves) * self._alone(pairs, space, each, latency)
        times["latency"] = np.maximum(steps - first, 0.0)
        busiest, unhidden = self._together(times)
        times["launch"] = p.launch_s + first
        times["unhidden"] = unhidden
        fits = fits & (shared <= p.shared_bytes_per_program)
        total = times["launch"] + busiest + unhidden
        turns = self._turns(pairs)
        return Costs(
            fits, total, requested, moved, distinct, flops, count, resident, waves, turns, times
        )

    @staticmethod
    def _turns(pairs: list[tuple[ft.Features, ft.Shape]]) -> Numbers:
        """How often an accumulator that follows another is updated; with dots it is not counted.

        Each update rounds it once more: sums of a tile are kept lane by lane until the loop ends,
        but what a moving statistic rescales is one number a row.
        """
        most = np.ones(1)
        for f, s in pairs:
            looped = [a for a, role in f.roles.items() if role == "loop"]
            if f.online and not f.dots and looped:
                most = np.maximum(most, np.prod([s.count(a) for a in looped], axis=0))
        return most

    @staticmethod
    def _together(times: Mapping[str, Numbers]) -> tuple[Numbers, Numbers]:
        """Seconds of the busiest resource, and those of the others that it does not hide."""
        stacked = np.stack(np.broadcast_arrays(*times.values()))
        busiest = stacked.max(axis=0)
        return busiest, UNHIDDEN * (stacked.sum(axis=0) - busiest)

    def _alone(
        self,
        pairs: list[tuple[ft.Features, ft.Shape]],
        space: Space,
        seconds: Mapping[str, Numbers],
        latency: Numbers,
    ) -> Numbers:
        """Seconds that one program takes with a multiprocessor for itself, where each step waits
        for the one before it; `seconds` are a multiprocessor's, by what it is busy with.

        Dots and what is made of them take turns, but for other warp groups. A loop with dots copies
        its next tiles while it computes; a tile of less than ASYNC bytes a thread is not copied but
        loaded when it is needed, behind all copies under way. Other loops load, then compute.
        """
        p = self.profile
        groups = np.maximum(space.warps / GROUP, 1.0)
        stalled = seconds["issue"] * np.maximum(1.0, STALL * GROUP / space.warps)
        rest = np.maximum(stalled, seconds["special"])
        longer, shorter = (pick(seconds["tensor"], rest) for pick in (np.maximum, np.minimum))
        slowest = np.zeros(1)
        port = p.multiprocessor_bytes_per_s
        for f, s in pairs:
            _, across = self._warps(f, s, space)
            loads = [a for a in f.accesses if not a.is_store]
            straight = [ft.tile_bytes(s, a) for a in loads if not a.context]
            total = latency * bool(straight) + sum(straight, np.zeros(1)) / port
            hidden = np.zeros(1)
            for loop in f.loops:
                tiles = [ft.tile_bytes(s, a) for a in loads if a.context.place == loop.place]
                if not tiles:
                    continue
                arrival = latency + sum(tiles, np.zeros(1)) / port
                if any(w.dot is not None and w.context.place == loop.place for w in f.work):
                    least = np.min(np.stack(np.broadcast_arrays(*tiles)), axis=0)
                    blocked = least < ASYNC * p.threads_per_warp * space.warps
                    waiting = np.where(space.stages > 2, latency / (space.stages - 1), arrival)
                    hidden = hidden + s.turns(loop) * (waiting + across * ROUND_TRIPS)
                    total = total + arrival + s.turns(loop) * blocked * latency
                else:
                    total = total + s.turns(loop) * arrival
            apart = np.maximum(longer, hidden)
            after = longer + shorter / groups + hidden
            total = total + np.where(self._asynchronous(f, s, space), apart, after)
            slowest = np.maximum(slowest, total)
        return slowest

    def _asynchronous(self, f: ft.Features, s: ft.Shape, space: Space) -> Flags:
        """Whether dots run beside all else: warp-group MMAs of operands as they were loaded."""
        wide = np.full(1, bool(f.dots))
        for w in f.work:
            if w.dot is not None:
                loaded = w.dot.a.op == w.dot.b.op == "load"
                wide = wide & loaded & self._wide(s, w, space)
        return wide

    def _shared(self, pairs: list[tuple[ft.Features, ft.Shape]], space: Space) -> Numbers:
        """Shared memory of dots' operands and of what they are made of; bytes.

        What a loop loads is there once a stage where warp groups read it while it is replaced, else
        once less (compiled for sm_90, 6 kernels in 170 configurations). Of what is computed, rows
        stay in registers for warp-group MMAs, columns for mma.sync.
        """
        worst = np.zeros(1)
        for f, s in pairs:
            total = np.zeros(1)
            loaded: dict[Expr | Store, Numbers] = {}
            for w in f.work:
                if w.dot is None:
                    continue
                wide = self._wide(s, w, space)
                read = wide & (w.dot.b.op == "load")
                ahead = np.where(read, space.stages, np.maximum(space.stages - 1, 1))
                for a in f.accesses:
                    if w.context and a.context.place == w.context.place and not a.is_store:
                        loaded[a.node] = ahead * ft.tile_bytes(s, a)
                width = 4 if w.dot.operand == "f32" else 2
                for e, other, computed in (
                    (w.dot.a, w.dot.m, w.chained & ~wide),
                    (w.dot.b, w.dot.n, wide),
                ):
                    size = width * s.tile[other] * s.tile[w.dot.k]
                    if e.op != "load":
                        total = total + np.where(computed, size, 0.0)
                    else:
                        loaded.setdefault(e, size)
            worst = np.maximum(worst, total + sum(loaded.values(), np.zeros(1)))
        return worst

    def _wide(self, s: ft.Shape, w: ft.Work, space: Space) -> Flags:
        """Whether a dot is a warp group's."""
        assert w.dot is not None
        return np.asarray((s.tile[w.dot.m] >= self.profile.wgmma_rows) & (space.warps >= GROUP))

    def _registers(
        self, pairs: list[tuple[ft.Features, ft.Shape]], space: Space
    ) -> tuple[Numbers, Flags]:
        """Registers a thread, and whether they and the tiles are within bounds.

        In a loop: the accumulators and the widest tile; outside: what is loaded and the widest
        tile. After a loop the values computed from an accumulator take its place, in another loop
        around it too. Where tiles are reduced in a loop for one another without dots, all that is
        loaded stays until the last of these is done (compiled for sm_90, 20 configurations of 4
        such kernels).
        """
        p = self.profile
        threads = p.threads_per_warp * space.warps
        most = np.minimum(
            p.registers_per_thread - SPARE_REGISTERS, p.registers_per_multiprocessor / threads - 8
        )
        worst = np.zeros(1)
        fits = np.ones(1, bool)
        for f, s in pairs:
            straight = np.zeros(1)
            kept = dict.fromkeys((1, 2), np.zeros(1))  # accumulators of a loop, of one inside it
            wide = dict.fromkeys((0, 1, 2), np.zeros(1))  # the widest tile there, 0 outside
            for free, around in f.accumulators:
                depth = min(len(around), 2)
                kept[depth] = kept[depth] + ft.tile_elements(s, free)
            fits = fits & self._unrolls(f, s, threads)
            for w in f.work:
                if w.dot is not None and w.context:
                    continue
                free = w.free - {w.dot.k} if w.dot else w.free
                depth = min(len(w.context), 2)
                wide[depth] = np.maximum(wide[depth], w.words * ft.tile_elements(s, free))
            loaded = dict.fromkeys(
                (a.free, ft.bytes_of(a.tensor) / 4)
                for a in f.accesses
                if not a.is_store and not a.context
            )
            for free, words in loaded:
                straight = straight + words * ft.tile_elements(s, free)
            for a in f.accesses:
                depth = min(len(a.context), 2)
                if depth and not a.is_store and not a.free & f.dot_axes:
                    wide[depth] = np.maximum(wide[depth], ft.tile_elements(s, a.free))
            straight = (straight + 1.2 * wide[0]) / threads + 10
            loop = kept[1] + np.maximum(1.5 * wide[1], kept[2] + 1.5 * wide[2])
            if f.online and not f.dots:
                looped = [a.free for a in dict.fromkeys(f.accesses) if a.context and not a.is_store]
                most_wide = np.maximum(wide[1], wide[2])
                loop = kept[1] + kept[2] + 2.0 * most_wide
                loop = loop + sum(ft.tile_elements(s, free) for free in looped)
            loop = loop * self._warps(f, s, space)[0] / threads + 30
            roomy = straight <= (most if f.accumulators else np.minimum(most, STRAIGHT_REGISTERS))
            fits = fits & roomy & (loop <= most)
            for axis in f.dot_axes:
                if s.roles[axis] != "program":
                    fits = fits & (s.tile[axis] >= MIN_TILE)
            worst = np.maximum(worst, np.maximum(loop, straight))
        return worst, fits

    @staticmethod
    def _unrolls(f: ft.Features, s: ft.Shape, threads: Numbers) -> Flags:
        """Whether dots in fp32, unrolled to a thread's multiplications, stay in registers.

        A lone one feeds its accumulator from what is loaded; several hold one another's tiles
        (compiled for sm_90: 9 shapes of a lone dot, 8 of two).
        """
        amounts = [
            s.tile[w.dot.m] * s.tile[w.dot.n] * s.tile[w.dot.k] / threads
            for w in f.work
            if w.dot is not None and w.dot.operand == "f32"
        ]
        most = UNROLLED if len(amounts) == 1 else UNROLLED / 2
        stays = np.ones(1, bool)
        for a in amounts:
            stays = stays & (a <= most)
        return stays

    def resident(self, warps: Numbers, shared: Numbers, registers: Numbers) -> Numbers:
        """Programs that live on one multiprocessor together."""
        limits = self.occupancy_limits(warps, shared, registers)
        least = np.stack(np.broadcast_arrays(*limits.values())).min(axis=0)
        return np.asarray(np.maximum(least, 1.0))

    def occupancy_limits(
        self, warps: Numbers, shared: Numbers, registers: Numbers
    ) -> dict[str, Numbers]:
        """How many programs each part of a multiprocessor has room for."""
        p = self.profile
        threads = p.threads_per_warp * warps
        return {
            "programs": np.full(1, p.programs_per_multiprocessor),
            "warps": p.warps_per_multiprocessor // warps,
            "shared memory": p.shared_bytes_per_multiprocessor // np.maximum(shared, 1.0),
            "registers": p.registers_per_multiprocessor // (registers * threads),
        }

    def _traffic(
        self, pairs: list[tuple[ft.Features, ft.Shape]], active: Numbers
    ) -> tuple[Numbers, Numbers, float, Numbers, Flags]:
        """(requested, moved in sectors, distinct, DRAM) bytes of the launch, and whether a later
        pass finds some of them no longer in L2."""
        requested, moved, dram = (np.zeros(1) for _ in range(3))
        evicted = np.zeros(1, bool)
        touched: dict[str, float] = {}
        size: dict[str, float] = {}
        cache = self.profile.l2_bytes * L2_SHARE
        for f, s in pairs:
            count = np.maximum(ft.programs(f, s), 1.0)
            seen: set[object] = set()
            for a in f.accesses:
                width = ft.bytes_of(a.tensor)
                total = ft.elements(f, s, a.free, a.context) * width
                requested = requested + total
                moved = moved + total * ft.sector_overhead(a, s)
                if a.node in seen:  # a later pass
                    gone = total / count * active > cache
                    dram = dram + np.where(gone, total, 0.0)
                    evicted = evicted | gone
                    continue
                seen.add(a.node)
                once = float(width)
                for axis in a.free:
                    once *= s.extent[axis]
                name = a.tensor.name
                size[name] = ft.tensor_elements(a.tensor, self.sizes) * width
                touched[name] = touched.get(name, 0.0) + once
                if once > cache:  # programs of a wave read it together
                    sharing = np.maximum(1.0, np.sqrt(active))
                    dram = dram + np.maximum(0.0, total / sharing - once)
        distinct = sum(min(v, size[name]) for name, v in touched.items())
        return requested, moved, distinct, dram + distinct, evicted

    def _arithmetic(
        self, pairs: list[tuple[ft.Features, ft.Shape]], space: Space
    ) -> tuple[Numbers, dict[str, Numbers]]:
        p = self.profile
        tensor, issue, special, flops = (np.zeros(1) for _ in range(4))
        for f, s in pairs:
            copies, across = self._warps(f, s, space)
            programs = ft.programs(f, s)
            for loop in f.loops:
                lanes = programs * s.turns(loop) * space.warps * p.threads_per_warp
                issue = issue + lanes * LOOP_SLOTS * (1 + 2 * across) / p.scalar_per_s
            for a in f.accesses:
                vector = ft.at_once(a, VECTOR)
                vectors = ft.lanes(f, s, a.free, a.context) * ft.bytes_of(a.tensor) / vector
                issue = issue + vectors * VECTOR_SLOTS / p.scalar_per_s
            for each, free, context in f.casts:
                issue = issue + ft.lanes(f, s, free, context) * each / p.scalar_per_s
            for w in f.work:
                lanes = ft.lanes(f, s, w.free, w.context)
                if w.context:
                    lanes = lanes * copies
                flops = flops + ft.elements(f, s, w.free, w.context) * w.amount
                if w.dot is not None:
                    rate = p.dot_rate(w.dot.operand) * self._dot_efficiency(s, w, space)
                    tensor = tensor + lanes * w.amount / rate
                else:
                    special = special + lanes * w.special / p.special_per_s
                    issue = issue + lanes * w.amount / p.scalar_per_s
        return flops, {"tensor": tensor, "issue": issue, "special": special}

    def _warps(self, f: ft.Features, s: ft.Shape, space: Space) -> tuple[Numbers, Flags]:
        """How many warps compute the same elements, and whether a row is spread over warps.

        A dot of what another dot gave has all warps along its rows (mma.sync: along its columns
        where these are more); others have them along both, as far as there are rows and columns.
        """
        most, across = np.ones(1), np.zeros(1, bool)
        for w in f.work:
            if w.dot is None or w.dot.operand == "f32":
                continue
            m, n = s.tile[w.dot.m], s.tile[w.dot.n]
            rows, columns = MIN_TILE * space.warps / m, MIN_TILE / 2 * space.warps / n
            if w.chained:
                along = self._wide(s, w, space) | (m >= n)
                across = across | ~along
                own = np.where(along, rows, columns)
            else:
                own = rows * columns / space.warps
            most = np.maximum(most, own)
        return most, across

    def _dot_efficiency(self, s: ft.Shape, w: ft.Work, space: Space) -> Numbers:
        """The share of peak that a dot tile reaches: small ones read more operands for a flop."""
        assert w.dot is not None
        m, n = s.tile[w.dot.m], s.tile[w.dot.n]
        if w.dot.operand == "f32":
            return np.full(1, 0.6)
        reuse = np.minimum(1.0, (m * n / (m + n)) / 64)  # operand bytes against flops
        unit = np.where(self._wide(s, w, space), 1.0, self.profile.mma_sync_fraction)
        return unit * self.profile.dot_fraction * (0.47 + 0.53 * reuse)

    def _bytes_in_flight(self, pairs: list[tuple[ft.Features, ft.Shape]], space: Space) -> Numbers:
        """Bytes that one program has under way at its best: asked for and not there, or stored."""
        best = np.full(1, 1.0)
        for f, s in pairs:
            tiles: dict[int, Numbers] = {}
            for a in f.accesses:
                tiles[a.context.place] = tiles.get(a.context.place, 0.0) + ft.tile_bytes(s, a)
            for place, size in tiles.items():
                ahead = np.maximum(space.stages - 1, 1) if place else np.ones(1)
                best = np.maximum(best, size * ahead)
        return best


def predict(
    graph: KernelGraph,
    configs: Sequence[Config],
    sizes: Mapping[str, int],
    profile: Profile,
    made: Sequence[Made] = (),
) -> Prediction:
    """A whole µGraph: its kernels one after another. `made`: of each kernel, where it is known."""
    known: Sequence[Made | None] = made or [None] * len(configs)
    parts = [
        KernelModel(k, sizes, profile).predict(c, m)
        for k, c, m in zip(graph.kernels, configs, known, strict=True)
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
