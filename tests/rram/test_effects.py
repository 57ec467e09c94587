import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank import rram
from tests.reference import rram as reference

DRAWS = jnp.asarray(np.linspace(-2, 2, 9))


def test_lognormal_is_its_formula():
    gain, shift = rram.Lognormal(0.5).linear(DRAWS, 100.0)
    np.testing.assert_allclose(gain, np.exp(0.5 * np.linspace(-2, 2, 9)), rtol=1e-6)
    assert shift is None


def test_lognormal_can_keep_the_mean():
    theta = jax.random.normal(jax.random.key(0), (200_000,))
    gain, _ = rram.Lognormal(0.8, preserve_mean=True).linear(theta, 1.0)
    error = np.sqrt((np.exp(0.8**2) - 1) / theta.size)
    assert abs(float(gain.mean()) - 1) < 4 * error


def test_proportional_stops_at_zero():
    gain, _ = rram.Proportional(1.0).linear(jnp.asarray([-3.0, 0.5]), 1.0)
    np.testing.assert_allclose(gain, [0.0, 1.5])


def test_additive_is_a_share_of_the_maximum():
    gain, shift = rram.Additive(0.1).linear(jnp.asarray([2.0]), 50.0)
    np.testing.assert_allclose((gain[0], shift[0]), (1.0, 10.0))


def test_a_polynomial_has_a_reference_of_its_own():
    fit = rram.wan2022().write
    g = np.linspace(1, 40, 7)
    want = reference.std_polynomial(g, fit.coefficients, 40.0)
    np.testing.assert_allclose(fit.std(jnp.asarray(g)), want, rtol=1e-5)
    # Half the conductance at half the reference has the same spread.
    half = rram.Polynomial(fit.coefficients, reference=20.0)
    np.testing.assert_allclose(half.std(jnp.asarray(g / 2)), want, rtol=1e-5)


def test_a_spread_is_never_negative():
    assert float(rram.milo2021().write.std(jnp.asarray(1e4))) == 0.0


def test_drift_is_a_power_law_from_its_start():
    drift = rram.PowerDrift(0.1, spread=0.05, start=20.0)
    gain = drift.gain(jnp.asarray([0.0, 1.0, -9.0]), 2000.0)
    np.testing.assert_allclose(gain, [100**-0.1, 100**-0.15, 1.0], rtol=1e-6)
    np.testing.assert_allclose(drift.gain(jnp.zeros(1), 5.0), 1.0)


def test_relaxation_moves_and_spreads_with_the_logarithm():
    relax = rram.Relaxation(mean=-0.089, spread=0.042, base=0.412)
    moved = relax.offset(jnp.asarray([0.0, 1.0]), 3600.0)
    log = np.log(3600)
    np.testing.assert_allclose(
        moved, [-0.089 * log, -0.047 * log + 0.412], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rram.Lognormal(-1.0),
            r"Lognormal: sigma must be at least 0, got -1.0",
        ),
        (lambda: rram.Proportional(-0.1), "Proportional: sigma must be at least 0"),
        (lambda: rram.Additive(float("nan")), "Additive: sigma .* got nan"),
        (lambda: rram.Polynomial((), 1.0), "Polynomial: expected at least one"),
        (lambda: rram.Polynomial(2.0, 1.0), r"one coefficient, \[K\], got 2.0"),
        (
            lambda: rram.Polynomial((1.0, float("inf")), 1.0),
            "Polynomial: coefficients must be finite, got inf",
        ),
        (lambda: rram.Polynomial((1.0,), 0.0), "reference must be above 0, got 0.0"),
        (lambda: rram.PowerDrift(0.1, spread=-1), "spread must be at least 0"),
        (lambda: rram.PowerDrift(0.1, start=0), "start must be above 0"),
        (lambda: rram.PowerDrift(-0.1), "exponent must be at least 0, got -0.1"),
        (lambda: rram.Relaxation(float("nan")), "mean must be finite, got nan"),
        (lambda: rram.Converter(2.5), "bits must be a whole number, got 2.5"),
        (lambda: rram.Relaxation(0.0, base=-1), "base must be at least 0"),
        (lambda: rram.Clusters(0.0), "length must be above 0"),
        (lambda: rram.Clusters(2.0, share=1.5), "share must be .* at most 1, got 1.5"),
        (lambda: rram.Converter(1), "Converter: bits must be at least 2, got 1"),
        (lambda: rram.Converter(8, limit=0.0), "limit must be above 0"),
        (lambda: rram.Converter(8, noise=-1.0), "noise must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_effects_are_pytrees_of_their_numbers():
    swept = jax.vmap(lambda s: rram.Lognormal(s).linear(jnp.ones(()), 1.0)[0])
    np.testing.assert_allclose(swept(jnp.asarray([0.0, 1.0])), [1, np.e], rtol=1e-6)
    assert jax.tree.leaves(rram.Lognormal(0.3, preserve_mean=True)) == [0.3]
