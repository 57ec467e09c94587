"""EfficientNet-Lite: inverted bottlenecks with depthwise convolutions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._convs import ConvFactory
from lowrank.models._efficientnet_config import Block, EfficientNetConfig


class InvertedBottleneck(nnx.Module):
    """Widen by 1 x 1, filter each feature by itself, narrow by 1 x 1; a skip."""

    def __init__(self, make: ConvFactory, block: Block):
        n, m, window, stride, expand = block
        inner = n * expand
        self.widens = expand > 1
        self.skips = stride == 1 and n == m
        if self.widens:
            self.expand_conv = make.conv(n, inner, (1, 1))
            self.expand_norm = make.norm(inner)
        self.depthwise_conv = make.conv(
            inner, inner, (window, window), stride, feature_group_count=inner
        )
        self.depthwise_norm = make.norm(inner)
        self.project_conv = make.conv(inner, m, (1, 1))
        self.project_norm = make.norm(m)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        inner = hidden
        if self.widens:
            inner = jax.nn.relu6(self.expand_norm(self.expand_conv(inner)))
        inner = jax.nn.relu6(self.depthwise_norm(self.depthwise_conv(inner)))
        out = self.project_norm(self.project_conv(inner))
        return out + hidden if self.skips else out


class EfficientNet(nnx.Module):
    """EfficientNet-Lite: convolutions 3 x 3, depthwise and 1 x 1, with frozen norms.

    Images pass a 3 x 3 convolution of stride 2, inverted bottlenecks, a 1 x 1
    convolution and the mean over places. A block is `u = relu6(norm(x E))`,
    `v = relu6(norm(u * D))` with `D` a kernel for each feature alone, and
    `y = norm(v P)`, plus `x` where the shapes agree. Paddings are those of TensorFlow
    ("SAME"). Paths: `stem_conv/kernel`, `blocks/3/expand_conv/kernel`,
    `blocks/3/depthwise_conv/kernel`, `blocks/3/project_norm/scale`, `head_conv/kernel`,
    `classifier/kernel`, ...

    Args:
        config: Sizes.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial kernels (He normal); biases are 0, scales
            1, and the classifier is normal with standard deviation 0.01.

    Raises:
        ValueError: At the call, if the images are not of four axes with the config's
            channels last.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import EfficientNet, EfficientNetConfig
        >>> def logits(images):
        ...     return EfficientNet(EfficientNetConfig(), rngs=nnx.Rngs(0))(images)
        >>> jax.eval_shape(logits, jnp.ones((2, 64, 64, 3))).shape
        (2, 1000)

    Notes:
        The batch norms are in inference form: the running statistics are folded into
        `scale` and `bias`, which are constants unless an adapter selects them. There is
        neither dropout nor stochastic depth.

    References:
        Tan and Le, EfficientNet, 2019, arXiv:1905.11946: table 1.
        Sandler et al., MobileNetV2, 2018, arXiv:1801.04381: the block, table 1.
    """

    def __init__(
        self,
        config: EfficientNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        make = ConvFactory(dtype, param_dtype, rngs)
        self.config = config
        self.stem_conv = make.conv(config.num_channels, config.stem_width, (3, 3), 2)
        self.stem_norm = make.norm(config.stem_width)
        blocks = config.blocks()
        self.blocks = nnx.List(InvertedBottleneck(make, block) for block in blocks)
        self.head_conv = make.conv(blocks[-1].m, config.head_width, (1, 1))
        self.head_norm = make.norm(config.head_width)
        if config.num_labels:
            self.classifier = make.dense(config.head_width, config.num_labels)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Map `[batch, height, width, channels]` to logits `[batch, num_labels]`.

        Without a classifier the outputs are `features`.
        """
        features = self.features(images)
        return self.classifier(features) if self.config.num_labels else features

    def features(self, images: ArrayLike) -> jax.Array:
        """The mean over places of the last convolution: `[batch, head_width]`."""
        return self.above(self.below(images, len(self.blocks)), len(self.blocks))

    def below(self, images: ArrayLike, cut: int) -> jax.Array:
        """What the first `cut` blocks make of images.

        Args:
            images: `[batch, height, width, channels]`.
            cut: Number of blocks, from 0 (the stem alone) to all.

        Returns:
            What goes into block `cut`: `[batch, height', width', features]`.

        Raises:
            ValueError: If the images are no such, or there are fewer blocks.
        """
        images, channels = jnp.asarray(images), self.config.num_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                "EfficientNet: wrong images: expected shape (batch, height, width, "
                f"{channels}), got {images.shape}. Put the channels last."
            )
        self._check(cut)
        hidden = jax.nn.relu6(self.stem_norm(self.stem_conv(images)))
        for block in list(self.blocks)[:cut]:
            hidden = block(hidden)
        return hidden

    def above(self, hidden: jax.Array, cut: int) -> jax.Array:
        """Features `[batch, head_width]` of what `below` gave for the same `cut`.

        Raises:
            ValueError: If there are fewer blocks.
        """
        self._check(cut)
        for block in list(self.blocks)[cut:]:
            hidden = block(hidden)
        hidden = jax.nn.relu6(self.head_norm(self.head_conv(hidden)))
        return jnp.mean(hidden, axis=(1, 2))

    def _check(self, cut: int) -> None:
        """Refuse a place that the network does not have."""
        if not 0 <= cut <= len(self.blocks):
            raise ValueError(
                f"EfficientNet: wrong cut: expected 0 to {len(self.blocks)}, got {cut}."
                " Pass the number of blocks that run below the cut."
            )
