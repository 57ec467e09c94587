"""The Llama decoder, with the parameter names of the public checkpoints."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lowrank.models._decoder import Decoder, Place, make_blocks, project
from lowrank.models._layers import Factory, KeyValue, attend, split_heads
from lowrank.models._llama_config import LlamaConfig
from lowrank.models._optional import Words, all_seen, behind, beside
from lowrank.models._rope import angles, frequencies, rotate


class SelfAttention(nnx.Module):
    """Rotary attention in which several heads of queries share one of keys."""

    def __init__(self, config: LlamaConfig, make: Factory):
        width, size = config.hidden_size, config.head_size
        self.heads = config.num_attention_heads
        self.groups = config.key_value_heads
        bias = config.attention_bias
        self.q_proj = make.dense(width, self.heads * size, bias)
        self.k_proj = make.projection(width, self.groups * size, bias)
        self.v_proj = make.projection(width, self.groups * size, bias)
        self.o_proj = make.dense(self.heads * size, width, config.attention_output_bias)

    def __call__(
        self, hidden: jax.Array, place: Place, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        q = split_heads(self.q_proj(hidden), self.heads)
        k = split_heads(self.k_proj(hidden), self.groups)
        v = split_heads(self.v_proj(hidden), self.groups)
        if place.rope is not None:
            q, k = rotate(q, place.rope), rotate(k, place.rope)
        if cache is not None:
            cache = cache.write(place.positions, k, v)
            k, v = cache
        keys, values = beside(self.k_proj, "prefix"), beside(self.v_proj, "prefix")
        k, v = behind(keys, values, k, v)
        mask = all_seen(place.mask, k.shape[1])
        return self.o_proj(attend(q, k, v, mask)), cache


class GatedMLP(nnx.Module):
    """SwiGLU: `(silu(x W_gate) * (x W_up)) W_down`."""

    def __init__(self, config: LlamaConfig, make: Factory):
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = make.dense(width, inner, False)
        self.up_proj = make.dense(width, inner, False)
        self.down_proj = make.dense(inner, width, False)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        gate = jax.nn.silu(self.gate_proj(hidden))
        return self.down_proj(gate * self.up_proj(hidden))


class Block(nnx.Module):
    """One layer: norm and attention, norm and feed-forward, each with a residual."""

    def __init__(self, config: LlamaConfig, make: Factory):
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = make.rms_norm(width, eps)
        self.self_attn = SelfAttention(config, make)
        self.post_attention_layernorm = make.rms_norm(width, eps)
        self.mlp = GatedMLP(config, make)

    def __call__(
        self, hidden: jax.Array, place: Place, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        normed = self.input_layernorm(hidden)
        attended, cache = self.self_attn(normed, place, cache)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), cache


class Trunk(nnx.Module):
    """Embeddings, layers and the last norm, under the checkpoints' names."""

    def __init__(self, config: LlamaConfig, make: Factory, scan: bool):
        self.embed_tokens = make.words(config.vocab_size, config.hidden_size)
        self.layers = make_blocks(
            partial(Block, config), make, config.num_hidden_layers, scan
        )
        self.norm = make.rms_norm(config.hidden_size, config.rms_norm_eps)


class Llama(Decoder):
    """Llama decoder: RMS norms, rotary grouped attention, SwiGLU; logits.

    With `h: [batch, length, width]` and `RMS(x) = g x / sqrt(mean(x^2) + eps)`, one
    layer is `u = h + attention(RMS(h)) W_o`, `h' = u + (silu(n W_gate) * (n W_up))
    W_down` with `n = RMS(u)`. Queries and keys are turned by their position's angles
    (channel `i` against `i + d / 2`), and `num_key_value_heads` heads of keys and
    values serve all heads of queries. Logits are `RMS(h) W` with `W` the `lm_head`, or
    the transposed word embeddings where they are tied. Every projection is a kernel
    `[in, out]`. Paths are those of the public checkpoints with `/` for `.` and
    `kernel`, `scale`, `embedding` for `weight`: `model/embed_tokens/embedding`,
    `model/layers/0/self_attn/q_proj/kernel`, ... SmolLM2 is such a model, and Qwen2
    with `attention_bias` alone.

    A parameter tree may hold further leaves. `model/embed_tokens/prompt: [p, width]`
    stands in front of the words at the first `p` positions; its own logits are left
    out. `prefix` beside `k_proj/kernel` and `v_proj/kernel` is keys, which are not
    rotated, and values of further positions that all tokens of that layer see; the
    tokens keep their positions.

    Args:
        config: Sizes.
        dtype: Compute dtype of the products; softmax, rotation and norm statistics
            are taken in float32 or wider, and logits are summed in it.
        param_dtype: Dtype of the parameters.
        remat: Keep only each layer's input for the backward pass and run the layer
            again there: less memory, about a third more work, the same values.
        scan: Hold the layers as one, with leaves `[layers, ...]` (see
            `stack_layers`), and run them as a loop: the program is compiled for one
            layer, whatever their number. The same values.
        rngs: Random streams for the initial weights, normal with standard deviation
            `config.initializer_range`; biases are 0, scales 1.

    Raises:
        TypeError: At the call, if the token ids are not integers.
        ValueError: At the call, if the ids are not `[batch, length]`, longer than
            `max_position_embeddings`, or unlike the mask or the segments in shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import Llama, LlamaConfig
        >>> config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12,
        ...     num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
        >>> def logits(ids):
        ...     return Llama(config, rngs=nnx.Rngs(0))(ids)
        >>> jax.eval_shape(logits, jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)

    Notes:
        There is no dropout: fine-tune with adapter dropout or none. Token ids
        outside the vocabulary give NaN.

    References:
        Touvron et al., LLaMA, 2023, arXiv:2302.13971: section 2.2.
        Su et al., RoFormer, 2021, arXiv:2104.09864; Ainslie et al., GQA, 2023,
        arXiv:2305.13245; Zhang and Sennrich, Root Mean Square Layer Normalization,
        2019, arXiv:1910.07467; Shazeer, GLU Variants, 2020, arXiv:2002.05202.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        make = Factory(config.initializer_range, dtype, param_dtype, rngs)
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        self.model = Trunk(config, make, scan)
        if not config.tie_word_embeddings:
            self.lm_head = make.dense(config.hidden_size, config.vocab_size, False)

    @property
    def blocks(self) -> nnx.Module:
        """The layers: a list, or one module whose leaves are stacked."""
        return self.model.layers

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Layers, heads of keys and values, channels per head."""
        config = self.config
        return config.num_hidden_layers, config.key_value_heads, config.head_size

    @property
    def words(self) -> Words:
        """The word embeddings."""
        return self.model.embed_tokens

    def embed(self, words: jax.Array, positions: jax.Array) -> jax.Array:
        """Word embeddings; the positions enter by rotation."""
        del positions
        return words

    def place(self, positions: jax.Array, mask: jax.Array) -> Place:
        """Positions, mask, and the angles that go with the positions."""
        config = self.config
        freqs = frequencies(config.head_size, config.rope_theta, config.rope_scaling)
        return Place(positions, mask, angles(positions, freqs))

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits of hidden states after the last layer."""
        hidden = self.model.norm(hidden)
        if self.config.tie_word_embeddings:
            words = self.model.embed_tokens.embedding.get_value()
            return project(hidden, words.T, self.dtype)
        return project(hidden, self.lm_head.kernel.get_value(), self.dtype)
