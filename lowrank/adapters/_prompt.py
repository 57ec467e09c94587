"""Prompt tuning: trained embeddings in front of those of the tokens."""

from typing import Any

import jax

from lowrank._base import Array, Transform
from lowrank._select import Select
from lowrank.adapters._added import rows_beside
from lowrank.adapters._lora import Initializer


def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """`U(-1/2, 1/2)`."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


def prompt(
    length: int,
    *,
    select: Select,
    init: Initializer = uniform,
    scale: Any = None,
    name: str = "prompt",
) -> Transform:
    """Prompt tuning: add trained embeddings that a model reads before the tokens'.

    Beside the selected table of embeddings `E: [vocabulary, m]` a leaf
    `prompt: [length, m]` is added. A model that reads it runs on `[P; E[ids]]`, the
    prompt at the first positions. Nothing else in the tree changes.

    Args:
        length: Number of virtual tokens, at least 1.
        select: The table of word embeddings, such as
            `lrk.matching(r"word_embeddings/embedding$")`; called once, in `init`.
        init: Initializer, called as `init(key, (length, m), float32)`.
        scale: What the prompt is multiplied by; None for 1. May be traced.
        name: Last part of the new path: what the model calls it.

    Returns:
        A transform that adds leaves: the tree that `apply` returns has one more beside
        each selected leaf, in its dtype. It is not the identity at init. Trainable,
        float32: `rows`. Fixed: `scale`. The state's paths are those of the tables.

    Raises:
        TypeError: If `length` is not an int or `scale` no number.
        ValueError: If `length < 1`; in `init`, if a selected leaf is no floating
            matrix, does not stand in a dict, or has such a leaf beside it; in `apply`,
            if the state is of another tree.

    Example:
        >>> tx = lrk.prompt(3, select=lrk.matching("embedding"))
        >>> params = {"words": {"embedding": jnp.ones((11, 4))}}
        >>> tree = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> tree["words"]["prompt"].shape
        (3, 4)

    Notes:
        The paper prefers to start from embeddings of words: put those rows of the table
        into `state.trainable[path]["rows"]`.

    References:
        Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021,
        arXiv:2104.08691: section 2.
    """

    def draw(key: Array, stack: tuple[int, ...], width: int) -> dict[str, Array]:
        del stack
        return {"rows": init(key, (length, width), "float32")}

    return rows_beside(
        "prompt",
        name,
        length,
        names=("rows",),
        draw=draw,
        form=lambda own: own["rows"],
        scale=scale,
        select=select,
        axes=None,
    )
