import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank import rram
from tests.reference import rram as reference

SCHEMES = {
    name: getattr(rram, name)()
    for name in ("OneSided", "TwoSided", "Offset", "HighZero")
}


@pytest.mark.parametrize("name", SCHEMES)
def test_targets_are_the_conductances_of_the_equations(name):
    pair, gain = reference.SCHEMES[name]
    x = np.asarray([-1.0, -0.3, 0.0, 0.3, 1.0])
    plus, minus = SCHEMES[name].targets(jnp.asarray(x))
    want = np.asarray([pair(v, 10.0, 110.0) for v in x])
    np.testing.assert_allclose(10 + 100 * plus, want[:, 0], rtol=1e-6)
    np.testing.assert_allclose(10 + 100 * minus, want[:, 1], rtol=1e-6)
    np.testing.assert_allclose(gain * (plus - minus), x, atol=1e-7)
    assert SCHEMES[name].gain == gain


@pytest.mark.parametrize("name", SCHEMES)
def test_a_weight_of_zero_can_leave_it(name):
    scheme = SCHEMES[name]

    def back(x):
        plus, minus = scheme.targets(x)
        return scheme.gain * (plus - minus)

    assert float(jax.grad(back)(0.0)) == 1.0
