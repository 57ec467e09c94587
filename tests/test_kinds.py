"""Biases and norms are known by the names that frameworks give them."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk

F32 = jax.ShapeDtypeStruct((4,), jnp.float32)

BOTH = (
    "encoder/layer/0/attention/output/LayerNorm/bias",  # Flax and PyTorch BERT
    "LayerNorm_0/bias",  # Flax
    "mlp/~/layer_norm/offset",  # Haiku
    "h/0/ln_1/bias",  # GPT-2
    "bn/BatchNorm/beta",
)
NORM_ALONE = (
    "encoder/layer/0/attention/output/LayerNorm/scale",
    "model/layers/0/input_layernorm/weight",  # Llama
    "vit/blocks/0/norm1/weight",  # timm
    "transformer/ln_f/weight",
    "pre_layrnorm/scale",  # as CLIP spells it
    "RMSNorm_0/scale",
    "final_ln/gamma",
)
BIAS_ALONE = ("query/bias", "linear/b", "attn/in_proj_bias", "bias")
NEITHER = (
    "query/kernel",
    "BatchNorm_0/mean",
    "LayerNorm/kernel",
    "normal/weight",
    "online/weight",
    "relative_attention_bias/embedding",
    "dense/weight",
)


@pytest.mark.parametrize("path", [*BOTH, *NORM_ALONE, *BIAS_ALONE, *NEITHER])
def test_names_tell_biases_and_norms(path):
    assert lrk.is_bias(path, F32) is (path in BOTH + BIAS_ALONE)
    assert lrk.is_norm(path, F32) is (path in BOTH + NORM_ALONE)


def test_leaves_that_do_not_train_are_neither():
    ids = jax.ShapeDtypeStruct((4,), jnp.int32)
    assert not lrk.is_bias("dense/bias", ids)
    assert not lrk.is_norm("norm/scale", ids)
    stacked = jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)
    assert lrk.is_bias("layers/bias", stacked)
    assert lrk.is_norm("layers/norm/scale", stacked)
