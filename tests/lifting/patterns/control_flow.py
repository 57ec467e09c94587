"""Branches, rematerialisation, nested jit, custom derivatives, inner gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.lifting.patterns.pattern import IN_OUT, Pattern, normal, skinny

D, F = 48, 64


def tokens(seed, *rows):
    return normal(seed, *rows, D, scale=1.0)


def pair(fn, *extra):
    """A model of two weights, up and down."""

    def build(seed):
        k1, k2, kx = seed, seed + 1, seed + 2
        params = {"up": normal(k1, D, F), "down": normal(k2, F, D)}
        return fn, params, (tokens(kx, 4, 16), *extra)

    return build


PAIR = {"up": IN_OUT, "down": IN_OUT}


def _block(params, x):
    return jnp.tanh(jnp.tanh(x @ params["up"]) @ params["down"])


def _block_hand(params, factors, x):
    h = jnp.tanh(x @ params["up"] + skinny(x, factors["up"]))
    return jnp.tanh(h @ params["down"] + skinny(h, factors["down"]))


def remat(params, x):
    return jax.checkpoint(_block)(params, jax.checkpoint(_block)(params, x))


def remat_hand(params, factors, x):
    one = jnp.ones(())
    scaled = {k: f._replace(a=f.a * f.scale, scale=one) for k, f in factors.items()}
    block = jax.checkpoint(_block_hand)
    return block(params, scaled, block(params, scaled, x))


def remat_policy(params, x):
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = jax.checkpoint(_block, policy=policy)
    return block(params, block(params, x))


def remat_names(params, x):
    policy = jax.checkpoint_policies.save_only_these_names("hidden")

    @functools.partial(jax.checkpoint, policy=policy)
    def block(x):
        hidden = checkpoint_name(jnp.tanh(x @ params["up"]), "hidden")
        return jnp.tanh(hidden @ params["down"])

    return block(block(x))


@jax.jit
def jitted_block(params, x):
    return _block(params, x)


def jit_in_jit(params, x):
    for _ in range(12):
        x = jitted_block(params, x)
    return x


def jit_in_jit_hand(params, factors, x):
    block = jax.jit(_block_hand)
    for _ in range(12):
        x = block(params, factors, x)
    return x


def cond_uses_weight(params, x, flag):
    def yes(h):
        return jnp.tanh(h @ params["up"])

    def no(h):
        return h @ params["down"].T

    return lax.cond(flag, yes, no, x) + lax.cond(~flag, yes, no, x)


def cond_operand(params, x, flag):
    def yes(p, h):
        return jnp.tanh(h @ p["up"])

    def no(p, h):
        return h @ p["down"].T

    return lax.cond(flag, yes, no, params, x) * lax.cond(~flag, yes, no, params, x)


def cond_chooses_weight(params, x, flag):
    w = lax.cond(flag, lambda: params["first"], lambda: params["second"])
    v = lax.cond(flag, lambda p: p["second"], lambda p: p["first"], params)
    return jnp.tanh(x @ w) * (x @ v)


def _build_twins(seed):
    k1, k2, kx = seed, seed + 1, seed + 2
    params = {"first": normal(k1, D, F), "second": normal(k2, D, F)}
    return cond_chooses_weight, params, (tokens(kx, 4, 16), np.bool_(False))


def switch(params, x, index):
    branches = [
        lambda h: jnp.tanh(h @ params["up"]),
        lambda h: h @ params["up"] @ params["down"] @ params["up"],
        lambda h: h @ params["down"].T,
    ]
    return lax.switch(index, branches, x)


def switch_in_scan(params, x):
    def step(h, i):
        def use(w):
            return lambda h: jnp.tanh(h @ w) @ w.T

        return lax.switch(i % 2, [use(params["up"]), use(params["down"].T)], h), None

    return lax.scan(step, x, jnp.arange(3))[0]


@jax.custom_jvp
def soft_step(x):
    return jnp.tanh(x)


@soft_step.defjvp
def _soft_step_jvp(primals, tangents):
    y = jnp.tanh(primals[0])
    return y, 0.5 * (1 - y) * tangents[0]


@jax.custom_vjp
def doubled(x):
    return jnp.sin(x)


def _doubled_fwd(x):
    return jnp.sin(x), x


def _doubled_bwd(x, g):
    return (2.0 * g * jnp.cos(x),)


doubled.defvjp(_doubled_fwd, _doubled_bwd)


def custom_jvp_activation(params, x):
    return jax.nn.relu(soft_step(x @ params["up"])) @ params["down"]


def custom_vjp_activation(params, x):
    return doubled(doubled(x @ params["up"]) @ params["down"])


def gradient_of_inputs(params, x):
    return jax.grad(lambda x: jnp.sum(_block(params, x)))(x)


def gradient_of_weight(params, x):
    def loss(up):
        return jnp.sum(jnp.tanh(x @ up) @ params["down"])

    return jax.grad(loss)(params["up"])


def inner_step(params, x):
    """One gradient step on another leaf, then the loss with what came out."""

    def loss(head):
        return jnp.mean((jnp.tanh(x @ params["up"]) @ head - jnp.sin(x)) ** 2)

    head = params["down"] - 0.5 * jax.grad(loss)(params["down"])
    return jnp.tanh(x @ params["up"]) @ head


def tangent_of_inputs(params, x):
    return jax.jvp(lambda x: _block(params, x), (x,), (jnp.cos(x),))


PATTERNS = (
    # 0.803 with jax 0.11 and 0.12, whose XLA merges less of what is recomputed.
    Pattern("remat", pair(remat), PAIR, hand=remat_hand, bound=0.85),
    Pattern("remat_policy", pair(remat_policy), PAIR, bound=0.75),
    Pattern("remat_names", pair(remat_names), PAIR, bound=0.85),
    Pattern("jit_in_jit", pair(jit_in_jit), PAIR, hand=jit_in_jit_hand, bound=0.8),
    Pattern("cond_uses_weight", pair(cond_uses_weight, np.bool_(True)), PAIR),
    Pattern("cond_operand", pair(cond_operand, np.bool_(False)), PAIR),
    Pattern("cond_chooses_weight", _build_twins, {"first": IN_OUT, "second": IN_OUT}),
    Pattern("switch", pair(switch, np.int32(1)), PAIR, bound=0.75),
    Pattern("switch_in_scan", pair(switch_in_scan), PAIR, bound=0.75),
    Pattern("custom_jvp_activation", pair(custom_jvp_activation), PAIR, bound=0.7),
    Pattern(
        "custom_vjp_activation",
        pair(custom_vjp_activation),
        PAIR,
        batched=True,
        bound=0.7,
    ),
    Pattern("gradient_of_inputs", pair(gradient_of_inputs), PAIR, bound=0.75),
    Pattern("gradient_of_weight", pair(gradient_of_weight), PAIR, bound=0.75),
    Pattern("inner_step", pair(inner_step), {"up": IN_OUT}, bound=0.9),
    Pattern("tangent_of_inputs", pair(tangent_of_inputs), PAIR, bound=0.75),
)
