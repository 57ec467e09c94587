"""The training loop that all ways of a group share on one chip."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lowrank as lrk
from benchmarks.chips import methods
from benchmarks.chips.inputs import Inputs
from benchmarks.chips.nets import Net, loss


def stepped(
    net: Net,
    txs: Mapping[str, Any],
    starts: Mapping[str, lrk.State],
    masks: Mapping[str, Any],
    rates: Mapping[str, Any],
    inputs: Inputs,
    deployed: Any,
    chosen: Any,
) -> dict[str, Any]:
    """Adam with a falling rate, for all ways in one step."""
    x, y = inputs.train
    apply = lrk.lift(net.apply)
    adam, count = optax.scale_by_adam(), len(chosen)

    def total(trainable: Mapping[str, Any], index: Any) -> jax.Array:
        images, labels = x[index], y[index]
        losses = [
            loss(
                apply,
                txs[name].apply(deployed, starts[name]._replace(trainable=own)),
                images,
                labels,
            )
            for name, own in trainable.items()
        ]
        return sum(losses[1:], losses[0])

    def step(carry: Any, item: Any) -> tuple[Any, None]:
        (trainable, memory), (number, index) = carry, item
        grads = jax.grad(total)(trainable, index)
        for name, mask in masks.items():
            grads[name] = methods.masked(grads[name], mask)
        updates, memory = adam.update(grads, memory)
        left = 0.5 * (1 + jnp.cos(jnp.pi * number / count))
        moved = _moved(trainable, updates, rates, left)
        return (moved, memory), None

    first = {name: state.trainable for name, state in starts.items()}
    (last, _), _ = jax.lax.scan(
        step, (first, adam.init(first)), (jnp.arange(count), chosen)
    )
    return last


def _moved(trainable: Any, updates: Any, rates: Mapping[str, Any], left: Any) -> Any:
    """Every way's numbers after an update, at the way's own rate."""
    return {
        name: jax.tree.map(lambda w, u, r=rates[name]: w - r * left * u, own, change)
        for (name, own), change in zip(
            trainable.items(), (updates[name] for name in trainable), strict=True
        )
    }
