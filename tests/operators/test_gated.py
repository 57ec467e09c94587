"""`Gated`: what it weighs, over what, and what it declines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import lowrank as lrk
from lowrank.operators import Bottleneck, Gated, Magnitude
from tests.network import layer_products, numbers
from tests.tolerances import assert_close


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def low():
    return lrk.LowRank(array(1, 4, 6), array(2, 4, 2), array(3, 2, 6), 0.5)


def network(w):
    return Bottleneck(w, array(4, 6, 2), array(5, 2, 6), activation=jnp.tanh)


def mixed(before, after, gate, bias, x):
    """By the definition, in float64: `before` and `after` are products with `x`."""
    x, gate = np.asarray(x, np.float64), np.asarray(gate, np.float64)
    opening = 1 / (1 + np.exp(-(x @ gate + float(bias))))
    before, after = (np.asarray(y, np.float64) for y in (before, after))
    return (before + opening[..., None] * (after - before)).astype(np.float32)


# What is weighed, and how many operators of it.
WEIGHED = {
    "low rank": (lambda: low(), 1),
    "a chain": (lambda: network(low()), 2),
    "a network over low rank": (lambda: network(low()), 1),
    "DoRA": (lambda: Magnitude(low(), array(6, 6)), 2),
    "a delta": (lambda: lrk.Delta(array(1, 4, 6), array(7, 4, 6)), 1),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_it_weighs_the_outermost_operators(name):
    make, depth = WEIGHED[name]
    op, x = make(), array(8, 5, 4)
    gated = Gated(op, array(9, 4), 0.3, depth=depth)
    run = jax.jit(lambda *ws: [lrk.lift(jnp.matmul)(x, w) for w in ws])
    got, before, after = run(gated, gated.base, op)
    assert_close(got, mixed(before, after, array(9, 4), 0.3, x))
    assert (gated.has_dense, gated.stochastic, gated.additive) == (False,) * 3


def test_the_base_is_multiplied_once():
    op = Gated(low(), array(9, 4), 0.3)
    lines = str(jax.make_jaxpr(lrk.lift(jnp.matmul))(array(8, 5, 4), op))
    assert lines.count("dot_general") == 4  # base, two factors, gate


def test_scan_slices_and_batches_take_layers():
    x = array(8, 5, 4)
    w, a, b = array(1, 3, 4, 2, 3), array(2, 3, 4, 2), array(3, 3, 2, 2, 3)
    gate, bias = array(9, 3, 4), array(10, 3)
    dims = {"a_dims": (0, 1), "b_dims": (0, 2, 3)}
    op = Gated(lrk.LowRank(w, a, b), gate, bias, **dims)

    want = []
    for i in range(3):
        before = np.asarray(x) @ np.asarray(w[i]).reshape(4, 6)
        delta = np.asarray(a[i]) @ np.asarray(b[i]).reshape(2, 6)
        after = before + np.asarray(x) @ delta
        want.append(mixed(before, after, gate[i], bias[i], x).reshape(5, 2, 3))
    got = jax.jit(lrk.lift(layer_products))(op, x, jnp.asarray(2))
    assert_close(got, (np.stack(want), np.stack(want), want[1], want[2]))


def test_dropout_below_a_gate_draws_for_each_product():
    inner = lrk.operators.DropoutLowRank(
        *(getattr(low(), n) for n in ("w", "a", "b", "scale")),
        key=jax.random.key(0),
        rate=0.5,
    )
    op = Gated(inner, array(9, 4), 0.3)
    assert op.stochastic
    one, two = jax.jit(lrk.lift(lambda w, x: (x @ w, x @ w)))(op, array(8, 5, 4))
    assert not np.allclose(one, two)


DECLINED = {
    "x W^T": lambda w: jnp.ones((5, 6)) @ w.T,
    "slice of the inputs": lambda w: jnp.ones((5, 2)) @ w[:2],
    "a scalar": lambda w: jnp.ones((5, 4)) @ (2 * w),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_has_no_form_is_refused(name):
    op = Gated(low(), array(9, 4))
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*\(Gated\)"):
        lrk.lift(DECLINED[name], on_dense="allow")(op)


def test_an_operator_that_asks_for_another_product_is_declined():
    """Rows that sit elsewhere make another input of it."""
    op = Gated(lrk.operators.Rewired(array(1, 4, 6), [1, 0, 3, 2]), array(9, 4))
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*\(Gated\)"):
        lrk.lift(jnp.matmul)(array(8, 5, 4), op)


def test_the_gate_is_sharded_as_the_inputs():
    specs = Gated(low(), array(9, 4)).partition(PartitionSpec("i", "o"))
    assert specs.gate == PartitionSpec("i")
    assert specs.w.a == PartitionSpec("i", None)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Gated: factors \(gate \(6,\)"):
        Gated(low(), array(9, 6))
    with pytest.raises(ValueError, match="a gate over 2 operators, but there are 1"):
        Gated(low(), array(9, 4), depth=2)
