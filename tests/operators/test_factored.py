"""`Factored`: every rule against the dense weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowrank as lrk
from lowrank.operators import Convolution, Factored
from tests.network import numbers
from tests.tolerances import assert_close


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


# A Kronecker product whose second factor is of low rank: axes 6 = 2 x 3, 8 = 4 x 2.
KRONECKER = (((0, 0), (1, 0)), ((0, 1), (-1, 0)), ((-1, 0), (1, 1)))
# Three layers of whole axes.
LAYERS = (((0, 0), (1, 0), (-1, 0)), ((0, 0), (-1, 0), (2, 0)))


def kronecker(w=None):
    w = array(1, 6, 8) if w is None else w
    factors = (array(2, 2, 4), array(3, 3, 2), array(4, 2, 2))
    return Factored(w, factors, KRONECKER, 0.5)


def layers():
    w, factors = array(1, 3, 6, 4), (array(2, 3, 6, 2), array(3, 3, 2, 4))
    return Factored(w, factors, LAYERS, 0.5)


def same(change, op, x):
    """The lifted change of the operator, multiplied, is that of the dense weight."""

    @jax.jit
    def both(op):
        run = lambda w: change(w) @ x  # noqa: E731
        return lrk.lift(run)(op), run(op.dense())

    assert_close(*both(op))


def test_stands_for_the_kronecker_product():
    op = kronecker()
    c, a, b = (np.asarray(f, np.float64) for f in op.factors)
    want = np.asarray(op.w, np.float64) + 0.5 * np.kron(c, a @ b)
    assert_close(op.dense(), want.astype("f4"))
    _, (term,) = lrk.split(op)
    assert_close(term.delta(), (want - np.asarray(op.w)).astype("f4"))
    assert (op.shape, op.additive, op.has_dense) == ((6, 8), True, True)
    assert op.describe_axes() == "f0[0, 1] f1[0] f2[1]"
    held = "float32[2,4], float32[3,2], float32[2,2]"
    assert repr(op) == f"Factored(w=float32[6,8], factors=({held}), scale=float32[])"


CHANGES = {
    "as it is": (kronecker, lambda w: w, 8),
    "transpose": (kronecker, lambda w: w.T, 6),
    "split and joined": (kronecker, lambda w: w.reshape(2, 12, 2).reshape(2, 3, 8), 8),
    "new axis": (kronecker, lambda w: w[None, :, :, None].squeeze((0, 3)), 8),
    "reverse": (kronecker, lambda w: w[::-1], 8),
    "scaled": (kronecker, lambda w: -2.0 * w + jnp.ones((6, 8)), 8),
    "slice": (layers, lambda w: w[1, ::2, 1:], 3),
    "dynamic slice": (layers, lambda w: lax.dynamic_slice(w, (1, 0, 2), (2, 6, 2)), 2),
    "layers": (layers, lambda w: w, 4),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rearranged_it_multiplies_as_the_dense_weight(name):
    make, change, width = CHANGES[name]
    same(change, make(), array(9, width, 5))


def test_scan_slices_the_factors_that_hold_the_layers():
    x = array(9, 5, 6)

    def run(w, x):
        return lax.scan(lambda total, w: (total + x @ w, None), jnp.zeros((5, 4)), w)[0]

    assert_close(lrk.lift(run)(layers(), x), run(layers().dense(), x))


def test_a_look_up_takes_rows_of_one_factor():
    op, index = layers(), jnp.asarray([[4, 0], [5, 1]])

    def run(w):
        return w[1][index]

    assert_close(lrk.lift(run)(op), run(op.dense()))
    message = "cannot stay factored|gather"
    with pytest.raises(lrk.LiftError, match=message):
        lrk.lift(lambda w: w[index])(kronecker())


def test_premerged_has_the_same_gradients():
    op, x = kronecker(), array(9, 5, 6)

    @jax.jit
    def slopes(factors):
        def loss(factors, plan):
            run = lrk.lift(lambda w: jnp.sum(jnp.sin(x @ w)), plan=plan)
            return run(op.replace(factors=factors))

        return [jax.grad(loss)(factors, p) for p in (None, {".": "premerged"})]

    assert_close(*slopes(op.factors))


def test_over_another_operator_the_two_stay_apart():
    op = kronecker(lrk.LowRank(array(1, 6, 8), array(5, 6, 2), array(6, 2, 8)))
    assert isinstance(op.settle().w, lrk.LowRank)
    same(lambda w: w, op, array(9, 8, 5))


def test_a_bf16_product_is_of_that_dtype():
    op = kronecker(array(1, 6, 8).astype(jnp.bfloat16))
    x = array(9, 5, 6).astype(jnp.bfloat16)
    out = lrk.lift(jnp.matmul)(x, op)
    assert out.dtype == jnp.bfloat16
    assert_close(out, x @ op.dense(), "bfloat16")


# --- convolutions --------------------------------------------------------------------


def separable(groups):
    """A convolution along each place in turn, of a kernel HWIO for some groups."""
    ins = 4 // groups
    w, labels = array(1, 3, 2, ins, 8), (((0, 0), (2, 0), (-1, 0)),)
    labels += (((-1, 0), (1, 0), (-1, 1)), ((-1, 1), (3, 0)))
    factors = (array(2, 3, ins, 2), array(3, 2, 2, 3), array(4, 3, 8))
    return Factored(w, factors, labels, 0.5)


def convolution(groups, layout="NHWC"):
    numbers_ = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, (layout, "HWIO", "NHWC"))
    pads = ((1, 1), (0, 1))
    return Convolution((2, 1), pads, (1, 2), (1, 2), numbers_, groups)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_that_of_the_dense_kernel(groups, layout):
    op, spec = separable(groups), convolution(groups, layout)
    x = array(9, *((2, 5, 6, 4) if layout == "NHWC" else (2, 4, 5, 6)))
    assert_close(*jax.jit(lambda op: (op.conv(x, spec), spec(x, op.dense())))(op))


def test_convolutions_that_do_not_split_are_declined():
    op, x = separable(1), array(9, 2, 5, 6, 4)
    batched = dataclasses.replace(convolution(1), batch_group_count=2)
    assert op.conv(x, batched) is NotImplemented
    grouped = separable(2)  # its outermost factor slides, so groups cannot share it
    wide = (grouped.factors[0], array(3, 2, 2, 8))
    labels = (*grouped.labels[:1], ((-1, 0), (1, 0), (3, 0)))
    grouped = grouped.replace(factors=wide, labels=labels)
    assert grouped.mismatch() is None
    assert grouped.conv(x, convolution(2)) is NotImplemented


# --- sharding and messages -----------------------------------------------------------


def test_factors_are_split_as_the_whole_axes_that_they_hold():
    specs = layers().partition(PartitionSpec(None, "data"))
    assert specs.factors[0] == PartitionSpec(None, "data", None)
    assert specs.factors[1] == PartitionSpec(None, None, None)
    assert kronecker().partition(PartitionSpec("data")).factors[0] == PartitionSpec(
        None, None
    )
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    put = jax.jit(lambda op: op.constrain(NamedSharding(mesh, PartitionSpec("data"))))
    assert_close(put(kronecker()).dense(), kronecker().dense())


def test_refuses_factors_that_do_not_fit():
    good = kronecker()
    message = r"Factored: factors \(2, 4\), \(3, 2\) .* do not fit a weight of"
    with pytest.raises(ValueError, match=message):
        Factored(good.w, good.factors[:2], KRONECKER[:2])  # a lonely inner axis
    with pytest.raises(ValueError, match="do not fit a weight of shape"):
        Factored(array(1, 7, 8), good.factors, KRONECKER)
