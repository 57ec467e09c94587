"""A weight with columns of trained length: DoRA's magnitude and direction."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lowrank._base import Array, is_operator
from lowrank.operators._norms import norms
from lowrank.operators._rescaled import Dims, Rescaled


class Magnitude(Rescaled):
    """A weight that stands for `m * w / norm`, each output with a length of its own.

    With `w: [*stack, *in, *out]` and `m, norm: [*stack, *out]` it multiplies as
    `(x w) * (m / norm)`; `norm` is that of each column of `w`, over the input axes. It
    is taken once, when the operator is made, from the factors where `w` is an array
    plus low-rank terms. Columns of zeros stay zeros.

    Args:
        w: The base: an array or an operator that has a dense form.
        m: The length of each column.
        dims: Axes of `w` that `m` holds, in its order; by default the last ones.
        detach: Whether the norm is a constant for differentiation, so that gradients
            are DoRA's and not the exact ones. They are the same in every plan.

    Attributes:
        norm: The norms of the columns of `w`, in float32.

    Returns:
        An operator: a pytree node with children `w, m, norm`.

    Raises:
        ValueError: If `m` does not fit `w`, or the norm of `w` cannot be told.

    Example:
        >>> op = lrk.operators.Magnitude(jnp.array([[3.0], [4.0]]), jnp.array([10.0]))
        >>> lrk.materialize(op).tolist()
        [[6.0], [8.0]]

    References:
        Liu et al., DoRA, 2024, arXiv:2402.09353: eq. 5, and section 4.3 for `detach`
        (transposed: our kernels are `[in, out]`).
    """

    fields = ("w", "m", "norm")
    static = ("dims", "detach")

    norm: Array
    detach: bool

    def __init__(
        self,
        w: Any,
        m: ArrayLike,
        *,
        dims: Dims | None = None,
        detach: bool = True,
    ) -> None:
        if not knows_norm(w):
            raise ValueError(
                f"Magnitude: {type(w).__name__} has no dense form, so its norm cannot "
                "be told. Put the magnitude below what acts inside the product."
            )
        for name, value in {"norm": jnp.asarray(m), "detach": detach}.items():
            object.__setattr__(self, name, value)
        super().__init__(w, m, dims=dims)
        object.__setattr__(self, "norm", column_norms(w, self.dims, detach))

    @property
    def exact_grad(self) -> bool:
        """Whether gradients are exact: not while the norm counts as a constant."""
        return not self.detach and super().exact_grad

    @property
    def ratio(self) -> Array:
        """What each column is multiplied by."""
        positive = self.norm > 0
        safe = jnp.where(positive, self.norm, jnp.ones_like(self.norm))
        ratio = self.m.astype(safe.dtype) / safe
        return jnp.where(positive, ratio, jnp.zeros_like(ratio))


def knows_norm(w: Any) -> bool:
    """Whether the norm of a weight can be told: its terms are known, and its base."""
    while is_operator(w) and w.additive:
        w = w.w
    return not is_operator(w) or w.has_dense


def column_norms(w: Any, dims: Dims, detach: bool) -> Array:
    """Norms for a `Magnitude`, a constant for differentiation if detached."""
    return norms(jax.tree.map(lax.stop_gradient, w) if detach else w, dims)
