"""LoRA on each model: lifted as materialized, and the loss falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.models import ViT, functional, load, load_llama
from tests.models import golden

ATTENTION = r"(query|value|q_proj|v_proj|c_attn)/kernel$"


def inputs(name):
    """What the golden run was given, images with channels last."""
    stored = golden.arrays(f"models_{name}")
    if name == "vit":
        return (stored["in_images"].transpose(0, 2, 3, 1),)
    return stored["in_ids"], stored["in_mask"]


def adapt_and_train(apply, params, args, **where):
    """Losses of a few steps, and the trained model lifted and materialized."""
    tx = lrk.lora(2, alpha=4, **where)
    state = tx.init(jax.random.key(0), params)
    target = jax.eval_shape(apply, params, *args)
    target = jax.random.normal(jax.random.key(1), target.shape)

    @jax.jit
    def train(params, state):
        def outputs(trainable):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            return lrk.lift(apply)(adapted, *args)

        def step(trainable, _):
            loss, grads = jax.value_and_grad(
                lambda t: jnp.mean((outputs(t) - target) ** 2)
            )(trainable)
            return jax.tree.map(lambda x, g: x - 0.02 * g, trainable, grads), loss

        trained, losses = jax.lax.scan(step, state.trainable, length=6)
        adapted = tx.apply(params, state._replace(trainable=trained))
        dense = apply(lrk.materialize(adapted), *args)
        return losses, outputs(trained), dense

    return train(params, state)


def check(losses, lifted, dense):
    assert (np.diff(losses) < 0).all()
    np.testing.assert_allclose(lifted, dense, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_attention_of_text_models(name, tmp_path):
    model, _ = load(golden.write(tmp_path, name))
    apply, params = functional(model)
    where = {"select": lrk.matching(ATTENTION)}
    check(*adapt_and_train(apply, params, inputs(name), **where))


def test_patches_and_attention_of_vit(tmp_path):
    model, _ = load(golden.write(tmp_path, "vit"))
    apply, params = functional(model, ViT.logits)
    args = inputs("vit")
    axes = lrk.trace_axes(apply, params, *args)
    assert axes["embeddings/patch_embeddings/projection/kernel"].outputs == (3,)
    select = lrk.either(lrk.matching(ATTENTION), lrk.matching("projection/kernel$"))
    check(*adapt_and_train(apply, params, args, select=select, axes=axes))


def test_stacked_layers_of_llama_have_a_stack_axis(tmp_path):
    model, _ = load_llama(golden.write(tmp_path, "qwen2"), scan=True)
    apply, params = functional(model)
    args = inputs("qwen2")
    axes = lrk.trace_axes(apply, params, *args)
    kernel = "model/layers/self_attn/q_proj/kernel"
    assert axes[kernel] == ((0,), (1,), (2,))
    where = {"select": lrk.matching(ATTENTION), "axes": axes}
    check(*adapt_and_train(apply, params, args, **where))
