"""Sizes of a BERT encoder."""

from dataclasses import dataclass

from lowrank.models._config import check_sizes


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT encoder, named as in the `config.json` of checkpoints.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Width of the hidden states; a multiple of the heads.
        num_hidden_layers: Number of layers.
        num_attention_heads: Heads per layer.
        intermediate_size: Inner width of the feed-forward block.
        max_position_embeddings: Longest input, in tokens.
        type_vocab_size: Number of token types.
        layer_norm_eps: Added to the variance, at least 0.
        initializer_range: Standard deviation of the initial weights, at least 0.

    Raises:
        ValueError: If a size is below 1, a real number is negative, or the heads do not
            divide the width; all are listed.

    Example:
        >>> from lowrank.models import BertConfig
        >>> BertConfig(hidden_size=384, num_hidden_layers=6).vocab_size
        30522

    References:
        Devlin et al., BERT, 2019, arXiv:1810.04805: section 3 (the defaults are
        BERT-base).
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(self, [("hidden_size", "num_attention_heads")])

    @property
    def longest(self) -> int:
        """Longest input, in tokens."""
        return self.max_position_embeddings
