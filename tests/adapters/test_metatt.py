"""`metatt`: against the equations, its starts, messages."""

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
from tests.reference import metatt as reference
from tests.tolerances import assert_close

COMMON = {"select": lrk.matching("."), "axes": AXES}
LAYERS, TYPES = ("0", "1"), ("q", "up", "deep")


@pytest.mark.parametrize("heads", [None, 2])
def test_follows_the_equations(heads):
    tx = lrk.metatt(2, GROUPS, heads=heads, alpha=3, **COMMON)
    state = moved(tx)
    shared, new = state.trainable, formed(tx, state)
    modes = shared["shared/modes"]
    for path, i, layer, kind, w in weights():
        n, m = w.shape[-2:]
        want = reference.weight(
            w if i is None else w[i],
            shared[f"shared/in/{n}"]["a"],
            modes["layer"][LAYERS.index(layer)],
            modes["type"][TYPES.index(kind)],
            shared[f"shared/out/{m}"]["b"],
            1.5,
            modes.get("head"),
        )
        got = new[path] if i is None else new[path][i]
        assert_close(got, want.astype(np.float32))


def test_the_first_core_is_zero_and_the_others_identities():
    tx = lrk.metatt(2, GROUPS, **COMMON)
    trainable = jax.jit(tx.init)(KEY, params()).trainable
    assert not np.any(trainable["shared/in/4"]["a"])
    np.testing.assert_array_equal(trainable["shared/out/6"]["b"], np.eye(2, 6))
    cores = trainable["shared/modes"]
    np.testing.assert_array_equal(cores["type"], np.stack([np.eye(2)] * 3))


def test_parameters_grow_with_the_sum_of_the_modes():
    tx = lrk.metatt(2, GROUPS, **COMMON)
    state = shapes(tx)
    assert lrk.count(state) == (2 * (4 + 4 + 6) + (2 + 3) * 2 * 2, 0)


def test_refuses_wrong_hyperparameters_and_states():
    with pytest.raises(ValueError, match="metatt: rank must be at least 1, got 0"):
        lrk.metatt(0, GROUPS)
    tx = lrk.metatt(2, GROUPS, **COMMON)
    other = shapes(lrk.lorta(2, GROUPS, **COMMON))
    expected = r"'layer' at 'shared/modes': expected shape \(any, 2, 2\), got \(2, 2\)"
    with pytest.raises(ValueError, match=expected):
        tx.apply(params(), other)
