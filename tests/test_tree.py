"""Paths, keys by path, leaves replaced by path."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import lowrank as lrk
from lowrank import _tree

KEY = jax.random.key(0)


class Pair(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def paths(tree):
    return [path for path, _ in _tree.flatten("test", tree)[0]]


def test_paths_are_joined_through_every_container():
    tree = {"a": [jnp.ones(1), {"b": jnp.ones(1)}], "c": Pair(jnp.ones(1), jnp.ones(1))}
    assert paths(tree) == ["a/0", "a/1/b", "c/kernel", "c/bias"]


def test_the_wrapper_of_a_framework_is_no_part_of_a_path():
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    assert sorted(paths(nnx.state(layer))) == ["bias", "kernel"]
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=(None, None))}}
    assert paths(boxed) == ["dense/kernel"]


def test_a_parameter_that_is_called_value_keeps_its_name():
    assert paths(
        {"value": {"kernel": jnp.ones(1)}, "attn": {"value": jnp.ones(1)}}
    ) == [
        "attn/value",
        "value/kernel",
    ]


def test_a_value_beside_other_attributes_is_no_wrapper():
    class Quantised(NamedTuple):
        value: jax.Array
        scale: jax.Array

    tree = {"w": Quantised(jnp.ones(1), jnp.ones(1))}
    assert paths(tree) == ["w/value", "w/scale"]


def test_abstract_runs_keep_what_is_no_array():
    seen = []

    def run(params, mode):
        seen.append((params["x"], params["n"], mode))
        return params["x"] * 2

    out = _tree.abstractly(run, {"x": jnp.ones(3), "n": 4}, "mode")
    assert out == jax.ShapeDtypeStruct((3,), jnp.float32)
    assert isinstance(seen[0][0], jax.core.Tracer)
    assert seen[0][1:] == (4, "mode")


def test_operators_count_as_leaves():
    op = lrk.Delta(jnp.ones(2), jnp.ones(2))
    tree = {"op": op, "x": jnp.ones(1)}
    assert paths(tree) == ["op", "x"]
    assert _tree.leaves("test", tree)["op"] is op


def test_two_leaves_with_one_path_are_refused():
    tree = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}, "c": jnp.ones(1)}
    with pytest.raises(ValueError, match="test: more than one leaf has the path 'a/b'"):
        paths(tree)


def test_only_arrays_and_operators_are_leaves_to_adapt():
    tree = {"array": jnp.ones(1), "int": 3, "text": "x", "none": None}
    assert list(_tree.leaves("test", tree)) == ["array"]


def test_replace_keeps_the_other_objects():
    tree = {"a": jnp.ones(1), "b": [jnp.ones(2), 5]}
    new = _tree.replace("test", tree, {"b/0": "new"})
    assert new["a"] is tree["a"]
    assert new["b"] == ["new", 5]
    assert tree["b"][0].shape == (2,)


def test_the_key_of_a_leaf_depends_on_its_path_alone():
    one = _tree.leaf_key(KEY, "a/kernel")
    assert one == _tree.leaf_key(KEY, "a/kernel")
    assert one != _tree.leaf_key(KEY, "b/kernel")
    assert one == jax.random.fold_in(KEY, jnp.uint32(_crc(b"a/kernel")))


def _crc(text):
    """CRC-32 by its polynomial: the same number in every process."""
    crc = 0xFFFFFFFF
    for byte in text:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_nearest_orders_by_likeness():
    found = _tree.nearest(["query/kernal"], ["bias", "query/kernel", "key/kernel"])
    assert found[0] == "query/kernel"
    assert len(found) == 3
    assert len(_tree.nearest(["x"], map(str, range(9)), count=2)) == 2


def test_describe_tells_path_and_shape():
    assert _tree.describe("a/b", jnp.ones((2, 3))) == "'a/b' of shape (2, 3)"
    op = lrk.Delta(jnp.ones(2), jnp.ones(2))
    assert _tree.describe("op", op) == "'op' of shape (2,)"
