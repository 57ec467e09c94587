"""`lora_xs`: equations, axes, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import lora_xs as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(1, 6, 4))}


def f32(array):
    return np.asarray(array, np.float32)


def test_weight_and_gradient_follow_the_equations():
    tx = lrk.lora_xs(3, alpha=2)
    state = jax.jit(tx.init)(KEY, PARAMS)
    # What is diagonal does not see the signs of the singular vectors.
    r = jnp.diag(jnp.asarray(numbers(2, 3)))
    x, g = jnp.asarray(numbers(3, 7, 6)), jnp.asarray(numbers(4, 7, 4))

    def objective(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return jnp.sum(lrk.lift(jnp.matmul)(x, adapted["w"]) * g), adapted

    grad = jax.jit(jax.grad(objective, has_aux=True))
    grads, adapted = grad({"w": {"r": r}})
    want = f32(reference.weight(PARAMS["w"], r, 2 / 3))
    assert_close(lrk.materialize(adapted)["w"], want)
    fixed = state.fixed["w"]
    slope = reference.gradient(fixed["a"], fixed["b"], x, g, 2 / 3)
    assert_close(grads["w"]["r"], f32(slope))
    assert_close(fixed["b"] @ fixed["b"].T, jnp.eye(3))


def test_axes_say_which_matrix_is_taken_apart():
    axes = {"w": lrk.Axes((0,), (2,), (1, 3))}
    params = {"w": jnp.asarray(numbers(5, 2, 2, 6, 2))}
    normal = jax.nn.initializers.normal(1e-5)
    tx = lrk.lora_xs(3, axes=axes, select=lrk.matching("w"), init=normal)
    state = jax.jit(tx.init)(KEY, params)
    shapes = jax.tree.map(jnp.shape, (state.trainable["w"], state.fixed["w"]))
    own = {"a": (2, 6, 3), "b": (2, 3, 2, 2), "scale": ()}
    assert shapes == ({"r": (2, 3, 3)}, own)
    drawn = state.trainable["w"]["r"]
    assert 0 < float(jnp.abs(drawn).max()) < 1e-4
    eyes = jnp.broadcast_to(jnp.eye(3), (2, 3, 3))
    state = state._replace(trainable={"w": {"r": eyes}})
    formed = np.asarray(lrk.materialize(tx.apply(params, state))["w"])
    change = (formed - np.asarray(params["w"]))[1]
    w = np.swapaxes(np.asarray(params["w"][1], np.float64), 0, 1).reshape(6, 4)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    want = np.swapaxes((u[:, :3] * s[:3] @ vt[:3]).reshape(6, 2, 2), 0, 1)
    assert_close(change, f32(want))


def test_refuses_what_cannot_be_adapted():
    with pytest.raises(ValueError, match="lora_xs: rank must be at least 1, got 0"):
        lrk.lora_xs(0)
    with pytest.raises(ValueError, match="lora_xs: got both alpha and scale"):
        lrk.lora_xs(2, alpha=1, scale=1)
    with pytest.raises(ValueError, match=r"lora_xs: cannot adapt 'w' .*rank 5 exceeds"):
        lrk.lora_xs(5).init(KEY, PARAMS)
    behind = lrk.chain(lrk.hydra(2, 2), lrk.lora_xs(2))
    with pytest.raises(ValueError, match=r"lora_xs: no weight to start from at 'w'"):
        jax.eval_shape(behind.init, KEY, PARAMS)
    with pytest.raises(ValueError, match="lora_xs: .*'w' lacks trainable 'r'"):
        lrk.lora_xs(2).apply(PARAMS, lrk.lora(2).init(KEY, PARAMS))
