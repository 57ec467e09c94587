"""Layer and type of a leaf: both forms of `groups`, and what is unclear."""

import jax
import numpy as np
import pytest

import lowrank as lrk
from tests.untyped import untyped

KEY = jax.random.key(0)


def shapes(*paths, shape=(4, 4)):
    return {path: jax.ShapeDtypeStruct(shape, np.float32) for path in paths}


def rows(groups, tree, axes=None):
    select = lrk.matching(".")
    tx = lrk.lorta(1, groups, select=select, axes=axes)
    return {
        path: (own["layer_row"].tolist(), own["type_row"].tolist())
        for path, own in jax.jit(lambda: tx.init(KEY, arrays(tree)))().fixed.items()
    }


def arrays(tree):
    return {path: np.zeros(x.shape, x.dtype) for path, x in tree.items()}


def refused(groups, tree, match):
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lrk.lorta(1, groups).init, KEY, tree)


def test_an_expression_with_both_groups():
    found = rows(r"(?P<layer>\d)\.(?P<type>\w)", shapes("0.q", "0.v", "1.q"))
    assert found == {"0.q": (0, 0), "0.v": (0, 1), "1.q": (1, 0)}


def test_without_a_group_of_types_all_are_of_one():
    assert rows(r"(?P<layer>\d)", shapes("0", "1")) == {"0": (0, 0), "1": (1, 0)}


def test_a_function_and_a_stack_of_layers():
    tree = shapes("q", "v", shape=(3, 4, 4))
    axes = dict.fromkeys(tree, lrk.Axes((0,), (1,), (2,)))
    found = rows(lambda path: (None, path), tree, axes)
    assert found == {"q": ([0, 1, 2], [0] * 3), "v": ([0, 1, 2], [1] * 3)}
    apart = rows(lambda path: (path, "w"), tree, axes)
    assert apart == {"q": ([0, 1, 2], [0] * 3), "v": ([3, 4, 5], [0] * 3)}


def test_refuses_what_is_no_description_of_groups():
    with untyped(), pytest.raises(TypeError, match="groups must be a regular expr"):
        lrk.lorta(1, 3)
    with pytest.raises(ValueError, match=r"groups='\(' is no regular expression"):
        lrk.lorta(1, "(")
    with pytest.raises(ValueError, match="has neither a group 'layer' nor 'type'"):
        lrk.lorta(1, "query")


def test_names_every_leaf_that_is_not_clear():
    two = shapes("a.q", "b.q")
    refused(r"(?P<layer>\d)", two, "'a.q' of shape .*: groups does not match; 'b.q'")
    refused(r"(?P<layer>a)?.*(?P<type>q)", two, "'b.q' .*: no layer, and no stack axis")
    refused(r"(?P<layer>[ab])\.(?P<type>v)?", two, "'a.q' of shape .*: no type; 'b.q'")
    refused(r"(?P<type>q)", two, "'a.q' of shape .*: no layer, and no stack axis")
    refused(lambda path: path, two, r"groups must return \(layer, type\), got 'a.q'")
    refused(lambda path: (1.5, path), two, r"must be a string or an int, got 1\.5")


def test_refuses_two_leaves_that_are_one_member():
    tree = shapes("a.q", "b.q")
    refused(lambda _: (0, "q"), tree, "'a.q' and 'b.q': both layer '0', 'q'")
