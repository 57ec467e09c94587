"""Adapters on RRAM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import rram
from tests.network import STACKED, numbers
from tests.untyped import untyped

KEY = jax.random.key(4)
DEVICE = rram.Device(p_lrs=0.2, p_hrs=0.1, levels=8)
LORA = lrk.lora(2, init_b=jax.nn.initializers.normal(0.5))


def params():
    return {"w": jnp.asarray(numbers(1, 6, 4))}


def test_both_factors_are_deployed_and_the_base_is_not():
    tx = lrk.chain(LORA, rram.factors(DEVICE, select=lrk.is_matrix))
    state = tx.init(KEY, params())
    plain = LORA.apply(params(), lrk.State(state.trainable[0], state.fixed[0]))["w"]
    op = tx.apply(params(), state)["w"]
    chip = state.fixed[1]["w"]
    for name in ("a", "b"):
        cells = {n[2:]: x for n, x in chip.items() if n.startswith(f"{name}/")}
        cells |= {n: x for n, x in chip.items() if "/" not in n}
        want = rram.deploy(getattr(plain, name), cells, DEVICE.scheme)
        np.testing.assert_allclose(getattr(op, name), want, rtol=1e-6)
        assert np.abs(np.asarray(want - getattr(plain, name))).max() > 0.01
    np.testing.assert_array_equal(op.w, params()["w"])


def test_an_ideal_device_changes_nothing_in_a_stack():
    tree = {"layers": {"kernel": jnp.asarray(numbers(1, 3, 4, 5))}}
    low = lrk.lora(2, select=lrk.matching("kernel"), axes=STACKED)
    tx = lrk.chain(low, rram.factors(rram.Device(), select=lrk.matching("kernel")))
    state = tx.init(KEY, tree)
    assert state.fixed[1]["layers/kernel"]["b/code"].shape == (3, 2, 2, 5)
    own = low.apply(tree, lrk.State(state.trainable[0], state.fixed[0]))
    got = tx.apply(tree, state)["layers"]["kernel"]
    np.testing.assert_allclose(got.a, own["layers"]["kernel"].a, atol=1e-6)


def test_base_and_adapter_on_chips_of_their_own():
    bar = rram.crossbar(DEVICE)
    tx = lrk.chain(bar, LORA, rram.factors(DEVICE, select=lrk.is_matrix))
    state = tx.init(KEY, params())
    op = tx.apply(params(), state)["w"]
    base = bar.apply(params(), lrk.State({}, state.fixed[0]))["w"]
    np.testing.assert_array_equal(op.w, base)
    x = jnp.asarray(numbers(3, 5, 6))
    y = lrk.lift(jnp.matmul)(x, op)
    np.testing.assert_allclose(y, x @ (base + op.a @ op.b * op.scale), atol=1e-5)


def test_gradients_reach_healthy_cells_of_both_factors():
    tx = lrk.chain(LORA, rram.factors(DEVICE, select=lrk.is_matrix))
    state = tx.init(KEY, params())

    def total(trainable):
        op = tx.apply(params(), state._replace(trainable=trainable))["w"]
        return (lrk.materialize({"w": op})["w"] ** 2).sum()

    got = jax.grad(total)(state.trainable)[0]["w"]
    for name in ("a", "b"):
        value, code = state.trainable[0]["w"][name], state.fixed[1]["w"][f"{name}/code"]
        active = np.where(np.asarray(value) > 0, code[0], code[1])
        assert (np.asarray(got[name])[active != rram.OK] == 0).all()
        assert (np.asarray(got[name])[active == rram.OK] != 0).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: rram.factors(1, select=lrk.is_matrix),
            TypeError,
            "expected a Device, got int",
        ),
        (
            lambda: rram.factors(DEVICE.replace(read=0.01), select=lrk.is_matrix),
            ValueError,
            "converters, read noise or wires",
        ),
        (
            lambda: rram.factors(DEVICE, select=lrk.is_matrix).init(KEY, params()),
            ValueError,
            "'w' is .*, no LowRank",
        ),
        (
            lambda: lrk.chain(
                LORA, rram.factors(DEVICE, tile=3, select=lrk.is_matrix)
            ).init(KEY, params()),
            ValueError,
            r"factors of \[6, 2\] rows, tile=3",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(make, error, message):
    with untyped(), pytest.raises(error, match=message):
        make()


def test_a_chip_of_another_adapter_is_refused():
    tx = rram.factors(DEVICE, select=lrk.is_matrix)
    small, large = (
        lora.apply(params(), lora.init(KEY, params())) for lora in (lrk.lora(1), LORA)
    )
    with pytest.raises(ValueError, match=r"'w' a: expected cells \(2, 6, 2\)"):
        tx.apply(large, tx.init(KEY, small))
