"""EVA: factors of LoRA from the inputs that each weight meets, ranks by their share."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowrank import _compat
from lowrank._base import Path, State


def principal_inputs(
    gram: Float[np.ndarray, "*stack n n"],
) -> tuple[Float[np.ndarray, "*stack n"], Float[np.ndarray, "*stack n n"]]:
    """Shares of the variance from large to small, and directions as columns.

    With `X = U S V^T` and `gram = X^T X` these are `S^2 / sum(S^2)` and `V`.
    """
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values[..., ::-1], 0)
    return values / values.sum(axis=-1, keepdims=True), vectors[..., ::-1]


def shared_out(
    shares: Mapping[Path, np.ndarray], cost: Mapping[Path, int], budget: int
) -> dict[Path, int]:
    """How many directions of each leaf are among those with the largest shares."""
    ranked = [
        (-share, place, path)
        for path, own in shares.items()
        for place, share in enumerate(own)
    ]
    ranks = dict.fromkeys(shares, 0)
    for _, _, path in sorted(ranked, key=lambda entry: entry[0]):
        if cost[path] > budget:
            break
        budget -= cost[path]
        ranks[path] += 1
    return ranks


def eva(state: State, grams: Mapping[Path, Any], *, rho: int | float = 2.0) -> State:
    """EVA: start LoRA's `A` in the directions in which the inputs of a weight vary.

    For the inputs `X: [rows, n]` that a weight meets, with `X = U S V^T`, its `A`
    starts as the first columns of `V`, and `B` at zero. A share of the variance,
    `S_i^2 / sum(S^2)`, says which directions of which leaf are worth a column: all
    leaves together keep as many as before, and no leaf more than `rho` times as many.

    Args:
        state: A state of `lora`, just drawn.
        grams: `X^T X` for each leaf of the state, `[*stack, n, n]`: what
            `lrk.merging.gram` collects, summed over batches. Take them from training
            data alone.
        rho: How much the rank of one leaf may grow, at least 1. With 1 every leaf keeps
            its rank.

    Returns:
        A state for the same transform, whose `apply` goes by the state's own ranks.
        Leaves that get none are left out, and so stay as they are. Scales are kept, as
        if `alpha` had grown with the rank. Shapes follow from the data: restore a
        checkpoint into `jax.eval_shape(lambda: state)`.

    Raises:
        TypeError: If an array is traced: ranks are shapes.
        ValueError: If `rho < 1`, the state is not one of `lora`, or a leaf has no Gram
            matrix that fits it, or one of zeros.

    Example:
        >>> params = {"w": jnp.ones((3, 2))}
        >>> x = jnp.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
        >>> tx = lrk.lora(1)
        >>> state = tx.init(jax.random.key(0), params)
        >>> model = lambda p, x: x @ p["w"]
        >>> grams = lrk.merging.gram(model, params, x, select=lrk.is_matrix)
        >>> jnp.abs(lrk.eva(state, grams).trainable["w"]["a"]).ravel().tolist()
        [0.0, 1.0, 0.0]

    Notes:
        The authors and PEFT update a truncated SVD batch by batch until its directions
        settle, and their incremental PCA takes the mean off the inputs. Gram matrices
        are exact and have no order, take `n^2` numbers for each leaf while they are
        collected, and keep the mean, as the paper's SVD of the activations does.

    References:
        Paischer et al., EVA (One Initialization to Rule them All), 2024,
        arXiv:2410.07170: its section on the method, `X = U S V^T` with `A = V_r^T` and
        `B = 0`, and ranks by `S_i^2 / sum_j S_j^2` over all weights (transposed: our
        kernels are `[in, out]`).
    """
    if rho < 1:
        raise ValueError(f"eva: rho must be at least 1, got {rho}.")
    leaves = _checked(state, grams)
    shares, vectors, cost, budget = {}, {}, {}, 0
    for path, leaf in leaves.items():
        found, vectors[path] = principal_inputs(leaf.gram)
        cost[path] = math.prod(leaf.stack)
        most = min(round(rho * leaf.rank), leaf.n, leaf.m)
        shares[path] = found.reshape(-1, leaf.n).mean(axis=0)[:most]
        budget += leaf.rank * cost[path]
    ranks = {p: r for p, r in shared_out(shares, cost, budget).items() if r}
    trainable = {p: leaves[p].started(vectors[p], r) for p, r in ranks.items()}
    return State(trainable, {path: state.fixed[path] for path in ranks})


class _Leaf(NamedTuple):
    """Factors of one leaf and the Gram matrix of its inputs."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    gram: np.ndarray

    @property
    def stack(self) -> tuple[int, ...]:
        return self.gram.shape[:-2]

    @property
    def rank(self) -> int:
        return self.a[-1]

    @property
    def n(self) -> int:
        return self.gram.shape[-1]

    @property
    def m(self) -> int:
        return math.prod(self.b[len(self.stack) + 1 :])

    def started(self, vectors: np.ndarray, rank: int) -> dict[str, Any]:
        """`A` of another rank, and a `B` of zeros."""
        depth = len(self.stack)
        b = (*self.b[:depth], rank, *self.b[depth + 1 :])
        a = vectors[..., :rank].reshape(*self.a[:-1], rank).astype(np.float32)
        return {"a": jnp.asarray(a), "b": jnp.zeros(b)}


def _checked(state: State, grams: Mapping[Path, Any]) -> dict[Path, _Leaf]:
    """Each leaf's shapes and Gram matrix.

    Raises:
        TypeError: If a Gram matrix is traced.
        ValueError: If the state or a Gram matrix does not fit; all leaves are named.
    """
    own = state.trainable
    low = isinstance(own, Mapping) and all({"a", "b"} == set(x) for x in own.values())
    if not low:
        raise ValueError(
            "eva: expected a state of lrk.lora: leaves with 'a' and 'b' by path. Pass "
            "the member's own state, before it goes into a chain."
        )
    traced = [p for p in own if p in grams and not _compat.is_known(grams[p])]
    if traced:
        raise TypeError(
            f"eva: the Gram matrices at {traced} are not concrete, but the ranks that "
            "follow from them are shapes. Call eva outside jit."
        )
    leaves, bad = {}, []
    for path, factors in own.items():
        gram = np.asarray(grams.get(path, np.zeros(())), np.float64)
        a, b = tuple(factors["a"].shape), tuple(factors["b"].shape)
        depth = gram.ndim - 2
        n = math.prod(a[max(depth, 0) : -1])
        if path not in grams:
            bad.append(f"'{path}': no Gram matrix")
        elif depth < 0 or gram.shape != (*a[:depth], n, n):
            bad.append(
                f"'{path}': expected [*stack, n, n] for an A of {a}, got {gram.shape}"
            )
        elif not np.all(np.trace(gram, axis1=-2, axis2=-1) > 0):
            bad.append(f"'{path}': no input that varies")
        else:
            leaves[path] = _Leaf(a, b, gram)
    if bad:
        raise ValueError(
            f"eva: {'; '.join(bad)}. Collect the inputs of all adapted leaves with "
            "lrk.merging.gram(fn, adapted, *args) over training data."
        )
    return leaves
