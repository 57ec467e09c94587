"""A training run that is killed again and again, run by `test_killed.py`.

One process stays and forks: a child trains, and is killed with SIGKILL at a moment
drawn from a seed. When a child reaches the end, another runs uninterrupted.
"""

import functools
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from lowrank import training
from tests.network import numbers

STEPS, INTERVAL = 100, 10


BASE = {"up": {"kernel": numbers(1, 8, 8)}, "down": {"kernel": numbers(2, 8, 4)}}
EXAMPLES = numbers(3, 64, 8)
TX, ADAM = lrk.lora(2), optax.adam(0.05)


def model(params, x):
    return jnp.tanh(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


def loss(trainable, fixed, params, x, key):
    adapted = TX.apply(params, lrk.State(trainable, fixed))
    noise = jax.random.normal(key, (8, 4))
    return jnp.square(lrk.lift(model)(adapted, x) - noise).mean()


@functools.partial(jax.jit, donate_argnums=0)
def step(kept, params, x):
    state, key = kept["state"], jax.random.fold_in(kept["key"], kept["position"])
    grads = jax.grad(loss)(*state, params, x, key)
    moves, opt = ADAM.update(grads, kept["opt"])
    new = state._replace(trainable=optax.apply_updates(state.trainable, moves))
    return kept | {"state": new, "opt": opt}


def train(folder, report, last):
    """Train to the end; say on a pipe which steps are done and saved."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params = training.shard(BASE, mesh, training.fsdp("data"))
    shapes = jax.eval_shape(TX.init, jax.random.key(0), params)
    follow = training.state_shardings(TX, params, shapes)
    state = jax.jit(TX.init, out_shardings=follow)(jax.random.key(0), params)
    kept = {"state": state, "opt": ADAM.init(state.trainable)}
    kept |= {"key": jax.random.key(7), "position": np.int32(0)}
    with training.Checkpoint(folder, params, keep=2) as checkpoint:
        start, kept = checkpoint.restore(kept) or (0, kept)
        os.write(report, b"start %d\n" % start)
        for number in range(start + 1, STEPS + 1):
            at = int(kept["position"])
            x = jax.device_put(EXAMPLES[at : at + 8], NamedSharding(mesh, P("data")))
            kept = step(kept, params, x) | {"position": np.int32((at + 8) % 64)}
            if number % INTERVAL == 0:
                checkpoint.save(number, kept)
            os.write(report, b"step %d\n" % number)
    leaves = jax.tree_util.tree_flatten_with_path(kept["state"])[0]
    np.savez(last, **{jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves})


def fork(folder, last):
    """A child that trains; its process id and the pipe that it reports on."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, os.fdopen(read)
    os.close(read)
    try:
        train(folder, write, last)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(folder, seed, kills):
    warnings.simplefilter("ignore")  # JAX warns of forks; nothing runs before ours
    jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    moments = random.Random(seed)
    log = []
    while True:
        child, pipe = fork(f"{folder}/killed", f"{folder}/killed.npz")
        lines = [pipe.readline().split()]
        if len(log) < kills:
            # Past the second save, so that the first is whole.
            for _ in range(moments.randrange(2 * INTERVAL + 1, 4 * INTERVAL)):
                lines.append(pipe.readline().split())
            time.sleep(moments.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
        lines += [line.split() for line in pipe]
        _, status = os.waitpid(child, 0)
        start = int(lines[0][1]) if lines[0] else None
        done = max((int(n[1]) for n in lines if n and n[0] == "step"), default=start)
        killed = os.WIFSIGNALED(status)
        log.append({"start": start, "done": done, "killed": killed})
        if not killed:
            break
    whole, pipe = fork(f"{folder}/whole", f"{folder}/whole.npz")
    pipe.read()
    _, code = os.waitpid(whole, 0)
    json.dump({"log": log, "codes": [status, code]}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
