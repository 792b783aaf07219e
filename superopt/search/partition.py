"""Which values reach global memory: cuts of the saturated program.

A cut is a set of classes that become temporaries. Candidates are the classes of reductions and
what is computed from them without a further axis, where another reduction uses them, or a
reduction and the rest of the program; and, where an output repeats them along an axis, products,
and reductions of few rows that are long: elsewhere recomputing is free, or nothing is gained by
storing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

from superopt.mugraph import index as ix
from superopt.mugraph.expr import Axis, Expr, Tensor, axis, load
from superopt.search.egraph import EGraph

MOST_CANDIDATES = 12
MOST_COMBINED = 6  # candidates, and as many of the shared, of which every small set is a cut
MOST_TEMPORARIES = 3  # of these sets
FEW_ROWS = 512  # with as many, programs of a row each fill a GPU
LONG_ROW = 1 << 15  # elements that one program takes longer to read than a launch takes
LONG = 1 << 20  # elements along an axis whose extent is no constant


@dataclass(frozen=True)
class Candidate:
    """A class worth a temporary. `product`: what the program writes at the end of a contraction.

    `large`: it has more elements than half of what is read and written anyway. `shared`: several
    outputs are computed from it.
    """

    number: int
    product: bool
    large: bool
    shared: bool


@dataclass(frozen=True)
class Temporary:
    """A class that is stored: its tensor, an axis a dimension."""

    number: int
    tensor: Tensor
    axes: tuple[Axis, ...]

    @property
    def load(self) -> Expr:
        return load(self.tensor, [axis(a) for a in self.axes])


def reducing(g: EGraph) -> set[int]:
    """Classes whose value needs a reduction in every form."""
    found: set[int] = set()
    changed = True
    while changed:
        changed = False
        for c, k in g.classes.items():
            if c in found:
                continue
            if all(
                n.op == "reduce" or any(g.find(x) in found for x in n.children) for n in k.nodes
            ):
                found.add(c)
                changed = True
    return found


def candidates(
    g: EGraph,
    outputs: list[int],
    sizes: Mapping[str, int],
    most_elements: float,
    twins: Callable[[int], Iterable[int]],
) -> list[Candidate]:
    """Classes worth a temporary: those that the program itself writes first, then the most work.

    A class is looked at if it is a reduction, or a whole operand of one, or one of `forks`. Classes
    that only the algebra made must not have more than `most_elements`.
    """
    heavy = reducing(g)
    written = {g.find(c) for c in g.written}
    operands: set[int] = set()
    for k in g.classes.values():
        for n in k.nodes:
            if n.op == "reduce":
                body = g.find(n.children[0])
                if not _spreads(g, body):
                    operands.add(body)
                operands.update(
                    g.find(x) for m in g.classes[body].nodes if m.op == "*" for x in m.children
                )
    below = _below_reductions(g)
    roots = {g.find(o) for o in outputs}

    def rows(c: int) -> float:
        return float(prod(ix.value(a.extent, dict(sizes)) for a in g.classes[c].free))

    def slow(c: int) -> bool:
        return rows(c) < FEW_ROWS and _work(g, c, sizes) >= LONG_ROW * rows(c)

    forked = forks(g, twins) & heavy
    repeated = {c for c in written & heavy if any(g[c].free < g[r].free for r in roots)}
    below |= {c for c in repeated if _contracts(g, c) or slow(c)}
    scored: dict[int, tuple[bool, float, float, int]] = {}
    for c in sorted(heavy & (below | forked) - roots):
        reduces = any(n.op == "reduce" for n in g.classes[c].nodes)
        if not reduces and c not in operands | forked:
            continue
        stored, work = rows(c), _work(g, c, sizes)
        if g.classes[c].dtype not in ("f32", "f64") or work < 2 * stored:
            continue
        if c in written or stored <= most_elements:
            scored[c] = (c not in written, -work, stored, c)
    chains = _chains(g, scored)
    last = {scored[max(chain)] for chain in chains}
    kept = last | {scored[min(chain)] for chain in chains}
    kept |= {scored[c] for c in forked & scored.keys()}
    from_outputs = [_below(g, [r]) for r in roots]
    return [
        Candidate(
            c,
            product=not new and scored[c] in last and _contracts(g, c),
            large=stored > most_elements,
            shared=sum(c in below for below in from_outputs) > 1,
        )
        for new, _, stored, c in sorted(kept)[:MOST_CANDIDATES]
    ]


def _chains(g: EGraph, scored: Mapping[int, tuple[bool, float, float, int]]) -> list[set[int]]:
    """Classes that are computed from one another without a further axis, as much work each."""
    chains = {c: {c} for c in scored}
    for c, row in scored.items():
        for n in g.classes[c].nodes:
            for x in map(g.find, n.children) if n.op != "reduce" else ():
                if x in scored and scored[x][:3] == row[:3] and g[x].free == g[c].free:
                    joined = chains[c] | chains[x]
                    chains.update(dict.fromkeys(joined, joined))
    return list({min(chain): chain for chain in chains.values()}.values())


def forks(g: EGraph, twins: Callable[[int], Iterable[int]]) -> set[int]:
    """Values of several reductions that the program reduces, and uses outside of any reduction too.

    h = (x @ w) * (x @ v) in h / h.sum(-1, keepdim=True), where it has another name for an axis:
    `twins` of a class are those that it is then. Of such values inside one another the outermost.
    """
    waiting = [e.args[0] for e in g.of if e.op == "reduce"]
    inside = _without_reductions(waiting)
    outside = {g.find(c) for e, c in g.of.items() if e not in inside}
    found, seen = set(), set[Expr]()
    while waiting:
        e = waiting.pop()
        if e in seen:
            continue
        seen.add(e)
        if sum(x.op == "reduce" and x.free == e.free for x in _without_reductions([e])) > 1:
            c = g.find(g.of[e])
            if outside.isdisjoint((c, *twins(c))):
                waiting += e.args
            else:
                found.add(c)
    return found


def _without_reductions(roots: Iterable[Expr]) -> set[Expr]:
    """The program's expressions below some, up to reductions, these too."""
    found: set[Expr] = set()
    waiting = [*roots]
    while waiting:
        e = waiting.pop()
        if e not in found:
            found.add(e)
            waiting += e.args if e.op not in ("reduce", "load") else ()
    return found


def _spreads(g: EGraph, c: int) -> bool:
    """Whether a class is a product of which each factor lacks an axis of the whole."""
    k = g.classes[c]
    return any(n.op == "*" and all(g[x].free < k.free for x in n.children) for n in k.nodes)


def _contracts(g: EGraph, c: int) -> bool:
    """Whether a class is, but for what is done to each element, a sum of broadcast products."""
    todo, seen = [c], {c}
    while todo:
        for n in g.classes[todo.pop()].nodes:
            if n.op == "reduce":
                if _spreads(g, g.find(n.children[0])):
                    return True
                continue
            below = {g.find(x) for x in n.children if g[x].free == g[c].free} - seen
            seen |= below
            todo += below
    return False


def _below_reductions(g: EGraph) -> set[int]:
    """Classes that some reduction's body uses."""
    bodies = [n.children[0] for k in g.classes.values() for n in k.nodes if n.op == "reduce"]
    return _below(g, list(map(g.find, bodies)), through=False)


def _below(g: EGraph, roots: list[int], through: bool = True) -> set[int]:
    """Classes from which some are computed, these too; `through` reductions or up to them."""
    stack, found = [*roots], set(roots)
    while stack:
        for n in g.classes[stack.pop()].nodes:
            for x in map(g.find, n.children) if through or n.op != "reduce" else ():
                if x not in found:
                    found.add(x)
                    stack.append(x)
    return found


def _work(g: EGraph, c: int, sizes: Mapping[str, int]) -> float:
    """Elements that computing the class touches at the least, over its forms."""
    k = g.classes[c]
    least: list[float] = []
    for n in k.nodes:
        if n.op == "reduce":
            free = g[n.children[0]].free | set(n.attr.axes)
            least.append(float(prod(ix.value(a.extent, dict(sizes)) for a in free)))
    if least:
        return min(least)
    best, stack, seen = 0.0, [c], {c}
    while stack:
        for n in g.classes[stack.pop()].nodes:
            for x in map(g.find, n.children):
                if x in seen or n.op == "reduce":
                    continue
                seen.add(x)
                if any(m.op == "reduce" for m in g.classes[x].nodes):
                    best = max(best, _work(g, x, sizes))
                elif g.classes[x].free <= k.free:
                    stack.append(x)
    return best


def temporary(g: EGraph, c: int, operand: str | None, rows: Sequence[Axis]) -> Temporary:
    """The tensor of a stored class: rounded as the program rounds it, else as its dot operands are.

    Its name, @ and the class, is nobody's: kernels get readable ones in the end (`naming`).
    `rows`: the outputs' axes, which come first; what its consumer reduces over lies contiguous,
    and in the order in which inputs hold it.
    """
    k = g.classes[g.find(c)]
    place = {a: n for n, a in reversed(list(enumerate(rows)))}
    step = _steps(g)

    def order(a: Axis) -> tuple[int, int, str]:
        return place.get(a, len(rows)), -step.get(a, 0), a.name

    axes = tuple(sorted(k.free, key=order))
    dtype = k.rounded or operand or k.dtype
    tensor = Tensor(f"@{g.find(c)}", tuple(a.extent for a in axes), dtype)
    return Temporary(g.find(c), tensor, axes)


def _steps(g: EGraph) -> dict[Axis, int]:
    """How far apart neighbours along an axis lie, in the input where they lie nearest."""
    found: dict[Axis, int] = {}
    for k in g.classes.values():
        for n in k.nodes:
            if n.op != "leaf" or n.attr.op != "load":
                continue
            stride = 1
            dims = zip(n.attr.args[:-1], n.attr.attr.shape, strict=True)
            for e, extent in reversed(list(dims)):
                for a in e.free:
                    step = stride * abs(ix.poly(e).get((axis(a),), 0))
                    found[a] = min(step or LONG, found.get(a, LONG))
                stride *= extent.attr if extent.op == "const" else LONG
    return found


def operand_type(g: EGraph, c: int) -> str | None:
    """The element type in which matrix products consume a class, a whole operand of theirs."""
    own = g[c].free
    for k in g.classes.values():
        for n in k.nodes:
            if n.op != "reduce" or n.attr.operand is None or not own & set(n.attr.axes):
                continue
            for body in g[n.children[0]].nodes:
                factors = {g.find(x) for x in body.children} if body.op == "*" else set()
                if g.find(c) in factors and not any(own < g[x].free for x in factors):
                    return str(n.attr.operand)
    return None


def cuts(found: Sequence[Candidate]) -> list[tuple[int, ...]]:
    """Sets of classes to store, smallest sets first; last all products, and those not large.

    What several outputs are computed from is combined too: elsewhere it is computed for each.
    """
    shared = [c for c in found if c.shared and not c.large]
    combined = [[c.number for c in row[:MOST_COMBINED]] for row in (found, shared)]
    upto = range(1, MOST_TEMPORARIES + 1)
    small = [cut for n in upto for row in combined for cut in combinations(row, n)]
    products = [c for c in found if c.product]
    whole = [products, [c for c in products if not c.large]]
    return list(dict.fromkeys([*small, *(tuple(c.number for c in cut) for cut in whole if cut)]))


def neighbours(cut: Sequence[int], found: Sequence[Candidate]) -> list[tuple[int, ...]]:
    """The sets that differ from one by one class."""
    numbers = [c.number for c in found]
    return [tuple(n for n in numbers if (n in cut) != (n == changed)) for changed in numbers]
