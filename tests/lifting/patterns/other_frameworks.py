"""Haiku and Equinox models."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp

from tests.lifting.patterns.pattern import IN_OUT, OUT_IN, Axes, Pattern, fill, normal

D, HEADS = 48, 4


def _haiku(forward, *shape):
    def build(seed):
        x = normal(seed, *shape, scale=1.0)
        model = hk.without_apply_rng(hk.transform(forward))
        variables = fill(seed, jax.eval_shape(model.init, jax.random.key(0), x))
        return model.apply, variables, (x,)

    return build


def _haiku_mlp(x):
    return hk.nets.MLP([64, D], name="mlp")(x)


def _haiku_attention(x):
    attention = hk.MultiHeadAttention(
        HEADS, 12, w_init=hk.initializers.VarianceScaling(1.0), name="attention"
    )
    return attention(x, x, x)


def _haiku_lstm(x):
    core = hk.LSTM(D, name="lstm")
    return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]


def _equinox(make, *shape, axes=0):
    """An Equinox module as it is: its activations are leaves too."""

    def build(seed):

        def fn(module, x):
            return jax.vmap(module)(x) if axes == 0 else jax.vmap(jax.vmap(module))(x)

        module = eqx.filter_eval_shape(make, jax.random.key(0))
        return fn, fill(seed, module), (normal(seed, *shape, scale=1.0),)

    return build


class SelfAttention(eqx.Module):
    """Equinox attention of a sequence over itself."""

    inner: eqx.nn.MultiheadAttention

    def __init__(self, key):
        self.inner = eqx.nn.MultiheadAttention(HEADS, D, key=key)

    def __call__(self, x):
        return self.inner(x, x, x)


def _names(form, *names):
    return [form.format(name) for name in names]


PATTERNS = (
    Pattern(
        "haiku_mlp",
        _haiku(_haiku_mlp, 64, D),
        dict.fromkeys(_names("mlp/~/linear_{}/w", 0, 1), IN_OUT),
        bound=0.7,
    ),
    Pattern(
        "haiku_attention",
        _haiku(_haiku_attention, 4, 16, D),
        dict.fromkeys(
            _names("attention/{}/w", "query", "key", "value", "linear"), IN_OUT
        ),
        bound=0.75,
    ),
    Pattern(
        "haiku_lstm",
        _haiku(_haiku_lstm, 6, 16, D),
        {"lstm/linear/w": IN_OUT},
        bound=0.7,
    ),
    Pattern(
        "equinox_mlp",
        _equinox(lambda k: eqx.nn.MLP(D, 32, 64, 2, jnp.tanh, key=k), 4, 16, D, axes=1),
        dict.fromkeys(_names("layers/{}/weight", 0, 1, 2), OUT_IN),
        batched=True,
        bound=0.75,
    ),
    Pattern(
        "equinox_attention",
        _equinox(SelfAttention, 4, 16, D),
        dict.fromkeys(
            _names("inner/{}_proj/weight", "query", "key", "value", "output"), OUT_IN
        ),
        bound=0.75,
    ),
    Pattern(
        "equinox_conv",
        _equinox(
            lambda k: eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=k), 4, 16, 8, 8
        ),
        {"weight": Axes((1, 2, 3), (0,))},
    ),
)
