"""The BERT encoder, with the parameter names of the public checkpoints."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._bert_config import BertConfig
from lowrank.models._bert_layers import Embeddings, Encoder, Factory, Pooler
from lowrank.models._layers import check_ids, run
from lowrank.models._optional import all_seen, beside, count


class Bert(nnx.Module):
    """BERT encoder: embeddings, post-LN attention and feed-forward blocks.

    With `h: [batch, length, width]` and LN a layer norm, one layer is
    `u = LN(h + softmax(q k^T / sqrt(d)) v W_o)`, `h' = LN(u + gelu(u W_1) W_2)`, with
    biases everywhere and the exact (erf) gelu. Every projection is a kernel
    `[in, out]`, so attention's heads are a reshape of the product. Paths are those of
    the public checkpoints with `/` for `.` and `kernel`, `scale`, `embedding` for
    `weight`: `encoder/layer/0/attention/self/query/kernel`,
    `embeddings/word_embeddings/embedding`, ...

    A parameter tree may hold further leaves. `prompt: [p, width]` beside
    `embeddings/word_embeddings/embedding` stands in front of the words, at positions 0
    to `p - 1`, with type 0; the words follow at `p`, all see it, and its own states are
    left out of the result. `prefix: [p, width]` beside `key/kernel`, and as many rows
    beside `value/kernel`, are keys and values of further positions that all tokens of
    that layer see; the tokens keep their positions.

    Args:
        config: Sizes.
        dtype: Compute dtype of the products; softmax and layer norm statistics are
            taken in float32 or wider.
        param_dtype: Dtype of the parameters.
        remat: Keep only each layer's input for the backward pass and run the layer
            again there: less memory, about a third more work, the same values.
        rngs: Random streams for the initial weights, normal with standard deviation
            `config.initializer_range`; biases are 0, scales 1.

    Raises:
        TypeError: At the call, if the token ids are not integers.
        ValueError: At the call, if the ids are not `[batch, length]`, longer than
            `max_position_embeddings` together with a prompt, or unlike the mask or
            token types in shape; or if keys and values have prefixes of two lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import Bert, BertConfig, mean_pool
        >>> config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=6)
        >>> model = Bert(config, rngs=nnx.Rngs(0))
        >>> ids, mask = jnp.array([[1, 2, 3, 0]]), jnp.array([[1, 1, 1, 0]])
        >>> hidden = model(ids, mask)
        >>> hidden.shape, mean_pool(hidden, mask).shape, model.pooled(hidden).shape
        ((1, 4, 8), (1, 8), (1, 8))

    Notes:
        There is no dropout: fine-tune with adapter dropout or none. Token ids
        outside the vocabulary give NaN.

    References:
        Devlin et al., BERT, 2019, arXiv:1810.04805: section 3.
        Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762: eq. 1.
        Hendrycks and Gimpel, Gaussian Error Linear Units, 2016, arXiv:1606.08415.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        make = Factory(config, dtype, param_dtype, rngs)
        self.config = config
        self.remat = remat
        self.embeddings = Embeddings(make)
        self.encoder = Encoder(make)
        self.pooler = Pooler(make)

    def __call__(
        self,
        token_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
    ) -> jax.Array:
        """Map ids `[batch, length]` to hidden states `[batch, length, width]`.

        Tokens where `attention_mask` is 0 (or False) are seen by no other token; their
        own states mean nothing. No mask: all are seen. No types: all are 0.
        """
        ids = jnp.asarray(token_ids)
        mask = None if attention_mask is None else jnp.asarray(attention_mask)
        types = None if token_type_ids is None else jnp.asarray(token_type_ids)
        rows = count(beside(self.embeddings.word_embeddings, "prompt"))
        inputs = {"attention_mask": mask, "token_type_ids": types}
        check_ids(type(self).__name__, ids, self.config.longest, rows, **inputs)
        types = jnp.zeros_like(ids) if types is None else types
        hidden = self.embeddings(ids, types)
        mask = all_seen(mask, hidden.shape[1])
        for layer in self.encoder.layer:
            hidden = run(layer, hidden, mask, remat=self.remat)
        return hidden[:, rows:] if rows else hidden

    def pooled(self, hidden: ArrayLike) -> jax.Array:
        """Apply the checkpoint's pooler, `tanh(h_0 W + b)`: `[batch, width]`."""
        return self.pooler(jnp.asarray(hidden))


def mean_pool(hidden: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Average the hidden states of the tokens that the mask keeps.

    `out[i] = sum_t mask[i, t] hidden[i, t] / sum_t mask[i, t]`, summed in float32 or
    wider.

    Args:
        hidden: Hidden states `[..., length, width]`.
        mask: 1 (or True) at tokens and 0 at padding, `[..., length]`.

    Returns:
        `[..., width]` in the dtype of `hidden`; zeros where the mask keeps no token.

    Raises:
        ValueError: If the shapes disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowrank.models import mean_pool
        >>> mean_pool(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[1, 1, 0]])).item()
        2.0

    References:
        Reimers and Gurevych, Sentence-BERT, 2019, arXiv:1908.10084: section 3.
    """
    hidden, mask = jnp.asarray(hidden), jnp.asarray(mask)
    if hidden.shape[:-1] != mask.shape:
        raise ValueError(
            f"mean_pool: wrong mask: expected shape {hidden.shape[:-1]}, got "
            f"{mask.shape}. Pass the mask that the model was given."
        )
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    keep = (mask != 0).astype(wide)[..., None]
    # Selected, not multiplied: a NaN at a padded token stays out of the mean.
    total = jnp.sum(jnp.where(keep != 0, hidden.astype(wide), 0), axis=-2)
    count = jnp.maximum(jnp.sum(keep, axis=-2), 1)
    return (total / count).astype(hidden.dtype)
