"""The vision transformer, with the parameter names of the public checkpoints."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._bert_layers import Factory, Intermediate, SelfAttention
from lowrank.models._config import check_sizes
from lowrank.models._layers import run


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer, named as in the `config.json` of checkpoints.

    Args:
        image_size: Height and width of the images; a multiple of the patches.
        patch_size: Height and width of a patch.
        num_channels: Channels of the images.
        hidden_size: Width of the hidden states; a multiple of the heads.
        num_hidden_layers: Number of layers.
        num_attention_heads: Heads per layer.
        intermediate_size: Inner width of the feed-forward block.
        num_labels: Outputs of the classifier; 0: there is none.
        layer_norm_eps: Added to the variance, at least 0.
        initializer_range: Standard deviation of the initial weights, at least 0.

    Raises:
        ValueError: If a size is below 1, a number is negative, or heads or patches do
            not divide; all are listed.

    Example:
        >>> from lowrank.models import ViTConfig
        >>> ViTConfig().tokens
        197

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, arXiv:2010.11929:
        table 1 (the defaults are ViT-B/16).
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_labels: int = 0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(
            self,
            [("hidden_size", "num_attention_heads"), ("image_size", "patch_size")],
            optional=("num_labels",),
        )

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class PatchEmbeddings(nnx.Module):
    """A convolution whose stride is its window."""

    def __init__(self, make: Factory):
        config = make.config
        side = (config.patch_size, config.patch_size)
        self.projection = nnx.Conv(
            config.num_channels,
            config.hidden_size,
            side,
            strides=side,
            padding="VALID",
            kernel_init=make.normal,
            **make.kwargs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.projection(images)
        return patches.reshape(patches.shape[0], -1, patches.shape[-1])


class Embeddings(nnx.Module):
    """Patches after a class token, with learned positions."""

    def __init__(self, make: Factory):
        config, dtype = make.config, make.kwargs["param_dtype"]
        key, width = make.kwargs["rngs"].params, config.hidden_size
        self.cls_token = nnx.Param(make.normal(key(), (1, 1, width), dtype))
        self.position_embeddings = nnx.Param(
            make.normal(key(), (1, config.tokens, width), dtype)
        )
        self.patch_embeddings = PatchEmbeddings(make)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embeddings(images)
        first = self.cls_token.get_value().astype(patches.dtype)
        first = jnp.broadcast_to(first, (patches.shape[0], 1, patches.shape[2]))
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self.position_embeddings.get_value().astype(tokens.dtype)


class Output(nnx.Module):
    """The projection that ends a residual."""

    def __init__(self, make: Factory, width: int):
        self.dense = make.dense(width, make.config.hidden_size)

    def __call__(self, inner: jax.Array) -> jax.Array:
        return self.dense(inner)


class Attention(nnx.Module):
    """Self-attention and its output, under the checkpoints' names."""

    def __init__(self, make: Factory):
        self.attention = SelfAttention(make)
        self.output = Output(make, make.config.hidden_size)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.output(self.attention(hidden, None))


class Layer(nnx.Module):
    """One layer: norm and attention, norm and feed-forward, each with a residual."""

    def __init__(self, make: Factory):
        self.layernorm_before = make.norm()
        self.attention = Attention(make)
        self.layernorm_after = make.norm()
        self.intermediate = Intermediate(make)
        self.output = Output(make, make.config.intermediate_size)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        inner = self.intermediate(self.layernorm_after(hidden))
        return hidden + self.output(inner)


class Encoder(nnx.Module):
    """The list of layers."""

    def __init__(self, make: Factory):
        self.layer = nnx.List(Layer(make) for _ in range(make.config.num_hidden_layers))


class ViT(nnx.Module):
    """Vision transformer: patches as tokens, layer norms before the blocks.

    Each patch `[p, p, channels]` becomes one token by a convolution with stride `p`,
    a learned class token is put before them, learned positions are added. One layer is
    `u = h + attention(LN(h)) W_o`, `h' = u + gelu(LN(u) W_1) W_2` with biases
    everywhere and the exact (erf) gelu; LN is applied once more after the last. Paths
    are those of the public checkpoints with `/` for `.` and `kernel`, `scale` for
    `weight`, without a leading `vit`: `embeddings/cls_token`,
    `encoder/layer/0/attention/attention/query/kernel`, ...

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
        ValueError: At the call, if the images are not of the config's size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import ViT, ViTConfig
        >>> config = ViTConfig(image_size=4, patch_size=2, hidden_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        ...     num_labels=3)
        >>> def hidden_and_logits(images):
        ...     model = ViT(config, rngs=nnx.Rngs(0))
        ...     return model(images), model.logits(images)
        >>> [x.shape for x in jax.eval_shape(hidden_and_logits, jnp.ones((1, 4, 4, 3)))]
        [(1, 5, 8), (1, 3)]

    Notes:
        Images are `[batch, height, width, channels]`, as JAX has them, where PyTorch
        puts the channels first. There is no dropout.

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, arXiv:2010.11929:
        section 3.1.
    """

    def __init__(
        self,
        config: ViTConfig,
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
        self.layernorm = make.norm()
        if config.num_labels:
            self.classifier = make.dense(config.hidden_size, config.num_labels)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Map `[batch, height, width, channels]` to `[batch, tokens, hidden width]`.

        The first token is the class token; the last layer norm has been applied.
        """
        images, config = jnp.asarray(images), self.config
        side, channels = config.image_size, config.num_channels
        if images.ndim != 4 or images.shape[1:] != (side, side, channels):
            raise ValueError(
                f"ViT: wrong images: expected shape (batch, {side}, {side}, "
                f"{channels}), got {images.shape}. Resize them, and put the channels "
                "last."
            )
        hidden = self.embeddings(images)
        for layer in self.encoder.layer:
            hidden = run(layer, hidden, remat=self.remat)
        return self.layernorm(hidden)

    def logits(self, images: ArrayLike) -> jax.Array:
        """Classify by the class token: `[batch, num_labels]`.

        Raises:
            ValueError: If the config has no labels.
        """
        if not self.config.num_labels:
            raise ValueError(
                "ViT: no classifier: expected num_labels of at least 1 in the config, "
                "got 0. Use the hidden states, or build it with num_labels."
            )
        return self.classifier(self(images)[:, 0])
