"""Operators that hold a weight as matrices of rows and columns."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank._axes import Axes
from lowrank._base import Array, Operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta
from lowrank.operators._rows import Dims, reshaped_axes


class Held(Operator):
    """A weight whose arrays are `[*stack, ...]`, one member for each of a stack.

    Axes are relabelled, and members of the stack can be taken; rows and columns cannot
    be cut. Subclasses have the static fields `sizes` (the weight's shape), `axes`
    (which of its axes are stacks, rows and columns) and `kind` (its dtype).
    """

    # Arrays by name, with the number of axes behind those of the stack.
    held: ClassVar[dict[str, int]] = {}

    sizes: Dims
    axes: Axes
    kind: Any

    @property
    def shape(self) -> Dims:
        """Shape of the weight."""
        return self.sizes

    def mislabelled(self) -> str | None:
        """Why `axes` are not those of the weight, or None."""
        if sorted(sum(self.axes, ())) == list(range(len(self.sizes))):
            return None
        return f"axes {tuple(self.axes)} are not those of a weight of {self.sizes}"

    def describe_axes(self) -> str:
        """Which axes of the weight are rows and columns."""
        return f"rows{list(self.axes.inputs)} cols{list(self.axes.outputs)}"

    def _acted(self, act: Callable[[Array], Array], **changes: Any) -> Any:
        """The operator with every array changed."""
        own = {name: getattr(self, name) for name in self.held}
        new = {name: None if x is None else act(x) for name, x in own.items()}
        return self.replace(**new, **changes)

    def _folded(self, *numbers: Any) -> Any:
        """The operator of one member: its own keys, where it has any."""
        del numbers
        return self

    def stacked(self, name: str, stack: Dims) -> Array:
        """One array, with stack axes of the same total size."""
        x = getattr(self, name)
        return x.reshape(*stack, *x.shape[x.ndim - self.held[name] :])

    # Structure.

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        where = {old: new for new, old in enumerate(permutation)}
        axes = Axes(*(tuple(where[d] for d in dims) for dims in self.axes))
        return self.replace(sizes=tuple(self.sizes[d] for d in permutation), axes=axes)

    def reshape(self, shape: Dims) -> Any:
        """Split or merge axes of one kind that are flattened in their own order."""
        axes = reshaped_axes(self.sizes, self.axes, tuple(shape))
        if axes is None:
            return NotImplemented
        stack = axes.sizes(tuple(shape)).stack
        present = [name for name in self.held if getattr(self, name) is not None]
        new = {name: self.stacked(name, stack) for name in present}
        return self.replace(**new, sizes=tuple(shape), axes=axes)

    def _cut(self, where: Any, sizes: Any, act: Callable[[Array], Array]) -> Any:
        """Members of the stack, at a place."""
        stack = self.axes.stack
        if any(n != self.sizes[d] for d, n in enumerate(sizes) if d not in stack):
            return NotImplemented
        op = self._folded(*(where[d] for d in stack))
        return op._acted(act, sizes=tuple(sizes))

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Members of a stack; rows and columns cannot be cut."""
        by = strides or (1,) * self.ndim
        stack = self.axes.stack
        cuts = tuple(slice(start[d], limit[d], by[d]) for d in stack)
        sizes = [len(range(*cut)) for cut in zip(start, limit, by, strict=True)]
        return self._cut(start, sizes, lambda a: a[cuts])

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """Members of a stack, at traced positions."""
        stack = self.axes.stack

        def act(a: Array) -> Array:
            for axis, d in enumerate(stack):
                a = lax.dynamic_slice_in_dim(a, starts[d], sizes[d], axis)
            return a

        return self._cut(starts, sizes, act)

    def unstack(self) -> Any:
        """Members along axis 0."""
        if 0 not in self.axes.stack:
            return NotImplemented
        at = self.axes.stack.index(0)
        axes = Axes(*(tuple(d - 1 for d in dims if d) for dims in self.axes))
        own = {name: getattr(self, name) for name in self.held}
        parts = {n: jnp.moveaxis(x, at, 0) for n, x in own.items() if x is not None}

        def rebuild(part: Any) -> Operator:
            arrays, index = part
            op = self._folded(index)
            return op.replace(**arrays, sizes=self.sizes[1:], axes=axes)

        return (parts, jnp.arange(self.sizes[0])), rebuild

    # Around the weight.

    def cast(self, dtype: Any) -> Any:
        """Another dtype of the weight, and so of the result."""
        return self.replace(kind=jnp.dtype(dtype))

    def add(self, other: Array) -> Any:
        """A term beside the weight."""
        return Delta._make(w=self, d=other)

    def partition(self, spec: PartitionSpec) -> Any:
        """Whole on every device; declined where the weight is to be split."""
        if any(axis is not None for axis in spec):
            return NotImplemented
        return jax.tree.map(lambda _: PartitionSpec(), self)

    def constrain(self, sharding: Any) -> Any:
        """As `partition`."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        if ask.declined(specs := self.partition(sharding.spec)):
            return NotImplemented

        def placed(a: Array, spec: PartitionSpec) -> Array:
            own = NamedSharding(sharding.mesh, spec)
            return lax.with_sharding_constraint(a, own)

        return jax.tree.map(placed, self, specs)
