"""`lorta`: against the equations, what is shared, and what it refuses."""

import jax
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.tensor_tree import (
    AXES,
    GROUPS,
    KEY,
    formed,
    moved,
    params,
    shapes,
    weights,
)
from tests.reference import lorta as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

COMMON = {"select": lrk.matching("."), "axes": AXES}
LAYERS, TYPES = ("0", "1"), ("q", "up", "deep")


@pytest.mark.parametrize("heads", [None, 2])
def test_follows_the_equations(heads):
    tx = lrk.lorta(2, GROUPS, heads=heads, alpha=3, **COMMON)
    state = moved(tx)
    shared, new = state.trainable, formed(tx, state)
    modes = shared["shared/modes"]
    for path, i, layer, kind, w in weights():
        n, m = w.shape[-2:]
        want = reference.weight(
            w if i is None else w[i],
            shared[f"shared/in/{n}"]["a"],
            shared[f"shared/out/{m}"]["b"],
            modes["layer"][LAYERS.index(layer)],
            modes["type"][TYPES.index(kind)],
            1.5,
            modes.get("head"),
        )
        got = new[path] if i is None else new[path][i]
        assert_close(got, want.astype(np.float32))


def test_each_size_and_each_member_is_kept_once():
    tx = lrk.lorta(2, GROUPS, heads=2, **COMMON)
    state = shapes(tx)
    found = {p: {n: x.shape for n, x in own.items()} for p, own in state[0].items()}
    modes = {"layer": (2, 2), "type": (3, 2), "head": (2, 2)}
    assert found == {
        "shared/in/4": {"a": (4, 2)},
        "shared/out/4": {"b": (2, 2)},
        "shared/out/6": {"b": (2, 3)},
        "shared/modes": modes,
    }
    assert lrk.count(state) == (8 + 4 + 6 + 14, 0)


def test_another_layer_moves_no_row():
    tx = lrk.lorta(2, r"(?P<layer>.)/(?P<type>\w+)")
    tree = {name: {"q": np.ones((4, 4), "f4")} for name in ("0", "1")}
    init = jax.jit(tx.init)
    small = init(KEY, tree).trainable
    large = init(KEY, {"#": {"q": np.ones((4, 4), "f4")}, **tree}).trainable
    rows = large["shared/modes"].pop("layer")
    assert_close(rows[1:], small["shared/modes"].pop("layer"))
    assert_close(large, small)


def test_a_leaf_is_a_plain_low_rank_term():
    tx = lrk.lorta(2, GROUPS, **COMMON)
    adapted = tx.apply(params(), moved(tx))
    assert type(adapted["0"]["q"]) is lrk.LowRank
    assert adapted["deep"].a_dims == (0, 1)
    merged = jax.jit(lambda t: lrk.materialize(lrk.merging.concat([t, t])))(adapted)
    twice = jax.tree.map(lambda new, w: 2 * new - w, lrk.materialize(adapted), params())
    assert_close(merged, twice)


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="lorta: rank must be at least 1, got 0"):
        lrk.lorta(0, GROUPS)
    with pytest.raises(ValueError, match="lorta: heads must be at least 1, got 0"):
        lrk.lorta(2, GROUPS, heads=0)
    with untyped(), pytest.raises(TypeError, match=r"heads must be an int, got 1\.5"):
        lrk.lorta(2, GROUPS, heads=1.5)
    with pytest.raises(ValueError, match="got both alpha and scale"):
        lrk.lorta(2, GROUPS, alpha=1, scale=1)


def test_refuses_outputs_that_do_not_divide_into_heads():
    tx = lrk.lorta(2, GROUPS, heads=4, **COMMON)
    with pytest.raises(ValueError, match=r"'0/up' of shape \(4, 6\): 6 outputs; '1/up"):
        jax.eval_shape(tx.init, KEY, params())


def test_refuses_a_state_of_another_tree():
    tx = lrk.lorta(2, GROUPS, **COMMON)
    state = moved(tx)
    wide = {"0": {"q": np.ones((5, 4), "f4")}}
    own = {p: x for p, x in state.fixed.items() if p == "0/q"}
    with pytest.raises(ValueError, match="'shared/in/5' lacks 'a'"):
        tx.apply(wide, state._replace(fixed=own))
    with pytest.raises(ValueError, match="which the parameters lack"):
        tx.apply(wide, state)
