"""Prompts and prefixes in encoders: PEFT's values, masks, refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowrank as lrk
from lowrank.models import (
    Bert,
    BertConfig,
    Roberta,
    RobertaConfig,
    ViT,
    ViTConfig,
    functional,
)
from lowrank.models._checkpoint import file_key
from tests.network import numbers
from tests.tolerances import assert_close

CONFIG = BertConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
    layer_norm_eps=0.1,
)
POSITIONS = ("embeddings", "position_embeddings", "embedding")
WORDS = lrk.matching(r"word_embeddings/embedding$")
ATTENTION = lrk.matching(r"(key|value)/kernel$")
PADDED = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)


def bert(**kwargs):
    """An encoder of shapes alone: nothing is drawn."""
    return nnx.eval_shape(lambda: Bert(CONFIG, rngs=nnx.Rngs(0), **kwargs))


def filled(tree, arrays, path=""):
    """The encoder's tree with the arrays of the file."""
    if isinstance(tree, dict):
        return {k: filled(v, arrays, f"{path}{k}/") for k, v in tree.items()}
    value = arrays[f"bert.{file_key(path[:-1])}"]
    return jnp.asarray(value.T if path.endswith("kernel/") else value)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "prompts.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def apply():
    return functional(bert())[0]


@pytest.fixture(scope="module")
def params(golden):
    return filled(functional(bert())[1], golden)


def value_and_grad(apply, tx, params, state, golden):
    """States of the tokens, and the gradient that PEFT was asked for."""
    ids, mask = jnp.asarray(golden["ids"]), jnp.asarray(golden["mask"])

    def objective(trainable):
        tree = tx.apply(params, lrk.State(trainable, state.fixed))
        hidden = apply(tree, ids, mask)
        return jnp.sin(hidden[:, :2]).sum(), hidden

    grads, hidden = jax.jit(jax.grad(objective, has_aux=True))(state.trainable)
    return hidden[PADDED], grads


def with_rows(tx, params, rows):
    """A state with given rows for each path."""
    shapes = jax.eval_shape(tx.init, jax.random.key(0), params)
    trainable = {p: {"rows": jnp.asarray(rows(p))} for p in shapes.trainable}
    return lrk.State(trainable, {p: {"scale": jnp.float32(1)} for p in trainable})


def test_prompt_tuning_is_that_of_peft(golden, apply, params):
    tx = lrk.prompt(3, select=WORDS)
    state = with_rows(tx, params, lambda _: golden["prompt.rows"])
    hidden, grads = value_and_grad(apply, tx, params, state, golden)
    assert_close(hidden, golden["prompt.hidden"][PADDED])
    (own,) = grads.values()
    assert_close(own["rows"], golden["prompt.grad"])


def test_prefix_tuning_is_that_of_peft_but_for_the_positions(golden, params):
    """PEFT counts the prefix as past positions: here the table is moved instead.

    The layers are run again in the backward pass, so that `remat` is seen to read it.
    """
    apply, _ = functional(bert(remat=True))
    tx = lrk.prefix(3, select=ATTENTION)

    def own(arrays, path):
        layer, kind = int(path.split("/")[2]), "value" in path
        return arrays.reshape(3, 2, 2, 8)[:, layer, int(kind)]

    table = params["embeddings"]["position_embeddings"]["embedding"]
    embeddings = dict(params["embeddings"])
    embeddings["position_embeddings"] = {"embedding": jnp.roll(table, -3, 0)}
    moved = params | {"embeddings": embeddings}
    state = with_rows(tx, moved, lambda path: own(golden["prefix.rows"], path))
    hidden, grads = value_and_grad(apply, tx, moved, state, golden)
    assert_close(hidden, golden["prefix.hidden"][PADDED])
    want = {path: {"rows": own(golden["prefix.grad"], path)} for path in grads}
    assert_close(grads, want)


def test_without_further_leaves_the_program_is_the_same(params, apply):
    paths = {path for path, _ in _leaves(params)}
    assert not any(name in path for path in paths for name in ("prefix", "prompt"))
    lines = str(jax.make_jaxpr(apply)(params, jnp.zeros((2, 4), int)))
    assert "concatenate" not in lines
    assert "pad" not in lines


def _leaves(tree):
    flat = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in flat]


def test_refuses_what_the_model_does_not_read(apply, params):
    ids = jnp.zeros((2, 4), int)
    shapes = jax.eval_shape(lambda p: p, params)

    def run(tx):
        state = jax.eval_shape(tx.init, jax.random.key(0), shapes)
        return jax.eval_shape(lambda p, s: apply(tx.apply(p, s), ids), shapes, state)

    assert run(lrk.prompt(4, select=WORDS)).shape == (2, 4, 8)
    query = lrk.matching(r"0/attention/self/query/kernel$")
    message = r"unexpected 'encoder/layer/0/attention/self/query/prefix'"
    with pytest.raises(ValueError, match=message):
        run(lrk.prefix(2, select=query))
    with pytest.raises(ValueError, match=r"at most 3, got \(2, 4\).*a prompt takes"):
        run(lrk.prompt(5, select=WORDS))
    keys = lrk.prefix(2, select=lrk.matching(r"key/kernel$"))
    message = "the prefix of the keys has 2 rows, that of the values 0"
    with pytest.raises(ValueError, match=message):
        run(keys)


def with_numbers(shapes):
    """A tree of these shapes, with numbers that are not drawn."""
    leaves, treedef = jax.tree.flatten(shapes)
    drawn = [jnp.asarray(numbers(i, *x.shape)) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(treedef, drawn)


SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "layer_norm_eps": 0.1,
}


def test_roberta_reads_a_prompt_of_words_as_these_words_beside_prefixes():
    config = RobertaConfig(vocab_size=11, max_position_embeddings=9, **SMALL)
    model = nnx.eval_shape(lambda: Roberta(config, rngs=nnx.Rngs(0)))
    apply, shapes = functional(model)
    tx = lrk.prefix(3, select=ATTENTION)
    state = jax.eval_shape(tx.init, jax.random.key(0), shapes)
    tree = with_numbers(jax.eval_shape(tx.apply, shapes, state))
    words, pad = jnp.array([7, 3]), config.pad_token_id
    ids = jnp.array([[4, 5, 6, 2], [8, 9, pad, pad]])
    table = tree["embeddings"]["word_embeddings"]["embedding"]
    prompted = lrk.prompt(2, select=WORDS).apply(
        tree,
        lrk.State(
            {"embeddings/word_embeddings/embedding": {"rows": table[words]}},
            {"embeddings/word_embeddings/embedding": {"scale": jnp.float32(1)}},
        ),
    )
    longer = jnp.concatenate([jnp.broadcast_to(words, (2, 2)), ids], axis=1)

    @jax.jit
    def both(tree, prompted):
        want = apply(tree, longer, longer != pad)[:, 2:]
        return apply(prompted, ids, ids != pad), want

    got, want = both(tree, prompted)
    assert_close(got[ids != pad], want[ids != pad])


def test_vit_attends_to_prefixes_as_the_equation_says():
    config = ViTConfig(image_size=4, patch_size=2, **SMALL)
    model = nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0)))

    def attention(model, hidden):
        return model.encoder.layer[0].attention.attention(hidden, None)

    apply, shapes = functional(model, attention)
    tx = lrk.prefix(3, select=ATTENTION)
    state = jax.eval_shape(tx.init, jax.random.key(0), shapes)
    tree = with_numbers(jax.eval_shape(tx.apply, shapes, state))
    hidden = jnp.asarray(numbers(90, 2, 5, 8))
    layer = tree["encoder"]["layer"]["0"]["attention"]["attention"]
    q, k, v = (_projected(layer[name], hidden) for name in ("query", "key", "value"))
    want = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(q[..., head] @ np.swapaxes(k[..., head], 1, 2) / 2)
        want.append(scores / scores.sum(-1, keepdims=True) @ v[..., head])
    assert_close(apply(tree, hidden), np.concatenate(want, -1).astype("f4"))
    plain = lrk.prompt(2, select=lrk.matching(r"cls_token$"))
    with pytest.raises(ValueError, match=r"prompt: .*'embeddings/cls_token'"):
        jax.eval_shape(plain.init, jax.random.key(0), shapes)


def _projected(layer, hidden):
    """`[P; x W + b]` in float64."""
    own = {name: np.asarray(x, np.float64) for name, x in layer.items()}
    y = np.asarray(hidden, np.float64) @ own["kernel"] + own["bias"]
    rows = own.get("prefix", np.zeros((0, 8)))
    return np.concatenate([np.broadcast_to(rows, (2, *rows.shape)), y], axis=1)


class Scores(nnx.Module):
    """A module of one's own: its rows are optional, also within a list."""

    optional_params = ("rows",)
    rows = None

    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        y = self.dense(x)
        return y if self.rows is None else y + self.rows[...].sum(0)[None]


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.parts = nnx.List([Scores(rngs), Scores(rngs)])

    def __call__(self, x):
        return self.parts[0](x) - self.parts[1](x)


def test_any_module_may_have_optional_parameters():
    model = Pair(nnx.Rngs(0))
    apply, params = functional(model)
    x, rows = jnp.ones((1, 3)), jnp.ones((4, 2))
    parts = params["parts"]
    more = {"parts": parts | {"1": parts["1"] | {"rows": rows}}}
    assert_close(apply(params, x) - apply(more, x), jnp.full((1, 2), 4.0))
    assert model.parts[1].rows is None
