"""DoRA: the length of each column of a weight, trained apart from its direction."""

from collections.abc import Mapping
from typing import Any

import jax

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform, is_floating
from lowrank._combine import chain
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import Initializer, check_rank, kaiming, lora, scale_of
from lowrank.operators import Magnitude
from lowrank.operators._magnitude import column_norms, knows_norm


def magnitude(
    *,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    detach: bool = True,
) -> Transform:
    """Train the length of each column of a weight, whatever gives its direction.

    What it meets, an array or an operator `W: [n, m]`, becomes `m * W / |W|` with the
    norm over the `n` inputs of each output and `m: [m]` that norm at init. Behind
    `lora` this is DoRA; it goes behind any transform whose weights can be formed.

    Args:
        select: Which leaves to rescale; called once, in `init`, as
            `select(path, leaf)`.
        axes: As for `lora`; a leaf with more axes has `m: [*stack, *out]`.
        detach: Whether the norm counts as a constant in gradients, as the paper does to
            save memory. False gives the exact gradient of the factors.

    Returns:
        A transform that is the identity at init. Trainable: `m`, float32. Fixed:
        nothing. A column of zeros stays zero.

    Raises:
        ValueError: In `init`, if a selected leaf is not floating, has no two axes that
            `axes` knows, or acts inside the product so that its norm is not known; in
            `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.chain(lrk.lori(2), lrk.magnitude())
        >>> params = {"w": jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])}
        >>> tx.init(jax.random.key(0), params).trainable[1]["w"]["m"].tolist()
        [5.0, 2.0, 1.0]

    References:
        Liu et al., DoRA, 2024, arXiv:2402.09353: eq. 5, `W' = m V / |V|`, and section
        4.3 on the gradient (transposed: our kernels are `[in, out]`).
    """
    check_select("magnitude", select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("magnitude", key)
        chosen = selected("magnitude", params, select)
        found = resolve("magnitude", chosen, axes)
        _check_known(chosen)
        trainable = {
            path: {"m": column_norms(w, found[path].b_dims, True).astype("float32")}
            for path, w in chosen.items()
        }
        return State(trainable, {})

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("magnitude", params)
        _check.check_state("magnitude", leaves, state, trainable=("m",))
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("magnitude", chosen, axes)
        _check_known(chosen)
        new = {}
        for path, w in chosen.items():
            dims = found[path].b_dims
            values = {"m": state.trainable[path]["m"], "dims": dims, "detach": detach}
            new[path] = Magnitude._make(
                w=w, norm=column_norms(w, dims, detach), **values
            )
        _check.check_operators("magnitude", new)
        return _tree.replace("magnitude", params, new)

    return Transform(init, apply)


def _check_known(chosen: Mapping[Path, Any]) -> None:
    """Refuse leaves that are not floating, or whose norm cannot be told.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        if not is_floating(leaf):
            bad.append(f"{_tree.describe(path, leaf)}: not floating")
        elif not knows_norm(leaf):
            kind = type(leaf).__name__
            bad.append(f"{_tree.describe(path, leaf)}: {kind} has no dense form")
    if bad:
        raise ValueError(
            f"magnitude: cannot rescale {'; '.join(bad)}. Put magnitude before what "
            "acts inside the product, or leave these out with select=."
        )


def dora(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_b: Initializer = jax.nn.initializers.zeros,
    dropout: Any = 0.0,
    detach: bool = True,
) -> Transform:
    """DoRA: LoRA for the direction of each column, and a trained length.

    A kernel `W: [n, m]` becomes `m * (W + s A B) / |W + s A B|`, with the norm over the
    `n` inputs of each output, `A: [n, r]` and `B: [r, m]` as in `lora`, and `m: [m]`
    the norms of `W` at init. It is `chain(lora(...), magnitude(...))`, so other
    members may stand before, between or behind.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A`, as for `lora`.
        init_b: Initializer of `B`, as for `lora`.
        dropout: As for `lora`; the norm is that without dropout.
        detach: Whether the norm counts as a constant in gradients (the paper's way).

    Returns:
        A transform that is the identity at init (with the default `init_b`); its state
        is that of a chain of two. Trainable: `a`, `b` in the first member, `m` in the
        second, float32. Fixed: `scale`.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init` and
            `apply` as `lora` and `magnitude`.

    Example:
        >>> tx = lrk.dora(2, alpha=4)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> [sorted(member["w"]) for member in state.trainable]
        [['a', 'b'], ['m']]

    Notes:
        PEFT drops entries of the input of the base product too; here only the low-rank
        part sees dropout. Otherwise no known difference.

    References:
        Liu et al., DoRA, 2024, arXiv:2402.09353: eq. 5, and section 4.3 on the gradient
        (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("dora", rank)
    check_select("dora", select)
    number = scale_of("dora", rank, alpha, scale)
    direction = lora(
        rank,
        scale=number,
        select=select,
        axes=axes,
        init=init,
        init_b=init_b,
        dropout=dropout,
    )
    return chain(direction, magnitude(select=select, axes=axes, detach=detach))
