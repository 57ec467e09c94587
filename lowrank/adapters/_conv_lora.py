"""LoRA for convolutions: loralib's reshaped matrix, and LyCORIS' Tucker kernel."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank._axes import Axes
from lowrank._base import Operator, Path, Transform
from lowrank._select import Select
from lowrank.adapters._leafwise import (
    Arrays,
    Reason,
    Rules,
    drawn,
    exceeds,
    leafwise,
)
from lowrank.adapters._lora import Initializer, check_rank, kaiming, scale_of
from lowrank.operators import Delta, Factored

IN, HEIGHT, WIDTH, OUT = 2, 0, 1, 3  # axes of a kernel HWIO


def reshaped_kernel(
    a: Float[Array, "columns rank"], b: Float[Array, "rank rows"], size: int
) -> Float[Array, "size size in out"]:
    """The matrix `(A B)ᵀ: [out k, in k]` read as `[out, in, k, k]`, then as HWIO."""
    torch = (a @ b).T.reshape(-1, a.shape[0] // size, size, size)
    return jnp.transpose(torch, (2, 3, 1, 0))


def reshaped_factors(
    a: Float[Array, "columns rank"], b: Float[Array, "rank rows"], size: int
) -> tuple[Array, Array]:
    """The same kernel as a convolution and a product, where `k` divides `in`.

    Row `o k + p` and column `i k + q` of the matrix are then output `o`, input
    `p in / k + j`, and place `(h, q)` with `i = j k + h`: so `A` is a kernel over
    `in / k` features that serves all `k` blocks `p` of them, and `B` sums the blocks.
    """
    rank = a.shape[1]
    kernel = a.reshape(-1, size, size, rank)
    return kernel, b.reshape(rank, -1, size)


_LABELS = (
    ((IN, 1), (HEIGHT, 0), (WIDTH, 0), (-1, 0)),
    ((-1, 0), (OUT, 0), (IN, 0)),
)


def loralib_conv(
    rank: int,
    *,
    select: Select,
    alpha: Any = None,
    scale: Any = None,
    init: Initializer = kaiming,
    init_b: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """LoRA for square 2-D kernels in loralib's form: a matrix read as a kernel.

    A kernel of `k x k` places becomes `W + (alpha / r) K` where `K` holds the numbers
    of `(A B)ᵀ: [out k, in k]` in the order of torch's `[out, in, k, k]`, for
    `A: [in k, r k]` random and `B: [r k, out k]` zero at init. Where `k` divides the
    number of inputs it runs as a convolution over blocks of features and a 1 x 1
    convolution; else no two convolutions equal it, and `K` is formed once.

    Args:
        rank: `r`, at least 1 and at most the fewer of inputs and outputs. The rank of
            the product is `r k`.
        select: Which leaves to adapt: kernels HWIO; called once, in `init`.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        init: Initializer of `A`, called as `init(key, (in k, r k), float32)`.
        init_b: Initializer of `B`, called as `init_b(key, (r k, out k), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init_b`). Trainable:
        `a`, `b`, float32, loralib's matrices transposed. Fixed: `scale`.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf is no square kernel of 2-D, or smaller than the rank; in
            `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.loralib_conv(2, select=lrk.matching("kernel"))
        >>> state = tx.init(jax.random.key(0), {"kernel": jnp.ones((3, 3, 6, 4))})
        >>> {name: leaf.shape for name, leaf in state.trainable["kernel"].items()}
        {'a': (18, 6), 'b': (6, 12)}

    Notes:
        For a grouped kernel `in` is the inputs of one group. loralib makes the matrix
        `[out k / groups, in k]` of all inputs instead: the same size, other entries.

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: `ConvLoRA` of the authors' loralib.
    """
    rank = check_rank("loralib_conv", rank)

    number = scale_of("loralib_conv", rank, alpha, scale)

    def fits(sizes: Axes) -> Reason | None:
        if len(sizes.inputs) != 3 or sizes.inputs[0] != sizes.inputs[1]:
            return Reason(
                "needs a square kernel HWIO", "use lora with axes= for other forms"
            )
        return exceeds(rank, sizes._replace(inputs=sizes.inputs[-1:]))

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        for_a, for_b = jax.random.split(key)
        (k, _, n), (m,) = sizes.inputs, sizes.outputs
        a = drawn(init, for_a, (), (n * k,), (rank * k,))
        b = drawn(init_b, for_b, (), (rank * k,), (m * k,))
        return {"a": a, "b": b}, {"scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        del axes
        size, n = w.shape[WIDTH], w.shape[IN]
        if n % size:
            kernel = reshaped_kernel(own["a"], own["b"], size)
            return Delta._make(w=w, d=own["scale"] * kernel)
        factors = reshaped_factors(own["a"], own["b"], size)
        return Factored._make(w=w, factors=factors, scale=own["scale"], labels=_LABELS)

    rules = Rules(fits, draw, build, ("a", "b"), ("scale",), channels_last)
    return leafwise("loralib_conv", rules, select, None)


def locon_tucker(
    rank: int,
    *,
    select: Select,
    alpha: Any = None,
    scale: Any = None,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_b: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """LoRA for convolutions in LyCORIS' Tucker form: 1 x 1, k x k and 1 x 1.

    A kernel `W: [*places, in, out]` becomes `W + (alpha / r) K` with
    `K[p, i, o] = sum_st A[i, s] C[p, s, t] B[t, o]`, for `A: [in, r]` and
    `C: [*places, r, r]` random and `B: [r, out]` zero at init. `K` is never formed: the
    input goes through three convolutions, of which only that of `C` slides, over `r`
    features. With groups, `A` and `C` serve all of them alike.

    Args:
        rank: Inner sizes `r`, at least 1 and at most the fewer of inputs and outputs.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        axes: Axes by path for kernels that are not `[*places, in, out]`; the last of
            the `inputs` are the features, the others the places.
        init: Initializer of `A` and `C`, called as `init(key, (fan_in, r), float32)`.
        init_b: Initializer of `B`, called as `init_b(key, (r, out), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init_b`). Trainable:
        `a`, `core`, `b`, float32. Fixed: `scale`.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf is no kernel, or smaller than the rank; in `apply`, if the
            state is of another tree.

    Example:
        >>> tx = lrk.locon_tucker(2, select=lrk.matching("kernel"))
        >>> state = tx.init(jax.random.key(0), {"kernel": jnp.ones((3, 3, 6, 4))})
        >>> {name: leaf.shape for name, leaf in state.trainable["kernel"].items()}
        {'a': (6, 2), 'core': (3, 3, 2, 2), 'b': (2, 4)}

    References:
        Yeh et al., LyCORIS, 2023, arXiv:2309.14859: LoCon with its Tucker option.
    """
    rank = check_rank("locon_tucker", rank)

    number = scale_of("locon_tucker", rank, alpha, scale)

    def fits(sizes: Axes) -> Reason | None:
        if len(sizes.inputs) < 2 or len(sizes.outputs) != 1:
            return Reason(
                "needs places, inputs and one axis of outputs", "name them in axes="
            )
        return exceeds(rank, sizes._replace(inputs=sizes.inputs[-1:]))

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        for_a, for_core, for_b = jax.random.split(key, 3)
        stack, (*places, n) = sizes.stack, sizes.inputs
        own = {
            "a": drawn(init, for_a, stack, (n,), (rank,)),
            "core": drawn(init, for_core, stack, (*places, rank), (rank,)),
            "b": drawn(init_b, for_b, stack, (rank,), sizes.outputs),
        }
        return own, {"scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        stack, inputs = [[(d, 0) for d in dims] for dims in (axes.stack, axes.inputs)]
        *places, features = inputs
        labels = (
            (*stack, features, (-1, 0)),
            (*stack, *places, (-1, 0), (-1, 1)),
            (*stack, (-1, 1), (axes.outputs[0], 0)),
        )
        factors = (own["a"], own["core"], own["b"])
        return Factored._make(w=w, factors=factors, scale=own["scale"], labels=labels)

    rules = Rules(fits, draw, build, ("a", "b", "core"), ("scale",), channels_last)
    return leafwise("locon_tucker", rules, select, axes)


def channels_last(ndim: int) -> Axes:
    """The axes of a kernel `[*places, in, out]`."""
    return Axes((), tuple(range(ndim - 1)), (ndim - 1,))
