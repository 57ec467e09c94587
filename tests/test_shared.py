"""What leaves share: its places in a state, and what is refused of them."""

import jax
import numpy as np
import pytest

import lowrank as lrk
from lowrank import _shared


def test_a_place_is_a_path_below_shared():
    assert _shared.place("in", 768) == "shared/in/768"
    assert _shared.is_shared("shared/in/768")
    assert not _shared.is_shared("sharedby/in")


def test_a_state_divides_by_path():
    state = lrk.State({"shared/in/4": 1, "w": 2}, {"w": 3})
    own, shared = _shared.divide(state)
    assert own == ({"w": 2}, {"w": 3})
    assert shared == ({"shared/in/4": 1}, {})


def test_the_state_of_a_chain_counts_as_owned():
    own, shared = _shared.divide(lrk.State(({}, {}), ({}, {})))
    assert own == (({}, {}), ({}, {}))
    assert shared == ({}, {})


def test_refuses_leaves_in_the_way():
    _shared.check_free("me", ["w", "sharedby"])
    with pytest.raises(ValueError, match="me: 'shared/w': the state keeps below"):
        _shared.check_free("me", ["w", "shared/w"])


def test_shared_entries_count_stack_divide_and_are_no_leaves():
    params = {"q": np.ones((4, 4), "f4"), "v": np.ones((4, 4), "f4")}
    tx = lrk.fact_tt(2)
    state = tx.init(jax.random.key(0), params)
    assert lrk.count(state) == (8 + 8 + 4 + 4, 0)
    assert lrk.select_paths(tx, params) == ("q", "v")
    own, rest = lrk.partition(state, lrk.matching("^[qv]/"))
    assert list(rest.trainable["shared/in/4"]) == ["a"]
    assert own.trainable["shared/in/4"] == {}
    many = lrk.stack([state, state])
    assert many.trainable["shared/out/4"]["b"].shape == (2, 2, 4)
