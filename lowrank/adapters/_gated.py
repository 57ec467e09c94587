"""Gates: how much of an adapter there is, by its input or by one trained number."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform, is_operator
from lowrank.operators import Gated


def gated(tx: Transform, *, axes: Mapping[Path, Axes] | None = None) -> Transform:
    """Weigh what a transform adds by a trained gate of the input.

    Where `tx` makes the product `x W` into `h(x)`, this gives
    `x W + g (h(x) - x W)` with `g = sigmoid(x G + b)`, one number for each token,
    `G: [n]` and `b` a scalar. For LoRA that is `x W + g s (x A) B`; for a serial
    adapter, a chain or DoRA it is the same rule. The product with `W` is taken once.

    Args:
        tx: A transform that puts operators over the leaves that it changes.
        axes: As for `lora`; a leaf with more axes has `G: [*stack, *in]` and
            `b: [*stack]`.

    Returns:
        A transform whose state is a pair: that of `tx`, with the same draws, and the
        gates. Trainable besides that of `tx`, float32: `gate`, `gate_bias`, zero at
        init, so that every gate starts at 1/2. It is the identity at init if `tx` is.
        There is no dense form.

    Raises:
        TypeError: If `tx` is no transform.
        ValueError: In `init` and `apply`, if `tx` changes no weight, replaces one (as a
            crossbar does) or has one whose axes are not known; in `apply`, if the state
            is of another tree.

    Example:
        >>> tx = lrk.gated(lrk.lora(2))
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> [sorted(member["w"]) for member in state.trainable]
        [['a', 'b'], ['gate', 'gate_bias']]

    Notes:
        Each token has its own gate, since no weight can know which axis of its input
        is the example. Rows that `prefix` and `prompt` add meet no product: for those
        there is `learn_scale`.

    References:
        Mao et al., UniPELT, 2021, arXiv:2110.07577: section 3 (transposed: our kernels
        are `[in, out]`).
    """
    _check_transform("gated", tx)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("gated", key)
        inner = tx.init(key, params)
        depths, changed = _changed(params, tx.apply(params, inner, key=key))
        found = resolve("gated", changed, axes)
        gates = {}
        for path in depths:
            sizes = found[path].sizes(changed[path].shape)
            gate = jnp.zeros((*sizes.stack, *sizes.inputs))
            gates[path] = {"gate": gate, "gate_bias": jnp.zeros(sizes.stack)}
        return State((inner.trainable, gates), (inner.fixed, {}))

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        inner, gates = _members(state)
        leaves = _tree.leaves("gated", params)
        names = ("gate", "gate_bias")
        _check.check_state("gated", leaves, gates, trainable=names)
        adapted = tx.apply(params, inner, key=key)
        depths, changed = _changed(params, adapted)
        if set(depths) != set(gates.trainable):
            raise ValueError(
                f"gated: the state has gates for {_tree.quoted(gates.trainable)}, but "
                f"the transform changes {_tree.quoted(depths)}. Pass the State that "
                "this transform's own init returned."
            )
        found = resolve("gated", changed, axes)
        new = {}
        for path, depth in depths.items():
            own = {name: gates.trainable[path][name] for name in names}
            dims = {"a_dims": found[path].a_dims, "b_dims": found[path].b_dims}
            new[path] = Gated._make(w=changed[path], **own, **dims, depth=depth)
        _check.check_operators("gated", new)
        return _tree.replace("gated", adapted, new)

    return Transform(init, apply)


def _changed(
    params: PyTree, adapted: PyTree
) -> tuple[dict[Path, int], dict[Path, Any]]:
    """How many operators were put over each leaf that changed, and the new leaves.

    Raises:
        ValueError: If there are none, or one is not over the leaf; all are named.
    """
    before = _tree.leaves("gated", params)
    after = _tree.leaves("gated", adapted)
    changed = {p: after[p] for p, leaf in before.items() if after[p] is not leaf}
    if not changed:
        raise ValueError(
            "gated: the transform changes no weight, so there is nothing to weigh. "
            "Rows that it adds are weighed by learn_scale."
        )
    depths, bad = {}, []
    for path, leaf in changed.items():
        depth = 0
        while leaf is not before[path] and is_operator(leaf) and "w" in leaf.fields:
            leaf, depth = leaf.w, depth + 1
        if leaf is before[path]:
            depths[path] = depth
        else:
            bad.append(f"'{path}' ({type(leaf).__name__})")
    if bad:
        raise ValueError(
            f"gated: the weight is replaced at {', '.join(bad)}: expected operators "
            "over it. Chain what replaces it before, and gate the rest."
        )
    return depths, changed


def _members(state: State) -> tuple[State, State]:
    """The state of the transform, and the gates."""
    counts = [len(p) if isinstance(p, tuple) else None for p in state]
    if counts != [2, 2]:
        raise ValueError(
            f"gated: expected a state of 2 members, got {counts} (trainable, fixed). "
            "Pass the State that this transform's own init returned."
        )
    first, second = zip(*state, strict=True)
    return State(*first), State(*second)


def learn_scale(tx: Transform) -> Transform:
    """Train the scale of each leaf of a transform, in place of a fixed number.

    Whatever has a `scale` in its fixed state (`lora`, `lori`, `bottleneck`, `parallel`,
    `prefix` ...) has it in its trainable state: a learned scalar for each leaf, that
    starts at what `tx` asks for. Nothing else changes.

    Args:
        tx: A transform, or a chain of them.

    Returns:
        A transform with the same `apply` whose state has each `scale` under
        `trainable`.

    Raises:
        TypeError: If `tx` is no transform.
        ValueError: In `init`, if `tx` has no fixed scale.

    Example:
        >>> tx = lrk.learn_scale(lrk.lora(2, alpha=4))
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> sorted(state.trainable["w"]), state.fixed
        (['a', 'b', 'scale'], {'w': {}})

    Notes:
        It is the number itself that is trained, as in the authors' code, and not one
        that a sigmoid keeps between 0 and 1.

    References:
        He et al., 2021, arXiv:2110.04366: the scaling factor `s` of table 1.
    """
    _check_transform("learn_scale", tx)

    def init(key: Array, params: PyTree) -> State:
        state = tx.init(key, params)
        fixed, trainable, count = _moved(state.fixed, state.trainable)
        if not count:
            raise ValueError(
                "learn_scale: the transform keeps no scale in its fixed state. Wrap "
                "one that does, such as lora or parallel."
            )
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        trainable, fixed, _ = _moved(state.trainable, state.fixed)
        return tx.apply(params, State(trainable, fixed), key=key)

    return Transform(init, apply)


def _moved(source: PyTree, target: PyTree) -> tuple[PyTree, PyTree, int]:
    """Both halves of a state once each `scale` has gone over, and their number."""
    if isinstance(source, tuple) and isinstance(target, tuple):
        members = [_moved(*pair) for pair in zip(source, target, strict=True)]
        rest, grown, counts = zip(*members, strict=True) if members else ((), (), ())
        return tuple(rest), tuple(grown), sum(counts)
    found = {p: leaf["scale"] for p, leaf in source.items() if "scale" in leaf}
    rest = {
        path: {name: x for name, x in leaf.items() if name != "scale"}
        for path, leaf in source.items()
    }
    grown = {path: dict(leaf) for path, leaf in target.items()}
    for path, scale in found.items():
        grown.setdefault(path, {})["scale"] = scale
    return rest, grown, len(found)


def _check_transform(who: str, tx: Any) -> None:
    """Refuse what is no transform."""
    if not isinstance(tx, Transform):
        raise TypeError(f"{who}: expected a transform, got {tx!r}. Pass lrk.lora(8).")
