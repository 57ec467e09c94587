"""A convolutional network on raw waveforms."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._config import check_sizes
from lowrank.models._convs import ConvFactory


@dataclass(frozen=True, kw_only=True)
class M5Config:
    """Sizes of a network on waveforms.

    Args:
        widths: Features after each convolution.
        first_window: Samples that the first convolution sees.
        first_stride: Its stride.
        window: Places that the others see.
        pool: Places that become one after each convolution.
        num_labels: Outputs.

    Raises:
        ValueError: If there is no width, or a size is below 1; all are listed.

    Example:
        >>> from lowrank.models import M5Config
        >>> M5Config().widths
        (128, 128, 256, 512)

    References:
        Dai et al., Very Deep Convolutional Neural Networks for Raw Waveforms, 2016,
        arXiv:1610.00087: table 1 (the defaults are M5).
    """

    widths: tuple[int, ...] = (128, 128, 256, 512)
    first_window: int = 80
    first_stride: int = 4
    window: int = 3
    pool: int = 4
    num_labels: int = 10

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(self)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                "M5Config: wrong sizes at 'widths': expected one or more, each at "
                f"least 1, got {self.widths}. Correct the config."
            )


class ConvBlock(nnx.Module):
    """A convolution over time, a norm, relu and max pooling."""

    def __init__(
        self, make: ConvFactory, n: int, m: int, window: int, stride: int, pool: int
    ):
        self.pool = pool
        self.conv = make.conv(n, m, (window,), stride)
        self.norm = make.norm(m)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(self.norm(self.conv(hidden)))
        size = (self.pool,)
        return nnx.max_pool(hidden, size, strides=size)


class M5(nnx.Module):
    """M5: 1-D convolutions on raw waveforms, the first of them long.

    `[batch, samples, 1]` -> a convolution over 80 samples with stride 4 -> convolutions
    over 3 places, each followed by a norm, relu and pooling by 4 -> the mean over time
    -> logits. Kernels are `[window, in, out]`. Paths: `blocks/0/conv/kernel`,
    `blocks/0/norm/scale`, `classifier/kernel`, ...

    Args:
        config: Sizes.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial kernels (He normal); biases are 0, scales
            1, and the classifier is normal with standard deviation 0.01.

    Raises:
        ValueError: At the call, if the waves are not `[batch, samples, 1]`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import M5, M5Config
        >>> def logits(waves):
        ...     return M5(M5Config(), rngs=nnx.Rngs(0))(waves)
        >>> jax.eval_shape(logits, jnp.ones((2, 8000, 1))).shape
        (2, 10)

    Notes:
        Untested on real speech: no public weights are read, and the tests train on
        made-up tones. The paper states no padding; here it is "SAME". Batch norms are
        in inference form, a scale and a bias for each feature.

    References:
        Dai et al., Very Deep Convolutional Neural Networks for Raw Waveforms, 2016,
        arXiv:1610.00087: table 1.
    """

    def __init__(
        self,
        config: M5Config,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        make = ConvFactory(dtype, param_dtype, rngs)
        sizes = [(config.first_window, config.first_stride)]
        sizes += [(config.window, 1)] * (len(config.widths) - 1)
        widths = zip((1, *config.widths[:-1]), config.widths, strict=True)
        self.config = config
        self.blocks = nnx.List(
            ConvBlock(make, n, m, *own, config.pool)
            for (n, m), own in zip(widths, sizes, strict=True)
        )
        self.classifier = make.dense(config.widths[-1], config.num_labels)

    def __call__(self, waves: ArrayLike) -> jax.Array:
        """Map `[batch, samples, 1]` to logits `[batch, num_labels]`."""
        waves = jnp.asarray(waves)
        if waves.ndim != 3 or waves.shape[-1] != 1:
            raise ValueError(
                "M5: wrong waves: expected shape (batch, samples, 1), got "
                f"{waves.shape}. Add the channel as x[..., None]."
            )
        hidden = waves
        for block in self.blocks:
            hidden = block(hidden)
        return self.classifier(jnp.mean(hidden, axis=1))
