"""Prefix tuning: trained keys and values in front of those of the tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank._axes import Axes
from lowrank._base import Array, Path, Transform
from lowrank._select import Select
from lowrank.adapters._added import check_size, rows_beside
from lowrank.adapters._lora import Initializer, draw_factor, kaiming

narrow = jax.nn.initializers.normal(0.02)
_NETWORK = ("embedding", "w_in", "b_in", "w_out", "b_out")


def reparametrised(
    embedding: Float[Array, "*stack p k"],
    w_in: Float[Array, "*stack k h"],
    b_in: Float[Array, "*stack h"],
    w_out: Float[Array, "*stack h m"],
    b_out: Float[Array, "*stack m"],
) -> Float[Array, "*stack p m"]:
    """`tanh(E W1 + b1) W2 + b2`: rows from a smaller matrix by one network."""
    inner = jnp.tanh(embedding @ w_in + b_in[..., None, :])
    return inner @ w_out + b_out[..., None, :]


def prefix(
    length: int,
    *,
    select: Select,
    axes: Mapping[Path, Axes] | None = None,
    columns: int | None = None,
    init: Initializer = narrow,
    scale: Any = None,
    name: str = "prefix",
) -> Transform:
    """Prefix tuning: add trained keys and values that a model reads.

    Beside each selected kernel `W: [n, m]`, a projection to keys or to values, a leaf
    `prefix: [length, m]` is added. A model that reads it attends over
    `softmax(q [P_K; K]^T / sqrt(d)) [P_V; V]` with `K = x W_K`, `V = x W_V` of the
    tokens. The kernels stay what they are, and so does every other leaf.

    Args:
        length: Number of positions, at least 1.
        select: Kernels of keys and of values, such as
            `lrk.matching(r"(key|value)/kernel$")`; called once, in `init`.
        axes: As for `lora`; a leaf with more axes gets `[*stack, length, *out]`.
        columns: Width of the rows, where a kernel gives more than keys or values: two
            thirds of the outputs of the one product of `lowrank.models.GPT2`, keys and
            then values. None: the outputs.
        init: Initializer, called as `init(key, (length, m), float32)` for each stack
            index.
        scale: What the rows are multiplied by; None for 1. May be traced.
        name: Last part of the new path: what the model calls it.

    Returns:
        A transform that adds leaves: the tree that `apply` returns has one more beside
        each selected leaf, in its dtype. It is not the identity at init. Trainable,
        float32: `rows`. Fixed: `scale`. The state's paths are those of the kernels.

    Raises:
        TypeError: If a size is not an int or `scale` no number.
        ValueError: If a size is below 1; in `init`, if a selected leaf has no axes for
            inputs and outputs, does not stand in a dict, or has such a leaf beside it;
            in `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.prefix(4, select=lrk.matching("(key|value)/kernel"))
        >>> names = ("query", "key", "value")
        >>> params = {name: {"kernel": jnp.ones((3, 2))} for name in names}
        >>> tree = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> sorted(tree["key"]), tree["key"]["prefix"].shape, sorted(tree["query"])
        (['kernel', 'prefix'], (4, 2), ['kernel'])

    Notes:
        The positions of the tokens do not move: the authors' code for GPT-2, and PEFT,
        count the prefix as past positions. Keys and values have rows of their own in
        every layer, as published. The model has to read the leaf: the transformers of
        `lowrank.models` do, and refuse leaves that they do not know. Where they rotate
        keys by their positions (`Llama`), a prefix is not rotated, as in PEFT.

    References:
        Li and Liang, Prefix-Tuning, 2021, arXiv:2101.00190: section 4.
        He et al., 2021, arXiv:2110.04366: section 2.2, for keys and values.
    """

    def draw(key: Array, stack: tuple[int, ...], width: int) -> dict[str, Array]:
        return {"rows": draw_factor(init, key, stack, length, width)}

    return rows_beside(
        "prefix",
        name,
        length,
        names=("rows",),
        draw=draw,
        form=lambda own: own["rows"],
        scale=scale,
        select=select,
        axes=axes,
        columns=columns,
    )


def prefix_mlp(
    length: int,
    width: int,
    hidden: int,
    *,
    select: Select,
    axes: Mapping[Path, Axes] | None = None,
    columns: int | None = None,
    init: Initializer = narrow,
    scale: Any = None,
    name: str = "prefix",
) -> Transform:
    """Prefix tuning through a network: the rows are `tanh(E W1 + b1) W2 + b2`.

    As `prefix`, but what is trained for each kernel `W: [n, m]` is a small matrix
    `E: [length, width]` and a network with `W1: [width, hidden]`, `W2: [hidden, m]`,
    which makes training steadier. The tree holds the rows alone, so the network costs
    nothing where the adapted tree is kept.

    Args:
        length: Number of positions, at least 1.
        width: Columns of `E`, at least 1.
        hidden: Inner size of the network, at least 1.
        select: As for `prefix`.
        axes: As for `lora`.
        columns: As for `prefix`.
        init: Initializer of `E`, called as `init(key, (length, width), float32)` for
            each stack index.
        scale: What the rows are multiplied by; None for 1. May be traced.
        name: Last part of the new path.

    Returns:
        A transform that adds leaves, as `prefix`. Trainable, float32: `embedding`,
        `w_in`, `b_in`, `w_out`, `b_out`. Fixed: `scale`.

    Raises:
        TypeError: If a size is not an int or `scale` no number.
        ValueError: If a size is below 1; in `init` and `apply` as `prefix`.

    Example:
        >>> tx = lrk.prefix_mlp(4, 2, 3, select=lrk.matching("key"))
        >>> params = {"key": {"kernel": jnp.ones((3, 5))}}
        >>> state = tx.init(jax.random.key(0), params)
        >>> tx.apply(params, state)["key"]["prefix"].shape
        (4, 5)

    Notes:
        The paper has one `E` and one first layer for all layers, keys and values; here
        each kernel has its own, so that a leaf does not depend on the others. Both
        kernels of the network are drawn as PyTorch draws a linear layer's, its biases
        are zero.

    References:
        Li and Liang, Prefix-Tuning, 2021, arXiv:2101.00190: section 4.3.
    """
    check_size("prefix_mlp", "width", width)
    check_size("prefix_mlp", "hidden", hidden)

    def draw(key: Array, stack: tuple[int, ...], out: int) -> dict[str, Array]:
        keys = jax.random.split(key, 3)
        return {
            "embedding": draw_factor(init, keys[0], stack, length, width),
            "w_in": draw_factor(kaiming, keys[1], stack, width, hidden),
            "b_in": jnp.zeros((*stack, hidden)),
            "w_out": draw_factor(kaiming, keys[2], stack, hidden, out),
            "b_out": jnp.zeros((*stack, out)),
        }

    return rows_beside(
        "prefix_mlp",
        name,
        length,
        names=_NETWORK,
        draw=draw,
        form=lambda own: reparametrised(**{n: own[n] for n in _NETWORK}),
        scale=scale,
        select=select,
        axes=axes,
        columns=columns,
    )
