"""`mtl_lora`: against the equations, one task's dense form, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import mtl_lora as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(2, 6, 5))}
X = jnp.asarray(numbers(4, 7, 6))
NAMES = ("a", "b", "task", "mix")


def moved(state, seed=9):
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [x + numbers(seed + i, *x.shape) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, new))


def run(tx, state, x=X):
    return lrk.lift(lambda p, x: x @ p["w"])(tx.apply(PARAMS, state), x)


@pytest.mark.parametrize("temperature", [0.4, 2.0])
@pytest.mark.parametrize(
    ("arguments", "scale"), [({"alpha": 3}, 1.5), ({"scale": 0.2}, 0.2)]
)
def test_forward_and_gradients_follow_the_equations(arguments, scale, temperature):
    g = numbers(8, 7, 5)
    tx = lrk.mtl_lora(2, 3, temperature=temperature, **arguments)
    state = moved(tx.init(KEY, PARAMS))

    def objective(trainable):
        out = run(tx, state._replace(trainable=trainable))
        return jnp.sum(out * g), out

    grads, out = jax.grad(objective, has_aux=True)(state.trainable)
    own = [state.trainable["w"][name] for name in NAMES]
    want = reference.forward(X, PARAMS["w"], *own, temperature, scale)
    assert_close(out, want.astype(np.float32))
    slopes = reference.gradients(X, *own, temperature, scale, g)
    for name, slope in zip(NAMES, slopes, strict=True):
        assert_close(grads["w"][name], slope.astype(np.float32))


def test_what_is_trained_and_drawn():
    state = lrk.mtl_lora(2, 3).init(KEY, PARAMS)
    own = state.trainable["w"]
    shapes = {n: x.shape for n, x in own.items()}
    assert shapes == {"a": (6, 2), "b": (3, 2, 5), "task": (2, 2), "mix": (3,)}
    np.testing.assert_array_equal(own["task"], np.eye(2))
    assert not own["b"].any()
    assert lrk.count(state) == (6 * 2 + 3 * 2 * 5 + 4 + 3, 0)
    drawn = [lrk.mtl_lora(2, 3).init(jax.random.key(i), PARAMS) for i in range(20)]
    mixes = jnp.stack([s.trainable["w"]["mix"] for s in drawn])
    assert 0.8 / 3**0.5 < float(jnp.abs(mixes).max()) <= 1 / 3**0.5


def test_heads_part_in_training():
    tx = lrk.mtl_lora(2, 3)
    state = tx.init(KEY, PARAMS)
    adam = optax.sgd(0.1)
    trainable, moments = state.trainable, adam.init(state.trainable)
    for _ in range(2):
        grads = jax.grad(
            lambda t: jnp.mean(jnp.sin(run(tx, state._replace(trainable=t))))
        )(trainable)
        updates, moments = adam.update(grads, moments)
        trainable = optax.apply_updates(trainable, updates)
    one, two, _ = trainable["w"]["b"]
    assert not np.allclose(one, two, rtol=0.01, atol=0)
    assert bool(grads["w"]["mix"].any())


def test_a_task_is_a_plain_low_rank_term():
    tx = lrk.mtl_lora(2, 3)
    adapted = tx.apply(PARAMS, moved(tx.init(KEY, PARAMS)))
    assert type(adapted["w"]) is lrk.LowRank
    assert adapted["w"].rank == 2
    merged = lrk.merging.concat([adapted, adapted])
    change = lrk.materialize(adapted)["w"] - PARAMS["w"]
    assert_close(lrk.materialize(merged)["w"], PARAMS["w"] + 2 * change)


def test_stacks_and_several_output_axes():
    params = {"w": jnp.asarray(numbers(2, 3, 6, 2, 4))}
    axes = {"w": lrk.Axes((0,), (1,), (2, 3))}
    tx = lrk.mtl_lora(2, 3, temperature=1, select=lrk.matching("w"), axes=axes)
    state = moved(tx.init(KEY, params))
    shapes = {n: x.shape for n, x in state.trainable["w"].items()}
    assert shapes["b"] == (3, 3, 2, 2, 4)
    assert (shapes["task"], shapes["mix"]) == ((3, 2, 2), (3, 3))
    new = lrk.materialize(tx.apply(params, state))["w"]
    for i in range(3):
        a, b, *own = (state.trainable["w"][name][i] for name in NAMES)
        want = reference.forward(
            np.eye(6), params["w"][i].reshape(6, 8), a, b.reshape(3, 2, 8), *own, 1, 1
        )
        assert_close(new[i].reshape(6, 8), want.astype(np.float32))


def test_temperature_may_be_swept_by_vmap():
    state = moved(lrk.mtl_lora(2, 3).init(KEY, PARAMS))
    swept = jax.vmap(lambda t: run(lrk.mtl_lora(2, 3, temperature=t), state))
    found = swept(jnp.array([0.3, 2.0]))
    assert_close(found[1], run(lrk.mtl_lora(2, 3, temperature=2.0), state))


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="mtl_lora: rank must be at least 1, got 0"):
        lrk.mtl_lora(0, 2)
    with pytest.raises(ValueError, match="mtl_lora: heads must be at least 1, got 0"):
        lrk.mtl_lora(2, 0)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        lrk.mtl_lora(2, 2, temperature=0)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got -1\.0"):
        lrk.mtl_lora(2, 2, temperature=np.float32(-1))
    for wrong in ("low", jnp.ones(2)):
        with untyped(), pytest.raises(TypeError, match="temperature must be a number"):
            lrk.mtl_lora(2, 2, temperature=wrong)


def test_refuses_a_state_of_another_transform():
    other = lrk.lora(2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="'w' lacks trainable 'task'; 'w' lacks"):
        lrk.mtl_lora(2, 2).apply(PARAMS, other)
