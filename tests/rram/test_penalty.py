"""Regularisation away from defects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank import rram

# Cells of one column of scale 2: healthy; plus stuck at the zero state; plus stuck
# high; plus off by a factor of 1.5.
W = jnp.asarray([[2.0], [1.0], [1.0], [1.0]])
HELD = np.asarray([[2.0], [0.0], [2.0], [1.5]])


def chip():
    """A state of `crossbar` that makes `HELD` of `W`; `g_min` is close to 0."""
    tx = rram.crossbar(rram.Device(g_min=1e-3, g_max=100.0))
    state = tx.init(jax.random.key(0), {"w": W})
    cells = dict(state.fixed["w"])
    gain, offset = cells["gain"], cells["offset"]
    gain = gain.at[0, 1:].set(jnp.asarray([[0.0], [0.0], [1.5]]))
    offset = offset.at[0, 1:3].set(jnp.asarray([[1e-3], [100.0]]))
    return tx, state._replace(fixed={"w": cells | {"gain": gain, "offset": offset}})


def test_known_answer_and_importance():
    params, held = (
        {"w": W, "b": jnp.ones(2)},
        {"w": jnp.asarray(HELD), "b": jnp.ones(2)},
    )
    assert float(rram.defect_penalty(params, held)) == 0 + 1 + 1 + 0.25
    omega = {"w": jnp.asarray([[1.0], [2.0], [3.0], [4.0]])}
    assert float(rram.defect_penalty(params, held, omega)) == 2 + 3 + 1
    assert float(rram.defect_penalty(params, params)) == 0


def test_its_gradient_goes_through_the_map_to_what_cells_can_hold():
    tx, state = chip()

    def penalty(w, omega):
        deployed = tx.apply({"w": w}, state)
        return rram.defect_penalty({"w": w}, deployed, {"w": omega * w**2})

    grads = jax.grad(penalty)(W, jnp.ones_like(W))
    # 2 omega (deployed - w) (d deployed - 1), omega = w^2 a constant: to zero where it
    # is stuck at zero, up where it is stuck high, smaller where it is off by a factor.
    np.testing.assert_allclose(
        grads.ravel(), [0.0, 2 * 1, -2 * 1, 2 * 0.5 * 0.5], atol=1e-3
    )


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"defect_penalty: .*'v': missing"):
        rram.defect_penalty({"w": W}, {"w": W}, {"v": W})
    with pytest.raises(ValueError, match=r"defect_penalty: the deployed tree .*'w'"):
        rram.defect_penalty({"w": W}, {"v": W})
