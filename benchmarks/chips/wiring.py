"""ITT on a chip: rows on other rows, columns turned, and the training for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lowrank as lrk
from benchmarks.chips import methods, points
from benchmarks.chips.inputs import Inputs, Options
from benchmarks.chips.nets import Net
from benchmarks.chips.points import Fault
from lowrank import rram


class Wiring(NamedTuple):
    """A chip with its wiring.

    Attributes:
        transform: From weights to deployed weights.
        state: Its state.
        seat: From weights to what lies on the crossbar, row by row.
    """

    transform: lrk.Transform
    state: lrk.State
    seat: Callable[[Any], Any]

    def deploy(self, params: Any) -> Any:
        """What weights become."""
        return self.transform.apply(params, self.state)


def wired(net: Net, fault: Fault, inputs: Inputs, chip: lrk.State, rows: Any) -> Wiring:
    """The chip with its rows on other rows, and columns turned where it helps."""
    axes, params = net.axes, inputs.params
    permuted = rram.permute(rows, axes=axes)
    state = permuted.init(jax.random.key(0), params)
    weight = permuted.apply(dict(inputs.importance), state)
    met = permuted.apply(params, state)
    signs = rram.choose_flips(met, chip, rram.OneSided(), weight, axes=axes)
    turned = rram.flip(signs, axes=axes)

    def seat(params: Any) -> Any:
        own = permuted.apply(params, state)
        return turned.apply(own, turned.init(jax.random.key(0), own))

    placed = rram.placed(fault.device(), rows, signs, select=methods.kernels, axes=axes)
    return Wiring(placed.transform, placed.state(params, chip), seat)


def itt(
    net: Net,
    options: Options,
    loss: Callable[..., jax.Array],
    inputs: Inputs,
    wiring: Wiring,
    chosen: Any,
    optimizer: Any,
) -> Any:
    """ITT's training: by the map, reduce and freeze, and a penalty on what is wrong."""
    told = {"select": methods.kernels, "axes": net.axes}
    start = rram.compensated(inputs.params, wiring.deploy, **told)
    bad = rram.afflicted(inputs.params, wiring.deploy(start), tolerance=0.05, **told)
    count = sum(jnp.sum(hit, dtype=jnp.float32) for hit in bad.values())
    return rram.itt_train(
        loss,
        inputs.params,
        wiring.transform,
        wiring.state,
        chosen,
        optimizer,
        importance=inputs.importance,
        per_step=options.freeze * count / len(chosen),
        penalty=options.penalty,
        **told,
    ).params


def written(net: Net, before: Any, after: Any) -> jax.Array:
    """How many cells change their level from one programming to another."""
    total = jnp.zeros((), jnp.int32)
    for path, size in methods.sides(net).items():
        one, two = (
            _levels(methods.leaf_at(tree, path).reshape(size))
            for tree in (before, after)
        )
        total = total + jnp.sum(one != two, dtype=jnp.int32)
    return total


def _levels(matrix: jax.Array) -> jax.Array:
    """The level of each cell of one-sided pairs, `[2, rows, cols]`."""
    scale = jnp.max(jnp.abs(matrix), axis=0, keepdims=True)
    x = matrix / jnp.where(scale > 0, scale, 1.0)
    pair = jnp.stack(rram.OneSided().targets(x))
    return jnp.round(pair * (points.LEVELS - 1)).astype(jnp.int32)
