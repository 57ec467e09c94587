"""Products with pairs of conductances: each effect against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg import crossbar_weights, mvm, with_wires
from tests.network import numbers
from tests.reference import crossbar as reference
from tests.tolerances import assert_close

ROWS, COLS, UNIT = 5, 3, 90.0
KEY = jax.random.key(2)


def pair(*stack):
    return jnp.asarray(55 + 45 * numbers(1, *stack, 2, ROWS, COLS))


def vectors(n=4, *stack):
    return jnp.asarray(2 * numbers(2, *stack, n, ROWS))


def scales(tile=None, cols=COLS):
    tiles = 1 if tile is None else -(-ROWS // tile)
    return jnp.asarray(1.5 + numbers(3, tiles, cols))


def f32(values):
    return np.asarray(values, np.float32)


TILES = [(None, 3), (None, 1), (1, 3), (2, 1), (3, 3), (4, 3), (5, 1), (8, 3)]


@pytest.mark.parametrize(("tile", "cols"), TILES)
def test_without_effects_it_is_the_matrix_product(tile, cols):
    args = pair(), scales(tile, cols), UNIT
    x = vectors()
    rows = np.repeat(np.asarray(args[1], np.float64), tile or ROWS, axis=0)[:ROWS]
    want = rows * (np.asarray(args[0][0], np.float64) - args[0][1]) / UNIT
    assert_close(crossbar_weights(*args, {}, tile), f32(want))
    assert_close(mvm(x, *args, {}, tile=tile), f32(np.asarray(x, np.float64) @ want))
    ideal = {"adc_limit": 100.0, "dac_limit": 10.0}  # wide, and nothing is rounded
    assert_close(mvm(x, *args, ideal, tile=tile), f32(np.asarray(x) @ want))


CONVERTERS = {
    "dac": {"dac": (4, 1.2)},
    "dac of the vector": {"dac": (4, None)},
    "adc": {"adc": (5, 1.1)},
    "adc of the vector": {"adc": (5, None)},
    "both": {"dac": (6, None), "adc": (5, 0.9)},
    "wires": {"wire": 150.0},
    "all": {"dac": (6, 1.7), "adc": (5, None), "wire": 150.0},
}


def named(effects):
    found = {}
    for name, value in effects.items():
        if name == "wire":
            found[name] = value
        else:
            found[f"{name}_bits"], found[f"{name}_limit"] = value
    return {name: v for name, v in found.items() if v is not None}


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("effects", CONVERTERS.values(), ids=CONVERTERS)
def test_each_effect_follows_its_definition(effects, tile):
    args = vectors(), pair(), scales(tile), UNIT
    got = mvm(*args, named(effects), tile=tile)
    want = reference.mvm(*args, tile=tile, **effects)
    assert_close(got, f32(want))
    ideal = reference.mvm(*args, tile=tile)
    assert np.abs(want - ideal).max() > 1e-3  # each changes the result


def test_a_vector_of_zeros_is_converted_to_zeros():
    effects = {"dac_bits": 4, "adc_bits": 4}
    got = mvm(jnp.zeros((1, ROWS)), pair(), scales(), UNIT, effects)
    assert np.asarray(got).tolist() == [[0.0] * COLS]


def test_wires_lower_the_conductance_far_from_driver_and_reader():
    lost = np.asarray(50.0 - with_wires(jnp.full((4, 4), 50.0), 10.0))
    assert (lost > 0).all()
    assert lost[3, 0] == lost.min()  # next to the driver and to the reader
    assert lost[0, 3] == lost.max()


def test_wires_are_those_of_a_circuit_to_first_order():
    """The error falls with the square of the resistance, and is less than a line's."""
    g = 55 + 45 * np.asarray(numbers(6, 6, 4), np.float64)
    errors = []
    for wire in (40.0, 20.0, 10.0):
        exact = reference.circuit(g, wire)
        with jax.enable_x64(True):
            got = np.asarray(with_wires(jnp.asarray(g), wire))
        off = np.abs(got - exact)
        line = np.abs(g * (1 - reference.drop(g, wire)) - exact)
        assert off.max() <= line.max()
        assert off.mean() <= line.mean()
        errors.append(off.max())
    assert np.abs(g - exact).max() > 10 * errors[-1]
    ratios = np.asarray(errors[:-1]) / errors[1:]
    assert ((ratios > 3.4) & (ratios < 4.6)).all()


def test_long_wires_are_near_those_of_a_circuit():
    """Where cells far from driver and reader lack more than they have."""
    g, wire = np.full((16, 16), 100.0), 64.0
    d, exact = reference.drop(g, wire), reference.circuit(g, wire)
    assert d.max() > 1.7
    assert (exact < 0.9 * g).all()
    got = np.asarray(with_wires(jnp.asarray(g, jnp.float32), wire))
    assert (np.abs(got - exact) < 0.06 * g).all()
    off, line = got - exact, g * (1 - d) - exact  # of columns with all rows driven:
    assert (np.abs(off.sum(0)) < 0.02 * g.sum(0)).all()
    assert (np.abs(line.sum(0)) > 0.1 * g.sum(0)).all()


def test_conductances_stay_positive_and_fall_with_distance_and_resistance():
    g = jnp.full((512, 512), 100.0)
    one, two = (np.asarray(with_wires(g, wire)) for wire in (1.0, 2.0))
    assert (two > 0).all()
    assert (two < one).all()
    assert (one < 100).all()
    assert (np.diff(one, axis=1) < 0).all()  # away from the driver
    assert (np.diff(one, axis=0) > 0).all()  # towards the reader
    assert np.array_equal(with_wires(g, 0.0), g)


def test_weights_see_the_wires_alone():
    effects = {"wire": 150.0, "adc_bits": 3, "read": 5.0}
    args = pair(), scales(2), UNIT
    got = crossbar_weights(*args, effects, 2)
    want = reference.mvm(np.eye(ROWS), *args, tile=2, wire=150.0)
    assert_close(got, f32(want))


def test_members_of_a_stack_multiply_by_themselves():
    x, cells = vectors(4, 2), pair(2)
    scale = jnp.stack([scales(2), 2 * scales(2)])
    effects = {"dac_bits": 5, "adc_bits": 6}
    got = mvm(x, cells, scale, UNIT, effects, tile=2)
    each = [
        mvm(*args, UNIT, effects, tile=2) for args in zip(x, cells, scale, strict=True)
    ]
    assert_close(got, jnp.stack(each))


# Noise.


def spread(tile):
    """Standard deviation of each output, from noise on each of the two cells."""
    x, scale = (np.asarray(v, np.float64) for v in (vectors(), scales(tile)))
    rows = np.repeat(scale, tile or ROWS, axis=0)[:ROWS]
    return np.sqrt(2 * x**2 @ rows**2) * 3.0 / UNIT


@pytest.mark.parametrize(("tile", "adc"), [(None, False), (2, False), (2, True)])
def test_read_noise_is_that_of_independent_cells(tile, adc):
    draws = 1000
    effects = {"read": 3.0} | ({"adc_limit": 100.0} if adc else {})
    args = vectors(), pair(), scales(tile), UNIT
    keys = jax.random.split(KEY, draws)
    noisy = jax.vmap(lambda key: mvm(*args, effects, tile=tile, key=key))(keys)
    ideal = np.asarray(mvm(*args, {}, tile=tile), np.float64)
    noise = np.asarray(noisy, np.float64) - ideal

    def cells(key):
        moved = args[1] + 3.0 * jax.random.normal(key, args[1].shape)
        return mvm(args[0], moved, *args[2:], {}, tile=tile)

    drawn = np.asarray(jax.vmap(cells)(keys), np.float64) - ideal
    # The relative error of a standard deviation of n numbers is 1 / sqrt(2 n).
    limit = 5 / np.sqrt(2 * draws)
    for sample in (noise, drawn):
        assert np.abs(sample.std(0) / spread(tile) - 1).max() < limit
        assert np.abs(sample.mean(0) / spread(tile)).max() < 5 / np.sqrt(draws)
    pairs = itertools.combinations(noise[:, :2].reshape(draws, -1).T, 2)
    assert max(abs(np.corrcoef(*two)[0, 1]) for two in pairs) < 5 / np.sqrt(draws)


def test_noise_of_the_adc_adds_before_it_rounds():
    x, quiet = jnp.ones((4000, ROWS)), pair().at[1].set(pair()[0])
    effects = {"adc_bits": 3, "adc_limit": 1.0, "adc_noise": 0.4}
    got = mvm(x, quiet, jnp.ones((1, 1)), UNIT, effects, key=KEY)
    assert np.unique(np.round(np.asarray(got) * 3, 4)).tolist() == [*range(-3, 4)]
    share = (np.asarray(got) == 0).mean()  # |0.4 xi| < 1 / 6
    assert abs(share - 0.3231) < 5 * (0.3231 * 0.6769 / got.size) ** 0.5


# Gradients.


def test_gradients_are_those_of_finite_differences_where_nothing_is_rounded():
    effects = {"dac_limit": 1.2, "adc_limit": 0.9, "wire": 150.0}
    args = vectors(), pair(), scales(2)

    def total(x, cells, scale):
        return (mvm(x, cells, scale, UNIT, effects, tile=2) ** 2).sum()

    grads = jax.grad(total, argnums=(0, 1, 2))(*args)

    def check(at, position, step):
        moved = [np.asarray(a, np.float64) for a in args]

        def loss(by):
            own = [m.copy() for m in moved]
            own[at][position] += by
            limits = {"dac": (None, 1.2), "adc": (None, 0.9), "wire": 150.0}
            return (reference.mvm(*own, UNIT, tile=2, **limits) ** 2).sum()

        want = (loss(step) - loss(-step)) / (2 * step)
        got = float(grads[at][position])
        assert abs(got - want) < 1e-4 * max(1.0, abs(want))

    for position in ((0, 0), (1, 3), (3, 4)):
        check(0, position, 1e-6)
    for position in ((0, 0, 1), (1, 4, 2), (0, 2, 0)):
        check(1, position, 1e-4)
    check(2, (1, 2), 1e-6)


def test_gradients_pass_straight_through_rounding():
    args = vectors(), pair(), scales()
    coarse = {"dac_bits": 3, "dac_limit": 5.0, "adc_bits": 4, "adc_limit": 30.0}

    def total(x, cells, effects):
        return mvm(x, cells, args[2], UNIT, effects).sum()

    smooth = jax.grad(total, (0, 1))(*args[:2], {})
    rounded = jax.grad(total, (0, 1))(*args[:2], coarse)
    assert_close(rounded[0], smooth[0])
    fed = np.round(np.asarray(args[0]) / 5 * 3) / 3 * 5  # cells meet what is driven
    want = fed.sum(0)[:, None] * np.asarray(args[2]) / UNIT
    assert_close(rounded[1], f32(np.stack([want, -want])))


def test_what_is_clipped_has_no_gradient_and_what_just_fits_has():
    x = jnp.asarray([[0.5, 1.0, -1.0, 1.5, -2.0]])

    def total(x):
        return mvm(x, pair(), scales(), UNIT, {"dac_limit": 1.0}).sum()

    grads = np.asarray(jax.grad(total)(x))[0]
    want = np.asarray(crossbar_weights(pair(), scales(), UNIT, {})).sum(1)
    assert_close(grads, f32(want * [1, 1, 1, 0, 0]))


def test_noise_is_a_constant_for_gradients():
    def total(x, effects):
        return mvm(x, pair(), scales(), UNIT, effects, key=KEY).sum()

    quiet, noisy = (jax.grad(total)(vectors(), e) for e in ({}, {"read": 3.0}))
    assert_close(noisy, quiet)
    still = jax.grad(total)(jnp.zeros((1, ROWS)), {"read": 3.0})
    assert np.isfinite(still).all()


def test_low_precision_is_converted_in_float32():
    x = vectors().astype(jnp.bfloat16)
    got = mvm(x, pair(), scales(), UNIT, {"adc_bits": 10, "adc_limit": 4.0})
    want = reference.mvm(x, pair(), scales(), UNIT, adc=(10, 4.0))
    assert_close(got, f32(want))


def test_compiled_and_eager_agree():
    effects = {"dac_bits": 8, "adc_bits": 8, "read": 1.0, "wire": 10.0}
    args = vectors(), pair(), scales(2), UNIT
    run = jax.jit(lambda key, numbers: mvm(*args, numbers, tile=2, key=key))
    got, want = run(KEY, effects), mvm(*args, effects, tile=2, key=KEY)
    step = np.abs(np.asarray(want)).max() / 127  # one step where rounding may tip
    assert np.abs(np.asarray(got) - want).max() < step
    assert np.median(np.abs(np.asarray(got) - want)) < 1e-5
