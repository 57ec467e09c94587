"""Masks to hold LoRI's mask against: by any score, or at random."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes
from lowrank._base import Array, Path, PyTree
from lowrank._combine import state_parts
from lowrank.adapters._lori_mask import Piece, by_group, check_density, keep_largest


def score_mask(
    scores: PyTree,
    *,
    density: float = 0.1,
    scope: str | Callable[[Path], str] = "model",
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """A mask that keeps the entries with the largest scores.

    As `lori_mask`, with any scores in place of `|B|`: of the `N` entries of a group the
    `max(1, int(density * N))` largest are kept, by value and not by size. With `-|B|`
    it keeps what LoRI drops first; with the size of the gradient at init it needs no
    trained `B`.

    Args:
        scores: A score for each entry of each `B`, in the form of `state.trainable` of
            a dense `lori`, so `{path: {"b": scores}}`: what `jax.grad` returns, or
            `jax.tree.map` over such a state. Other names than `b` are not looked at.
        density: Share of the entries to keep, in (0, 1].
        scope: Which entries compete; as for `lori_mask`.
        axes: Axes by path; what `lori` got.

    Returns:
        A mask by path, of booleans; what `lori` takes. Of equal scores the first is
        kept, so the number of ones is exact.

    Raises:
        ValueError: If the density or the scope is no such thing, there are no scores or
            two of one path, or, where that can be seen, all are zero or some are not
            finite.

    Example:
        >>> b = jnp.array([[3.0, -5.0], [1.0, 0.5]])
        >>> lrk.score_mask({"w": {"b": -jnp.abs(b)}}, density=0.5)["w"].tolist()
        [[False, False], [True, True]]

    References:
        Lee, Ajanthan and Torr, SNIP, 2019, arXiv:1810.02340, on masks from gradients at
        init; there the score is the size of weight times gradient, zero where `B` is.
    """
    check_density("score_mask", density)
    found = _scores(scores)
    return by_group(
        "score_mask", found, scope, axes, lambda _, x: keep_largest(x, density)
    )


def random_mask(
    key: Array,
    mask: Mapping[Path, Any],
    *,
    scope: str | Callable[[Path], str] = "matrix",
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """A mask with as many ones as another, at random places.

    Within each group the entries of the mask are permuted at random, so that what a
    mask owes to its counts can be told from what it owes to its places. The default
    keeps the number of ones of every matrix; `scope="model"` keeps their total alone.

    Args:
        key: Random key. A group's permutation depends on the key and on the group's
            first leaf, not on other groups.
        mask: Zeros and ones by path, such as `lori_mask` returns. May be traced.
        scope: Within which groups entries move; as for `lori_mask`.
        axes: Axes by path, which say what leaves are stacks; without them a stack is
            one matrix.

    Returns:
        A mask by path, of booleans, with the same number of ones in each group.

    Raises:
        TypeError: If `key` is no random key.
        ValueError: If the scope is no such thing, there is no mask, or, where that can
            be seen, it holds other numbers than 0 and 1.

    Example:
        >>> mask = {"w": jnp.arange(12).reshape(3, 4) < 5}
        >>> drawn = lrk.random_mask(jax.random.key(0), mask)["w"]
        >>> int(drawn.sum()), bool((drawn == mask["w"]).all())
        (5, False)
    """
    call = "random_mask(jax.random.key(0), mask)"
    _check.check_key("random_mask", key, call)
    if not mask:
        raise ValueError(
            "random_mask: the mask is empty. Pass what lrk.lori_mask gave."
        )
    seen = {p: np.asarray(m) for p, m in mask.items() if _compat.is_known(m)}
    wrong = [path for path, m in seen.items() if not np.isin(m, (0, 1)).all()]
    if wrong:
        raise ValueError(
            f"random_mask: masks must hold 0 and 1, unlike those at {wrong}."
        )
    _check.check_hashes("random_mask", mask)

    def permute(first: Piece, entries: Array) -> Array:
        path, place = first
        own = jax.random.fold_in(_tree.leaf_key(key, path), place)
        return jax.random.permutation(own, entries)

    entries = {path: jnp.asarray(m).astype(bool) for path, m in mask.items()}
    return by_group("random_mask", entries, scope, axes, permute)


def _scores(scores: PyTree) -> dict[Path, Array]:
    """Every `b` of a tree of scores.

    Raises:
        ValueError: If there is none, two have one path, all are zero, or some are not
            finite.
    """
    found: dict[Path, Array] = {}
    twice = []
    for part in state_parts(scores):
        for path, leaf in part.items():
            if isinstance(leaf, Mapping) and "b" in leaf:
                twice += [path] if path in found else []
                found[path] = jnp.asarray(leaf["b"])
    if not found:
        raise ValueError(
            'score_mask: there are no scores: expected {path: {"b": scores}}, the form '
            "of `state.trainable` of lrk.lori without a mask."
        )
    if twice:
        raise ValueError(
            f"score_mask: more than one member of the chain has a `b` at {twice}. Pass "
            "the scores of one member."
        )
    seen = {p: np.asarray(x) for p, x in found.items() if _compat.is_known(x)}
    wrong = [path for path, x in seen.items() if not np.isfinite(x).all()]
    if wrong:
        raise ValueError(f"score_mask: the scores are not finite at {wrong}.")
    if len(seen) == len(found) and not any(x.any() for x in seen.values()):
        raise ValueError(
            "score_mask: every score is zero, so that nothing is told apart. Score a "
            "trained `B`, or a gradient."
        )
    return found
