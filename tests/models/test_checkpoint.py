"""Checkpoints: written, read back, and refused when they do not fit."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lowrank.models import Bert, BertConfig, functional, load_bert, save_bert

CONFIG = BertConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=6,
    layer_norm_eps=1e-7,
)
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def model():
    """A tiny model whose tensors all differ."""
    model = Bert(CONFIG, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    leaves, treedef = jax.tree.flatten(state)
    moved = [leaf + 0.01 * i for i, leaf in enumerate(leaves)]
    nnx.update(model, jax.tree.unflatten(treedef, moved))
    return model


@pytest.fixture
def folder(model, tmp_path):
    """A complete checkpoint that a test may damage."""
    save_bert(tmp_path / "deep" / "bert", model)
    return tmp_path / "deep" / "bert"


def rewrite(folder, change):
    """Change the stored tensors by a function of their dict."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def assert_same(model, other):
    got, want = functional(model)[1], functional(other)[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_checkpoint_round_trips_exactly(model, folder):
    loaded, config = load_bert(folder)
    assert config == CONFIG
    assert loaded.config == CONFIG
    assert_same(loaded, model)
    ids = jnp.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded(ids), model(ids))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    (folder / "plain").touch()
    mode = (folder / "plain").stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {mode}


def test_files_follow_the_public_layout(model, folder):
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == 5 + 16 * 2 + 2
    assert tensors["encoder.layer.1.intermediate.dense.weight"].shape == (16, 8)
    query = model.encoder.layer[0].attention.self.query.kernel.get_value()
    np.testing.assert_array_equal(tensors[QUERY], query.T)
    scale = model.embeddings.LayerNorm.scale.get_value()
    np.testing.assert_array_equal(tensors["embeddings.LayerNorm.weight"], scale)
    words = model.embeddings.word_embeddings.embedding.get_value()
    name = "embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(tensors[name], words)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["hidden_act"] == "gelu"
    assert config["num_hidden_layers"] == 2


def test_prefix_old_names_and_the_buffer_are_understood(model, folder):
    def change(tensors):
        for key in list(tensors):
            new = key.replace("LayerNorm.weight", "LayerNorm.gamma")
            new = new.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[f"bert.{new}"] = tensors.pop(key)
        tensors["bert.embeddings.position_ids"] = np.arange(6)[None]

    rewrite(folder, change)
    assert_same(load_bert(folder)[0], model)


def test_skip_leaves_out_what_it_names_and_nothing_else(model, folder):
    rewrite(folder, lambda t: t.update({"cls.bias": np.zeros(2, np.float32)}))
    with pytest.raises(ValueError, match=r"unexpected 'cls.bias'.*skip="):
        load_bert(folder)
    assert_same(load_bert(folder, skip="^cls[.]")[0], model)
    with pytest.raises(ValueError, match=r"missing 'pooler.dense.bias'"):
        load_bert(folder, skip=r"^cls|pooler.dense.bias")


def test_shards_are_read_and_must_be_complete(model, folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["a.safetensors", "b.safetensors"]
    where = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    for name in names:
        part = {k: v for k, v in tensors.items() if where[k] == name}
        save_file(part, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same(load_bert(folder)[0], model)
    save_file({QUERY: tensors[QUERY]}, folder / "c.safetensors")
    index.write_text(json.dumps({"weight_map": where | {"x": "c.safetensors"}}))
    with pytest.raises(ValueError, match=rf"stored twice at '{QUERY}', '{QUERY}'"):
        load_bert(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file at '.*b.safetensors'"):
        load_bert(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(ValueError, match=r"wrong 'weight_map'.*same folder"):
        load_bert(folder)


def test_every_wrong_key_is_listed_at_once(folder):
    def change(tensors):
        del tensors["pooler.dense.bias"], tensors["embeddings.LayerNorm.weight"]
        tensors["head.weight"] = np.zeros((2, 2), np.float32)
        tensors[QUERY] = np.zeros((8, 9), np.float32)
        tensors["pooler.dense.weight"] = np.zeros((8, 8), np.int8)

    rewrite(folder, change)
    with pytest.raises(
        ValueError,
        match=r"missing 'embeddings.LayerNorm.weight', 'pooler.dense.bias'; "
        rf"unexpected 'head.weight'; mis-shaped '{QUERY}': expected \(8, 8\), got "
        r"\(8, 9\); not floating 'pooler.dense.weight': got I8\. Nothing was loaded",
    ):
        load_bert(folder)


def test_an_untransposed_kernel_is_refused(folder):
    name = "encoder.layer.0.output.dense.weight"
    rewrite(folder, lambda t: t.update({name: np.zeros((16, 8), np.float32)}))
    with pytest.raises(ValueError, match=r"expected \(8, 16\), got \(16, 8\)"):
        load_bert(folder)


@pytest.mark.parametrize("keep", [4, 500, -4])
def test_a_truncated_file_is_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"load_bert: cannot read '.*cut short"):
        load_bert(folder)


def test_absent_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file at '.*model.safetensors'"):
        load_bert(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file at '.*config.json'"):
        load_bert(folder)


def test_another_models_config_is_refused(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["vocab_size"]
    config |= {"hidden_act": "relu", "hidden_size": "8", "is_decoder": True}
    file.write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"'vocab_size': expected a number, got nothing; 'hidden_size': expected "
        r"a number, got '8'; 'hidden_act': expected 'gelu', got 'relu'; 'is_decoder'",
    ):
        load_bert(folder)
    for text in ("[1]", "{"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"cannot read '.*expected a JSON object"):
            load_bert(folder)


def test_dtypes_are_cast_and_kept(model, folder):
    loaded, _ = load_bert(folder, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert loaded(jnp.array([[1, 2]])).dtype == jnp.bfloat16
    bias = loaded.pooler.dense.bias.get_value()
    expected = model.pooler.dense.bias.get_value().astype(jnp.bfloat16)
    np.testing.assert_array_equal(bias, expected)
    save_bert(folder, loaded)
    again, _ = load_bert(folder, param_dtype=jnp.bfloat16, remat=True)
    assert again.remat
    assert_same(again, loaded)


def test_other_parameters_can_be_saved(model, folder):
    params = jax.tree.map(lambda leaf: leaf + 1, functional(model)[1])
    save_bert(folder, model, params)
    loaded = functional(load_bert(folder)[0])[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_parameters_that_do_not_fit_are_refused(model, tmp_path):
    params = functional(model)[1]
    params["pooler"] = {"dense": {"kernel": jnp.ones((8, 9)), "extra": jnp.ones(1)}}
    with pytest.raises(
        ValueError,
        match=r"save_bert.*missing 'pooler/dense/bias'; unexpected 'pooler/dense/extra'"
        r"; mis-shaped 'pooler/dense/kernel': expected \(8, 8\), got \(8, 9\)",
    ):
        save_bert(tmp_path / "new", model, params)
    params["pooler"] = {"dense": {"kernel": object(), "bias": (1.0,)}}
    with pytest.raises(TypeError, match=r"'pooler/dense/kernel': got object; .*bias"):
        save_bert(tmp_path / "new", model, params)
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_old_checkpoint(model, folder, monkeypatch):
    def fail(path, _data):
        path.write_text("half")
        raise OSError("disk full")

    params = jax.tree.map(lambda leaf: leaf + 1, functional(model)[1])
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_bert(folder, model, params)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert_same(load_bert(folder)[0], model)
