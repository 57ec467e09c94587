"""What checkpoints of each kind say: configs, buffers, shards, keys that do not fit."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank.models import (
    MLP,
    RopeScaling,
    functional,
    load,
    load_gpt2,
    load_llama,
    load_roberta,
    load_vit,
    save,
    stack_layers,
)
from lowrank.models._checkpoint import read_config
from lowrank.models._layouts import LLAMA, ROBERTA, VIT
from tests.models import golden


def change(folder, update=(), **config):
    """Change stored tensors and entries of the config; None removes."""
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **dict(update)}
    save_file({k: v for k, v in tensors.items() if v is not None}, file)
    old = json.loads((folder / "config.json").read_text())
    new = {k: v for k, v in {**old, **config}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(new))
    return folder


def assert_same(model, other):
    jax.tree.map(
        np.testing.assert_array_equal, functional(model)[1], functional(other)[1]
    )


def read(tmp_path, layout, name, **entries):
    """The config that a layout reads of a golden one with other entries."""
    file = tmp_path / "config.json"
    raw = {**golden.config(name), **entries}
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return read_config("test", file, layout)


def test_rotary_embeddings_are_read_in_both_spellings(tmp_path):
    bands = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    linear = {"type": "linear", "factor": 2.0}
    old = {"rope_parameters": None, "rope_theta": 7.0}
    cases = [
        ({**old, "rope_scaling": None}, None),
        ({**old, "rope_scaling": linear}, RopeScaling(factor=2.0)),
        (
            {**old, "rope_scaling": {"rope_type": "llama3", **bands}},
            RopeScaling(**bands),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, None),
    ]
    for entries, scaling in cases:
        config = read(tmp_path, LLAMA, "llama", **entries)
        assert (config.rope_theta, config.rope_scaling) == (7.0, scaling)
    for rope in ({"rope_type": "yarn", "factor": 2.0}, {"rope_type": "llama3"}):
        with pytest.raises(ValueError, match=r"'rope_type': expected one of .*default"):
            read(tmp_path, LLAMA, "llama", rope_parameters=rope)


def test_the_architecture_says_what_comes_last(tmp_path):
    assert read(tmp_path, VIT, "vit").num_labels == 3
    assert read(tmp_path, VIT, "vit", id2label=None).num_labels == 2
    assert read(tmp_path, VIT, "vit", architectures=["ViTModel"]).num_labels == 0
    assert read(tmp_path, ROBERTA, "roberta").pooler
    other = ["RobertaForMaskedLM"]
    assert not read(tmp_path, ROBERTA, "roberta", architectures=other).pooler


def test_what_the_models_do_not_compute_is_refused(tmp_path):
    entries = {"mlp_bias": True, "tie_word_embeddings": "no", "vocab_size": None}
    with pytest.raises(
        ValueError,
        match=r"no config of a Llama or Qwen2 decoder: 'vocab_size': expected a "
        r"number, got nothing; 'tie_word_embeddings': expected a bool, got 'no'; "
        r"'mlp_bias': expected False, got True",
    ):
        read(tmp_path, LLAMA, "llama", **entries)
    folder = change(golden.write(tmp_path, "llama"), model_type="mamba")
    with pytest.raises(ValueError, match=r"load: no such model.*'gpt2'.*got 'mamba'"):
        load(folder)
    with pytest.raises(ValueError, match=r"load_vit:.*'model_type': expected 'vit'"):
        load_vit(folder)
    with pytest.raises(TypeError, match=r"save: cannot write a MLP: expected one of B"):
        save(tmp_path, MLP.__new__(MLP))


def test_known_buffers_are_dropped_and_heads_skipped(tmp_path):
    gpt2 = golden.write(tmp_path / "gpt2", "gpt2")
    model, _ = load_gpt2(gpt2)
    mask = np.tril(np.ones((1, 1, 8, 8), np.uint8))
    bare = {
        k.removeprefix("transformer."): v for k, v in golden.tensors("gpt2").items()
    }
    gone = dict.fromkeys(golden.tensors("gpt2"))
    change(gpt2, {**gone, **bare, "h.0.attn.bias": mask, "h.1.attn.bias": mask})
    assert_same(load_gpt2(gpt2)[0], model)
    qwen = golden.write(tmp_path / "qwen2", "qwen2")
    model, _ = load_llama(qwen)
    change(qwen, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)})
    change(qwen, {"lm_head.weight": np.ones((11, 16), np.float32)})
    with pytest.raises(ValueError, match=r"unexpected 'lm_head.weight'.*skip="):
        load_llama(qwen)
    assert_same(load_llama(qwen, skip="^lm_head")[0], model)
    roberta = golden.write(tmp_path / "roberta", "roberta")
    model, _ = load_roberta(roberta)
    stored = golden.tensors("roberta")
    moved = {f"roberta.{k}": v for k, v in stored.items() if not k.startswith("pooler")}
    change(roberta, {**dict.fromkeys(stored), **moved, "lm_head.bias": np.ones(11)})
    change(roberta, architectures=["RobertaForMaskedLM"])
    language, _ = load_roberta(roberta, skip="^lm_head")
    with pytest.raises(ValueError, match=r"Roberta: no pooler: expected pooler=True"):
        language.pooled(np.ones((1, 2, 8)))
    del model.pooler
    assert_same(language, model)
    save(tmp_path / "again", language)
    assert_same(load(tmp_path / "again")[0], model)


def test_shards_are_read_into_stacked_layers_and_written_as_a_list(tmp_path):
    folder = golden.write(tmp_path / "one", "llama")
    model, _ = load_llama(folder)
    tensors = golden.tensors("llama")
    (folder / "model.safetensors").unlink()
    where = {key: f"{i % 2}.safetensors" for i, key in enumerate(sorted(tensors))}
    for name in set(where.values()):
        part = {k: v for k, v in tensors.items() if where[k] == name}
        save_file(part, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    stacked, config = load_llama(folder, scan=True)
    params = functional(stacked)[1]
    jax.tree.map(
        np.testing.assert_array_equal, params, stack_layers(functional(model)[1])
    )
    save(tmp_path / "two", stacked, params)
    again, same = load_llama(tmp_path / "two")
    assert same == config
    assert_same(again, model)


def test_every_wrong_key_of_a_decoder_is_listed(tmp_path):
    folder = golden.write(tmp_path, "llama")
    q = "model.layers.0.self_attn.q_proj.weight"
    change(folder, {"lm_head.weight": None, "odd": np.ones(1), q: np.ones((16, 24))})
    with pytest.raises(
        ValueError,
        match=r"load_llama: the weights in .*missing 'lm_head.weight'; unexpected "
        rf"'odd'; mis-shaped '{q}': expected \(24, 16\), got \(16, 24\)",
    ):
        load_llama(folder)
