"""`subspace.random` with its projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import subspace as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(5)
PARAMS = {
    "bias": jnp.asarray(numbers(1, 3)),
    "ids": jnp.arange(4),
    "kernel": jnp.asarray(numbers(2, 4, 3)),
    "stack": jnp.asarray(numbers(3, 2, 2, 2)),
}
PATHS = ("bias", "kernel", "stack")
TOTAL = 23
PROJECTIONS = (lrk.subspace.dense(), lrk.subspace.gather())
both = pytest.mark.parametrize("projection", PROJECTIONS, ids=["dense", "gather"])


def transform(projection, d=5, **kwargs):
    return lrk.subspace.random(d, projection, **kwargs)


def formed(state, d=5):
    """`P` from the arrays of a state."""
    own = [state.fixed[path] for path in PATHS]
    if "p" in own[0]:
        return np.concatenate([np.asarray(x["p"], np.float64) for x in own])
    columns = np.concatenate([x["column"] for x in own])
    return reference.one_hot(columns, np.concatenate([x["sign"] for x in own]), d)


def deltas(tx, state, z):
    """`P z` by the transform."""
    moved = state._replace(trainable={"subspace": {"z": z}})
    adapted = tx.apply(PARAMS, moved)
    return jnp.concatenate([adapted[path].d.reshape(-1) for path in PATHS])


@both
def test_moves_all_floating_leaves_by_one_vector(projection):
    tx = transform(projection)
    state = tx.init(KEY, PARAMS)
    assert_close(state.trainable, {"subspace": {"z": np.zeros(5, np.float32)}})
    assert lrk.select_paths(tx, PARAMS) == PATHS
    z = numbers(4, 5)
    moved = state._replace(trainable={"subspace": {"z": jnp.asarray(z)}})
    adapted = tx.apply(PARAMS, moved)
    assert adapted["ids"] is PARAMS["ids"]
    leaves = [np.asarray(PARAMS[path]) for path in PATHS]
    want = reference.moved(leaves, formed(state), z)
    got = lrk.materialize(adapted)
    for path, leaf in zip(PATHS, want, strict=True):
        assert_close(got[path], leaf.astype(np.float32))


@both
def test_identity_at_init_also_in_the_abstract(projection):
    tx = transform(projection)
    state = jax.jit(tx.init)(KEY, PARAMS)
    assert_close(lrk.materialize(tx.apply(PARAMS, state)), PARAMS)
    shapes = jax.eval_shape(tx.init, KEY, PARAMS)
    assert shapes == jax.eval_shape(lambda s: s, state)


@both
@pytest.mark.parametrize("d", [1, 5, TOTAL])
def test_columns_have_norm_one_over_the_network(projection, d):
    p = formed(transform(projection, d).init(KEY, PARAMS), d)
    assert p.shape == (TOTAL, d)
    np.testing.assert_allclose(np.linalg.norm(p, axis=0), 1, rtol=1e-6)


@both
def test_adjoint(projection):
    tx = transform(projection)
    state = tx.init(KEY, PARAMS)
    v, g = jnp.asarray(numbers(6, 5)), jnp.asarray(numbers(7, TOTAL))
    forward, pull = jax.vjp(lambda z: deltas(tx, state, z), v)
    (back,) = pull(g)
    assert_close(back, (formed(state).T @ np.asarray(g, np.float64)).astype("f4"))
    assert_close(jnp.vdot(forward, g), jnp.vdot(v, back))


def test_dense_is_the_normalised_draw_of_each_leaf_alone():
    draw = lrk.subspace.dense().draw
    both_leaves = draw(KEY, {"bias": 3, "kernel": 12}, 4)
    alone = draw(KEY, {"kernel": 12}, 4)
    blocks = [both_leaves[path]["p"] for path in ("bias", "kernel")]
    whole = np.concatenate(blocks)
    assert_close(whole, reference.normalised(blocks).astype(np.float32))
    ratio = np.asarray(both_leaves["kernel"]["p"] / alone["kernel"]["p"])
    np.testing.assert_allclose(ratio, ratio[:1].repeat(12, 0), rtol=1e-5)
    assert (ratio < 1).all()


def test_dense_entries_are_gaussian():
    size, d = 4000, 2
    p = lrk.subspace.dense().draw(KEY, {"w": size}, d)["w"]["p"] * size**0.5
    error = 1 / (size * d) ** 0.5
    assert abs(float(p.mean())) < 4 * error
    assert abs(float((p**4).mean()) - 3) < 4 * 96**0.5 * error


@pytest.mark.parametrize("d", [1, 4, TOTAL - 1, TOTAL])
def test_gather_is_an_isometry(d):
    p = formed(transform(lrk.subspace.gather(), d).init(KEY, PARAMS), d)
    np.testing.assert_allclose(p.T @ p, np.eye(d), atol=1e-12)
    assert ((p != 0).sum(axis=1) == 1).all()


def test_gather_deals_numbers_out_over_the_whole_network():
    fixed = lrk.subspace.gather().draw(KEY, {"a": 40, "b": 60}, 7)
    columns = np.concatenate([fixed["a"]["column"], fixed["b"]["column"]])
    counts = np.bincount(columns, minlength=7)
    assert sorted(set(counts.tolist())) == [14, 15]
    assert set(fixed["a"]["column"].tolist()) == set(range(7))
    assert not np.array_equal(columns[:7], columns[7:14])
    assert set(fixed["b"]["sign"].tolist()) == {-1, 1}


@both
def test_two_keys_give_two_subspaces(projection):
    one, two = (transform(projection).init(jax.random.key(k), PARAMS) for k in (1, 2))
    for path in PATHS:
        assert not np.array_equal(
            np.concatenate([np.ravel(x) for x in one.fixed[path].values()]),
            np.concatenate([np.ravel(x) for x in two.fixed[path].values()]),
        )


@both
def test_states_stack_for_vmap(projection):
    tx = transform(projection)
    states = [tx.init(jax.random.key(k), PARAMS) for k in (1, 2)]
    z = [jnp.asarray(numbers(k, 5)) for k in (1, 2)]
    moved = [
        s._replace(trainable={"subspace": {"z": x}})
        for s, x in zip(states, z, strict=True)
    ]

    def kernel(state):
        return lrk.materialize(tx.apply(PARAMS, state))["kernel"]

    want = jnp.stack([kernel(state) for state in moved])
    assert_close(jax.vmap(kernel)(lrk.stack(moved)), want)
    with pytest.raises(ValueError, match=r"a vector 'z' at 'subspace', got shape \(2"):
        tx.apply(PARAMS, lrk.stack(moved))


def test_leaves_keep_the_order_of_the_tree():
    tx = transform(lrk.subspace.gather())
    state = tx.init(KEY, PARAMS)
    turned = dict(reversed(state.fixed.items()))
    z = jnp.asarray(numbers(8, 5))
    assert_close(deltas(tx, state._replace(fixed=turned), z), deltas(tx, state, z))


def test_moves_factors_of_adapters_too():
    kernel = {"kernel": PARAMS["kernel"]}
    tx = lrk.chain(lrk.lora(2), transform(lrk.subspace.dense(), 2))
    state = tx.init(KEY, kernel)
    adapted = tx.apply(kernel, state)["kernel"]
    assert isinstance(adapted, lrk.Delta)
    assert isinstance(adapted.w, lrk.LowRank)


# --- messages ------------------------------------------------------------------------


def test_refuses_dimensions_that_no_subspace_has():
    dense = lrk.subspace.dense()
    with pytest.raises(ValueError, match="d must be at least 1, got 0"):
        lrk.subspace.random(0, dense)
    with pytest.raises(ValueError, match="d=24 exceeds the 23 entries of 'bias'"):
        transform(dense, 24).init(KEY, PARAMS)
    with untyped(), pytest.raises(TypeError, match=r"d must be an int, got 2\.5"):
        lrk.subspace.random(2.5, dense)


def test_refuses_what_is_no_projection():
    with untyped(), pytest.raises(TypeError, match="expected a Projection, got <func"):
        lrk.subspace.random(2, lrk.subspace.dense)


def test_refuses_leaves_that_cannot_move():
    tx = transform(lrk.subspace.dense(), select=lrk.matching("."))
    with pytest.raises(ValueError, match=r"cannot move 'ids': not floating"):
        tx.init(KEY, PARAMS)
    tx = transform(lrk.subspace.dense(), select=lrk.matching("query"))
    with pytest.raises(ValueError, match="the selection matches none of 4"):
        tx.init(KEY, PARAMS)


def test_refuses_a_leaf_at_the_path_of_the_vector():
    with pytest.raises(ValueError, match="a leaf has the path 'subspace'"):
        transform(lrk.subspace.dense(), 1).init(KEY, {"subspace": jnp.ones(3)})


def test_refuses_states_of_others():
    tx = transform(lrk.subspace.dense())
    state = tx.init(KEY, PARAMS)
    with pytest.raises(ValueError, match="the state has 'kernel'"):
        tx.apply({p: PARAMS[p] for p in ("bias", "ids", "stack")}, state)
    with pytest.raises(ValueError, match="'kernel' of shape .*moves 12 entries"):
        tx.apply({**PARAMS, "kernel": jnp.ones((2, 3))}, state)
    other = lrk.lora(2)
    with pytest.raises(ValueError, match="expected 'subspace' as the one trainable"):
        tx.apply(PARAMS, other.init(KEY, PARAMS))
    with pytest.raises(ValueError, match="'bias' lacks fixed 'column'"):
        transform(lrk.subspace.gather()).apply(PARAMS, state)
    without = state._replace(trainable={"subspace": {"d": jnp.ones(5)}})
    with pytest.raises(ValueError, match="a vector 'z' at 'subspace', got none"):
        tx.apply(PARAMS, without)
    longer = state._replace(trainable={"subspace": {"z": jnp.ones(7)}})
    with pytest.raises(ValueError, match=r"expected d=5 trained .* got {'z': 7}"):
        tx.apply(PARAMS, longer)
    with (
        untyped(),
        pytest.raises(TypeError, match="random: expected a State, got NoneType"),
    ):
        tx.apply(PARAMS, None)
