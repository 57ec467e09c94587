"""Adapters that PEFT wrote: loaded whole over their base, or refused by key."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import lowrank as lrk
from lowrank.interop import load_peft, save_peft
from lowrank.interop._adapter import Factors, write_adapter
from lowrank.models import (
    GPT2,
    Bert,
    BertConfig,
    GPT2Config,
    Llama,
    LlamaConfig,
    functional,
)
from tests.interop.trees import GOLDEN, arrays, as_tree, flat, load
from tests.tolerances import assert_close

CASES = ("bert", "gpt2", "llama", "all_linear", "conv")
ONE_TWO = ("one.dense.weight", "two.dense.weight")


@pytest.fixture(scope="module")
def loaded():
    return {case: load(case) for case in CASES}


def factors(n=4, m=3, rank=2, scale=1.0, embedding=False):
    """Factors of a Linear, as torch has them."""
    a = np.arange(1, rank * n + 1, dtype=np.float32).reshape(rank, n)
    b = np.arange(1, m * rank + 1, dtype=np.float32).reshape(m, rank)
    return Factors(a, b, None, scale, embedding)


def edit(folder, change=None, config=None):
    """Change the tensors of an adapter by a function, and entries of its config."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if change is not None:
        change(tensors)
    save_file(tensors, file)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))


@pytest.fixture
def folder(tmp_path):
    """An adapter of two Linear layers, whose path is not plain."""
    folder = tmp_path / "ein Ordner é"
    write_adapter(folder, {"one.dense": factors(), "two.dense": factors()})
    return folder


@pytest.fixture(scope="module")
def params():
    return {
        name: {"dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
        for name in ("one", "two")
    }


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_peft_merges(loaded, case):
    stored = arrays(case)
    want = flat(as_tree(stored["base"] | stored["merged"]))
    got = flat(jax.jit(lrk.materialize)(loaded[case].adapted))
    assert got.keys() == want.keys()
    for path in want:
        assert_close(got[path], want[path], "float32")


def bert_logits():
    sizes = {"hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 6}
    config = BertConfig(
        vocab_size=11, num_hidden_layers=1, num_attention_heads=2, **sizes
    )
    model = nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0)))
    apply, pooled = functional(model)[0], functional(model, Bert.pooled)[0]

    def logits(params, ids):
        pool = pooled(params["bert"], apply(params["bert"], ids))
        head = params["classifier"]
        return pool @ head["kernel"] + head["bias"][None]

    return logits


def gpt2_logits():
    sizes = {"n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": 12}
    config = GPT2Config(vocab_size=11, **sizes)
    model = nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(0)))
    return functional(model)[0]


def llama_logits():
    sizes = {"hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 6}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(
        vocab_size=11, num_hidden_layers=1, **sizes, **heads, rms_norm_eps=1e-6
    )
    model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
    return functional(model)[0]


@pytest.mark.parametrize(
    ("case", "make"),
    [("bert", bert_logits), ("gpt2", gpt2_logits), ("llama", llama_logits)],
)
def test_a_lifted_model_gives_the_logits_of_peft(loaded, case, make):
    adapted = loaded[case].adapted
    adapted = adapted["transformer"] if case == "gpt2" else adapted
    stored = arrays(case)[""]
    got = jax.jit(lrk.lift(make()))(adapted, jnp.asarray(stored["x"]))
    assert_close(got, stored["y"], "float32")


@pytest.mark.parametrize("case", CASES)
def test_transform_and_state_are_those_of_the_adapted_tree(loaded, case):
    found = loaded[case]
    base = as_tree(arrays(case)["base"])
    fresh = jax.eval_shape(found.tx.init, jax.random.key(0), base)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (fresh, found.state))
    assert shapes[0] == shapes[1]
    again = jax.eval_shape(found.tx.apply, base, found.state)
    assert jax.tree.structure(again) == jax.tree.structure(found.adapted)


def test_members_of_the_transform_are_plain_adapters(loaded):
    assert sorted(loaded["all_linear"].state.fixed["classifier/kernel"]) == ["scale"]
    ranks = [
        next(iter(member.values()))["a"].shape[-1]
        for member in loaded["bert"].state.trainable[:-1]
    ]
    scales = [
        float(next(iter(member.values()))["scale"])
        for member in loaded["bert"].state.fixed[:-1]
    ]
    assert ranks == [2, 2, 3]
    np.testing.assert_allclose(scales, [3 / 2**0.5, 5 / 2**0.5, 3 / 3**0.5], rtol=1e-6)
    assert sorted(loaded["bert"].state.trainable[-1]) == [
        "classifier/bias",
        "classifier/kernel",
    ]
    assert [list(next(iter(m.values()))) for m in loaded["llama"].state.trainable] == [
        ["a", "b"],
        ["m"],
    ]
    assert loaded["gpt2"].config["lora_alpha"] == 4


def test_names_and_the_config_are_kept(loaded):
    names = loaded["conv"].names
    assert names["0/kernel"] == "0.weight"
    assert loaded["bert"].names["classifier/bias"] == "classifier.bias"
    assert loaded["llama"].names["model/embed_tokens/embedding"] == (
        "model.embed_tokens.weight"
    )


def test_one_leading_name_may_be_lacking_on_either_side(folder, params):
    inner = {"dense": {"kernel": jnp.zeros((4, 3))}}
    write_adapter(folder, {"bert.dense": factors()})
    assert load_peft(folder, inner).names == {"dense/kernel": "bert.dense.weight"}
    wrapped = {"model": {"bert": inner}}
    names = load_peft(folder, wrapped).names
    assert names == {"model/bert/dense/kernel": "bert.dense.weight"}
    with pytest.raises(ValueError, match=r"'bert.dense.weight': the tree has no such"):
        load_peft(folder, {"a": {"b": wrapped}})
    with pytest.raises(ValueError, match=r"'bert.dense.weight': the tree has no such"):
        load_peft(folder, params)


def test_rename_gives_the_path_of_a_name(folder):
    leaf = jnp.zeros((4, 3))
    names = {"one.dense.weight": "x/w", "two.dense.weight": "x/v"}
    found = load_peft(folder, {"x": {"w": leaf, "v": leaf}}, rename=names.get)
    assert found.names == {path: name for name, path in names.items()}
    with pytest.raises(
        ValueError, match=r"'two.dense.weight' and 'one.dense.weight': b"
    ):
        load_peft(folder, {"w": leaf}, rename=dict.fromkeys(ONE_TWO, "w").get)
    with pytest.raises(ValueError, match=r"'one.dense.weight': the tree has no such"):
        load_peft(folder, {"w": leaf}, rename=dict.fromkeys(ONE_TWO, "no/such").get)


def test_axes_fit_other_layouts(folder):
    write_adapter(folder, {"heads": factors(4, 6), "out": factors(4, 3)})
    params = {
        "heads": {"kernel": jnp.zeros((4, 2, 3))},
        "out": {"weight": jnp.zeros((3, 4))},
    }
    names = {"heads.weight": "heads/kernel", "out.weight": "out/weight"}
    axes = {
        "heads/kernel": lrk.Axes((), (0,), (1, 2)),
        "out/weight": lrk.Axes((), (1,), (0,)),
    }
    with pytest.raises(
        ValueError,
        match=r"'heads/kernel' of \(4, 2, 3\): pass its axes=, 'out/weight' of \(3",
    ):
        load_peft(folder, params, rename=names.get)
    got = lrk.materialize(
        load_peft(folder, params, rename=names.get, axes=axes).adapted
    )
    own = factors(4, 6)
    np.testing.assert_allclose(
        got["heads"]["kernel"], (own.b @ own.a).T.reshape(4, 2, 3)
    )
    own = factors(4, 3)
    np.testing.assert_allclose(got["out"]["weight"], own.b @ own.a)
    with pytest.raises(ValueError, match=r"unexpected 'out.weight': the tree has no"):
        load_peft(folder, params)


def test_stacked_layers_are_found_by_their_numbers(tmp_path):
    own = [factors()._replace(m=np.arange(1, 4, dtype="f") + i) for i in range(2)]
    layers = {f"h.{i}.dense": x for i, x in enumerate(own)}
    modules = layers | {"out": factors()._replace(m=own[0].m)}
    write_adapter(tmp_path, modules)
    w = number(2, 4, 3)
    apart = {str(i): {"dense": {"kernel": w[i]}} for i in range(2)}
    out = {"kernel": jnp.ones((4, 3))}
    whole = load_peft(tmp_path, {"h": {"dense": {"kernel": w}}, "out": out}, layers="h")
    want = lrk.materialize(load_peft(tmp_path, {"h": apart, "out": out}).adapted)
    got = lrk.materialize(whole.adapted)
    for i in range(2):
        one, two = got["h"]["dense"]["kernel"][i], want["h"][str(i)]["dense"]["kernel"]
        assert_close(one, two)
    assert whole.state.trainable[0]["h/dense/kernel"]["a"].shape == (2, 4, 2)
    fresh = jax.eval_shape(
        whole.tx.init, jax.random.key(0), {"h": {"dense": {"kernel": w}}, "out": out}
    )
    assert jax.tree.structure(fresh) == jax.tree.structure(whole.state)
    save_peft(tmp_path / "back", whole.adapted, rename=whole.names.get, layers="h")
    name = "adapter_model.safetensors"
    one, two = load_file(tmp_path / name), load_file(tmp_path / "back" / name)
    assert one.keys() == two.keys()
    jax.tree.map(np.testing.assert_array_equal, one, two)
    write_adapter(tmp_path, {**modules, "h.1.dense": factors(scale=2.0)})
    edit(tmp_path, lambda tensors: tensors.update({k: one[k] for k in one if "m" in k}))
    params = {"h": {"dense": {"kernel": w}}, "out": out}
    with pytest.raises(
        ValueError, match=r"'h/dense/kernel': its layers differ in rank"
    ):
        load_peft(tmp_path, params, layers="h")
    with pytest.raises(
        ValueError, match=r"no stacked layers at 'x': expected leaves w"
    ):
        load_peft(tmp_path, params, layers="x")


def number(*shape):
    return jnp.asarray(np.cos(np.arange(np.prod(shape)) ** 2.0).reshape(shape), "f")


def test_an_adapter_goes_on_top_of_another(folder, params):
    once = load_peft(folder, params).adapted
    twice = load_peft(folder, once).adapted
    np.testing.assert_allclose(
        lrk.materialize(twice)["one"]["dense"]["kernel"],
        2 * lrk.materialize(once)["one"]["dense"]["kernel"],
    )


def test_dropout_is_in_the_transform_alone(folder, params):
    found = load_peft(folder, params, dropout=0.5)
    assert lrk.materialize(found.adapted)["one"]["dense"]["kernel"].shape == (4, 3)
    with pytest.raises(TypeError, match="dropout needs a key"):
        found.tx.apply(params, found.state)


def test_every_wrong_key_is_listed_at_once(folder, params):
    head = "base_model.model."

    def change(tensors):
        del tensors[f"{head}one.dense.lora_B.weight"]
        tensors[f"{head}two.dense.lora_A.weight"] = np.zeros((2, 5), np.float32)
        tensors[f"{head}two.dense.lora_magnitude_vector"] = np.zeros(3, np.float32)
        tensors[f"{head}two.dense.lora_B.bias"] = np.zeros(3, np.float32)
        tensors["stray"] = np.zeros(1, np.int8)

    edit(folder, change)
    with pytest.raises(
        ValueError,
        match=r"does not fit: unexpected '.*two.dense.lora_B.bias', 'stray', "
        r"'.*two.dense.lora_magnitude_vector'; not floating 'stray': got I8; missing "
        r"'.*one.dense.lora_B.weight'\. Nothing was loaded",
    ):
        load_peft(folder, params)


def test_shapes_must_fit_the_tree_and_the_config(folder, params):
    small = {"one": {"dense": {"kernel": jnp.zeros((4, 2))}}, "two": params["two"]}
    with pytest.raises(
        ValueError,
        match=r"mis-shaped 'base_model.model.one.dense.lora_A.weight' and B: expected "
        r"\(\(2, 4\), \(2, 2\)\), got \(\(2, 4\), \(3, 2\)\)",
    ):
        load_peft(folder, small)
    integers = {"one": {"dense": {"kernel": jnp.zeros((4, 3), int)}}, **small}
    integers["one"] = {"dense": {"kernel": jnp.zeros((4, 3), int)}}
    with pytest.raises(
        ValueError, match=r"not floating 'one/dense/kernel' in the tree"
    ):
        load_peft(folder, integers | {"two": params["two"]})
    edit(folder, config={"rank_pattern": {"two.dense": 3}})
    with pytest.raises(ValueError, match=r"expected \(3, in\) and \(out, 3\), got \(2"):
        load_peft(folder, params)


def test_the_config_must_name_what_the_file_holds_and_no_more(folder, params):
    edit(folder, config={"target_modules": ["one.dense"]})
    with pytest.raises(ValueError, match=r"two.dense.lora_A.weight': no target module"):
        load_peft(folder, params)
    write_adapter(folder, {"one.dense": factors()})
    edit(folder, config={"target_modules": ["dense"]})
    missing = r"missing 'base_model.model.two.dense.lora_A.weight' \('two/dense/kernel'"
    with pytest.raises(ValueError, match=missing):
        load_peft(folder, params)
    load_peft(folder, params, absent=lrk.matching("^two/"))
    edit(folder, config={"exclude_modules": ["two.dense"]})
    load_peft(folder, params)
    edit(folder, config={"modules_to_save": ["two"], "exclude_modules": None})
    with pytest.raises(ValueError, match=r"missing .*two.dense.(weight|bias)' \('two/"):
        load_peft(folder, params)


def test_whole_modules_fit_or_are_refused(folder):
    params = {
        "head": {"kernel": jnp.ones((3, 3))},
        "dense": {"kernel": jnp.ones((4, 3))},
    }
    head = np.arange(9, dtype=np.float32).reshape(3, 3)
    saved = {"head.weight": head}
    write_adapter(folder, {"dense": factors()}, saved=saved, whole=["head"])
    got = lrk.materialize(load_peft(folder, params).adapted)["head"]["kernel"]
    np.testing.assert_allclose(got, head.T)
    edit(folder, config={"fan_in_fan_out": True})
    with pytest.raises(ValueError, match=r"look alike: pass conv1d="):
        load_peft(folder, params)
    for conv1d, want in ((True, head), (False, head.T)):
        tree = load_peft(folder, params, conv1d=lambda *_, told=conv1d: told).adapted
        np.testing.assert_allclose(lrk.materialize(tree)["head"]["kernel"], want)
    saved = {"head.weight": head[:2]}
    write_adapter(folder, {"dense": factors()}, saved=saved, whole=["head"])
    with pytest.raises(
        ValueError, match=r"head.weight': expected \(3, 3\), got \(2, 3"
    ):
        load_peft(folder, params)
    shapes = jax.eval_shape(lambda: params)
    write_adapter(
        folder, {"dense": factors()}, saved={"head.weight": head}, whole=["head"]
    )
    with pytest.raises(ValueError, match=r"'head/kernel' holds no numbers"):
        load_peft(folder, shapes)


def test_grouped_convolutions_are_refused_by_name(folder):
    a, b = np.ones((4, 6, 3, 3), "f"), np.ones((8, 2, 1, 1), "f")
    write_adapter(folder, {"conv": Factors(a, b, None, 1.0, False)})
    params = {"conv": {"kernel": jnp.zeros((3, 3, 3, 8))}}
    with pytest.raises(ValueError, match=r"grouped '.*conv.lora_A.*of 2 groups, whose"):
        load_peft(folder, params)


def test_a_stored_embedding_must_be_that_of_the_tree():
    base = as_tree(arrays("llama")["base"])
    base["model"]["embed_tokens"]["embedding"] = np.zeros((11, 8), np.float32)
    with pytest.raises(
        ValueError, match=r"not what is at 'model/embed_tokens/embeddin"
    ):
        load_peft(GOLDEN / "llama", base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, r"'peft_type': expected 'LORA', got 'IA3'"),
        ({"lora_bias": True}, r"'lora_bias': True is not supported"),
        ({"future": {"x": 1}}, r"'future': {'x': 1} is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, r"changes the base weights"),
        ({"r": 0}, r"'r': expected a rank of at least 1, got 0"),
        ({"r": True}, r"'r': expected a rank"),
        ({"lora_alpha": 1e400}, r"expected finite numbers"),
        ({"alpha_pattern": {"x": "1"}}, r"expected finite numbers"),
        ({"rank_pattern": {"(": 3}}, r"'rank_pattern': '\(': no regular expression"),
        ({"rank_pattern": {"x": 0}}, r"expected ranks of at least 1"),
        ({"rank_pattern": [1]}, r"'rank_pattern': no object"),
        ({"target_modules": None}, r"'target_modules': neither a list"),
        ({"target_modules": "(a+)+$"}, r"may match for ever"),
        ({"target_modules": ".*" * 9}, r"too many repeats and choices"),
        ({"bias": 1}, r"'bias': expected none, all or lora_only, got 1"),
        ({"use_dora": "yes"}, r"'use_dora': expected true or false, got 'yes'"),
    ],
)
def test_configs_of_other_adapters_are_refused(folder, params, config, message):
    edit(folder, config=config)
    with pytest.raises(ValueError, match=message):
        load_peft(folder, params)


def test_absent_files_and_pickles_are_refused(tmp_path, folder, params):
    with pytest.raises(
        FileNotFoundError, match=r"adapter_config.json': expected a JSON"
    ):
        load_peft(tmp_path, params)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds a pickle, .* which is never loaded"):
        load_peft(folder, params)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file at '.*adapter_model.safeten"):
        load_peft(folder, params)
    write_adapter(folder, {"one.dense": factors()})
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"missing every 'lora_A' and 'lora_B'"):
        load_peft(folder, params)
