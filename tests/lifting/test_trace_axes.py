"""`trace_axes` reads the axes of every weight off its use."""

import jax
import jax.numpy as jnp
from jax import lax

import lowrank as lrk
from tests import network
from tests.tolerances import assert_close


def numbers(seed, *shape):
    return jnp.asarray(network.numbers(seed, *shape))


def traced(fn, w, *args):
    return lrk.trace_axes(lambda p, *a: fn(p["w"], *a), {"w": w}, *args).get("w")


def test_kernels_in_both_layouts():
    w, x = numbers(1, 4, 6), numbers(2, 5, 4)
    assert traced(lambda w, x: x @ w, w, x) == lrk.Axes((), (0,), (1,))
    assert traced(lambda w, x: x @ w.T, w.T, x) == lrk.Axes((), (1,), (0,))


def test_heads_and_out_projections():
    w, x = numbers(1, 2, 3, 5), numbers(2, 7, 2, 3)
    out = traced(lambda w, x: jnp.einsum("bhd,hdo->bo", x, w), w, x)
    assert out == lrk.Axes((), (0, 1), (2,))
    y = numbers(3, 7, 2)
    heads = traced(lambda w, y: jnp.einsum("bi,ihd->bhd", y, w), w, y)
    assert heads == lrk.Axes((), (0,), (1, 2))


def test_a_reshaped_kernel_keeps_its_own_axes():
    w, x = numbers(1, 4, 6), numbers(2, 5, 4)

    def fn(w, x):
        return jnp.einsum("bi,ihd->bhd", x, w.reshape(4, 2, 3))

    assert traced(fn, w, x) == lrk.Axes((), (0,), (1,))


def test_experts_and_scanned_layers_are_stacks():
    w, x = numbers(1, 3, 4, 4), numbers(2, 3, 5, 4)
    experts = traced(lambda w, x: jnp.einsum("ebi,eio->ebo", x, w), w, x)
    assert experts == lrk.Axes((0,), (1,), (2,))
    layers = traced(lambda w, x: lax.scan(lambda h, k: (h @ k, None), x, w)[0], w, x[0])
    assert layers == lrk.Axes((0,), (1,), (2,))
    indexed = traced(
        lambda w, x: lax.fori_loop(0, 3, lambda i, h: h @ w[i], x), w, x[0]
    )
    assert indexed == lrk.Axes((0,), (1,), (2,))


def test_convolutions_and_tied_embeddings():
    kernel, image = numbers(1, 3, 3, 2, 5), numbers(2, 1, 6, 6, 2)

    def conv(w, x):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    assert traced(conv, kernel, image) == lrk.Axes((), (0, 1, 2), (3,))
    table = numbers(3, 9, 4)
    tied = traced(lambda w, i: w[i] @ w.T, table, jnp.array([1, 2]))
    assert tied == lrk.Axes((), (0,), (1,))


def test_a_weight_that_is_formed_is_left_out():
    w, x = numbers(1, 4, 6), numbers(2, 5, 4)
    assert traced(lambda w, x: x @ (w / jnp.linalg.norm(w)), w, x) is None
    assert traced(lambda _, x: x, w, x) is None


def test_nothing_is_computed_and_static_arguments_stay_static():
    w = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    x = jax.ShapeDtypeStruct((5, 4), jnp.float32)

    def fn(w, x, twice):
        return x @ w if twice else x

    assert traced(fn, w, x, True) == lrk.Axes((), (0,), (1,))


def test_factories_take_what_it_returns():
    params, x = {"w": numbers(1, 2, 3, 5)}, numbers(2, 7, 2, 3)

    def fn(p, x):
        return jnp.einsum("bhd,hdo->bo", x, p["w"])

    axes = lrk.trace_axes(fn, params, x)
    tx = lrk.lora(
        2, select=lrk.matching("w"), axes=axes, init_b=jax.nn.initializers.ones
    )
    state = tx.init(jax.random.key(0), params)
    assert state.trainable["w"]["a"].shape == (2, 3, 2)
    adapted = tx.apply(params, state)
    assert_close(lrk.lift(fn)(adapted, x), fn(lrk.materialize(adapted), x))
