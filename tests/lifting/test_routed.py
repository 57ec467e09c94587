"""Models that mix examples are refused; others run with an adapter for each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import lowrank as lrk
from lowrank import models
from tests.network import numbers
from tests.tolerances import assert_close

PARAMS = {"w": jnp.asarray(numbers(1, 6, 4)), "head": jnp.asarray(numbers(2, 4, 4))}
X = jnp.asarray(numbers(3, 4, 5, 6))
ROWS = X[:, 0]
IDS = np.arange(20).reshape(4, 5) % 6


def batch_norm(params, x):
    h = x @ params["w"]
    return (h - h.mean(0, keepdims=True)) * lax.rsqrt(h.var(0, keepdims=True) + 1e-5)


def module(made, call=lambda module, x: module(x)):
    """A module of flax as a function of its parameters, and these."""
    graph, params = nnx.split(made)
    return (lambda params, x: call(nnx.merge(graph, params), x)), params


def norm_of(running):
    made = nnx.BatchNorm(6, use_running_average=running, rngs=nnx.Rngs(0))
    return module(made)


def contrastive(params, x):
    z = x @ params["w"]
    return jnp.diagonal(jax.nn.log_softmax(z @ z.T))


def through_examples(params, x):
    def go(carry, row):
        return carry + row @ params["w"], carry

    return lax.scan(go, jnp.zeros(4), x)[1]


def until_all(params, x):
    return lax.while_loop(lambda h: (h < 9).any(), lambda h: h + 1, x @ params["w"])


def branch_on_one(params, x):
    return lax.cond(x.sum() > 0, lambda h: h, lambda h: -h, x @ params["w"])


def summed_tokens(params, x):
    flat = jnp.stack([x, x], 1).reshape(-1, 6) @ params["w"]
    return (flat - flat.mean(0)[None]).reshape(4, 2, 4)


def jitted(params, x):
    return jax.jit(jax.checkpoint(batch_norm))(params, x)


def dropped(_, x):
    return x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)


MIXED = {
    "batch norm": (batch_norm, r"reduce_sum \(test_routed.py:\d+\): it works along"),
    "in jit and remat": (jitted, r"reduce_sum \(test_routed.py:\d+\): it works along"),
    "contrastive": (contrastive, r"dot_general \(.*\): it brings examples together"),
    "summed": (lambda _, x: x.T @ x, "dot_general .*: it works along"),
    "mean loss": (lambda p, x: (x @ p["w"]).mean(), "reduce_sum"),
    "sort": (lambda _, x: jnp.sort(x, 0), "sort .*: it works along"),
    "lookup": (lambda _, x: x[jnp.asarray([1, 0, 2, 3])], "gather .*: it works along"),
    "cumulative": (lambda _, x: jnp.cumsum(x, 0), "cumsum .*: it works along"),
    "reversed": (lambda _, x: x[::-1], "rev .*: it works along"),
    "rolled": (lambda _, x: jnp.roll(x, 1, 0), "slice .*: it works along"),
    "one more": (lambda _, x: jnp.pad(x, ((1, 0), (0, 0))), "pad .*: it works along"),
    "together": (lambda _, x: jnp.concatenate([x, x]), "concatenate .*: it works"),
    "split": (lambda _, x: x.reshape(2, 2, 6), "reshape .*: it splits the axis"),
    "tokens": (summed_tokens, "reduce_sum .*: it works along"),
    "scan": (through_examples, "scan .*: it goes from one example to the next"),
    "while": (until_all, "reduce_or .*: it works along"),
    "branch": (branch_on_one, "reduce_sum .*: it works along"),
    "place": (lambda _, x: x + jnp.arange(4.0)[:, None], "add .*: it treats examples"),
    "counted": (lambda _, x: x + jnp.cumsum(jnp.ones((4, 6)), 0), "add .*by their pl"),
    "dropout": (dropped, "mul .*: it treats examples by their place"),
    "matrix": (lambda _, x: lax.linalg.lu(x)[0], "lu .*: it works along"),
    "callback": (
        lambda _, x: jax.pure_callback(np.sin, x, x, vmap_method="sequential"),
        "pure_callback .*: it is not known to keep examples apart",
    ),
    "behind": (lambda _, x: x.T, r"result of shape \[6, 4\] has not the examples in"),
    "table": (lambda p, _: {"w": p["w"]}, r"result\['w'\] of shape \[6, 4\]"),
    "stacked in front": (lambda _, x: jnp.stack([x, x]), r"result of shape \[2, 4, 6"),
    "unstacked": (lambda _, x: jnp.unstack(x)[0], "(unstack|slice) .*: it works along"),
    "repeated": (lambda _, x: jnp.tile(x, (2, 1)), "(tile|broadcast|concat|reshape)"),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_examples_is_refused_by_operation_and_line(name):
    model, message = MIXED[name]
    with pytest.raises(ValueError, match=f"mixes examples: {message}"):
        lrk.check_examples(model, PARAMS, ROWS)


def paired_groups(params, x):
    image = params["w"].reshape(4, 1, 6)
    kernel = x[:, 0, None, :2]
    return lax.conv_general_dilated(
        image, kernel, (1,), "VALID", batch_group_count=x.shape[0]
    )[0]


COUNTED = {
    "squeezed": (lambda p, x: (x @ p["w"]).squeeze(), "a result of shape"),
    "divided": (lambda p, x: x @ p["w"] / x.shape[0], "div 4.0"),
    "branch": (lambda _, x: x if x.shape[0] > 1 else 0 * x, "mul 0.0"),
    "fixed": (lambda _, x: x.reshape(4, 30) + 1, "cannot be staged on one"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_counts_its_examples_is_refused(name):
    fn, why = COUNTED[name]
    with pytest.raises(ValueError, match=why):
        lrk.check_examples(fn, PARAMS, X)


def test_groups_of_a_batch_beside_examples_are_refused():
    with pytest.raises(ValueError, match="mixes examples: conv_general_dilated"):
        lrk.check_examples(paired_groups, PARAMS, X)


def test_one_example_hides_no_batch_norm():
    with pytest.raises(ValueError, match="check_examples: .*reduce_sum"):
        lrk.check_examples(batch_norm, PARAMS, ROWS[:1])


def test_batch_norm_of_flax_is_refused_in_training_alone():
    with pytest.raises(ValueError, match="mixes examples: reduce_sum"):
        lrk.check_examples(*norm_of(False), ROWS)
    lrk.check_examples(*norm_of(True), ROWS)


def test_what_reaches_no_result_does_no_harm():
    lrk.check_examples(lambda p, x: (batch_norm(p, x), x @ p["w"])[1], PARAMS, ROWS)


def test_examples_are_asked_for():
    with pytest.raises(ValueError, match=r"one first axis of examples, got .*\(3,\)"):
        lrk.check_examples(batch_norm, PARAMS, ROWS, ROWS[:3])
    with pytest.raises(ValueError, match=r"routed: expected arrays with one first"):
        lrk.routed(batch_norm)(PARAMS, jnp.float32(1))


def attention(params, x):
    h = x @ params["w"]
    mask = jnp.tril(jnp.ones((5, 5), bool))[None]
    scores = jnp.where(mask, jnp.einsum("bqd,bkd->bqk", h, h), -1e9)
    mixed = jax.nn.softmax(scores) @ h
    flat = jax.nn.gelu(mixed.reshape(-1, 4)) @ params["head"]
    h = flat.reshape(h.shape) + jnp.sin(jnp.arange(5.0))[None, :, None]
    first = jnp.tile(params["head"][None, :1], (x.shape[0], 1, 1))
    h = jnp.concatenate([first, jnp.stack([h, -h], 2).reshape(-1, 10, 4)], 1)
    return jax.nn.standardize(h).mean(1), {"last": h[:, -1]}


def recurrent(params, x):
    def cell(h, x):
        h = jnp.tanh(h @ params["head"] + x @ params["w"])
        return h, h

    h, all_h = lax.scan(cell, jnp.zeros((x.shape[0], 4)), x.swapaxes(0, 1))
    return h, all_h.swapaxes(0, 1)


def looked_up(params, ids):
    h = params["w"][ids] @ params["head"]
    last = (ids != 0).sum(1)[:, None, None] - 1
    losses = optax.softmax_cross_entropy_with_integer_labels(h, ids % 4)
    return jnp.take_along_axis(h, last, 1)[:, 0], losses.mean(1), lax.top_k(h, 2)


def padded(params, x):
    cache = jnp.zeros((x.shape[0], 8, 4)).at[:, 1].set(x[:, 0] @ params["w"])
    cache = lax.dynamic_update_slice(cache, x @ params["head2"], (0, 2, 0))
    return jnp.flip(jnp.pad(cache, ((0, 0), (1, 1), (0, 0))), 1), jnp.cumsum(cache, 1)


def both(params, x, ids):
    return attention(params, x), looked_up(params, ids)


def test_a_model_of_a_batch_runs_with_an_adapter_for_each_example():
    tx = lrk.lora(2, init_b=jax.nn.initializers.normal(1.0))
    states = lrk.stack([tx.init(jax.random.key(i), PARAMS) for i in range(2)])
    slots = np.asarray([1, 0, 0, 1])

    def total(out):
        return sum(
            leaf.sum()
            for leaf in jax.tree.leaves(out)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        )

    def together(states, slots, x, ids):
        trees = [tx.apply(PARAMS, state) for state in lrk.unstack(states)]
        out = lrk.routed(both)(lrk.route(trees, slots), x, ids)
        return total(out), out

    def alone(states, slot, x, ids):
        state = jax.tree.map(lambda leaf: leaf[slot], states)
        out = lrk.lift(both)(tx.apply(PARAMS, state), x[None], ids[None])
        return total(out), out

    got, slope = (jax.jit(jax.grad(f, has_aux=True)) for f in (together, alone))
    grads, out = got(states, slots, X, IDS)
    own = [slope(states, *parts) for parts in zip(slots, X, IDS, strict=True)]
    assert_close(out, jax.tree.map(lambda *x: jnp.concatenate(x), *[o for _, o in own]))
    assert_close(grads, jax.tree.map(lambda *x: sum(x), *[g for g, _ in own]))


def test_states_of_zeros_are_filled_for_each_example():
    params = PARAMS | {"head2": jnp.asarray(numbers(4, 6, 4))}
    lrk.check_examples(padded, params, X)
    lrk.check_examples(recurrent, params, X)


def test_the_routed_idiom_refuses_batch_norm_under_jit():
    tx = lrk.lora(2, select=lrk.matching("w"))
    trees = [tx.apply(PARAMS, tx.init(jax.random.key(i), PARAMS)) for i in range(2)]
    bank = lrk.bank(trees)

    @jax.jit
    def serve(bank, ids, x):
        return lrk.routed(batch_norm)(bank.route(ids), x)

    with pytest.raises(ValueError, match="routed: the model mixes examples: reduce_s"):
        serve(bank, jnp.asarray([0, 1, -1, 0]), ROWS)


def bert():
    config = models.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    return models.Bert(config, rngs=nnx.Rngs(0)), None, (IDS, np.ones_like(IDS))


def llama():
    config = models.LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    model = models.Llama(config, scan=True, rngs=nnx.Rngs(0))
    return model, None, (IDS, np.ones_like(IDS))


def vit():
    config = models.ViTConfig(
        image_size=10,
        patch_size=5,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    images = numbers(5, 4, 10, 10, 1)
    return models.ViT(config, rngs=nnx.Rngs(0)), models.ViT.logits, (images,)


def efficientnet():
    config = models.EfficientNetConfig(
        stages=(models.Stage(2, 3, 1, 2, 4),),
        num_channels=1,
        stem_width=6,
        head_width=8,
        num_labels=3,
    )
    images = numbers(5, 4, 10, 10, 1)
    return models.EfficientNet(config, rngs=nnx.Rngs(0)), None, (images,)


def gru():
    config = models.RecurrentConfig(input_size=6, hidden_size=4, num_labels=2)
    return models.GRU(config, rngs=nnx.Rngs(0)), models.GRU.logits, (X,)


@pytest.mark.parametrize("made", [bert, llama, vit, efficientnet, gru])
def test_models_of_the_library_keep_examples_apart(made):
    kept = []

    def shapes():
        model, method, batch = made()
        apply, params = models.functional(model, *([method] if method else []))
        kept.append((apply, batch))
        return params

    params = jax.eval_shape(shapes)
    (apply, batch), *_ = kept
    lrk.check_examples(apply, params, *batch)
