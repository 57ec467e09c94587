"""LoRI's recipe: calibrate densely, extract the mask, train again under it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes
from lowrank._base import Array, Path, PyTree, State, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._lora import Initializer, kaiming
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_mask import lori_mask

Mask = Mapping[Path, Any]

# Folded into the key for a second `A`; a name, so that it meets no task's number.
_SECOND = "lori_two_stage"


class TwoStage(NamedTuple):
    """What LoRI's two trainings of one task leave behind.

    Attributes:
        tx: The sparse transform (LoRI-S), `lori` under the mask.
        state: Its trained state.
        mask: The mask, by path, each of the shape of its `B`.
        calibration: The trained state of the dense run (LoRI-D), that of `lori` without
            a mask.
    """

    tx: Transform
    state: State
    mask: Mask
    calibration: State


def lori_two_stage(
    key: Array,
    params: PyTree,
    rank: int,
    fit: Callable[[Transform, State, str], State],
    *,
    alpha: Any = None,
    scale: Any = None,
    density: float | None = None,
    scope: str | Callable[[Path], str] | None = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    store_a: bool = True,
    mask_from: Callable[[State], Mask] | None = None,
    reuse_a: bool = True,
    keep_b: bool = False,
) -> TwoStage:
    """LoRI's recipe for one task: train all of `B`, then its largest entries anew.

    1. LoRI-D: `fit` trains a dense `B` from zero. 2. A mask `M` is taken from the
    trained `B`. 3. LoRI-S: `fit` trains `B * M` from zero.

    The training loop is yours: the same `fit` runs both stages, with any data and any
    optimizer, and may be jitted inside.

    Args:
        key: Random key of this task; tasks that share a key share `A`.
        params: Frozen parameters.
        rank: As for `lori`.
        fit: `fit(tx, state, stage) -> state` trains `state.trainable`; `stage` is
            `"dense"` or `"sparse"`, so that a learning rate can depend on it.
        alpha: As for `lori`.
        scale: As for `lori`.
        density: As for `lori_mask`; None for its default.
        scope: As for `lori_mask`; None for its default.
        select: As for `lori`.
        axes: As for `lori` and `lori_mask`.
        init: As for `lori`.
        store_a: As for `lori`.
        mask_from: A function from the trained state of the first stage to the mask, in
            place of `lori_mask`: for controls such as `random_mask` and `score_mask`.
        reuse_a: Whether the second stage has the `A` under which the mask was found, or
            one drawn anew.
        keep_b: Whether the second stage starts at the masked `B` of the first, in place
            of zero.

    Returns:
        The sparse transform with its trained state, the mask, and the state of the
        dense run. `tx.init(key, params)` draws the `A` of the first stage; it is the
        `A` of `state`, too, if `reuse_a`.

    Raises:
        TypeError: If `fit` is no function, or the call is traced.
        ValueError: If `mask_from` comes with `density` or `scope`, or `fit` returns
            something else than a state like the one it got; and as `lori` and
            `lori_mask`.

    Example:
        >>> def fit(tx, state, stage):  # one step of gradient descent
        ...     def loss(trainable):
        ...         out = tx.apply(params, state._replace(trainable=trainable))
        ...         return jnp.sum((lrk.materialize(out)["w"] - target) ** 2)
        ...     grads = jax.grad(loss)(state.trainable)
        ...     return state._replace(trainable=jax.tree.map(lambda g: -g, grads))
        >>> params, target = {"w": jnp.zeros((4, 3))}, jnp.eye(4, 3)
        >>> run = lrk.lori_two_stage(jax.random.key(0), params, 2, fit, density=0.5)
        >>> [s.trainable["w"]["b"].shape for s in (run.calibration, run.state)]
        [(2, 3), (3,)]

    Notes:
        The authors run each stage in a process of its own and set no seed, so that the
        second has another `A` than the one its mask was found with: `reuse_a=False`.

    References:
        Zhang et al., LoRI, 2025, arXiv:2504.07448, LoRI-D and LoRI-S; the authors'
        `train_lori.py` and `extract_mask.py`.
    """
    _check_call(key, params, fit, mask_from, {"density": density, "scope": scope})
    told: dict[str, Any] = {"alpha": alpha, "scale": scale, "select": select}
    told |= {"axes": axes, "init": init, "store_a": store_a}
    dense = lori(rank, **told)
    calibration = _fit(fit, dense, dense.init(key, params), "dense")
    if mask_from is not None:
        mask = mask_from(calibration)
    else:
        given: dict[str, Any] = {"density": density, "scope": scope}
        asked = {name: value for name, value in given.items() if value is not None}
        mask = lori_mask(calibration, axes=axes, **asked)
    sparse = lori(rank, mask=mask, **told)
    second = key if reuse_a else _tree.leaf_key(key, _SECOND)
    start = sparse.init(second, params)
    if keep_b:
        start = start._replace(trainable=_packed(calibration, start))
    return TwoStage(sparse, _fit(fit, sparse, start, "sparse"), mask, calibration)


def _packed(dense: State, sparse: State) -> dict[Path, dict[str, Array]]:
    """The entries of a dense `B` that a sparse state keeps."""
    return {
        path: {"b": jnp.ravel(dense.trainable[path]["b"])[fixed["index"]]}
        for path, fixed in sparse.fixed.items()
    }


def _fit(fit: Callable[..., Any], tx: Transform, state: State, stage: str) -> State:
    """One training, with its result checked.

    Raises:
        ValueError: If the result is not a state like the one given.
    """
    trained = fit(tx, state, stage)
    if _form(trained) != _form(state):
        raise ValueError(
            f"lori_two_stage: in the {stage} stage fit returned {_text(trained)} that "
            f"is unlike the state it got: expected {_text(state)}. Return "
            "state._replace(trainable=...)."
        )
    return trained


def _form(state: Any) -> Any:
    leaves, treedef = jax.tree.flatten(state)
    return treedef, [(np.shape(x), getattr(x, "dtype", type(x))) for x in leaves]


def _text(state: Any) -> str:
    """A state in short."""
    if not isinstance(state, State):
        return f"a {type(state).__name__}"
    shapes = jax.tree.map(np.shape, state.trainable)
    return f"a State of trainable shapes {shapes}"


def _check_call(
    key: Any, params: PyTree, fit: Any, mask_from: Any, given: Mapping[str, Any]
) -> None:
    """Refuse what cannot work before anything is trained.

    Raises:
        TypeError: If `fit` or `mask_from` is no function, or the call is traced.
        ValueError: If `mask_from` comes with what it replaces.
    """
    for name, value in (("fit", fit), ("mask_from", mask_from)):
        if not callable(value) and not (value is None and name == "mask_from"):
            raise TypeError(
                f"lori_two_stage: {name} must be a function, got {value!r}."
            )
    both = [name for name, value in given.items() if value is not None]
    if mask_from is not None and both:
        raise ValueError(
            f"lori_two_stage: got both mask_from and {' and '.join(both)}. Pass it to "
            "the function that makes the mask."
        )
    call = "lori_two_stage(jax.random.key(0), params, rank, fit)"
    _check.check_key("lori_two_stage", key, call)
    leaves = [x for x in jax.tree.leaves((key, params)) if isinstance(x, jax.Array)]
    if not all(_compat.is_concrete(x) for x in leaves):
        raise TypeError(
            "lori_two_stage: called under jit, vmap or grad, but the number of ones of "
            "the mask is a shape. Jit inside fit, and call this outside."
        )
