"""Transforms work on parameters that are spread over a mesh, without special care."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowrank as lrk
from tests import network
from tests.tolerances import assert_close


def numbers(seed, *shape):
    return jnp.asarray(network.numbers(seed, *shape))


MESH = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
SPLIT = NamedSharding(MESH, PartitionSpec(None, "model"))
PLAIN = {"kernel": numbers(1, 4, 6)}
PARAMS = {"kernel": jax.device_put(PLAIN["kernel"], SPLIT)}
X = numbers(2, 5, 4)


def model(params, x):
    return jnp.tanh(x @ params["kernel"])


def test_init_and_apply_take_a_sharded_base():
    tx = lrk.chain(lrk.lora(2, init_b=jax.nn.initializers.ones), lrk.lori(2))
    state = jax.jit(tx.init)(jax.random.key(0), PARAMS)
    assert_close(state, tx.init(jax.random.key(0), PLAIN))
    adapted = tx.apply(PARAMS, state)
    assert lrk.base(adapted)["kernel"] is PARAMS["kernel"]
    dense = jax.jit(lambda s: lrk.materialize(tx.apply(PARAMS, s)))(state)
    assert_close(dense, lrk.materialize(tx.apply(PLAIN, state)))


def test_a_lifted_step_keeps_the_base_where_it_is():
    tx = lrk.lora(2, init_b=jax.nn.initializers.ones)
    state = tx.init(jax.random.key(0), PARAMS)

    @jax.jit
    def grads(params, trainable):
        def loss(trainable):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            return lrk.lift(model)(adapted, X).sum()

        return jax.grad(loss)(trainable)

    assert_close(grads(PARAMS, state.trainable), grads(PLAIN, state.trainable))
    text = grads.lower(PARAMS, state.trainable).compile().as_text()
    assert "f32[4,3]" in text  # half of the kernel on each device
    assert "f32[4,6]" not in text  # and never the whole


def test_sharded_states_stack_and_map():
    tx = lrk.lora(2)
    states = [tx.init(jax.random.key(i), PARAMS) for i in range(2)]
    tasks = NamedSharding(MESH, PartitionSpec("model"))
    stacked = jax.device_put(lrk.stack(states), tasks)

    def run(state):
        return lrk.lift(model)(tx.apply(PARAMS, state), X)

    out = jax.jit(jax.vmap(run))(stacked)
    np.testing.assert_allclose(out[1], run(states[1]), rtol=1e-5)
