"""`fact_tt` and `fact_tk`: against the equations, what is shared, messages."""

import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.tensor_tree import AXES, KEY, formed, moved, params, shapes, weights
from tests.reference import fact as reference
from tests.tolerances import assert_close

COMMON = {"select": lrk.matching("."), "axes": AXES}


def at(array, i):
    return array if i is None else array[i]


def test_the_tensor_train_follows_the_equations():
    tx = lrk.fact_tt(2, scale=0.5, **COMMON)
    state = moved(tx)
    own, new = state.trainable, formed(tx, state)
    for path, i, _, _, w in weights():
        u = own[f"shared/in/{w.shape[-2]}"]["a"]
        v = own[f"shared/out/{w.shape[-1]}"]["b"]
        want = reference.train_weight(at(w, i), u, at(own[path]["core"], i), v, 0.5)
        assert_close(at(new[path], i), want.astype(np.float32))


def test_the_tucker_form_follows_the_equations():
    tx = lrk.fact_tk(2, scale=0.5, **COMMON)
    state = moved(tx)
    own, new = state.trainable, formed(tx, state)
    core = own["shared/modes"]["core"]
    for path, i, _, _, w in weights():
        u = own[f"shared/in/{w.shape[-2]}"]["a"]
        v = own[f"shared/out/{w.shape[-1]}"]["b"]
        want = reference.tucker_weight(at(w, i), u, core, at(own[path]["p"], i), v, 0.5)
        assert_close(at(new[path], i), want.astype(np.float32))


def test_what_each_weight_owns():
    outer = 2 * (4 + 4 + 6)
    for tx, rest in ((lrk.fact_tt, 6 * 4), (lrk.fact_tk, 8 + 6 * 2)):
        state = shapes(tx(2, **COMMON))
        assert lrk.count(state) == (outer + rest, 0)
        assert lrk.select_paths(tx(2), params()) == ("0/q", "0/up", "1/q", "1/up")


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
def test_refuses_wrong_hyperparameters_and_states(name):
    make = getattr(lrk, name)
    with pytest.raises(ValueError, match=f"{name}: rank must be at least 1, got 0"):
        make(0)
    other = shapes(lrk.lora(2, **COMMON))
    with pytest.raises(ValueError, match=f"{name}: the state does not fit: '0/q' lack"):
        make(2, **COMMON).apply(params(), other)
    tree = params() | {"shared": {"in": np.ones((4, 4), "f4")}}
    with pytest.raises(ValueError, match=f"{name}: 'shared/in': the state keeps below"):
        make(2).init(KEY, tree)
