"""Leaf modules, rematerialisation and attention, which all transformers here share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lowrank.models._optional import Projection, Words


class Factory:
    """Makes the leaf modules of one model: normal weights, biases 0, scales 1."""

    def __init__(
        self,
        std: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.std = std
        self.normal = jax.nn.initializers.normal(std)
        self.kwargs: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }

    def drawing_from(self, rngs: nnx.Rngs) -> "Factory":
        """The same with other random streams."""
        dtype, param_dtype = self.kwargs["dtype"], self.kwargs["param_dtype"]
        return Factory(self.std, dtype, param_dtype, rngs)

    def dense(
        self, n: int, m: int, bias: bool = True, std: float | None = None
    ) -> nnx.Linear:
        init = self.normal if std is None else jax.nn.initializers.normal(std)
        return nnx.Linear(n, m, use_bias=bias, kernel_init=init, **self.kwargs)

    def projection(self, n: int, m: int, bias: bool = True) -> Projection:
        return Projection(n, m, use_bias=bias, kernel_init=self.normal, **self.kwargs)

    def words(self, n: int, width: int) -> Words:
        return Words(n, width, embedding_init=self.normal, **self.kwargs)

    def embedding(self, n: int, width: int) -> nnx.Embed:
        return nnx.Embed(n, width, embedding_init=self.normal, **self.kwargs)

    def layer_norm(self, width: int, eps: float) -> nnx.LayerNorm:
        # The fast form E[x^2] - E[x]^2 cancels, and epsilon may be as small as 1e-12.
        return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, **self.kwargs)

    def rms_norm(self, width: int, eps: float) -> nnx.RMSNorm:
        return nnx.RMSNorm(width, epsilon=eps, **self.kwargs)


class KeyValue(NamedTuple):
    """Keys and values of one layer, `[batch, slots, heads, head_dim]`."""

    key: jax.Array
    value: jax.Array

    def write(self, slots: jax.Array, key: jax.Array, value: jax.Array) -> "KeyValue":
        """Put new ones into the slots `[batch, length]`; those beyond are dropped."""
        rows = jnp.arange(slots.shape[0])[:, None]
        return KeyValue(
            self.key.at[rows, slots].set(key.astype(self.key.dtype), mode="drop"),
            self.value.at[rows, slots].set(value.astype(self.value.dtype), mode="drop"),
        )


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Attention on heads, with fewer heads of keys and values where there are fewer.

    `out = softmax(q k^T / sqrt(d)) v` with `q: [b, t, h, d]` and `k, v: [b, s, g, d]`,
    `h` a multiple of `g`: the heads `i h / g, ...` of `q` read head `i` of `k`. The
    softmax is taken in float32 or wider. `mask: [b, t or 1, s]` keeps what is not 0.
    Gives the heads side by side, `[b, t, h d]`.
    """
    batch, length, heads, size = query.shape
    groups, shared = key.shape[2], heads // key.shape[2]
    # Heads that share keys stand beside each other as queries do: products of four
    # axes, for XLA is slow at those of five on a CPU.
    query = query.reshape(batch, length, groups, shared, size).swapaxes(2, 3)
    query = query.reshape(batch, length * shared, groups, size)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqgd,bkgd->bgqk", query, key, preferred_element_type=wide)
    scores = scores / size**0.5
    if mask is not None:
        # Finite, so that a row of padding only gives numbers and no NaN.
        lowest = jnp.finfo(wide).min
        split = scores.reshape(batch, groups, length, shared, -1)
        kept = jnp.where((mask != 0)[:, None, :, None, :], split, lowest)
        scores = kept.reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bgqk,bkgd->bqgd", weights, value)
    out = out.reshape(batch, length, shared, groups, size).swapaxes(2, 3)
    return out.reshape(batch, length, heads * size)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`[batch, length, heads d]` to `[batch, length, heads, d]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def run(layer: Callable[..., Any], *args: Any, remat: bool) -> Any:
    """Run one layer, which the backward pass runs again if `remat`."""
    if not remat:
        return layer(*args)
    graphdef, params = nnx.split(layer)

    def again(params: Any, *args: Any) -> Any:
        return nnx.merge(graphdef, params)(*args)

    return jax.checkpoint(again)(params, *args)


def check_ids(
    who: str, ids: jax.Array, longest: int, taken: int = 0, **others: jax.Array | None
) -> None:
    """Refuse ids of the wrong kind or shape, and what else is not shaped like them.

    A prompt has taken so many of the positions.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"{who}: wrong token_ids: expected integers, got {ids.dtype}. Pass the ids "
            "that the tokenizer gives."
        )
    if ids.ndim != 2 or ids.shape[1] > longest - taken:
        prompt = "; a prompt takes positions too" if taken else ""
        raise ValueError(
            f"{who}: wrong token_ids: expected shape (batch, length) with length at "
            f"most {longest - taken}, got {ids.shape}. Batch one text as ids[None]; "
            f"cut longer ones{prompt}."
        )
    wrong = [
        f"'{name}': expected shape {ids.shape}, got {array.shape}"
        for name, array in others.items()
        if array is not None and array.shape != ids.shape
    ]
    if wrong:
        raise ValueError(
            f"{who}: wrong inputs at {'; '.join(wrong)}. Pass one entry per token."
        )
