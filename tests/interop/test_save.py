"""Adapted trees as PEFT directories: what is written, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lowrank as lrk
from lowrank.interop import load_peft, parameter_name, save_peft
from lowrank.operators import Magnitude
from tests.interop.trees import arrays, flat, load

KERNELS = lrk.matching("kernel$")


@pytest.fixture(scope="module")
def params():
    def leaf(*shape):
        return jnp.asarray(np.cos(np.arange(np.prod(shape)) ** 2.0).reshape(shape), "f")

    return {
        "one": {"kernel": leaf(4, 3), "bias": leaf(3)},
        "two": {"kernel": leaf(4, 3), "bias": leaf(3)},
        "head": {"kernel": leaf(3, 2)},
    }


@pytest.fixture(scope="module")
def pair(params):
    """Two trained states of LoRA on the first two kernels, as adapted trees."""
    tx = lrk.lora(2, scale=1.5, select=lrk.matching("(one|two)/kernel"))
    state = tx.init(jax.random.key(0), params)

    def moved(by):
        trained = jax.tree.map(lambda x: x + by, state.trainable)
        return tx.apply(params, state._replace(trainable=trained))

    return moved(0.3), moved(-0.2)


def scattered(*shape):
    return jnp.cos(jnp.arange(np.prod(shape), dtype=jnp.float32) ** 2).reshape(shape)


def written(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def assert_same(one, two):
    one, two = (flat(jax.jit(lrk.materialize)(tree)) for tree in (one, two))
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=2e-5, atol=1e-5)


def test_ranks_and_scales_may_differ_by_leaf(params, pair, tmp_path):
    more = lrk.lora(1, scale=0.1, init_b=jax.nn.initializers.ones, select=KERNELS)
    tree = more.apply(pair[0], more.init(jax.random.key(1), pair[0]))
    tree = {**tree, "two": pair[1]["two"]}
    save_peft(tmp_path, tree, config={"task_type": "CAUSAL_LM"})
    config = written(tmp_path)
    assert config["target_modules"] == ["head", "one", "two"]
    assert (config["r"], config["rank_pattern"]) == (1, {"^one": 3, "^two": 2})
    assert (config["lora_alpha"], config["alpha_pattern"]) == (
        3,
        {"^head": pytest.approx(0.1)},
    )
    assert config["task_type"] == "CAUSAL_LM"
    assert_same(load_peft(tmp_path, params).adapted, tree)


@pytest.mark.parametrize("store_a", [True, False])
def test_sparse_lori_is_written_as_a_plain_lora(params, tmp_path, store_a):
    masks = {f"{n}/kernel": np.eye(2, 3, dtype=int) for n in ("one", "two")}
    select = lrk.matching("(one|two)/kernel")
    tx = lrk.lori(2, alpha=4, mask=masks, select=select, store_a=store_a)
    state = tx.init(jax.random.key(0), params)
    trained = jax.tree.map(lambda x: x + 1, state.trainable)
    tree = tx.apply(params, state._replace(trainable=trained))
    save_peft(tmp_path, tree)
    b = load_file(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(b["base_model.model.one.lora_B.weight"], np.eye(3, 2))
    assert (written(tmp_path)["r"], written(tmp_path)["lora_alpha"]) == (2, 4)
    assert_same(load_peft(tmp_path, params).adapted, tree)


def test_merged_trees_are_written(params, pair, tmp_path):
    merged = lrk.merging.concat([pair[0], {**pair[1], "two": params["two"]}], [0.5, 2])
    assert merged["two"]["kernel"].rank == 2
    short = {**merged, "one": {**merged["one"], "kernel": pair[0]["one"]["kernel"]}}
    save_peft(tmp_path, short)
    assert_same(load_peft(tmp_path, params).adapted, short)
    both = lrk.Delta(pair[0]["one"]["kernel"], jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"'one/kernel' \(a full .* Nothing was writt"):
        save_peft(tmp_path, {"one": {"kernel": both}})


def test_lengths_heads_and_biases_are_written(params, tmp_path):
    head = lrk.full(select=lrk.matching("head|one/bias"))
    tx = lrk.chain(lrk.dora(2, select=lrk.matching("(one|two)/kernel")), head)
    state = tx.init(jax.random.key(0), params)
    trained = jax.tree.map(lambda x: x + 0.5, state.trainable)
    tree = tx.apply(params, state._replace(trainable=trained))
    save_peft(tmp_path, tree)
    config = written(tmp_path)
    assert config["modules_to_save"] == ["head"]
    assert (config["bias"], config["use_dora"]) == ("all", True)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert {n for n in names if "bias" in n} == {
        f"base_model.model.{m}.base_layer.bias" for m in ("one", "two")
    }
    assert_same(load_peft(tmp_path, params).adapted, tree)


def test_renamed_and_half_precision_leaves_come_back(params, tmp_path):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"one": params["one"]})
    tx = lrk.lora(2, init_b=jax.nn.initializers.ones)
    state = tx.init(jax.random.key(0), half)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.trainable)
    tree = tx.apply(half, state._replace(trainable=low))
    save_peft(tmp_path, tree, rename=lambda path: "bert." + parameter_name(path))
    assert written(tmp_path)["target_modules"] == ["bert.one"]
    found = load_peft(tmp_path, half)
    assert found.state.trainable["one/kernel"]["a"].dtype == jnp.float32
    own, low = found.state.trainable["one/kernel"], low["one/kernel"]
    jax.tree.map(np.testing.assert_array_equal, own, low)
    other = tmp_path / "again"
    save_peft(other, found.adapted, rename=found.names.get)
    assert written(other)["target_modules"] == ["bert.one"]


def test_the_golden_adapters_are_written_as_they_were_read(tmp_path):
    for case in ("gpt2", "conv", "llama"):
        config = {"fan_in_fan_out": case == "gpt2"}
        found = load(case)
        conv1d = lrk.matching("c_attn/kernel$") if case == "gpt2" else None
        save_peft(tmp_path / case, found.adapted, config=config, conv1d=conv1d)
        for part, (one, two) in {
            "state": (found.state, load(case, tmp_path / case).state)
        }.items():
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), one, two
            )
            assert jax.tree.structure(one) == jax.tree.structure(two), part
    base = flat(arrays("gpt2")["base"])
    tensors = load_file(tmp_path / "gpt2/adapter_model.safetensors")
    biases = [name for name in base if name.endswith("bias")]
    assert sum(name.endswith("bias") for name in tensors) == len(biases)


def test_dense_general_is_flattened_and_convolutions_are_told(tmp_path):
    params = {"heads": {"kernel": jnp.zeros((2, 3, 4))}}
    axes = {"heads/kernel": lrk.Axes((), (0, 1), (2,))}
    tx = lrk.lora(2, axes=axes, init_b=jax.nn.initializers.ones, select=KERNELS)
    tree = tx.apply(params, tx.init(jax.random.key(0), params))
    shapes = []
    for conv in (lrk.interop.is_conv, lrk.neither(lrk.interop.is_conv)):
        save_peft(tmp_path, tree, conv=conv)
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        shapes.append(tensors["base_model.model.heads.lora_A.weight"].shape)
        assert_same(load_peft(tmp_path, params, axes=axes).adapted, tree)
    assert shapes == [(2, 3, 2), (2, 6)]


def test_groups_are_told_and_written_as_peft_has_them(tmp_path):
    kernel = scattered(3, 3, 2, 6)
    a, b = scattered(3, 3, 2, 2), scattered(2, 6)
    op = lrk.LowRank(kernel, a, b, 1.5, a_dims=(0, 1, 2), b_dims=(3,))
    tree = {"conv": {"kernel": op}}
    save_peft(tmp_path, tree, groups={"conv/kernel": 2})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    got_a = tensors["base_model.model.conv.lora_A.weight"]
    got_b = tensors["base_model.model.conv.lora_B.weight"]
    assert (got_a.shape, got_b.shape) == ((4, 4, 3, 3), (6, 2, 1, 1))
    config = written(tmp_path)
    assert (config["r"], config["lora_alpha"]) == (4, 6)
    x, axes = scattered(1, 5, 5, 4), ("NHWC", "HWIO", "NHWC")

    def conv(x, w, groups=1):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=axes, feature_group_count=groups
        )

    as_hwio = [jnp.transpose(w, (2, 3, 1, 0)) for w in (got_a, got_b)]
    got = 1.5 * conv(conv(x, as_hwio[0]), as_hwio[1], groups=2)
    want = conv(x, op.delta(), groups=2)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_groups_that_do_not_fit_are_named(pair, tmp_path):
    kernel = jnp.zeros((3, 2, 6))
    op = lrk.LowRank(
        kernel, jnp.ones((3, 2, 1)), jnp.ones((1, 6)), a_dims=(0, 1), b_dims=(2,)
    )
    long = Magnitude(op, jnp.ones(6), dims=(2,))
    one = pair[0]["one"]
    for leaf, path, groups, message in (
        (op, "x/kernel", 4, r"'x/kernel' \(4 groups of 6 outputs"),
        (op, "x/kernel", 0, r"'x/kernel' \(0 groups of"),
        (op, "y/kernel", 2, r"'y/kernel' \(in groups=, but not adapted"),
        (one["kernel"], "x/kernel", 3, r"3 groups of what is no convolution"),
        (long, "x/kernel", 2, r"2 groups with lengths, which PEFT"),
    ):
        with pytest.raises(ValueError, match=message):
            save_peft(tmp_path, {"x": {"kernel": leaf}}, groups={path: groups})


def test_whole_kernels_of_conv1d_are_told_and_not_transposed(params, pair, tmp_path):
    delta = lrk.Delta(params["two"]["kernel"], jnp.ones((4, 3)))
    tree = {"one": pair[0]["one"], "two": {"kernel": delta}}
    config = {"fan_in_fan_out": True}
    with pytest.raises(
        ValueError, match=r"'two/kernel' \(whole, of a Linear or a Conv"
    ):
        save_peft(tmp_path, tree, config=config)
    for conv1d, shape in (("two", (4, 3)), ("none", (3, 4))):
        select = lrk.matching(conv1d)
        save_peft(tmp_path, tree, config=config, conv1d=select)
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        assert tensors["base_model.model.two.weight"].shape == shape
        base = {"one": params["one"], "two": {"kernel": params["two"]["kernel"]}}
        assert_same(load_peft(tmp_path, base, conv1d=select).adapted, tree)


def test_what_no_lora_stands_for_is_listed(params, pair, tmp_path):
    kernel = pair[0]["one"]["kernel"]
    stacked = lrk.LowRank(
        jnp.zeros((2, 4, 3)), jnp.ones((2, 4, 1)), jnp.ones((2, 1, 3))
    )
    hydra = lrk.hydra(1, 2, select=KERNELS)
    routed = hydra.apply(params, hydra.init(jax.random.key(0), params))
    beside = kernel.replace(w=Magnitude(params["one"]["kernel"], jnp.ones(3)))
    image = jnp.zeros((3, 2, 4))
    wide = lrk.LowRank(
        image, jnp.ones((2, 1)), jnp.ones((1, 3, 4)), a_dims=(1,), b_dims=(0, 2)
    )
    tree = {
        "stack": {"kernel": stacked},
        "hydra": routed["one"],
        "beside": {"kernel": beside},
        "image": {"kernel": wide},
        "twice": {"kernel": kernel, "scale": kernel},
        "length": {"kernel": Magnitude(params["one"]["kernel"], jnp.ones(3))},
        "root": lrk.Delta(jnp.ones(3), jnp.ones(3)),
    }
    with pytest.raises(ValueError, match="cannot write") as error:
        save_peft(tmp_path, tree)
    for part in (
        "'hydra/kernel' (Routed)",
        "'beside/kernel' (Magnitude)",
        "'length/kernel' (lengths without a low-rank term)",
        "'twice/kernel', 'twice/scale': all are 'twice.weight'",
        "'stack/kernel' (stacked layers: pass layers=)",
        "'image/kernel' (a convolution whose `a` does not hold [*kernel, in])",
        "'root' (a parameter of the root)",
    ):
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no leaf has a low-rank term"):
        save_peft(tmp_path, params)
    mixed = {"one": {"kernel": Magnitude(kernel, jnp.ones(3))}, "two": pair[0]["two"]}
    with pytest.raises(ValueError, match=r"trained lengths \(DoRA\) and some not"):
        save_peft(tmp_path, mixed)
    with pytest.raises(ValueError, match=r"'x/w' is 'x.w' there: no weight of a modul"):
        save_peft(tmp_path, {"x": {"w": kernel}})
    head = {"x": {"kernel": kernel, "scale": lrk.Delta(jnp.ones(3), jnp.ones(3))}}
    with pytest.raises(ValueError, match=r"'x' \(low-rank and a full delta in one mod"):
        save_peft(tmp_path, head, rename={"x/scale": "x.other"}.get)


def test_modules_that_end_alike_are_told_apart(tmp_path):
    leaf = jnp.zeros((4, 3))
    params = {"dense": {"kernel": leaf}, "head": {"dense": {"kernel": leaf + 1}}}
    tx = lrk.lora(2, select=lrk.matching("^dense"))
    tree = tx.apply(params, tx.init(jax.random.key(0), params))
    save_peft(tmp_path, tree)
    assert written(tmp_path)["target_modules"] == "dense"
    assert load_peft(tmp_path, params).names == {"dense/kernel": "dense.weight"}
    op = tree["dense"]["kernel"]
    with pytest.raises(ValueError, match=r"'x/kernel' \(a scale of inf\)"):
        save_peft(tmp_path, {"x": {"kernel": op.replace(scale=jnp.float32(jnp.inf))}})


class Whole(lrk.Operator):
    """An operator that cannot be taken apart."""

    fields = ("w",)

    @property
    def aval(self):
        return jax.typeof(self.w)


def test_stacked_leaves_that_cannot_be_taken_apart_are_named(tmp_path):
    tree = {"h": {"kernel": Whole._make(w=jnp.ones((2, 3)))}}
    with pytest.raises(
        ValueError, match=r"cannot take 'h/kernel' \(Whole\) apart into"
    ):
        save_peft(tmp_path, tree, layers="h")


def test_a_start_from_the_weight_is_written_over_the_unchanged_base(params, tmp_path):
    tx = lrk.pissa(1, select=lrk.matching("one/kernel"))
    state = tx.init(jax.random.key(0), params)
    trained = jax.tree.map(lambda x: x + 0.5, state.trainable)
    tree = tx.apply(params, state._replace(trainable=trained))
    save_peft(tmp_path, tree)
    assert written(tmp_path)["r"] == 2
    assert_same(load_peft(tmp_path, params).adapted, tree)


def test_entries_of_the_config_that_follow_are_refused(pair, tmp_path):
    with pytest.raises(ValueError, match="config holds lora_alpha, r, which follow"):
        save_peft(tmp_path, pair[0], config={"r": 3, "lora_alpha": 1})
    with pytest.raises(TypeError, match=r"no numbers at 'one/kernel', .*outside jit"):
        jax.eval_shape(lambda tree: save_peft(tmp_path, tree), pair[0])


def test_dropout_is_kept_in_the_config(params, tmp_path):
    tx = lrk.lora(2, dropout=0.25, select=KERNELS)
    state = tx.init(jax.random.key(0), params)
    save_peft(tmp_path, tx.apply(params, state, key=jax.random.key(0)))
    assert written(tmp_path)["lora_dropout"] == 0.25
