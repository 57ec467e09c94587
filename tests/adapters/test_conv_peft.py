"""Convolutions under LoHa, LoKr, DoRA and (IA)^3 agree with PEFT's."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from lowrank.operators import Factored
from tests.adapters.peft_layers import assert_agrees, conv, kernel, layer

KEY = jax.random.key(0)
SELECT = lrk.matching("w")
AXES = {"w": lrk.Axes((), (0, 1, 2), (3,))}  # what trace_axes reads off a convolution
FEATURES = {"w": lrk.Axes((), (2,), (0, 1, 3))}  # one factor for each input feature


def places(rows):
    """Torch's `[r, in * 3 * 3]` with the places in front, `[3, 3, in, r]`."""
    return kernel(rows.reshape(len(rows), -1, 3, 3))


def case(name):
    """The arrays, and what gives a stored array, or its gradient, in our layout."""
    own = layer(name)
    read = {
        "conv_loha": lambda kind: {
            "a1": places(own[kind + "hada_w1_b"]),
            "b1": own[kind + "hada_w1_a"].T,
            "a2": places(own[kind + "hada_w2_b"]),
            "b2": own[kind + "hada_w2_a"].T,
        },
        "conv_lokr": lambda kind: {
            "c": own[kind + "lokr_w1"].T,
            "a": places(own[kind + "lokr_w2_b"]),
            "b": own[kind + "lokr_w2_a"].T,
        },
        "conv_dora": lambda kind: (
            {
                "a": kernel(own[kind + "lora_A"]),
                "b": own[kind + "lora_B"][..., 0, 0].T,
            },
            {"m": own[kind + "lora_magnitude_vector"].ravel()},
        ),
    }
    parts = read.get(name, lambda kind: {"l": own[kind + "ia3_l"].ravel()})
    return own, *(jax.tree.map(jnp.asarray, parts(kind)) for kind in ("", "grad_"))


def agrees(name, tx):
    own, values, grads = case(name)
    state = tx.init(KEY, {"w": jnp.asarray(kernel(own["w"]))})
    members = isinstance(values, tuple)
    trainable = tuple({"w": v} for v in values) if members else {"w": values}
    assert jax.tree.map(jnp.shape, trainable) == jax.tree.map(
        jnp.shape, state.trainable
    )
    assert_agrees(tx, state._replace(trainable=trainable), own, grads, conv)


def test_loha():
    agrees("conv_loha", lrk.loha(2, alpha=3, select=SELECT, axes=AXES))


def test_lokr():
    tx = lrk.lokr(2, alpha=3, select=SELECT, axes=AXES)
    agrees("conv_lokr", tx)
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros((3, 3, 10, 12))})
    state = jax.eval_shape(tx.init, KEY, shapes)
    assert isinstance(jax.eval_shape(tx.apply, shapes, state)["w"], Factored)


def test_dora():
    agrees("conv_dora", lrk.dora(2, alpha=3, select=SELECT, axes=AXES))


@pytest.mark.parametrize(
    ("name", "tx"),
    [
        ("conv_outputs", lrk.rescale_outputs(select=SELECT, axes=AXES)),
        ("conv_inputs", lrk.rescale_inputs(select=SELECT, axes=FEATURES)),
    ],
)
def test_rescaled(name, tx):
    agrees(name, tx)


def test_a_factor_for_each_place_and_input_is_no_rescaled_image():
    params = {"w": jnp.ones((3, 3, 4, 6))}
    tx = lrk.rescale_inputs(select=SELECT, axes=AXES)
    state = tx.init(KEY, params)
    assert state.trainable["w"]["l"].shape == (3, 3, 4)
    with pytest.raises(TypeError, match="no factored form of .*Rescaled.* at conv_gen"):
        lrk.lift(conv)(jnp.ones((2, 4, 5, 5)), tx.apply(params, state)["w"])
