"""A plain trainable delta: heads, biases, norms, or everything."""

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._base import Array, PyTree, State, Transform, is_floating
from lowrank._select import Select, check_select, selected
from lowrank.operators import Delta


def full(*, select: Select) -> Transform:
    """Train the selected leaves in full, as a delta beside the frozen base.

    A leaf `W` becomes `W + D` with `D` of the same shape, zero at init.

    Args:
        select: Which leaves to train; called once, in `init`, as `select(path, leaf)`.

    Returns:
        A transform that is the identity at init. Trainable: `d`, float32. Fixed:
        nothing.

    Raises:
        ValueError: In `init`, if a selected leaf is not floating, or none is selected;
            in `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.full(select=lrk.matching("bias$"))
        >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.trainable["bias"]["d"].shape
        (3,)

    References:
        Ben Zaken et al., BitFit, 2021, arXiv:2106.10199, for biases alone: of
        `y = x W + b`, and of a norm's `g * (x - mean) / std + b`, only each `b` trains,
        here as `b + d`; for all leaves this is ordinary fine-tuning.
    """
    check_select("full", select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("full", key)
        chosen = selected("full", params, select)
        if bad := [p for p, leaf in chosen.items() if not is_floating(leaf)]:
            raise ValueError(
                f"full: cannot train {bad}: not floating. Leave them out with select=."
            )
        trainable = {
            p: {"d": jnp.zeros(x.shape, jnp.float32)} for p, x in chosen.items()
        }
        return State(trainable, {})

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("full", params)
        _check.check_state("full", leaves, state, trainable=("d",))
        new = {
            path: Delta._make(w=leaves[path], d=own["d"])
            for path, own in state.trainable.items()
        }
        _check.check_operators("full", new)
        return _tree.replace("full", params, new)

    return Transform(init, apply)
