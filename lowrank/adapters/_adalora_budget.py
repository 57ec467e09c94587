"""AdaLoRA's allocation: which triplets are worth their place, and how many have one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank._base import Array, Path, State
from lowrank.adapters._adalora import as_rows

Masks = dict[Path, Array]


class Importance(NamedTuple):
    """Running averages by which `adalora_mask` ranks triplets.

    Attributes:
        sensitivity: The average of `|w g|`, a tree like a state's trainable half.
        uncertainty: The average of how far `|w g|` is from that.
    """

    sensitivity: Any
    uncertainty: Any


def adalora_importance(
    trainable: Any,
    grads: Any,
    before: Importance | None = None,
    *,
    beta1: Any = 0.85,
    beta2: Any = 0.85,
) -> Importance:
    """Take one step's gradients into the importance of every trained number.

    With `I = |w g|`, the sensitivity becomes `beta1 I' + (1 - beta1) I` and the
    uncertainty `beta2 U' + (1 - beta2) |I - I_new|`.

    Args:
        trainable: The trainable half of a state of `adalora`.
        grads: Gradients, a tree like it.
        before: What the step before returned; None for zeros.
        beta1: How much of the sensitivity stays, in (0, 1). May be traced.
        beta2: How much of the uncertainty stays, in (0, 1). May be traced.

    Returns:
        The averages, without a correction for their start at zero. Runs under `jit`.

    Example:
        >>> own = {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2)), "lambda": jnp.ones(1)}
        >>> found = lrk.adapters.adalora_importance({"w": own}, {"w": own}, beta1=0.5)
        >>> found.sensitivity["w"]["lambda"].tolist()
        [0.5]

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.2, the
        smoothed sensitivity and uncertainty.
    """
    now = jax.tree.map(lambda w, g: jnp.abs(w * g), trainable, grads)
    if before is None:
        zeros = jax.tree.map(jnp.zeros_like, now)
        before = Importance(zeros, zeros)

    def mixed(beta: Any, old: Any, new: Any) -> Any:
        return jax.tree.map(lambda x, y: beta * x + (1 - beta) * y, old, new)

    mean = mixed(beta1, before.sensitivity, now)
    apart = jax.tree.map(lambda x, y: jnp.abs(x - y), now, mean)
    return Importance(mean, mixed(beta2, before.uncertainty, apart))


def triplet_scores(importance: Importance) -> Masks:
    """For each leaf `s(lambda) + mean_n s(P) + mean_m s(Q)`, `[*stack, r]`."""
    both = jax.tree.map(jnp.multiply, importance.sensitivity, importance.uncertainty)
    found = {}
    for path, own in both.items():
        p, q = as_rows(own)
        found[path] = own["lambda"] + jnp.mean(p, axis=-1) + jnp.mean(q, axis=-1)
    return found


def adalora_budget(
    step: Any,
    *,
    start: int,
    end: int,
    total: int,
    warmup: int = 0,
    cooldown: int = 0,
) -> Array:
    """How many triplets have a place at a step of training.

    All `start` of them during `warmup`; then
    `end + (start - end) (1 - (t - warmup) / (total - warmup - cooldown))^3`, and `end`
    for the last `cooldown` steps.

    Args:
        step: The step `t`, from 0. May be traced.
        start: Triplets of all leaves: the rank times the number of weights.
        end: Triplets that shall stay, from 0 to `start`.
        total: Steps of training.
        warmup: Steps before anything is pruned.
        cooldown: Steps at the end in which nothing more is pruned; `warmup + cooldown`
            is less than `total`.

    Returns:
        An int32 scalar.

    Raises:
        ValueError: If `end` lies outside [0, start], or `warmup + cooldown` is not less
            than `total`.

    Example:
        >>> told = {"start": 80, "end": 16, "total": 10, "warmup": 1, "cooldown": 1}
        >>> [int(lrk.adapters.adalora_budget(t, **told)) for t in (0, 5, 9)]
        [80, 24, 16]

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.3, the
        global budget scheduler.
    """
    if not 0 <= end <= start:
        raise ValueError(f"adalora_budget: end must lie in [0, {start}], got {end}.")
    span = total - warmup - cooldown
    if span <= 0:
        raise ValueError(
            f"adalora_budget: warmup + cooldown must be less than total = {total}, got "
            f"{warmup} + {cooldown}."
        )
    left = 1 - jnp.clip((jnp.asarray(step) - warmup) / span, 0, 1)
    return end + jnp.floor((start - end) * left**3).astype(jnp.int32)


def adalora_mask(importance: Importance, budget: Any) -> Masks:
    """Which triplets of all leaves have a place: those with the largest scores.

    The score of a triplet is `s(lambda_k) + mean_i s(P_ik) + mean_j s(Q_kj)`, with
    `s` the product of sensitivity and uncertainty.

    Args:
        importance: What `adalora_importance` returned.
        budget: How many, over all leaves. May be traced.

    Returns:
        By path, bools of the shape of `lambda`; exactly `budget` of them are true (all,
        if there are fewer). Of equal scores the earlier one is kept.

    Example:
        >>> own = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}
        >>> own = {"w": {**own, "lambda": jnp.array([1.0, 2.0])}}
        >>> found = lrk.adapters.Importance(own, own)
        >>> lrk.adapters.adalora_mask(found, 1)["w"].tolist()
        [False, True]

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.2, the
        importance of a triplet.
    """
    scores = triplet_scores(importance)
    flat = jnp.concatenate([x.ravel() for x in scores.values()])
    places = jnp.argsort(jnp.argsort(-flat, stable=True))
    ends = np.cumsum([x.size for x in scores.values()])[:-1]
    kept = jnp.split(places < budget, ends)
    return {p: x.reshape(scores[p].shape) for p, x in zip(scores, kept, strict=True)}


def adalora_prune(state: State, mask: Mapping[Path, Array]) -> State:
    """Zero the `lambda` of triplets without a place; training may bring them back.

    Args:
        state: A state of `adalora`.
        mask: What `adalora_mask` returned.

    Returns:
        The state with `lambda` zero where the mask is false. Their gradients are not,
        so a later mask may give them their place again. Runs under `jit`.

    Raises:
        ValueError: If the mask does not fit the state.

    Example:
        >>> tx = lrk.adalora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> state.trainable["w"]["lambda"] = jnp.ones(2)
        >>> mask = {"w": jnp.array([True, False])}
        >>> lrk.adapters.adalora_prune(state, mask).trainable["w"]["lambda"].tolist()
        [1.0, 0.0]

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.2, the
        pruning of `Lambda`.
    """
    _check_mask("adalora_prune", state, mask)
    trainable = {
        path: {**own, "lambda": jnp.where(mask[path], own["lambda"], 0.0)}
        for path, own in state.trainable.items()
    }
    return state._replace(trainable=trainable)


def adalora_freeze(state: State, mask: Mapping[Path, Array]) -> State:
    """Take the place of triplets for good: for the last phase of training.

    Args:
        state: A state of `adalora`.
        mask: What `adalora_mask` returned.

    Returns:
        The state with this mask in `fixed`: a triplet without its place is zero, and
        all of its gradients are. Runs under `jit`.

    Raises:
        ValueError: If the mask does not fit the state.

    Example:
        >>> tx = lrk.adalora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> mask = {"w": jnp.array([True, False])}
        >>> lrk.adapters.adalora_freeze(state, mask).fixed["w"]["mask"].tolist()
        [True, False]

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.3: in the
        final phase the budget and its distribution stay.
    """
    _check_mask("adalora_freeze", state, mask)
    fixed = {p: {**own, "mask": mask[p]} for p, own in state.fixed.items()}
    return state._replace(fixed=fixed)


def _check_mask(who: str, state: State, mask: Mapping[Path, Array]) -> None:
    """Refuse a mask of another state.

    Raises:
        ValueError: If a leaf's mask is missing or mis-shaped; all are named.
    """
    wanted = {p: own["lambda"].shape for p, own in state.trainable.items()}
    found = {p: tuple(x.shape) for p, x in mask.items()}
    bad = [
        f"'{path}': expected {wanted.get(path)}, got {found.get(path)}"
        for path in {**wanted, **found}
        if wanted.get(path) != found.get(path)
    ]
    if bad:
        raise ValueError(
            f"{who}: the mask does not fit: {'; '.join(bad)}. Make it with "
            "adalora_mask from gradients of this state."
        )
