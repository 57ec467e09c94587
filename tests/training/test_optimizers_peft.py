"""LoRA+ and LoRA-FA take the steps that PEFT's optimisers take."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank import training
from tests.tolerances import assert_close

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "optimizers.npz")
RATE, RATIO, DECAY = (float(GOLDEN[name]) for name in ("rate", "ratio", "decay"))
ADAM = {"learning_rate": RATE, "eps": 1e-6}  # PEFT's for LoRA-FA


def plus():
    inner = optax.adamw(RATE, weight_decay=DECAY)
    return optax.chain(inner, training.lora_plus(RATIO))


def frozen():
    return training.lora_fa(optax.adamw(**ADAM, weight_decay=0.0))


def frozen_and_decayed():
    """PEFT decays what the step has made of `B`; AdamW what it was before."""
    decay = optax.add_decayed_weights(-RATE * DECAY)
    inner = optax.chain(optax.adam(**ADAM), optax.scale(1 - RATE * DECAY), decay)
    return training.lora_fa(inner)


RECIPES = {
    "lora_plus": plus,
    "lora_fa": frozen,
    "lora_fa_decayed": frozen_and_decayed,
}


@pytest.mark.parametrize("name", RECIPES)
def test_steps_agree_with_peft(name):
    assert str(GOLDEN["provenance"]).startswith("peft 0.21.2")
    own = {n: jnp.asarray(GOLDEN[f"{name}/{n}"], jnp.float32) for n in "wxtab"}
    want = {n: GOLDEN[f"{name}/after_{n}"].swapaxes(1, 2).astype("f4") for n in "ab"}
    tx = lrk.lora(2, alpha=float(GOLDEN["alpha"]))
    params, optimizer = {"w": own["w"].T}, RECIPES[name]()
    fixed = tx.init(jax.random.key(0), params).fixed

    def loss(trainable):
        adapted = tx.apply(params, lrk.State(trainable, fixed))
        y = lrk.lift(jnp.matmul)(own["x"], adapted["w"])
        return 0.5 * jnp.sum((y - own["t"]) ** 2)

    def step(carry, _):
        trainable, memory = carry
        grads = jax.grad(loss)(trainable)
        extended = optax.with_extra_args_support(optimizer)
        updates, memory = extended.update(grads, memory, trainable, fixed=fixed)
        trainable = optax.apply_updates(trainable, updates)
        return (trainable, memory), trainable["w"]

    @jax.jit
    def run(trainable):
        carry = trainable, optimizer.init(trainable)
        return jax.lax.scan(step, carry, length=len(want["a"]))[1]

    found = run({"w": {"a": own["a"].T, "b": own["b"].T}})
    assert_close(found, want)
