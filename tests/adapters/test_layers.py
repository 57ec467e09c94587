"""LoRA on layers that are not products: look-ups, tied tables, recurrent cells."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.tolerances import assert_close

KEY = jax.random.key(0)
TABLE = lrk.matching("embedding$")


class Tied(nn.Module):
    """A language model of one table: a look-up, and logits over the same tokens."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(6, 4, name="table")
        return embed.attend(jnp.tanh(embed(tokens)))


def tied(tokens):
    params = {"params": {"table": {"embedding": jnp.asarray(numbers(1, 6, 4))}}}
    return params, lambda p: Tied().apply(p, tokens)


def test_a_tied_table_is_looked_up_and_multiplied_in_factors():
    params, model = tied(jnp.asarray([[0, 5], [3, 3]]))
    tx = lrk.lora(2, alpha=3, select=TABLE)
    state = tx.init(KEY, params)
    path = "params/table/embedding"
    assert jax.tree.map(jnp.shape, state.trainable[path]) == {"a": (6, 2), "b": (2, 4)}

    @jax.jit
    def both(trainable):
        def loss(trainable, run):
            out = run(tx.apply(params, state._replace(trainable=trainable)))
            return jnp.sum(jnp.sin(out))

        plain = lambda adapted: model(lrk.materialize(adapted))  # noqa: E731
        slope = jax.value_and_grad(loss)
        return slope(trainable, lrk.lift(model)), slope(trainable, plain)

    moved = jax.tree.map(lambda x: x + jnp.asarray(numbers(3, *x.shape)), state)
    assert_close(*both(moved.trainable))
    assert lrk.trace_axes(model, params) == {path: lrk.Axes((), (0,), (1,))}


def test_looked_up_it_agrees_with_peft():
    own = layer("embedding")
    tx = lrk.lora(2, alpha=3, select=lrk.matching("w"))
    names = {"a": "lora_embedding_A", "b": "lora_embedding_B"}
    factors = {ours: jnp.asarray(own[name].T) for ours, name in names.items()}
    grads = {ours: jnp.asarray(own[f"grad_{n}"].T) for ours, n in names.items()}
    state = tx.init(KEY, {"w": own["w"]})._replace(trainable={"w": factors})
    assert_agrees(tx, state, own, grads, lambda x, w: w[x], own["w"])


def test_norms_of_their_own_agree_with_peft():
    own = layer("norm")
    base = {"scale": own["w"], "bias": own["bias"]}
    params = {"norm": jax.tree.map(jnp.asarray, base)}
    tx = lrk.full(select=lrk.is_norm)
    moved = {
        "norm/scale": own["ln_tuning_layers"] - own["w"],
        "norm/bias": own["ln_tuning_layers.bias"] - own["bias"],
    }
    state = tx.init(KEY, params)
    assert state.trainable.keys() == moved.keys()

    @jax.jit
    def run(trainable, x):
        def objective(trainable, x):
            y = lrk.lift(normed)(
                tx.apply(params, state._replace(trainable=trainable)), x
            )
            return jnp.sum(y * own["g"]), y

        slope = jax.grad(objective, (0, 1), has_aux=True)
        merged = lrk.materialize(tx.apply(params, lrk.State(trainable, state.fixed)))
        return *slope(trainable, x), merged["norm"]

    start = {path: {"d": d} for path, d in moved.items()}
    (grads, of_x), y, merged = run(start, own["x"])
    assert_close(y, jnp.asarray(own["y"]))
    assert_close(of_x, jnp.asarray(own["grad_x"]))
    assert_close(grads["norm/scale"]["d"], jnp.asarray(own["grad_ln_tuning_layers"]))
    wanted = jnp.asarray(own["grad_ln_tuning_layers.bias"])
    assert_close(grads["norm/bias"]["d"], wanted)
    wanted = {"scale": own["merged"], "bias": own["merged_bias"]}
    assert_close(merged, jax.tree.map(jnp.asarray, wanted))


def normed(params, x):
    centred = x - x.mean(-1, keepdims=True)
    spread = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return (
        centred / spread * params["norm"]["scale"][None] + params["norm"]["bias"][None]
    )


def test_biases_beside_a_low_rank_term_agree_with_peft():
    own = layer("biases")
    layers = {"first": "0", "norm": "1", "second": "2"}
    kind = {"first": "kernel", "norm": "scale", "second": "kernel"}

    def tree(prefix):
        found = {}
        for name, at in layers.items():
            weight, bias = (own[f"{prefix}{at}.{n}"] for n in ("weight", "bias"))
            found[name] = {kind[name]: jnp.asarray(weight.T), "bias": jnp.asarray(bias)}
        return found

    def parts(prefix):
        low = {n: jnp.asarray(own[f"{prefix}0.lora_{n.upper()}"].T) for n in "ab"}
        at = {f"{name}/bias": own[f"{prefix}{i}.bias"] for name, i in layers.items()}
        return {"first/kernel": low}, at

    params = tree("before_")
    first = lrk.matching("first/kernel")
    tx = lrk.chain(lrk.lora(2, alpha=3, select=first), lrk.full(select=lrk.is_bias))
    low, after = parts("")
    before = {path: params[path.split("/")[0]]["bias"] for path in after}
    deltas = {path: {"d": jnp.asarray(after[path] - before[path])} for path in after}
    state = tx.init(KEY, params)
    assert state.trainable[1].keys() == deltas.keys()

    def model(p, x):
        h = normed(p, x @ p["first"]["kernel"] + p["first"]["bias"][None])
        return h @ p["second"]["kernel"] + p["second"]["bias"][None]

    @jax.jit
    def run(trainable, x):
        def objective(trainable, x):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            y = lrk.lift(model)(adapted, x)
            return jnp.sum(y * own["g"]), (y, lrk.materialize(adapted))

        return jax.grad(objective, (0, 1), has_aux=True)(trainable, x)

    (grads, of_x), (y, merged) = run((low, deltas), own["x"])
    assert_close((y, of_x), (jnp.asarray(own["y"]), jnp.asarray(own["grad_x"])))
    assert_close(merged, tree("merged_"))
    low, biases = parts("grad_")
    assert_close(grads, (low, {p: {"d": jnp.asarray(g)} for p, g in biases.items()}))


def test_initialisers_of_peft_start_the_factor_of_the_tokens_at_zero():
    params, _ = tied(jnp.asarray([0]))
    init = jax.nn.initializers
    tx = lrk.lora(2, select=TABLE, init=init.zeros, init_b=init.normal(1.0))
    own = tx.init(KEY, params).trainable["params/table/embedding"]
    assert not own["a"].any()
    assert np.asarray(own["b"]).all()


def test_the_kernels_of_a_recurrent_cell_train_under_scan():
    model, x = nn.RNN(nn.GRUCell(4)), jnp.asarray(numbers(1, 2, 5, 3))
    params = jax.jit(model.init)(KEY, x)
    tx = lrk.lora(2)
    state = jax.jit(tx.init)(KEY, params)
    want = 0.5
    assert len(lrk.select_paths(tx, params)) == 6

    @jax.jit
    def train(trainable):
        def loss(trainable, form):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            return jnp.mean((form(adapted) - want) ** 2)

        def step(trainable, _):
            run = lambda adapted: lrk.lift(model.apply)(adapted, x)  # noqa: E731
            value, grads = jax.value_and_grad(loss)(trainable, run)
            return jax.tree.map(lambda t, g: t - g, trainable, grads), value

        trained, losses = jax.lax.scan(step, trainable, length=30)
        plain = lambda adapted: model.apply(lrk.materialize(adapted), x)  # noqa: E731
        return losses, loss(trained, plain), step(trained, None)[1], trained

    losses, plain, lifted, trained = train(state.trainable)
    assert_close(lifted, plain)
    assert losses[-1] < 0.7 * losses[0]
    for path, own in state.trainable.items():
        assert not np.array_equal(trained[path]["a"], own["a"]), path
