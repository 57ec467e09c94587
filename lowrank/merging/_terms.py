"""The weighted terms of one leaf, for merges that act on the factors themselves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank import _compat
from lowrank._base import Array, Path, PyTree
from lowrank._parts import adapted
from lowrank.merging._common import weights_by_path
from lowrank.operators import Delta, LowRank
from lowrank.operators._dispatch import scaled


class Weighted(NamedTuple):
    """One leaf of all trees.

    Attributes:
        base: What the terms were added to, with the weighted sum of all plain deltas
            added.
        weights: For each tree that adapts the leaf by low rank, its weight.
        terms: For each of those trees, its low-rank terms.
    """

    base: Any
    weights: tuple[Any, ...]
    terms: tuple[tuple[LowRank, ...], ...]

    def pairs(self) -> list[tuple[Any, LowRank]]:
        """Every low-rank term with its weight."""
        sides = zip(self.weights, self.terms, strict=True)
        return [(w, term) for w, terms in sides for term in terms]


def weighted(
    who: str, trees: Sequence[PyTree], weights: Any, scale: Any = 1.0
) -> dict[Path, Weighted]:
    """Take apart adapted trees, plain deltas summed already.

    Args:
        who: Name of the merge, for messages.
        trees: Adapted trees over one base.
        weights: As `weights_by_path` takes them.
        scale: Times every weight.

    Returns:
        By path, for leaves that at least one tree adapts, in the order of the tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors of a leaf hold different axes, or the weights do not fit.
    """
    found = adapted(who, trees)
    numbers = weights_by_path(who, weights, len(trees), found)
    leaves = {}
    for path, own in found.items():
        scales = [w * scale for w in numbers[path]]
        sides = list(zip(scales, own.terms, strict=True))
        plain = [(w, t.d) for w, terms in sides for t in terms if isinstance(t, Delta)]
        low = [(w, tuple(t for t in ts if isinstance(t, LowRank))) for w, ts in sides]
        low = [(w, ts) for w, ts in low if ts]
        base = _with_deltas(own.base, [scaled(d, w) for w, d in plain])
        own_weights, terms = tuple(w for w, _ in low), tuple(ts for _, ts in low)
        leaves[path] = Weighted(base, own_weights, terms)
    return leaves


def _with_deltas(base: Any, deltas: Sequence[Array]) -> Any:
    return Delta(base, sum(deltas[1:], deltas[0])) if deltas else base


def equal(one: Any, two: Any) -> bool | None:
    """Whether two arrays are one or have equal values; None where a value is unknown.

    Under `jit` the values of arguments are.
    """
    if one is two:
        return True
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not (_compat.is_known(one) and _compat.is_known(two)):
        return None
    with jax.ensure_compile_time_eval():  # what is known stays known under jit
        return bool(jnp.array_equal(one, two))


def roots(x: Array) -> tuple[Array, Array]:
    """`sqrt(|x|)`, with the sign of `x` and without.

    The root has no derivative at zero; it is taken as zero there.
    """
    null = x == 0
    root = jnp.where(null, 0, jnp.sqrt(jnp.where(null, 1, jnp.abs(x))))
    return jnp.where(x < 0, -root, root), root


def rooted(weight: Any, term: LowRank) -> tuple[Array, Array]:
    """Both factors times the root of weight times scale, its sign on `a`."""
    x = jnp.asarray(weight) * term.scale
    signed, root = roots(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    def times(factor: Array, by: Array) -> Array:
        wide = (1,) * (factor.ndim - by.ndim) if by.ndim else ()
        return factor * by.reshape(*by.shape, *wide).astype(factor.dtype)

    return times(term.a, signed), times(term.b, root)
