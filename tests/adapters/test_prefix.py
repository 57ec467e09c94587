"""`prefix`, `prefix_mlp` and `prompt`: the leaves that they add, and messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import filled, numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
BOTH = lrk.matching("(key|value)/kernel")


def layer(seed):
    names = ("query", "key", "value")
    return {
        name: {"kernel": jnp.asarray(numbers(seed + i, 3, 4))}
        for i, name in enumerate(names)
    }


PARAMS = {"layers": [layer(0), layer(10)], "words": {"embedding": jnp.ones((7, 4))}}


def test_adds_rows_beside_the_selected_leaves_and_nothing_else():
    tx = lrk.prefix(5, select=BOTH, scale=0.5)
    state = filled(tx, PARAMS)
    tree = tx.apply(PARAMS, state)
    path = "layers/1/value/kernel"
    assert_close(
        tree["layers"][1]["value"]["prefix"], state.trainable[path]["rows"] / 2
    )
    added = [
        keys[-2].key
        for keys, _ in jax.tree.leaves_with_path(tree)
        if keys[-1].key == "prefix"
    ]
    assert added == ["key", "value"] * 2
    assert tree["words"] is PARAMS["words"]
    assert tree["layers"][0]["query"] is PARAMS["layers"][0]["query"]
    assert tree["layers"][0]["key"]["kernel"] is PARAMS["layers"][0]["key"]["kernel"]
    assert "prefix" not in PARAMS["layers"][0]["key"]
    assert lrk.select_paths(tx, PARAMS) == tuple(sorted(state.trainable))


def test_rows_have_the_dtype_of_the_leaf_and_stand_beside_operators():
    params = {"key": {"kernel": jnp.ones((3, 4), jnp.bfloat16)}}
    tx = lrk.chain(lrk.lora(1), lrk.prefix(2, select=lrk.matching("kernel")))
    tree = tx.apply(params, filled(tx, params))
    assert isinstance(tree["key"]["kernel"], lrk.LowRank)
    assert tree["key"]["prefix"].dtype == jnp.bfloat16
    assert lrk.materialize(tree)["key"]["prefix"] is tree["key"]["prefix"]


def test_stacks_and_several_output_axes():
    params = {"key": {"kernel": jnp.zeros((2, 3, 4, 5))}}
    axes = {"key/kernel": lrk.Axes((0,), (1,), (2, 3))}
    select = lrk.matching("kernel")
    for tx in (
        lrk.prefix(6, select=select, axes=axes),
        lrk.prefix_mlp(6, 2, 3, select=select, axes=axes),
    ):
        state = jax.eval_shape(tx.init, KEY, params)
        tree = jax.eval_shape(tx.apply, params, state)
        assert tree["key"]["prefix"].shape == (2, 6, 4, 5)


def test_the_network_of_the_reparametrisation():
    tx = lrk.prefix_mlp(5, 2, 6, select=BOTH)
    state = filled(tx, PARAMS)
    tree = jax.jit(tx.apply)(PARAMS, state)
    own = state.trainable["layers/0/key/kernel"]
    e, w1, b1, w2, b2 = (
        np.asarray(own[n], np.float64)
        for n in ("embedding", "w_in", "b_in", "w_out", "b_out")
    )
    want = np.stack([np.tanh(row @ w1 + b1) @ w2 + b2 for row in e])
    assert_close(tree["layers"][0]["key"]["prefix"], want.astype(np.float32))
    assert lrk.count(state) == (4 * (5 * 2 + 2 * 6 + 6 + 6 * 4 + 4), 0)


def test_what_is_drawn():
    words = lrk.matching("embedding")
    rows = lrk.prompt(64, select=words).init(KEY, PARAMS).trainable["words/embedding"]
    assert rows["rows"].shape == (64, 4)
    assert 0.45 < np.abs(rows["rows"]).max() <= 0.5
    small = lrk.prefix(64, select=words).init(KEY, PARAMS).trainable
    spread = np.std(small["words/embedding"]["rows"])
    assert abs(spread - 0.02) < 5 * 0.02 / np.sqrt(2 * 256)


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="prefix: length must be at least 1, got 0"):
        lrk.prefix(0, select=BOTH)
    with pytest.raises(ValueError, match="prefix_mlp: hidden must be at least 1, got"):
        lrk.prefix_mlp(2, 2, 0, select=BOTH)
    with pytest.raises(ValueError, match="prompt: name must be one part of a path"):
        lrk.prompt(2, select=BOTH, name="a/b")
    with untyped():
        with pytest.raises(TypeError, match=r"prompt: length must be an int, got 2\.0"):
            lrk.prompt(2.0, select=BOTH)
        with pytest.raises(TypeError, match="prefix_mlp: width must be an int"):
            lrk.prefix_mlp(2, None, 2, select=BOTH)
        with pytest.raises(TypeError, match="prefix: scale must be a number"):
            lrk.prefix(2, select=BOTH, scale="x")


def test_refuses_places_that_are_taken_or_no_dict():
    tx = lrk.prefix(2, select=lrk.matching("key/kernel"))
    message = (
        r"prefix: cannot add 'prefix': 'layers/0/key/prefix' is there already; "
        r"'layers/1/key/prefix' is there already\. Select"
    )
    with pytest.raises(ValueError, match=message):
        lrk.chain(tx, tx).init(KEY, PARAMS)
    message = r"prefix: cannot add 'prefix': '0' does not stand in a nested dict"
    with pytest.raises(ValueError, match=message):
        lrk.prefix(2, select=lrk.is_matrix).init(KEY, [jnp.ones((3, 4))])


def test_refuses_leaves_and_states_that_do_not_fit():
    params = {"key": {"kernel": jnp.ones((2, 2), int), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match="'key/kernel' of shape .*: not floating"):
        lrk.prefix(2, select=lrk.matching("kernel")).init(KEY, params)
    with pytest.raises(ValueError, match=r"'key/bias' .* needs 2 axes"):
        lrk.prompt(2, select=lrk.matching("bias")).init(KEY, params)
    tx = lrk.prefix(2, select=BOTH)
    state = filled(tx, PARAMS)
    with pytest.raises(ValueError, match=r"rows of \(2, 2, 4\) at 'layers/0/key"):
        tx.apply(PARAMS, lrk.stack([state, state]))
    with pytest.raises(ValueError, match="lacks trainable 'embedding'"):
        lrk.prefix_mlp(2, 2, 2, select=BOTH).apply(PARAMS, state)
