"""`LowRank`: every rule against the dense weight, for every layout of its axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import lowrank as lrk
from lowrank.operators import Contraction, Convolution, Gather, LowRank
from tests.network import numbers
from tests.reference import lora as reference
from tests.tolerances import assert_close


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def matrix(**dims):
    return LowRank(array(1, 4, 6), array(2, 4, 2), array(3, 2, 6), 0.5, **dims)


def flipped():
    return LowRank(
        array(1, 6, 4), array(2, 4, 2), array(3, 2, 6), 0.5, a_dims=(1,), b_dims=(0,)
    )


def stacked(scale=(0.5, 1.0, 2.0)):
    scale = jnp.asarray(scale)
    return LowRank(array(1, 3, 4, 6), array(2, 3, 4, 2), array(3, 3, 2, 6), scale)


def heads():
    """`[D, H, d]` with the input first."""
    return LowRank(
        array(1, 4, 2, 3),
        array(2, 4, 2),
        array(3, 2, 2, 3),
        0.5,
        a_dims=(0,),
        b_dims=(1, 2),
    )


LAYOUTS = {"matrix": matrix, "flipped": flipped, "stacked": stacked, "heads": heads}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def op(request):
    return request.param()


def f32(values):
    return np.asarray(values, np.float32)


def test_dense_follows_the_equation():
    one, many, wide = matrix(), stacked(), heads()
    assert_close(one.dense(), f32(reference.weight(one.w, one.a, one.b, 0.5)))
    want = reference.stacked(many.w, many.a, many.b, [0.5, 1.0, 2.0])
    assert_close(many.dense(), f32(want))
    want = reference.multi_axis(wide.w, wide.a, wide.b, 0.5, "dr,rhk->dhk")
    assert_close(wide.dense(), f32(want))


def test_delta_is_what_dense_adds(op):
    assert_close(op.w + op.delta(), op.dense())
    assert_close(op.replace(w=None).delta(), op.delta())


def test_a_bf16_weight_is_rounded_once():
    exact = matrix()
    half = exact.replace(w=exact.w.astype(jnp.bfloat16))
    want = (half.w.astype(jnp.float32) + exact.delta()).astype(jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert bool((half.dense() == want).all())
    assert [x.dtype for x in half.factors(jnp.bfloat16)] == [jnp.bfloat16] * 2


def test_dims_are_told_by_the_numbers_of_axes():
    op = LowRank(array(1, 3, 4, 6), array(2, 3, 4, 2), array(3, 3, 2, 6))
    assert (op.a_dims, op.b_dims, op.stack) == ((0, 1), (0, 2), (0,))
    wide = LowRank(array(1, 4, 5, 6), array(2, 4, 5, 2), array(3, 2, 6))
    assert (wide.a_dims, wide.b_dims, wide.stack) == ((0, 1), (2,), ())
    assert (wide.rank, wide.scale.shape) == (2, ())
    assert op.a_labels[:2] == (0, 1)
    assert op.b_labels[::2] == (0, 2)
    assert op.describe_axes() == "a[0, 1] b[0, 2]"


CONTRACTIONS = {
    # layout, x shape, dimension numbers (x, w), weight first
    "x w": (matrix, (5, 4), (((1,), (0,)), ((), ())), False),
    "x w.T": (matrix, (5, 6), (((1,), (1,)), ((), ())), False),
    "w x": (matrix, (6, 5), (((1,), (0,)), ((), ())), True),
    "vector": (matrix, (4,), (((0,), (0,)), ((), ())), False),
    "three axes": (matrix, (2, 3, 4), (((2,), (0,)), ((), ())), False),
    "both sides": (matrix, (4, 6), (((0, 1), (0, 1)), ((), ())), False),
    "outer": (matrix, (2,), (((), ()), ((), ())), False),
    "[out, in]": (flipped, (5, 4), (((1,), (1,)), ((), ())), False),
    "batched": (stacked, (3, 5, 4), (((2,), (1,)), ((0,), (0,))), False),
    "batched, out": (stacked, (3, 5, 6), (((2,), (2,)), ((0,), (0,))), False),
    "stack kept": (stacked, (5, 4), (((1,), (1,)), ((), ())), False),
    "stack summed": (stacked, (5, 3), (((1,), (0,)), ((), ())), False),
    "heads out": (heads, (5, 4), (((1,), (0,)), ((), ())), False),
    "heads in": (heads, (5, 2, 3), (((1, 2), (1, 2)), ((), ())), False),
    "one head axis": (heads, (5, 3), (((1,), (2,)), ((), ())), False),
}


@pytest.mark.parametrize(
    ("make", "shape", "axes", "weight_first"), CONTRACTIONS.values(), ids=CONTRACTIONS
)
def test_products_are_those_of_the_dense_weight(make, shape, axes, weight_first):
    op, spec = make(), Contraction(axes, weight_first)
    x = array(9, *shape)
    assert_close(op.contract(x, spec), spec(x, op.dense()))


def test_a_product_never_forms_the_weight():
    op, spec = matrix(), Contraction((((1,), (0,)), ((), ())), False)
    jaxpr = jax.make_jaxpr(lambda x: op.contract(x, spec))(array(9, 5, 4))
    dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.shape for e in dots] == [(5, 6), (5, 2), (5, 6)]


def test_products_pass_their_options_on():
    spec = Contraction(
        (((1,), (0,)), ((), ())), False, lax.Precision.HIGHEST, jnp.float32
    )
    op = matrix()
    half = op.replace(w=op.w.astype(jnp.bfloat16))
    x = array(9, 5, 4).astype(jnp.bfloat16)
    assert half.contract(x, spec).dtype == jnp.float32
    assert_close(half.contract(x, spec), spec(x, half.dense()), "bfloat16")
    jaxpr = jax.make_jaxpr(lambda x: half.contract(x, spec))(x)
    dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(dots) == 3
    assert all(e.params["precision"] == dots[0].params["precision"] for e in dots)
    assert "HIGHEST" in str(dots[-1].params["precision"])


def gather_numbers(w, axis, indices):
    """The spec of `jnp.take(w, indices, axis)` as JAX stages it."""
    jaxpr = jax.make_jaxpr(lambda w: jnp.take(w, indices, axis=axis))(w)
    eqn = next(e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "gather")
    names = ("dimension_numbers", "slice_sizes", "mode", "fill_value")
    return Gather(**{name: eqn.params[name] for name in names})


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


@pytest.mark.parametrize("shape", [(5,), (2, 2)], ids=str)
@pytest.mark.parametrize(
    ("make", "axis"),
    [(matrix, 0), (matrix, 1), (flipped, 0), (stacked, 0), (stacked, 1), (heads, 1)],
)
def test_look_ups_are_those_of_the_dense_weight(make, axis, shape):
    op = make()
    indices = np.array([0, 1, 1, 0, op.shape[axis] - 1])[: np.prod(shape)]
    indices = indices.reshape(shape)
    spec = gather_numbers(op.w, axis, indices)
    got = op.gather(jnp.asarray(indices)[..., None], spec)
    got = got.dense() if isinstance(got, lrk.Operator) else got
    assert_close(got, spec(op.dense(), jnp.asarray(indices)[..., None]))


def test_members_picked_from_a_stack_stay_factored():
    op = stacked()
    spec = gather_numbers(op.w, 0, np.array([2, 0]))
    picked = op.gather(jnp.array([[2], [0]]), spec)
    assert isinstance(picked, LowRank)
    assert picked.stack == (0,)
    assert_close(picked.scale, jnp.array([2.0, 0.5]))


def test_structure_is_that_of_the_dense_weight(op):
    permutation = tuple(reversed(range(op.ndim)))
    limit = tuple(n - (n > 2) for n in op.shape)
    starts, sizes = [1] * op.ndim, [n - 1 for n in op.shape]
    pairs = [
        (op.transpose(permutation), lambda w: lax.transpose(w, permutation)),
        (
            op.slice((0,) * op.ndim, limit, (2,) * op.ndim),
            lambda w: lax.slice(w, (0,) * op.ndim, limit, (2,) * op.ndim),
        ),
        (
            op.slice((0,) * op.ndim, limit, None),
            lambda w: lax.slice(w, (0,) * op.ndim, limit),
        ),
        (
            op.dynamic_slice([jnp.int32(i) for i in starts], sizes),
            lambda w: lax.dynamic_slice(w, starts, sizes),
        ),
        (op.reverse((0, op.ndim - 1)), lambda w: lax.rev(w, (0, op.ndim - 1))),
        (op.scaled(jnp.float32(3.0)), lambda w: 3 * w),
        (op.add(op.w), lambda w: w + op.w),
    ]
    for changed, same in pairs:
        assert isinstance(changed, LowRank)
        assert changed.mismatch() is None
        assert_close(changed.dense(), same(op.dense()))


def test_a_transposed_stack_keeps_its_order_in_both_factors():
    op = stacked().transpose((2, 0, 1))
    assert (op.a_dims, op.b_dims, op.stack) == ((1, 2), (1, 0), (1,))
    spec = Contraction((((2,), (2,)), ((0,), (1,))), False)
    x = array(9, 3, 5, 4)
    assert_close(op.contract(x, spec), spec(x, op.dense()))


RESHAPES = {
    "split an input": (matrix, (2, 2, 6)),
    "split an output": (matrix, (4, 2, 3)),
    "add ones": (matrix, (1, 4, 1, 6, 1)),
    "split an output in front": (flipped, (2, 3, 4)),
    "merge outputs": (heads, (4, 6)),
    "split a stack member": (stacked, (3, 2, 2, 6)),
    "split both": (stacked, (3, 2, 2, 3, 2)),
}


@pytest.mark.parametrize(("make", "shape"), RESHAPES.values(), ids=RESHAPES)
def test_reshapes_split_and_merge_axes_of_one_kind(make, shape):
    op = make()
    new = op.reshape(shape)
    assert new.mismatch() is None
    assert_close(new.dense(), op.dense().reshape(shape))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(matrix, (24,)), (matrix, (2, 12)), (heads, (8, 3)), (stacked, (12, 6))],
)
def test_reshapes_that_mix_kinds_are_declined(make, shape):
    assert make().reshape(shape) is NotImplemented


def test_a_cast_reaches_base_and_products(op):
    half = op.cast(jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert half.a.dtype == jnp.float32
    assert_close(half.dense(), op.dense().astype(jnp.bfloat16))


def test_unstacked_slices_are_those_of_the_dense_weight(op):
    parts, rebuild = op.unstack()
    for i in range(op.shape[0]):
        one = rebuild(jax.tree.map(lambda x, i=i: x[i], parts))
        assert_close(one.dense(), op.dense()[i])


def test_a_scalar_scale_is_shared_by_all_slices():
    parts, rebuild = stacked(0.5).unstack()
    assert "scale" not in parts[1]
    one = rebuild(jax.tree.map(lambda x: x[1], parts))
    assert_close(one.dense(), stacked(0.5).dense()[1])


def test_a_convolution_is_that_of_the_dense_kernel():
    op = LowRank(array(1, 3, 3, 2, 4), array(2, 3, 3, 2, 2), array(3, 2, 4), 0.5)
    x = array(9, 1, 5, 5, 2)
    numbers_ = lax.conv_dimension_numbers(x.shape, op.shape, ("NHWC", "HWIO", "NHWC"))
    spec = Convolution((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), numbers_)
    assert_close(op.conv(x, spec), spec(x, op.dense()))
    many = LowRank(
        array(1, 2, 3, 2, 4),
        array(2, 2, 3, 2, 2),
        array(3, 2, 2, 4),
        a_dims=(0, 1, 2),
        b_dims=(0, 3),
    )
    assert many.stack == (0,)
    y = array(9, 1, 4, 5, 2)
    assert many.conv(y, spec) is NotImplemented


def test_nested_bases_add_their_terms():
    inner = matrix()
    outer = LowRank(lrk.Delta(inner, array(7, 4, 6)), array(5, 4, 1), array(6, 1, 6))
    spec = Contraction((((1,), (0,)), ((), ())), False)
    x = array(9, 5, 4)
    want = reference.weight(inner.dense() + array(7, 4, 6), outer.a, outer.b, 1.0)
    assert_close(outer.dense(), f32(want))
    assert_close(outer.contract(x, spec), spec(x, outer.dense()))
    turned = outer.transpose((1, 0))
    assert_close(turned.dense(), outer.dense().T)


def test_a_base_that_declines_is_passed_on():
    class Stubborn(lrk.Operator):
        fields = ("w",)

        @property
        def aval(self):
            return jax.typeof(self.w)

    op = matrix().replace(w=Stubborn._make(w=array(1, 4, 6)))
    spec = Contraction((((1,), (0,)), ((), ())), False)
    answers = [
        op.contract(array(9, 5, 4), spec),
        op.transpose((1, 0)),
        op.reshape((4, 3, 2)),
        op.slice((0, 0), (1, 1), None),
        op.dynamic_slice([0, 0], [1, 1]),
        op.reverse((0,)),
        op.cast(jnp.bfloat16),
        op.scaled(2.0),
        op.add(op.a),
        op.unstack(),
        op.partition(PartitionSpec()),
    ]
    assert all(answer is NotImplemented for answer in answers)


def test_partition_splits_each_factor_as_its_axes():
    spec = PartitionSpec("data", None, "model")
    parts = stacked().partition(spec)
    assert parts.w == spec
    assert parts.a == PartitionSpec("data", None, None)
    assert parts.b == PartitionSpec("data", None, "model")
    assert parts.scale == PartitionSpec("data")
    assert matrix().partition(PartitionSpec()).a == PartitionSpec(None, None)


def test_constrain_wants_a_named_sharding():
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("model",), axis_types=(axis,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    op = jax.jit(lambda op: op.constrain(sharding))(matrix())
    assert op.b.sharding.is_equivalent_to(sharding, 2)
    assert op.w.sharding.is_equivalent_to(sharding, 2)
    assert op.a.sharding.is_fully_replicated
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert matrix().constrain(single) is NotImplemented


def test_a_weight_as_thin_as_its_factor_settles_as_an_array():
    thin = LowRank(array(1, 4, 1), array(2, 4, 1), array(3, 1, 1))
    assert_close(thin.settle(), thin.dense())
    assert isinstance(matrix().settle(), LowRank)
    row = LowRank(array(1, 3, 1, 6), array(2, 3, 1, 2), array(3, 3, 2, 6))
    assert_close(row.settle(), row.dense())


MISFITS = {
    "input": ((4, 6), (5, 2), (2, 6), ()),
    "output": ((4, 6), (4, 2), (2, 5), ()),
    "rank": ((4, 6), (4, 2), (3, 6), ()),
    "scale": ((4, 6), (4, 2), (2, 6), (2,)),
    "stack": ((3, 4, 6), (2, 4, 2), (3, 2, 6), ()),
    "axes": ((4, 6), (4, 2), (6,), ()),
}


@pytest.mark.parametrize(("w", "a", "b", "scale"), MISFITS.values(), ids=MISFITS)
def test_factors_that_do_not_fit_are_refused(w, a, b, scale):
    message = rf"LowRank: factors \({a[0]}, .* do not fit a weight of shape \({w[0]}, "
    with pytest.raises(ValueError, match=message):
        LowRank(jnp.ones(w), jnp.ones(a), jnp.ones(b), jnp.ones(scale))


def test_dims_that_do_not_fit_are_refused():
    for a_dims, b_dims in (((0,), (0,)), ((0, 1), (1,)), ((1,), (0,))):
        with pytest.raises(ValueError, match="do not fit a weight"):
            matrix(a_dims=a_dims, b_dims=b_dims)
    with pytest.raises(ValueError, match="pass both a_dims and b_dims, or neither"):
        matrix(a_dims=(0,))


def test_a_misfit_deep_inside_is_reported():
    broken = matrix().replace(a=jnp.ones((5, 2)))
    assert "(5, 2)" in matrix().replace(w=broken).mismatch()
    assert "(5, 2)" in lrk.Delta(matrix(), matrix().w).replace(w=broken).mismatch()


def test_numpy_state_forms_the_same_weight():
    ones = jax.nn.initializers.ones
    params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2, alpha=4, init_b=ones)
    state = tx.init(jax.random.key(0), params)
    on_host = jax.tree.map(np.asarray, state)
    formed = lrk.materialize(tx.apply(params, on_host))["w"]
    assert np.array_equal(formed, lrk.materialize(tx.apply(params, state))["w"])
