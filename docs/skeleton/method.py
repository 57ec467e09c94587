"""LoRA with a frozen `A`: the smallest whole method, to be copied."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lowrank import _check, _tree
from lowrank._base import PyTree, State, Transform
from lowrank._select import Select, is_matrix, selected
from lowrank.operators import LowRank

# --- the mathematics: arrays in, arrays out -----------------------------------------


def draw_a(key: Key[Array, ""], n: int, rank: int) -> Float[Array, "n r"]:
    """`A ~ N(0, 1/n)`, so that `x @ A` has the scale of `x`."""
    return jax.random.normal(key, (n, rank)) / jnp.sqrt(n)


# --- the wiring: which leaf gets what ------------------------------------------------


def frozen_a(rank: int, *, alpha: float = 1.0, select: Select = is_matrix) -> Transform:
    """LoRA-FA: freeze a random `A`, train `B`.

    A kernel `W: [n, m]` becomes `W + (alpha / rank) A B`, with `A: [n, r]` drawn once
    and fixed, and `B: [r, m]` zero at init.

    Args:
        rank: Inner size `r`, at least 1.
        alpha: Numerator of the scale.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.

    Returns:
        A transform that is the identity at init. Trainable: `b`. Fixed: `a`, `scale`.

    Raises:
        ValueError: If `rank < 1`, or, in `init`, if a selected leaf is not a matrix.

    Example:
        >>> tx = frozen_a(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> state.trainable["w"]["b"].shape, state.fixed["w"]["a"].shape
        ((2, 3), (4, 2))

    Notes:
        Departures from the paper stand here, or: "No known difference."

    References:
        Zhang et al., LoRA-FA, 2023, arXiv:2308.03303. (Equation numbers go here.)
    """
    if rank < 1:
        raise ValueError(f"frozen_a: rank must be at least 1, got {rank}.")

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("frozen_a", key)
        leaves = selected("frozen_a", params, select)
        _check_matrices(leaves)
        trainable, fixed = {}, {}
        for path, leaf in leaves.items():
            n, m = leaf.shape
            trainable[path] = {"b": jnp.zeros((rank, m))}
            fixed[path] = {
                "a": draw_a(_tree.leaf_key(key, path), n, rank),
                "scale": jnp.float32(alpha / rank),
            }
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key  # nothing is random after init
        leaves = _tree.leaves("frozen_a", params)
        _check.check_state("frozen_a", leaves, state)
        new = {
            path: LowRank(
                leaves[path], fix["a"], state.trainable[path]["b"], fix["scale"]
            )
            for path, fix in state.fixed.items()
        }
        return _tree.replace("frozen_a", params, new)

    return Transform(init, apply)


def _check_matrices(leaves: dict[str, Array]) -> None:
    wrong = [_tree.describe(p, leaf) for p, leaf in leaves.items() if leaf.ndim != 2]
    if wrong:
        raise ValueError(
            f"frozen_a: cannot adapt {', '.join(wrong)}: expected 2 axes. "
            "Pass select=lrk.is_matrix."
        )
