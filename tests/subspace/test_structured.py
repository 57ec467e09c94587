"""`subspace.structured`: a scale for each group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference.subspace_projections import structured as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(5)
PARAMS = {
    "one": {
        "bias": jnp.asarray(numbers(1, 3)),
        "kernel": jnp.asarray(numbers(2, 4, 3)),
    },
    "two": {"kernel": jnp.asarray(numbers(3, 3, 2))},
}
PATHS = ("one/bias", "one/kernel", "two/kernel")
DENSE = lrk.subspace.dense()


def first(path):
    return path.split("/")[0]


def leaves(tree):
    return [tree["one"]["bias"], tree["one"]["kernel"], tree["two"]["kernel"]]


@pytest.mark.parametrize(("groups", "index"), [(None, [0, 1, 2]), (first, [0, 0, 1])])
def test_is_the_formula(groups, index):
    own = {} if groups is None else {"groups": groups}
    tx = lrk.subspace.structured(6, DENSE, **own)
    state = tx.init(KEY, PARAMS)
    m = max(index) + 1
    start = {"z": np.zeros(6 - m, "f4"), "lambda": np.ones(m, "f4")}
    assert_close(state.trainable, {"subspace": start})
    z, scales = numbers(4, 6 - m), 1 + numbers(5, m)
    trained = {"subspace": {"z": jnp.asarray(z), "lambda": jnp.asarray(scales)}}
    got = lrk.materialize(tx.apply(PARAMS, state._replace(trainable=trained)))
    p = np.concatenate([np.asarray(state.fixed[path]["p"]) for path in PATHS])
    np.testing.assert_allclose(np.linalg.norm(p, axis=0), 1, rtol=1e-6)
    flat = [np.asarray(x, np.float64) for x in leaves(PARAMS)]
    want = reference(flat, p.astype(np.float64), z, scales[np.array(index)])
    assert_close(leaves(got), [x.astype(np.float32) for x in want])


def test_without_scales_it_is_the_plain_subspace():
    tx = lrk.subspace.structured(7, DENSE)
    plain = lrk.subspace.random(4, DENSE)
    state = tx.init(KEY, PARAMS)
    assert_close(state.fixed, plain.init(KEY, PARAMS).fixed)
    z = jnp.asarray(numbers(4, 4))
    scaled = state.trainable["subspace"] | {"z": z}
    got = tx.apply(PARAMS, state._replace(trainable={"subspace": scaled}))
    want = plain.apply(PARAMS, state._replace(trainable={"subspace": {"z": z}}))
    assert_close(lrk.materialize(got), lrk.materialize(want))


def test_at_init_only_z_has_a_gradient():
    tx = lrk.subspace.structured(6, DENSE)
    state = tx.init(KEY, PARAMS)

    def loss(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return sum(jnp.sum(x**3) for x in jax.tree.leaves(lrk.materialize(adapted)))

    grads = jax.grad(loss)(state.trainable)["subspace"]
    assert np.abs(grads["z"]).min() > 0
    assert not np.any(grads["lambda"])
    step = jax.tree.map(lambda x, g: x - 0.1 * g, state.trainable["subspace"], grads)
    assert np.abs(jax.grad(loss)({"subspace": step})["subspace"]["lambda"]).min() > 0


def test_groups_are_named_in_the_order_of_the_scales():
    tx = lrk.subspace.structured(6, DENSE, groups=first)
    paths = lrk.select_paths(tx, PARAMS)
    assert paths == PATHS
    assert lrk.subspace.group_names(first, paths) == ("one", "two")


# --- messages -------------------------------------------------------------------------


def test_refuses_dimensions_that_leave_nothing():
    match = "d=3 leaves nothing for z: expected more than the 3 groups 'one/bias', 'one"
    with pytest.raises(ValueError, match=match):
        lrk.subspace.structured(3, DENSE).init(KEY, PARAMS)
    lrk.subspace.structured(3, DENSE, groups=first).init(KEY, PARAMS)
    many = {f"w{i}": jnp.ones(1) for i in range(12)}
    with pytest.raises(ValueError, match=r"the 12 groups 'w0', .*'w5', ...\. Raise d"):
        lrk.subspace.structured(12, DENSE).init(KEY, many)
    with pytest.raises(ValueError, match="d=22 exceeds the 21 entries"):
        lrk.subspace.structured(25, DENSE).init(KEY, PARAMS)
    with pytest.raises(ValueError, match=r"structured: d must be at least 1, got 0"):
        lrk.subspace.structured(0, DENSE)


def test_refuses_selections_of_nothing_and_groups_that_are_none():
    tx = lrk.subspace.structured(6, DENSE, select=lrk.matching("query"))
    with pytest.raises(ValueError, match="structured: the selection matches none of 3"):
        tx.init(KEY, PARAMS)
    with untyped(), pytest.raises(TypeError, match="groups must be a function"):
        lrk.subspace.structured(6, DENSE, groups={"one": 1})
    with untyped(), pytest.raises(TypeError, match="must return a string, got 'one/bi"):
        lrk.subspace.structured(6, DENSE, groups=len).init(KEY, PARAMS)


def test_refuses_states_of_others():
    tx = lrk.subspace.structured(6, DENSE)
    plain = lrk.subspace.random(3, DENSE).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="a vector 'lambda' at 'subspace', got none"):
        tx.apply(PARAMS, plain)
    fewer = lrk.subspace.structured(5, DENSE, groups=first).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="expected d=6 .*, got {'z': 3, 'lambda': 2}"):
        tx.apply(PARAMS, fewer)
    fewer = lrk.subspace.structured(6, DENSE, groups=first).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="expected 3 entries of 'lambda'.*, got 2"):
        tx.apply(PARAMS, fewer)
