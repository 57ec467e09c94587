"""Weights that are reshaped, cut, scaled, cast or passed on before they are used."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lifting.patterns.pattern import (
    IN_OUT,
    STACKED,
    Axes,
    Pattern,
    normal,
    skinny,
)

D, F, HEADS, HEAD = 48, 64, 4, 12
PARTS = 3


def _build(fn, *w_shape, extra=()):
    def build(seed):
        kw, kx = seed, seed + 1
        x = normal(kx, 4, 16, D, scale=1.0)
        return fn, {"w": normal(kw, *w_shape, scale=D**-0.5)}, (x, *extra)

    return build


def split_last_axis(params, x):
    w = params["w"].reshape(D, HEADS, HEAD)
    return jnp.einsum("btd,dhk->bthk", x, w)


def merge_output_axes(params, x):
    return x @ params["w"].reshape(D, HEADS * HEAD)


def merge_input_axes(params, x):
    return x @ params["w"].reshape(HEADS * HEAD, D)


def moved_axes(params, x):
    return jnp.einsum("btd,hdk->bhtk", x, jnp.moveaxis(params["w"], 1, 0))


def fused_split(params, x):
    q, k, v = jnp.split(params["w"], PARTS, axis=1)
    return jnp.tanh(x @ q) * (x @ k) + x @ v


def fused_sliced(params, x):
    w = params["w"]
    return jnp.tanh(x @ w[:, :D]) * (x @ w[:, D : 2 * D]) + x @ w[:, 2 * D :]


def fused_hand(params, factors, x):
    f, w = factors["w"], params["w"]
    parts = [
        x @ w[:, i : i + D] + skinny(x, f._replace(b=f.b[:, i : i + D]))
        for i in range(0, PARTS * D, D)
    ]
    return jnp.tanh(parts[0]) * parts[1] + parts[2]


def fused_axis(params, x):
    q, k, v = params["w"][:, 0], params["w"][:, 1], params["w"][:, 2]
    return jnp.tanh(x @ q) * (x @ k) + x @ v


def strided_slice(params, x):
    return x @ params["w"][:, ::2]


def input_slice(params, x):
    w = params["w"]
    return jnp.tanh(x[..., : D // 2] @ w[: D // 2]) - x[..., D // 2 :] @ w[D // 2 :]


def dynamic_slice(params, x, start):
    return x @ lax.dynamic_slice_in_dim(params["w"], start, 32, axis=1)


def reversed_rows(params, x):
    return x @ params["w"][::-1]


def python_loop_over_layers(params, x):
    for i in range(params["w"].shape[0]):
        x = jnp.tanh(x @ params["w"][i])
    return x


def python_loop_hand(params, factors, x):
    f = factors["w"]
    for i in range(params["w"].shape[0]):
        layer = jax.tree.map(lambda v, i=i: v[i], f)
        x = jnp.tanh(x @ params["w"][i] + skinny(x, layer))
    return x


def unpacked_layers(params, x):
    first, second, third = params["w"]
    return jnp.tanh(jnp.tanh(x @ first) @ second) @ third


def python_scale(params, x):
    return x @ (0.5 * params["w"] / D**0.5)


def traced_scale(params, x, scale):
    return x @ (params["w"] * scale)


def negated(params, x):
    return x @ -params["w"]


def bf16_cast(params, x):
    return x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)


def bf16_round_trip(params, x):
    w = params["w"].astype(jnp.bfloat16)
    y = x.astype(jnp.bfloat16) @ w.T.reshape(F, D).T
    return y.astype(jnp.float32)


def squeezed(params, x):
    return x @ jnp.squeeze(params["w"], 0)


def expanded(params, x):
    return jnp.einsum("btd,dgf->btgf", x, params["w"][:, None, :])


def through_jit(params, x):
    @jax.jit
    def prepare(w):
        return w, w.T, 0.5 * w

    w, transposed, half = prepare(params["w"])
    return jnp.tanh(x @ w) @ transposed + x @ half @ transposed


def returns_weight(params, x):
    return x @ params["w"], params["w"]


def returns_transposed(params, x):
    return {"y": x @ params["w"], "w": params["w"].T}


def static_arguments(params, x, flag, steps, mode, nothing, activation):
    if flag is not True or mode != "sum" or nothing is not None:
        raise TypeError("a static argument lost its Python value")
    for _ in range(steps):
        x = activation(x @ params["w"])
    return x


PATTERNS = (
    Pattern("split_last_axis", _build(split_last_axis, D, D), {"w": IN_OUT}),
    Pattern(
        "merge_output_axes",
        _build(merge_output_axes, D, HEADS, HEAD),
        {"w": Axes((0,), (1, 2))},
    ),
    Pattern(
        "merge_input_axes",
        _build(merge_input_axes, HEADS, HEAD, D),
        {"w": Axes((0, 1), (2,))},
    ),
    Pattern(
        "moved_axes", _build(moved_axes, D, HEADS, HEAD), {"w": Axes((0,), (1, 2))}
    ),
    Pattern(
        "fused_split",
        _build(fused_split, D, PARTS * D),
        {"w": IN_OUT},
        hand=fused_hand,
        batched=True,
    ),
    Pattern(
        "fused_sliced",
        _build(fused_sliced, D, PARTS * D),
        {"w": IN_OUT},
        hand=fused_hand,
    ),
    Pattern(
        "fused_axis_shared_a",
        _build(fused_axis, D, PARTS, D),
        {"w": Axes((0,), (1, 2))},
    ),
    Pattern(
        "fused_axis_stacked",
        _build(fused_axis, D, PARTS, D),
        {"w": Axes((1, 0), (1, 2))},
    ),
    Pattern("strided_slice", _build(strided_slice, D, 2 * F), {"w": IN_OUT}),
    Pattern("input_slice", _build(input_slice, D, F), {"w": IN_OUT}, bound=0.7),
    Pattern(
        "dynamic_slice",
        _build(dynamic_slice, D, F, extra=(np.int32(7),)),
        {"w": IN_OUT},
    ),
    Pattern("reversed_rows", _build(reversed_rows, D, F), {"w": IN_OUT}),
    Pattern(
        "python_loop_over_layers",
        _build(python_loop_over_layers, 3, D, D),
        {"w": STACKED},
        hand=python_loop_hand,
        bound=0.75,
    ),
    Pattern(
        "unpacked_layers",
        _build(unpacked_layers, 3, D, D),
        {"w": STACKED._replace(one_scale=True)},
        bound=0.75,
    ),
    Pattern("python_scale", _build(python_scale, D, F), {"w": IN_OUT}),
    Pattern(
        "traced_scale",
        _build(traced_scale, D, F, extra=(np.float32(0.3),)),
        {"w": IN_OUT},
        batched=True,
    ),
    Pattern("negated", _build(negated, D, F), {"w": IN_OUT}),
    Pattern("bf16_cast", _build(bf16_cast, D, F), {"w": IN_OUT}, dtype="bfloat16"),
    Pattern(
        "bf16_round_trip",
        _build(bf16_round_trip, D, F),
        {"w": IN_OUT},
        dtype="bfloat16",
    ),
    Pattern("squeezed", _build(squeezed, 1, D, F), {"w": Axes((0, 1), (2,))}),
    Pattern("expanded", _build(expanded, D, F), {"w": IN_OUT}),
    Pattern("through_jit", _build(through_jit, D, F), {"w": IN_OUT}, bound=0.7),
    Pattern(
        "returns_weight",
        _build(returns_weight, D, F),
        {"w": IN_OUT},
        None,
        returns_operator=True,
    ),
    Pattern(
        "returns_transposed",
        _build(returns_transposed, D, F),
        {"w": IN_OUT},
        None,
        returns_operator=True,
    ),
    Pattern(
        "static_arguments",
        _build(static_arguments, D, D, extra=(True, 2, "sum", None, jnp.tanh)),
        {"w": IN_OUT},
        bound=0.75,
    ),
)
