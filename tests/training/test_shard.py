"""`shard` and `state_shardings` by their specs: nothing is compiled here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from lowrank import training
from lowrank.models import Bert, BertConfig, functional
from tests.network import numbers
from tests.untyped import untyped

AUTO = AxisType.Auto
MESH = jax.make_mesh((2,), ("model",), axis_types=(AUTO,))
KEY = jax.random.key(0)


def placed(params, *rules):
    return training.shard(params, MESH, *rules)


def specs(tree):
    return jax.tree.map(lambda x: tuple(x.sharding.spec), tree)


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_the_first_rule_that_is_found_decides_and_dicts_add_up():
    mesh = jax.make_mesh((1, 2), ("data", "model"), axis_types=(AUTO,) * 2)
    params = {"q": {"kernel": abstract(4, 6)}, "up": abstract(4, 6), "step": 3}
    rules = {"q": P(None, "model"), "kernel|up": P("model")}
    assert specs(training.shard(params, mesh, rules)["q"]["kernel"]) == (None, "model")
    both = training.shard(params, mesh, rules, {"": P("data")})
    assert specs(both["q"]["kernel"]) == ("data", "model")
    assert specs(both["up"]) == (("model", "data"), None)
    assert both["step"] == 3


def test_arrays_move_and_keep_their_numbers():
    params = {"a": jnp.arange(4.0), "b": numbers(1, 4, 3), "c": np.arange(2)}
    found = placed(params, {"a|b": P("model"), "": P()})
    for name, leaf in params.items():
        np.testing.assert_array_equal(found[name], leaf)
    assert specs(found) == {"a": ("model",), "b": ("model", None), "c": (None,)}
    assert found["b"].addressable_shards[1].data.shape == (2, 3)


def bert():
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(**sizes, max_position_embeddings=6)
    return nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0)))


def test_rule_sets_know_the_names_of_the_encoder():
    _, params = functional(bert())
    split = placed(params, training.tensor_parallel("model"))
    layer = specs(split["encoder"]["layer"]["0"])
    column = {"kernel": (None, "model"), "bias": ("model",)}
    row = {"kernel": ("model", None), "bias": (None,)}
    assert layer["attention"]["self"] == dict.fromkeys(
        ("query", "key", "value"), column
    )
    assert layer["intermediate"]["dense"] == column
    assert layer["output"]["dense"] == layer["attention"]["output"]["dense"] == row
    words = split["embeddings"]["word_embeddings"]["embedding"]
    assert specs(words) == ("model", None)
    assert specs(split["pooler"]["dense"]["kernel"]) == (None, None)
    whole = placed(params, training.fsdp("model"))
    halves = [x for x in jax.tree.leaves(whole) if x.ndim == 2]
    assert all("model" in x.sharding.spec for x in halves)


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("model/layers/0/self_attn/k_proj/kernel", (None, "model")),
        ("model/layers/0/self_attn/o_proj/kernel", ("model", None)),
        ("model/layers/0/mlp/gate_proj/kernel", (None, "model")),
        ("model/layers/1/mlp/down_proj/kernel", ("model", None)),
        ("model/embed_tokens/embedding", ("model", None)),
        ("lm_head/kernel", (None, "model")),
        ("h/0/attn/c_attn/kernel", (None, "model")),
        ("h/0/mlp/c_proj/kernel", ("model", None)),
        ("encoder/block/0/layer/0/SelfAttention/q/kernel", (None, "model")),
        ("encoder/block/0/layer/0/SelfAttention/o/kernel", ("model", None)),
        ("decoder/block/0/layer/2/DenseReluDense/wi_0/kernel", (None, "model")),
        ("decoder/block/0/layer/2/DenseReluDense/wo/kernel", ("model", None)),
        ("layers/0/kernel", (None, "model")),
        ("layers/1/kernel", ("model", None)),
        ("model/layers/self_attn/k_proj/kernel", (None, None, "model")),
        ("model/layers/mlp/down_proj/kernel", (None, "model", None)),
        ("h/attn/c_attn/kernel", (None, None, "model")),
        ("encoder/layer/0/attention/attention/query/kernel", (None, "model")),
        ("encoder/layer/0/attention/output/dense/kernel", ("model", None)),
    ],
)
def test_rule_sets_know_the_names_of_checkpoints(path, spec):
    params = {path: abstract(*(4,) * len(spec))}
    assert specs(placed(params, training.tensor_parallel("model")))[path] == spec
    whole = specs(placed(params, training.fsdp("model")))[path]
    assert "model" in whole[-2:]
    assert len(whole) == 2 or whole[0] is None


def test_small_leaves_and_convolutions_are_whole():
    params = {
        "embeddings": {
            "cls_token": abstract(1, 1, 4),
            "position_embeddings": abstract(1, 3, 4),
            "patch_embeddings": {"projection": {"kernel": abstract(4, 4, 3, 4)}},
        },
        "conv1": {"kernel": abstract(5, 5, 1, 6), "bias": abstract(6)},
        "layernorm_before": {"scale": abstract(4), "bias": abstract(4)},
        "model": {"layers": {"input_layernorm": {"scale": abstract(3, 4)}}},
    }
    for rules in (training.fsdp("model"), training.tensor_parallel("model")):
        leaves = jax.tree.leaves(placed(params, rules))
        assert all(x.sharding.is_fully_replicated for x in leaves)


def test_what_does_not_fit_is_named_at_once():
    params = {"odd": abstract(3, 4), "thin": abstract(4), "new": abstract(2, 2)}
    params |= {"axis": abstract(2, 2), "twice": abstract(2, 2)}
    rules = {"odd": P("model"), "thin": P(None, "model"), "axis": P("data")}
    rules |= {"twice": P("model", "model")}
    message = (
        r"'axis' of shape \(2, 2\): the mesh lacks \['data'\]; no rule for 'new' of "
        r"shape \(2, 2\); 'odd' of shape \(3, 4\) does not divide into \(2, 1\) parts; "
        r"'thin' of shape \(4,\) has fewer axes than .*; 'twice' .* an axis twice"
    )
    with pytest.raises(ValueError, match=message):
        placed(params, rules)


def test_refuses_rules_meshes_and_operators():
    with (
        untyped(),
        pytest.raises(TypeError, match="expected dicts of rules, got tuple"),
    ):
        placed({"w": abstract(2)}, ("w", P()))
    with pytest.raises(TypeError, match="got none"):
        placed({"w": abstract(2)})
    explicit = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Explicit,))
    with pytest.raises(
        ValueError, match=r"a mesh of Auto axes, got 'model' is Explicit"
    ):
        training.shard({"w": abstract(2)}, explicit, {"": P()})
    op = lrk.Delta(jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="operators at 'w'"):
        placed({"w": op}, {"": P()})


BASE = {"kernel": abstract(4, 6), "stack": abstract(2, 4, 6)}
AXES = {"stack": lrk.Axes(stack=(0,), inputs=(1,), outputs=(2,))}
COLUMN = {"kernel": P(None, "model"), "stack": P("model")}


def following(tx, **options):
    params = placed(BASE, COLUMN)
    state = jax.eval_shape(tx.init, KEY, params)
    if options:
        state = jax.eval_shape(lambda s: lrk.stack([s, s]), state)
    found = training.state_shardings(tx, params, state, **options)
    return jax.tree.map(lambda s: tuple(s.spec), found)


def test_a_state_lies_where_its_weights_lie():
    tx = lrk.chain(
        lrk.lora(2, axes=AXES, select=lrk.matching("")),
        lrk.dora(1),
        lrk.full(select=lrk.matching("kernel")),
    )
    lora, (low, lengths), full = following(tx).trainable
    assert lora["kernel"] == {"a": (None, None), "b": (None, "model")}
    assert lora["stack"] == {"a": ("model", None, None), "b": ("model", None, None)}
    assert low["kernel"] == lora["kernel"]
    assert lengths["kernel"] == {"m": ("model",)}
    assert full["kernel"] == {"d": (None, "model")}


def test_a_stack_of_states_has_the_tasks_in_front():
    found = following(lrk.lora(2), tasks="model")
    whole = {"a": ("model", None, None), "b": ("model", None, None)}
    assert found.trainable["kernel"] == whole  # no axis of the mesh splits twice
    assert found.fixed["kernel"] == {"scale": ("model",)}


def test_what_is_worked_up_first_is_whole_on_every_device():
    found = following(lrk.lori(2))
    assert found.trainable["kernel"]["b"] == (None, "model")
    assert set(found.fixed["kernel"].values()) <= {(), (None,), (None, None)}
    device = lrk.rram.Device(p_lrs=0.1)
    chip = lrk.rram.crossbar(device, select=lrk.matching("kernel"))
    assert {(), *jax.tree.leaves(following(chip), is_leaf=_is_spec)} == {()}


def _is_spec(x):
    return isinstance(x, tuple) and not isinstance(x, lrk.State)


def test_state_shardings_refuses_parameters_that_lie_nowhere():
    tx = lrk.lora(2)
    state = jax.eval_shape(tx.init, KEY, {"kernel": abstract(4, 6)})
    with pytest.raises(ValueError, match="no parameter lies on a mesh"):
        training.state_shardings(tx, {"kernel": abstract(4, 6)}, state)
    params = placed({"kernel": abstract(4, 6)}, {"": P()})
    with pytest.raises(ValueError, match=r"the mesh lacks \['task'\]"):
        training.state_shardings(tx, params, state, tasks="task")
