"""Parameters that a tree may hold besides a model's own: soft prompts and prefixes.

A module lists their names in a class attribute `optional_params` and has a class
attribute None of each name. `functional` finds them; its `apply` takes a tree with or
without them, and fills in those that are there. So a model without them is what it
would be if there were none: its tree, its checkpoint and its program are the same.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx


def optional_places(model: nnx.Module) -> dict[str, tuple[Any, ...]]:
    """Where a tree may hold further parameters: path to the parts of the path."""
    return {
        "/".join(map(str, (*parts, name))): (*parts, name)
        for parts, module in nnx.iter_modules(model)
        for name in getattr(type(module), "optional_params", ())
    }


def fill(model: nnx.Module, parts: tuple[Any, ...], leaf: Any) -> None:
    """Put a leaf where a module looks for it; the model is a fresh copy."""
    node: Any = model
    for part in parts[:-1]:
        node = getattr(node, part) if isinstance(part, str) else node[part]
    setattr(node, parts[-1], nnx.Param(leaf))


def count(rows: nnx.Param | None) -> int:
    """How many rows there are."""
    return 0 if rows is None else rows.shape[0]


def in_front(rows: nnx.Param | None, y: jax.Array) -> jax.Array:
    """`[batch, p + length, ...]`: rows `[p, ...]` before those of every example."""
    if rows is None:
        return y
    own = jnp.asarray(rows.get_value(), y.dtype)[None]
    own = jnp.broadcast_to(own, (y.shape[0], *own.shape[1:]))
    return jnp.concatenate([own, y], axis=1)


def all_seen(mask: jax.Array | None, length: int) -> jax.Array | None:
    """A mask `[batch, length]`: ones in front of the one that the model was given."""
    if mask is None or mask.shape[1] == length:
        return mask
    extra = ((0, 0), (length - mask.shape[1], 0))
    return jnp.pad(mask != 0, extra, constant_values=True)


class Projection(nnx.Linear):
    """A dense layer; a `prefix: [p, out]` stands in front of its outputs."""

    optional_params: ClassVar[tuple[str, ...]] = ("prefix",)
    prefix = None

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return in_front(self.prefix, super().__call__(inputs))


class Words(nnx.Embed):
    """A table of embeddings; a `prompt: [p, width]` stands in front of its rows."""

    optional_params: ClassVar[tuple[str, ...]] = ("prompt",)
    prompt = None

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return in_front(self.prompt, super().__call__(inputs))
