"""`lokr`: the equation, PEFT's numbers, convolutions, messages."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lowrank as lrk
from lowrank.adapters._lokr import split_size
from lowrank.operators import Factored
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.reference import lokr as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)


def test_agrees_with_peft_and_with_the_equation():
    own = layer("lokr")
    w1, w2a, w2b = (own[f"lokr_{n}"] for n in ("w1", "w2_a", "w2_b"))
    want = reference.weight(own["w"], w1, w2a, w2b, 1.5)
    assert_close(own["merged"], want.astype("f4"))
    tx, params = lrk.lokr(2, alpha=3), {"w": jnp.asarray(own["w"].T)}
    state = tx.init(KEY, params)
    names = {"c": "w1", "a": "w2_b", "b": "w2_a"}
    values = {n: jnp.asarray(own["lokr_" + torch].T) for n, torch in names.items()}
    grads = {n: jnp.asarray(own["grad_lokr_" + torch].T) for n, torch in names.items()}
    state = state._replace(trainable={"w": values})
    assert isinstance(tx.apply(params, state)["w"], Factored)
    assert_agrees(tx, state, own, grads)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_convolution_runs_on_the_two_matrices(groups):
    params = {"w": jnp.asarray(numbers(1, 3, 3, 4, 6))}
    axes = {"w": lrk.Axes((), (0, 1, 2), (3,))}
    tx = lrk.lokr(1, select=lrk.matching("w"), axes=axes)
    state = tx.init(KEY, params)
    moved = jax.tree.map(lambda x: x + jnp.asarray(numbers(2, *x.shape)), state)
    x = jnp.asarray(numbers(3, 2, 5, 5, 4 * groups))

    def run(w, x):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    @jax.jit
    def both(state):
        op = tx.apply(params, state)["w"]
        return lrk.lift(run)(op, x), run(op.dense(), x)

    assert_close(*both(moved))


def test_sizes_are_split_as_lycoris_splits_them():
    sizes = [(256, None), (128, None), (127, None), (128, 4), (12, 5), (12, 6)]
    want = [(16, 16), (8, 16), (1, 127), (4, 32), (3, 4), (6, 2)]
    assert [split_size(*own) for own in sizes] == want


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="lokr: factor must be at least 1, got 0"):
        lrk.lokr(1, factor=0)
    with untyped(), pytest.raises(TypeError, match="lokr: factor must be an int"):
        lrk.lokr(1, factor=2.5)
    params = {"v": jnp.ones((4, 9)), "w": jnp.ones((4, 2, 3))}
    axes = {"w": lrk.Axes((), (0,), (1, 2))}
    tx = lrk.lokr(3, select=lrk.matching("."), axes=axes)
    message = r"lokr: .*'v' of shape \(4, 9\): rank 3 exceeds 2; 'w' .*one axis of out"
    with pytest.raises(ValueError, match=message):
        tx.init(KEY, params)
