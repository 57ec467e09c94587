"""An operator that watches how a weight's axes are used."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from lowrank._base import Array, Operator
from lowrank.linalg import regroup
from lowrank.operators import _dispatch as ask

Origins = tuple[frozenset[int], ...]


class Usage:
    """What the products did with the axes of one leaf: a role for each axis."""

    def __init__(self) -> None:
        self.roles: dict[int, list[str]] = {}

    def note(self, role: str, origins: Any) -> None:
        """Note a role of some axes of the leaf."""
        for axes in origins:
            for axis in axes:
                self.roles.setdefault(axis, []).append(role)


class Probe(Operator):
    """A weight that notes which of its axes are summed, kept, stacked or looked up.

    Args:
        w: The weight.
        origins: For each axis, the axes of the leaf that it came from.
        usage: Where roles are noted; compared by identity.
        path: The leaf's path, so that no two leaves share a staged function.
    """

    fields = ("w",)
    static = ("origins", "usage", "path")

    w: Array
    origins: Origins
    usage: Usage
    path: str

    @property
    def aval(self) -> Any:
        """Abstract value of the weight."""
        return ask.aval(self.w)

    def dense(self) -> Array:
        """The weight; all its axes are used in a way that no factor can follow."""
        self.usage.note("formed", self.origins)
        return self.w

    def contract(self, x: Array, spec: Any) -> Array:
        """Axes that the product sums are inputs, batch axes are stacks."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        for label, axes in zip(wl, self.origins, strict=True):
            role = "output" if label not in xl else "stack" if label in out else "input"
            self.usage.note(role, [axes])
        return spec(x, self.w)

    def conv(self, x: Array, spec: Any) -> Array:
        """The output feature is an output, all other axes are inputs."""
        out_dim = spec.dimension_numbers.rhs_spec[0]
        for d, axes in enumerate(self.origins):
            self.usage.note("output" if d == out_dim else "input", [axes])
        return spec(x, self.w)

    def gather(self, indices: Array, spec: Any) -> Array:
        """The axis that is looked up is an input (of a one-hot product)."""
        axis = spec.axis(self.shape)
        for d, axes in enumerate(self.origins):
            role = "formed" if axis is None else "input" if d == axis else "output"
            self.usage.note(role, [axes])
        return spec(self.w, indices)

    def transpose(self, permutation: Any) -> Operator:
        """Axes move."""
        origins = tuple(self.origins[d] for d in permutation)
        return self.replace(w=lax.transpose(self.w, permutation), origins=origins)

    def reshape(self, shape: Any) -> Any:
        """Axes split and merge."""
        groups = regroup(self.shape, shape)
        if groups is None:
            return NotImplemented
        origins: dict[int, frozenset[int]] = {}
        for old, new in groups:
            long = [d for d in old if self.shape[d] > 1]
            mine = frozenset().union(*(self.origins[d] for d in long))
            wide = [d for d in new if shape[d] > 1]
            origins |= {d: mine if d in wide else frozenset() for d in new}
        ordered = tuple(origins[d] for d in range(len(shape)))
        return self.replace(w=self.w.reshape(shape), origins=ordered)

    def slice(self, start: Any, limit: Any, strides: Any) -> Operator:
        """Axes stay; one that is cut to a single index is a stack."""
        w = lax.slice(self.w, start, limit, strides)
        return self._cut(w)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Operator:
        """Axes stay; one that is cut to a single index is a stack."""
        return self._cut(lax.dynamic_slice(self.w, starts, sizes))

    def _cut(self, w: Array) -> Operator:
        cut = [
            old > 1 and new == 1 for old, new in zip(self.shape, w.shape, strict=True)
        ]
        self.usage.note(
            "stack", [o for o, c in zip(self.origins, cut, strict=True) if c]
        )
        origins = [
            frozenset() if c else o for o, c in zip(self.origins, cut, strict=True)
        ]
        return self.replace(w=w, origins=tuple(origins))

    def reverse(self, dims: Any) -> Operator:
        """Axes stay."""
        return self.replace(w=lax.rev(self.w, dims))

    def cast(self, dtype: Any) -> Operator:
        """Axes stay."""
        return self.replace(w=self.w.astype(dtype))

    def scaled(self, factor: Any) -> Operator:
        """Axes stay."""
        return self.replace(w=self.w * jnp.asarray(factor, self.dtype))

    def add(self, other: Array) -> Operator:
        """Axes stay."""
        return self.replace(w=self.w + other)

    def unstack(self) -> Any:
        """Axis 0 is a stack."""
        self.usage.note("stack", self.origins[:1])
        return self.w, lambda part: self.replace(w=part, origins=self.origins[1:])

    def partition(self, spec: Any) -> Operator:
        """As the weight."""
        return self.replace(w=spec)

    def constrain(self, sharding: Any) -> Operator:
        """As the weight."""
        return self.replace(w=lax.with_sharding_constraint(self.w, sharding))
