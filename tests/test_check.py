"""Refusals of keys, paths and states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import _check
from tests.untyped import untyped

KEY = jax.random.key(0)


def test_paths_of_one_hash_are_refused():
    # A known collision of crc32.
    with pytest.raises(ValueError, match="'plumless' and 'buckeroo' have the same crc"):
        _check.check_hashes("test", ["plumless", "other", "buckeroo"])
    _check.check_hashes("test", ["plumless", "other"])


@pytest.mark.parametrize(
    "key", [KEY, jax.random.key_data(KEY)], ids=["typed", "raw data"]
)
def test_keys_of_both_kinds_pass(key):
    _check.check_key("test", key)


@pytest.mark.parametrize(
    "key",
    [None, 0, jnp.zeros(2), jnp.zeros((3, 2), jnp.uint32), jax.random.split(KEY)],
    ids=["none", "int", "float", "raw batch", "typed batch"],
)
def test_what_is_not_one_key_is_refused(key):
    with pytest.raises(TypeError, match=r"test: expected one random key, got .*key\(0"):
        _check.check_key("test", key)


def test_the_message_tells_the_right_call():
    with pytest.raises(TypeError, match=r"got int\. Call draw\(x, key=key\)\."):
        _check.check_key("test", 0, "draw(x, key=key)")


def test_a_tie_is_seen_only_where_arrays_are_concrete():
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"several selected paths \('a', 'b'\)"):
        _check.check_ties("test", {"a": x, "b": x})
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    _check.check_ties("test", {"a": shape, "b": shape})
    jax.jit(lambda y: _check.check_ties("test", {"a": y, "b": y}))(x)


def test_a_state_of_another_tree_is_refused_with_the_nearest_paths():
    state = lrk.State({"query/kernel": {}}, {"gone": {}, "query/kernel": {}})
    message = (
        "test: the state has 'query/kernel', 'gone', .*nearest paths.*'query/kern'"
    )
    with pytest.raises(ValueError, match=message):
        _check.check_state("test", {"query/kern": 1}, state)
    _check.check_state("test", {"query/kernel": 1, "gone": 2, "more": 3}, state)


def test_all_missing_parts_of_a_state_are_listed():
    state = lrk.State({"v": {"a": 1, "b": 2}, "w": {"a": 1}}, {"v": {"scale": 1}})
    tree = {"v": 1, "w": 2}
    message = r"fit: 'w' lacks trainable 'b'; 'w' lacks fixed 'scale'\. Pass the State"
    with pytest.raises(ValueError, match=message):
        _check.check_state("test", tree, state, trainable=("a", "b"), fixed=("scale",))
    _check.check_state("test", tree, state, trainable=("a",))


def test_all_operators_that_do_not_fit_are_listed():
    good = lrk.Delta(jnp.ones(2), jnp.ones(2))
    new = {
        "a": good.replace(d=jnp.ones(3)),
        "b": good,
        "c": good.replace(d=jnp.ones(4)),
    }
    message = r"test: 'a': an array of \(3,\) .*; 'c': an array of \(4,\)"
    with pytest.raises(ValueError, match=message):
        _check.check_operators("test", new)
    _check.check_operators("test", {"b": good})


def test_what_is_no_state_is_refused_by_its_kind():
    with (
        untyped(),
        pytest.raises(TypeError, match="lora: expected a State, got NoneType"),
    ):
        _check.check_state("lora", {}, None)
    with (
        untyped(),
        pytest.raises(TypeError, match="got dict. Pass what .* init returned"),
    ):
        _check.check_state("lora", {}, {})


def test_a_state_of_a_chain_is_refused_by_its_member():
    with pytest.raises(
        ValueError, match="expected a state of dicts by path, got tuple"
    ):
        _check.check_state("test", {}, lrk.State(({},), ({},)))


def test_names_every_entry_that_is_missing_or_of_another_shape():
    found = {"shared/a": {"x": np.ones((2, 3)), "y": np.ones(2)}}
    wanted = {"shared/a": {"x": (None, 3), "y": (3,), "z": ()}, "shared/b": {"x": ()}}
    expected = (
        r"'y' at 'shared/a': expected shape \(3\), got \(2,\); 'shared/a' lacks 'z'; "
        "'shared/b' lacks 'x'"
    )
    with pytest.raises(ValueError, match=expected):
        _check.check_shapes("me", found, wanted)
    with pytest.raises(ValueError, match=r"expected shape \(any\), got \(2, 3\)"):
        _check.check_shapes("me", found, {"shared/a": {"x": (None,)}})
