"""Fault-aware pruning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import rram

AXES = {"conv": lrk.Axes((), (1, 2), (0,))}  # [out, in, tap]
PARAMS = {"w": jnp.ones((4, 3)), "conv": jnp.ones((3, 2, 2)), "bias": jnp.ones(3)}


def floating(path, leaf):
    del leaf
    return path != "bias"


TX = rram.crossbar(rram.Device(p_lrs=0.2, p_hrs=0.2), select=floating, axes=AXES)
STATE = TX.init(jax.random.key(1), PARAMS)


def test_a_weight_with_any_faulty_cell_is_exactly_zero_and_others_are_as_they_were():
    keep = rram.fault_free(PARAMS, STATE, axes=AXES)
    pruned = rram.fault_pruned(PARAMS, STATE, axes=AXES)
    ideal = np.asarray(STATE.fixed["w"]["code"]) == rram.OK
    assert (np.asarray(keep["w"]) == ideal[0] & ideal[1]).all()
    code = np.asarray(STATE.fixed["conv"]["code"]) == rram.OK  # [2, 4 rows, 3 columns]
    assert (np.asarray(keep["conv"]).reshape(3, 4).T == code[0] & code[1]).all()
    for path, own in keep.items():
        assert 0 < own.sum() < own.size
        assert (np.asarray(pruned[path]) == np.asarray(own)).all()
    assert pruned["bias"] is PARAMS["bias"]


def test_permuted_rows_meet_the_cells_of_their_places():
    tall = TX.init(jax.random.key(2), {**PARAMS, "w": jnp.ones((5, 3))})
    rows = {"w": jnp.asarray([4, 0, 2, 1])}
    keep = rram.fault_free(PARAMS, tall, axes=AXES, rows=rows)
    ideal = (np.asarray(tall.fixed["w"]["code"]) == rram.OK).all(0)
    assert (np.asarray(keep["w"]) == ideal[[4, 0, 2, 1]]).all()


def test_each_layer_of_a_stack_has_its_own_places():
    axes = {"s": lrk.Axes((0,), (1,), (2,))}
    tx = rram.crossbar(rram.Device(p_lrs=0.4), select=floating, axes=axes)
    tall = tx.init(jax.random.key(3), {"s": jnp.ones((2, 5, 3))})
    rows = np.asarray([[4, 0, 2], [1, 2, 3]])
    params = {"s": jnp.ones((2, 3, 3))}
    keep = rram.fault_free(params, tall, axes=axes, rows={"s": jnp.asarray(rows)})["s"]
    ideal = (np.asarray(tall.fixed["s"]["code"]) == rram.OK).all(-3)
    assert (np.asarray(keep) == [ideal[i][rows[i]] for i in (0, 1)]).all()


def test_another_tree_is_refused_by_name():
    with pytest.raises(ValueError, match=r"fault_free: .*'w': expected \(5, 3\), got"):
        rram.fault_free({**PARAMS, "w": jnp.ones((5, 3))}, STATE, axes=AXES)
    with pytest.raises(ValueError, match=r"fault_free: the state has 'conv', 'w'"):
        rram.fault_pruned({"v": jnp.ones((4, 3))}, STATE)
