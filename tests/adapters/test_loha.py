"""`loha`: the equation, PEFT's numbers, its two forms, messages."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.reference import loha as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
NAMES = {"a1": "hada_w1_b", "b1": "hada_w1_a", "a2": "hada_w2_b", "b2": "hada_w2_a"}


def test_agrees_with_peft_and_with_the_equation():
    own = layer("loha")
    parts = [own[f"hada_{n}"] for n in ("w1_a", "w1_b", "w2_a", "w2_b")]
    want = reference.weight(own["w"], *parts, 1.5)
    assert_close(own["merged"], want.astype("f4"))
    tx = lrk.loha(2, alpha=3)
    state = tx.init(KEY, {"w": jnp.asarray(own["w"].T)})
    values = {n: jnp.asarray(own[torch].T) for n, torch in NAMES.items()}
    grads = {n: jnp.asarray(own["grad_" + torch].T) for n, torch in NAMES.items()}
    assert_agrees(tx, state._replace(trainable={"w": values}), own, grads)


def test_it_is_low_rank_until_the_factors_outgrow_the_weight():
    params = {"small": jnp.ones((6, 5)), "large": jnp.ones((40, 3, 10))}
    axes = {"large": lrk.Axes((), (0,), (1, 2))}
    tx = lrk.loha(2, select=lrk.matching("."), axes=axes)
    adapted = jax.eval_shape(lambda p: tx.apply(p, tx.init(KEY, p)), params)
    assert isinstance(adapted["small"], lrk.Delta)
    assert adapted["large"].rank == 4
    assert adapted["large"].b.shape == (4, 3, 10)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="loha: rank must be at least 1, got 0"):
        lrk.loha(0)
    message = r"loha: cannot adapt 'w' of shape \(6, 2\): rank 3 exceeds 2"
    with pytest.raises(ValueError, match=message):
        lrk.loha(3).init(KEY, {"w": jnp.ones((6, 2))})
    params = {"w": jnp.ones((6, 5))}
    state = lrk.lora(2).init(KEY, params)
    with pytest.raises(ValueError, match="loha: the state does not fit: 'w' lacks"):
        lrk.loha(2).apply(params, state)
