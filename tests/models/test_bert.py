"""The BERT encoder against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lowrank.models import Bert, BertConfig, functional, mean_pool, save_bert
from tests.reference import bert as reference

CONFIG = BertConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=6,
    layer_norm_eps=0.1,  # large enough to show where it enters
    initializer_range=0.5,
)
IDS = jnp.array([[1, 2, 3, 4], [5, 6, 0, 0]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
TYPES = jnp.array([[0, 0, 1, 1], [0, 1, 0, 0]])


def scrambled(**kwargs):
    """A tiny model in which biases and scales too are random."""
    model = Bert(CONFIG, rngs=nnx.Rngs(0), **kwargs)
    keys = iter(jax.random.split(jax.random.key(1), 64))
    state = nnx.state(model, nnx.Param)
    nnx.update(
        model,
        jax.tree.map(
            lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), state
        ),
    )
    return model


@pytest.fixture(scope="module")
def model():
    return scrambled()


@pytest.fixture(scope="module")
def tensors(model, tmp_path_factory):
    """The same weights as a checkpoint has them."""
    from safetensors.numpy import load_file

    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder, model)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def hidden(model):
    apply, params = functional(model)
    return jax.jit(apply)(params, IDS, MASK, TYPES)


def test_hidden_states_and_pooler_are_their_equations(model, tensors, hidden):
    expected = reference.forward(
        tensors,
        np.asarray(IDS),
        np.asarray(MASK),
        np.asarray(TYPES),
        layers=2,
        heads=2,
        eps=0.1,
    )
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        model.pooled(hidden),
        reference.pooled(tensors, expected),
        rtol=1e-4,
        atol=2e-5,
    )


def test_padded_tokens_change_nothing(model, hidden):
    other = IDS.at[1, 2:].set(jnp.array([7, 8]))
    changed = model(other, MASK, TYPES)
    np.testing.assert_allclose(changed[0], hidden[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(changed[1, :2], hidden[1, :2], rtol=1e-5, atol=1e-6)
    short = model(IDS[1:, :2], None, TYPES[1:, :2])
    np.testing.assert_allclose(short[0], hidden[1, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        mean_pool(changed, MASK), mean_pool(hidden, MASK), rtol=1e-5, atol=1e-6
    )
    unmasked = model(other, None, TYPES)
    assert not np.allclose(unmasked[1, :2], hidden[1, :2], atol=1e-2)


def test_a_row_of_padding_only_stays_finite(model):
    assert np.isfinite(model(IDS, jnp.zeros_like(MASK))).all()


def test_defaults_are_no_mask_and_type_zero(model):
    explicit = model(IDS, jnp.ones_like(MASK, bool), jnp.zeros_like(IDS))
    np.testing.assert_array_equal(model(IDS), explicit)


def test_paths_mirror_the_checkpoint(model):
    _, params = functional(model)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    assert len(leaves) == 5 + 16 * 2 + 2
    layer = "encoder/layer/1"
    expected = {
        "embeddings/word_embeddings/embedding": (11, 8),
        "embeddings/position_embeddings/embedding": (6, 8),
        "embeddings/token_type_embeddings/embedding": (2, 8),
        "embeddings/LayerNorm/scale": (8,),
        f"{layer}/attention/self/query/kernel": (8, 8),
        f"{layer}/attention/self/value/bias": (8,),
        f"{layer}/attention/output/dense/kernel": (8, 8),
        f"{layer}/attention/output/LayerNorm/scale": (8,),
        f"{layer}/intermediate/dense/kernel": (8, 16),
        f"{layer}/output/dense/kernel": (16, 8),
        f"{layer}/output/LayerNorm/bias": (8,),
        "pooler/dense/kernel": (8, 8),
    }
    assert leaves.items() >= expected.items()


def test_remat_gives_the_same_values_and_gradients():
    def loss_of(model):
        apply, params = functional(model, lambda m, *a: jnp.sin(m(*a)).sum())
        return apply, params

    plain, params = loss_of(scrambled())
    remat, _ = loss_of(scrambled(remat=True))
    args = (IDS, MASK, TYPES)
    expected = jax.jit(jax.value_and_grad(plain))(params, *args)
    out = jax.jit(jax.value_and_grad(remat))(params, *args)
    for got, want in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    moved = jax.tree.leaves(out[1]["encoder"]["layer"]["0"]["intermediate"])
    assert all(np.abs(leaf).max() > 0 for leaf in moved)

    def remats(fn):
        return sum(
            "prevent_cse" in eqn.params
            for eqn in jax.make_jaxpr(fn)(params, *args).eqns
        )

    assert (remats(plain), remats(remat)) == (0, 2)


def test_low_precision_compute_keeps_the_parameters(hidden):
    model = scrambled(dtype=jnp.bfloat16)
    out = model(IDS, MASK, TYPES)
    assert out.dtype == jnp.bfloat16
    assert model.pooler.dense.kernel.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean((out.astype(jnp.float32) - hidden) ** 2))
    # Some twenty roundings lie between ids and states.
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert eps / 16 < error / jnp.sqrt(jnp.mean(hidden**2)) < 10 * eps
    stored = Bert(CONFIG, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(functional(stored)[1])}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


def test_mean_pool_keeps_dtype_and_padding_out():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]]], jnp.bfloat16)
    out = mean_pool(hidden, jnp.array([[True, True, False]]))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), [[2.0, 4.0]])
    np.testing.assert_array_equal(mean_pool(hidden, jnp.zeros((1, 3))), 0)
    with pytest.raises(ValueError, match=r"wrong mask: expected shape \(1, 3\), got"):
        mean_pool(hidden, jnp.ones((1, 2)))


def test_config_lists_every_wrong_size():
    with pytest.raises(ValueError, match=r"'vocab_size'.*got 0; 'layer_norm_eps'.*-1"):
        BertConfig(vocab_size=0, layer_norm_eps=-1.0)
    with pytest.raises(ValueError, match=r"'hidden_size': expected a multiple of 12"):
        BertConfig(hidden_size=8)


def test_wrong_inputs_are_refused(model):
    with pytest.raises(TypeError, match=r"wrong token_ids: expected integers, got fl"):
        model(IDS.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"wrong token_ids: expected shape.*\(4,\)"):
        model(IDS[0])
    with pytest.raises(ValueError, match=r"length at most 6, got \(1, 7\)"):
        model(jnp.ones((1, 7), jnp.int32))
    with pytest.raises(
        ValueError, match=r"'attention_mask': expected.*'token_type_ids': expected"
    ):
        model(IDS, MASK[:1], TYPES[:, :2])
