"""Axes of a leaf, and what a factory refuses."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from lowrank._axes import resolve


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_stack_axes_lie_in_both_factors():
    axes = lrk.Axes((1,), (0, 3), (2,))
    assert axes.a_dims == (1, 0, 3)
    assert axes.b_dims == (1, 2)
    assert axes.sizes((4, 3, 5, 2)) == lrk.Axes((3,), (4, 2), (5,))


def test_a_matrix_is_in_out_unless_told_otherwise():
    chosen = {"w": leaf(4, 3), "torch": leaf(3, 4)}
    found = resolve("test", chosen, {"torch": lrk.Axes((), (1,), (0,))})
    assert found == {
        "w": lrk.Axes((), (0,), (1,)),
        "torch": lrk.Axes((), (1,), (0,)),
    }


def test_lists_are_taken_as_tuples():
    found = resolve("test", {"w": leaf(3, 4, 5)}, {"w": lrk.Axes([0], [1], [2])})
    assert found["w"] == lrk.Axes((0,), (1,), (2,))
    assert hash(found["w"].a_dims)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (None, "needs 2 axes"),
        (lrk.Axes((), (0,), (1,)), r"axes \(\(\), \(0,\), \(1,\)\) do not fit"),
        (lrk.Axes((0,), (0, 1), (2,)), "axes .* do not fit"),
        (lrk.Axes((), (0, 1, 2), ()), "no input or no output axis"),
        (lrk.Axes((0, 1), (), (2,)), "no input or no output axis"),
    ],
)
def test_refuses_axes_that_do_not_fit(axes, message):
    told = {"w": axes} if axes else None
    with pytest.raises(
        ValueError, match=rf"test: .*'w' of shape \(2, 3, 4\): {message}"
    ):
        resolve("test", {"w": leaf(2, 3, 4)}, told)


def test_names_all_offenders_and_the_way_out():
    chosen = {"bias": leaf(3), "ok": leaf(3, 4), "scalar": leaf()}
    with pytest.raises(ValueError, match="'bias' .*; 'scalar' .*trace_axes") as error:
        resolve("test", chosen, None)
    assert "'ok'" not in str(error.value)
