"""Programs and µGraphs: what is computed, and where.

A `Program` is a list of stores, each `for all axes: tensor[indices] = value`, in an order in which
a store may load what an earlier one stored. Tracing gives a program whose stores are its outputs;
cutting it adds temporaries; a `KernelGraph` groups its stores into kernels and gives every axis a
role.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from superopt.errors import IllFormed
from superopt.mugraph.expr import BINDERS, MARKERS, Axis, Expr, Symbol, Tensor, axis, find, toposort


@dataclass(frozen=True)
class Store:
    """For all `axes`: tensor[indices] = value. Indices are injective in the axes."""

    tensor: Tensor
    axes: tuple[Axis, ...]
    indices: tuple[Expr, ...]
    value: Expr

    def __post_init__(self) -> None:
        loose = self.value.free.union(*(i.free for i in self.indices)) - set(self.axes)
        if loose:
            raise IllFormed(f"store to {self.tensor.name}: free axes {sorted(map(repr, loose))}")
        if len(self.indices) != len(self.tensor.shape):
            raise IllFormed(f"store to {self.tensor.name}: {len(self.indices)} indices")


def store(tensor: Tensor, axes: Iterable[Axis], value: Expr) -> Store:
    """The plain store of a whole tensor, an axis a dimension."""
    axes = tuple(axes)
    varying = tuple(a for a in axes if axis(a).op == "axis")
    return Store(tensor, varying, tuple(map(axis, axes)), value)


@dataclass(frozen=True)
class SourceOp:
    """One traced operator, for the baselines: what an unfused run of it moves and computes.

    `kind` is view (free), pointwise, reduction or contraction; `reads` and `writes` name values of
    the traced program (an input has its parameter's name); `flops` is an extent expression.
    A view named "output" that writes nothing marks a value that the program returns.
    """

    name: str
    kind: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    flops: Expr


@dataclass(frozen=True)
class Program:
    """A traced or rewritten program. `outputs` are in the order in which the function returns."""

    name: str
    inputs: tuple[Tensor, ...]
    stores: tuple[Store, ...]
    outputs: tuple[Tensor, ...]
    source_ops: tuple[SourceOp, ...] = field(default=(), compare=False)

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return symbols_of(self.inputs)

    @property
    def roots(self) -> tuple[Expr, ...]:
        return tuple(s.value for s in self.stores)


def symbols_of(tensors: Iterable[Tensor]) -> tuple[Symbol, ...]:
    found = {n.attr for t in tensors for e in t.shape for n in toposort(e) if n.op == "sym"}
    return tuple(sorted(found, key=lambda s: s.name))


def loads(*roots: Expr) -> Iterator[Expr]:
    for root in dict.fromkeys(roots):
        yield from find(root, "load")


def weights(program: Program) -> set[Tensor]:
    """Inputs of fixed shape, where others vary; else those that share no output's first extent.

    Nor are inputs weights that are indexed by an output's first axis, whichever of theirs it is.
    """
    fixed = {t for t in program.inputs if all(e.op == "const" for e in t.shape)}
    if len(fixed) < len(program.inputs):
        return fixed
    first = {t.shape[0] for t in program.outputs if t.shape}
    along: set[Tensor] = set()
    for s in program.stores:
        rows = s.indices[0].free if s.tensor in program.outputs and s.indices else frozenset()
        for n in find(s.value, "load"):
            at = [i for i in n.args[:-1] if next(find(i, "load"), None) is None]
            if any(i.free & rows for i in at):
                along.add(n.attr)
    return {t for t in program.inputs if not t.shape or t.shape[0] not in first} - along


# -- the µGraph ---------------------------------------------------------------------------------

ROLES = ("program", "grid", "loop", "whole")
"""What becomes of an axis in a kernel. `program`: one index a program. `grid`: split over programs
in tiles. `loop`: split over iterations of a loop in tiles. `whole`: held whole in a program, its
tile the next power of two. An unrolled axis has been substituted away: it is several stores."""


@dataclass(frozen=True)
class Branch:
    """One program text: stores computed together, and a role for every axis by name."""

    stores: tuple[Store, ...]
    roles: tuple[tuple[str, str], ...]  # (axis name, role), sorted by name

    def role(self, a: Axis) -> str:
        return self.by_name[a.name]

    @cached_property
    def by_name(self) -> dict[str, str]:
        return dict(self.roles)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """All axes: the stores' own in their order, then bound ones in the order met."""
        found: dict[Axis, None] = {}
        for s in self.stores:
            found.update(dict.fromkeys(s.axes))
        for node in toposort(*(s.value for s in self.stores)):
            if node.op in BINDERS:
                found.update(dict.fromkeys(node.attr.axes))
        return tuple(found)


@dataclass(frozen=True)
class Kernel:
    """One launch. Several branches share the launch side by side: each has programs of its own."""

    name: str
    branches: tuple[Branch, ...]

    @property
    def stores(self) -> tuple[Store, ...]:
        return tuple(s for b in self.branches for s in b.stores)


@dataclass(frozen=True)
class KernelGraph:
    """The whole µGraph: kernels in launch order, joined by tensors in global memory."""

    name: str
    inputs: tuple[Tensor, ...]
    kernels: tuple[Kernel, ...]
    outputs: tuple[Tensor, ...]

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return symbols_of(self.inputs)

    @property
    def temporaries(self) -> tuple[Tensor, ...]:
        stored = dict.fromkeys(s.tensor for k in self.kernels for s in k.stores)
        return tuple(t for t in stored if t not in self.outputs)


@dataclass(frozen=True)
class Config:
    """Tile sizes by axis name (grid and loop axes), warps and pipeline stages of one kernel."""

    tiles: tuple[tuple[str, int], ...]
    warps: int = 4
    stages: int = 3

    @property
    def by_name(self) -> dict[str, int]:
        return dict(self.tiles)


# -- legality: each row names a rule, and yields what breaks it ---------------------------------


def _free_roles(b: Branch) -> Iterator[str]:
    for a in b.axes:
        if b.by_name.get(a.name) not in ROLES:
            yield f"axis {a.name} has no role"


def _bound_not_grid(b: Branch) -> Iterator[str]:
    for node in toposort(*(s.value for s in b.stores)):
        if node.op in BINDERS:
            for a in node.attr.axes:
                if b.role(a) in ("program", "grid"):
                    yield f"axis {a.name} is reduced but split over programs, with no merge"


def _one_loop_a_reduce(b: Branch) -> Iterator[str]:
    for node in toposort(*(s.value for s in b.stores)):
        if node.op == "reduce" and sum(b.role(a) == "loop" for a in node.attr.axes) > 1:
            yield f"a reduction loops over several of {[a.name for a in node.attr.axes]}: nest it"


def _online_loops(b: Branch) -> Iterator[str]:
    for node in toposort(*(s.value for s in b.stores)):
        if node.op == "online" and [b.role(a) for a in node.attr.axes].count("loop") != 1:
            yield f"an online reduction over {[a.name for a in node.attr.axes]} has no loop"
        elif node.op == "online":
            around = {a for a in node.free if b.role(a) == "loop"}
            read = [m.args[0] for m in toposort(*node.args[1:3]) if m.op in MARKERS]
            own = [r for r in read if r.attr.axes == node.attr.axes]
            if any({a for a in r.free if b.role(a) == "loop"} != around for r in own):
                yield f"an online reduction's statistics lack its outer loops over {around}"


def _no_shadowed_tile(b: Branch) -> Iterator[str]:
    extents: dict[str, Expr] = {}
    for a in b.axes:
        if extents.setdefault(a.name, a.extent) is not a.extent:
            yield f"axis name {a.name} is used for two extents"


def _same_grid(b: Branch) -> Iterator[str]:
    grids = {frozenset(a for a in s.axes if b.role(a) in ("program", "grid")) for s in b.stores}
    for a in {a for g in grids for a in g}:
        if any(a not in g for g in grids):
            yield f"axis {a.name} is split over programs for some stores only: others would repeat"


def _reads_own_store(b: Branch) -> Iterator[str]:
    stored = {s.tensor for s in b.stores}
    for node in loads(*(e for s in b.stores for e in (s.value, *s.indices))):
        if node.attr in stored:
            yield f"{node.attr.name} is loaded by the launch that stores it"


BRANCH_RULES = (
    _free_roles,
    _no_shadowed_tile,
    _bound_not_grid,
    _one_loop_a_reduce,
    _online_loops,
    _same_grid,
    _reads_own_store,
)


def illegal(branch: Branch) -> str | None:
    """The first rule that the branch breaks, as a sentence; None where it is legal."""
    for rule in BRANCH_RULES:
        for message in rule(branch):
            return message
    return None


@dataclass(frozen=True)
class Choice:
    """What to run for sizes up to `limits`: a µGraph and a configuration for each of its kernels.

    `note`: what a comment above its row says.

    A kernel.py holds a table of choices, in order of size; the first whose limits hold is taken,
    the last where none does.
    """

    limits: tuple[tuple[str, int], ...]  # (symbol, largest size), sorted by name
    graph: KernelGraph
    configs: tuple[Config, ...]
    note: str = ""


@dataclass(frozen=True)
class Source:
    """The original as text: the function's own, without decorators, and what it needs before it.

    That is an import, a constant or a helper function for each name of its module that it uses.
    `text` is empty where none can stand for it alone (a module, a builtin, a tensor closed over).
    """

    text: str = ""
    context: tuple[tuple[str, str], ...] = ()  # (name, what makes it), what is used first


@dataclass(frozen=True)
class Traced:
    """A program with what the wrapper around its kernel must know.

    `returns` is 'tensor', 'tuple' or 'list'; `parameters` are the original's, in its order;
    `captured` names inputs that are a module's parameters or buffers (values kept beside, by name).
    """

    program: Program
    parameters: tuple[str, ...]
    returns: str
    source: Source
    captured: tuple[str, ...] = ()
