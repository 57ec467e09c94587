"""Predicates, their combinations, and the checks of a selection."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from lowrank._select import selected

F32 = jax.ShapeDtypeStruct((4, 3), jnp.float32)
PARAMS = {
    "query": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "key": {"kernel": jnp.ones((4, 3))},
    "ids": jnp.ones((4, 3), int),
}


def chosen(select, params=PARAMS):
    return list(selected("test", params, select))


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 3), "float32", True),
        ((4, 3), "bfloat16", True),
        ((4, 3), "int32", False),
        ((4,), "float32", False),
        ((2, 4, 3), "float32", False),
    ],
)
def test_is_matrix_wants_two_axes_and_a_floating_dtype(shape, dtype, expected):
    assert lrk.is_matrix("any", jax.ShapeDtypeStruct(shape, dtype)) is expected


def test_matching_searches_anywhere_in_the_path():
    select = lrk.matching(r"(query|value)/kernel$")
    assert select("layer/0/query/kernel", F32)
    assert not select("query/kernel/extra", F32)
    assert not select("key/kernel", F32)


def test_matching_refuses_what_is_no_expression():
    with pytest.raises(ValueError, match=r"matching: '\(' is no regular expression"):
        lrk.matching("(")


def test_predicates_combine():
    kernel, query = lrk.matching("kernel"), lrk.matching("query")
    assert chosen(lrk.both(kernel, query)) == ["query/kernel"]
    assert chosen(lrk.either(lrk.matching("bias"), lrk.matching("ids"))) == [
        "ids",
        "query/bias",
    ]
    assert chosen(lrk.neither(kernel, query)) == ["ids"]
    assert chosen(lrk.both(kernel, lrk.neither(query))) == ["key/kernel"]
    assert lrk.both()("any", F32)
    assert not lrk.either()("any", F32)


def test_masked_selects_by_a_tree_of_bools():
    mask = jax.tree.map(lambda x: x.ndim == 1, PARAMS)
    assert chosen(lrk.masked(mask)) == ["query/bias"]


def test_masked_refuses_what_is_no_bool():
    with pytest.raises(ValueError, match=r"masked: expected a bool at \['a', 'c'\]"):
        lrk.masked({"a": 1, "b": True, "c": jnp.bool_(True)})


def test_masked_refuses_a_path_that_it_lacks():
    with pytest.raises(ValueError, match="masked: the tree of bools has no 'ids'"):
        chosen(lrk.masked({"query": {"kernel": True}}))


def test_a_transform_names_every_path_that_masked_lacks():
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    tx = lrk.full(select=lrk.masked({"b": True}))
    with pytest.raises(ValueError, match="the tree of bools has no 'a', 'c'"):
        tx.init(jax.random.key(0), params)


def test_the_predicate_sees_paths_and_shapes_of_operators_too():
    seen = {}

    def select(path, leaf):
        seen[path] = (type(leaf), leaf.shape, str(leaf.dtype))
        return True

    op = lrk.Delta(jnp.ones((4, 3), jnp.bfloat16), jnp.ones((4, 3)))
    assert chosen(select, {"op": op, "none": None, "text": "x"}) == ["op"]
    assert seen == {"op": (jax.ShapeDtypeStruct, (4, 3), "bfloat16")}


def test_an_empty_selection_shows_the_nearest_paths():
    with pytest.raises(ValueError, match="matches none of 4 leaves") as error:
        chosen(lrk.matching("quary/kernel"))
    text = str(error.value)
    assert "nearest are 'query/kernel' of shape (4, 3)" in text
    assert text.startswith("test: ")
    assert "lrk.select_paths shows" in text
    with pytest.raises(ValueError, match=r"nearest are 'ids' of shape \(4, 3\)"):
        chosen(lambda path, leaf: False)  # noqa: ARG005


def test_one_array_at_two_selected_paths_is_refused():
    shared = jnp.ones((4, 3))
    tied = {"embed": shared, "head": shared, "other": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match=r"several selected paths \('embed', 'head'\)"):
        chosen(lrk.is_matrix, tied)
    assert chosen(lrk.matching("embed|other"), tied) == ["embed", "other"]
