"""A merge of small trees that stand for large ones in orthonormal coordinates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank import _tree
from lowrank._base import Array, Operator, Path, PyTree
from lowrank.linalg import factored_svd
from lowrank.merging._factors import Matrices, Plain, assemble, factored
from lowrank.operators import Delta, LowRank

Merge = Callable[..., PyTree]
Pair = tuple[Array, Array]


class Frame(NamedTuple):
    """Coordinates of one leaf: a core `c` stands for `left c right`.

    Attributes:
        left: Orthonormal columns, `[*stack, n, p]`; None for all `n` rows as they are.
        right: Orthonormal rows, `[*stack, q, m]`.
    """

    left: Array | None
    right: Array

    def inward(self, a: Array, b: Array) -> Pair:
        """Factors of the core of `a b`."""
        if self.left is not None:
            a = jnp.matrix_transpose(self.left) @ a
        return a, b @ jnp.matrix_transpose(self.right)

    def outward(self, a: Array, b: Array) -> Pair:
        """Factors of what the core `a b` stands for."""
        return a if self.left is None else self.left @ a, b @ self.right


def columns(x: Array) -> Array:
    """Left singular vectors of `[*stack, n, r]`: `[*stack, n, min(n, r)]`."""
    return factored_svd(x, _eye(x, x.shape[-1]))[0]


def rows(x: Array) -> Array:
    """Right singular vectors of `[*stack, r, m]`: `[*stack, min(r, m), m]`."""
    return factored_svd(_eye(x, x.shape[-2]), x)[2]


def _eye(x: Array, size: int) -> Array:
    eye = jnp.eye(size, dtype=x.dtype)
    return jnp.broadcast_to(eye, (*x.shape[:-2], size, size))


def check_merge(who: str, merge: Any) -> None:
    """Refuse what is no merge.

    Raises:
        TypeError: If it cannot be called.
    """
    if not callable(merge):
        raise TypeError(
            f"{who}: expected the inner merge as a function of (trees, weights), got "
            f"{merge!r}."
        )


def merge_cores(
    who: str,
    trees: Sequence[PyTree],
    found: Mapping[Path, Matrices | Plain],
    frames: Mapping[Path, Frame],
    merge: Callable[[list[PyTree]], PyTree],
    finish: Callable[[Array, Array], Pair] | None = None,
) -> PyTree:
    """Merge the cores as trees over zero bases, and map the result back.

    Args:
        who: Name of the merge, for messages.
        trees: The adapted trees.
        found: Their leaves, from `factored`.
        frames: Coordinates of every matrix among them.
        merge: From the trees of cores, by path, to one adapted tree over their bases.
            Leaves that are no matrices take part as they are.
        finish: What to do to the factors of a merged core.

    Raises:
        ValueError: If `merge` returns anything else; all such leaves are named.
    """
    bases = {path: _zeros(own, frames.get(path)) for path, own in found.items()}
    cores = [
        {
            path: _core(bases[path], own, frames.get(path), t)
            for path, own in found.items()
        }
        for t in range(len(trees))
    ]
    done = _checked(who, merge(cores), bases)
    merged: dict[Path, Operator] = {}
    for path, own in found.items():
        if isinstance(own, Plain):
            merged[path] = Delta(own.base, _array(done[path]))
            continue
        a, b = _pair(done[path])
        if finish is not None:
            a, b = finish(a, b)
        merged[path] = own.operator(*frames[path].outward(a, b))
    return assemble(who, trees[0], merged)


def _shape(own: Matrices | Plain, frame: Frame | None) -> tuple[int, ...]:
    """Shape of a core."""
    if isinstance(own, Plain) or frame is None:
        return tuple(own.base.shape)
    left = own.a[0] if frame.left is None else jnp.matrix_transpose(frame.left)
    return (*left.shape[:-1], frame.right.shape[-2])


def _zeros(own: Matrices | Plain, frame: Frame | None) -> Array:
    """The base of the cores of one leaf."""
    arrays = own.a if isinstance(own, Matrices) else own.d
    dtypes = {x.dtype for x in arrays if x is not None}
    return jnp.zeros(_shape(own, frame), jnp.result_type(*dtypes))


def _core(base: Array, own: Matrices | Plain, frame: Frame | None, task: int) -> Any:
    """One leaf of one tree of cores; its base, if the tree leaves it alone."""
    if isinstance(own, Plain) or frame is None:
        d = own.d[task] if isinstance(own, Plain) else None
        return base if d is None else Delta(base, d)
    if not own.a[task].shape[-1]:
        return base
    return LowRank(base, *frame.inward(own.a[task], own.b[task]))


def _array(own: Matrices | Plain) -> Array:
    """What one tree adds to a leaf, formed."""
    if isinstance(own, Matrices):
        return own.layout.unmatrix(own.a[0] @ own.b[0])
    found = [d for d in own.d if d is not None]
    return sum(found[1:], found[0])


def _pair(own: Matrices | Plain) -> Pair:
    """What one tree adds to a core, as two factors."""
    if isinstance(own, Matrices):
        return own.a[0], own.b[0]
    d = _array(own)
    tall = d.shape[-2] >= d.shape[-1]
    return (d, _eye(d, d.shape[-1])) if tall else (_eye(d, d.shape[-2]), d)


def _checked(
    who: str, merged: PyTree, bases: Mapping[Path, Array]
) -> dict[Path, Matrices | Plain]:
    """The leaves of the merged tree of cores."""
    leaves = _tree.leaves(who, merged)
    found = factored(who, [merged])
    bad = [f"'{p}': not in the result" for p in bases if p not in leaves]
    bad += [f"'{p}': not in the trees it was given" for p in leaves if p not in bases]
    bad += [
        f"'{path}': expected an adapter over shape {base.shape}, got "
        f"{type(leaves[path]).__name__} of shape {tuple(leaves[path].shape)}"
        for path, base in bases.items()
        if path in leaves
        and (path not in found or tuple(leaves[path].shape) != base.shape)
    ]
    if bad:
        raise ValueError(
            f"{who}: the inner merge must return one adapted tree over the bases of "
            f"the trees it is given: {'; '.join(bad)}. Pass a merge of this library, "
            "or a function (trees, weights) -> tree of that kind."
        )
    return found
