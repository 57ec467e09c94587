"""`Bottleneck` and `Parallel`: products, layers, nesting, and what they decline."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import lowrank as lrk
from lowrank.operators import Bottleneck, Parallel
from tests.network import layer_products, numbers
from tests.reference import bottleneck as reference
from tests.tolerances import assert_close

PARTS = ("down", "up", "down_bias", "up_bias")
KINDS = {"serial": Bottleneck, "parallel": Parallel}


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def plain(kind):
    """Four inputs and six outputs."""
    read = 6 if kind == "serial" else 4
    parts = array(2, read, 2), array(3, 2, 6), array(4, 2), array(5, 6)
    return KINDS[kind](array(1, 4, 6), *parts, 0.5)


def layers(kind):
    """Three layers of 4 inputs and 2 x 3 outputs."""
    read = (2, 3) if kind == "serial" else (4,)
    parts = array(2, 3, *read, 2), array(3, 3, 2, 2, 3), array(4, 3, 2)
    dims = {"a_dims": (0, 1), "b_dims": (0, 2, 3)}
    w, bias = array(1, 3, 4, 2, 3), array(5, 3, 2, 3)
    return KINDS[kind](w, *parts, bias, 0.5, **dims)


def expected(kind, op, x):
    """By the equations, for matrices: several outputs are one axis."""
    down = op.down.reshape(-1, op.down.shape[-1])
    parts = down, op.up.reshape(2, -1), op.down_bias, op.up_bias.reshape(-1)
    forward = getattr(reference, kind)
    return forward(x, op.w.reshape(4, -1), parts, 0.5).astype("float32")


def layer(op, i):
    return op.replace(w=op.w[i], **{n: getattr(op, n)[i] for n in PARTS})


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_follows_the_equations(kind):
    op, x = plain(kind), array(6, 2, 7, 4)
    want = expected(kind, op, x.reshape(14, 4)).reshape(2, 7, 6)
    assert_close(jax.jit(lrk.lift(jnp.matmul))(x, op), want)
    turned = jax.jit(lrk.lift(lambda w, x: w.T @ x))(op, x[0].T)
    assert_close(turned, want[0].T)
    assert (op.has_dense, op.stochastic, op.additive) == (False, False, False)


@pytest.mark.parametrize("kind", KINDS)
def test_scan_slices_and_batches_take_layers(kind):
    op, x = layers(kind), array(6, 5, 4)
    want = [expected(kind, layer(op, i), x).reshape(5, 2, 3) for i in range(3)]

    got = jax.jit(lrk.lift(layer_products))(op, x, jnp.asarray(2))
    assert_close(got, (jnp.stack(want), jnp.stack(want), want[1], want[2]))


def test_outputs_of_a_parallel_adapter_may_be_sliced():
    op, x = plain("parallel"), array(6, 5, 4)
    got = jax.jit(lrk.lift(lambda w, x: x @ w[:, ::2]))(op, x)
    assert_close(got, expected("parallel", op, x)[:, ::2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_may_be_any_operator(kind):
    op, x = plain(kind), array(6, 5, 4)
    inner = lrk.LowRank(op.w, array(7, 4, 1), array(8, 1, 6))
    dense = op.replace(w=inner.dense())
    both = jax.jit(lrk.lift(lambda ws, x: [x @ w for w in ws]))
    nested = Bottleneck(dense, *(getattr(plain("serial"), n) for n in PARTS))
    got = both([op.replace(w=inner), nested], x)
    want = expected(kind, dense, x)
    assert_close(got[0], want)
    outer = [getattr(nested, n) for n in PARTS]
    assert_close(got[1], reference.serial(want, jnp.eye(6), outer).astype("float32"))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_added_terms(kind):
    op, x, d = plain(kind), array(6, 5, 4), array(9, 4, 6)

    def run(w, x):
        half = x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
        return half, x @ (w + d)

    half, more = jax.jit(lrk.lift(run))(op, x)
    assert half.dtype == jnp.bfloat16
    want = expected(kind, op, x)
    assert_close(half.astype(jnp.float32), want, "bfloat16")
    assert_close(more, want + x @ d)


DECLINED = {
    "x W^T": lambda w: jnp.ones((5, 6)) @ w.T,
    "slice of the inputs": lambda w: jnp.ones((5, 2)) @ w[:2],
    "a scalar": lambda w: jnp.ones((5, 4)) @ (2 * w),
    "a look-up": lambda w: w[jnp.array([1, 2])],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DECLINED)
def test_what_has_no_form_is_refused_even_where_forming_is_allowed(name, kind):
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*"):
        lrk.lift(DECLINED[name], on_dense="allow")(plain(kind))


def test_outputs_and_sums_over_layers_of_a_serial_adapter_are_refused():
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*\(Bottleneck\)"):
        lrk.lift(lambda w: jnp.ones((5, 4)) @ w[:, :3])(plain("serial"))
    summed = lrk.lift(lambda w: jnp.einsum("nlk,lkab->nab", jnp.ones((5, 3, 4)), w))
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*\(Bottleneck\)"):
        summed(layers("serial"))


def test_has_no_dense_form():
    tree = {"w": plain("serial"), "v": plain("parallel")}
    message = r"no dense form at 'v' \(Parallel\), 'w' \(Bottleneck\)"
    with pytest.raises(ValueError, match=message):
        lrk.materialize(tree)


def test_parts_are_sharded_as_the_axes_that_they_hold():
    spec = PartitionSpec("i", "o")
    serial = plain("serial").partition(spec)
    assert serial.down == serial.up_bias[:1] + PartitionSpec(None)
    assert serial.up == PartitionSpec(None, "o")
    assert plain("parallel").partition(spec).down == PartitionSpec("i", None)


def test_refuses_what_does_not_fit():
    message = r"Bottleneck: factors \(down \(4, 2\), up \(2, 6\), .* do not fit"
    with pytest.raises(ValueError, match=message):
        Bottleneck(array(1, 4, 6), array(2, 4, 2), array(3, 2, 6))
    with pytest.raises(ValueError, match=r"Parallel: factors \(down \(6, 2\)"):
        Parallel(array(1, 4, 6), array(2, 6, 2), array(3, 2, 6))
