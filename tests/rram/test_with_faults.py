"""A measured defect map in the place of sampled faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import rram
from tests.network import numbers
from tests.untyped import untyped

KEY = jax.random.key(4)
PARAMS = {"v": jnp.asarray(numbers(2, 3, 2)), "w": jnp.asarray(numbers(1, 6, 4))}
NOISY = rram.Device(
    write=rram.Additive(0.1),
    drift=rram.PowerDrift(0.05, 0.02),
    time=100.0,
    p_lrs=0.2,
    p_hrs=0.2,
    p_row=0.1,
)
FIT = rram.wan2022().replace(p_lrs=0.2, p_hrs=0.2)
PLAIN = rram.crossbar(rram.Device())
IDEAL = PLAIN.init(KEY, PARAMS)
NONE = np.zeros((2, 6, 4), np.int8)


ONE = {"w": PARAMS["w"]}


def same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, state, other)


@pytest.mark.parametrize("device", [NOISY, FIT], ids=["noisy", "fit"])
def test_the_map_of_a_sampled_chip_gives_that_chip(device):
    """With one key deviations are the same, with faults or without."""
    clean = device.replace(p_lrs=0.0, p_hrs=0.0, p_row=0.0)
    faulty, healthy = (rram.crossbar(d).init(KEY, ONE) for d in (device, clean))
    code = faulty.fixed["w"]["code"]
    assert set(np.unique(code)) >= {rram.OK, rram.LRS, rram.HRS}
    same(rram.with_faults(healthy, {"w": code}), faulty)


def test_stuck_cells_have_the_conductances_that_were_measured():
    device = rram.Device(g_min=10.0, g_max=110.0)
    tx, params = rram.crossbar(device), {"w": jnp.asarray([[1.0], [0.5], [0.5]])}
    codes = jnp.zeros((2, 3, 1), int).at[:, 0, 0].set([rram.LRS, rram.HRS])
    codes = codes.at[:, 2, 0].set([rram.OPEN, rram.HRS])
    chip = tx.init(KEY, params)
    back = tx.apply(params, rram.with_faults(chip, {"w": codes}))["w"]
    np.testing.assert_allclose(back[:, 0], [1.0, 0.5, -0.1], atol=1e-6)
    g = np.full((2, 3, 1), np.nan)  # not known where nothing is stuck
    g[:, 0, 0], g[:, 2, 0] = (210.0, 5.0), (70.0, 30.0)
    known = rram.with_faults(chip, {"w": codes}, {"w": g})
    back = tx.apply(params, known)["w"]
    np.testing.assert_allclose(back[:, 0], [2.05, 0.5, -0.3], atol=1e-6)
    assert known.fixed["w"]["offset"].dtype == jnp.float32


def test_sampled_faults_are_gone_and_other_leaves_are_as_they_were():
    state = rram.crossbar(rram.Device(p_lrs=0.5, p_column=0.2)).init(KEY, PARAMS)
    mapped = rram.with_faults(state, {"w": NONE})
    same(mapped.fixed["w"], IDEAL.fixed["w"])
    assert mapped.fixed["v"] is state.fixed["v"]


def test_maps_of_many_chips_under_jit_and_vmap():
    codes = np.asarray(jax.random.randint(KEY, (3, 2, 6, 4), 0, 4))
    g = np.asarray(jax.random.uniform(KEY, (3, 2, 6, 4), maxval=300.0))

    def deployed(code, g):
        known = rram.with_faults(IDEAL, {"w": code}, {"w": g})
        return PLAIN.apply(PARAMS, known)["w"]

    got = jax.jit(jax.vmap(deployed))(codes, g)
    np.testing.assert_allclose(got[1], deployed(codes[1], g[1]), atol=1e-6)
    assert np.ptp(np.asarray(got), axis=0).max() > 1


def test_the_chip_of_a_chain_has_the_rows_that_are_spare():
    rows = {"w": np.asarray([5, 1, 2, 3, 4, 7])}
    bar = rram.crossbar(rram.Device())
    wires = rram.permute(rows, spare=2), rram.unpermute(rows, spare=2)
    tx = lrk.chain(wires[0], bar, wires[1])
    state, codes = tx.init(KEY, ONE), np.zeros((2, 8, 4), int)
    codes[:, [0, 6]] = rram.LRS  # where no row sits
    known = rram.with_faults(state, {"w": codes})
    assert known.fixed[0]["w"] is state.fixed[0]["w"]
    np.testing.assert_allclose(tx.apply(ONE, known)["w"], PARAMS["w"], atol=1e-6)
    codes[0, 7] = rram.HRS
    back = tx.apply(ONE, rram.with_faults(state, {"w": codes}))["w"]
    want = np.where(np.arange(6)[:, None] == 5, np.minimum(PARAMS["w"], 0), PARAMS["w"])
    np.testing.assert_allclose(back, want, atol=1e-6)


def test_a_cell_that_heals_would_have_no_deviation():
    state = rram.crossbar(NOISY).init(KEY, ONE)
    with pytest.raises(ValueError, match="cells of 'w' were sampled as faulty, so"):
        rram.with_faults(state, {"w": NONE})
    healed = jax.jit(lambda code: rram.with_faults(state, {"w": code}))(NONE)
    stuck = np.asarray(state.fixed["w"]["code"]) != rram.OK
    assert (np.asarray(healed.fixed["w"]["gain"])[stuck] == 1).all()


def at(value):
    own = NONE.astype(np.float64 if isinstance(value, float) else int)
    own[1, 0, 0] = value
    return {"w": own}


MESSAGES = [
    ((IDEAL, {"u": NONE}), ValueError, "codes has 'u', which the chip lacks"),
    (
        (IDEAL, {"w": NONE}, {"v": NONE}),
        ValueError,
        "conductances has 'v', which the codes lack",
    ),
    (
        (IDEAL, {"w": NONE[0]}, {"w": NONE[:1]}),
        ValueError,
        r"codes of 'w': expected \(2, 6, 4\), got \(6, 4\); conductances of 'w'.* \(1,",
    ),
    ((IDEAL, at(1.0)), TypeError, "codes must be integers, got 'w' of float"),
    ((IDEAL, {"w": NONE > 0}), TypeError, "codes must be integers, got 'w' of bool"),
    ((IDEAL, at(7)), ValueError, "with_faults: got codes 7 of 'w'"),
    ((IDEAL, at(-1)), ValueError, "got codes -1 of 'w'"),
    ((IDEAL, at(1), at(-2.5)), ValueError, "got -2.5 uS of a stuck cell of 'w'"),
    ((IDEAL, at(2), at(np.nan)), ValueError, "got nan uS of a stuck cell of 'w'"),
    (
        (lrk.lora(1).init(KEY, PARAMS), {"w": NONE}),
        ValueError,
        "with_faults: the state holds no chip",
    ),
    (
        (lrk.stack([IDEAL] * 3), {"w": np.stack([NONE] * 3)}),
        ValueError,
        r"'w' has cells of many chips, \(3,\)",
    ),
]


@pytest.mark.parametrize(("args", "error", "message"), MESSAGES)
def test_bad_maps_are_refused_by_name_and_value(args, error, message):
    with untyped(), pytest.raises(error, match=message):
        rram.with_faults(*args)
