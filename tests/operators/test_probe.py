"""`Probe`: which role each axis of a leaf plays, through every structural rule."""

import jax.numpy as jnp
import pytest
from jax import lax

from lowrank.operators import Contraction, Convolution, Gather
from lowrank.operators._probe import Probe, Usage
from tests.network import numbers
from tests.tolerances import assert_close

PRODUCT = Contraction((((1,), (0,)), ((), ())), False)


def probe(*shape):
    usage = Usage()
    origins = tuple(frozenset([d]) for d in range(len(shape)))
    w = jnp.asarray(numbers(1, *shape))
    return Probe._make(w=w, origins=origins, usage=usage, path="w"), usage


def x(*shape):
    return jnp.asarray(numbers(2, *shape))


def test_a_product_tells_inputs_outputs_and_stacks():
    op, usage = probe(3, 4, 6)
    spec = Contraction((((2,), (1,)), ((0,), (0,))), False)
    out = op.contract(x(3, 5, 4), spec)
    assert usage.roles == {0: ["stack"], 1: ["input"], 2: ["output"]}
    assert_close(out, spec(x(3, 5, 4), op.w))


def test_a_convolution_has_one_output_axis():
    op, usage = probe(3, 2, 4)
    dims = lax.conv_dimension_numbers((1, 5, 2), (3, 2, 4), ("NWC", "WIO", "NWC"))
    op.conv(x(1, 5, 2), Convolution((1,), ((0, 0),), (1,), (1,), dims))
    assert usage.roles == {0: ["input"], 1: ["input"], 2: ["output"]}


def test_a_look_up_is_an_input():
    op, usage = probe(4, 6)
    dims = lax.GatherDimensionNumbers((1,), (0,), (0,))
    rows = op.gather(jnp.array([[2]]), Gather(dims, (1, 6), "clip"))
    assert usage.roles == {0: ["input"], 1: ["output"]}
    assert_close(rows[0], op.w[2])


def test_a_look_up_of_blocks_forms_the_weight():
    op, usage = probe(4, 6)
    dims = lax.GatherDimensionNumbers((0, 1), (), (0, 1))
    op.gather(jnp.array([0, 1]), Gather(dims, (2, 3), "clip"))
    assert usage.roles == {0: ["formed"], 1: ["formed"]}


def test_a_transposed_weight_remembers_its_axes():
    op, usage = probe(4, 6)
    op.transpose((1, 0)).contract(x(5, 6), PRODUCT)
    assert usage.roles == {1: ["input"], 0: ["output"]}


def test_merged_and_split_axes_remember_where_they_came_from():
    op, usage = probe(4, 2, 3)
    op.reshape((4, 6)).contract(x(5, 4), PRODUCT)
    assert usage.roles == {0: ["input"], 1: ["output"], 2: ["output"]}
    op, usage = probe(4, 6)
    spec = Contraction((((1,), (0,)), ((), ())), False)
    op.reshape((4, 2, 3)).contract(x(5, 4), spec)
    assert usage.roles == {0: ["input"], 1: ["output", "output"]}


def test_axes_of_length_one_have_no_role():
    op, usage = probe(4, 6)
    op.reshape((1, 4, 6)).contract(
        x(5, 4), Contraction((((1,), (1,)), ((), ())), False)
    )
    assert usage.roles == {0: ["input"], 1: ["output"]}


def test_an_axis_cut_to_one_index_is_a_stack():
    for cut in (
        lambda op: op.slice((1, 0, 0), (2, 4, 6), None),
        lambda op: op.dynamic_slice([jnp.int32(1), 0, 0], [1, 4, 6]),
    ):
        op, usage = probe(3, 4, 6)
        one = cut(op)
        assert one.origins[0] == frozenset()
        assert_close(one.w, op.w[1:2])
        one.reshape((4, 6)).contract(x(5, 4), PRODUCT)
        assert usage.roles == {0: ["stack"], 1: ["input"], 2: ["output"]}


def test_a_slice_that_keeps_more_is_no_stack():
    op, usage = probe(4, 6)
    op.slice((0, 0), (4, 3), None).contract(x(5, 4), PRODUCT)
    assert usage.roles == {0: ["input"], 1: ["output"]}


def test_an_unstacked_axis_is_a_stack():
    op, usage = probe(3, 4, 6)
    parts, rebuild = op.unstack()
    rebuild(parts[0]).contract(x(5, 4), PRODUCT)
    assert usage.roles == {0: ["stack"], 1: ["input"], 2: ["output"]}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda op: op.cast(jnp.bfloat16), lambda w: w.astype(jnp.bfloat16)),
        (lambda op: op.scaled(2.0), lambda w: 2 * w),
        (lambda op: op.add(op.w), lambda w: 2 * w),
        (lambda op: op.reverse((1,)), lambda w: w[:, ::-1]),
    ],
)
def test_other_rules_change_numbers_alone(change, same):
    op, usage = probe(4, 6)
    changed = change(op)
    assert changed.origins == op.origins
    assert changed.usage is usage
    assert usage.roles == {}
    assert_close(changed.w, same(op.w))


def test_a_formed_weight_is_noted():
    op, usage = probe(4, 6)
    assert op.dense() is op.w
    assert usage.roles == {0: ["formed"], 1: ["formed"]}
