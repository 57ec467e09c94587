import jax
import jax.numpy as jnp
import pytest

from lowrank import rram


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"p_lrs": 1.5}, "Device: p_lrs must be at least 0 and at most 1, got 1.5"),
        ({"p_hrs": -0.1}, "p_hrs must be .* got -0.1"),
        ({"p_row": 2}, "p_row must be"),
        ({"p_column": -1}, "p_column must be"),
        (
            {"p_lrs": 0.6, "p_hrs": 0.6},
            "must be at most 1, got p_lrs=0.6 and p_hrs=0.6",
        ),
        ({"g_min": 5.0, "g_max": 5.0}, "g_max must be above g_min, got g_min=5.0"),
        ({"g_min": 0.0}, "g_min must be above 0"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
        ({"time": 0.0}, "time must be above 0, got 0.0"),
        ({"read": -0.01}, "read must be at least 0"),
        ({"wire": -1.0}, "wire must be at least 0"),
        ({"g_lrs": -1.0}, "g_lrs must be at least 0"),
        ({"g_lrs": (5.0, 1.0)}, r"g_lrs must run from low to high, got \(5.0, 1.0\)"),
        ({"g_hrs": (1.0, 2.0, 3.0)}, "g_hrs must be a number or a pair"),
        ({"drift": rram.PowerDrift(0.1)}, "need a time"),
        ({"relaxation": rram.Relaxation(0.1)}, "need a time"),
        ({"levels": 2.5}, "levels must be a whole number, got 2.5"),
        ({"dac": rram.Converter(8, noise=0.5)}, "a DAC has no noise .* noise=0.5"),
    ],
)
def test_impossible_numbers_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        rram.Device(**numbers)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"p_lrs": "0.1"}, "Device: p_lrs must be a number, got '0.1'"),
        ({"levels": True}, "levels must be a number, got True"),
        ({"p_hrs": [0.1, 0.2]}, r"p_hrs must be a number, got \[0.1, 0.2\]"),
    ],
)
def test_what_is_no_number_is_refused(numbers, message):
    with pytest.raises(TypeError, match=message):
        rram.Device(**numbers)


def test_rates_may_sum_to_one_in_float32():
    rates = jnp.float32(0.6), jnp.float32(0.4)
    assert float(rates[0]) + float(rates[1]) > 1
    assert rram.Device(p_lrs=rates[0], p_hrs=rates[1]).p_lrs == rates[0]


def test_what_only_looks_like_a_device_is_not_checked():
    """Gradients and axes for `vmap` have numbers that no device has."""
    device = rram.Device(write=rram.Lognormal(0.5), scheme=rram.TwoSided())
    grads = jax.grad(lambda d: -d.g_min - 2 * d.write.sigma + 3 * d.g_max)(device)
    assert (grads.g_min, grads.write.sigma, grads.g_max) == (-1, -2, 3)
    axes = jax.tree.map(lambda _: 0, device)
    assert (axes.g_min, axes.write.sigma) == (0, 0)
    assert axes.scheme == device.scheme
    paths = jax.tree_util.tree_flatten_with_path(device)[0]
    assert [jax.tree_util.keystr(path) for path, _ in paths][-1] == ".write.sigma"


def test_replace_checks_again():
    with pytest.raises(ValueError, match="p_lrs=0.1 and p_hrs=0.95"):
        rram.Device(p_lrs=0.1).replace(p_hrs=0.95)


def test_absent_parts_are_no_leaves():
    plain = rram.Device()
    assert len(jax.tree.leaves(plain)) == 6
    noisy = plain.replace(read=0.01, adc=rram.Converter(8))
    assert len(jax.tree.leaves(noisy)) == 8
    assert jax.tree.structure(plain) != jax.tree.structure(noisy)


def test_traced_numbers_are_let_through():
    def total(p):
        return rram.Device(p_lrs=p, p_hrs=p).p_lrs

    assert jax.jit(total)(5.0) == 5.0  # values are not looked at under jit


@pytest.mark.parametrize(
    ("part", "acts", "draws"),
    [
        ({}, False, False),
        ({"write": rram.Lognormal(0.1), "levels": 4}, False, False),
        ({"read": 0.0}, True, True),
        ({"dac": rram.Converter(8)}, True, False),
        ({"adc": rram.Converter(8)}, True, False),
        ({"adc": rram.Converter(8, noise=0.1)}, True, True),
        ({"wire": 1.0}, True, False),
    ],
)
def test_what_acts_in_the_product(part, acts, draws):
    device = rram.Device(**part)
    assert (device.acts_in_product, device.stochastic) == (acts, draws)


def test_presets_are_devices_with_their_published_numbers():
    a, b = rram.chen2015_a(), rram.chen2015_b()
    assert (a.p_lrs, a.p_hrs) == (b.p_hrs, b.p_lrs) == (0.0175, 0.0904)
    liu = rram.liu2017(0.05, 0.15)
    assert (liu.g_max, liu.levels, liu.p_lrs, liu.p_hrs) == (300.0, 64, 0.05, 0.15)
    yousuf = rram.yousuf2025()
    assert (yousuf.levels, yousuf.g_min, yousuf.g_max) == (4, 133.0, 233.0)
    assert (yousuf.g_lrs, yousuf.g_hrs) == (500.0, 10.0)
    assert rram.wan2022().write.reference == 40.0
    fits = [rram.wan2022(t).write.coefficients[0] for t in (1.0, 86_400.0, 172_800.0)]
    assert fits == [0.348, 0.701, 0.782]
    with pytest.raises(ValueError, match="wan2022: time must be one of .* got 60"):
        rram.wan2022(60.0)
    assert rram.milo2021().g_min == 50.0
    assert rram.cmo_hfox(10.0).time == 10.0
    with pytest.raises(ValueError, match="time must be above 0"):
        rram.cmo_hfox(-1.0)
