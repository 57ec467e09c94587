"""`randlora`: the sum, PEFT's numbers, stored and drawn bases, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.reference import randlora as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)


def in_our_order(base):
    """PEFT's `B: [large, bases, r]`, which it flattens otherwise than `A`."""
    large, bases, rank = base.shape
    return base.reshape(large, rank, bases).transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["randlora", "randlora_wide"])
def test_agrees_with_peft_and_with_the_sum(name):
    own = layer(name)
    base = {"base_a": own["base_a"][:, 0], "base_b": in_our_order(own["base_b"])}
    names = {"lambda": "randlora_lambda", "gamma": "randlora_gamma"}
    values = {n: own[torch] for n, torch in names.items()}
    change = reference.change(**base, lam=values["lambda"], gamma=values["gamma"])
    change = change if own["w"].shape[0] > own["w"].shape[1] else change.T
    assert_close(own["merged"], (own["w"] + 1.5 * change).astype("f4"))
    tx = lrk.randlora(2, alpha=3)
    state = tx.init(KEY, {"w": jnp.asarray(own["w"].T)})
    fixed = {"w": {**state.fixed["w"], **jax.tree.map(jnp.asarray, base)}}
    trainable = {"w": jax.tree.map(jnp.asarray, values)}
    assert jax.tree.map(jnp.shape, fixed) == jax.tree.map(jnp.shape, state.fixed)
    grads = {n: jnp.asarray(own["grad_" + torch]) for n, torch in names.items()}
    assert_agrees(tx, lrk.State(trainable, fixed), own, grads)


def test_bases_drawn_from_the_seed_are_the_stored_ones():
    params = {"w": jnp.asarray(numbers(1, 5, 2, 3))}
    own = {"select": lrk.matching("w"), "axes": {"w": lrk.Axes((), (0,), (1, 2))}}
    moved = {"lambda": numbers(2, 2, 3), "gamma": numbers(3, 3, 5)}

    @jax.jit
    def formed(*fixed):
        trees = [
            tx.apply(params, lrk.State({"w": jax.tree.map(jnp.asarray, moved)}, own))
            for tx, own in zip(makers, fixed, strict=True)
        ]
        return [lrk.materialize(tree)["w"] for tree in trees]

    makers = [lrk.randlora(2, store_bases=flag, **own) for flag in (True, False)]
    one, two = formed(*(jax.jit(tx.init)(KEY, params).fixed for tx in makers))
    assert_close(one, two)
    change = np.asarray(one) - np.asarray(params["w"])
    assert np.linalg.matrix_rank(change.reshape(5, 6), tol=1e-4) == 5


def test_few_bases_stay_low_rank():
    params, tx = {"w": jnp.ones((12, 10))}, lrk.randlora(2, bases=2)
    adapted = jax.eval_shape(lambda p: tx.apply(p, tx.init(KEY, p)), params)
    assert adapted["w"].rank == 4


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="randlora: bases must be at least 1, got 0"):
        lrk.randlora(2, bases=0)
    with pytest.raises(ValueError, match=r"randlora: .*rank 7 exceeds 5"):
        lrk.randlora(7).init(KEY, {"w": jnp.ones((6, 5))})
