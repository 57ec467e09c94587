"""A tree for adapters that share factors: two sizes, a stack, and trained states."""

import jax
import jax.numpy as jnp

import lowrank as lrk
from tests.network import numbers

KEY = jax.random.key(0)
GROUPS = r"^(?P<layer>\d)?/?(?P<type>q|up|deep)"
AXES = {"deep": lrk.Axes((0,), (1,), (2,))}


def params():
    """`q` (4 to 4) and `up` (4 to 6) of two layers, and a stack of two kernels."""
    return {
        "0": {"q": jnp.asarray(numbers(1, 4, 4)), "up": jnp.asarray(numbers(2, 4, 6))},
        "1": {"q": jnp.asarray(numbers(3, 4, 4)), "up": jnp.asarray(numbers(4, 4, 6))},
        "deep": jnp.asarray(numbers(5, 2, 4, 4)),
    }


def weights():
    """Every weight by path, or by path and stack index, with layer and type."""
    tree = params()
    own = [(f"{i}/{n}", None, str(i), n) for i in range(2) for n in ("q", "up")]
    stacked = [("deep", i, str(i), "deep") for i in range(2)]
    flat = {"deep": tree["deep"]}
    flat |= {f"{i}/{n}": w for i in range(2) for n, w in tree[str(i)].items()}
    return [(p, i, layer, kind, flat[p]) for p, i, layer, kind in own + stacked]


def shapes(tx):
    """A state without a number in it."""
    return jax.eval_shape(tx.init, KEY, params())


def moved(tx):
    """A state whose trained numbers are any; what is fixed is that of `init`."""
    leaves, treedef = jax.tree.flatten(shapes(tx).trainable)
    new = [jnp.asarray(numbers(9 + i, *x.shape)) for i, x in enumerate(leaves)]
    fixed = jax.jit(lambda: tx.init(KEY, params()).fixed)()
    return lrk.State(jax.tree.unflatten(treedef, new), fixed)


def formed(tx, state):
    """Every weight that the transform gives, by path."""
    run = jax.jit(lambda s: lrk.materialize(tx.apply(params(), s)))
    new = run(state)
    return {"deep": new["deep"]} | {
        f"{i}/{n}": w for i in range(2) for n, w in new[str(i)].items()
    }
