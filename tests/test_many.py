"""Many adapters at once: stacked states, mapped axes, mapped functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank._combine import PADDING
from tests.network import numbers
from tests.tolerances import assert_close

PARAMS = {"w": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.zeros(4)}
TX = lrk.chain(lrk.lora(2), lrk.full(select=lrk.matching("bias")))
X = jnp.asarray(numbers(2, 5, 6))


def states(count=3):
    return [TX.init(jax.random.key(i), PARAMS) for i in range(count)]


def packed(length, index):
    """A state whose `b` holds some entries of a larger array, as LoRI-S keeps it."""
    values = jnp.asarray(numbers(length, length))
    return lrk.State(
        {"w": {"b": values}, "v": {"a": jnp.ones(2)}},
        {"w": {"index": jnp.array(index)}, "v": {}},
    )


def model(params, x):
    return x @ params["w"] + params["bias"][None]


def test_unstack_takes_apart_what_stack_put_together():
    own = states()
    stacked = lrk.stack(own)
    assert stacked.trainable[0]["w"]["a"].shape == (3, 6, 2)
    assert stacked.fixed[0]["w"]["scale"].shape == (3,)
    assert isinstance(stacked, lrk.State)
    assert_close(lrk.unstack(stacked), own)


def test_shorter_packed_leaves_are_padded_with_indices_that_point_nowhere():
    short, long = packed(2, [5, 3]), packed(4, [0, 1, 2, 7])
    stacked = lrk.stack([short, long])
    want = np.array([[5, 3, PADDING, PADDING], [0, 1, 2, 7]], np.int32)
    assert_close(stacked.fixed["w"]["index"], want)
    b = stacked.trainable["w"]["b"]
    assert_close(b[0], jnp.concatenate([short.trainable["w"]["b"], jnp.zeros(2)]))
    assert lrk.count(stacked) == (2 + 4 + 2 * 2, 0)
    # Out of range for any array: dropped in a scatter, so zeros are added nowhere.
    scattered = jnp.zeros(8).at[stacked.fixed["w"]["index"][0]].add(1.0, mode="drop")
    assert scattered.sum() == 2
    assert_close(lrk.unstack(stacked), [short, long])


def test_packed_members_of_a_chain_are_padded_each_to_its_own_length():
    def pair(n, m):
        one, two = packed(n, range(n)), packed(m, range(m))
        return lrk.State((one.trainable, two.trainable), (one.fixed, two.fixed))

    stacked = lrk.stack([pair(1, 4), pair(3, 2)])
    lengths = [part["w"]["index"].shape for part in stacked.fixed]
    assert lengths == [(2, 3), (2, 4)]
    assert_close(lrk.unstack(stacked), [pair(1, 4), pair(3, 2)])


def test_stack_and_unstack_run_under_jit():
    one, two = states(2)
    assert_close(
        jax.jit(lambda s, t: lrk.stack([s, t]))(one, two), lrk.stack([one, two])
    )
    back = jax.jit(lrk.unstack)(lrk.stack([one, two]))
    assert_close(back, [one, two])


def test_stack_refuses_nothing():
    with pytest.raises(ValueError, match="stack: expected at least one state"):
        lrk.stack([])


def test_stack_refuses_states_of_different_transforms():
    other = lrk.lora(2).init(jax.random.key(0), PARAMS)
    with pytest.raises(ValueError, match="stack: the states differ in structure"):
        lrk.stack([*states(1), other])


def test_stack_names_all_leaves_whose_shapes_differ():
    one, two = (lrk.lora(r).init(jax.random.key(0), PARAMS) for r in (1, 2))
    message = r"trainable/w/a': \[\(6, 1\), \(6, 2\)\]; .*w/b': \[\(1, 4\), \(2, 4\)\]"
    with pytest.raises(ValueError, match=message):
        lrk.stack([one, two])


def test_unstack_refuses_a_state_without_a_task_axis():
    with pytest.raises(ValueError, match="unstack: expected one leading axis"):
        lrk.unstack(states(1)[0])
    with pytest.raises(ValueError, match="unstack: expected one leading axis"):
        lrk.unstack(lrk.State({"w": {"d": jnp.ones(())}}, {}))


def test_in_axes_maps_the_adapters_and_shares_the_base():
    adapted = jax.vmap(TX.apply, in_axes=(None, 0))(PARAMS, lrk.stack(states()))
    stacked = {
        "w": adapted["w"].replace(w=PARAMS["w"]),
        "bias": adapted["bias"].replace(w=PARAMS["bias"]),
        "other": jnp.ones(2),
    }
    axes = lrk.in_axes(stacked)
    op = axes["w"]
    assert (op.w, op.a, op.b, op.scale) == (None, 0, 0, 0)
    assert (axes["bias"].w, axes["bias"].d, axes["other"]) == (None, 0, None)
    out = jax.vmap(lrk.lift(model), in_axes=(axes, None))(stacked, X)
    plain = [lrk.lift(model)(TX.apply(PARAMS, state), X) for state in states()]
    assert_close(out, jnp.stack(plain))


def test_in_axes_shares_the_base_under_nested_operators():
    inner = lrk.LowRank(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((2, 3)))
    axes = lrk.in_axes(lrk.Delta(inner, jnp.ones((4, 3))))
    assert (axes.d, axes.w.a, axes.w.w) == (0, 0, None)


@pytest.mark.parametrize("method", ["auto", "vmap", "map"])
def test_map_tasks_is_a_loop(method):
    own = [
        state._replace(trainable=jax.tree.map(lambda v, i=i: v + i, state.trainable))
        for i, state in enumerate(states())
    ]

    def run(state, x, offset):
        return lrk.lift(model)(TX.apply(PARAMS, state), x) + offset

    mapped = lrk.map_tasks(run, method=method, in_axes=(0, None, 0))
    offsets = jnp.arange(3.0)
    want = [run(state, X, offsets[i]) for i, state in enumerate(own)]
    assert_close(mapped(lrk.stack(own), X, offsets), jnp.stack(want))


def primitives(method):
    f = lrk.map_tasks(jnp.sin, method=method)
    return {str(eqn.primitive) for eqn in jax.make_jaxpr(f)(jnp.ones((3, 2))).eqns}


def test_map_is_a_loop_and_vmap_a_batch_and_auto_looks_at_the_backend(monkeypatch):
    assert "scan" in primitives("map")
    assert "scan" not in primitives("vmap")
    assert "scan" in primitives("auto")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" not in primitives("auto")


def test_one_entry_of_in_axes_serves_all_arguments():
    added = lrk.map_tasks(jnp.add)(jnp.ones((3, 2)), jnp.ones((3, 2)))
    assert_close(added, 2 * jnp.ones((3, 2)))


def test_map_tasks_refuses_unknown_methods():
    with pytest.raises(ValueError, match="map_tasks: unknown method 'loop'. Use one"):
        lrk.map_tasks(jnp.sin, method="loop")


def test_map_tasks_refuses_axes_other_than_the_first():
    with pytest.raises(ValueError, match=r"must hold 0 or None.*got \(0, 1\)"):
        lrk.map_tasks(jnp.add, in_axes=(0, 1))


def test_map_tasks_refuses_axes_that_do_not_fit_the_arguments():
    with pytest.raises(ValueError, match="in_axes has 2 entries for 1 arguments"):
        lrk.map_tasks(jnp.sin, in_axes=(0, None))(X)
    with pytest.raises(ValueError, match="no argument has a task axis"):
        lrk.map_tasks(jnp.sin, in_axes=(None,))(X)
