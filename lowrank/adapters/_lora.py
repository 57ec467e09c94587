"""LoRA: a frozen weight plus a trained product of two thin factors."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import (
    Array,
    Operator,
    Path,
    PyTree,
    State,
    Transform,
    is_array,
    is_floating,
)
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.operators import DropoutLowRank, LowRank

Initializer = Callable[..., Array]

# U(-1/sqrt(in), 1/sqrt(in)): what PyTorch's kaiming_uniform_(a=sqrt(5)) draws.
kaiming = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def draw_factor(
    init: Initializer, key: Array, stack: tuple[int, ...], fan_in: int, fan_out: int
) -> Array:
    """A factor `[*stack, fan_in, fan_out]`; each stack index has its own key."""
    if not stack:
        return init(key, (fan_in, fan_out), jnp.float32)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(math.prod(stack)))
    drawn = jax.vmap(lambda k: init(k, (fan_in, fan_out), jnp.float32))(keys)
    return drawn.reshape(*stack, fan_in, fan_out)


def draw_pair(
    key: Array,
    path: Path,
    sizes: Axes,
    rank: int,
    init: Initializer,
    init_b: Initializer,
) -> dict[str, Array]:
    """`a` and `b` of a leaf, by its own key; `sizes` are those of its axes."""
    for_a, for_b = jax.random.split(_tree.leaf_key(key, path))
    n, m = math.prod(sizes.inputs), math.prod(sizes.outputs)
    a = draw_factor(init, for_a, sizes.stack, n, rank)
    b = draw_factor(init_b, for_b, sizes.stack, rank, m)
    return {
        "a": a.reshape(*sizes.stack, *sizes.inputs, rank),
        "b": b.reshape(*sizes.stack, rank, *sizes.outputs),
    }


def check_rank(who: str, rank: Any, name: str = "rank") -> int:
    """A rank or another size as an int; what is no positive integer is refused.

    Raises:
        TypeError: If the rank is not an int.
        ValueError: If it is below 1.
    """
    if isinstance(rank, bool) or not hasattr(rank, "__index__"):
        raise TypeError(f"{who}: {name} must be an int, got {rank!r}.")
    rank = operator.index(rank)
    if rank < 1:
        raise ValueError(f"{who}: {name} must be at least 1, got {rank}.")
    return rank


def scale_of(who: str, rank: int, alpha: Any, scale: Any) -> Any:
    """The scale that was asked for.

    Raises:
        TypeError: If `alpha` or `scale` is no number.
        ValueError: If both are given.
    """
    if alpha is not None and scale is not None:
        raise ValueError(f"{who}: got both alpha and scale. Pass one of them.")
    for name, value in (("alpha", alpha), ("scale", scale)):
        if not (value is None or is_array(value) or isinstance(value, (int, float))):
            raise TypeError(f"{who}: {name} must be a number, got {value!r}.")
    return scale if scale is not None else 1.0 if alpha is None else alpha / rank


def check_leaves(who: str, rank: int, chosen: Mapping[Path, Any], axes: Any) -> None:
    """Refuse leaves that are not floating, or smaller than the rank.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        sizes = axes[path].sizes(leaf.shape)
        smallest = min(math.prod(sizes.inputs), math.prod(sizes.outputs))
        if not is_floating(leaf):
            bad.append(f"{_tree.describe(path, leaf)}: not floating")
        elif rank > smallest:
            bad.append(f"{_tree.describe(path, leaf)}: rank {rank} exceeds {smallest}")
    if bad:
        raise ValueError(
            f"{who}: cannot adapt {'; '.join(bad)}. Lower the rank, or leave them out "
            "with select=."
        )


def lora(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_b: Initializer = jax.nn.initializers.zeros,
    dropout: Any = 0.0,
) -> Transform:
    """LoRA: train a low-rank product beside each frozen weight.

    A kernel `W: [n, m]` becomes `W + (alpha / r) A B` with `A: [n, r]` random and
    `B: [r, m]` zero at init. A leaf with more axes has `A: [*stack, *in, r]` and
    `B: [*stack, r, *out]`, where `axes` says which axis is which.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`: `alpha / rank**0.5` is rsLoRA. May
            be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: Axes by path for leaves that have not exactly two, or whose first is not
            the input: what `trace_axes` returns. It selects nothing: `select` does.
        init: Initializer of `A` as in `jax.nn.initializers`, called as
            `init(key, (fan_in, rank), float32)` for each stack index.
        init_b: Initializer of `B`, called as `init_b(key, (rank, fan_out), float32)`.
        dropout: Probability, in [0, 1), with which an entry of the adapter's input is
            zeroed. `apply` then needs a key, and the leaf has no dense form; evaluate
            the same state with `dropout=0`.

    Returns:
        A transform that is the identity at init (with the default `init_b`). Trainable:
        `a`, `b`, float32. Fixed: `scale`, a float32 scalar for each leaf.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, `alpha` and `scale` are both given, or `dropout` lies
            outside [0, 1); in `init`, if a selected leaf cannot be adapted; in `apply`,
            if the state is of another tree, or dropout lacks a key.

    Example:
        >>> tx = lrk.lora(2, alpha=4)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'a': (4, 2), 'b': (2, 3)}

    Notes:
        `A` is uniform in (-1/sqrt(n), 1/sqrt(n)) as in loralib and PEFT; the paper says
        Gaussian (pass `jax.nn.initializers.normal`).

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: section 4.1, h = W0 x + (alpha/r) B A x
        (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("lora", rank)
    check_select("lora", select)
    number = scale_of("lora", rank, alpha, scale)
    random = _check_dropout(dropout)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("lora", key)
        chosen = selected("lora", params, select)
        found = resolve("lora", chosen, axes)
        check_leaves("lora", rank, chosen, found)
        trainable = {
            path: draw_pair(
                key, path, found[path].sizes(leaf.shape), rank, init, init_b
            )
            for path, leaf in chosen.items()
        }
        fixed = {p: {"scale": jnp.asarray(number, jnp.float32)} for p in chosen}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        leaves = _tree.leaves("lora", params)
        names = {"trainable": ("a", "b"), "fixed": ("scale",)}
        _check.check_state("lora", leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("lora", chosen, axes)
        if random:
            call = "apply(params, state, key=jax.random.key(0))"
            _check.check_key("lora: dropout needs a key", key, call)
        new: dict[Path, Operator] = {}
        for path, w in chosen.items():
            own, dims = state.trainable[path], found[path]
            values = {
                "w": w,
                "a": own["a"],
                "b": own["b"],
                "scale": state.fixed[path]["scale"],
                "a_dims": dims.a_dims,
                "b_dims": dims.b_dims,
            }
            new[path] = LowRank._make(**values)
            if random:
                mine = _tree.leaf_key(jnp.asarray(key), path)
                rate = jnp.asarray(dropout, jnp.float32)
                new[path] = DropoutLowRank._make(**values, key=mine, rate=rate)
        _check.check_operators("lora", new)
        return _tree.replace("lora", params, new)

    return Transform(start, apply)


def _check_dropout(dropout: Any) -> bool:
    """Whether there is any dropout; a traced rate counts as some."""
    if isinstance(dropout, (int, float)) and not 0 <= dropout < 1:
        raise ValueError(f"lora: dropout must lie in [0, 1), got {dropout}.")
    return not (isinstance(dropout, (int, float)) and dropout == 0)
