"""A weight that lies in parts over a mesh and is gathered where it multiplies."""

from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank._base import Array, Operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta


class Gathered(Operator):
    """A weight that is brought to a sharding for each product, and forgotten after it.

    It stands for `w` itself. Its parts come together for the product, and once more for
    the backward pass: what stays in memory is what each device holds of `w`.

    Args:
        w: The base: an array that lies in parts, or an operator.
        sharding: Where the weight is to lie when it multiplies.

    Returns:
        An operator: a pytree node with the child `w`. It counts as frozen.

    Example:
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from lowrank.operators import Gathered
        >>> whole = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
        >>> op = Gathered(jnp.eye(2), whole)
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[1.0, 1.0]]

    References:
        Rajbhandari et al., ZeRO, 2020, arXiv:1910.02054: section 5.3.
    """

    fields = ("w",)
    static = ("sharding",)
    own_trained = False

    w: Any
    sharding: NamedSharding

    def __init__(self, w: Any, sharding: NamedSharding) -> None:
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "sharding", sharding)

    def mismatch(self) -> str | None:
        """Why the base does not fit, or None."""
        return self.w.mismatch() if isinstance(self.w, Operator) else None

    @property
    def aval(self) -> Any:
        """Abstract value of `w`."""
        return ask.aval(self.w)

    def dense(self) -> Array:
        """The weight, gathered."""
        return lax.with_sharding_constraint(ask.dense(self.w), self.sharding)

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with the weight, which is gathered for it."""
        return _forgetful(spec)(self, x)

    def conv(self, x: Array, spec: Any) -> Any:
        """The convolution with the weight, which is gathered for it."""
        return _forgetful(spec)(self, x)

    def gather(self, indices: Array, spec: Any) -> Any:
        """Rows of the gathered table: so they lie where the indices lie."""
        return spec(self.dense(), indices)

    # Structure: axes move with their sharding; what cuts or joins them gathers first.

    def _at(self, w: Any, spec: PartitionSpec) -> Any:
        if ask.declined(w):
            return w
        return self.replace(w=w, sharding=NamedSharding(self.sharding.mesh, spec))

    @property
    def _spec(self) -> tuple[Any, ...]:
        """The spec with an entry for each axis."""
        spec = self.sharding.spec
        return (*spec, *(None,) * (self.ndim - len(spec)))

    def transpose(self, permutation: tuple[int, ...]) -> Any:
        """Axes move."""
        spec = PartitionSpec(*(self._spec[d] for d in permutation))
        return self._at(ask.transpose(self.w, permutation), spec)

    def reshape(self, shape: tuple[int, ...]) -> Any:
        """Of a weight that is whole when it multiplies, the base's; else gathered."""
        if any(self._spec):
            return lax.reshape(self.dense(), shape)
        return self._at(ask.reshape(self.w, shape), PartitionSpec())

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """A slice of the gathered weight."""
        return lax.slice(self.dense(), start, limit, strides)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """A slice of the gathered weight."""
        return lax.dynamic_slice(self.dense(), starts, sizes)

    def reverse(self, dims: tuple[int, ...]) -> Any:
        """The gathered weight, backwards."""
        return lax.rev(self.dense(), dims)

    def cast(self, dtype: Any) -> Any:
        """Cast the base: what travels has the dtype of the product."""
        return self._at(ask.cast(self.w, dtype), self.sharding.spec)

    def scaled(self, factor: Any) -> Any:
        """Scale the base."""
        return self._at(ask.scaled(self.w, factor), self.sharding.spec)

    def add(self, other: Array) -> Any:
        """A term beside the weight."""
        return Delta._make(w=self, d=other)

    def unstack(self) -> Any:
        """Slices of the base along axis 0, each gathered for itself."""
        inner = ask.unstack(self.w)
        if ask.declined(inner):
            return inner
        spec = PartitionSpec(*self._spec[1:])
        return inner[0], lambda part: self._at(inner[1](part), spec)

    def partition(self, spec: PartitionSpec) -> Any:
        """As the base."""
        return self._at(ask.partition(self.w, spec), self.sharding.spec)

    def constrain(self, sharding: Any) -> Any:
        """As the base."""
        return self._at(ask.constrain(self.w, sharding), self.sharding.spec)


def _forgetful(spec: Any) -> Any:
    """`spec(x, W)`; the backward pass gathers the weight again."""
    return jax.checkpoint(lambda op, x: spec(x, op.dense()))
