"""The net, the adapters and the data that the tests of training share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from tests.network import numbers

PARAMS = {"w": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.zeros(4)}
TX = lrk.chain(lrk.lora(2, alpha=4), lrk.full(select=lrk.matching("bias")))
RATES = np.asarray([0.3, 0.03, 0.003], np.float32)
STEPS = 4


def loss(params, batch, key):
    """Mean square error, and the mean prediction as a metric."""
    del key
    x, y = batch
    out = jnp.tanh(x @ params["w"] + params["bias"][None])
    return jnp.mean((out - y) ** 2), {"mean": out.mean()}


@functools.cache
def states(count=3, tx=TX):
    """States whose `B` is not zero, so that every gradient is there."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))
    stacked = jax.jit(jax.vmap(lambda k: tx.init(k, PARAMS)))(keys(jnp.arange(count)))
    moved = [jnp.asarray(np.asarray(x) + 0.1) for x in jax.tree.leaves(stacked[0])]
    treedef = jax.tree.structure(stacked.trainable)
    return stacked._replace(trainable=jax.tree.unflatten(treedef, moved))


def batches(number=STEPS, count=3, size=5):
    """For each step the examples of every adapter, as NumPy arrays."""
    return [
        (numbers(10 + i, count, size, 6), numbers(50 + i, count, size, 4))
        for i in range(number)
    ]


@functools.cache
def hand_step(tx, factory):
    """A step of one adapter as one writes it by hand, on formed weights."""

    def one(state, memory, batch, rate):
        def own(trainable):
            adapted = tx.apply(PARAMS, lrk.State(trainable, state.fixed))
            return loss(lrk.materialize(adapted), batch, None)[0]

        value, slope = jax.value_and_grad(own)(state.trainable)
        change, memory = factory(rate).update(slope, memory, state.trainable)
        trained = optax.apply_updates(state.trainable, change)
        return state._replace(trainable=trained), memory, value

    return jax.jit(one)


def by_hand(state, data, rate, factory=optax.adam, tx=TX):
    """One adapter trained in a plain loop: its trainable part, and the losses."""
    zero = jax.jit(lambda t: factory(1.0).init(t))
    memory, losses = zero(state.trainable), []
    for batch in data:
        state, memory, value = hand_step(tx, factory)(state, memory, batch, rate)
        losses.append(float(value))
    return state.trainable, losses


def row(tree, i):
    """What a stacked tree holds of one adapter."""
    return jax.tree.map(lambda x: np.asarray(x)[i], tree)
