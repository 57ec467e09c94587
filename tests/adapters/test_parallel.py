"""`parallel`: the equations, gradients, what it holds of LoRA, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import filled, numbers
from tests.reference import bottleneck as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
NAMES = ("down", "up", "down_bias", "up_bias")
PARAMS = {"w": jnp.asarray(numbers(2, 6, 5))}
X = jnp.asarray(numbers(4, 7, 6))


def model(params, x):
    return x @ params["w"]


def test_value_and_gradients_follow_the_equations():
    tx = lrk.parallel(2, scale=4.0)
    state = filled(tx, PARAMS)
    own = [state.trainable["w"][n] for n in NAMES]

    def by_lift(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        out = lrk.lift(model)(adapted, X)
        return jnp.sum(out**2), out

    def by_hand(trainable):
        own = trainable["w"]
        inner = jax.nn.relu(X @ own["down"] + own["down_bias"][None])
        outer = inner @ own["up"] + own["up_bias"][None]
        return jnp.sum((X @ PARAMS["w"] + 4.0 * outer) ** 2)

    @jax.jit
    def both(trainable):
        got, out = jax.grad(by_lift, has_aux=True)(trainable)
        return out, got, jax.grad(by_hand)(trainable)

    out, got, want = both(state.trainable)
    assert_close(out, reference.parallel(X, PARAMS["w"], own, 4.0).astype(np.float32))
    assert_close(got, want)


def test_without_a_nonlinearity_it_is_lora():
    tx = lrk.parallel(2, scale=3.0, activation=jnp.asarray)
    state = filled(tx, PARAMS)
    own = state.trainable["w"]
    own = own | {"down_bias": jnp.zeros(2), "up_bias": jnp.zeros(5)}
    adapted = tx.apply(PARAMS, state._replace(trainable={"w": own}))
    low = {"w": lrk.LowRank(PARAMS["w"], own["down"], own["up"], 3.0)}
    got, want = jax.jit(lambda *ws: [lrk.lift(model)(w, X) for w in ws])(adapted, low)
    assert_close(got, want)


def test_what_is_trained():
    state = lrk.parallel(2).init(KEY, PARAMS)
    own = state.trainable["w"]
    assert own["down"].shape == (6, 2)
    assert [n for n in NAMES if own[n].any()] == ["down"]
    assert lrk.count(state) == (6 * 2 + 2 * 5 + 2 + 5, 0)


def test_says_who_refuses():
    with pytest.raises(ValueError, match="parallel: rank must be at least 1, got 0"):
        lrk.parallel(0)
    with pytest.raises(ValueError, match="parallel: the selection matches none"):
        lrk.parallel(2, select=lrk.matching("kernel")).init(KEY, PARAMS)
