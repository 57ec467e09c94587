"""Low rank with several heads behind one factor, weighted for each input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta

Dims = tuple[int, ...]
RANK, HEAD = "rank", "head"
_OWN = ("a", "b", "router", "scale")


class Routed(Operator):
    """A weight with low-rank heads that a router mixes anew for each input.

    With `a: [*stack, *in, r]`, `b: [*stack, heads, r, *out]` and `router: [*stack, *in,
    heads]` it multiplies as `x w + scale * sum_i softmax(x router)_i (x a) b_i`. That
    is no linear function of `x`, so there is no dense form, and only a product that
    sums all inputs has an answer. The softmax is taken in float32.

    Args:
        w: The base: an array or an operator.
        a: Factor over the inputs, shared by the heads; its last axis is the rank.
        b: One factor over the outputs for each head.
        router: Weights of the router; its last axis is that of the heads.
        scale: A scalar.
        a_dims: Axes of `w` that `a` and `router` hold, stack axes first.
        b_dims: Axes of `w` that `b` holds, stack axes first.

    Returns:
        An operator: a pytree node with children `w, a, b, router, scale`.

    Raises:
        ValueError: If the factors do not fit `w`.

    Example:
        >>> op = lrk.operators.Routed(
        ...     jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.ones((4, 1, 3)),
        ...     jnp.zeros((2, 4)),
        ... )
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[2.0, 2.0, 2.0]]

    References:
        Tian et al., HydraLoRA, 2024, arXiv:2404.19245: eqs. 2 to 4 (transposed: our
        kernels are `[in, out]`).
    """

    fields = ("w", *_OWN)
    static = ("a_dims", "b_dims")
    own_dense = False

    w: Any
    a: Array
    b: Array
    router: Array
    scale: Array
    a_dims: Dims
    b_dims: Dims

    def __init__(
        self,
        w: Any,
        a: ArrayLike,
        b: ArrayLike,
        router: ArrayLike,
        scale: Any = 1.0,
        *,
        a_dims: Dims = (0,),
        b_dims: Dims = (1,),
    ) -> None:
        arrays = (jnp.asarray(x) for x in (a, b, router, scale))
        values = dict(zip(_OWN, arrays, strict=True))
        dims = {"a_dims": tuple(a_dims), "b_dims": tuple(b_dims)}
        for name, value in ({"w": w} | values | dims).items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Routed: {reason}.")

    @property
    def stack(self) -> Dims:
        """Axes of `w` that all factors hold."""
        return tuple(d for d in self.a_dims if d in self.b_dims)

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """For each array, the axis of `w` that each of its axes is."""
        depth = len(self.stack)
        return {
            "a": (*self.a_dims, RANK),
            "b": (*self.b_dims[:depth], HEAD, RANK, *self.b_dims[depth:]),
            "router": (*self.a_dims, HEAD),
            "scale": (),
        }

    def mismatch(self) -> str | None:
        """Why the factors do not fit `w`, or None."""
        shape, stack = dict(enumerate(self.shape)), self.stack
        sizes: dict[Any, int] = {RANK: self.a.shape[-1], HEAD: self.router.shape[-1]}
        sizes |= shape
        known = set(self.a_dims) | set(self.b_dims) == set(shape)
        own = {name: getattr(self, name).shape for name in _OWN}
        wanted = {n: tuple(sizes[d] for d in ds) for n, ds in self.labels.items()}
        ordered = self.a_dims[: len(stack)] == self.b_dims[: len(stack)] == stack
        if known and ordered and own == wanted:
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        found = ", ".join(f"{name} {tuple(size)}" for name, size in own.items())
        return (
            f"factors ({found}) do not fit a weight of shape {tuple(self.shape)} with "
            f"a_dims={self.a_dims}, b_dims={self.b_dims}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the factors vary."""
        own = [getattr(self, name) for name in _OWN]
        return _compat.join_varying(ask.aval(self.w), own)

    def describe_axes(self) -> str:
        """Which axes of the weight each factor holds."""
        return f"a{list(self.a_dims)} b{list(self.b_dims)}"

    def settle(self) -> Operator:
        """Stays an operator: it acts inside the product."""
        return self.replace(w=ask.settle(self.w))

    # The product.

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, and the heads as the router weighs them."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        inputs = [wl[d] for d in self.a_dims if d not in self.stack]
        outputs = [wl[d] for d in self.b_dims if d not in self.stack]
        summed = all(n in xl and n not in out for n in inputs)
        y = ask.contract(self.w, x, spec)
        if ask.declined(y) or not summed or not set(outputs) <= set(out) - set(xl):
            return NotImplemented
        return y + self.term(x, spec).astype(y.dtype)

    def term(self, x: Array, spec: Any) -> Array:
        """What the heads add to a product."""
        dtype = ask.common_dtype(x, self)
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        named = dict(enumerate(wl)) | {RANK: RANK, HEAD: HEAD}
        labels = {k: [named[n] for n in ns] for k, ns in self.labels.items()}
        inputs = {wl[d] for d in self.a_dims if d not in self.stack}
        stack = [wl[d] for d in self.stack]
        kept = [n for n in xl if n not in inputs and n not in stack] + stack
        wide = self.router.astype(ask.common_dtype(self.router, np.float32(0)))
        logits = labelled_product(
            x.astype(wide.dtype), xl, wide, labels["router"], [*kept, HEAD]
        )
        gates = jax.nn.softmax(logits, axis=-1).astype(dtype)
        low = labelled_product(
            x.astype(dtype),
            xl,
            self.a.astype(dtype),
            labels["a"],
            [*kept, RANK],
            **spec.options,
        ).astype(dtype)
        # One product over heads and rank together: no head's output is formed.
        low = gates[..., :, None] * low[..., None, :]
        b = (self.b * self.scale.astype(self.b.dtype)).astype(dtype)
        return labelled_product(
            low, [*kept, HEAD, RANK], b, labels["b"], out, **spec.options
        )

    # Structure: the same of `w`, and axes relabelled; inputs cannot be cut.

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

    def _whole_inputs(self, sizes: Any) -> bool:
        """Whether a slice of these sizes takes every input."""
        own = [d for d in self.a_dims if d not in self.stack]
        return all(sizes[d] == self.shape[d] for d in own)

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Slice the heads' outputs, or the stack."""
        by = strides or (1,) * self.ndim
        if not self._whole_inputs([h - lo for lo, h in zip(start, limit, strict=True)]):
            return NotImplemented

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            own = [n in self.b_dims for n in labels]
            cuts = [
                (start[n], limit[n], by[n]) if y else (0, size, 1)
                for n, y, size in zip(labels, own, x.shape, strict=True)
            ]
            return lax.slice(x, *zip(*cuts, strict=True)) if cuts else x

        return self._along(ask.slice_(self.w, start, limit, strides), act)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same at traced positions."""
        if not self._whole_inputs(sizes):
            return NotImplemented

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            if not labels:
                return x
            zero = jnp.zeros((), jnp.asarray(starts[0]).dtype)
            at = [starts[n] if n in self.b_dims else zero for n in labels]
            pairs = zip(labels, x.shape, strict=True)
            return lax.dynamic_slice(
                x, at, [sizes[n] if n in self.b_dims else size for n, size in pairs]
            )

        return self._along(ask.dynamic_slice(self.w, starts, sizes), act)

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the factors follow in the product."""
        return self._along(ask.cast(self.w, dtype), lambda x, _: x)

    def add(self, other: Array) -> Any:
        """A term beside the heads."""
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
        """Each factor is split as the axes of `w` that it holds."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))

        def act(x: Array, labels: tuple[Any, ...]) -> PartitionSpec:
            del x
            own = (full[n] if isinstance(n, int) else None for n in labels)
            return PartitionSpec(*own)

        return self._along(ask.partition(self.w, spec), act)

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and each factor as the axes that it holds."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        w, specs = ask.constrain(self.w, sharding), self.partition(sharding.spec)
        if ask.declined(w, specs):
            return NotImplemented

        def fix(name: str) -> Array:
            own = NamedSharding(sharding.mesh, getattr(specs, name))
            return lax.with_sharding_constraint(getattr(self, name), own)

        return self.replace(w=w, **{name: fix(name) for name in _OWN})
