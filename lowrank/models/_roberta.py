"""The RoBERTa encoder: BERT whose positions count tokens that are no padding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._bert import Bert
from lowrank.models._bert_config import BertConfig
from lowrank.models._bert_layers import Embeddings, Encoder, Factory, Pooler
from lowrank.models._config import check_sizes


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """Sizes of a RoBERTa encoder, named as in the `config.json` of checkpoints.

    Those of `BertConfig`, with other defaults, and:

    Args:
        vocab_size: Number of tokens.
        max_position_embeddings: Rows of the position embeddings. The first
            `pad_token_id + 1` stand for no token, so the longest input is that much
            shorter.
        type_vocab_size: Number of token types; the checkpoints have one, and no use
            for it.
        layer_norm_eps: Added to the variance, at least 0.
        pad_token_id: Id of padding, at least 0.
        pooler: Whether there is a pooler; language models have none.

    Raises:
        ValueError: If a size is below 1, a real number is negative, the heads do not
            divide the width, or no position is left for a token; all sizes are listed.

    Example:
        >>> from lowrank.models import RobertaConfig
        >>> RobertaConfig().longest
        512

    References:
        Liu et al., RoBERTa, 2019, arXiv:1907.11692 (the defaults are RoBERTa-base).
    """

    vocab_size: int = 50265
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    pooler: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        heads = [("hidden_size", "num_attention_heads")]
        check_sizes(self, heads, optional=("pad_token_id",))
        if self.longest < 1:
            raise ValueError(
                f"RobertaConfig: wrong sizes at 'max_position_embeddings': expected at "
                f"least {self.pad_token_id + 2}, got {self.max_position_embeddings}. "
                "Correct the config."
            )

    @property
    def longest(self) -> int:
        """Longest input, in tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1


class RobertaEmbeddings(Embeddings):
    """Sum of word, position and type embeddings, normalised."""

    def __init__(self, make: Factory, pad: int):
        super().__init__(make)
        self.pad = pad

    def positions(self, ids: jax.Array, rows: int) -> jax.Array:
        """Rows of the position embeddings, those of a prompt of `rows` first."""
        prompt = ((0, 0), (rows, 0))
        token = jnp.pad(ids != self.pad, prompt, constant_values=True)
        return self.pad + token * jnp.cumsum(token.astype(jnp.int32), axis=1)


class Roberta(Bert):
    """RoBERTa encoder: the layers of `Bert`, with its own count of positions.

    The `j`-th token of a row that is not `pad_token_id`, from 1, has the position
    `pad_token_id + j`; padding has `pad_token_id`, and the rows of a prompt count as
    tokens. All else is `Bert`: the call, the equations, the pooler and the paths
    (`encoder/layer/0/attention/self/query/kernel`).

    Args:
        config: Sizes.
        dtype: Compute dtype of the products; softmax and layer norm statistics are
            taken in float32 or wider.
        param_dtype: Dtype of the parameters.
        remat: See `Bert`.
        rngs: Random streams for the initial weights; see `Bert`.

    Raises:
        TypeError: At the call, if the token ids are not integers.
        ValueError: At the call, if the ids are not `[batch, length]`, longer than
            `config.longest`, or unlike the mask or token types in shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import Roberta, RobertaConfig
        >>> config = RobertaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=8)
        >>> def hidden(ids, mask):
        ...     return Roberta(config, rngs=nnx.Rngs(0))(ids, mask)
        >>> ids, mask = jnp.array([[0, 5, 2, 1]]), jnp.array([[1, 1, 1, 0]])
        >>> jax.eval_shape(hidden, ids, mask).shape
        (1, 4, 8)

    Notes:
        Positions follow the ids, not the mask: pad with `pad_token_id`.

    References:
        Liu et al., RoBERTa, 2019, arXiv:1907.11692; the positions are those of its
        published code.
    """

    def __init__(
        self,
        config: RobertaConfig,
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
        self.embeddings = RobertaEmbeddings(make, config.pad_token_id)
        self.encoder = Encoder(make)
        if config.pooler:
            self.pooler = Pooler(make)

    def pooled(self, hidden: ArrayLike) -> jax.Array:
        """Apply the checkpoint's pooler, `tanh(h_0 W + b)`: `[batch, width]`.

        Raises:
            ValueError: If the config has none.
        """
        if not hasattr(self, "pooler"):
            raise ValueError(
                "Roberta: no pooler: expected pooler=True in the config, got False. "
                "Use mean_pool, or load a checkpoint that has one."
            )
        return super().pooled(hidden)
