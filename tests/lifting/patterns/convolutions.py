"""Convolutions: 1-D to 3-D, strides, dilation, padding, groups, layouts."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tests.lifting.patterns.pattern import Axes, Pattern, normal

C, OUT = 16, 32
HWIO = Axes((0, 1, 2), (3,))


def _build(fn, w_shape, x_shape, n_in=None):
    def build(seed):
        kw, kx = seed, seed + 1
        fan_in = math.prod(w_shape[:-1] if n_in is None else n_in)
        w = normal(kw, *w_shape, scale=fan_in**-0.5)
        return fn, {"w": w}, (normal(kx, *x_shape, scale=1.0),)

    return build


def _conv(params, x, *, layout, strides, padding="SAME", **options):
    return lax.conv_general_dilated(
        x,
        params["w"],
        strides,
        padding,
        dimension_numbers=layout,
        **options,
    )


NHWC = ("NHWC", "HWIO", "NHWC")
conv_1d = functools.partial(_conv, layout=("NWC", "WIO", "NWC"), strides=(1,))
conv_2d = functools.partial(_conv, layout=NHWC, strides=(2, 1))
conv_2d_dilated = functools.partial(
    _conv,
    layout=NHWC,
    strides=(1, 1),
    padding=((2, 1), (0, 3)),
    rhs_dilation=(2, 1),
)
conv_2d_torch = functools.partial(
    _conv, layout=("NCHW", "OIHW", "NCHW"), strides=(1, 1), padding="VALID"
)
conv_grouped = functools.partial(
    _conv, layout=NHWC, strides=(1, 1), feature_group_count=2
)
depthwise = functools.partial(_conv, layout=NHWC, strides=(1, 1), feature_group_count=C)
conv_3d = functools.partial(
    _conv, layout=("NDHWC", "DHWIO", "NDHWC"), strides=(1, 2, 1)
)


def conv_2d_hand(params, factors, x):
    f = factors["w"]
    low = conv_2d({"w": f.a * f.scale}, x)
    flat = low.reshape(-1, low.shape[-1]) @ f.b
    return conv_2d(params, x) + flat.reshape(*low.shape[:-1], -1)


def transposed_conv(params, x):
    return lax.conv_transpose(x, params["w"], (2, 2), "SAME", dimension_numbers=NHWC)


def two_convs(params, x):
    """A strided convolution under a gradient of the input, as in a score model."""

    def energy(x):
        return jnp.sum(jnp.tanh(conv_2d(params, x)))

    return jax.grad(energy)(x)


def conv_cast(params, x):
    w = params["w"].astype(jnp.bfloat16)
    return conv_2d({"w": w}, x.astype(jnp.bfloat16))


def conv_in_vmap(params, x):
    """The kernel is shared by every image of an outer `vmap`."""
    return jax.vmap(lambda image: conv_2d(params, image[None])[0])(x)


IMAGE, KERNEL = (2, 8, 8, C), (3, 3, C, OUT)

PATTERNS = (
    Pattern(
        "conv_1d",
        _build(conv_1d, (5, C, OUT), (2, 24, C)),
        {"w": Axes((0, 1), (2,))},
    ),
    Pattern(
        "conv_2d",
        _build(conv_2d, KERNEL, IMAGE),
        {"w": HWIO},
        hand=conv_2d_hand,
        batched=True,
    ),
    Pattern("conv_2d_dilated", _build(conv_2d_dilated, KERNEL, IMAGE), {"w": HWIO}),
    Pattern(
        "conv_2d_torch",
        _build(conv_2d_torch, (OUT, C, 3, 3), (2, C, 8, 8), (C, 3, 3)),
        {"w": Axes((1, 2, 3), (0,))},
    ),
    Pattern(
        "conv_grouped",
        _build(conv_grouped, (3, 3, C // 2, OUT), IMAGE),
        {"w": HWIO},
        bound=0.7,
    ),
    Pattern("depthwise", _build(depthwise, (3, 3, 1, C), IMAGE), {"w": HWIO}, None),
    Pattern(
        "depthwise_multiplier",
        _build(depthwise, (3, 3, 1, 2 * C), IMAGE),
        {"w": HWIO},
        None,
    ),
    Pattern(
        "conv_3d",
        _build(conv_3d, (3, 2, 3, C, OUT), (1, 4, 6, 4, C)),
        {"w": Axes((0, 1, 2, 3), (4,))},
    ),
    Pattern(
        "transposed_conv",
        _build(transposed_conv, KERNEL, IMAGE),
        {"w": HWIO},
        bound=0.7,
    ),
    Pattern(
        "conv_input_gradient", _build(two_convs, KERNEL, IMAGE), {"w": HWIO}, bound=0.7
    ),
    Pattern(
        "conv_cast",
        _build(conv_cast, KERNEL, IMAGE),
        {"w": HWIO},
        dtype="bfloat16",
    ),
    Pattern("conv_in_vmap", _build(conv_in_vmap, KERNEL, IMAGE), {"w": HWIO}),
)
