import jax
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
    ],
)
def test_impossible_numbers_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        rram.Device(**numbers)


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
    ("part", "acts"),
    [
        ({}, False),
        ({"write": rram.Lognormal(0.1), "levels": 4}, False),
        ({"read": 0.0}, True),
        ({"dac": rram.Converter(8)}, True),
        ({"adc": rram.Converter(8)}, True),
        ({"wire": 1.0}, True),
    ],
)
def test_what_acts_in_the_product(part, acts):
    assert rram.Device(**part).acts_in_product is acts


def test_presets_are_devices_with_their_published_numbers():
    a, b = rram.chen2015_a(), rram.chen2015_b()
    assert (a.p_lrs, a.p_hrs) == (b.p_hrs, b.p_lrs) == (0.0175, 0.0904)
    liu = rram.liu2017(0.05, 0.15)
    assert (liu.g_max, liu.levels, liu.p_lrs, liu.p_hrs) == (300.0, 64, 0.05, 0.15)
    assert rram.yousuf2025().levels == 4
    assert rram.wan2022().write.reference == 40.0
    assert rram.milo2021().g_min == 50.0
    assert rram.cmo_hfox(10.0).time == 10.0
    with pytest.raises(ValueError, match="time must be above 0"):
        rram.cmo_hfox(-1.0)
