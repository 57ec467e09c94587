"""Predicates that know biases and norms by the names that frameworks give them."""

import re

import jax

from lowrank._base import Path, is_floating

_BIAS = re.compile(r"(^|[/_])(bias|b|beta|offset)$")
_NORM = re.compile(
    r"(norm|(^|[/_])ln)(?![a-z])[^/]*/(scale|weight|bias|gamma|beta|offset)$",
    re.IGNORECASE,
)


def is_bias(path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is floating and named as a bias, those of norms among them.

    Args:
        path: The leaf's path. Its last name must be `bias` (Flax, Equinox, PyTorch),
            `b` or `offset` (Haiku), `beta`, or one of these behind an underscore, as in
            `in_proj_bias`.
        leaf: Shape and dtype of the leaf; the number of axes is not looked at.

    Returns:
        True for a floating bias.

    Example:
        >>> tx = lrk.full(select=lrk.is_bias)
        >>> params = {"query": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
        >>> lrk.select_paths(tx, params)
        ('query/bias',)

    References:
        Ben Zaken et al., BitFit, 2021, arXiv:2106.10199.
    """
    return is_floating(leaf) and _BIAS.search(path) is not None


def is_norm(path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is a floating scale or bias of a norm, by its name.

    Args:
        path: The leaf's path. Its last name must be `scale`, `weight`, `bias`, `gamma`,
            `beta` or `offset`, and the name before it must have `norm` or `ln` as a
            word: `LayerNorm_0`, `layer_norm`, `input_layernorm`, `norm1`, `ln_f`. The
            running statistics of a batch norm have other names.
        leaf: Shape and dtype of the leaf; the number of axes is not looked at.

    Returns:
        True for a floating parameter of a norm.

    Example:
        >>> tx = lrk.full(select=lrk.is_norm)
        >>> norm = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
        >>> params = {"LayerNorm": norm, "dense": {"bias": jnp.zeros(3)}}
        >>> lrk.select_paths(tx, params)
        ('LayerNorm/bias', 'LayerNorm/scale')

    References:
        Zhao et al., Tuning LayerNorm in Attention, 2023, arXiv:2312.11420.
    """
    return is_floating(leaf) and _NORM.search(path) is not None
