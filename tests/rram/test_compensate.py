"""Programming by the map: known answers, and a search over all values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import rram
from tests.network import STACKED, numbers
from tests.untyped import untyped

KEY = jax.random.key(6)
W = jnp.asarray(numbers(4, 6, 3)).at[0].set(1.0)  # every column's scale is 1


def error(device, w=W, **options):
    tx = rram.crossbar(device)
    state = tx.init(KEY, {"w": w})

    def deploy(p):
        return tx.apply(p, state)

    plain = np.abs(deploy({"w": w})["w"] - w)
    own = rram.compensated({"w": w}, deploy, **options)
    return plain, np.abs(deploy(own)["w"] - w), own["w"], deploy


def test_a_weak_cell_is_asked_for_more_and_a_strong_one_for_less():
    params = {"w": jnp.asarray([[0.4], [-0.6], [1.0]])}
    factor = jnp.asarray([[0.5], [2.0], [1.0]])
    own = rram.compensated(params, lambda p: {"w": p["w"] * factor})["w"]
    np.testing.assert_allclose(own[:, 0], [0.8, -0.3, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("side", "wanted", "best"),
    [
        # The cell of this side is stuck at low resistance: it adds a whole unit.
        (1, 0.4, 1.0),  # the plus cell gives all it can: 1 - 1
        (0, -0.4, -1.0),
        (0, 0.4, -0.6),  # the minus cell takes back what is too much: 1 - 0.6
    ],
)
def test_a_stuck_cell_is_balanced_by_its_partner(side, wanted, best):
    w = jnp.asarray([[wanted], [1.0]])
    tx = rram.crossbar(rram.Device())
    state = tx.init(KEY, {"w": w})
    codes = np.zeros((2, 2, 1), int)
    codes[side, 0, 0] = rram.LRS
    stuck = rram.with_faults(state, {"w": codes})
    own = rram.compensated({"w": w}, lambda p: tx.apply(p, stuck))["w"]
    np.testing.assert_allclose(own[:, 0], [best, 1.0], atol=1e-5)


@pytest.mark.parametrize("scheme", ["OneSided", "TwoSided", "HighZero"])
@pytest.mark.parametrize(
    "faults",
    [
        {"p_lrs": 0.2, "p_hrs": 0.2},
        {"write": rram.Lognormal(0.7)},
        {"p_lrs": 0.1, "p_hrs": 0.1, "write": rram.Additive(0.02)},
    ],
)
def test_no_value_on_a_grid_comes_out_nearer(scheme, faults):
    device = rram.Device(scheme=getattr(rram, scheme)(), **faults)
    plain, left, own, deploy = error(device)
    assert left.sum() < 0.7 * plain.sum()
    assert np.abs(own).max() <= 1 + 1e-6
    full = np.flatnonzero(np.abs(own).max(0) > 1 - 1e-6)  # their scale is still 1
    assert len(full)
    best = np.full(W.shape, np.inf)
    for value in np.linspace(-1, 1, 81):
        for parity in (0, 1):  # the other rows hold the scale
            rows = (np.arange(6) % 2 == parity)[:, None]
            out = deploy({"w": jnp.where(rows, value, jnp.ones_like(W))})["w"]
            best = np.where(rows, np.minimum(best, np.abs(out - W)), best)
    assert (left[:, full] <= best[:, full] + 1e-4).all()


def test_an_ideal_chip_is_programmed_as_it_was():
    _, left, own, _ = error(rram.Device(levels=None))
    np.testing.assert_allclose(own, W, atol=1e-5)
    assert left.max() < 1e-5


def test_levels_leave_half_a_level():
    _, left, _, _ = error(rram.Device(levels=9, write=rram.Lognormal(0.1)))
    reach = left[np.abs(W) < 0.8]
    assert reach.max() < 0.5 / 8 * 1.4 + 1e-3


def test_stacks_and_chips_map():
    tree = {"layers": {"kernel": jnp.asarray(numbers(1, 3, 4, 5))}}
    select = lrk.matching("kernel")
    tx = rram.crossbar(
        rram.Device(p_lrs=0.2, write=rram.Lognormal(0.3)), select=select, axes=STACKED
    )

    def left(key):
        state = tx.init(key, tree)
        own = rram.compensated(
            tree, lambda p: tx.apply(p, state), select=select, axes=STACKED
        )
        off = [tx.apply(p, state)["layers"]["kernel"] for p in (tree, own)]
        return jnp.stack([jnp.abs(x - tree["layers"]["kernel"]).sum() for x in off])

    plain, best = lrk.map_tasks(left, method="map")(jax.random.split(KEY, 4)).T
    assert (best < 0.8 * plain).all()


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="compensated: passes must be at least 1"):
        rram.compensated({"w": W}, lambda p: p, passes=0)
    whole = r"compensated: passes must be a whole number, got 2\.5"
    with untyped(), pytest.raises(ValueError, match=whole):
        rram.compensated({"w": W}, lambda p: p, passes=2.5)
    with pytest.raises(ValueError, match=r"expected shape \(6, 3\), got \(3, 6\)"):
        rram.compensated({"w": W}, lambda p: {"w": p["w"].T})
