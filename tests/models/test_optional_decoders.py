"""Prompts and prefixes in decoders: PEFT's values, packing, generation, refusals."""

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
    functional,
    generate,
    load_gpt2,
    load_llama,
    stack_layers,
)
from lowrank.models._rope import angles, frequencies, rotate
from tests.models import golden
from tests.network import numbers

LENGTH = 3
WORDS = lrk.matching(r"(wte|embed_tokens)/embedding$")
LOADERS = {"gpt2": load_gpt2, "llama": load_llama}
# Where each has its prefixes, and how wide these are.
PLACES = {
    "gpt2": {"select": lrk.matching(r"c_attn/kernel$"), "columns": 16},
    "llama": {"select": lrk.matching(r"[kv]_proj/kernel$")},
}
# Two layers whose weights are of the order 1, each side in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    return {
        name: load(golden.write(root / name, name))[0] for name, load in LOADERS.items()
    }


def stored(name, method):
    """What PEFT trained and gave, and the inputs."""
    with np.load(golden.GOLDEN / "prompts_decoders.npz") as file:
        own = {
            key: file[f"{name}.{method}.{key}"] for key in ("rows", "logits", "grad")
        }
    inputs = golden.arrays(f"models_{name}")
    return own | {"ids": inputs["in_ids"], "mask": inputs["in_mask"]}


def check(apply, tx, params, rows, ours):
    """Logits and gradient of all rows; `rows` and `ours` are by path."""
    file = ours.pop("file")
    kept = file["mask"] != 0
    fixed = {path: {"scale": jnp.float32(1)} for path in rows}

    @partial(jax.grad, has_aux=True)
    def run(trainable):
        tree = tx.apply(params, lrk.State(trainable, fixed))
        logits = apply(tree, file["ids"], file["mask"])
        return jnp.sin(logits[:, :3]).sum(), logits

    grads, logits = jax.jit(run)({path: {"rows": x} for path, x in rows.items()})
    np.testing.assert_allclose(logits[kept], file["logits"][kept], **CLOSE)
    for path, want in ours.items():
        np.testing.assert_allclose(grads[path]["rows"], want, **CLOSE)


@pytest.mark.parametrize("name", LOADERS)
def test_prompt_tuning_is_that_of_peft(models, name):
    apply, params = functional(models[name])
    file, tx = stored(name, "prompt"), lrk.prompt(LENGTH, select=WORDS)
    (path,) = lrk.select_paths(tx, params)
    check(apply, tx, params, {path: file["rows"]}, {"file": file, path: file["grad"]})


@pytest.mark.parametrize("name", LOADERS)
def test_prefix_tuning_is_that_of_peft_but_for_the_positions(models, name):
    """PEFT moves the text by the prefix: here the table or the keys are moved back."""
    apply, params = functional(models[name])
    config, file = models[name].config, stored(name, "prefix")
    tx = lrk.prefix(LENGTH, **PLACES[name])

    def own(array, path):
        array = array.reshape(LENGTH, 2, 2, -1)[:, int(path.split("/")[-4])]
        if name == "gpt2":
            return array.reshape(LENGTH, -1)
        key, value = array.swapaxes(0, 1)
        return value if "v_proj" in path else turned(key)

    def turned(key):
        freqs = frequencies(config.head_size, config.rope_theta, config.rope_scaling)
        back = angles(jnp.full((1, LENGTH), -LENGTH), freqs)
        heads = key.reshape(1, LENGTH, -1, config.head_size)
        return np.asarray(rotate(jnp.asarray(heads), back)).reshape(key.shape)

    if name == "gpt2":
        table = params["wpe"]["embedding"]
        params = params | {"wpe": {"embedding": jnp.roll(table, -LENGTH, 0)}}
    paths = lrk.select_paths(tx, params)
    assert len(paths) == (2 if name == "gpt2" else 4)
    rows, grads = ({p: own(file[k], p) for p in paths} for k in ("rows", "grad"))
    check(apply, tx, params, rows, {"file": file, **grads})


SMALL = LlamaConfig(
    vocab_size=7,
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=12,
    rope_theta=50.0,
)
SMALL_GPT2 = GPT2Config(vocab_size=7, n_positions=12, n_embd=8, n_layer=2, n_head=2)
KINDS = {"llama": (Llama, SMALL), "gpt2": (GPT2, SMALL_GPT2)}


def abstract(name="llama", **kwargs):
    kind, config = KINDS[name]
    return nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0), **kwargs))


@pytest.fixture(scope="module")
def trees():
    """By name, the tree of a small decoder with a prompt and prefixes."""

    def made(name):
        tx = lrk.chain(lrk.prompt(2, select=WORDS), lrk.prefix(LENGTH, **PLACES[name]))
        params = functional(abstract(name))[1]
        shapes = jax.eval_shape(
            lambda params: tx.apply(params, tx.init(jax.random.key(0), params)), params
        )
        leaves, treedef = jax.tree.flatten(shapes)
        drawn = [jnp.asarray(numbers(i, *x.shape)) for i, x in enumerate(leaves)]
        return jax.tree.unflatten(treedef, drawn)

    return {name: made(name) for name in KINDS}


IDS = jnp.array([[1, 2, 3, 4, 5, 6], [6, 5, 1, 3, 0, 0]])
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 1], [4, 4, 4, 4, 0, 0]])


@pytest.mark.parametrize("name", KINDS)
def test_each_packed_text_sees_the_prompt_and_the_prefixes(trees, name):
    """So its logits are those of the text alone, with both."""
    apply = jax.jit(functional(abstract(name))[0])
    packed = apply(trees[name], IDS, segment_ids=SEGMENTS)
    for row, start, stop in [(0, 0, 3), (0, 3, 5), (0, 5, 6), (1, 0, 4)]:
        text = jnp.pad(IDS[row, start:stop], (0, 6 - stop + start))
        one = jnp.ones((2, 6), int)
        alone = apply(trees[name], jnp.stack([text, text]), segment_ids=one)
        np.testing.assert_allclose(
            packed[row, start:stop], alone[0, : stop - start], **CLOSE
        )


@pytest.mark.parametrize(("name", "scan"), [("llama", True), ("gpt2", False)])
def test_generation_reads_both_and_does_not_depend_on_padding(trees, name, scan):
    """Stacked layers too: each token is the likeliest of one pass over all others."""
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    generates, _ = functional(abstract(name, scan=scan), partial(generate, length=4))
    tree = stack_layers(trees[name]) if scan else trees[name]
    new = generates(tree, IDS[:, :4], mask).ids
    texts = [
        jnp.concatenate([IDS[i, : sum(mask[i])], new[i], jnp.zeros(2 * i, int)])
        for i in range(2)
    ]
    apply = jax.jit(functional(abstract(name))[0])
    logits = apply(trees[name], jnp.stack(texts))
    for row in range(2):
        first = int(mask[row].sum()) - 1
        want = jnp.argmax(logits[row, first : first + 4], axis=-1)
        np.testing.assert_array_equal(new[row], want)


@pytest.mark.parametrize("name", KINDS)
def test_without_further_leaves_there_is_nothing_to_join(trees, name):
    """A model with them joins two arrays in each layer, and the prompt once."""
    apply, plain = functional(abstract(name))

    def joined(tree):
        lines = str(jax.make_jaxpr(apply)(tree, IDS, segment_ids=SEGMENTS))
        return lines.count("concatenate[") + lines.count("pad[")

    of_the_model = 1 + (4 if name == "llama" else 0)  # starts of texts, and rotations
    assert joined(plain) == of_the_model
    assert joined(trees[name]) > of_the_model + 2 * 2


def test_refuses_what_does_not_fit():
    def run(name, tx, length, method=None):
        apply, shapes = functional(abstract(name), method)
        state = jax.eval_shape(tx.init, jax.random.key(0), shapes)
        ids = jnp.ones((1, length), int)
        return jax.eval_shape(lambda p, s: apply(tx.apply(p, s), ids), shapes, state)

    prompt = lrk.prompt(2, select=WORDS)
    assert run("llama", prompt, 10).shape == (1, 10, 7)
    with pytest.raises(ValueError, match=r"Llama.*at most 10, got .*a prompt takes"):
        run("llama", prompt, 11)
    with pytest.raises(ValueError, match=r"at most 10 together, got 8 and 3"):
        run("gpt2", prompt, 8, partial(generate, length=3))
    message = r"GPT2: wrong prefix .*expected 16 columns.*got 24\. Pass columns=16"
    with pytest.raises(ValueError, match=message):
        run("gpt2", lrk.prefix(2, select=PLACES["gpt2"]["select"]), 4)
    keys = lrk.prefix(2, select=lrk.matching(r"k_proj/kernel$"))
    with pytest.raises(ValueError, match=r"of the keys has 2 rows, .* the values 0"):
        run("llama", keys, 4)
    queries = lrk.prefix(2, select=lrk.matching(r"q_proj/kernel$"))
    with pytest.raises(ValueError, match=r"unexpected 'model/layers/0/.*/q_proj/pref"):
        run("llama", queries, 4)
