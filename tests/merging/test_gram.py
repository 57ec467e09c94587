"""`gram`: `X^T X` of what meets a weight, through every construct that `lift` runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import gram
from tests.network import numbers
from tests.once import once
from tests.tolerances import assert_close

AXES = {
    "layers/kernel": lrk.Axes((0,), (1,), (2,)),
    "heads/kernel": lrk.Axes((), (0,), (1, 2)),
    "out/kernel": lrk.Axes((), (0, 1), (2,)),
}
PARAMS = {
    "first": {"kernel": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.zeros(4)},
    "layers": {"kernel": jnp.asarray(numbers(2, 3, 4, 4))},
    "heads": {"kernel": jnp.asarray(numbers(3, 4, 2, 3))},
    "out": {"kernel": jnp.asarray(numbers(5, 2, 3, 5))},
}
KERNELS = lrk.matching("kernel$")
X = jnp.asarray(numbers(9, 7, 6))


@once
def adapted():
    tx = lrk.chain(
        lrk.lora(2, select=KERNELS, axes=AXES), lrk.full(select=lrk.matching("bias"))
    )
    state = tx.init(jax.random.key(0), PARAMS)
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [jnp.asarray(numbers(10 + i, *x.shape)) for i, x in enumerate(leaves)]
    return tx.apply(PARAMS, state._replace(trainable=treedef.unflatten(new)))


def block(h, w):
    return jnp.tanh(h @ w)


def model(params, x):
    """A plain layer, a scan with recomputation, einsum, and an inner jit."""
    h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    h, _ = jax.lax.scan(
        lambda h, w: (jax.checkpoint(block)(h, w), None), h, params["layers"]["kernel"]
    )
    h = jnp.einsum("nd,dhk->nhk", h, params["heads"]["kernel"])
    product = jax.jit(functools.partial(jnp.einsum, "nhk,hko->no"))
    return {"logits": product(h, params["out"]["kernel"]), "count": x.shape[0]}


def squared(x):
    return np.asarray(x).T @ np.asarray(x)


def expected():
    """Layer by layer on the materialised weights."""
    params = lrk.materialize(adapted())
    first = params["first"]
    found = {"first/kernel": squared(X)}
    h, layers = jnp.tanh(X @ first["kernel"] + first["bias"][None]), []
    for w in params["layers"]["kernel"]:
        layers.append(squared(h))
        h = block(h, w)
    found["layers/kernel"] = np.stack(layers)
    found["heads/kernel"] = squared(h)
    h = jnp.einsum("nd,dhk->nhk", h, params["heads"]["kernel"])
    return found | {"out/kernel": squared(h.reshape(7, 6))}


def test_every_adapted_matrix_has_the_gram_matrix_of_its_inputs():
    found = gram(model, adapted(), X)
    assert_close(found, expected())
    assert_close(jax.jit(lambda tree, x: gram(model, tree, x))(adapted(), X), found)


def test_rows_add_up_over_batches_and_under_vmap():
    parts = [gram(model, adapted(), x) for x in (X[:3], X[3:])]
    assert_close(jax.tree.map(jnp.add, *parts), expected())

    def by_example(params, x):
        return jax.vmap(lambda row: model(params, row[None])["logits"][0])(x)

    assert_close(gram(by_example, adapted(), X), expected())


def test_the_cost_is_that_of_the_gram_matrices_and_no_backward_pass():
    def flops(run):
        return jax.jit(run).lower(W, X).compile().cost_analysis()["flops"]

    def chained(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"]

    n, rows = 6, 7
    forward = flops(lambda w, x: lrk.lift(chained)({"w": w}, x))
    taken = flops(lambda w, x: gram(chained, {"w": w}, x)["w"])
    # For each of two uses, x times the identity and then X^T X.
    assert taken <= forward + 2 * 2 * 2 * rows * n * n + 200


W = lrk.LowRank(
    jnp.asarray(numbers(1, 6, 6)), *(jnp.asarray(numbers(i, *s)) for i, s in
    ((2, (6, 1)), (3, (1, 6))))
)  # fmt: skip


def test_two_uses_of_one_weight_add_up():
    found = gram(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], {"w": W}, X)
    second = jnp.tanh(X @ lrk.materialize(W))
    assert_close(found["w"], squared(X) + squared(second))


def test_inputs_of_every_slice_of_a_stack_are_its_own():
    stacked = lrk.LowRank(
        jnp.asarray(numbers(1, 2, 4, 3)),
        jnp.asarray(numbers(2, 2, 4, 1)),
        jnp.asarray(numbers(3, 2, 1, 3)),
    )
    x = jnp.asarray(numbers(4, 2, 5, 4))
    own = gram(lambda p, x: jnp.einsum("sni,sio->sno", x, p["w"]), {"w": stacked}, x)
    assert_close(own["w"], np.stack([squared(x[0]), squared(x[1])]))
    same = gram(lambda p, x: jnp.einsum("ni,sio->sno", x, p["w"]), {"w": stacked}, x[0])
    assert_close(same["w"], np.stack([squared(x[0])] * 2))


def test_a_turned_weight_keeps_the_order_of_its_inputs():
    tx = lrk.lora(1, axes={"w": lrk.Axes((), (1, 2), (0,))}, select=lrk.matching("w"))
    params = {"w": jnp.asarray(numbers(1, 5, 2, 3))}
    tree = tx.apply(params, tx.init(jax.random.key(0), params))
    x = jnp.asarray(numbers(2, 7, 3, 2))

    def turned(p, x):
        return x.reshape(7, 6) @ p["w"].transpose(2, 1, 0).reshape(6, 5)

    assert_close(gram(turned, tree, x)["w"], squared(x.swapaxes(1, 2).reshape(7, 6)))


def test_a_look_up_counts_its_rows():
    found = gram(lambda p, i: p["w"][i], {"w": W}, jnp.array([[0, 1], [1, 4]]))
    want = np.diag([1.0, 2.0, 0.0, 0.0, 1.0, 0.0]).astype(np.float32)
    assert_close(found["w"], want)


def test_low_precision_is_summed_in_float32():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"w": W})
    x = X.astype(jnp.bfloat16)
    found = gram(lambda p, x: x @ p["w"], low, x)["w"]
    assert_close(found, squared(x.astype(jnp.float32)))


def test_leaves_can_be_chosen_and_need_no_adapter():
    plain = {"v": jnp.asarray(numbers(1, 4, 2)), "w": W}

    def both(p, x):
        return (x @ p["w"])[:, :4] @ p["v"]

    found = gram(both, plain, X, select=lrk.matching("v"))
    assert set(found) == {"v"}
    assert_close(found["v"], squared((X @ lrk.materialize(W))[:, :4]))


# --- messages ------------------------------------------------------------------------


def test_refuses_uses_that_no_gram_matrix_describes():
    cases = {
        "conv_general_dilated": lambda p, x: jax.lax.conv(
            x[None, None], p["w"][None, None], (1, 1), "SAME"
        ),
        "dot_general": lambda p, x: x @ p["w"].T,
        "sin": lambda p, x: x @ jnp.sin(p["w"]),
    }
    for name, fn in cases.items():
        message = rf"gram: no Gram matrix describes .* 'w' \(Tap\) at {name} .*select="
        with pytest.raises(ValueError, match=message):
            gram(fn, {"w": W}, X)
    with pytest.raises(ValueError, match="gram: .* the function never uses 'w'"):
        gram(lambda _, x: x, {"w": W}, X)


def test_refuses_results_that_tell_nothing():
    with pytest.raises(ValueError, match="gram: the result of fn holds no floating"):
        gram(lambda p, x: jnp.argmax(x @ p["w"]), {"w": W}, X)
    with pytest.raises(ValueError, match="gram: fn returns a weight"):
        gram(lambda p, x: (p["w"], x @ p["w"]), {"w": W}, X)


def test_refuses_leaves_without_inputs_and_outputs():
    bias = {"bias": lrk.Delta(jnp.zeros(3), jnp.ones(3)), "w": jnp.ones((2, 3, 4))}
    with pytest.raises(ValueError, match="gram: no inputs to tell .* at 'bias'"):
        gram(lambda _, x: x, bias, X)
    message = r"gram: no inputs to tell .* at 'bias' of shape \(3,\); 'w' of shape \(2"
    with pytest.raises(ValueError, match=message):
        gram(lambda _, x: x, bias, X, select=lambda *_: True)
    with pytest.raises(ValueError, match="gram: no leaf to look at: none is adapted"):
        gram(lambda _, x: x, {"w": jnp.ones((2, 3))}, X)
