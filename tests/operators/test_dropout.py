"""`DropoutLowRank`: what is thinned, and where each product's numbers come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

import lowrank as lrk
from lowrank.operators import Contraction, DropoutLowRank
from tests.network import numbers
from tests.tolerances import assert_close

KEY = jax.random.key(3)
PRODUCT = Contraction((((1,), (0,)), ((), ())), False)


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def matrix(rate=0.5, key=KEY):
    values = (array(1, 6, 4), array(2, 6, 2), array(3, 2, 4), 0.5)
    return DropoutLowRank(*values, key=key, rate=rate)


def stacked(layers=3):
    """The same numbers in each layer, so that only the keys differ."""

    def repeat(x):
        return jnp.broadcast_to(x, (layers, *x.shape))

    op = matrix()
    return DropoutLowRank(*map(repeat, (op.w, op.a, op.b)), 0.5, key=KEY, rate=0.5)


def test_it_declares_what_it_is():
    op = matrix()
    assert (op.has_dense, op.stochastic, op.exact_grad) == (False, True, True)
    assert op.settle() is op
    assert op.gather(jnp.array([[0]]), None) is NotImplemented


def test_the_thinned_input_is_zero_or_rescaled():
    x = jnp.ones((1, 4000))
    seen = np.asarray(matrix(0.2).seen(x, None)[0])
    assert set(np.unique(seen)) == {np.float32(0), np.float32(1.25)}
    share = (seen == 0).mean()
    assert abs(share - 0.2) < 5 * (0.2 * 0.8 / 4000) ** 0.5


def test_a_product_is_the_base_plus_the_thinned_term():
    op, x = matrix(), array(9, 5, 6)
    want = x @ op.w + 0.5 * (op.seen(x, None)[0] @ op.a) @ op.b
    assert_close(op.contract(x, PRODUCT), want)


def test_a_rate_of_zero_is_the_low_rank_product():
    op, x = matrix(0.0), array(9, 5, 6)
    plain = lrk.LowRank(op.w, op.a, op.b, op.scale)
    assert_close(op.contract(x, PRODUCT), plain.contract(x, PRODUCT))


def test_the_input_keeps_its_dtype():
    seen, _ = matrix().seen(jnp.ones((2, 6), jnp.bfloat16), None)
    assert seen.dtype == jnp.bfloat16


def test_the_rate_may_be_swept():
    x = array(9, 5, 6)
    run = jax.jit(jax.vmap(lambda rate: matrix(rate).contract(x, PRODUCT)))
    got = run(jnp.array([0.0, 0.5]))
    want = [matrix(rate).contract(x, PRODUCT) for rate in (0.0, 0.5)]
    assert_close(got, jnp.stack(want))


def test_each_site_and_step_has_a_key_of_its_own():
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    keys = [jax.random.key_data(matrix().at(*p).key).tobytes() for p in places]
    again = [jax.random.key_data(matrix().at(*p).key).tobytes() for p in places]
    assert len(set(keys)) == len(places)
    assert keys == again


def test_nested_random_operators_are_both_placed():
    outer = DropoutLowRank(
        matrix(), array(2, 6, 1), array(3, 1, 4), key=KEY, rate=0.5
    ).at(4)
    assert outer.key == outer.w.key
    assert outer.key != KEY


def layers_differ(rows):
    """Rows that are equal but for their draws."""
    rows = np.asarray(rows)
    return all(
        not np.allclose(rows[i], rows[j]) for i in range(len(rows)) for j in range(i)
    )


def test_each_layer_of_a_stack_has_draws_of_its_own():
    op, x = stacked(), array(9, 8, 6)
    parts, rebuild = op.unstack()
    scanned = lax.scan(lambda c, p: (c, rebuild(p).contract(x, PRODUCT)), 0, parts)[1]
    assert layers_differ(scanned)
    cut = [op.slice((i, 0, 0), (i + 1, 6, 4), None).reshape((6, 4)) for i in range(3)]
    assert layers_differ([one.contract(x, PRODUCT) for one in cut])

    def at(i):
        return op.dynamic_slice([i, 0, 0], [1, 6, 4]).reshape((6, 4))

    assert layers_differ([at(jnp.int32(i)).contract(x, PRODUCT) for i in range(3)])


def test_members_of_a_stack_that_see_one_activation_draw_apart():
    spec = Contraction((((1,), (1,)), ((), ())), False)
    out = stacked().contract(array(9, 8, 6), spec)
    assert out.shape == (8, 3, 4)
    assert layers_differ(jnp.moveaxis(out, 1, 0))


def test_every_device_has_the_key():
    parts = matrix().partition(PartitionSpec("data", "model"))
    assert (parts.key, parts.rate) == (PartitionSpec(), PartitionSpec())
    assert parts.b == PartitionSpec(None, "model")


def test_two_products_of_one_weight_differ():
    x = array(9, 8, 6)

    def twice(w, x):
        return x @ w, x @ w

    one, two = lrk.lift(twice)(matrix(), x)
    assert not np.allclose(one, two)
    again = lrk.lift(twice)(matrix(), x)
    assert_close(again, (one, two))


def test_gradients_are_those_of_the_draws():
    op, x = matrix(), array(9, 5, 6)
    seen, _ = op.seen(x, None)

    def total(a):
        return op.replace(a=a).contract(x, PRODUCT).sum()

    want = 0.5 * seen.T @ (jnp.ones((5, 4)) @ op.b.T)
    assert_close(jax.grad(total)(op.a), want)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit a weight"):
        DropoutLowRank(
            array(1, 6, 4), array(2, 5, 2), array(3, 2, 4), key=KEY, rate=0.5
        )
