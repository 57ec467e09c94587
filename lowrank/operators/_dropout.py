"""Low rank with dropout on the adapter path."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.operators._lowrank import LowRank


def _folded(op: Any, *numbers: Any) -> Any:
    """The operator with some numbers folded into its key."""
    key = op.key
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return op.replace(key=key)


class DropoutLowRank(LowRank):
    """A `LowRank` whose factors see a randomly thinned input.

    It multiplies as `x w + (drop(x) a)(scale b)`, with `drop(x)` zero with probability
    `rate` and `x / (1 - rate)` otherwise. It has no dense form: evaluate with the same
    state under a dropout of zero.

    Args:
        w: The base: an array or an operator.
        a: Factor over the inputs.
        b: Factor over the outputs.
        scale: Scalar, or one number for each stack index.
        key: One random key. Each product, layer and time step folds its own number in.
        rate: Probability of a zero, in [0, 1); may be traced.
        a_dims: Axes of `w` that `a` holds.
        b_dims: Axes of `w` that `b` holds.

    Returns:
        An operator.

    Raises:
        ValueError: If the factors do not fit `w`.

    Example:
        >>> op = lrk.operators.DropoutLowRank(
        ...     jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.ones((1, 3)),
        ...     key=jax.random.key(0), rate=0.5,
        ... )
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).shape
        (1, 3)

    References:
        Srivastava et al., Dropout, 2014, JMLR 15: section 4 (inverted form, as PEFT and
        loralib apply it to the input of `A`).
    """

    fields = (*LowRank.fields, "key", "rate")
    static = LowRank.static
    own_dense = False
    own_stochastic = True

    key: Array
    rate: Array

    def __init__(
        self,
        w: Any,
        a: Array,
        b: Array,
        scale: Any = 1.0,
        *,
        key: Any,
        rate: Any,
        **dims: Any,
    ) -> None:
        super().__init__(w, a, b, scale, **dims)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "rate", jnp.asarray(rate, jnp.float32))

    def at(self, site: int, step: Any = 0) -> Operator:
        """A key of its own for each equation and iteration."""
        return _folded(super().at(site, step), site, step)

    def settle(self) -> Operator:
        """Stays an operator: it acts inside the product."""
        return self

    def seen(self, x: Array, labels: Any) -> tuple[Array, Any]:
        """The activation with a share `rate` of it set to zero.

        Where every member of a stack sees one activation, each has its own zeros.
        """
        if labels is not None:
            xl, wl, out = labels
            free = [wl[d] for d in self.stack if wl[d] not in xl]
            sizes = [self.shape[d] for d in self.stack if wl[d] not in xl]
            x = jnp.broadcast_to(x, (*sizes, *x.shape)) if free else x
            labels = ([*free, *xl], wl, out)
        key = self.key
        for axis in sorted(_compat.varying(_compat.abstract(x)), key=str):
            key = jax.random.fold_in(key, lax.axis_index(axis))
        kept = jax.random.bernoulli(key, 1.0 - self.rate, x.shape)
        thinned = x / (1.0 - self.rate).astype(x.dtype)
        return jnp.where(kept, thinned, jnp.zeros((), x.dtype)), labels

    def partition(self, spec: Any) -> Any:
        """As the factors; every device has the key, and folds its place in."""
        op = super().partition(spec)
        whole = PartitionSpec()
        return op if op is NotImplemented else op.replace(key=whole, rate=whole)

    def gather(self, indices: Array, spec: Any) -> Any:
        """Declined: a look-up has no input to thin."""
        return NotImplemented

    # A stack of layers: each slice has a key of its own.

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Sliced, with the positions folded into the key."""
        op = super().slice(start, limit, strides)
        return (
            op if op is NotImplemented else _folded(op, *(start[d] for d in self.stack))
        )

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """Sliced, with the positions folded into the key."""
        op = super().dynamic_slice(starts, sizes)
        return (
            op
            if op is NotImplemented
            else _folded(op, *(starts[d] for d in self.stack))
        )

    def unstack(self) -> Any:
        """Unstacked, with the position folded into the key."""
        inner = super().unstack()
        if inner is NotImplemented:
            return inner
        stacked, rebuild = inner

        def indexed(part: Any) -> Operator:
            return _folded(rebuild(part[0]), part[1])

        return (stacked, jnp.arange(self.shape[0])), indexed
