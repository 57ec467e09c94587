"""Serial adapters: a small network behind a frozen product, with a skip connection."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _tree
from lowrank._axes import Axes
from lowrank._base import Array, Path, PyTree, State, Transform, is_operator
from lowrank._select import Select, is_matrix
from lowrank.adapters._lora import Initializer, kaiming
from lowrank.adapters._two_layer import two_layer
from lowrank.linalg import labelled_product
from lowrank.operators import Bottleneck


def seen_bias(op: Bottleneck, bias: Array) -> Array:
    """`down_bias + bias down`: what lets the network read `y + bias` where it has `y`.

    `bias: [*stack, *out]`; the sum over the outputs is taken for each stack index.
    """
    down, low = op.labels["down"], op.labels["down_bias"]
    wide = bias.astype(op.down.dtype)
    return op.down_bias + labelled_product(wide, op.b_dims, op.down, down, low)


def bottleneck(
    rank: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    scale: Any = None,
    bias: Callable[[Path], Path] | None = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_up: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """Serial adapter: a small trained network reads a product and is added to it.

    A product `y = x W` with `W: [n, m]` becomes `y + s (f(y D + c) U + d)`, with
    `D: [m, r]`, `U: [r, m]` and biases `c: [r]`, `d: [m]`. Which kernels are selected
    is the placement: those that write into the residual stream for Houlsby's. As `f`
    is not linear there is no dense form, so nothing is merged into the base.

    A model adds its own bias `b` after the product, so the network reads `x W`, and not
    the `x W + b` of the papers. Told where `b` stands, it reads that: `(y + b) D + c`
    is `y D + (b D + c)`, so `b D` is added to `c` in `apply`, exactly.

    Args:
        rank: Inner size `r`, at least 1; it may exceed the width.
        activation: The function `f` of arrays, elementwise. Functions are compared as
            Python compares them: define it once, or each call compiles anew.
        scale: The scale `s`; None for 1. May be traced.
        bias: Path of the bias that the model adds to the product of the kernel at a
            path, such as `lambda path: path.replace("kernel", "bias")`; None to read
            the product without it. The leaf is read as `apply` meets it.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; `D: [*stack, *out, r]` and `U: [*stack, r, *out]`.
        init: Initializer of `D`, called as `init(key, (fan_in, rank), float32)` for
            each stack index.
        init_up: Initializer of `U`, called as `init_up(key, (rank, fan_out), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init_up`).
        Trainable, float32: `down`, `up`, `down_bias`, `up_bias`. Fixed: `scale`.

    Raises:
        TypeError: If `rank` is not an int, `scale` no number, or `activation` or `bias`
            no function.
        ValueError: If `rank < 1`; in `init`, if a selected leaf cannot be adapted or
            has no bias where `bias` says; in `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.bottleneck(2, activation=jax.nn.gelu)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'down': (3, 2), 'up': (2, 3), 'down_bias': (2,), 'up_bias': (3,)}

    Notes:
        Houlsby et al. draw both kernels near zero (pass
        `jax.nn.initializers.truncated_normal(0.01)` twice); here `U` starts at zero, so
        that nothing changes before training. The adapter of Pfeiffer et al. reads the
        output of a layer norm, which is no product: its choice of blocks is a
        selection, its place inside the block is not.

    References:
        Houlsby et al., 2019, arXiv:1902.00751: section 2.1 and figure 2 (transposed:
        our kernels are `[in, out]`).
        Pfeiffer et al., AdapterFusion, 2020, arXiv:2005.00247.
    """
    tx = two_layer(
        "bottleneck",
        Bottleneck,
        rank,
        read=lambda sizes: sizes.outputs,
        activation=activation,
        scale=scale,
        select=select,
        axes=axes,
        init=init,
        init_up=init_up,
    )
    if bias is None:
        return tx
    if not callable(bias):
        raise TypeError(
            "bottleneck: bias must be a function of a kernel's path, got "
            f"{bias!r}. Pass lambda path: path.replace('kernel', 'bias')."
        )

    def start(key: Array, params: PyTree) -> State:
        state = tx.init(key, params)
        _adapted(tx, params, state, bias)
        return state

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        adapted, new = _adapted(tx, params, state, bias)
        return _tree.replace("bottleneck", adapted, new)

    return Transform(start, apply)


def _adapted(
    tx: Transform, params: PyTree, state: State, bias: Callable[[Path], Path]
) -> tuple[PyTree, dict[Path, Any]]:
    """The adapted tree, and the operators that read the bias too.

    Raises:
        ValueError: If there is no bias of the right shape at a path; all are named.
    """
    adapted = tx.apply(params, state)
    leaves = _tree.leaves("bottleneck", params)
    operators = _tree.leaves("bottleneck", adapted)
    new, bad = {}, []
    for path in state.trainable:
        op, where = operators[path], bias(path)
        found, wanted = leaves.get(where), tuple(op.up_bias.shape)
        if found is None:
            near = _tree.quoted(_tree.nearest([where], leaves, count=3))
            bad.append(f"'{path}' has no bias at '{where}' (the nearest are {near})")
        elif tuple(found.shape) != wanted:
            bad.append(f"{_tree.describe(where, found)} is not {wanted}")
        elif is_operator(found) and not found.has_dense:
            bad.append(f"'{where}' ({type(found).__name__}) has no dense form")
        else:
            array = found.dense() if is_operator(found) else jnp.asarray(found)
            new[path] = op.replace(down_bias=seen_bias(op, array))
    if bad:
        raise ValueError(
            f"bottleneck: cannot read the biases: {'; '.join(bad)}. Correct bias=, or "
            "leave it out to read the products without them."
        )
    return adapted, new
