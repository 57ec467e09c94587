"""Sizes of a Llama decoder."""

from dataclasses import dataclass

from lowrank.models._config import check_sizes
from lowrank.models._rope import RopeScaling


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama decoder, named as in the `config.json` of checkpoints.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Width of the hidden states.
        intermediate_size: Inner width of the feed-forward block.
        num_hidden_layers: Number of layers.
        num_attention_heads: Heads of queries.
        num_key_value_heads: Heads of keys and values, a divisor of the heads of
            queries; None: as many.
        head_dim: Channels per head, even; None: `hidden_size / num_attention_heads`.
        max_position_embeddings: Longest input, in tokens.
        rms_norm_eps: Added to the mean square, at least 0.
        rope_theta: Base of the rotary wavelengths.
        rope_scaling: How these are stretched, if at all.
        tie_word_embeddings: Whether the word embeddings give the logits too.
        attention_bias: Whether queries, keys and values have biases.
        attention_output_bias: Whether the projection after attention has one; only
            together with the others. Llama has both or none, Qwen2 the first.
        initializer_range: Standard deviation of the initial weights, at least 0.

    Raises:
        ValueError: If a size is below 1, a real number is negative, heads do not
            divide, channels are odd, or biases contradict; all sizes are listed.

    Example:
        >>> from lowrank.models import LlamaConfig
        >>> config = LlamaConfig(hidden_size=576, num_attention_heads=9)
        >>> config.key_value_heads, config.head_size
        (9, 64)

    References:
        Touvron et al., LLaMA, 2023, arXiv:2302.13971: section 2.2 (the defaults are
        its smallest model's); Ainslie et al., GQA, 2023, arXiv:2305.13245.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        multiples = [("num_attention_heads", "key_value_heads")]
        if self.head_dim is None:
            multiples.append(("hidden_size", "num_attention_heads"))
        check_sizes(self, multiples)
        if not self.rope_theta > 0:
            raise ValueError(
                f"LlamaConfig: wrong sizes at 'rope_theta': expected more than 0, got "
                f"{self.rope_theta}. Correct the config."
            )
        if self.head_size % 2:
            raise ValueError(
                f"LlamaConfig: wrong sizes at 'head_dim': expected an even number, got "
                f"{self.head_size}. Rotary embeddings turn pairs of channels."
            )
        if self.attention_output_bias and not self.attention_bias:
            raise ValueError(
                "LlamaConfig: wrong biases: expected attention_bias where there is "
                "attention_output_bias, got the latter alone. Set both or neither."
            )

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Channels per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def longest(self) -> int:
        """Longest input, in tokens."""
        return self.max_position_embeddings
