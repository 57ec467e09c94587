"""HaLoRA: the norm penalty, and chips that change every few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import corrections as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

OWN = {
    "one": {"a": jnp.asarray(numbers(1, 5, 2)), "b": jnp.asarray(numbers(2, 2, 4))},
    "two": {"a": jnp.asarray(numbers(3, 3, 2)), "b": jnp.asarray(numbers(4, 2, 3))},
}


def expected(trainable):
    """By the paper's layout: both factors transposed."""
    return reference.spectral_penalty(
        (np.asarray(x["a"], np.float64).T, np.asarray(x["b"], np.float64).T)
        for x in trainable.values()
    )


def test_the_penalty_is_the_papers():
    got = lrk.rram.adapter_norm_penalty(OWN)
    assert_close(got, np.float32(expected(OWN)))
    in_a_chain = ({}, OWN, {"bias": {"d": jnp.ones(3)}})
    assert_close(lrk.rram.adapter_norm_penalty(in_a_chain), got)


def test_its_gradient_is_that_of_the_largest_singular_value():
    grads = jax.grad(lrk.rram.adapter_norm_penalty)(OWN)
    u, s, vt = np.linalg.svd(np.asarray(OWN["one"]["a"], np.float64))
    want = 2 * s[0] * np.outer(u[:, 0], vt[0])
    assert_close(grads["one"]["a"], want.astype(np.float32))


def test_its_gradient_is_finite_at_init():
    start = {"w": {"a": OWN["one"]["a"], "b": jnp.zeros((2, 4))}}
    grads = jax.grad(lrk.rram.adapter_norm_penalty)(start)
    assert_close(grads["w"]["b"], np.zeros((2, 4), np.float32))
    assert np.isfinite(grads["w"]["a"]).all()


def test_stacks_and_many_axes():
    params = {"w": jnp.asarray(numbers(5, 3, 2, 2, 4))}
    axes = {"w": lrk.Axes((0,), (1, 2), (3,))}
    tx = lrk.lora(
        2, axes=axes, select=lrk.matching("w"), init_b=jax.nn.initializers.ones
    )
    trainable = tx.init(jax.random.key(0), params).trainable
    each = {
        i: {"a": a.reshape(4, 2), "b": b}
        for i, (a, b) in enumerate(zip(*trainable["w"].values(), strict=True))
    }
    got = lrk.rram.adapter_norm_penalty(trainable, axes=axes)
    assert_close(got, np.float32(expected(each)))


def test_a_frozen_factor_does_not_count():
    b = {"w": {"b": OWN["one"]["b"]}}
    want = np.linalg.norm(np.asarray(OWN["one"]["b"], np.float64), 2) ** 2
    assert_close(lrk.rram.adapter_norm_penalty(b), np.float32(want))


def test_a_chip_lasts_so_many_steps():
    key = jax.random.key(3)
    run = jax.jit(lambda step: jax.random.key_data(lrk.rram.chip_key(key, step, 3)))
    keys = [tuple(run(step).tolist()) for step in range(7)]
    assert keys[0] == keys[2] != keys[3] == keys[5] != keys[6]
    assert len(set(keys)) == 3
    direct = jax.random.key_data(lrk.rram.chip_key(key, 4, 3))
    assert tuple(direct.tolist()) == keys[4]


def test_one_step_of_halora():
    params = {"w": jnp.asarray(numbers(6, 6, 4))}
    device = lrk.rram.Device(write=lrk.rram.Additive(0.05))
    analog, digital = lrk.rram.crossbar(device), lrk.lora(2)
    tx = lrk.chain(analog, digital)
    key, x = jax.random.key(0), jnp.asarray(numbers(7, 5, 6))
    state = tx.init(key, params)

    @jax.jit
    def grads(trainable, step):
        chip = analog.init(lrk.rram.chip_key(key, step, 2), params)

        def loss(trainable):
            fixed = (chip.fixed, state.fixed[1])
            adapted = tx.apply(params, lrk.State(trainable, fixed))
            task = jnp.square(lrk.lift(jnp.matmul)(x, adapted["w"])).mean()
            return task + 0.1 * lrk.rram.adapter_norm_penalty(trainable)

        return jax.grad(loss)(trainable)[1]["w"]["b"]

    found = [np.asarray(grads(state.trainable, step)) for step in (0, 1, 2)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_messages():
    with pytest.raises(ValueError, match="no leaf has 'a' or 'b'"):
        lrk.rram.adapter_norm_penalty({"w": {"d": jnp.ones(3)}})
    stack = {"w": {"a": jnp.ones((2, 3, 1)), "b": jnp.ones((5,))}}
    match = r"no matrix at 'w/a' of shape \(2, 3, 1\), 'w/b' of shape \(5,\)"
    with pytest.raises(ValueError, match=match):
        lrk.rram.adapter_norm_penalty(stack)
    axes = {"w": lrk.Axes((), (0,), (1,))}
    with pytest.raises(ValueError, match="no matrix at 'w/a'"):
        lrk.rram.adapter_norm_penalty(stack, axes=axes)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        lrk.rram.chip_key(jax.random.key(0), 1, 0)
    with untyped(), pytest.raises(TypeError, match=r"every must be an int, got 2\.0"):
        lrk.rram.chip_key(jax.random.key(0), 1, 2.0)
    with untyped(), pytest.raises(TypeError, match="chip_key: expected one random key"):
        lrk.rram.chip_key(0, 1, 2)
