"""The transformers against `transformers`: logits, hidden states, greedy text."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank.models import (
    functional,
    generate,
    load,
    load_gpt2,
    load_llama,
    load_roberta,
    load_vit,
    save,
)
from tests.models import golden

DECODERS = {"llama": load_llama, "qwen2": load_llama, "gpt2": load_gpt2}
LOADERS = {**DECODERS, "roberta": load_roberta, "vit": load_vit}
# Two layers whose weights are of the order 1, each side in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory for each of the checkpoints."""
    root = tmp_path_factory.mktemp("golden")
    return {name: golden.write(root / name, name) for name in LOADERS}


@pytest.fixture(scope="module")
def models(folders):
    return {name: loader(folders[name])[0] for name, loader in LOADERS.items()}


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_padded_rows(models, name):
    stored = golden.arrays(f"models_{name}")
    apply, params = functional(models[name])
    apply = jax.jit(apply)
    ids, mask = stored["in_ids"], stored["in_mask"]
    out = apply(params, ids, mask)
    kept = mask != 0
    np.testing.assert_allclose(out[kept], stored["out_logits"][kept], **CLOSE)
    # A token that is masked in the middle is seen by no other.
    hole = mask.copy()
    hole[0, 1] = 0
    other = ids.copy()
    other[0, 1] = 7
    seen = [np.delete(apply(params, x, hole)[0], 1, axis=0) for x in (ids, other)]
    np.testing.assert_allclose(*seen, rtol=1e-5, atol=1e-5)
    assert not np.allclose(seen[0][1:], out[0, 2:], rtol=1e-2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_text_does_not_depend_on_padding(models, name):
    stored = golden.arrays(f"models_{name}")
    out = generate(models[name], stored["in_ids"], stored["in_mask"], length=3)
    np.testing.assert_array_equal(out.ids, stored["out_greedy"])
    np.testing.assert_array_equal(out.mask, 1)


def test_hidden_states_and_pooler_of_roberta(models):
    stored = golden.arrays("models_roberta")
    apply, params = functional(
        models["roberta"], lambda m, *a: (h := m(*a), m.pooled(h))
    )
    hidden, pooled = jax.jit(apply)(params, stored["in_ids"], stored["in_mask"])
    kept = stored["in_mask"] != 0
    np.testing.assert_allclose(hidden[kept], stored["out_hidden"][kept], **CLOSE)
    np.testing.assert_allclose(pooled, stored["out_pooled"], **CLOSE)


def test_positions_of_roberta_count_tokens_and_the_rows_of_a_prompt(models):
    ids = jnp.array([[5, 6, 0, 0]])
    positions = models["roberta"].embeddings.positions
    assert positions(ids, 0).tolist() == [[1, 2, 0, 0]]
    assert positions(ids, 2).tolist() == [[1, 2, 3, 4, 0, 0]]


def test_logits_and_hidden_states_of_vit(models):
    stored = golden.arrays("models_vit")
    images = stored["in_images"].transpose(0, 2, 3, 1)
    apply, params = functional(models["vit"], lambda m, x: (m(x), m.logits(x)))
    hidden, logits = jax.jit(apply)(params, images)
    np.testing.assert_allclose(hidden, stored["out_hidden"], **CLOSE)
    np.testing.assert_allclose(logits, stored["out_logits"], **CLOSE)


@pytest.mark.parametrize("name", LOADERS)
def test_the_config_says_which_model_and_saving_keeps_all(
    folders, models, name, tmp_path
):
    model, config = load(folders[name])
    assert type(model) is type(models[name])
    save(tmp_path, model)
    again, same = load(tmp_path)
    assert same == config
    jax.tree.map(
        np.testing.assert_array_equal, functional(again)[1], functional(model)[1]
    )
    written, given = load_file(tmp_path / "model.safetensors"), golden.tensors(name)
    assert written.keys() == given.keys()
    for key, tensor in given.items():
        np.testing.assert_array_equal(written[key], tensor)
    old, new = golden.config(name), json.loads((tmp_path / "config.json").read_text())
    for entry in ("architectures", "model_type", "head_dim"):
        assert new.get(entry) == old.get(entry)
