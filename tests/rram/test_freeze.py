"""Which weights a chip distorts, and the order in which they are frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import rram

NEVER = np.iinfo(np.int32).max
W = jnp.asarray([[1.0, 4.0], [-0.5, 0.0]])
AXES = {"conv": lrk.Axes((), (1,), (0,))}  # columns on the first axis


def test_distortion_is_measured_by_the_scale_of_the_column():
    deployed = W + jnp.asarray([[0.1, 0.1], [0.0, 0.21]])
    hit = rram.afflicted({"w": W}, {"w": deployed}, tolerance=0.05)["w"]
    # Scales 1 and 4: bounds 0.05 and 0.2.
    assert hit.tolist() == [[True, False], [False, True]]
    swapped = rram.afflicted(
        {"conv": W.T}, {"conv": deployed.T}, tolerance=0.05, axes=AXES
    )["conv"]
    assert swapped.T.tolist() == hit.tolist()


def test_a_defect_that_the_weight_does_not_meet_does_not_count():
    device = rram.Device()
    state = rram.crossbar(device).init(jax.random.key(0), {"w": W})
    codes = np.zeros((2, 2, 2), int)
    codes[1] = rram.HRS  # all minus cells are stuck at the zero state
    state = rram.with_faults(state, {"w": codes})
    deployed = rram.crossbar(device).apply({"w": W}, state)
    hit = rram.afflicted({"w": W}, deployed)["w"]
    assert hit.tolist() == [[False, False], [True, False]]


def test_a_chip_with_converters_is_compared_by_the_weights_it_holds():
    device = rram.Device(p_hrs=0.5, adc=rram.Converter(6, limit=4.0))
    tx, plain = rram.crossbar(device), rram.crossbar(device.replace(adc=None))
    state = tx.init(jax.random.key(3), {"w": W})
    key = jax.random.key(0)
    hit = rram.afflicted({"w": W}, tx.apply({"w": W}, state, key=key))
    expected = rram.afflicted({"w": W}, plain.apply({"w": W}, state))
    assert hit["w"].tolist() == expected["w"].tolist()


ORDER = {
    "importance": {"b": jnp.asarray([5.0, 1.0, 2.0]), "a": jnp.asarray([[2.0], [9.0]])},
    "afflicted": {
        "b": jnp.asarray([True, True, True]),
        "a": jnp.asarray([[True], [False]]),
    },
}
# 5 of b first, then the two of importance 2 in the order of paths, then 1.
KNOWN = {"b": [0, 3, 2], "a": [[1], [NEVER]]}


@pytest.mark.parametrize("run", [lambda f: f, jax.jit])
def test_the_most_important_afflicted_weight_goes_first(run):
    order = run(lambda: rram.freeze_order(**ORDER))()
    assert {path: rank.tolist() for path, rank in order.items()} == KNOWN
    assert all(rank.dtype == jnp.int32 for rank in order.values())


def test_order_maps_over_chips():
    hit = jax.tree.map(lambda x: jnp.stack([x, ~x]), ORDER["afflicted"])
    ranks = jax.vmap(lambda hit: rram.freeze_order(ORDER["importance"], hit))(hit)
    assert {path: rank[0].tolist() for path, rank in ranks.items()} == KNOWN
    assert ranks["a"][1].tolist() == [[NEVER], [0]]
    assert ranks["b"][1].tolist() == [NEVER] * 3


def test_frozen_are_the_first_and_never_the_healthy():
    order = {path: jnp.asarray(rank) for path, rank in KNOWN.items()}
    masks = [rram.frozen(order, count) for count in (0, 2, 1000)]
    assert [m["b"].tolist() for m in masks] == [
        [False] * 3,
        [True, False, False],
        [True] * 3,
    ]
    assert [m["a"].tolist() for m in masks][1:] == [[[True], [False]]] * 2
    assert jax.jit(rram.frozen)(order, 2)["b"].tolist() == masks[1]["b"].tolist()


def test_reduced_takes_the_value_that_comes_out_smallest():
    """One column of scale 2: what each cell makes of 0, 2 and -2 is known."""
    params = {"w": jnp.asarray([[2.0], [0.5], [0.1], [0.2]])}
    tx = rram.crossbar(rram.Device())
    state = tx.init(jax.random.key(0), params)
    codes = np.zeros((2, 4, 1), int)
    codes[1, 1] = codes[0, 2] = rram.LRS
    codes[:, 3] = rram.HRS
    state = rram.with_faults(state, {"w": codes})
    target = rram.reduced(params, lambda p: tx.apply(p, state))["w"]
    assert target.ravel().tolist() == [0.0, 2.0, -2.0, 0.0]


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"afflicted: tolerance must be at least 0"):
        rram.afflicted({"w": W}, {"w": W}, tolerance=-0.1)
    with pytest.raises(ValueError, match=r"afflicted: the deployed tree .* got noth"):
        rram.afflicted({"w": W}, {"v": W})
    with pytest.raises(ValueError, match=r"'w': expected shape \(2, 2\), got \(2,\)"):
        rram.afflicted({"w": W}, {"w": W[0]})
    tapped = lrk.operators.Rewired(W, column_signs=[1, 1])  # has a dense form
    assert not rram.afflicted({"w": W}, {"w": tapped})["w"].any()
    with pytest.raises(ValueError, match=r"freeze_order: importance .*'w': missing"):
        rram.freeze_order({"v": W}, {"w": W > 0})
    with pytest.raises(ValueError, match=r"freeze_order: expected the weights of at"):
        rram.freeze_order({"v": W}, {})
    with pytest.raises(ValueError, match=r"frozen: count must be at least 0, got -1"):
        rram.frozen({"w": W}, -1)
