"""`ia3` and its two sides: equations, PEFT's numbers, composition, messages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import ia3 as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {"v": jnp.asarray(numbers(1, 6, 5)), "w": jnp.asarray(numbers(2, 5, 4))}
GOLDEN = Path(__file__).parent.parent / "golden" / "ia3.npz"
SIDES = {"rescale_outputs": lrk.rescale_outputs, "rescale_inputs": lrk.rescale_inputs}
V, W = lrk.matching("v"), lrk.matching("w")


def f32(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def both():
    return lrk.ia3(outputs=V, inputs=W)


def test_agrees_with_peft():
    stored = np.load(GOLDEN)
    assert str(stored["provenance"]).startswith("peft 0.21.2")
    params = {n: jnp.asarray(f32(stored[n].T)) for n in "vw"}
    x, g, bias = (jnp.asarray(f32(stored[n])) for n in ("x", "g", "bias"))
    tx = both()
    state = tx.init(KEY, params)
    l_v, l_w = (jnp.asarray(f32(stored[n])) for n in ("l_v", "l_w"))
    trainable = ({"v": {"l": l_v}}, {"w": {"l": l_w}})

    def model(p, x):
        return jnp.tanh(x @ p["v"]) @ p["w"] + bias[None]

    def objective(trainable, x):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        y = lrk.lift(model)(adapted, x)
        return jnp.sum(y * g), (y, lrk.materialize(adapted))

    grad = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))
    (grads, of_x), (y, formed) = grad(trainable, x)
    assert_close((y, of_x), f32((stored["y"], stored["grad_x"])))
    assert_close(formed, {n: f32(stored[f"merged_{n}"].T) for n in "vw"})
    assert_close(grads[0]["v"]["l"], f32(stored["grad_v"]))
    assert_close(grads[1]["w"]["l"], f32(stored["grad_w"]))


def test_weights_follow_the_equations():
    tx = both()
    state = tx.init(KEY, PARAMS)
    assert_close(lrk.materialize(tx.apply(PARAMS, state)), PARAMS)
    l_v, l_w = jnp.asarray(numbers(3, 5)), jnp.asarray(numbers(4, 5))
    moved = state._replace(trainable=({"v": {"l": l_v}}, {"w": {"l": l_w}}))
    want = reference.outputs(PARAMS["v"], l_v), reference.inputs(PARAMS["w"], l_w)
    formed = lrk.materialize(tx.apply(PARAMS, moved))
    assert_close((formed["v"], formed["w"]), f32(want))


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        ("rescale_outputs", {"layers": (3, 4), "heads": (2, 2), "torch": (4,)}),
        ("rescale_inputs", {"layers": (3, 6), "heads": (6,), "torch": (6,)}),
    ],
)
def test_axes_say_which_side_is_which(side, sizes):
    shapes = {"layers": (3, 6, 4), "heads": (6, 2, 2), "torch": (4, 6)}
    params = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()}
    axes = {
        "layers": lrk.Axes((0,), (1,), (2,)),
        "heads": lrk.Axes((), (0,), (1, 2)),
        "torch": lrk.Axes((), (1,), (0,)),
    }
    tx = SIDES[side](select=lrk.matching("."), axes=axes)
    state = jax.eval_shape(tx.init, KEY, params)
    assert {p: leaf["l"].shape for p, leaf in state.trainable.items()} == sizes
    adapted = jax.eval_shape(tx.apply, params, state)
    assert {p: op.shape for p, op in adapted.items()} == shapes


def test_composes_on_both_sides_of_a_low_rank_term():
    x, one = jnp.asarray(numbers(5, 7, 6)), {"v": PARAMS["v"]}
    low, scale = lrk.lora(2, init_b=jax.nn.initializers.ones), SIDES["rescale_inputs"]
    for tx in (lrk.chain(low, scale(select=V)), lrk.chain(scale(select=V), low)):
        state = tx.init(KEY, one)
        parts = jax.tree.map(lambda y: y + 0.5, state.trainable)
        adapted = tx.apply(one, state._replace(trainable=parts))
        want = x @ lrk.materialize(adapted)["v"]
        assert_close(lrk.lift(jnp.matmul)(x, adapted["v"]), want)


def test_names_every_leaf_that_cannot_be_rescaled():
    params = {"bias": jnp.ones(3), "ids": jnp.ones((2, 2), int)}
    for name, side in SIDES.items():
        with pytest.raises(ValueError, match=rf"{name}: .*'bias' .*needs 2 axes"):
            side(select=lrk.matching(".")).init(KEY, params)
        with pytest.raises(ValueError, match=rf"{name}: .*'ids' .*not floating"):
            side(select=lrk.matching("ids")).init(KEY, params)
        with untyped(), pytest.raises(TypeError, match=f"{name}: select must be a"):
            side(select="kernel")


def test_refuses_states_that_do_not_fit():
    tx = lrk.rescale_outputs(select=V)
    with pytest.raises(ValueError, match="'v' lacks trainable 'l'"):
        tx.apply(PARAMS, lrk.full(select=V).init(KEY, PARAMS))
    wrong = lrk.State({"v": {"l": jnp.ones(6)}}, {})
    message = r"rescale_outputs: 'v': a factor of \(6,\) does not fit .*\(6, 5\)"
    with pytest.raises(ValueError, match=message):
        tx.apply(PARAMS, wrong)
