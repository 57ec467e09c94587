"""`loretta`: against the equations, modes of a size, starts, messages."""

import jax
import numpy as np
import pytest

import lowrank as lrk
from lowrank.adapters._loretta import balanced, draw_cores
from tests.adapters.tensor_tree import AXES, KEY, formed, moved, params, shapes, weights
from tests.reference import loretta as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

COMMON = {"select": lrk.matching("."), "axes": AXES}


def test_follows_the_equations():
    tx = lrk.loretta(2, 3, divide=2, alpha=3, **COMMON)
    state = moved(tx)
    new = formed(tx, state)
    for path, i, _, _, w in weights():
        own = state.trainable[path]
        cores = {n: x if i is None else x[i] for n, x in own.items()}
        a, b = ([cores[f"{side}{k}"] for k in range(3)] for side in "ab")
        want = reference.weight(w if i is None else w[i], a, b, 2, 1.5)
        got = new[path] if i is None else new[path][i]
        assert_close(got, want.astype(np.float32))


def test_sizes_are_divided_evenly():
    assert balanced(768, 3) == (8, 8, 12)
    assert balanced(64, 3) == (4, 4, 4)
    assert balanced(7, 2) == (1, 7)
    assert balanced(6, 1) == (6,)


def test_cores_have_the_deviation_of_their_product():
    cores = draw_cores(KEY, (16, 16, 16), 64, 0.1)
    assert [core.shape for core in cores] == [(16, 64), (64, 16, 64), (64, 16)]
    product = np.tensordot(np.tensordot(cores[0], cores[1], 1), cores[2], 1)
    assert 0.09 < product.std() < 0.11


def test_the_last_core_may_be_drawn():
    drawn = jax.nn.initializers.normal(1.0)
    tree = {"w": np.ones((4, 6), "f4")}
    own = lrk.loretta(2, 3, divide=2, init_last=drawn).init(KEY, tree).trainable["w"]
    assert np.any(own["b2"])
    assert lrk.select_paths(lrk.loretta(2, 3), tree) == ("w",)


def test_modes_may_come_from_a_table():
    tree = {"w": jax.ShapeDtypeStruct((4, 6), np.float32)}
    table = {4: (4,), 6: (3, 2)}
    state = jax.eval_shape(lrk.loretta(2, 3, divide=table.get).init, KEY, tree)
    sizes = {name: core.shape for name, core in state.trainable["w"].items()}
    a = {"a0": (4, 3), "a1": (3, 2)}
    assert sizes == {**a, "b0": (2, 3), "b1": (3, 3, 3), "b2": (3, 2)}


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="loretta: rank must be at least 1, got 0"):
        lrk.loretta(0, 2)
    with pytest.raises(ValueError, match="loretta: tt_rank must be at least 1, got 0"):
        lrk.loretta(2, 0)
    with pytest.raises(ValueError, match="loretta: divide must be at least 1, got 0"):
        lrk.loretta(2, 2, divide=0)
    with untyped(), pytest.raises(TypeError, match="tt_rank must be an int, got 'a'"):
        lrk.loretta(2, "a")
    with untyped(), pytest.raises(TypeError, match="must be an int or a function"):
        lrk.loretta(2, 2, divide="a")


def test_names_every_leaf_whose_modes_are_wrong():
    tree = {"v": np.ones((4, 6), "f4"), "w": np.ones((4, 4), "f4")}
    expected = r"'v' of shape \(4, 6\): 6 as \(4,\). Return positive ints"
    with pytest.raises(ValueError, match=expected):
        lrk.loretta(2, 2, divide=lambda _: (4,)).init(KEY, tree)
    with pytest.raises(ValueError, match=r"4 as \(\); 'v' .*; 'w' .*: 4 as \(\)"):
        lrk.loretta(2, 2, divide=lambda _: ()).init(KEY, tree)


def test_refuses_a_state_of_another_transform():
    other = shapes(lrk.loretta(2, 2, divide=2, **COMMON))
    expected = r"'a0' at '0/q': expected shape \(2, 3\), got \(2, 2\)"
    with pytest.raises(ValueError, match=expected):
        lrk.loretta(2, 3, divide=2, **COMMON).apply(params(), other)
    lora = shapes(lrk.lora(2, **COMMON))
    with pytest.raises(ValueError, match="'0/q' lacks 'a0'"):
        lrk.loretta(2, 3, divide=2, **COMMON).apply(params(), lora)
