"""`Magnitude`: every rule against the dense weight, norms from the factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowrank as lrk
from lowrank.operators import Contraction, Gather, Magnitude
from lowrank.operators._norms import norms
from tests.network import numbers
from tests.tolerances import assert_close


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def over_array():
    return Magnitude(array(1, 4, 6), array(2, 6))


def over_low_rank():
    inner = lrk.LowRank(array(1, 4, 6), array(3, 4, 2), array(4, 2, 6), 0.5)
    return Magnitude(inner, array(2, 6))


def stacked():
    """Three layers of 4 inputs and 2 x 3 outputs, the axes of `m` out of order."""
    inner = lrk.LowRank(
        array(1, 3, 4, 2, 3), array(3, 3, 4, 2), array(4, 3, 2, 2, 3), 0.5
    )
    return Magnitude(inner, array(2, 3, 3, 2), dims=(0, 3, 2))


@pytest.fixture(params=[over_array, over_low_rank])
def op(request):
    return request.param()


def kept(op):
    """An operator, checked to be one."""
    assert isinstance(op, lrk.Operator)
    return op


# --- what it stands for --------------------------------------------------------------


def test_columns_have_the_lengths_of_m(op):
    norm = np.linalg.norm(np.asarray(op.dense()), axis=0)
    assert_close(norm, np.abs(np.asarray(op.m)))
    assert (op.shape, op.dtype, op.additive) == ((4, 6), jnp.float32, False)
    assert (op.has_dense, op.exact_grad) == (True, False)
    assert Magnitude(op.w, op.m, detach=False).exact_grad


INNER = {
    "two terms": lambda w: lrk.LowRank(
        lrk.LowRank(w, array(3, 4, 2), array(4, 2, 6), 0.5),
        array(5, 4, 1),
        array(6, 1, 6),
    ),
    "delta between": lambda w: lrk.LowRank(
        lrk.Delta(w, array(7, 4, 6)), array(3, 4, 2), array(4, 2, 6), -2.0
    ),
    "magnitude below": lambda w: lrk.LowRank(
        Magnitude(w, array(8, 6)), array(3, 4, 2), array(4, 2, 6)
    ),
    "two layouts": lambda w: lrk.LowRank(
        lrk.LowRank(w, array(3, 4, 2), array(4, 2, 6), 0.5),
        array(5, 6, 1),
        array(6, 1, 4),
        a_dims=(1,),
        b_dims=(0,),
    ),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("dims", [(1,), (0,), (1, 0), ()])
def test_norms_are_those_of_the_dense_weight(name, dims):
    w = INNER[name](array(1, 4, 6))
    summed = tuple(d for d in range(2) if d not in dims)
    want = np.sqrt(np.sum(np.asarray(w.dense(), np.float64) ** 2, axis=summed))
    want = want.T if dims == (1, 0) else want
    assert_close(norms(w, dims), want.astype(np.float32))


def test_norms_of_stacks_and_of_several_output_axes():
    op = stacked()
    want = np.linalg.norm(np.asarray(op.w.dense(), np.float64), axis=1)
    assert_close(op.norm, np.swapaxes(want, 1, 2).astype(np.float32))


def test_the_sum_is_not_formed_for_its_norm():
    w, a, b = array(1, 64, 96), array(3, 64, 2), array(4, 2, 96)

    def of_factors(w, a, b):
        return norms(lrk.LowRank(w, a, b), (1,))

    inner = [
        eqn
        for eqn in jax.make_jaxpr(of_factors)(w, a, b).eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert len(inner) == 3
    assert max(eqn.outvars[0].aval.size for eqn in inner) == 96 * 2


def test_a_square_below_zero_by_rounding_is_zero():
    a, b = array(3, 4, 1), array(4, 1, 6)
    found = norms(lrk.LowRank(-(a @ b), a, b), (1,))
    scale = np.linalg.norm(np.asarray(a @ b), axis=0)
    assert bool(jnp.isfinite(found).all())
    assert np.all(np.asarray(found) < 1e-3 * scale)


# --- products ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes", "weight_first"),
    [
        ((5, 4), ((1,), (0,)), False),  # x W
        ((5, 6), ((1,), (1,)), False),  # x W^T: the outputs are summed
        ((4, 5), ((0,), (0,)), True),  # W^T x
        ((5, 4, 6), ((1, 2), (0, 1)), False),  # both are summed
    ],
)
def test_contract(op, shape, axes, weight_first):
    x = array(5, *shape)
    axes = axes[::-1] if weight_first else axes
    spec = Contraction((axes, ((), ())), weight_first)
    assert_close(op.contract(x, spec), spec(x, op.dense()))


def test_contract_of_a_stack():
    op, x = stacked(), array(5, 5, 3, 4)
    spec = Contraction((((2,), (1,)), ((1,), (0,))), False)
    assert_close(op.contract(x, spec), spec(x, op.dense()))
    mixed = Contraction((((0,), (2,)), ((), ())), False)  # one output axis of two
    assert op.contract(array(6, 2, 5), mixed) is NotImplemented


@pytest.mark.parametrize("groups", [1, 2])
def test_conv(groups):
    w = lrk.LowRank(
        array(1, 2, 2, 4 // groups, 6),
        array(3, 2, 2, 4 // groups, 2),
        array(4, 2, 6),
        0.5,
    )
    op, x = Magnitude(w, array(2, 6)), array(5, 2, 5, 5, 4)

    def conv(w, x):
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups
        )

    assert_close(lrk.lift(conv)(op, x), conv(op.dense(), x))
    over_inputs = Magnitude(w.dense(), array(2, 4 // groups), dims=(2,))
    if groups == 1:
        assert_close(lrk.lift(conv)(over_inputs, x), conv(over_inputs.dense(), x))
        return
    with pytest.raises(lrk.LiftError, match="no factored form"):
        lrk.lift(conv)(over_inputs, x)


@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_look_ups(op, mode):
    indices = jnp.array([[0, 3], [2, 9]])
    rows = {"dims": (1,), "m": op.m}, {"dims": (0,), "m": array(8, 4)}
    for told in rows:
        own = Magnitude(op.w, told["m"], dims=told["dims"])

        def look(w):
            return jnp.take(w, indices, axis=0, mode=mode)

        found, want = lrk.lift(look)(own), look(own.dense())
        np.testing.assert_array_equal(np.isnan(found), np.isnan(want))
        assert_close(jnp.nan_to_num(found), jnp.nan_to_num(want))


def test_look_ups_that_fill_with_other_numbers_are_declined(op):
    numbers_ = lax.GatherDimensionNumbers((1,), (0,), (0,))
    mode = lax.GatherScatterMode.FILL_OR_DROP
    spec = Gather(numbers_, (1, 6), mode, fill_value=2.0)
    assert op.gather(jnp.zeros((3, 1), int), spec) is NotImplemented


def test_members_picked_from_a_stack_stay_operators():
    op, index = stacked(), jnp.array([2, 0])

    def pick(w, x):
        return jnp.einsum("nk,nkab->nab", x, w[index])

    x = array(5, 2, 4)
    assert_close(lrk.lift(pick)(op, x), pick(op.dense(), x))


# --- structure -----------------------------------------------------------------------

ACTS = {
    "transpose": lambda w: jnp.transpose(w, (2, 0, 3, 1)),
    "merge outputs": lambda w: w.reshape(3, 4, 6),
    "split inputs": lambda w: w.reshape(3, 2, 2, 2, 3),
    "slice inputs": lambda w: w[:, 1:3],
    "slice outputs": lambda w: w[1:, :, :, ::2],
    "dynamic": lambda w: lax.dynamic_slice(w, (1, 0, 0, 1), (1, 3, 2, 2)),
    "reverse": lambda w: w[:, ::-1, :, ::-1],
    "cast": lambda w: w.astype(jnp.bfloat16),
    "scaled": lambda w: -w / 3,
    "add": lambda w: w + array(11, 3, 4, 2, 3),
}


@pytest.mark.parametrize("name", ACTS)
def test_structure_is_kept(name):
    op, act = stacked(), ACTS[name]
    got = lrk.lift(act)(op)
    want = act(op.dense())
    assert_close(kept(got).dense(), want)
    assert got.mismatch() is None


def test_axes_of_two_kinds_cannot_be_merged():
    with pytest.raises(lrk.LiftError, match=r"\(Magnitude\) at reshape"):
        lrk.lift(lambda w: w.reshape(24))(over_array())


def test_scan_slices_every_part():
    op, x = stacked(), array(5, 5, 4)

    def run(w, x):
        return lax.scan(lambda c, w: (c, jnp.einsum("nk,kab->nab", x, w)), 0, w)[1]

    assert_close(lrk.lift(run)(op, x), run(op.dense(), x))
    shared = Magnitude(op.w, array(2, 3, 2), dims=(3, 2))
    assert_close(lrk.lift(run)(shared, x), run(shared.dense(), x))


def test_settles_only_where_m_is_as_large_as_the_weight(op):
    assert isinstance(op.settle(), Magnitude)
    thin = Magnitude(array(1, 1, 6), array(2, 6))
    assert isinstance(thin.settle(), jax.Array)
    assert_close(thin.settle(), thin.dense())


def test_parts_are_sharded_as_the_axes_that_they_hold(op):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    specs = op.partition(PartitionSpec(None, "d"))
    assert (specs.m, specs.norm) == (PartitionSpec("d"),) * 2
    sharding = NamedSharding(mesh, PartitionSpec(None, "d"))
    got = jax.jit(lambda op: op.constrain(sharding))(op)
    assert got.norm.sharding.spec == PartitionSpec("d")
    assert got.m.sharding.spec == PartitionSpec("d")
    assert_close(got.dense(), op.dense())


# --- refusals ------------------------------------------------------------------------


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"a factor of \(5,\) does not fit"):
        Magnitude(array(1, 4, 6), array(2, 5))
    with pytest.raises(ValueError, match=r"with dims=\(7,\)"):
        Magnitude(array(1, 4, 6), array(2, 6), dims=(7,))


def test_refuses_a_base_whose_norm_is_not_known():
    inner = lrk.operators.Routed(
        array(1, 4, 6), array(3, 4, 1), array(4, 2, 1, 6), array(5, 4, 2)
    )
    with pytest.raises(ValueError, match="Routed has no dense form, so its norm"):
        Magnitude(inner, array(2, 6))


def test_cannot_be_premerged(op):
    with pytest.raises(ValueError, match=r"\(Magnitude\) cannot be premerged"):
        lrk.lift(jnp.matmul, plan={".": "premerged"})(array(5, 5, 4), op)
