"""Flax models, linen and nnx, as users write them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.lifting.patterns.pattern import (
    IN_OUT,
    STACKED,
    Axes,
    Pattern,
    fill,
    integers,
    normal,
)

D, HEADS, LAYERS, VOCABULARY = 48, 4, 3, 192
PROJECTION, OUT = Axes((0,), (1, 2)), Axes((0, 1), (2,))


def _linen(model, *shape, ids=False, **options):
    """A linen model, its variables and one input."""

    def build(seed):
        if ids:
            x = integers(seed, VOCABULARY, *shape)
        else:
            x = normal(seed, *shape, scale=1.0)
        variables = fill(seed, jax.eval_shape(model.init, jax.random.key(0), x))
        return functools.partial(model.apply, **options), variables, (x,)

    return build


def _attention(root, query="query", key="key", value="value", out="out"):
    heads = {f"{root}{name}/kernel": PROJECTION for name in (query, key, value)}
    return {**heads, f"{root}{out}/kernel": OUT}


class LinenBlock(nn.Module):
    """A residual block in the form that `nn.scan` wants."""

    @nn.compact
    def __call__(self, h, _=None):
        y = nn.Dense(D, name="up")(nn.LayerNorm(name="norm")(h))
        return h + nn.Dense(D, name="down")(nn.gelu(y)), None


class LinenStack(nn.Module):
    """Blocks under `nn.scan`, with or without `nn.remat`."""

    remat: bool = False

    @nn.compact
    def __call__(self, h):
        block: Any = LinenBlock
        if self.remat:
            block = nn.remat(block, prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        return layers(name="blocks")(h, None)[0]


class LinenRemat(nn.Module):
    """Two rematerialised blocks in a row."""

    @nn.compact
    def __call__(self, h):
        for name in ("first", "second"):
            h, _ = nn.remat(LinenBlock)(name=name)(h)
        return h


class LinenConvNet(nn.Module):
    """Convolutions with batch statistics that are updated in training."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), name="conv", use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
        x = nn.Conv(32, (3, 3), strides=2, name="conv2")(x)
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


class LinenTied(nn.Module):
    """An embedding that is looked up and attended to."""

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(VOCABULARY, D, name="embed")
        return embed.attend(jnp.tanh(embed(ids)))


class NnxBlock(nnx.Module):
    """A block with dropout and batch statistics, both changed in place."""

    def __init__(self, rngs, *, stateful=True):
        self.up = nnx.Linear(D, D, rngs=rngs)
        self.down = nnx.Linear(D, D, rngs=rngs)
        self.norm = nnx.BatchNorm(D, rngs=rngs) if stateful else nnx.identity
        self.dropout = nnx.Dropout(0.25, rngs=rngs) if stateful else nnx.identity

    def __call__(self, h):
        y = self.dropout(nnx.gelu(self.norm(self.up(h))))
        return h + self.down(y)


class NnxRemat(nnx.Module):
    """Blocks under `nnx.remat`."""

    def __init__(self, rngs):
        self.first = NnxBlock(rngs, stateful=False)
        self.second = NnxBlock(rngs)

    def __call__(self, h):
        block = nnx.remat(NnxBlock.__call__)
        return block(self.second, block(self.first, h))


class NnxStack(nnx.Module):
    """Layers made by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs):
        make = nnx.vmap(lambda r: NnxBlock(r, stateful=False))
        self.blocks = make(rngs.split(LAYERS))

    def __call__(self, h):
        run = nnx.scan(
            lambda h, block: block(h), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )
        return run(h, self.blocks)


class NnxMixed(nnx.Module):
    """Attention over embeddings under `nnx.jit`, with a tied head."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, D, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, D, decode=False, rngs=rngs)

    def __call__(self, ids):
        h = D**0.5 * self.embed(ids)
        h = nnx.jit(lambda attention, h: attention(h))(self.attention, h)
        return self.embed.attend(h)


def _nnx(make, *shape, returns=(), ids=False):
    """An nnx model as a function of its state; returns the named kinds of state."""

    def build(seed):
        if ids:
            x = integers(seed, VOCABULARY, *shape)
        else:
            x = normal(seed, *shape, scale=1.0)
        graph, state = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0))))

        def fn(state, x):
            model = nnx.merge(graph, state)
            y = model(x)
            return (y, nnx.state(model, returns)) if returns else y

        return fn, fill(seed, state), (x,)

    return build


def _dense(*names):
    return {f"{name}/kernel": IN_OUT for name in names}


def _layers(root):
    return {f"{root}/{name}/kernel": STACKED for name in ("up", "down")}


PATTERNS = (
    Pattern(
        "linen_attention",
        _linen(
            nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=D), 4, 16, D
        ),
        _attention("params/"),
        batched=True,
        bound=0.75,
    ),
    Pattern(
        "linen_scan",
        _linen(LinenStack(), 4, 16, D),
        _layers("params/blocks"),
        batched=True,
        bound=0.75,
    ),
    Pattern(
        "linen_scan_remat",
        _linen(LinenStack(remat=True), 4, 16, D),
        _layers("params/blocks"),
        bound=0.8,
    ),
    Pattern(
        "linen_remat",
        _linen(LinenRemat(), 4, 16, D),
        _dense("params/first/up", "params/first/down", "params/second/up"),
        bound=0.85,
    ),
    Pattern(
        "linen_batch_norm",
        _linen(LinenConvNet(), 4, 8, 8, 8, mutable=["batch_stats"]),
        {
            "params/conv/kernel": Axes((0, 1, 2), (3,)),
            "params/conv2/kernel": Axes((0, 1, 2), (3,)),
            "params/head/kernel": IN_OUT,
        },
        bound=0.75,
    ),
    Pattern(
        "linen_tied",
        _linen(LinenTied(), 4, 16, ids=True),
        {"params/embed/embedding": IN_OUT},
        bound=0.75,
    ),
    Pattern(
        "linen_rnn",
        _linen(nn.RNN(nn.GRUCell(D), name="rnn"), 16, 6, D),
        _dense("params/cell/in", "params/cell/hz", "params/cell/hn"),
        bound=0.8,
    ),
    Pattern(
        "linen_bf16",
        _linen(nn.Dense(64, dtype=jnp.bfloat16), 4, 16, D),
        _dense("params"),
        dtype="bfloat16",
    ),
    Pattern(
        "nnx_in_place_state",
        _nnx(NnxBlock, 64, D, returns=(nnx.BatchStat, nnx.RngState)),
        _dense("up", "down"),
        batched=True,
        bound=0.8,
    ),
    Pattern(
        "nnx_whole_state",
        _nnx(NnxBlock, 64, D, returns=nnx.Variable),
        _dense("up", "down"),
        bound=None,
        returns_operator=True,
    ),
    Pattern(
        "nnx_remat",
        _nnx(NnxRemat, 64, D, returns=nnx.BatchStat),
        _dense("first/up", "second/up", "second/down"),
        bound=0.9,  # 0.855 with jax 0.11 and 0.12, as for remat
    ),
    Pattern("nnx_scan", _nnx(NnxStack, 64, D), _layers("blocks"), bound=0.75),
    Pattern(
        "nnx_attention_jit",
        _nnx(NnxMixed, 4, 16, ids=True),
        {"embed/embedding": IN_OUT, **_attention("attention/")},
        bound=0.8,
    ),
)
