"""`Rewired`: its products, its structure, and what it declines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowrank as lrk
from lowrank.operators import Rewired
from tests.network import numbers
from tests.tolerances import assert_close

ROWS = np.array([2, 0, 5, 1])
ROW_SIGNS, COLUMN_SIGNS = np.array([1, -1, -1, 1]), np.array([-1, 1, -1])
PARTS = {"row_signs": ROW_SIGNS, "column_signs": COLUMN_SIGNS}
X = jnp.asarray(numbers(4, 2, 5, 4))


def inner():
    """An operator of six rows that stays one."""
    a, b = jnp.asarray(numbers(2, 6, 1)), jnp.asarray(numbers(3, 1, 3))
    return lrk.LowRank(jnp.asarray(numbers(1, 6, 3)), a, b, 0.5)


def plain():
    return Rewired(inner(), ROWS, **PARTS)


def want(op=None):
    """The weight in NumPy."""
    w = np.asarray((op or inner()).dense())[ROWS]
    return jnp.asarray(w * ROW_SIGNS[:, None] * COLUMN_SIGNS[None])


class Squared(lrk.Operator):
    """Squares its inputs: no linear function, so the order of steps can be seen."""

    fields = ("w",)
    own_dense = False

    @property
    def aval(self):
        return jax.typeof(self.w)

    def contract(self, x, spec):
        return spec(x * jnp.abs(x), self.w)


PRODUCTS = {
    "x W": (lambda w, x: x @ w, X),
    "W^T x": (lambda w, x: w.T @ x, X[0].T),
    "x W^T": (lambda w, x: x @ w.T, X[:, :, :3]),
    "a vector": (lambda w, x: x @ w, X[0, 0]),
    "outer": (lambda w, x: jnp.einsum("n,kd->nkd", x, w), X[0, 0]),
    "all summed": (lambda w, x: jnp.einsum("kd,kd->", x, w), jnp.asarray(want())),
    "einsum": (lambda w, x: jnp.einsum("bnk,kd->dbn", x, w), X),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_weight(name):
    fn, x = PRODUCTS[name]
    assert_close(lrk.lift(fn)(plain(), x), fn(want(), x))


def test_dense_shape_and_parts_left_out():
    op = plain()
    assert (op.shape, op.dtype, op.aval.shape) == ((4, 3), jnp.float32, (4, 3))
    assert (op.has_dense, op.stochastic, op.additive) == (True, False, False)
    np.testing.assert_array_equal(op.dense(), want())
    signs = Rewired(inner(), column_signs=COLUMN_SIGNS)
    assert_close(signs.dense(), inner().dense() * COLUMN_SIGNS[None])
    assert_close(
        lrk.lift(jnp.matmul)(jnp.ones((1, 6)), signs), signs.dense().sum(0)[None]
    )
    wires = Rewired(inner(), ROWS)
    assert_close(lrk.lift(jnp.matmul)(X, wires), X @ inner().dense()[ROWS])


def test_rows_of_none_are_zero():
    op = Rewired(inner(), np.array([6, 0, 5, 1, 7, 2, 3, 4]))
    dense = op.dense()
    assert op.aval.shape == (8, 3)
    assert not dense[0].any()
    assert not dense[4].any()
    x = jnp.asarray(numbers(5, 2, 8))
    assert_close(lrk.lift(jnp.matmul)(x, op), x @ dense)


def test_inputs_are_placed_before_and_outputs_signed_after_what_acts_inside():
    w = jnp.asarray(numbers(1, 6, 3))
    op = Rewired(Squared._make(w=w), ROWS, **PARTS)
    x = X * ROW_SIGNS[None, None]
    got = lrk.lift(jnp.matmul)(X, op)
    assert_close(got, (x * jnp.abs(x)) @ w[ROWS] * COLUMN_SIGNS[None, None])
    assert not op.has_dense


def test_over_an_array_it_is_one():
    w = jnp.asarray(numbers(1, 6, 3))
    op = Rewired(w, ROWS, **PARTS)
    assert isinstance(op.settle(), jax.Array)
    assert_close(lrk.lift(lambda w: w[1:, ::2])(op), op.dense()[1:, ::2])


def test_structure_follows_what_is_wired_to():
    d = jnp.asarray(numbers(6, 4, 3))
    half = X.astype(jnp.bfloat16)
    got = lrk.lift(lambda w, x: x @ w.astype(jnp.bfloat16))(plain(), half)
    assert got.dtype == jnp.bfloat16
    assert_close(got.astype(jnp.float32), X @ want(), "bfloat16")
    assert_close(lrk.lift(lambda w: X @ (2 * w + d))(plain()), X @ (2 * want() + d))
    turned = plain().transpose((1, 0))
    assert (turned.shape, turned.axis) == ((3, 4), 1)
    np.testing.assert_array_equal(turned.dense(), want().T)


def test_nested_and_jitted_with_gradients():
    outer = Rewired(plain(), np.array([3, 1]), column_signs=COLUMN_SIGNS)
    x = X[:, :, :2]

    def loss(op, x):
        return jnp.sum(lrk.lift(jnp.matmul)(x, op) ** 2)

    def by_hand(op, x):
        return jnp.sum((x @ op.dense()) ** 2)

    got, wanted = (
        jax.jit(jax.grad(f, argnums=(0, 1), allow_int=True))(outer, x)
        for f in (loss, by_hand)
    )
    floats = [
        [g for g in jax.tree.leaves(gs) if jnp.issubdtype(g.dtype, jnp.floating)]
        for gs in (got, wanted)
    ]
    assert_close(*floats)
    assert len(floats[0]) == 5


def test_vmap_over_chips():
    rows = jnp.asarray([ROWS, ROWS[::-1]])

    def one(rows):
        return lrk.lift(jnp.matmul)(X, Rewired(inner(), rows))

    got = jax.vmap(one)(rows)
    assert_close(got, jnp.stack([X @ inner().dense()[r] for r in rows]))


def test_each_product_of_a_random_operator_has_its_own_key():
    keyed = lrk.operators.DropoutLowRank(
        jnp.zeros((6, 3)),
        jnp.ones((6, 1)),
        jnp.ones((1, 3)),
        key=jax.random.key(0),
        rate=0.5,
    )
    op = Rewired(keyed, ROWS)
    assert op.stochastic
    x = jnp.ones((40, 4))
    first, second = lrk.lift(lambda w, x: (x @ w, x @ w))(op, x)
    assert bool((first != second).any())


DECLINED = {
    "slice": lambda w: jnp.ones((5, 2)) @ w[:2],
    "reshape": lambda w: w.reshape(12) @ jnp.ones(12),
    "look-up": lambda w: w[jnp.asarray([0, 1])],
    "scan over the rows": lambda w: lax.scan(lambda c, row: (c, row.sum()), 0, w)[1],
    "one product for each column": lambda w: jnp.einsum(
        "kd,dn->dkn", w, jnp.ones((3, 2))
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_has_no_form_is_refused(name):
    with pytest.raises(lrk.LiftError, match=r"no factored form of .*\(Rewired\)"):
        lrk.lift(DECLINED[name])(plain())
    assert_close(
        lrk.lift(DECLINED[name], on_dense="allow")(plain()), DECLINED[name](want())
    )


def test_messages():
    with pytest.raises(
        ValueError, match=r"Rewired: expected a weight of 2 axes, got \(6,"
    ):
        Rewired(jnp.ones(6), ROWS)
    with pytest.raises(ValueError, match="got .* with axis=2"):
        Rewired(inner(), ROWS, axis=2)
    with pytest.raises(ValueError, match=r"\(6, 3\) does not fit rows of \(2, 2\)"):
        Rewired(inner(), ROWS.reshape(2, 2))
    with pytest.raises(
        ValueError,
        match=r"row_signs of \(3,\), expected \(4,\), column_signs of \(4,\), expected",
    ):
        Rewired(inner(), ROWS, row_signs=COLUMN_SIGNS, column_signs=ROW_SIGNS)
