"""The parts of the BERT encoder, with the attribute names of the checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lowrank.models import _layers
from lowrank.models._layers import attend, split_heads
from lowrank.models._optional import all_seen, behind, beside, in_front


class Factory(_layers.Factory):
    """Makes the leaf modules of one model from its config, dtypes and streams."""

    def __init__(
        self,
        config: Any,  # BertConfig, or the like of another encoder
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(config.initializer_range, dtype, param_dtype, rngs)
        self.config = config

    def embed(self, n: int) -> nnx.Embed:
        return self.embedding(n, self.config.hidden_size)

    def norm(self) -> nnx.LayerNorm:
        return self.layer_norm(self.config.hidden_size, self.config.layer_norm_eps)


class Embeddings(nnx.Module):
    """Sum of word, position and type embeddings, normalised.

    A prompt stands in front of the words and takes the first positions and type 0.
    """

    def __init__(self, make: Factory):
        self.word_embeddings = make.words(
            make.config.vocab_size, make.config.hidden_size
        )
        self.position_embeddings = make.embed(make.config.max_position_embeddings)
        self.token_type_embeddings = make.embed(make.config.type_vocab_size)
        self.LayerNorm = make.norm()

    def __call__(self, ids: jax.Array, types: jax.Array) -> jax.Array:
        prompt = beside(self.word_embeddings, "prompt")
        words = in_front(prompt, self.word_embeddings(ids))
        length = words.shape[1]
        if length > ids.shape[1]:
            types = jnp.pad(types, ((0, 0), (length - ids.shape[1], 0)))
        positions = self.position_embeddings(self.positions(ids, length - ids.shape[1]))
        words = words + self.token_type_embeddings(types)
        return self.LayerNorm(words + positions)

    def positions(self, ids: jax.Array, rows: int) -> jax.Array:
        """Rows of the position embeddings, those of a prompt of `rows` first."""
        return jnp.arange(rows + ids.shape[1])[None]


class SelfAttention(nnx.Module):
    """Multi-head attention before its output projection.

    Prefixes of the keys and values are further positions that every token sees.
    """

    def __init__(self, make: Factory):
        width = make.config.hidden_size
        self.heads = make.config.num_attention_heads
        self.query = make.dense(width, width)
        self.key = make.projection(width, width)
        self.value = make.projection(width, width)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        q, k, v = (
            split_heads(dense(hidden), self.heads)
            for dense in (self.query, self.key, self.value)
        )
        keys, values = beside(self.key, "prefix"), beside(self.value, "prefix")
        k, v = behind(keys, values, k, v)
        mask = all_seen(mask, k.shape[1])
        return attend(q, k, v, None if mask is None else mask[:, None, :])


class Output(nnx.Module):
    """Projection, residual, layer norm."""

    def __init__(self, make: Factory, width: int):
        self.dense = make.dense(width, make.config.hidden_size)
        self.LayerNorm = make.norm()

    def __call__(self, inner: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dense(inner) + residual)


class Attention(nnx.Module):
    """Self-attention and its output, under the checkpoints' names."""

    def __init__(self, make: Factory):
        self.self = SelfAttention(make)
        self.output = Output(make, make.config.hidden_size)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        return self.output(self.self(hidden, mask), hidden)


class Intermediate(nnx.Module):
    """First half of the feed-forward block."""

    def __init__(self, make: Factory):
        config = make.config
        self.dense = make.dense(config.hidden_size, config.intermediate_size)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return jax.nn.gelu(self.dense(hidden), approximate=False)


class Layer(nnx.Module):
    """One encoder layer."""

    def __init__(self, make: Factory):
        self.attention = Attention(make)
        self.intermediate = Intermediate(make)
        self.output = Output(make, make.config.intermediate_size)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        attended = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended)


class Encoder(nnx.Module):
    """The list of layers."""

    def __init__(self, make: Factory):
        self.layer = nnx.List(Layer(make) for _ in range(make.config.num_hidden_layers))


class Pooler(nnx.Module):
    """A dense layer with tanh on the first token."""

    def __init__(self, make: Factory):
        self.dense = make.dense(make.config.hidden_size, make.config.hidden_size)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return jnp.tanh(self.dense(hidden[:, 0]))
