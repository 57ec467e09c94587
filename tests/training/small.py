"""The net, the adapters and the data that the tests of training share."""

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


def states(count=3, tx=TX):
    """States whose `B` is not zero, so that every gradient is there."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))
    stacked = jax.jit(jax.vmap(lambda k: tx.init(k, PARAMS)))(keys(jnp.arange(count)))
    shift = np.float32(0.1)
    return stacked._replace(
        trainable=jax.tree.map(lambda x: x + shift, stacked.trainable)
    )


def batches(number=STEPS, count=3, size=5):
    """For each step the examples of every adapter, as NumPy arrays."""
    return [
        (numbers(10 + i, count, size, 6), numbers(50 + i, count, size, 4))
        for i in range(number)
    ]


def by_hand(state, data, optimizer, tx=TX):
    """One adapter trained in a plain loop: its trainable part, and the losses."""
    memory, trainable, losses = optimizer.init(state.trainable), state.trainable, []

    @jax.jit
    def one(trainable, memory, batch):
        def own(trainable):
            adapted = tx.apply(PARAMS, lrk.State(trainable, state.fixed))
            return loss(lrk.materialize(adapted), batch, None)[0]

        value, slope = jax.value_and_grad(own)(trainable)
        change, memory = optimizer.update(slope, memory, trainable)
        return optax.apply_updates(trainable, change), memory, value

    for batch in data:
        trainable, memory, value = one(trainable, memory, batch)
        losses.append(float(value))
    return trainable, losses


def row(tree, i):
    """What a stacked tree holds of one adapter."""
    return jax.tree.map(lambda x: np.asarray(x)[i], tree)
