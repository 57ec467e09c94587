"""LoRA+ and LoRA-FA as Optax transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank import training
from tests.network import numbers
from tests.reference import lora_fa as reference
from tests.tolerances import assert_close
from tests.training.small import PARAMS, TX, batches, loss, row, states

A, G = numbers(1, 6, 2), numbers(2, 6, 4)
IDENTITY = optax.identity()


def leaf(a, b, scale=2.0, **fixed):
    """Trainable and fixed parts of one leaf."""
    return {"w": {"a": a, "b": b}}, {"w": {"scale": jnp.float32(scale), **fixed}}


def update(optimizer, updates, params, fixed):
    def run(updates, params, fixed):
        return optimizer.update(updates, optimizer.init(params), params, fixed=fixed)[0]

    return jax.jit(run)(updates, params, fixed)


def test_lora_plus_is_a_rate_for_each_factor():
    trainable = states().trainable
    grads = jax.tree.map(lambda x: x + 1, trainable)
    plus = optax.chain(optax.adamw(1e-2), training.lora_plus(8.0))
    apart = optax.partition(
        {"a": optax.adamw(1e-2), "b": optax.adamw(8e-2), "d": optax.adamw(1e-2)},
        training.leaf_names,
    )
    got, want = (
        jax.jit(lambda g, p, o=o: o.update(g, o.init(p), p)[0])(grads, trainable)
        for o in (plus, apart)
    )
    assert_close(got, want)
    assert jax.tree.leaves(training.leaf_names(trainable)) == ["a", "b", "d"]
    with pytest.raises(ValueError, match="lora_plus: ratio must be above 0, got 0"):
        training.lora_plus(0)


def test_the_corrected_gradient_is_that_of_the_paper_and_nearest_to_the_full_one():
    scale = 2.0
    params, fixed = leaf(A, numbers(3, 2, 4), scale)
    grads, _ = leaf(numbers(4, 6, 2), scale * A.T @ G)
    got = update(training.lora_fa(IDENTITY), grads, params, fixed)["w"]
    assert (np.asarray(got["a"]) == 0).all()
    want = reference.corrected(grads["w"]["b"].T, A.T, scale).T
    assert_close(got["b"], want.astype("f4"))
    assert_close(got["b"], reference.nearest(G.T, A.T, scale).T.astype("f4"))


def test_columns_that_padding_added_stay_without_effect():
    a, b = np.pad(A, ((0, 0), (0, 3))), np.pad(A.T @ G, ((0, 3), (0, 0)))
    params, fixed = leaf(a, b)
    got = update(training.lora_fa(IDENTITY), params, params, fixed)["w"]["b"]
    assert_close(got[:2], reference.corrected((A.T @ G).T, A.T, 2.0).T.astype("f4"))
    assert (np.asarray(got[2:]) == 0).all()


def test_axes_say_which_axes_are_a_stack():
    axes = {"w": lrk.Axes((0,), (1,), (2, 3))}
    a, b = numbers(1, 3, 6, 2), numbers(2, 3, 2, 2, 2)
    optimizer = training.lora_fa(IDENTITY, axes=axes)
    fixed = {"w": {"scale": jnp.asarray([1.0, 2.0, 3.0]), "a": a}}
    got = update(optimizer, {"w": {"b": b}}, {"w": {"b": b}}, fixed)["w"]["b"]
    for i in range(3):
        want = reference.corrected(b[i].reshape(2, 4).T, a[i].T, 1.0 + i).T
        assert_close(got[i].reshape(2, 4), want.astype("f4"))
    with pytest.raises(ValueError, match="training.lora_fa: cannot adapt 'w'.*needs 2"):
        update(training.lora_fa(IDENTITY), {"w": {"b": b}}, {"w": {"b": b}}, fixed)


def test_a_step_gives_what_the_correction_needs_and_lora_becomes_lori():
    state, batch = states(), batches(1)[0]
    optimizer = training.lora_fa(optax.sgd(0.1))
    step = training.step(loss, TX, optimizer)
    given, carry = step.init(state, steps=1)
    got = jax.jit(step.update)(PARAMS, given, carry, batch)[0].trainable[0]["w"]
    assert_close(got["a"], state.trainable[0]["w"]["a"])
    own = state.trainable[0]["w"]
    tx = lrk.lori(2, alpha=4)
    frozen = {"w": {"a": own["a"], "scale": state.fixed[0]["w"]["scale"]}}
    lori = lrk.State({"w": {"b": own["b"]}}, frozen)
    bias = state.trainable[1]["bias"]["d"]

    def at_bias(params, batch, key):
        x, y, b = batch
        return loss({"w": params["w"], "bias": b}, (x, y), key)

    step = training.step(at_bias, tx, optimizer)
    given, carry = step.init(lori, steps=1)
    also = jax.jit(step.update)({"w": PARAMS["w"]}, given, carry, (*batch, bias))[0]
    assert_close(also.trainable["w"]["b"], got["b"])
    assert not np.allclose(row(got, 0)["b"], row(own, 0)["b"])


def test_nothing_that_the_optimiser_does_moves_a():
    params, fixed = leaf(A, numbers(3, 2, 4))
    optimizer = training.lora_fa(optax.adamw(0.1, weight_decay=0.5))
    got = update(optimizer, params, params, fixed)["w"]
    assert (np.asarray(got["a"]) == 0).all()
    assert (np.asarray(got["b"]) != 0).all()


@pytest.mark.parametrize("fixed", [{"seed": np.zeros(2)}, {"a": A, "index": A}])
def test_a_factor_that_is_not_there_is_refused(fixed):
    own, b = {"w": {"scale": np.float32(1), **fixed}}, {"w": {"b": numbers(1, 2, 4)}}
    with pytest.raises(ValueError, match="lora_fa: cannot correct the gradient at 'w'"):
        update(training.lora_fa(IDENTITY), b, b, own)


def test_the_correction_refuses_to_be_used_without_its_arguments():
    optimizer, (grads, _) = training.lora_fa(IDENTITY), leaf(A, A.T @ G)
    with pytest.raises(ValueError, match="lora_fa: needs params and fixed. Call opt"):
        optimizer.update(grads, optimizer.init(grads), grads)
    with pytest.raises(ValueError, match="lora_fa: damping must be at least 0"):
        training.lora_fa(IDENTITY, damping=-1.0)
