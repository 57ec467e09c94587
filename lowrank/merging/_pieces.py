"""Merges entry by entry: tensors of all trees, pruned one by one, then fused."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _check, _compat, _tree
from lowrank._base import Array, Path, PyTree
from lowrank._parts import Parts, check_axes, parts
from lowrank.merging._common import check_number, weights_by_path
from lowrank.merging._dense import Dense, dense_deltas
from lowrank.merging._factors import assemble, wide
from lowrank.merging._terms import roots
from lowrank.operators import LowRank


class Piece(NamedTuple):
    """One tensor of all trees, and their weights.

    Attributes:
        x: `[T, S, m, n]`: for each tree and stack index a matrix; zero where a tree
            leaves the leaf alone.
        w: `[T, 1 or S, 1, 1]`.
    """

    x: Array
    w: Array


Name = tuple[Path, int]
Pieces = Mapping[Name, Piece]
Merged = Mapping[Name, Array]
Fuse = Callable[[Pieces, Any], Merged]


def merge(
    who: str,
    trees: Sequence[PyTree],
    weights: Any,
    *,
    density: Any,
    conformance: str,
    prune: Callable[..., Array] | None,
    fuse: Fuse,
    scale: Any,
    key: Array | None = None,
) -> PyTree:
    """Prune every tensor of every tree, then fuse the trees.

    Args:
        who: Name of the merge, for messages.
        trees: Adapted trees.
        weights: As `weights_by_path` takes them.
        density: A number in (0, 1], or one for each tree.
        conformance: With 'peft' the two factors of a leaf are two tensors, else its
            change is one.
        prune: `prune(x, density)`, or `prune(x, density, u)` with uniform draws of the
            shape of `x` where there is a key.
        fuse: `fuse(pieces, density)`.
        scale: Factor of what is merged.
        key: Random key, checked.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If anything does not fit.
    """
    take = _factor_pieces if conformance == "peft" else _dense_pieces
    pieces, rebuild = take(who, trees, weights)
    density = check_density(who, density, len(trees))
    check_number(who, "scale", scale)
    if key is not None:
        _check.check_hashes(who, (path for path, _ in pieces))
    if prune is not None:
        pieces = {
            name: p._replace(x=prune(p.x, density, *_drawn(key, name, p.x)))
            for name, p in pieces.items()
        }
    merged = fuse(pieces, density) if pieces else {}
    return assemble(who, trees[0], rebuild(merged, jnp.asarray(scale)))


def each(fuse: Callable[[Array, Array], Array]) -> Fuse:
    """Fuse every tensor by itself: `fuse(x, w)` over the first axis."""

    def act(pieces: Pieces, density: Any) -> Merged:
        del density
        return {name: fuse(p.x, p.w) for name, p in pieces.items()}

    return act


def weighted_sum(x: Array, w: Array) -> Array:
    """`sum_t w_t x_t`."""
    return jnp.sum(w * x, axis=0)


def weighted_mean(x: Array, w: Array) -> Array:
    """`sum_t w_t x_t / sum_t w_t`, undivided where the weights add up to zero."""
    total = jnp.sum(w, axis=0)
    return weighted_sum(x, w) / jnp.where(jnp.abs(total) < 1e-8, 1, total)


def draws(key: Array, name: Name, shape: tuple[int, ...]) -> Array:
    """Uniform numbers `[T, ...]`: those of one tree depend on its place and the path.

    Not on the other trees and leaves.
    """
    path, part = name
    own = jax.random.fold_in(_tree.leaf_key(key, path), part)
    keys = jax.vmap(lambda t: jax.random.fold_in(own, t))(jnp.arange(shape[0]))
    return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys)


def _drawn(key: Array | None, name: Name, x: Array) -> tuple[Array, ...]:
    return () if key is None else (draws(key, name, tuple(x.shape)),)


Rebuild = Callable[[Merged, Array], Mapping[Path, Any]]


def _dense_pieces(
    who: str, trees: Sequence[PyTree], weights: Any
) -> tuple[Pieces, Rebuild]:
    """One tensor for each adapted leaf: the change itself."""
    found: Mapping[Path, Dense] = dense_deltas(who, trees)
    numbers = weights_by_path(who, weights, len(trees), found)
    pieces = {}
    for path, leaf in found.items():
        x = leaf.tensors()
        pieces[path, 0] = Piece(x, _column(numbers[path], x.dtype))

    def rebuild(merged: Merged, scale: Array) -> Mapping[Path, Any]:
        return {
            path: found[path].operator(x * scale.astype(x.dtype))
            for (path, _), x in merged.items()
        }

    return pieces, rebuild


def _factor_pieces(
    who: str, trees: Sequence[PyTree], weights: Any
) -> tuple[Pieces, Rebuild]:
    """Two tensors for each adapted leaf: `A` and `B`, each times `sqrt(w s)`."""
    found = {p: own for p, own in parts(who, trees).items() if any(own.terms)}
    check_axes(who, found)
    _check_ranks(who, found)
    numbers = weights_by_path(who, weights, len(trees), found)
    pieces, like = {}, {}
    for path, own in found.items():
        terms = [terms[0] if terms else None for terms in own.terms]
        first = like[path] = next(t for t in terms if isinstance(t, LowRank))
        depth = math.prod(own.base.shape[d] for d in first.stack)
        product = _column([_scale(t, depth) for t in terms], wide(first.b).dtype)
        product = product * _column(numbers[path], product.dtype)
        signed, root = roots(product)
        for part, (field, w) in enumerate({"a": signed, "b": root}.items()):
            arrays = [None if t is None else wide(getattr(t, field)) for t in terms]
            pieces[path, part] = Piece(_stacked(arrays, depth), w)

    def rebuild(merged: Merged, scale: Array) -> Mapping[Path, Any]:
        return {
            path: term.replace(
                w=found[path].base,
                a=merged[path, 0].reshape(term.a.shape),
                b=merged[path, 1].reshape(term.b.shape),
                scale=scale.astype(merged[path, 1].dtype),
            )
            for path, term in like.items()
        }

    return pieces, rebuild


def _column(numbers: Sequence[Any], dtype: Any) -> Array:
    """Numbers of the trees, each `()` or `[S]`, as `[T, 1 or S, 1, 1]`."""
    rows = [jnp.asarray(number, dtype).reshape(-1) for number in numbers]
    return jnp.stack(rows)[..., None, None]


def _scale(term: Any, depth: int) -> Array:
    """The scale of a low-rank term, or of none, for each stack index, `[S]`."""
    scale = jnp.ones(()) if term is None else term.scale.reshape(-1)
    return jnp.broadcast_to(wide(scale), (depth,))


def _stacked(arrays: Sequence[Array | None], depth: int) -> Array:
    """Factors of all trees as `[T, S, 1, N]`, zero where there is none."""
    first = next(x for x in arrays if x is not None)
    zero = jnp.zeros_like(first)
    x = jnp.stack([zero if x is None else x for x in arrays])
    return x.reshape(len(x), depth, 1, -1)


def _check_ranks(who: str, found: Mapping[Path, Parts]) -> None:
    """Refuse leaves whose factors cannot be merged apart.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, own in found.items():
        terms = [t for terms in own.terms for t in terms]
        odd = [type(t).__name__ for t in terms if type(t) is not LowRank]
        ranks = [t.rank for t in terms if isinstance(t, LowRank)]
        if odd or len(set(ranks)) > 1 or any(len(terms) > 1 for terms in own.terms):
            what = [*dict.fromkeys(odd), *(f"rank {r}" for r in ranks)]
            bad.append(f"'{path}' ({', '.join(what)})")
    if bad:
        raise ValueError(
            f"{who}: conformance='peft' merges A and B apart, so it needs one low-rank "
            f"term of one rank in each tree, unlike {'; '.join(bad)}. Merge changes "
            "with conformance='peft_svd' or 'paper'."
        )


def check_key(who: str, key: Any) -> None:
    """Refuse what is not one random key.

    Raises:
        TypeError: If it is none.
    """
    _check.check_key(who, key, f"{who}(trees, ..., key=jax.random.key(0))")


def check_choice(who: str, conformance: str, choices: Iterable[str]) -> None:
    """Refuse a conformance that there is no published code for.

    Raises:
        ValueError: If it is not among the choices.
    """
    if conformance not in choices:
        names = ", ".join(f"'{name}'" for name in choices)
        raise ValueError(
            f"{who}: conformance must be one of {names}, got {conformance!r}."
        )


def check_only(
    who: str, name: str, value: Any, conformance: str, where: Sequence[str]
) -> None:
    """Refuse an option that another conformance than those named lacks.

    Raises:
        ValueError: If it is given all the same.
    """
    if value is not None and conformance not in where:
        names = " or ".join(f"'{name}'" for name in where)
        raise ValueError(
            f"{who}: {name} is an option of conformance={names} alone, got "
            f"conformance={conformance!r}."
        )


def check_density(who: str, density: Any, number: int, name: str = "density") -> Any:
    """A share for all trees, `()`, or for each, `[T]`: of NumPy where it can be.

    Raises:
        ValueError: If it has another shape, or a concrete one is outside (0, 1].
    """
    if isinstance(density, list | tuple):
        traced = any(isinstance(d, jax.Array) for d in density)
        density = jnp.stack(list(map(jnp.asarray, density))) if traced else density
    if not isinstance(density, jax.Array):
        density = np.asarray(density, np.float64)
    values = np.asarray(density) if _compat.is_known(density) else np.ones(())
    fits = density.shape in ((), (number,)) and density.size
    if not fits or not np.all((values > 0) & (values <= 1)):
        raise ValueError(
            f"{who}: {name} must be a number in (0, 1], or one for each of {number} "
            f"trees, got {density}."
        )
    return density
