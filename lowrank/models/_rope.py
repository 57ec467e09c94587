"""Rotary position embedding, and the stretching of its wavelengths."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lowrank.models._config import check_sizes


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Stretches the long wavelengths of rotary embeddings, for longer inputs.

    A frequency `f` becomes `f ((1 - s) / factor + s)`, where `s` is 0 for wavelengths
    of which fewer than `low_freq_factor` fit into the original length, 1 where more
    than `high_freq_factor` fit, and linear in that number between. With the defaults
    all are divided by `factor`.

    Args:
        factor: How much longer the inputs may get, at least 1.
        low_freq_factor: Waves per original length up to which a frequency is divided.
        high_freq_factor: Waves per original length from which it is kept.
        original_max_position_embeddings: That length, in tokens.

    Raises:
        ValueError: If a number is below 1 or the second factor below the first.

    Example:
        >>> from lowrank.models import RopeScaling
        >>> RopeScaling(factor=4.0).low_freq_factor
        inf

    References:
        Chen et al., Extending Context Window via Positional Interpolation, 2023,
        arXiv:2306.15595 (the defaults); Grattafiori et al., The Llama 3 Herd of
        Models, 2024, arXiv:2407.21783 (the wavelengths, as published in its code).
    """

    factor: float
    low_freq_factor: float = math.inf
    high_freq_factor: float = math.inf
    original_max_position_embeddings: int = 1

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        check_sizes(self)
        if self.factor < 1 or self.high_freq_factor < self.low_freq_factor:
            raise ValueError(
                f"RopeScaling: wrong factors: expected factor >= 1 and low <= high, "
                f"got {self.factor}, {self.low_freq_factor}, {self.high_freq_factor}. "
                "Correct the config."
            )

    def scaled(self, frequency: float) -> float:
        """The stretched frequency, in radians per token."""
        low, high = self.low_freq_factor, self.high_freq_factor
        waves = self.original_max_position_embeddings * frequency / (2 * math.pi)
        if waves <= low:
            return frequency / self.factor
        share = 1.0 if waves >= high else (waves - low) / (high - low)
        return frequency * ((1 - share) / self.factor + share)


def frequencies(size: int, theta: float, scaling: RopeScaling | None) -> list[float]:
    """Frequencies `theta^(-2 i / d)` of a head of `d` channels, `d / 2` of them."""
    plain = [theta ** (-2 * i / size) for i in range(size // 2)]
    return plain if scaling is None else [scaling.scaled(f) for f in plain]


def angles(positions: jax.Array, freqs: list[float]) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of `position * frequency`, `[batch, length, 1, d / 2]`."""
    rates = jnp.asarray(freqs, jnp.float32)[None, None, None]
    turned = positions.astype(jnp.float32)[:, :, None, None] * rates
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn channel `i` against channel `i + d / 2` of heads `[b, t, h, d]`."""
    cos, sin = rope
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    left, right = jnp.split(wide, 2, axis=-1)
    turned = [left * cos - right * sin, right * cos + left * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
