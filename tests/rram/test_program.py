"""Programming and reading back, against the equations cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank import rram
from tests.network import numbers
from tests.reference import rram as reference

KEY = jax.random.key(3)
W = numbers(1, 6, 4)
SCHEMES = ("OneSided", "TwoSided", "Offset", "HighZero")


def chip_of(device, shape=W.shape, key=KEY):
    state = rram.crossbar(device).init(key, {"w": jnp.zeros(shape)})
    return state.fixed["w"]


def expected(w, chip, device, scheme, **options):
    fit = None
    if isinstance(device.write, rram.Polynomial):
        fit = (device.write.coefficients, device.write.reference)
    cells = {n: np.asarray(x, np.float64) for n, x in chip.items()}
    own = {
        "low": device.g_min,
        "high": device.g_max,
        "levels": device.levels,
        "fit": fit,
    }
    return reference.deployed(
        np.asarray(w, np.float64), cells, scheme, **own, **options
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tile", [None, 4])
@pytest.mark.parametrize("columns", [True, False])
def test_an_ideal_device_gives_the_weights(scheme, tile, columns):
    device = rram.Device(scheme=getattr(rram, scheme)())
    back = rram.deploy(jnp.asarray(W), chip_of(device), device.scheme, tile, columns)
    np.testing.assert_allclose(back, W, atol=1e-6)


def test_half_precision_weights_are_not_rounded_further():
    half, device = jnp.asarray(W, jnp.bfloat16), rram.Device()
    back = rram.deploy(half, chip_of(device), device.scheme)
    g, scale = rram.program(half, chip_of(device), device.scheme)
    assert {x.dtype for x in (back, g, scale)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(back, half.astype(jnp.float32), atol=1e-6)


FAULTY = {
    "levels": {"levels": 5},
    "stuck": {"p_lrs": 0.3, "p_hrs": 0.3, "g_lrs": 150.0, "g_hrs": 2.0},
    "lognormal": {"write": rram.Lognormal(0.5)},
    "proportional": {"write": rram.Proportional(0.5)},
    "additive": {"write": rram.Additive(0.3)},
    "polynomial": {"write": rram.Polynomial((5.0, 3.0, -1.0), reference=40.0)},
    "all": {
        "levels": 9,
        "p_lrs": 0.2,
        "p_hrs": 0.1,
        "p_column": 0.2,
        "write": rram.Additive(0.2),
        "drift": rram.PowerDrift(0.05, spread=0.02),
        "relaxation": rram.Relaxation(-0.5, 0.3, 0.4),
        "time": 100.0,
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", FAULTY)
def test_deployed_weights_are_those_of_the_equations(scheme, case):
    device = rram.Device(scheme=getattr(rram, scheme)(), **FAULTY[case])
    chip = chip_of(device)
    back = rram.deploy(jnp.asarray(W), chip, device.scheme)
    want = expected(W, chip, device, scheme)
    np.testing.assert_allclose(back, want, rtol=2e-5, atol=2e-5)
    if case != "levels":
        assert np.abs(want - W).max() > 0.05  # the effect is there


@pytest.mark.parametrize("columns", [True, False])
def test_each_tile_has_its_own_scale(columns):
    device = rram.Device(levels=4)
    chip = chip_of(device)
    back = rram.deploy(jnp.asarray(W), chip, device.scheme, 4, columns)
    want = expected(W, chip, device, "OneSided", tile=4, columns=columns)
    np.testing.assert_allclose(back, want, atol=2e-6)
    g, scale = rram.program(jnp.asarray(W), chip, device.scheme, 4, columns)
    assert g.shape == (2, 6, 4)
    assert scale.shape == (2, 4 if columns else 1)


@pytest.mark.parametrize(
    ("code", "x", "want"),
    [
        # (plus, minus) codes, the weight, what comes back; the other column is 1.
        ((rram.OK, rram.LRS), 0.5, -0.5),  # low resistance on the idle cell: minus one
        ((rram.LRS, rram.OK), -0.5, 0.5),
        ((rram.OK, rram.LRS), 0.0, -1.0),
        ((rram.LRS, rram.OK), 0.0, 1.0),
        ((rram.LRS, rram.OK), 0.5, 1.0),  # on the active cell: to the end of the range
        ((rram.HRS, rram.OK), 0.5, 0.0),  # high resistance on the active cell: zero
        ((rram.OK, rram.HRS), 0.5, 0.5),  # on the idle cell: harmless
        ((rram.HRS, rram.LRS), 1.0, -1.0),  # both: two units off
        ((rram.LRS, rram.LRS), 0.5, 0.0),
    ],
)
def test_what_a_stuck_cell_does_to_a_weight(code, x, want):
    state = rram.crossbar(rram.Device()).init(KEY, {"w": jnp.zeros((2, 1))})
    codes = np.stack([[code], [(rram.OK, rram.OK)]]).transpose(2, 0, 1)
    chip = rram.with_faults(state, {"w": codes}).fixed["w"]
    for s in (1.0, 3.0):  # the other weight sets the scale of the column
        w = jnp.asarray([[x * s], [s]])
        back = rram.deploy(w, chip, rram.OneSided())
        np.testing.assert_allclose(back, [[want * s], [s]], atol=1e-6)


def test_a_reference_conductance_is_not_the_maximum():
    """The same fit on a device of half the range: the same spread in uS."""
    fit = rram.wan2022().write
    x = jnp.full((400, 50), 0.5).at[0].set(1.0)
    for g_max in (40.0, 20.0):
        device = rram.Device(g_min=1e-3, g_max=g_max, write=fit)
        g, _ = rram.program(x, chip_of(device, x.shape), device.scheme)
        plus = np.asarray(g)[0, 1:]
        want = float(
            reference.std_polynomial(np.asarray(g_max / 2), fit.coefficients, 40.0)
        )
        assert abs(plus.std() - want) < 4 * want / np.sqrt(2 * plus.size)


@pytest.mark.parametrize("act", [rram.program, rram.deploy])
def test_what_does_not_fit_a_chip_is_refused(act):
    chip, scheme = chip_of(rram.Device()), rram.OneSided()
    for tile in (0, 7):
        with pytest.raises(ValueError, match=rf"tile must be at .*, got {tile}"):
            act(jnp.asarray(W), chip, scheme, tile)
    with pytest.raises(ValueError, match=r"expected cells \(2, 1, 4\), got \(2, 6, 4"):
        act(jnp.asarray(W[:1]), chip, scheme)


def test_a_column_of_zeros_stays_finite():
    device = rram.Device(p_lrs=0.5, levels=4)
    back = rram.deploy(jnp.zeros((6, 4)), chip_of(device), device.scheme)
    assert np.isfinite(np.asarray(back)).all()
    assert set(np.unique(np.round(back, 6))) <= {-1.0, 0.0, 1.0}


def test_gradients_vanish_on_stuck_cells_and_are_exact_elsewhere():
    device = rram.Device(
        p_lrs=0.2, p_hrs=0.2, write=rram.Polynomial((5.0, 2.0), reference=50.0)
    )
    chip, probe = chip_of(device), jnp.asarray(numbers(9, *W.shape))
    with jax.enable_x64(True):
        wide = {n: jnp.asarray(np.asarray(x), jnp.float64) for n, x in chip.items()}
        scale = np.abs(W).max(0)

        def f(w):
            return (probe * rram.deploy(w, wide, device.scheme)).sum()

        w = np.asarray(W, np.float64)
        got, step = np.asarray(jax.grad(f)(jnp.asarray(w))), 1e-6
        for i, j in np.ndindex(*w.shape):
            if abs(w[i, j]) == scale[j]:
                continue  # it sets the scale, which is a constant for differentiation
            moved = w.copy()
            moved[i, j] += step
            slope = (f(jnp.asarray(moved)) - f(jnp.asarray(w))) / step
            np.testing.assert_allclose(got[i, j], slope, rtol=1e-4, atol=1e-6)
    active = np.where(W > 0, chip["code"][0], chip["code"][1])
    assert (got[active != rram.OK] == 0).all()
    assert (got[active == rram.OK] != 0).all()


def test_levels_pass_gradients_straight_through():
    device = rram.Device(levels=3)
    chip = chip_of(device)
    got = jax.grad(lambda w: rram.deploy(w, chip, device.scheme).sum())(jnp.asarray(W))
    np.testing.assert_allclose(got, 1.0, rtol=1e-6)
