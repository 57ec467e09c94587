"""A training run that is killed again and again, run by `test_killed.py`.

One process stays and forks: a child trains, and is killed with SIGKILL before its
first save, in the midst of a write, or some steps later, at a moment drawn from a seed.
When a child reaches the end, another runs uninterrupted.
"""

import functools
import json
import os
import pathlib
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


LINES = [0]  # until a child kills itself; 0: never


def tell(report, text):
    """A line on the pipe, which may be the last."""
    os.write(report, f"{text}\n".encode())
    LINES[0] -= 1
    if LINES[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def by_hand(folder, report):
    """Train to the end over four devices, in a loop of its own."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    params = training.shard(BASE, mesh, training.fsdp("data"))
    shapes = jax.eval_shape(TX.init, jax.random.key(0), params)
    follow = training.state_shardings(TX, params, shapes)
    state = jax.jit(TX.init, out_shardings=follow)(jax.random.key(0), params)
    kept = {"state": state, "opt": ADAM.init(state.trainable)}
    kept |= {"key": jax.random.key(7), "position": np.int32(0)}
    with training.Checkpoint(folder, params, keep=2) as checkpoint:
        start, kept = checkpoint.restore(kept) or (0, kept)
        tell(report, f"start {start}")
        for number in range(start + 1, STEPS + 1):
            at = int(kept["position"])
            x = jax.device_put(EXAMPLES[at : at + 8], NamedSharding(mesh, P("data")))
            kept = step(kept, params, x) | {"position": np.int32((at + 8) % 64)}
            if number % INTERVAL == 0:
                checkpoint.save(number, kept)
            tell(report, f"step {number}")
    return kept["state"]


def by_fit(folder, report):
    """The same length by `fit`, for two adapters, one of which is done early."""

    def error(params, x, key):
        return jnp.square(model(params, x) - jax.random.normal(key, (8, 4))).mean()

    def batches(skip):
        tell(report, f"start {skip}")
        for number in range(skip, STEPS):
            at = 8 * number % 64
            yield EXAMPLES[at : at + 8]

    states = [TX.init(jax.random.key(i), BASE) for i in range(2)]
    with training.Checkpoint(folder, BASE, keep=2) as checkpoint:
        fitted = training.fit(
            error, TX, BASE, states, batches, optimizer=ADAM, steps=[STEPS, 55],
            batch_axis=None, key=jax.random.key(7), every=1, save_every=INTERVAL,
            checkpoint=checkpoint, progress=False,
            callbacks=[lambda done: tell(report, f"step {done.step}")],
        )  # fmt: skip
    return fitted.states


WAYS = {"hand": by_hand, "fit": by_fit}


def train(way, folder, report, last):
    """Train to the end, saying on a pipe which steps are done; keep the state."""
    leaves = jax.tree_util.tree_flatten_with_path(WAYS[way](folder, report))[0]
    np.savez(last, **{jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves})


def fork(way, folder, last, lines=0):
    """A child that trains; its process id and the pipe that it reports on."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, os.fdopen(read)
    os.close(read)
    LINES[0] = lines
    try:
        train(way, folder, write, last)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def unfinished(folder):
    """Checkpoints that have no name of their own yet."""
    path = pathlib.Path(folder)
    names = [own.name for own in path.iterdir()] if path.exists() else []
    return sorted(name for name in names if not name.isdigit())


def kill(child, moment, folder, pipe, draw):
    """Kills a child past its second save, so that the first is whole."""
    lines = []
    for _ in range(draw.randrange(2 * INTERVAL + 2, 3 * INTERVAL)):
        lines.append(pipe.readline().split())
    if moment == "later":
        time.sleep(draw.uniform(0, 0.01))
    end = time.monotonic() + 60
    while moment == "write" and not unfinished(folder) and time.monotonic() < end:
        time.sleep(0.0005)  # a write takes milliseconds
    os.kill(child, signal.SIGKILL)
    return lines


def main(folder, way, seed, *moments):
    warnings.simplefilter("ignore")  # JAX warns of forks; nothing runs before ours
    jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    draw, left, log = random.Random(seed), list(moments), []
    place = f"{folder}/killed"
    while True:
        moment = left.pop(0) if left else "never"
        few = draw.randrange(2, INTERVAL + 1) if moment == "before" else 0
        child, pipe = fork(way, place, f"{folder}/killed.npz", few)
        lines = []
        if moment in ("write", "later"):
            lines = kill(child, moment, place, pipe, draw)
        lines += [line.split() for line in pipe]
        _, status = os.waitpid(child, 0)
        found = {line[0]: int(line[1]) for line in lines if line}
        entry = {"moment": moment, "start": found.get("start")}
        entry |= {"done": found.get("step", entry["start"])}
        entry |= {"killed": os.WIFSIGNALED(status), "unfinished": unfinished(place)}
        log.append(entry)
        if not entry["killed"]:
            break
        if moment == "write" and not entry["unfinished"]:
            left.insert(0, moment)  # the write was over before the signal came
    whole, pipe = fork(way, f"{folder}/whole", f"{folder}/whole.npz")
    pipe.read()
    _, code = os.waitpid(whole, 0)
    json.dump({"log": log, "codes": [status, code]}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
