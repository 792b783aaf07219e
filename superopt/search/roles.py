"""From terms to branches: which axes share a name, and what role each plays.

Bound axes of one extent share a name wherever no capture forbids it, with a stored axis too where
that
one is not split over programs: a row that is summed and then stored is then held once, or looped
over
in one pass a reduction. A role is chosen for every name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, permutations, product
from math import prod

from superopt.mugraph import index as ix
from superopt.mugraph.expr import (
    Axis,
    Expr,
    axis,
    find,
    fresh,
    index,
    make,
    op,
    rebuild,
    reduce,
    rewrite,
    substitute,
    toposort,
)
from superopt.mugraph.program import Branch, Store, illegal
from superopt.search.division import replaced_all
from superopt.search.extract import contraction

LARGEST_WHOLE = 65536  # elements of an axis held in one program
LARGEST_TOGETHER = 16384  # elements of short axes that one reduction holds
SMALLEST_LOOP = 128  # shorter axes are looped over only where they are many
SMALLEST_DOT = 32  # indices that a dot sums over
MOST_DIGITS = 4  # of an axis that stands for several
MOST_ROLES = 64
MOST_ORDERS = 6  # in which names are given to the axes of one reduction


def share_axes(stores: tuple[Store, ...], held: frozenset[Axis]) -> tuple[Store, ...]:
    """Rename bound axes: to a held stored axis of equal extent, else to the first that fits.

    `max[r] x[i, r] ... sum[q] x[i, q]` with r and q as long as the held axis j: both become j.
    Of several axes of one extent each takes the name with which most loads are those made anyway.
    """
    preferred: dict[Expr, list[Axis]] = {}
    for a in sorted(held, key=lambda a: a.name):
        preferred.setdefault(a.extent, []).append(a)
    memo: dict[Expr, Expr] = {}
    stored = frozenset(a for s in stores for a in s.axes)
    loads = {n for s in stores for n in find(s.value, "load") if n.free <= stored}

    def choose(old: Axis, body: Expr, taken: set[Axis]) -> Axis:
        for candidate in preferred.setdefault(old.extent, []):
            if candidate not in taken and (candidate == old or candidate not in body.free):
                return candidate
        new = fresh(old, stored | {a for known in preferred.values() for a in known})
        preferred[old.extent].append(new)
        return new

    def named(order: Sequence[Axis], body: Expr) -> dict[Axis, Axis]:
        binding: dict[Axis, Axis] = {}
        for a in order:
            binding[a] = choose(a, body, set(binding.values()))
        return binding

    def shared(body: Expr, binding: Mapping[Axis, Axis]) -> int:
        changed = {a: axis(new) for a, new in binding.items() if a != new}
        return sum(substitute(n, changed) in loads for n in find(body, "load"))

    def visit(node: Expr) -> Expr:
        if node in memo:
            return memo[node]
        if node.op == "reduce":
            body = node.args[0]
            orders = islice(permutations(node.attr.axes), MOST_ORDERS)
            binding = max((named(order, body) for order in orders), key=lambda b: shared(body, b))
            taken = set(binding.values())
            changed = {a: axis(new) for a, new in binding.items() if a != new}
            body = visit(substitute(body, changed))
            loads.update(find(body, "load"))
            spec = replace(node.attr, axes=tuple(sorted(taken, key=lambda a: a.name)))
            result = make("reduce", (body,), spec, node.dtype)
        else:
            result = rebuild(node, tuple(visit(a) for a in node.args))
        memo[node] = result
        return result

    return tuple(replace(s, value=visit(s.value)) for s in stores)


def programs_only(stores: tuple[Store, ...], split: frozenset[Axis]) -> frozenset[Axis]:
    """Split axes that must be one index a program: batches of a contraction, and surplus row
    axes."""
    single: set[Axis] = set()
    for node in toposort(*(s.value for s in stores)):
        pair = contraction(node)
        if pair is None:
            continue
        a, b = pair
        single |= (a.free & b.free) & split
        for own in (a.free - b.free, b.free - a.free):
            ours = sorted(own & split, key=lambda x: (x.extent.op == "const", _rough(x), x.name))
            held = own - split - frozenset(node.attr.axes)
            keep = 0 if held else 1
            single |= set(ours[: len(ours) - keep] if keep else ours)
    return frozenset(single)


def _packings(
    stores: tuple[Store, ...], split: frozenset[Axis]
) -> Iterator[tuple[tuple[Store, ...], frozenset[Axis]]]:
    """Row axes of a contraction as one axis, so that a tile holds rows of several: b and m as
    4 b + m, in the order in which they are stored, where its length fits 32 bits. And so for axes
    that nested sums go over, of which some are short."""
    order = {a: n for n, a in enumerate(dict.fromkeys(a for s in stores for a in s.axes))}
    done: set[frozenset[Axis]] = set()
    for node in toposort(*(s.value for s in stores)):
        if (nest := _nest(node)) is not None:
            one = {node: _summed_at_once(*nest)}
            yield tuple(replace(s, value=replaced_all(s.value, one)) for s in stores), split
        pair = contraction(node)
        if pair is None:
            continue
        a, b = pair
        for own in (a.free - b.free, b.free - a.free):
            axes = sorted(own & split, key=order.__getitem__)
            group = frozenset(axes)
            whole = all(group <= {*s.axes} or group.isdisjoint(s.axes) for s in stores)
            fits = prod(map(_most, axes)) < 2**31
            if len(axes) > 1 and whole and fits and group not in done:
                done.add(group)
                yield _packed(stores, axes, split)


def _most(a: Axis) -> int:
    sizes = {n.attr.name: n.attr.high for n in find(a.extent, "sym")}
    return ix.value(a.extent, sizes)


def _nest(node: Expr) -> tuple[list[Axis], Expr] | None:
    """The axes of sums that sum one another alone, and the innermost, where that is a contraction.

    None where each axis is long enough to be a dot's own.
    """
    axes: list[Axis] = []
    while node.op == "reduce" and node.attr.monoid == "sum":
        axes += node.attr.axes
        if contraction(node) is not None:
            short = any(_most(a) < SMALLEST_DOT for a in axes)
            whole = 1 < len(axes) <= MOST_DIGITS and prod(map(_most, axes)) < 2**31
            return (axes, node) if short and whole else None
        node = node.args[0]
    return None


def _summed_at_once(axes: Sequence[Axis], inner: Expr) -> Expr:
    """The sum over one axis that has those as digits, in the order in which they are stored."""
    body = inner.args[0]
    taken = {a for n in toposort(body) for a in n.free}
    found = []
    for order in permutations(sorted(axes, key=lambda a: a.name)):
        one, binding = _row_of(order, taken)
        found.append(reduce("sum", (one,), substitute(body, binding), inner.attr.operand))
    return min(found, key=lambda e: (sum(n.size for n in find(e, "load")), e.digest))


def _packed(
    stores: tuple[Store, ...], axes: Sequence[Axis], split: frozenset[Axis]
) -> tuple[tuple[Store, ...], frozenset[Axis]]:
    taken = {a for s in stores for n in toposort(s.value) for a in n.free} | set(split)
    row, binding = _row_of(axes, taken)

    def changed(s: Store) -> Store:
        own = tuple(dict.fromkeys(row if a in binding else a for a in s.axes))
        indices = tuple(substitute(i, binding) for i in s.indices)
        return replace(s, axes=own, indices=indices, value=substitute(s.value, binding))

    return tuple(map(changed, stores)), split - {*axes} | {row}


def _row_of(axes: Sequence[Axis], taken: set[Axis]) -> tuple[Axis, dict[Axis, Expr]]:
    """An axis as long as all together, and each as a digit of its index, the first highest."""
    extent = index(1)
    for a in axes:
        extent = op("mul", extent, a.extent)
    row = fresh(Axis("".join(a.name for a in axes), extent), taken)
    left, binding = axis(row), dict[Axis, Expr]()
    for a in reversed(axes[1:]):
        binding[a] = op("mod", left, a.extent)
        left = op("floordiv", left, a.extent)
    binding[axes[0]] = left
    return row, binding


def _rough(a: Axis) -> int:
    return int(a.extent.attr) if a.extent.op == "const" else 1 << 30


def nest_loops(root: Expr, looped: frozenset[str]) -> Expr:
    """A reduction over several looped axes becomes one loop inside another."""

    def change(node: Expr) -> Expr | None:
        if node.op != "reduce":
            return None
        loops = [a for a in node.attr.axes if a.name in looped]
        if len(loops) < 2:
            return None
        spec = node.attr
        rest = tuple(a for a in spec.axes if a not in loops)
        inner = reduce(spec.monoid, (*rest, loops[-1]), node.args[0], spec.operand, node.dtype)
        for a in reversed(loops[:-1]):
            inner = reduce(spec.monoid, (a,), inner, spec.operand, node.dtype)
        return inner

    return rewrite(root, change)


def bound_axes(stores: tuple[Store, ...]) -> list[Axis]:
    found: dict[Axis, None] = {}
    for node in toposort(*(s.value for s in stores)):
        if node.op == "reduce":
            found.update(dict.fromkeys(node.attr.axes))
    return list(found)


def branches(
    stores: tuple[Store, ...], split: frozenset[Axis], largest: Mapping[str, int]
) -> Iterator[Branch]:
    """Every legal assignment of roles, for terms enumerated with these split axes.

    `largest`: the greatest size of each symbol that is being tuned for.
    """
    for packed in _packings(stores, split):
        yield from branches(*packed, largest)
    stored = frozenset(a for s in stores for a in s.axes)
    shared = share_axes(stores, stored - split)
    single = programs_only(shared, split)
    free = sorted({*bound_axes(shared), *(stored - split)}, key=lambda a: a.name)
    crowded = _crowded(shared, largest)
    options = [["loop"] if a in crowded else _held_roles(a, largest) for a in free]
    for choice in islice(product(*options), MOST_ROLES):
        roles = {a.name: ("program" if a in single else "grid") for a in split}
        roles.update({a.name: r for a, r in zip(free, choice, strict=True)})
        looped = frozenset(n for n, r in roles.items() if r == "loop")
        body = tuple(replace(s, value=nest_loops(s.value, looped)) for s in shared)
        branch = Branch(body, tuple(sorted(roles.items())))
        if illegal(branch) is None:
            yield branch


def _crowded(stores: tuple[Store, ...], largest: Mapping[str, int]) -> set[Axis]:
    """Short axes that are looped over: all together a reduction cannot hold.

    The outermost in memory, as many as leave a tile of the others.
    """
    found: set[Axis] = set()
    for s in stores:
        for node in find(s.value, "reduce"):
            extents = {a: ix.value(a.extent, dict(largest)) for a in node.attr.axes}
            short = {a: n for a, n in extents.items() if n <= SMALLEST_LOOP}
            for a in sorted(short, key=lambda a: (_dimension(node, a), a.name)):
                if prod(short.values()) > LARGEST_TOGETHER:
                    found.add(a)
                    del short[a]
    return found


def _dimension(root: Expr, a: Axis) -> int:
    """The first dimension that an axis indexes."""
    loads = (n.args[:-1] for n in find(root, "load"))
    return min((d for at in loads for d, e in enumerate(at) if a in e.free), default=0)


def _held_roles(a: Axis, largest: Mapping[str, int]) -> list[str]:
    extent = ix.value(a.extent, dict(largest))
    roles = []
    if extent <= LARGEST_WHOLE:
        roles.append("whole")
    if extent > SMALLEST_LOOP or not roles:
        roles.append("loop")
    return roles
