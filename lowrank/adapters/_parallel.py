"""The scaled parallel adapter: a small network beside a frozen product."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from lowrank._axes import Axes
from lowrank._base import Array, Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._lora import Initializer, kaiming
from lowrank.adapters._two_layer import two_layer
from lowrank.operators import Parallel


def parallel(
    rank: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_up: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """Scaled parallel adapter: a small trained network reads what a kernel reads.

    A product `x W` with `W: [n, m]` becomes `x W + s (f(x D + c) U + d)`, with
    `D: [n, r]`, `U: [r, m]` and biases `c: [r]`, `d: [m]`. With the identity for `f` it
    would be LoRA with biases; with a nonlinear `f` there is no dense form, so nothing
    is merged into the base.

    Args:
        rank: Inner size `r`, at least 1; it may exceed the width.
        activation: The function `f` of arrays, elementwise. Functions are compared as
            Python compares them: define it once, or each call compiles anew.
        scale: The scale `s`; None for 1. May be traced. The paper uses 4.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; `D: [*stack, *in, r]` and `U: [*stack, r, *out]`.
        init: Initializer of `D`, called as `init(key, (fan_in, rank), float32)` for
            each stack index.
        init_up: Initializer of `U`, called as `init_up(key, (rank, fan_out), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init_up`).
        Trainable, float32: `down`, `up`, `down_bias`, `up_bias`. Fixed: `scale`.

    Raises:
        TypeError: If `rank` is not an int, `scale` no number, or `activation` no
            function.
        ValueError: If `rank < 1`; in `init`, if a selected leaf cannot be adapted; in
            `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.parallel(2, scale=4.0)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'down': (4, 2), 'up': (2, 3), 'down_bias': (2,), 'up_bias': (3,)}

    Notes:
        The paper puts one adapter beside a whole sub-layer, whose feed-forward form is
        two products with an activation between. Here it stands beside one product.

    References:
        He et al., Towards a Unified View of Parameter-Efficient Transfer Learning,
        2021, arXiv:2110.04366: table 1 (transposed: our kernels are `[in, out]`).
    """
    return two_layer(
        "parallel",
        Parallel,
        rank,
        read=lambda sizes: sizes.inputs,
        activation=activation,
        scale=scale,
        select=select,
        axes=axes,
        init=init,
        init_up=init_up,
    )
