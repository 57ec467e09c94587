"""What operators that act inside a product share: structure told by labels of axes."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta

Dims = tuple[int, ...]
RANK = "rank"


class Spots(NamedTuple):
    """Labels of the axes in a product that sums all inputs and keeps all outputs.

    Attributes:
        x: One for each axis of the activation.
        out: One for each axis of the result.
        stack: Those of the layers.
        inputs: Those that are summed.
        outputs: Those that the weight brings.
        own: For each array of the operator, those of its axes.
    """

    x: list[Any]
    out: list[Any]
    stack: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    own: dict[str, list[Any]]


class Inside(Operator):
    """A weight with arrays whose product is no linear function of the input.

    There is no dense form, and only a product that sums all inputs and keeps all
    outputs has an answer. A subclass names the arrays that it holds besides `w` and the
    axes of each; all that changes the layout of `w` follows from those.
    """

    static = ("a_dims", "b_dims")
    own_dense = False
    arrays: ClassVar[tuple[str, ...]] = ()

    w: Any
    a_dims: Dims
    b_dims: Dims

    def _set(self, **values: Any) -> None:
        """Fill the fields of a new operator, and refuse parts that do not fit."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"{type(self).__name__}: {reason}.")

    @property
    def stack(self) -> Dims:
        """Axes of `w` that are both in `a_dims` and in `b_dims`."""
        return tuple(d for d in self.a_dims if d in self.b_dims)

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """For each array, the axis of `w` that each of its axes is, or a name."""
        raise NotImplementedError(f"{type(self).__name__} must define labels.")

    @property
    def cuttable(self) -> Dims:
        """Axes of `w` that may be sliced."""
        return self.b_dims

    def mismatch(self) -> str | None:
        """Why the arrays do not fit `w`, or None."""
        sizes: dict[Any, int] = dict(enumerate(self.shape))
        stack, depth = self.stack, len(self.stack)
        fits = set(self.a_dims) | set(self.b_dims) == set(sizes)
        fits &= self.a_dims[:depth] == self.b_dims[:depth] == stack
        own = {name: tuple(getattr(self, name).shape) for name in self.arrays}
        for name, labels in self.labels.items():
            sizes = dict(zip(labels, own[name], strict=False)) | sizes
            fits = fits and own[name] == tuple(sizes.get(n) for n in labels)
        if fits:
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        found = ", ".join(f"{name} {size}" for name, size in own.items())
        return (
            f"factors ({found}) do not fit a weight of shape {tuple(self.shape)} with "
            f"a_dims={self.a_dims}, b_dims={self.b_dims}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the arrays vary."""
        own = [getattr(self, name) for name in self.arrays]
        return _compat.join_varying(ask.aval(self.w), own)

    def describe_axes(self) -> str:
        """Which axes of the weight are inputs and which are outputs."""
        return f"a{list(self.a_dims)} b{list(self.b_dims)}"

    def settle(self) -> Operator:
        """Stays an operator: it acts inside the product."""
        return self.replace(w=ask.settle(self.w))

    def spots(self, x: Array, spec: Any) -> Spots | None:
        """Labels of a product; None if it is not one of all inputs and outputs."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        stack = [wl[d] for d in self.stack]
        inputs = [wl[d] for d in self.a_dims if d not in self.stack]
        outputs = [wl[d] for d in self.b_dims if d not in self.stack]
        summed = all(n in xl and n not in out for n in inputs)
        if not summed or not set(outputs) <= set(out) - set(xl):
            return None
        named = dict(enumerate(wl))
        own = {k: [named.get(n, n) for n in ns] for k, ns in self.labels.items()}
        return Spots(xl, out, stack, inputs, outputs, own)

    # Structure: the same of `w`, and axes relabelled.

    def _along(self, w: Any, act: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
        if ask.declined(w):
            return w
        new = {name: act(getattr(self, name), ls) for name, ls in self.labels.items()}
        return self.replace(w=w, **new)

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        where = {old: new for new, old in enumerate(permutation)}
        w = ask.transpose(self.w, permutation)
        if ask.declined(w):
            return w
        a_dims = tuple(where[d] for d in self.a_dims)
        b_dims = tuple(where[d] for d in self.b_dims)
        return self.replace(w=w, a_dims=a_dims, b_dims=b_dims)

    def reshape(self, shape: Dims) -> Any:
        """Drop stack axes of 1: what is left of a stack that was sliced."""
        kept = [d for d, n in enumerate(self.shape) if n != 1 or d not in self.stack]
        if tuple(self.shape[d] for d in kept) != tuple(shape):
            return NotImplemented

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            gone = [i for i, n in enumerate(labels) if n in self.stack]
            return jnp.squeeze(x, [i for i in gone if labels[i] not in kept])

        w = ask.reshape(self.w, shape)
        op = self._along(w, act)
        if ask.declined(op):
            return op
        a_dims = tuple(kept.index(d) for d in self.a_dims if d in kept)
        b_dims = tuple(kept.index(d) for d in self.b_dims if d in kept)
        return op.replace(a_dims=a_dims, b_dims=b_dims)

    def _whole(self, sizes: Any) -> bool:
        """Whether a slice of these sizes takes whole what must not be cut."""
        own = [d for d in range(self.ndim) if d not in self.cuttable]
        return all(sizes[d] == self.shape[d] for d in own)

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Slice the axes that may be cut."""
        by = strides or (1,) * self.ndim
        if not self._whole([h - lo for lo, h in zip(start, limit, strict=True)]):
            return NotImplemented

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            own = [n in self.cuttable for n in labels]
            cuts = [
                (start[n], limit[n], by[n]) if y else (0, size, 1)
                for n, y, size in zip(labels, own, x.shape, strict=True)
            ]
            return lax.slice(x, *zip(*cuts, strict=True)) if cuts else x

        return self._along(ask.slice_(self.w, start, limit, strides), act)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same at traced positions."""
        if not self._whole(sizes):
            return NotImplemented

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            if not labels:
                return x
            zero = jnp.zeros((), jnp.asarray(starts[0]).dtype)
            at = [starts[n] if n in self.cuttable else zero for n in labels]
            pairs = zip(labels, x.shape, strict=True)
            return lax.dynamic_slice(
                x, at, [sizes[n] if n in self.cuttable else size for n, size in pairs]
            )

        return self._along(ask.dynamic_slice(self.w, starts, sizes), act)

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the arrays follow in the product."""
        return self._along(ask.cast(self.w, dtype), lambda x, _: x)

    def add(self, other: Array) -> Any:
        """A term beside."""
        return Delta._make(w=self, d=other)

    def unstack(self) -> Any:
        """Axis 0 of every array, which must be a stack axis."""
        inner = ask.unstack(self.w)
        if ask.declined(inner) or 0 not in self.stack:
            return NotImplemented
        named = {n: ls for n, ls in self.labels.items() if 0 in ls}
        stacked = {
            name: jnp.moveaxis(getattr(self, name), labels.index(0), 0)
            for name, labels in named.items()
        }
        a_dims = tuple(d - 1 for d in self.a_dims if d)
        b_dims = tuple(d - 1 for d in self.b_dims if d)

        def rebuild(part: Any) -> Operator:
            return self.replace(
                w=inner[1](part[0]), **part[1], a_dims=a_dims, b_dims=b_dims
            )

        return (inner[0], stacked), rebuild

    def partition(self, spec: PartitionSpec) -> Any:
        """Each array is split as the axes of `w` that it holds."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))

        def act(x: Array, labels: tuple[Any, ...]) -> PartitionSpec:
            del x
            own = (full[n] if isinstance(n, int) else None for n in labels)
            return PartitionSpec(*own)

        return self._along(ask.partition(self.w, spec), act)

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and each array as the axes that it holds."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        w, specs = ask.constrain(self.w, sharding), self.partition(sharding.spec)
        if ask.declined(w, specs):
            return NotImplemented

        def fix(name: str) -> Array:
            own = NamedSharding(sharding.mesh, getattr(specs, name))
            return lax.with_sharding_constraint(getattr(self, name), own)

        return self.replace(w=w, **{name: fix(name) for name in self.arrays})


def beside(labels: Sequence[Any], *gone: Sequence[Any]) -> list[Any]:
    """The labels that are in none of the others."""
    return [n for n in labels if not any(n in other for other in gone)]
