"""Decoders: layers stacked and run again, low precision, text one token at a time."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowrank as lrk
from lowrank.models import (
    GPT2,
    GPT2Config,
    Llama,
    LlamaConfig,
    RobertaConfig,
    RopeScaling,
    ViT,
    ViTConfig,
    functional,
    generate,
    stack_layers,
    unstack_layers,
)
from lowrank.models._rope import frequencies
from tests.untyped import untyped

CONFIG = LlamaConfig(
    vocab_size=7,
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8,
    rope_theta=50.0,
    tie_word_embeddings=True,
    initializer_range=0.7,
)
IDS = jnp.array([[1, 2, 3], [4, 5, 0]])
MASK = jnp.array([[1, 1, 1], [1, 1, 0]])


def abstract(config=CONFIG, model=Llama, **kwargs):
    """A model without numbers."""
    return nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0), **kwargs))


@pytest.fixture(scope="module")
def params():
    """Parameters with no structure, scales and all, drawn in one program."""
    shapes = functional(abstract())[1]
    leaves, treedef = jax.tree.flatten(shapes)

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, len(leaves))
        drawn = [
            0.5 * jax.random.normal(k, leaf.shape)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, drawn)

    return draw(jax.random.key(0))


@pytest.fixture(scope="module")
def logits(params):
    return jax.jit(functional(abstract())[0])(params, IDS, MASK)


def square(model, *args):
    return jnp.mean(model(*args) ** 2)


def test_stacked_layers_that_run_again_have_the_same_values_and_gradients(params):
    plain, _ = functional(abstract(), square)
    looped, shapes = functional(abstract(scan=True, remat=True), square)
    stacked = stack_layers(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    expected = jax.jit(jax.value_and_grad(plain))(params, IDS, MASK)
    value, grads = jax.jit(jax.value_and_grad(looped))(stacked, IDS, MASK)
    got = (value, unstack_layers(grads))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected
    )
    text = str(jax.make_jaxpr(jax.grad(looped))(stacked, IDS, MASK))
    assert "scan" in text
    assert "remat" in text or "checkpoint" in text


def test_stacking_refuses_what_is_no_list_of_like_layers(params):
    jax.tree.map(
        np.testing.assert_array_equal, unstack_layers(stack_layers(params)), params
    )
    layers = params["model"]["layers"]
    assert stack_layers(params)["model"]["norm"] is params["model"]["norm"]
    with pytest.raises(
        ValueError, match=r"stack_layers: no layers at 'h'.*\['model'\]"
    ):
        stack_layers(params, "h")
    with pytest.raises(ValueError, match=r"expected the children '0', '1', ..., got"):
        stack_layers({"h": {"0": layers["0"], "2": layers["1"]}}, "h")
    odd = {"h": {"0": {"w": jnp.ones(2)}, "1": {"w": jnp.ones(3), "b": jnp.ones(1)}}}
    with pytest.raises(
        ValueError, match=r"'h/1/b': expected None.*; 'h/1/w': expected"
    ):
        stack_layers(odd, "h")
    with pytest.raises(ValueError, match=r"unstack_layers: no stacked layers at 'h'"):
        unstack_layers(odd, "h")


def test_low_precision_keeps_the_logits_wide(params, logits):
    low, shapes = functional(abstract(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
    out = jax.jit(low)(params, IDS, MASK)
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - logits) / np.linalg.norm(logits)
    # Some twenty roundings lie between ids and logits.
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert eps / 16 < error < 10 * eps


# Texts of 3, 2 and 1 tokens in one row, and one of 4 before padding in another.
PACKED = jnp.array([[1, 2, 3, 4, 5, 6], [6, 5, 1, 3, 0, 0]])
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 1], [4, 4, 4, 4, 0, 0]])


@pytest.mark.parametrize("scan", [False, True])
def test_packed_texts_have_the_logits_of_each_alone(params, scan):
    apply, _ = functional(abstract(scan=scan, remat=scan))
    apply = jax.jit(apply)
    params = stack_layers(params) if scan else params
    packed = apply(params, PACKED, segment_ids=SEGMENTS)
    spans = [(0, 0, 3), (0, 3, 5), (0, 5, 6), (1, 0, 4)]
    for row, start, stop in spans:
        text = jnp.pad(PACKED[row, start:stop], (0, 6 - stop + start))
        alone = apply(params, jnp.stack([text, text]))[0, : stop - start]
        np.testing.assert_allclose(packed[row, start:stop], alone, rtol=1e-5, atol=1e-5)
    unpacked = apply(params, PACKED)
    assert np.abs(unpacked - packed)[0, 3:].max() > 1e-2


def test_packing_goes_with_learned_positions_and_masks():
    config = GPT2Config(vocab_size=7, n_positions=6, n_embd=8, n_layer=1, n_head=2)

    @jax.jit
    def run(ids, segments, mask):
        model = GPT2(replace(config, initializer_range=0.5), rngs=nnx.Rngs(0))
        packed, masked = (model(ids, m, segments) for m in (None, mask))
        return packed, masked, model(ids[:1, 3:5])

    hidden = jnp.ones_like(PACKED).at[0, 3].set(0)
    packed, masked, alone = run(PACKED, SEGMENTS, hidden)
    np.testing.assert_allclose(packed[0, 3:5], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(masked[0, :3], packed[0, :3], rtol=1e-5, atol=1e-5)
    assert np.abs(masked - packed)[0, 4].max() > 1e-3


def test_packing_goes_with_adapters(params):
    apply, _ = functional(abstract())
    tx = lrk.lora(2, alpha=16, select=lrk.matching(r"down_proj/kernel$"))
    state = jax.tree.map(lambda x: x + 0.3, tx.init(jax.random.key(0), params))

    @jax.jit
    def both(params, state):
        adapted = tx.apply(params, state)
        lifted = lrk.lift(apply)(adapted, PACKED, segment_ids=SEGMENTS)
        return lifted, apply(lrk.materialize(adapted), PACKED, segment_ids=SEGMENTS)

    np.testing.assert_allclose(*both(params, state), rtol=1e-4, atol=1e-4)


def test_a_row_ends_at_a_stop_and_the_loop_when_all_have(params):
    apply, _ = functional(abstract(scan=True), partial(generate, length=4))
    stacked = stack_layers(params)
    ids = np.asarray(apply(stacked, IDS, MASK).ids)
    stop = (int(ids[0, 0]), int(ids[1, 1]))
    ends = [int(np.isin(row, stop).argmax()) for row in ids]
    assert ends == [0, 1]
    stopped, _ = functional(abstract(scan=True), partial(generate, length=4, stop=stop))
    out = stopped(stacked, IDS, MASK)
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(out.ids[row, : end + 1], ids[row, : end + 1])
        np.testing.assert_array_equal(out.ids[row, end:], ids[row, end])
        np.testing.assert_array_equal(out.mask[row], np.arange(4) <= end)


def test_adapted_decoders_generate_as_their_dense_form(params):
    apply, _ = functional(abstract(), partial(generate, length=4))
    tx = lrk.lora(2, alpha=16, select=lrk.matching(r"(q|down)_proj/kernel$"))
    state = tx.init(jax.random.key(0), params)
    state = jax.tree.map(lambda x: x + 0.3, state)
    adapted = tx.apply(params, state)
    out = lrk.lift(apply)(adapted, IDS, MASK)
    dense = apply(lrk.materialize(adapted), IDS, MASK)
    np.testing.assert_array_equal(out.ids, dense.ids)
    assert (out.ids != apply(params, IDS, MASK).ids).any()


def test_tokens_are_drawn_at_their_probabilities(params, logits):
    rows, temperature = 2000, 1.7
    draw, _ = functional(abstract(), partial(generate, length=1))
    ids = jnp.broadcast_to(IDS[:1], (rows, 3))
    out = draw(params, ids, temperature=temperature, key=jax.random.key(1)).ids
    share = np.bincount(np.asarray(out)[:, 0], minlength=7) / rows
    expected = np.asarray(jax.nn.softmax(logits[0, -1] / temperature))
    error = np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs(share - expected) < 4 * error + 1e-9).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, r"wrong length: expected a prompt.*at most 8.*got 3 and 0"),
        ({"length": 6}, r"wrong length.*got 3 and 6"),
        ({"length": 1, "temperature": 0.5}, r"no key: expected one at a temperature"),
        ({"length": 1, "temperature": -1.0}, r"wrong temperature: expected at least 0"),
        (
            {"length": 1, "attention_mask": 1 - MASK},
            r"wrong attention_mask: expected 1s",
        ),
        (
            {"length": 1, "attention_mask": MASK[:1]},
            r"'attention_mask': expected shape",
        ),
    ],
)
def test_generate_refuses(kwargs, message):
    with pytest.raises(ValueError, match=f"generate: .*{message}"):
        generate(abstract(), IDS, **kwargs)


def test_wrong_inputs_are_refused():
    model = abstract()
    with pytest.raises(TypeError, match=r"Llama: wrong token_ids: expected integers"):
        model(IDS.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"length at most 8, got \(1, 9\)"):
        model(jnp.ones((1, 9), jnp.int32))
    small = GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1)
    with pytest.raises(ValueError, match=r"GPT2: wrong inputs at 'attention_mask'"):
        abstract(small, GPT2)(IDS, MASK[:1])
    with pytest.raises(ValueError, match=r"Llama: wrong inputs at 'segment_ids'"):
        model(IDS, segment_ids=MASK[:, :2])
    vit = ViTConfig(image_size=4, patch_size=2, num_hidden_layers=1)
    with pytest.raises(
        ValueError, match=r"ViT: wrong images: expected shape \(batch, 4"
    ):
        abstract(vit, ViT)(jnp.ones((1, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"ViT: no classifier: expected num_labels"):
        abstract(vit, ViT).logits(jnp.ones((1, 4, 4, 3)))


def test_paths_mirror_the_checkpoints():
    config = LlamaConfig(num_hidden_layers=1, attention_bias=True, head_dim=16)
    shapes = functional(abstract(config))[1]
    layer = jax.tree.map(lambda leaf: leaf.shape, shapes["model"]["layers"]["0"])
    assert layer["self_attn"] == {
        "q_proj": {"kernel": (4096, 512), "bias": (512,)},
        "k_proj": {"kernel": (4096, 512), "bias": (512,)},
        "v_proj": {"kernel": (4096, 512), "bias": (512,)},
        "o_proj": {"kernel": (512, 4096)},
    }
    assert layer["mlp"]["down_proj"]["kernel"] == (11008, 4096)
    assert shapes["lm_head"]["kernel"].shape == (4096, 32000)


@pytest.mark.parametrize(
    ("model", "config", "layers", "count"),
    [
        (Llama, LlamaConfig(), "num_hidden_layers", 6_738_415_616),
        (GPT2, GPT2Config(), "n_layer", 124_439_808),
        (ViT, ViTConfig(num_labels=1000), "num_hidden_layers", 86_567_656),
    ],
)
def test_published_sizes(model, config, layers, count):
    one, two = (
        sum(leaf.size for leaf in jax.tree.leaves(functional(some)[1]))
        for some in (abstract(replace(config, **{layers: n}), model) for n in (1, 2))
    )
    assert one + (getattr(config, layers) - 1) * (two - one) == count


def test_stretched_frequencies():
    plain = frequencies(8, 100.0, None)
    np.testing.assert_allclose(plain, 100.0 ** -np.array([0, 0.25, 0.5, 0.75]))
    linear = frequencies(8, 100.0, RopeScaling(factor=4.0))
    np.testing.assert_allclose(linear, np.array(plain) / 4)
    bands = RopeScaling(
        factor=4.0,
        low_freq_factor=1.0,
        high_freq_factor=2.0,
        original_max_position_embeddings=100,
    )
    assert bands.scaled(2 * math.pi / 50) == 2 * math.pi / 50
    assert bands.scaled(2 * math.pi / 101) == 2 * math.pi / 404
    middle = 2 * math.pi / (100 / 1.5)
    assert bands.scaled(middle) == pytest.approx(middle * (0.5 / 4 + 0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(LlamaConfig, vocab_size=0, rms_norm_eps=-1.0),
            r"LlamaConfig: wrong sizes at 'vocab_size'.*got 0; 'rms_norm_eps'.*-1",
        ),
        (
            partial(LlamaConfig, num_key_value_heads=5, hidden_size=33),
            r"'num_attention_heads'.*multiple of 5.*; 'hidden_size'.*multiple of 32",
        ),
        (
            partial(LlamaConfig, head_dim=3),
            r"'head_dim': expected an even number, got 3",
        ),
        (partial(LlamaConfig, attention_output_bias=True), r"wrong biases: expected"),
        (partial(RopeScaling, factor=0.5), r"RopeScaling: wrong factors"),
        (partial(RopeScaling, factor=2.0, high_freq_factor=1.0), r"low <= high, got 2"),
        (partial(GPT2Config, n_embd=10), r"GPT2Config.*'n_embd'.*multiple of 12"),
        (partial(ViTConfig, patch_size=15), r"ViTConfig.*'image_size'.*multiple of 15"),
        (partial(ViTConfig, num_labels=-1), r"'num_labels': expected at least 0"),
        (
            partial(RobertaConfig, max_position_embeddings=2),
            r"RobertaConfig.*'max_position_embeddings': expected at least 3, got 2",
        ),
    ],
)
def test_configs_refuse_impossible_sizes(make, message):
    with untyped(), pytest.raises(ValueError, match=message):
        make()
