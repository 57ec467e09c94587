"""Spectra of the changes that merges of singular vectors start from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank._base import Array, Operator
from lowrank.linalg import factored_polar, factored_svd, support
from lowrank.merging._factors import Matrices, Plain
from lowrank.operators._dispatch import scaled


class Spectrum(NamedTuple):
    """An SVD, some of whose directions may be left out.

    Attributes:
        u: `[*stack, n, k]`, zero where a direction is left out.
        s: `[*stack, k]`, from large to small.
        vt: `[*stack, k, m]`, zero where a direction is left out.
        kept: `[*stack, k]`, ones and zeros.
    """

    u: Array
    s: Array
    vt: Array
    kept: Array

    def first(self, k: int) -> "Spectrum":
        """The `k` leading directions, or as many as there are."""
        return Spectrum(
            self.u[..., :, :k], self.s[..., :k], self.vt[..., :k, :], self.kept[..., :k]
        )


Spectral = Callable[..., Spectrum]


def of_support(a: Array, b: Array, largest: Array | None = None) -> Spectrum:
    """The spectrum of `a b` from its factors, without null directions.

    Args:
        a: `[*stack, n, r]`.
        b: `[*stack, r, m]`.
        largest: Singular values that are rounding beside this one, `[*stack, 1]`, are
            null; by default beside the largest of `a b`.
    """
    u, s, vt = factored_svd(a, b)
    kept = support(s, max(a.shape[-2], b.shape[-1]), largest).astype(s.dtype)
    return Spectrum(u * kept[..., None, :], s * kept, vt * kept[..., :, None], kept)


def of_whole(a: Array, b: Array, largest: Array | None = None) -> Spectrum:
    """All `min(n, m)` directions of the formed `a b`; a solver picks the null ones."""
    del largest
    u, s, vt = jnp.linalg.svd(a @ b, full_matrices=False)
    return Spectrum(u, s, vt, jnp.ones_like(s))


def spectral(who: str, conformance: str | None) -> Spectral:
    """How to decompose: over the support, or over all directions as published.

    Raises:
        ValueError: If `conformance` is neither None nor "paper".
    """
    known: dict[str | None, Spectral] = {None: of_support, "paper": of_whole}
    if conformance not in known:
        raise ValueError(
            f"{who}: expected conformance=None or 'paper', got {conformance!r}."
        )
    return known[conformance]


def nearest_isometry(x: Array) -> Array:
    """The polar factor of `[*stack, n, k]`, zero in the directions that `x` lacks."""
    size = min(x.shape[-2:])
    eye = jnp.broadcast_to(jnp.eye(size, dtype=x.dtype), (*x.shape[:-2], size, size))
    pair = (x, eye) if x.shape[-1] == size else (eye, x)
    u, _, vt = factored_polar(*pair)
    return u @ vt


def present(own: Matrices, weights: Sequence[Any]) -> list[tuple[Array, Array, Any]]:
    """Factors and weight of every tree that changes the leaf."""
    triples = list(zip(own.a, own.b, weights, strict=True))
    return [(a, b, w) for a, b, w in triples if a.shape[-1]] or triples[:1]


def total(own: Matrices, weights: Sequence[Any]) -> tuple[Array, Array]:
    """Factors of the weighted sum."""
    found = present(own, weights)
    a = jnp.concatenate([a for a, _, _ in found], axis=-1)
    return a, jnp.concatenate([scaled(b, w) for _, b, w in found], axis=-2)


def plain(
    own: Plain, weights: Sequence[Any], scale: Any, conformance: str | None
) -> Operator:
    """A leaf that is no matrix: the weighted sum, or the mean as published."""
    share = scale / len(weights) if conformance == "paper" else scale
    return own.operator([w * share for w in weights])
