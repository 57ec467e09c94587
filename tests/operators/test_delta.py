"""`Delta`: every rule against the dense weight, over arrays and over operators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import lowrank as lrk
from lowrank.operators import Contraction, Convolution, Delta, Gather
from tests.network import numbers
from tests.tolerances import assert_close


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def plain():
    return Delta(array(1, 4, 6), array(2, 4, 6))


def over_low_rank():
    inner = lrk.LowRank(array(1, 4, 6), array(3, 4, 2), array(4, 2, 6), 0.5)
    return Delta(inner, array(2, 4, 6))


@pytest.fixture(params=[plain, over_low_rank])
def op(request):
    return request.param()


def test_stands_for_the_sum(op):
    base = op.w if isinstance(op.w, jax.Array) else op.w.dense()
    assert_close(op.dense(), base + array(2, 4, 6))
    assert op.delta() is op.d
    assert (op.shape, op.dtype, op.additive) == ((4, 6), jnp.float32, True)


def test_a_bf16_weight_is_rounded_once():
    op = Delta(array(1, 4, 6).astype(jnp.bfloat16), array(2, 4, 6))
    want = (op.w.astype(jnp.float32) + op.d).astype(jnp.bfloat16)
    assert op.dtype == jnp.bfloat16
    assert bool((op.dense() == want).all())


def test_over_an_array_it_settles_and_over_an_operator_it_waits():
    assert_close(plain().settle(), plain().dense())
    waiting = over_low_rank().settle()
    assert isinstance(waiting, Delta)
    assert isinstance(waiting.w, lrk.LowRank)
    thin = lrk.LowRank(array(1, 4, 1), array(3, 4, 1), array(4, 1, 1))
    both = Delta(thin, array(2, 4, 1))
    assert_close(both.settle(), both.dense())


@pytest.mark.parametrize(
    ("shape", "axes", "weight_first"),
    [
        ((5, 4), (((1,), (0,)), ((), ())), False),
        ((5, 6), (((1,), (1,)), ((), ())), False),
        ((6, 5), (((1,), (0,)), ((), ())), True),
        ((4, 5), (((), ()), ((0,), (0,))), False),
    ],
)
def test_products_are_those_of_the_dense_weight(op, shape, axes, weight_first):
    spec = Contraction(axes, weight_first)
    x = array(9, *shape)
    assert_close(op.contract(x, spec), spec(x, op.dense()))


def test_a_convolution_is_that_of_the_dense_kernel():
    op = Delta(array(1, 3, 2, 4), array(2, 3, 2, 4))
    x = array(9, 1, 5, 2)
    dims = lax.conv_dimension_numbers(x.shape, op.shape, ("NWC", "WIO", "NWC"))
    spec = Convolution((1,), ((1, 1),), (1,), (1,), dims)
    assert_close(op.conv(x, spec), spec(x, op.dense()))


@pytest.mark.parametrize("shape", [(3,), (2, 2)], ids=str)
def test_look_ups_are_those_of_the_dense_weight(op, shape):
    indices = np.array([3, 0, 1, 1])[: np.prod(shape)].reshape(shape)[..., None]
    depth = len(shape)
    dims = lax.GatherDimensionNumbers((depth,), (0,), (0,))
    spec = Gather(dims, (1, 6), lax.GatherScatterMode.CLIP)
    got = op.gather(jnp.asarray(indices), spec)
    assert_close(got, spec(op.dense(), jnp.asarray(indices)))


def test_a_look_up_out_of_bounds_fills_as_the_base_does(op):
    dims = lax.GatherDimensionNumbers((1,), (0,), (0,))
    spec = Gather(dims, (1, 6), lax.GatherScatterMode.FILL_OR_DROP, jnp.nan)
    got = op.gather(jnp.array([[1], [9]]), spec)
    assert_close(got[0], op.dense()[1])
    assert bool(jnp.isnan(got[1]).all())


def test_a_look_up_of_blocks_is_declined():
    dims = lax.GatherDimensionNumbers((0, 1), (), (0, 1))
    spec = Gather(dims, (2, 3), lax.GatherScatterMode.CLIP)
    assert plain().gather(jnp.array([0, 1]), spec) is NotImplemented


def test_structure_is_that_of_the_dense_weight(op):
    pairs = [
        (op.transpose((1, 0)), lambda w: w.T),
        (op.reshape((2, 2, 6)), lambda w: w.reshape(2, 2, 6)),
        (op.slice((1, 0), (3, 6), (1, 2)), lambda w: w[1:3, ::2]),
        (op.dynamic_slice([1, jnp.int32(2)], [2, 3]), lambda w: w[1:3, 2:5]),
        (op.reverse((0,)), lambda w: w[::-1]),
        (op.scaled(jnp.float32(3.0)), lambda w: 3 * w),
        (op.add(array(7, 4, 6)), lambda w: w + array(7, 4, 6)),
    ]
    for changed, same in pairs:
        assert isinstance(changed, Delta)
        assert changed.mismatch() is None
        assert_close(changed.dense(), same(op.dense()))


def test_a_cast_reaches_the_base_and_products(op):
    half = op.cast(jnp.bfloat16)
    assert (half.dtype, half.d.dtype) == (jnp.bfloat16, jnp.float32)
    spec = Contraction((((1,), (0,)), ((), ())), False)
    x = array(9, 5, 4).astype(jnp.bfloat16)
    got = half.contract(x, spec)
    assert got.dtype == jnp.bfloat16
    assert_close(got, spec(x, op.dense().astype(jnp.bfloat16)))


def test_unstacked_slices_are_those_of_the_dense_weight(op):
    parts, rebuild = op.unstack()
    for i in range(4):
        one = rebuild(jax.tree.map(lambda x, i=i: x[i], parts))
        assert_close(one.dense(), op.dense()[i])


def test_it_is_split_and_constrained_as_its_base():
    spec = PartitionSpec(None, "model")
    parts = plain().partition(spec)
    assert (parts.w, parts.d) == (spec, spec)
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("model",), axis_types=(axis,))
    sharding = NamedSharding(mesh, spec)
    op = jax.jit(lambda op: op.constrain(sharding))(plain())
    assert op.w.sharding.is_equivalent_to(sharding, 2)
    assert op.d.sharding.is_equivalent_to(sharding, 2)


def test_a_base_that_declines_is_passed_on():
    class Stubborn(lrk.Operator):
        fields = ("w",)

        @property
        def aval(self):
            return jax.typeof(self.w)

    op = Delta(Stubborn._make(w=array(1, 4, 6)), array(2, 4, 6))
    spec = Contraction((((1,), (0,)), ((), ())), False)
    answers = [
        op.contract(array(9, 5, 4), spec),
        op.gather(jnp.array([[1]]), spec),
        op.transpose((1, 0)),
        op.reshape((24,)),
        op.slice((0, 0), (1, 1), None),
        op.dynamic_slice([0, 0], [1, 1]),
        op.reverse((0,)),
        op.cast(jnp.bfloat16),
        op.scaled(2.0),
        op.add(op.d),
        op.unstack(),
    ]
    assert all(answer is NotImplemented for answer in answers)


def test_a_delta_of_another_shape_is_refused():
    with pytest.raises(
        ValueError,
        match=r"Delta: an array of \(6, 4\) does not fit a weight of \(4, 6\)",
    ):
        Delta(array(1, 4, 6), array(2, 6, 4))
    with pytest.raises(ValueError, match="factors .* do not fit"):
        Delta(over_low_rank().w.replace(a=jnp.ones((5, 2))), array(2, 4, 6))
