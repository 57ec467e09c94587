"""`Routed`: its product, what it answers of structure, and what it declines."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowrank as lrk
from lowrank.operators import Routed
from tests.network import numbers
from tests.reference import hydra as reference
from tests.tolerances import assert_close


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def plain():
    return Routed(
        array(1, 4, 6), array(2, 4, 2), array(3, 3, 2, 6), array(4, 4, 3), 0.5
    )


def layers():
    """Three layers of 4 inputs and 2 x 3 outputs."""
    a, router = array(2, 3, 4, 2), array(4, 3, 4, 3)
    dims = {"a_dims": (0, 1), "b_dims": (0, 2, 3)}
    w = array(1, 3, 4, 2, 3)
    return Routed(w, a, array(3, 3, 3, 2, 2, 3), router, 0.5, **dims)


def layer(op, i):
    """One layer of a stack, as an operator of its own."""
    own = (getattr(op, n)[i] for n in ("w", "a", "b", "router"))
    return Routed(*own, op.scale, a_dims=(0,), b_dims=(1, 2))


def expected(op, x):
    return reference.forward(x, op.w, op.a, op.b, op.router, op.scale)


def test_the_product_is_the_mixture_for_each_token():
    op, x = plain(), array(5, 2, 7, 4)
    want = expected(op, x.reshape(14, 4)).reshape(2, 7, 6).astype("float32")
    assert_close(lrk.lift(jnp.matmul)(x, op), want)
    turned = lrk.lift(lambda w, x: w.T @ x)(op, x[0].T)
    assert_close(turned, want[0].T)
    assert (op.has_dense, op.stochastic, op.additive) == (False, False, False)


def test_the_router_sees_float32_in_a_bf16_product():
    op, x = plain(), array(5, 7, 4).astype(jnp.bfloat16)
    half = op.replace(w=op.w.astype(jnp.bfloat16), router=1000 * op.router)
    want = expected(half.replace(w=half.w.astype(jnp.float32)), x.astype(jnp.float32))
    got = lrk.lift(jnp.matmul)(x, half)
    assert got.dtype == jnp.bfloat16
    assert_close(got.astype(jnp.float32), want.astype("float32"), "bfloat16")


def test_scan_and_slices_take_layers():
    op, x = layers(), array(5, 5, 4)

    def one(x, w):
        return jnp.einsum("nk,kab->nab", x, w)

    def each(w, x):
        return lax.scan(lambda c, w: (c, one(x, w)), 0, w)[1]

    want = jnp.stack([lrk.lift(one)(x, layer(op, i)) for i in range(3)])
    assert_close(lrk.lift(each)(op, x), want)
    assert_close(lrk.lift(lambda w, x: one(x, w[1]))(op, x), want[1])
    assert_close(lrk.lift(lambda w, x, i: one(x, w[i]))(op, x, jnp.asarray(2)), want[2])
    batched = lrk.lift(lambda w, x: jnp.einsum("nk,lkab->lnab", x, w))(op, x)
    assert_close(batched, want)
    parts = lrk.lift(lambda w, x: jnp.einsum("nk,lkab->lnab", x, w[1:, :, :, ::2]))
    assert_close(parts(op, x), want[1:, :, :, ::2])


def test_terms_may_be_added_and_nested():
    x, d = array(5, 5, 4), array(6, 4, 6)
    got = lrk.lift(lambda w, x: x @ (w + d).astype(jnp.float32))(plain(), x)
    assert_close(got, (expected(plain(), x) + x @ d).astype("float32"))
    inner = lrk.LowRank(array(1, 4, 6), array(7, 4, 1), array(8, 1, 6))
    op = plain().replace(w=inner)
    want = expected(op.replace(w=inner.dense()), x).astype("float32")
    assert_close(lrk.lift(jnp.matmul)(x, op), want)


DECLINED = {
    "x W^T": lambda w: jnp.ones((5, 6)) @ w.T,
    "slice of the inputs": lambda w: jnp.ones((5, 2)) @ w[:2],
    "dynamic slice of the inputs": lambda w: (
        jnp.ones((5, 2)) @ lax.dynamic_slice(w, (jnp.asarray(1), 0), (2, 6))
    ),
    "merged axes": lambda w: w.reshape(24) @ jnp.ones(24),
    "scan over the inputs": lambda w: lax.scan(
        lambda c, row: (c, row @ jnp.ones(6)), 0, w
    )[1],
    "a scalar": lambda w: jnp.ones((5, 4)) @ (2 * w),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_has_no_form_is_refused_even_where_forming_is_allowed(name):
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*\(Routed\)"):
        lrk.lift(DECLINED[name], on_dense="allow")(plain())


def test_has_no_dense_form():
    with pytest.raises(ValueError, match=r"no dense form at 'w' \(Routed\)"):
        lrk.materialize({"w": plain()})


def test_parts_are_sharded_as_the_axes_that_they_hold():
    op = plain()
    specs = op.partition(PartitionSpec(None, "d"))
    assert specs.b == PartitionSpec(None, None, "d")
    assert specs.router == PartitionSpec(None, None)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "d"))
    got = jax.jit(lambda op: op.constrain(sharding))(op)
    assert got.b.sharding.spec == PartitionSpec(None, None, "d")


def test_refuses_what_does_not_fit():
    message = r"factors \(a \(4, 2\), b \(3, 2, 6\), router \(4, 2\), scale \(\)\) do"
    with pytest.raises(ValueError, match=message):
        Routed(array(1, 4, 6), array(2, 4, 2), array(3, 3, 2, 6), array(4, 4, 2))
