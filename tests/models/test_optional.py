"""Prompts and prefixes in the BERT encoder: PEFT's values, masks, refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowrank as lrk
from lowrank.models import Bert, BertConfig, functional
from lowrank.models._checkpoint import file_key
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
