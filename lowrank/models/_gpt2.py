"""The GPT-2 decoder, with the parameter names of the public checkpoints."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lowrank.models._config import check_sizes
from lowrank.models._decoder import Decoder, Place, make_blocks, project
from lowrank.models._layers import Factory, KeyValue, attend, split_heads
from lowrank.models._optional import Words, all_seen, behind, beside


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Sizes of a GPT-2 decoder, named as in the `config.json` of checkpoints.

    Args:
        vocab_size: Number of tokens.
        n_positions: Longest input, in tokens.
        n_embd: Width of the hidden states; a multiple of the heads.
        n_layer: Number of layers.
        n_head: Heads per layer.
        n_inner: Inner width of the feed-forward block; None: `4 n_embd`.
        layer_norm_epsilon: Added to the variance, at least 0.
        initializer_range: Standard deviation of the initial weights, at least 0.

    Raises:
        ValueError: If a size is below 1, a real number is negative, or the heads do not
            divide the width; all are listed.

    Example:
        >>> from lowrank.models import GPT2Config
        >>> GPT2Config(n_embd=1024, n_layer=24, n_head=16).longest
        1024

    References:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019:
        section 2.3 (the defaults are its smallest model's).
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(self, [("n_embd", "n_head")])

    @property
    def longest(self) -> int:
        """Longest input, in tokens."""
        return self.n_positions


class FusedAttention(nnx.Module):
    """Attention whose queries, keys and values are one product."""

    def __init__(self, config: GPT2Config, make: Factory, std: float):
        self.heads = config.n_head
        self.c_attn = make.projection(config.n_embd, 3 * config.n_embd)
        self.c_proj = make.dense(config.n_embd, config.n_embd, std=std)

    def __call__(
        self, hidden: jax.Array, place: Place, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        parts = jnp.split(self.c_attn(hidden), 3, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in parts)
        if cache is not None:
            cache = cache.write(place.positions, k, v)
            k, v = cache
        k, v = behind(*self.prefixes(hidden.shape[-1]), k, v)
        mask = all_seen(place.mask, k.shape[1])
        return self.c_proj(attend(q, k, v, mask)), cache

    def prefixes(self, width: int) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
        """Keys and values `[p, width]` of a prefix, which has them side by side."""
        rows = beside(self.c_attn, "prefix")
        if rows is None:
            return None, None
        rows = rows if isinstance(rows, jax.Array) else rows.get_value()
        if rows.shape[-1] != 2 * width:
            raise ValueError(
                f"GPT2: wrong prefix beside c_attn/kernel: expected {2 * width} "
                f"columns, keys and then values, got {rows.shape[-1]}. Pass "
                f"columns={2 * width} to lrk.prefix."
            )
        return rows[:, :width], rows[:, width:]


class MLP(nnx.Module):
    """Feed-forward block with the tanh form of gelu."""

    def __init__(self, config: GPT2Config, make: Factory, std: float):
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = make.dense(config.n_embd, inner)
        self.c_proj = make.dense(inner, config.n_embd, std=std)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.c_proj(jax.nn.gelu(self.c_fc(hidden), approximate=True))


class Block(nnx.Module):
    """One layer: norm and attention, norm and feed-forward, each with a residual."""

    def __init__(self, config: GPT2Config, make: Factory):
        width, eps = config.n_embd, config.layer_norm_epsilon
        # So that the sum of all residuals keeps its scale (section 2.3).
        std = config.initializer_range / (2 * config.n_layer) ** 0.5
        self.ln_1 = make.layer_norm(width, eps)
        self.attn = FusedAttention(config, make, std)
        self.ln_2 = make.layer_norm(width, eps)
        self.mlp = MLP(config, make, std)

    def __call__(
        self, hidden: jax.Array, place: Place, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        attended, cache = self.attn(self.ln_1(hidden), place, cache)
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), cache


class GPT2(Decoder):
    """GPT-2 decoder: learned positions, layer norms before the blocks; logits.

    With `h: [batch, length, width]` and LN a layer norm, one layer is
    `u = h + attention(LN(h)) W_o`, `h' = u + gelu(LN(u) W_1) W_2` with biases
    everywhere and the tanh form of gelu; queries, keys and values come from one kernel
    `c_attn: [width, 3 width]`. Logits are `LN(h) E^T` with `E` the word embeddings.
    Paths are those of the public checkpoints with `/` for `.` and `kernel`, `scale`,
    `embedding` for `weight`, without a leading `transformer`: `wte/embedding`,
    `h/0/attn/c_attn/kernel`, ...

    A parameter tree may hold further leaves. `wte/prompt: [p, width]` stands in front
    of the words at the first `p` positions; its own logits are left out. `prefix:
    [p, 2 width]` beside `c_attn/kernel` is keys and then values of further positions
    that all tokens of that layer see; the tokens keep their positions.

    Args:
        config: Sizes.
        dtype: Compute dtype of the products; softmax and layer norm statistics are
            taken in float32 or wider, and logits are summed in it.
        param_dtype: Dtype of the parameters.
        remat: Keep only each layer's input for the backward pass and run the layer
            again there: less memory, about a third more work, the same values.
        scan: Hold the layers as one, with leaves `[layers, ...]` (see
            `stack_layers`), and run them as a loop. The same values.
        rngs: Random streams for the initial weights, normal with standard deviation
            `config.initializer_range`, divided by `sqrt(2 n_layer)` for the products
            that end a residual; biases are 0, scales 1.

    Raises:
        TypeError: At the call, if the token ids are not integers.
        ValueError: At the call, if the ids are not `[batch, length]`, longer than
            `n_positions`, or unlike the mask in shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import GPT2, GPT2Config
        >>> config = GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=1,
        ...     n_head=2)
        >>> def logits(ids):
        ...     return GPT2(config, rngs=nnx.Rngs(0))(ids)
        >>> jax.eval_shape(logits, jnp.array([[1, 2, 3]])).shape
        (1, 3, 11)

    Notes:
        There is no dropout. Token ids outside the vocabulary give NaN.

    References:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019:
        section 2.3.
    """

    def __init__(
        self,
        config: GPT2Config,
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
        self.wte = make.words(config.vocab_size, config.n_embd)
        self.wpe = make.embedding(config.n_positions, config.n_embd)
        self.h = make_blocks(partial(Block, config), make, config.n_layer, scan)
        self.ln_f = make.layer_norm(config.n_embd, config.layer_norm_epsilon)

    @property
    def blocks(self) -> nnx.Module:
        """The layers: a list, or one module whose leaves are stacked."""
        return self.h

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Layers, heads of keys and values, channels per head."""
        config = self.config
        return config.n_layer, config.n_head, config.n_embd // config.n_head

    @property
    def words(self) -> Words:
        """The word embeddings."""
        return self.wte

    def embed(self, words: jax.Array, positions: jax.Array) -> jax.Array:
        """Word and position embeddings."""
        return words + self.wpe(positions)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits of hidden states after the last layer."""
        words = self.wte.embedding.get_value()
        return project(self.ln_f(hidden), words.T, self.dtype)
