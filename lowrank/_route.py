"""Mixed batches: another adapter for every example, over one base."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowrank import _compat, _tree
from lowrank._base import Array, Operator, Path, PyTree
from lowrank._parts import Parts, adapted
from lowrank._ranks import fill
from lowrank.operators import Delta, LowRank

_DOING = "route"


class _Leaf(NamedTuple):
    """What the adapters of a bank may add to one leaf.

    Attributes:
        dims: Axes of the leaf that `a` and `b` hold, or None without low rank.
        rank: Rank of the bank there.
        stacked: Whether scales have the stack axes of the leaf.
        delta: Whether there are plain deltas.
    """

    dims: tuple[tuple[int, ...], tuple[int, ...]] | None
    rank: int
    stacked: bool
    delta: bool


class Bank(NamedTuple):
    """Adapters over one base, side by side in slots of one size: what `bank` returns.

    A pytree. Pass it to a jitted function as an argument: whatever stands in its slots,
    the program is the same.

    Attributes:
        tree: The base, with operators whose own arrays have the slots in front.

    Example:
        >>> params, tx = {"w": jnp.zeros((4, 3))}, lrk.lora(2)
        >>> one, two = (
        ...     tx.apply(params, tx.init(jax.random.key(i), params)) for i in range(2)
        ... )
        >>> bank = lrk.bank([one], capacity=8)
        >>> bank.capacity, bank.set(7, two).tree["w"].a.shape
        (8, (8, 4, 2))
    """

    tree: PyTree

    @property
    def capacity(self) -> int:
        """How many adapters there is room for."""
        held = _held(self.tree).values()
        return next(x.shape[0] for op in held for _, x in _own(op))

    def set(self, slot: Any, tree: PyTree) -> "Bank":
        """The bank with an adapter in a slot, in place of what stood there.

        Args:
            slot: Which; may be traced.
            tree: An adapted tree over the same base; the base alone empties the slot.

        Returns:
            A bank of the same shapes: no program that takes it compiles again.

        Raises:
            ValueError: If there is no such slot, the base is another one, or the
                adapter does not fit the slots; all offending leaves are named.
        """
        if _compat.is_known(slot) and not 0 <= int(slot) < self.capacity:
            raise ValueError(
                f"bank: slot must be at least 0 and below the capacity, "
                f"{self.capacity}, got {slot}. Make a bank with a larger capacity=."
            )
        held = _held(self.tree)
        bare = {path: _bare(op) for path, op in held.items()}
        base = _tree.replace("bank", self.tree, bare)
        found = adapted("bank", [base, tree], _DOING)
        layouts = {path: _layout(op) for path, op in held.items()}
        _check_fits(layouts, found)
        new = {
            path: _written(held[path], layouts[path], found.get(path), slot)
            for path in layouts
        }
        return Bank(_tree.replace("bank", self.tree, new))

    def route(self, task_ids: ArrayLike | Sequence[int]) -> PyTree:
        """As `lrk.route` for the adapters of this bank."""
        return route(self, task_ids)


def bank(
    adapters: Sequence[PyTree], *, capacity: int | None = None, rank: int | None = None
) -> Bank:
    """Put adapters over one base side by side, with room for more.

    Args:
        adapters: Adapted trees over one base: low-rank terms and plain deltas, of any
            ranks. Several terms of a leaf become one, ranks are filled up with zeros.
        capacity: How many adapters there is room for, at least as many as are given;
            None: no more than these.
        rank: The rank of the slots, at least the largest that is given; None: that.

    Returns:
        A `Bank`, whose `set` exchanges adapters. Free slots change nothing. Its leaves
        and the kinds of their terms are those that the given adapters have.

    Raises:
        TypeError: If `adapters` is no list.
        ValueError: If there is none, nothing is adapted, the bases differ, a term is
            neither low-rank nor a plain delta, factors of a leaf hold different axes,
            or there is too little room.

    Example:
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> trees = [
        ...     tx.apply(params, tx.init(jax.random.key(i), params)) for i in range(2)
        ... ]
        >>> lrk.bank(trees, capacity=8, rank=4).tree["w"].a.shape
        (8, 4, 4)
    """
    found = adapted("bank", adapters, _DOING)
    if not found:
        raise ValueError("bank: no leaf is adapted. Pass what tx.apply returned.")
    layouts = {path: _common(leaf, rank) for path, leaf in found.items()}
    size = len(adapters) if capacity is None else capacity
    if size < len(adapters):
        raise ValueError(
            f"bank: expected a capacity of at least {len(adapters)}, got {capacity}."
        )
    _check_fits(layouts, found)
    new = {}
    for path, leaf in found.items():
        slots = [_slot(leaf, layouts[path], terms) for terms in leaf.terms]
        slots += [_slot(leaf, layouts[path], ())] * (size - len(slots))
        arrays = {name: _together([s[name] for s in slots]) for name in slots[0]}
        new[path] = _operator(leaf.base, layouts[path], arrays)
    return Bank(_tree.replace("bank", adapters[0], new))


def route(
    adapters: Sequence[PyTree] | Bank, task_ids: ArrayLike | Sequence[int]
) -> PyTree:
    """Give every example its own adapter, over one base.

    The factors of example `i` are those of `adapters[task_ids[i]]`: `W + s_i A_i B_i`
    with `A: [examples, n, r]` and `B: [examples, r, m]`, gathered, and `W` once. The
    product with `W` stays one product of all examples. `routed` runs a model of a batch
    on it, and refuses one that mixes examples, such as batch norm in training:

        logits = lrk.routed(model)(lrk.route(adapters, task_ids), x)

    A model of one example, without the axis of examples, is mapped by hand:

        run = jax.vmap(lrk.lift(model), in_axes=(lrk.in_axes(tree), 0))

    Gradients go through the gather back into the adapters that the trees were made of.

    Args:
        adapters: Adapted trees over one base, or a `Bank`, which puts them side by side
            once and stays as large when adapters come and go.
        task_ids: `[examples]`, which adapter each example has; -1 for the base alone.
            May be traced, as in a jitted function that serves any mixture.

    Returns:
        The tree for `routed`, or for `vmap` with the axes `lrk.in_axes(tree)`. Leaves
        that no adapter touches are the same objects.

    Raises:
        TypeError: If `adapters` is neither a list nor a bank.
        ValueError: As `bank`; or if the ids are not one axis of integers, or (where
            their values are known) there is no such adapter.

    Example:
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> trees = [
        ...     tx.apply(params, tx.init(jax.random.key(i), params)) for i in range(2)
        ... ]
        >>> tree = lrk.route(trees, jnp.asarray([1, 0, -1, 1]))
        >>> model = lambda p, x: x @ p["w"]
        >>> lrk.routed(model)(tree, jnp.ones((4, 5, 4))).shape
        (4, 5, 3)

    Notes:
        Under jit an id that no adapter has is the base alone. A plain delta is gathered
        for each example, which for a kernel is as large as a copy of it. Nothing checks
        what is mapped by hand: never give a model of a batch its examples as batches of
        one (`x[:, None]`), where a batch norm in training makes zeros of all; `routed`
        does that for models that it has checked.

    References:
        Sheng et al., S-LoRA, 2023, arXiv:2311.03285, and Chen et al., Punica, 2023,
        arXiv:2310.18547: one base product for a batch of many adapters.
    """
    own = adapters if isinstance(adapters, Bank) else bank(adapters)
    number = own.capacity
    ids = jnp.asarray(task_ids)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"route: task_ids must be one axis of integers, one for each example, got "
            f"{ids.dtype}{list(ids.shape)}."
        )
    if _compat.is_concrete(ids):
        wrong = sorted({int(i) for i in np.asarray(ids) if not -1 <= i < number})
        if wrong:
            raise ValueError(
                f"route: task_ids must be -1 (the base alone) or below {number}, the "
                f"number of adapters, got {wrong}."
            )
    # A negative index would count from the end; one past the end is filled with zeros.
    ids = jnp.where(ids < 0, number, ids)

    def gathered(path: Path, leaf: Any) -> Any:
        del path
        if not _is_held(leaf):
            return leaf
        return _mapped(
            leaf, lambda x: jnp.take(x, ids, axis=0, mode="fill", fill_value=0)
        )

    return _tree.map_operators("route", own.tree, gathered)


def _held(tree: PyTree) -> dict[Path, Any]:
    """The leaves of a bank's tree that have slots."""
    leaves = _tree.leaves("bank", tree)
    return {path: leaf for path, leaf in leaves.items() if _is_held(leaf)}


def _is_held(leaf: Any) -> bool:
    """Whether a leaf has slots: other operators belong to the base, as it came."""
    return type(leaf) in (LowRank, Delta)


def _own(op: Any) -> list[tuple[str, Any]]:
    """The arrays of the nested operators of a bank's leaf."""
    inner = op.w if _is_slot(op.w) else None
    found = [(n, getattr(op, n)) for n in op.fields if n not in op.base_fields]
    return found if inner is None else found + _own(inner)


def _is_slot(leaf: Any) -> bool:
    """Whether a leaf is low rank under a plain delta, as a bank makes it."""
    return type(leaf) is LowRank


def _mapped(op: Any, fn: Any) -> Operator:
    """`fn` of every array of a bank's leaf."""
    new = {n: fn(getattr(op, n)) for n in op.fields if n not in op.base_fields}
    if type(op) is Delta and _is_slot(op.w):
        new["w"] = _mapped(op.w, fn)
    return op.replace(**new)


def _bare(op: Any) -> Any:
    """The base of a bank's leaf."""
    return op.w.w if type(op) is Delta and _is_slot(op.w) else op.w


def _layout(op: Any) -> _Leaf:
    """The layout of a bank's leaf."""
    low = op.w if type(op) is Delta else op
    if type(low) is not LowRank:
        return _Leaf(None, 0, False, True)
    dims, stacked = (low.a_dims, low.b_dims), low.scale.ndim > 1
    return _Leaf(dims, low.a.shape[-1], stacked, type(op) is Delta)


def _common(leaf: Parts, rank: int | None) -> _Leaf:
    """A layout that all adapters of a leaf fit."""
    low = [_low(terms) for terms in leaf.terms]
    ranks = [sum(term.rank for term in terms) for terms in low]
    terms = [term for own in low for term in own]
    delta = any(type(term) is Delta for own in leaf.terms for term in own)
    if not terms:
        return _Leaf(None, 0, False, delta)
    dims = (terms[0].a_dims, terms[0].b_dims)
    stacked = any(term.scale.ndim for term in terms)
    return _Leaf(dims, max(ranks) if rank is None else rank, stacked, delta)


def _low(terms: Sequence[Any]) -> list[LowRank]:
    return [term for term in terms if type(term) is LowRank]


def _check_fits(layouts: Mapping[Path, _Leaf], found: Mapping[Path, Parts]) -> None:
    """Refuse terms for which a bank has no room.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in found.items():
        own = layouts.get(path)
        low = [term for terms in leaf.terms for term in _low(terms)]
        most = max((sum(t.rank for t in _low(ts)) for ts in leaf.terms), default=0)
        delta = any(type(t) is Delta for ts in leaf.terms for t in ts)
        if own is None or (low and own.dims is None) or (delta and not own.delta):
            kind = "low-rank terms" if low else "plain deltas"
            bad.append(f"'{path}': the bank holds no {kind} there")
        elif most > own.rank:
            bad.append(f"'{path}': rank {most} exceeds {own.rank}")
        elif any((t.a_dims, t.b_dims) != own.dims for t in low):
            bad.append(f"'{path}': other axes than {own.dims}")
        elif any(t.scale.ndim for t in low) and not own.stacked:
            bad.append(f"'{path}': a scale for each layer")
    if bad:
        raise ValueError(
            f"bank: no room for the adapter: {'; '.join(bad)}. Make the bank of "
            "adapters that have all these terms, with rank= for the largest."
        )


def _slot(leaf: Parts, own: _Leaf, terms: Sequence[Any]) -> dict[str, Any]:
    """The arrays of one adapter at a leaf, in the size of the bank."""
    found: dict[str, Any] = {}
    if own.dims is not None:
        found |= _factors(leaf, own, _low(terms))
    if own.delta:
        deltas = [term.d for term in terms if type(term) is Delta]
        kinds = [t.d.dtype for ts in leaf.terms for t in ts if type(t) is Delta]
        dtype = kinds[0] if kinds else jnp.float32
        zero = np.zeros(tuple(leaf.base.shape), dtype)
        found["d"] = sum(deltas[1:], deltas[0]) if deltas else zero
    return found


def _factors(leaf: Parts, own: _Leaf, terms: Sequence[LowRank]) -> dict[str, Any]:
    """`a`, `b` and `scale` of one adapter, its terms put side by side."""
    a_dims, b_dims = own.dims or ((), ())
    shape, depth = tuple(leaf.base.shape), len(set(a_dims) & set(b_dims))
    stack = tuple(shape[d] for d in a_dims[:depth])
    if not terms:
        kinds = [t.b.dtype for ts in leaf.terms for t in _low(ts)]
        dtype = kinds[0] if kinds else np.float32
        a = np.zeros((*(shape[d] for d in a_dims), own.rank), dtype)
        outputs = (shape[d] for d in b_dims[depth:])
        b = np.zeros((*stack, own.rank, *outputs), dtype)
        return {"a": a, "b": b, "scale": np.zeros(stack if own.stacked else (), "f4")}
    a, b, scale = terms[0].a, terms[0].b, terms[0].scale
    if len(terms) > 1:
        a = jnp.concatenate([term.a for term in terms], axis=-1)
        b = jnp.concatenate([term.scaled_b() for term in terms], axis=depth)
        scale = jnp.ones((), scale.dtype)
    wide = stack if own.stacked else ()
    if tuple(scale.shape) != wide:
        scale = jnp.broadcast_to(scale, wide)
    return {
        "a": fill(a, a.ndim - 1, own.rank),
        "b": fill(b, depth, own.rank),
        "scale": scale,
    }


def _together(arrays: Sequence[Any]) -> Array:
    """Arrays side by side; on the host where all are known: it compiles nothing."""
    if all(_compat.is_known(x) for x in arrays):
        return jnp.asarray(np.stack([np.asarray(x) for x in arrays]))
    return jnp.stack(arrays)


def _operator(base: Any, own: _Leaf, arrays: Mapping[str, Any]) -> Operator:
    """A leaf of a bank."""
    if own.dims is None:
        return Delta._make(w=base, d=arrays["d"])
    a_dims, b_dims = own.dims
    low = {name: arrays[name] for name in ("a", "b", "scale")}
    op = LowRank._make(w=base, **low, a_dims=a_dims, b_dims=b_dims)
    return Delta._make(w=op, d=arrays["d"]) if own.delta else op


def _written(op: Operator, own: _Leaf, found: Parts | None, slot: Any) -> Operator:
    """A leaf of a bank with one slot written."""
    leaf = found if found is not None else Parts(_bare(op), ((), ()))
    new = _slot(leaf, own, leaf.terms[1])
    held = dict(_own(op))
    arrays = {n: x.at[slot].set(jnp.asarray(new[n], x.dtype)) for n, x in held.items()}
    return _operator(_bare(op), own, arrays)
