"""Checks on eight devices, run in one process of their own by `test_devices.py`."""

import functools
import json
import sys
import tempfile
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from benchmarks.tables._scaling_measure import collectives
from lowrank import training
from tests.network import numbers
from tests.tolerances import assert_close

KEY = jax.random.key(0)
QUERY, DOWN = "q_proj/kernel", "down_proj/kernel"
SELECT = lrk.matching(r"(q_proj|down_proj)/kernel$")
TX = lrk.lora(2, alpha=4, select=SELECT, init_b=jax.nn.initializers.normal(0.1))
IDS = np.arange(16 * 8).reshape(16, 8) % 24


def block():
    """One attention block with the names of Llama's."""
    shapes = {"q_proj": (16, 16), "v_proj": (16, 16), "o_proj": (16, 16)}
    shapes |= {"up_proj": (16, 32), "down_proj": (32, 16)}
    params = {
        name: {"kernel": numbers(i, *shape, scale=0.3)}
        for i, (name, shape) in enumerate(shapes.items())
    }
    params["embed_tokens"] = {"embedding": numbers(9, 24, 16)}
    return params | {"norm": {"scale": numbers(8, 16)}}


def model(params, ids):
    weight = {name: leaf.get("kernel") for name, leaf in params.items()}
    h = params["embed_tokens"]["embedding"][ids] * params["norm"]["scale"][None, None]
    q, v = ((h @ weight[n]).reshape(*ids.shape, 4, 4) for n in ("q_proj", "v_proj"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, q))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(h.shape)
    h = h + mixed @ weight["o_proj"]
    return h + jnp.tanh(h @ weight["up_proj"]) @ weight["down_proj"]


PARAMS = block()


def mesh(**sizes):
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def loss(trainable, fixed, params, ids):
    adapted = TX.apply(params, lrk.State(trainable, fixed))
    return jnp.square(lrk.lift(model)(adapted, ids)).mean()


GRADS = jax.jit(jax.grad(loss))


@functools.cache
def alone():
    """The state and its gradients on one device."""
    state = jax.jit(TX.init)(KEY, PARAMS)
    return state, GRADS(*state, PARAMS, IDS)


def held(leaf):
    """Share of an array that the first device holds."""
    return leaf.addressable_shards[0].data.size / leaf.size


def specs(leaf):
    return {name: tuple(array.sharding.spec) for name, array in leaf.items()}


def spread(where, *rules):
    """Base and state over a mesh; they are those of one device, bit for bit."""
    placed = training.shard(PARAMS, where, *rules)
    shapes = jax.eval_shape(TX.init, KEY, placed)
    follow = training.state_shardings(TX, placed, shapes)
    state = jax.jit(TX.init, out_shardings=follow)(KEY, placed)
    jax.tree.map(np.testing.assert_array_equal, (placed, state), (PARAMS, alone()[0]))
    return placed, state


def check_fsdp_holds_an_eighth_and_gradients_agree():
    where = mesh(data=8)
    placed, state = spread(where, training.fsdp("data"))
    assert {held(x) for x in jax.tree.leaves(placed)} == {1 / 8, 1}
    assert held(placed["q_proj"]["kernel"]) == 1 / 8
    assert specs(state.trainable[QUERY]) == {"a": ("data", None), "b": (None, None)}
    ids = jax.device_put(IDS, NamedSharding(where, P("data")))
    assert_close(GRADS(*state, placed, ids), alone()[1])


def check_gathered_weights_leave_activations_where_they_are():
    where = mesh(data=8)
    placed = training.shard(PARAMS, where, training.fsdp("data"))
    tx = lrk.chain(training.gather(placed, "data"), TX)
    state = jax.device_put(alone()[0], NamedSharding(where, P()))
    ids = jax.device_put(IDS, NamedSharding(where, P("data")))

    def loss(trainable, fixed, params, ids):
        adapted = tx.apply(params, lrk.State(({}, trainable), ({}, fixed)))
        return jnp.square(lrk.lift(model)(adapted, ids)).mean()

    program = jax.jit(jax.grad(loss)).lower(*state, placed, ids).compile()
    assert_close(program(*state, placed, ids), alone()[1])
    found = collectives(program.as_text())
    sizes = {"all-reduce": 4 * lrk.count(state)[0], "other": 0}  # gradients alone
    assert {name: found[name] for name in sizes} == sizes, found


def check_tensor_parallel_with_fsdp_splits_both_ways():
    rules = training.tensor_parallel("model"), training.fsdp("data")
    where = mesh(data=2, model=4)
    placed, state = spread(where, *rules)
    assert tuple(placed["q_proj"]["kernel"].sharding.spec) == ("data", "model")
    row = tuple(placed["down_proj"]["kernel"].sharding.spec)
    assert row == (("model", "data"), None)
    assert specs(state.trainable[QUERY]) == {"a": ("data", None), "b": (None, "model")}
    ids = jax.device_put(IDS, NamedSharding(where, P("data")))
    assert_close(GRADS(*state, placed, ids), alone()[1])


def check_the_optimizer_follows_and_steps_stay_where_they_are():
    placed, state = spread(mesh(data=8), training.fsdp("data"))
    adam = optax.adam(0.1)
    opt = adam.init(state.trainable)
    assert specs(opt[0].mu[QUERY]) == specs(state.trainable[QUERY])
    step = jax.jit(lambda g, opt: adam.update(g, opt))
    moves, opt = step(state.trainable, opt)
    assert opt[0].nu[QUERY]["a"].sharding.spec == P("data", None)
    assert held(moves[QUERY]["a"]) == 1 / 8
    assert placed["norm"]["scale"].sharding.spec == P(None)


def stacked_gradients(tx, where, axis):
    """Gradients of eight states, split over a mesh axis, and one by one."""
    states = [
        jax.tree.map(lambda x, i=i: x * (1 + i / 8), alone()[0]) for i in range(8)
    ]
    stack = lrk.stack(states)
    placed = training.shard(PARAMS, where, {"": P()})
    follow = training.state_shardings(tx, placed, stack, tasks=axis)
    return placed, jax.device_put(stack, follow), states


def check_adapters_over_the_mesh_one_for_each_device():
    where = mesh(task=8)
    placed, stack, states = stacked_gradients(TX, where, "task")
    assert {held(x) for x in jax.tree.leaves(stack)} == {1 / 8}
    run = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, 0, None, None)))
    got = run(*stack, placed, IDS)
    for task in (0, 5):
        want = GRADS(*states[task], PARAMS, IDS)
        assert_close(jax.tree.map(lambda x, i=task: x[i], got), want)
    assert got[QUERY]["a"].sharding.spec == P("task", None, None)
    text = run.lower(*stack, placed, IDS).compile().as_text()
    for name in ("all-gather(", "all-reduce(", "all-to-all("):
        assert name not in text, f"{name} in a step of independent tasks"


def check_fit_of_adapters_over_the_mesh_and_fewer_as_they_end():
    where, states = mesh(task=8), [alone()[0]] * 8
    placed = training.shard(PARAMS, where, {"": P()})
    stack = lrk.stack(states)
    split = jax.device_put(
        stack, training.state_shardings(TX, placed, stack, tasks="task")
    )
    data = [np.stack([IDS[i : i + 2]] * 8) for i in range(3)]

    def fit(params, states):
        def loss(params, ids, key):
            del key
            return jnp.square(model(params, ids)).mean()

        return training.fit(
            loss, TX, params, states, data, optimizer=optax.adam, every=1,
            hyper={"learning_rate": np.linspace(0.01, 0.1, 8)}, method="vmap",
            steps=[3, 1, 1, 1, 1, 1, 1, 2],
        )  # fmt: skip

    got, want = fit(placed, split), fit(PARAMS, stack)
    assert got.steps.tolist() == want.steps.tolist() == [3, 1, 1, 1, 1, 1, 1, 2]
    assert_close(got.metrics["loss"], want.metrics["loss"])
    assert_close(got.states, want.states)


def check_chips_over_the_mesh():
    where = mesh(chip=8)
    device = lrk.rram.Device(p_lrs=0.1, p_hrs=0.1, levels=16)
    tx = lrk.rram.crossbar(device, select=lrk.matching("kernel$"))
    base = {"kernel": numbers(1, 8, 8)}
    stack = jax.jit(jax.vmap(tx.init, in_axes=(0, None)))(
        jax.random.split(KEY, 8), base
    )
    split = jax.device_put(stack, NamedSharding(where, P("chip")))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(state, x):
        return lrk.lift(lambda p, x: x @ p["kernel"])(tx.apply(base, state), x)

    x = numbers(2, 3, 8)
    got = run(split, x)
    assert got.sharding.spec[0] == "chip"
    assert_close(got, run(stack, x))


def check_a_checkpoint_goes_to_another_mesh():
    placed, state = spread(mesh(data=8), training.fsdp("data"))
    rules = training.tensor_parallel("model"), training.fsdp("data")
    other, moved = spread(mesh(data=2, model=4), *rules)
    zeros = jax.tree.map(jnp.zeros_like, moved)
    shapes = jax.eval_shape(TX.init, KEY, placed)
    with tempfile.TemporaryDirectory() as folder:
        with training.Checkpoint(folder, placed) as checkpoint:
            checkpoint.save(3, {"state": state})
        with training.Checkpoint(folder, other) as checkpoint:  # one hash for both
            step, tree = checkpoint.restore({"state": zeros})
            _, plain = checkpoint.restore({"state": shapes})
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, tree, {"state": state})
    jax.tree.map(np.testing.assert_array_equal, plain, {"state": state})
    assert specs(tree["state"].trainable[QUERY]) == specs(moved.trainable[QUERY])
    assert not plain["state"].trainable[QUERY]["a"].committed
    assert_close(GRADS(*tree["state"], other, IDS), alone()[1])  # and goes on there


def run(name):
    try:
        globals()[name]()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    checks = [name for name in list(globals()) if name.startswith("check_")]
    json.dump({name: run(name) for name in checks}, sys.stdout)
