"""Loops over layers, time and steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lifting.patterns.control_flow import PAIR, D, pair, tokens
from tests.lifting.patterns.pattern import IN_OUT, STACKED, Pattern, normal, skinny

LAYERS = 4


def _stacked(fn, *extra, x=(4, 16)):
    """A model of `LAYERS` square weights and their biases."""

    def build(seed):
        kw, kb, kx = seed, seed + 1, seed + 2
        w = normal(kw, LAYERS, D, D)
        params = {"w": w, "bias": normal(kb, LAYERS, D, scale=0.1)}
        return fn, params, (tokens(kx, *x), *extra)

    return build


def _layer(h, w, bias):
    return jnp.tanh(h @ w + bias[None, None])


def scan_layers(params, x):
    def step(h, layer):
        return _layer(h, layer["w"], layer["bias"]), jnp.mean(h)

    return lax.scan(step, x, params)


def scan_layers_hand(params, factors, x):
    def step(h, layer):
        p, f = layer
        y = h @ p["w"] + skinny(h, f) + p["bias"][None, None]
        return jnp.tanh(y), jnp.mean(h)

    return lax.scan(step, x, (params, factors["w"]))


def scan_reversed(params, x):
    def step(h, layer):
        return _layer(h, layer["w"], layer["bias"]), None

    return lax.scan(step, x, params, reverse=True, unroll=2)[0]


def scan_remat(params, x):
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(h, layer):
        h = jnp.tanh(_layer(h, layer["w"], layer["bias"]))
        return jnp.tanh(h @ layer["w"]), None

    return lax.scan(block, x, params)[0]


def fori_dynamic_index(params, x):
    def step(i, h):
        return _layer(h, params["w"][i], params["bias"][i])

    return lax.fori_loop(0, LAYERS, step, x)


def fori_dynamic_index_in_dim(params, x):
    def step(i, h):
        w = lax.dynamic_index_in_dim(params["w"], i, 0, keepdims=False)
        return jnp.tanh(h @ w)

    return lax.fori_loop(0, LAYERS, step, x)


def recurrent(params, x):
    def step(h, row):
        h = jnp.tanh(row @ params["input"] + h @ params["hidden"])
        return h, h @ params["input"].T

    return lax.scan(step, jnp.zeros((x.shape[1], D)), x)


def _build_recurrent(seed):
    k1, k2, kx = seed, seed + 1, seed + 2
    params = {"input": normal(k1, D, D), "hidden": normal(k2, D, D)}
    return recurrent, params, (tokens(kx, 6, 16),)


def nested_scan(params, x):
    def layer(sequence, w):
        def step(h, row):
            h = jnp.tanh(row + h @ w)
            return h, h

        return lax.scan(step, jnp.zeros_like(sequence[0]), sequence)[1], None

    return lax.scan(layer, x, params["w"])[0]


def mapped(params, x):
    return lax.map(lambda row: jnp.tanh(row @ params["up"]) @ params["down"], x)


def vmapped_scan(params, x):
    def one(row):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), row, params["w"])[0]

    return jax.vmap(one)(x)


def while_loop(params, x, steps):
    def more(carry):
        i, h = carry
        return (i < steps) & (jnp.sum(jnp.tanh(h @ params["up"])) < 1e6)

    def step(carry):
        i, h = carry
        return i + 1, jnp.tanh(h @ params["up"]) @ params["down"]

    return lax.while_loop(more, step, (0, x))[1]


def carried_unchanged(params, x):
    def step(_, carry):
        w, h = carry
        return w, jnp.tanh(h @ w)

    _, h = lax.fori_loop(0, LAYERS, step, (params["up"], x))
    return h


def carried_and_returned(params, x):
    def step(carry, _):
        w, h = carry
        return (w, jnp.tanh(h @ w)), None

    (w, h), _ = lax.scan(step, (params["up"], x), None, length=2)
    return h @ w.T


def _square(fn):
    def build(seed):
        kw, kx = seed, seed + 1
        return fn, {"up": normal(kw, D, D)}, (tokens(kx, 4, 16),)

    return build


UP, W = {"up": IN_OUT}, {"w": STACKED}

PATTERNS = (
    Pattern(
        "scan_layers",
        _stacked(scan_layers),
        W,
        hand=scan_layers_hand,
        batched=True,
        bound=0.7,
    ),
    Pattern(
        "scan_one_scale",
        _stacked(scan_layers),
        {"w": STACKED._replace(one_scale=True)},
        bound=0.7,
    ),
    Pattern("scan_reversed", _stacked(scan_reversed), W, bound=0.75),
    Pattern("scan_remat", _stacked(scan_remat), W, bound=0.85),
    Pattern(
        "fori_dynamic_index", _stacked(fori_dynamic_index), W, batched=True, bound=0.7
    ),
    Pattern(
        "fori_dynamic_index_in_dim", _stacked(fori_dynamic_index_in_dim), W, bound=0.7
    ),
    Pattern(
        "recurrent",
        _build_recurrent,
        {"input": IN_OUT, "hidden": IN_OUT},
        batched=True,
        bound=0.7,
    ),
    Pattern("nested_scan", _stacked(nested_scan, x=(6, 8)), W, bound=0.5),
    Pattern("mapped", pair(mapped), PAIR),
    Pattern("vmapped_scan", _stacked(vmapped_scan), W, bound=0.7),
    Pattern(
        "while_loop", pair(while_loop, np.int32(3)), PAIR, bound=None, forward=True
    ),
    Pattern("carried_unchanged", _square(carried_unchanged), UP, bound=0.8),
    Pattern("carried_and_returned", _square(carried_and_returned), UP, bound=0.8),
)
