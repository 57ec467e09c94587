"""`Gathered` and `training.gather`: the weight itself, whatever is done with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from lowrank import training
from lowrank.operators import Gathered
from tests.network import numbers
from tests.tolerances import assert_close

MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
PARAMS = {
    "w": numbers(1, 4, 6),
    "stack": numbers(2, 2, 4, 4),
    "conv": numbers(3, 2, 4, 2),
}
SPLIT = training.shard(PARAMS, MESH, {"w": P("data"), "stack|conv": P(None, "data")})
X = jnp.asarray(numbers(4, 3, 4))


def uses(params, x):
    w, stack = params["w"], params["stack"]
    h, _ = jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, stack)
    image = jax.lax.conv_general_dilated(
        x[None], params["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return {
        "product": h @ w,
        "tied": (h @ w) @ w.T,
        "scan": h,
        "conv": image,
        "rows": w[jnp.asarray([2, 0])],
        "reshaped": jnp.einsum("bi,iac->bac", x, w.reshape(4, 2, 3)),
        "half": x[:, :2] @ w[:2],
        "backwards": x @ w[::-1],
        "layer": x @ jax.lax.dynamic_index_in_dim(stack, x.shape[0] % 2, 0, False),
        "cast": (x.astype(jnp.bfloat16) @ (2.0 * w).astype(jnp.bfloat16)),
        "sum": x @ (w + jnp.ones((4, 6))),
    }


def test_every_use_gives_what_the_weight_gives():
    tx = training.gather(SPLIT, "data")
    adapted = tx.apply(SPLIT, tx.init(jax.random.key(0), SPLIT))
    assert all(isinstance(leaf, Gathered) for leaf in adapted.values())
    assert_close(jax.jit(lrk.lift(uses))(adapted, X), jax.jit(uses)(PARAMS, X))
    assert lrk.materialize(adapted)["w"].sharding.is_fully_replicated
    assert_close(lrk.materialize(adapted), PARAMS)


def test_adapters_stand_on_it_and_it_counts_as_frozen():
    tx = lrk.chain(
        training.gather(SPLIT, "data", select=lrk.matching("^w$")), lrk.lora(2)
    )
    state = tx.init(jax.random.key(0), SPLIT)
    adapted = tx.apply(SPLIT, state)
    op = adapted["w"]
    assert isinstance(op.w, Gathered)
    assert not op.w.trained
    assert adapted["stack"] is SPLIT["stack"]
    found = training.state_shardings(tx, SPLIT, state).trainable[1]["w"]
    assert [tuple(found[name].spec) for name in "ab"] == [("data", None), (None, None)]

    def loss(trainable, plan):
        own = tx.apply(SPLIT, state._replace(trainable=trainable))
        return jnp.sin(lrk.lift(lambda p, x: x @ p["w"], plan=plan)(own, X)).sum()

    grads = [
        jax.grad(loss)(state.trainable, plan) for plan in (None, {"": "premerged"})
    ]
    assert_close(*grads)


def test_axes_keep_the_sharding_that_they_multiply_with():
    where = NamedSharding(MESH, P(None, "data"))
    op = Gathered(SPLIT["w"], where)
    assert op.transpose((1, 0)).sharding.spec == P("data", None)
    stacked = Gathered(SPLIT["stack"], NamedSharding(MESH, P(None, None, "data")))
    parts, rebuild = stacked.unstack()
    assert rebuild(parts[0]).sharding.spec == P(None, "data")
    assert isinstance(op.reshape((4, 3, 2)), jax.Array)  # its sharding has no such axis
    whole = op.replace(sharding=NamedSharding(MESH, P()))
    assert whole.reshape((2, 2, 6)).shape == (2, 2, 6)
    assert op.partition(P("data")).w == P("data")
    np.testing.assert_array_equal(op.constrain(where).dense(), PARAMS["w"])
    assert op.mismatch() is None


def test_refuses_what_is_not_split_and_other_trees():
    with pytest.raises(ValueError, match="no leaf is split over 'model'"):
        training.gather(SPLIT, "model")
    tx = training.gather(SPLIT, "data")
    with pytest.raises(ValueError, match="the tree lacks 'conv', 'stack'"):
        tx.apply({"w": SPLIT["w"]}, lrk.State({}, {}))
