"""MAM and UniPELT as chains on a tiny BERT: each trains, and all of its parts do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowrank as lrk
from lowrank.models import Bert, BertConfig, functional, mean_pool
from tests.network import filled, numbers

CONFIG = BertConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 0], [8, 2, 0, 0], [9, 10, 1, 0]])
TARGET = jnp.asarray(numbers(5, 4, 8))
FFN = lrk.matching(r"layer/\d+/output/dense/kernel$")
ATTENTION = lrk.matching(r"(key|value)/kernel$")


def own_bias(path):
    return path.replace("kernel", "bias")


def fixed(tx):
    return tx


def mam(gate=fixed):
    """A prefix for attention, a scaled parallel adapter for the feed-forward part."""
    parallel = lrk.parallel(4, scale=4.0, activation=jnp.tanh, select=FFN)
    return lrk.chain(lrk.prefix(2, select=ATTENTION), gate(parallel))


def unipelt(gate=lrk.gated, scaled=lrk.learn_scale):
    """LoRA, prefix and serial adapter, with a gate each."""
    queries = lrk.matching(r"(query|value)/kernel$")
    serial = lrk.bottleneck(2, activation=jnp.tanh, bias=own_bias, select=FFN)
    return lrk.chain(
        gate(lrk.lora(2, alpha=4, select=queries)),
        scaled(lrk.prefix(2, select=ATTENTION)),
        gate(serial),
    )


@pytest.fixture(scope="module")
def encoder():
    """The pooled encoder on weights that are plain numbers."""
    model = nnx.eval_shape(lambda: Bert(CONFIG, rngs=nnx.Rngs(0)))
    mask = jnp.asarray(IDS != 0)
    apply, shapes = functional(model, lambda m, ids: mean_pool(m(ids, mask), mask))
    leaves, treedef = jax.tree.flatten(shapes)
    new = [jnp.asarray(numbers(i, *x.shape, scale=0.7)) for i, x in enumerate(leaves)]
    return apply, jax.tree.unflatten(treedef, new)


MIXTURES = {
    "mam": mam(),
    "mam, gated": mam(lrk.gated),
    "mam, learned scales": lrk.learn_scale(mam()),
    "unipelt": unipelt(),
    "unipelt, fixed scales": unipelt(fixed, fixed),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_it_trains(name, encoder):
    apply, params = encoder
    tx = MIXTURES[name]
    start = filled(tx, params)

    def loss(trainable):
        tree = tx.apply(params, lrk.State(trainable, start.fixed))
        return jnp.mean((lrk.lift(apply)(tree, IDS) - TARGET) ** 2)

    @jax.jit
    def step(trainable):
        value, grads = jax.value_and_grad(loss)(trainable)
        return value, jax.tree.map(lambda x, g: x - 0.3 * g, trainable, grads)

    trainable, values = start.trainable, []
    for _ in range(200):
        value, trainable = step(trainable)
        values.append(float(value))
    assert np.isfinite(values).all()
    assert values[-1] < 0.6 * values[0]
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), start.trainable, trainable)
    assert all(jax.tree.leaves(moved))
