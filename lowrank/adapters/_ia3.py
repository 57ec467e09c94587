"""(IA)^3: the outputs or the inputs of a weight, each times a trained number."""

from collections.abc import Mapping

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform
from lowrank._combine import chain
from lowrank._select import Select, check_select, selected
from lowrank.adapters._lora import check_leaves
from lowrank.operators import Rescaled


def rescale_outputs(
    *, select: Select, axes: Mapping[Path, Axes] | None = None
) -> Transform:
    """Train one factor for each output of a weight.

    What it meets, an array or an operator `W: [n, m]`, becomes `W diag(l)`, so that a
    product is `(x W) * l` with `l: [m]`, ones at init.

    Args:
        select: Which leaves to rescale; called once, in `init`, as
            `select(path, leaf)`.
        axes: As for `lora`; a leaf with more axes has `l: [*stack, *out]`.

    Returns:
        A transform that is the identity at init. Trainable: `l`, float32. Fixed:
        nothing.

    Raises:
        ValueError: In `init`, if a selected leaf cannot be adapted; in `apply`, if the
            state is of another tree.

    Example:
        >>> tx = lrk.rescale_outputs(select=lrk.matching("value/kernel"))
        >>> params = {"value": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
        >>> tx.init(jax.random.key(0), params).trainable["value/kernel"]["l"].tolist()
        [1.0, 1.0, 1.0]

    Notes:
        A bias that is added behind the product is not rescaled: see `ia3`.

    References:
        Liu et al., 2022, arXiv:2205.05638: `l_k * K` and `l_v * V` in its section 3.3.
    """
    return _rescale("rescale_outputs", select, axes, "b_dims")


def rescale_inputs(
    *, select: Select, axes: Mapping[Path, Axes] | None = None
) -> Transform:
    """Train one factor for each input of a weight.

    What it meets, an array or an operator `W: [n, m]`, becomes `diag(l) W`, so that a
    product is `(x * l) W` with `l: [n]`, ones at init.

    Args:
        select: Which leaves to rescale; called once, in `init`, as
            `select(path, leaf)`.
        axes: As for `lora`; a leaf with more axes has `l: [*stack, *in]`.

    Returns:
        A transform that is the identity at init. Trainable: `l`, float32. Fixed:
        nothing.

    Raises:
        ValueError: In `init`, if a selected leaf cannot be adapted; in `apply`, if the
            state is of another tree.

    Example:
        >>> tx = lrk.rescale_inputs(select=lrk.matching("output/dense/kernel"))
        >>> params = {"output": {"dense": {"kernel": jnp.ones((4, 3))}}}
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.trainable["output/dense/kernel"]["l"].shape
        (4,)

    References:
        Liu et al., 2022, arXiv:2205.05638: `(l_ff * gamma(W_1 x)) W_2` in its section
        3.3.
    """
    return _rescale("rescale_inputs", select, axes, "a_dims")


def ia3(
    *,
    outputs: Select,
    inputs: Select,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """(IA)^3: rescale keys, values and the inner activations of feed-forward blocks.

    It is `chain(rescale_outputs(select=outputs), rescale_inputs(select=inputs))`: the
    kernels of keys and values become `W diag(l)`, the second kernels of feed-forward
    blocks `diag(l) W`. It merges into the base by `materialize`.

    Args:
        outputs: The kernels of keys and values: a predicate `(path, leaf) -> bool`.
        inputs: The kernels behind the activation of each feed-forward block.
        axes: As for `lora`.

    Returns:
        A transform that is the identity at init; its state is that of a chain of two.
        Trainable: `l`, float32, in both members. Fixed: nothing.

    Raises:
        ValueError: In `init` and `apply`, as `rescale_outputs` and `rescale_inputs`.

    Example:
        >>> tx = lrk.ia3(
        ...     outputs=lrk.matching("(key|value)/kernel"),
        ...     inputs=lrk.matching("mlp_out/kernel"),
        ... )
        >>> names = ("query", "key", "value", "mlp_in", "mlp_out")
        >>> params = {name: {"kernel": jnp.ones((4, 3))} for name in names}
        >>> state = tx.init(jax.random.key(0), params)
        >>> [len(member) for member in state.trainable], lrk.count(state)
        ([2, 1], (10, 0))

    Notes:
        The paper's model, T5, has no biases. PEFT multiplies the result of a layer,
        with its bias, by `l`; here the bias is a leaf of its own and stays.

    References:
        Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
        In-Context Learning, 2022, arXiv:2205.05638: section 3.3.
    """
    return chain(
        rescale_outputs(select=outputs, axes=axes),
        rescale_inputs(select=inputs, axes=axes),
    )


def _rescale(
    who: str, select: Select, axes: Mapping[Path, Axes] | None, side: str
) -> Transform:
    """Factors over the axes that `side` of a leaf's `Axes` tells."""
    check_select(who, select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        chosen = selected(who, params, select)
        found = resolve(who, chosen, axes)
        check_leaves(who, 1, chosen, found)
        trainable = {
            path: {"l": jnp.ones([leaf.shape[d] for d in getattr(found[path], side)])}
            for path, leaf in chosen.items()
        }
        return State(trainable, {})

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(who, params)
        _check.check_state(who, leaves, state, trainable=("l",))
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve(who, chosen, axes)
        new = {
            path: Rescaled._make(
                w=w, m=state.trainable[path]["l"], dims=getattr(found[path], side)
            )
            for path, w in chosen.items()
        }
        _check.check_operators(who, new)
        return _tree.replace(who, params, new)

    return Transform(init, apply)
