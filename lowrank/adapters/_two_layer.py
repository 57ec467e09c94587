"""What the serial and the parallel adapter share: a small network for each leaf."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform, is_floating
from lowrank._select import Select, check_select, selected
from lowrank.adapters._lora import Initializer, check_rank, draw_factor, scale_of
from lowrank.operators import Bottleneck

NAMES = ("down", "up", "down_bias", "up_bias")


def draw_network(
    key: Array,
    sizes: Axes,
    read: tuple[int, ...],
    rank: int,
    init: Initializer,
    init_up: Initializer,
) -> dict[str, Array]:
    """`down: [*stack, *read, r]`, `up: [*stack, r, *out]`, and biases of zeros."""
    for_down, for_up = jax.random.split(key)
    stack, outputs = sizes.stack, sizes.outputs
    down = draw_factor(init, for_down, stack, math.prod(read), rank)
    up = draw_factor(init_up, for_up, stack, rank, math.prod(outputs))
    return {
        "down": down.reshape(*stack, *read, rank),
        "up": up.reshape(*stack, rank, *outputs),
        "down_bias": jnp.zeros((*stack, rank)),
        "up_bias": jnp.zeros((*stack, *outputs)),
    }


def two_layer(
    who: str,
    operator: type[Bottleneck],
    rank: int,
    *,
    read: Callable[[Axes], tuple[int, ...]],
    activation: Callable[[Array], Array],
    scale: Any,
    select: Select,
    axes: Mapping[Path, Axes] | None,
    init: Initializer,
    init_up: Initializer,
) -> Transform:
    """A transform that puts an operator with a two-layer network at each leaf.

    Raises:
        TypeError: If `rank` is no int, `scale` no number or `activation` no function.
        ValueError: If `rank < 1`.
    """
    rank = check_rank(who, rank)
    check_select(who, select)
    number = scale_of(who, rank, None, scale)
    if not callable(activation):
        raise TypeError(
            f"{who}: activation must be a function of arrays, got {activation!r}. Pass "
            "jax.nn.relu."
        )

    def start(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        chosen = selected(who, params, select)
        found = resolve(who, chosen, axes)
        check_floating(who, chosen)
        trainable = {}
        for path, leaf in chosen.items():
            sizes = found[path].sizes(leaf.shape)
            mine = _tree.leaf_key(key, path)
            own = draw_network(mine, sizes, read(sizes), rank, init, init_up)
            trainable[path] = own
        fixed = {p: {"scale": jnp.asarray(number, jnp.float32)} for p in chosen}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(who, params)
        _check.check_state(who, leaves, state, trainable=NAMES, fixed=("scale",))
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve(who, chosen, axes)
        new = {}
        for path, w in chosen.items():
            own, dims = state.trainable[path], found[path]
            new[path] = operator._make(
                w=w,
                **{name: own[name] for name in NAMES},
                scale=state.fixed[path]["scale"],
                activation=activation,
                a_dims=dims.a_dims,
                b_dims=dims.b_dims,
            )
        _check.check_operators(who, new)
        return _tree.replace(who, params, new)

    return Transform(start, apply)


def check_floating(who: str, chosen: Mapping[Path, Any]) -> None:
    """Refuse leaves that are not floating.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [_tree.describe(p, x) for p, x in chosen.items() if not is_floating(x)]
    if bad:
        raise ValueError(
            f"{who}: cannot adapt {', '.join(bad)}: not floating. Leave them out with "
            "select=."
        )
