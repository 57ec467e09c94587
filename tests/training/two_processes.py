"""One of two processes that train together, run by `test_devices.py`.

Each has two devices. The test's own process, which has two, must agree with them.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from lowrank import training
from tests.network import numbers

BASE = {"up": {"kernel": numbers(1, 8, 8)}, "down": {"kernel": numbers(2, 8, 4)}}
X = numbers(3, 16, 8)


def model(params, x):
    return jax.numpy.tanh(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


def fitted(folder, mesh):
    """Four adapters split over the devices, of which one goes on longer."""
    params = training.shard(BASE, mesh, {"": P()})
    tx = lrk.lora(2, init_b=jax.nn.initializers.normal(1.0))

    def error(params, batch):
        return {"error": jax.numpy.square(model(params, batch)).mean()}

    def spread(tree):
        def put(x):
            where = NamedSharding(mesh, P("data"))
            return jax.make_array_from_callback(x.shape, where, x.__getitem__)

        return jax.tree.map(lambda x: put(np.asarray(x)), tree)

    states = spread(lrk.stack([tx.init(jax.random.key(i), BASE) for i in range(4)]))
    data = [spread(numbers(10 + i, 4, 5, 8)) for i in range(3)]
    lines = Path(folder, "metrics.jsonl")
    with training.Checkpoint(Path(folder, "fit"), params) as checkpoint:
        given = {"optimizer": optax.adam, "hyper": {"learning_rate": 0.05}}
        given |= {"steps": [3, 1, 1, 1], "every": 1, "method": "vmap"}
        given |= {"evaluate": training.evaluator(error, tx, params, data[:1])}
        given |= {"checkpoint": checkpoint, "key": jax.random.key(0)}

        def run(callbacks=()):
            def loss(params, batch, key):
                del key
                return error(params, batch)["error"]

            return training.fit(
                loss, tx, params, states, data, callbacks=callbacks, **given
            )

        first = run([training.JsonLines(lines)])
        again = run()
    return {
        "loss": first.metrics["loss"].tolist(),
        "error": first.scores["error"].tolist(),
        "steps": [first.steps.tolist(), again.steps.tolist()],
        "again": list(again.metrics),
    }


def main(folder):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    params = training.shard(BASE, mesh, training.fsdp("data"))
    tx, adam = lrk.lora(2), optax.adam(0.05)
    shapes = jax.eval_shape(tx.init, jax.random.key(0), params)
    follow = training.state_shardings(tx, params, shapes)
    state = jax.jit(tx.init, out_shardings=follow)(jax.random.key(0), params)
    x = training.shard({"x": X}, mesh, {"x": P("data")})["x"]

    @jax.jit
    def step(kept, params, x):
        def loss(trainable):
            adapted = tx.apply(params, kept["state"]._replace(trainable=trainable))
            return jax.numpy.square(lrk.lift(model)(adapted, x)).mean()

        trainable = kept["state"].trainable
        value, grads = jax.value_and_grad(loss)(trainable)
        moves, opt = adam.update(grads, kept["opt"])
        state = kept["state"]._replace(trainable=optax.apply_updates(trainable, moves))
        return kept | {"state": state, "opt": opt}, value

    kept = {"state": state, "opt": adam.init(state.trainable)}
    kept |= {"key": jax.random.key(7), "position": 5}
    like = kept
    with training.Checkpoint(folder, params, keep=1) as checkpoint:
        nothing = checkpoint.restore(like)
        for number in range(3):
            kept, loss = step(kept, params, x)
            kept = kept | {"position": 16 * number}
            checkpoint.save(number + 1, kept)
    with training.Checkpoint(folder, params) as checkpoint:
        last, back = checkpoint.restore(like)
        steps = checkpoint.steps
    resumed, _ = step(back, params, x)
    further, loss = step(kept, params, x)
    pairs = {"back": (back, kept), "resumed": (resumed, further)}
    differ = [
        f"{name}{jax.tree_util.keystr(path)}"
        for name, pair in pairs.items()
        for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(_same, *pair)
        )
        if not same
    ]
    whole = multihost_utils.process_allgather(further["state"].trainable, tiled=True)
    return {
        "nothing": nothing is None,
        "last": [last, list(steps), back["position"]],
        "differ": differ,
        "hash": checkpoint.base,
        "alone": training.fingerprint(BASE),
        "loss": float(loss),
        "devices": [jax.local_device_count(), jax.device_count()],
        "held": params["up"]["kernel"].addressable_shards[0].data.shape,
        "a": np.asarray(whole["up/kernel"]["a"]).tolist(),
        "fit": fitted(folder, mesh),
    }


def _same(one, two):
    if not isinstance(one, jax.Array):
        return one == two
    if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, two = jax.random.key_data(one), jax.random.key_data(two)
    if two.sharding.is_fully_replicated:
        return np.array_equal(one.addressable_data(0), two.addressable_data(0))
    parts = zip(one.addressable_shards, two.addressable_shards, strict=True)
    return all(np.array_equal(x.data, y.data) for x, y in parts)


if __name__ == "__main__":
    folder, address, index = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(index))
    Path(folder, f"{index}.json").write_text(json.dumps(main(f"{folder}/saved")))
