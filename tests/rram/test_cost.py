"""`cost_card`: counts that can be checked by hand."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from tests.untyped import untyped

PARAMS = {
    "bias": jnp.zeros(3),
    "conv": jnp.zeros((2, 2, 1, 4)),
    "dense": jnp.zeros((5, 3)),
}
AXES = {"conv": lrk.Axes((), (0, 1, 2), (3,))}
CHIP = lrk.matching("conv|dense")


def card(**kwargs):
    return lrk.rram.cost_card(PARAMS, select=CHIP, axes=AXES, **kwargs)


def test_the_chip_alone():
    conv, dense = card(tile=2).rows
    # 4 x 4 and 5 x 3 weights, two cells each; two and three tiles of two rows.
    assert conv == ("conv", 32, 4 * 2, 0, 0, 0)
    assert dense == ("dense", 30, 3 * 3, 0, 0, 0)
    assert card(tile=2).total == ("total", 62, 17, 0, 0, 0)
    assert card().total.conversions == 4 + 3


def test_positions_examples_and_columns_that_are_read_one_by_one():
    conv, dense = card(tile=2, batch=10, uses={"conv": 9}, differential=False).rows
    assert conv.conversions == 10 * 9 * 4 * 2 * 2
    assert dense.conversions == 10 * 3 * 3 * 2
    assert conv.cells == 32


def test_the_adapter():
    conv, dense = card(rank={"dense": 2}, batch=10).rows
    assert conv[3:] == (0, 0, 0)
    assert dense.multiply_adds == 10 * 2 * (5 + 3)
    assert dense.bytes_stored == 4 * 2 * (5 + 3)
    assert dense.bytes_moved == 4 * (2 * (5 + 3) + 10 * (5 + 3))
    assert card(rank=100).rows[1].bytes_stored == 4 * 3 * (5 + 3)
    assert card(rank=2, width=2).rows[1].bytes_stored == 2 * 2 * (5 + 3)


def test_a_stack_is_as_many_weights():
    params = {"w": jax.ShapeDtypeStruct((3, 5, 4), jnp.float32)}
    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    found = lrk.rram.cost_card(
        params, rank=1, cells=1, batch=2, select=lrk.matching("w"), axes=axes
    )
    stored, moved = 4 * 3 * 9, 4 * (3 * 9 + 2 * 3 * 9)
    assert found.total == ("total", 60, 2 * 3 * 4, 2 * 3 * 9, moved, stored)


def test_energy_is_known_only_if_its_constants_are():
    assert card().inference_pj is None
    assert card().programming_pj is None
    known = card(rank={"dense": 1}, conversion_pj=2.0, multiply_add_pj=0.5, byte_pj=0.1)
    moved = 4 * (8 + 8)
    assert known.inference_pj == pytest.approx(7 * 2.0 + 8 * 0.5 + moved * 0.1)
    assert known.programming_pj is None
    assert card(rank=1, conversion_pj=2.0).inference_pj is None
    assert card(conversion_pj=2.0).inference_pj == 14.0
    assert card(write_pj=10.0).programming_pj == 620.0


def test_published_energies_are_constants_of_the_card():
    known = lrk.rram.published_energies()
    found = card(rank={"dense": 1}, **known)
    moved = 4 * (8 + 8)
    assert found.inference_pj == pytest.approx(7 * 1.67 + 8 * 4.6 + moved * 1.25)
    assert found.programming_pj is None  # of writing none is claimed


def test_prints_as_a_table():
    text = repr(card(rank=1, tile=2, conversion_pj=2.0, write_pj=10.0))
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == "path cells conversions multiply-adds moved stored".split()
    assert lines[3] == "dense 30 9 8 64 B 32 B".split()
    assert lines[4][:3] == ["total", "62", "17"]
    assert text.endswith("energy of the batch unknown, of programming 620 pJ")
    assert "<td" in card()._repr_html_()


def test_counts_are_whole():
    with (
        untyped(),
        pytest.raises(ValueError, match=r"cost_card: tile must be a whole .* got 2\.5"),
    ):
        card(tile=2.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: card(tile=0, batch=0), "expected at least 1, got batch=0, tile=0"),
        (lambda: card(rank={"bias": 1}), "got rank of 'bias'"),
        (lambda: card(rank=-1), "rank of 'conv' is -1; rank of 'dense' is -1"),
        (lambda: card(uses={"x": 2}), "got uses of 'x'"),
        (lambda: lrk.rram.cost_card({"b": jnp.ones(3)}), "the selection matches none"),
        (lambda: lrk.rram.cost_card(PARAMS, select=CHIP), "'conv'.*needs 2 axes"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()
