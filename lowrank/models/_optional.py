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

Rows = nnx.Param | jax.Array


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


def beside(module: Any, name: str) -> Rows | None:
    """What a tree put beside a layer; another layer in its place has nothing there."""
    return getattr(module, name, None)


def count(rows: Rows | None) -> int:
    """How many rows there are."""
    return 0 if rows is None else rows.shape[0]


def in_front(rows: Rows | None, y: jax.Array) -> jax.Array:
    """`[batch, p + length, ...]`: rows `[p, width]` before those of every example."""
    if rows is None:
        return y
    own = rows if isinstance(rows, jax.Array) else rows.get_value()
    own = jnp.asarray(own, y.dtype).reshape(1, rows.shape[0], *y.shape[2:])
    own = jnp.broadcast_to(own, (y.shape[0], *own.shape[1:]))
    return jnp.concatenate([own, y], axis=1)


def behind(
    keys: Rows | None, values: Rows | None, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[batch, length, heads, d]` behind those of the prefixes."""
    if count(keys) != count(values):
        raise ValueError(
            f"attention: the prefix of the keys has {count(keys)} rows, that of the "
            f"values {count(values)}: expected as many. Give both one length."
        )
    return in_front(keys, k), in_front(values, v)


def all_seen(mask: jax.Array | None, length: int) -> jax.Array | None:
    """A mask `[..., length]`: ones in front of the one that the model was given."""
    if mask is None or mask.shape[-1] == length:
        return mask
    extra = (*((0, 0),) * (mask.ndim - 1), (length - mask.shape[-1], 0))
    return jnp.pad(mask != 0, extra, constant_values=True)


class Projection(nnx.Linear):
    """A dense layer whose reader puts a `prefix: [p, out]` before its outputs."""

    optional_params: ClassVar[tuple[str, ...]] = ("prefix",)
    prefix = None


class Words(nnx.Embed):
    """A table of embeddings whose reader puts a `prompt: [p, width]` before them."""

    optional_params: ClassVar[tuple[str, ...]] = ("prompt",)
    prompt = None
