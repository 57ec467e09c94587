"""Tangent kernels against Jacobians from differences, and their alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import A, B, W
from tests.network import numbers
from tests.reference import analysis as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

X, Y = numbers(31, 4, 6), numbers(32, 3, 6)
OUT = numbers(33, 5, 2)
PARAMS = {"w": jnp.asarray(W), "out": jnp.asarray(OUT), "steps": 1}
TX = lrk.chain(lrk.lora(3, select=lrk.matching("^w$")))


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["out"]


def plain(flat, x):
    """The model in float64, from its weights as one vector: `[examples, outputs]`."""
    w, out = flat[:30].reshape(6, 5), flat[30:].reshape(5, 2)
    return np.tanh(np.float64(x) @ w) @ out


def factored(flat, x):
    a, b = flat[:18].reshape(6, 3), flat[18:].reshape(3, 5)
    return plain(np.concatenate([(W + a @ b).ravel(), OUT.ravel()]), x)


def wanted(fn, at, x, y):
    """All entries of the kernel, `[N, M, O, O]`."""

    def jacobian(x):
        flat = reference.jacobian(lambda flat: fn(flat, x).ravel(), at)
        return flat.reshape(len(x), 2, -1)

    one, two = jacobian(x), jacobian(y)
    return np.einsum("iop,jqp->ijoq", one, two)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_kernel_of_all_weights(batch_size):
    at = np.concatenate([W.ravel(), OUT.ravel()])
    want = wanted(plain, at, X, Y)
    got = jax.jit(
        lambda p, x, y: analysis.kernel(
            model, p, x, y, trace=False, batch_size=batch_size
        )
    )(PARAMS, X, Y)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_the_kernel_of_an_adapter_has_no_derivative_of_the_base():
    state = TX.init(jax.random.key(0), PARAMS)
    trainable = ({"w": {"a": jnp.asarray(A), "b": jnp.asarray(B)}},)

    def adapted(trainable, x):
        own = TX.apply(PARAMS, state._replace(trainable=trainable))
        return lrk.lift(model)(own, x)

    got = jax.jit(lambda t: analysis.kernel(adapted, t, X))(trainable)
    want = np.trace(
        wanted(factored, np.concatenate([A.ravel(), B.ravel()]), X, X), 0, 2, 3
    )
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_known_kernel_is_that_of_inner_products():
    def linear(w, x):
        return x @ w

    found = analysis.kernel(linear, jnp.zeros((6, 2)), X)
    assert_close(found, np.float32(2 * X @ X.T))


def test_alignment():
    one, two = X @ X.T, numbers(34, 4, 4)
    got = analysis.kernel_alignment(one, two)
    assert_close(got, np.float32(reference.cosine(one, two)))
    got = analysis.kernel_alignment(one, two, centered=True)
    assert_close(got, np.float32(reference.kernel_alignment(one, two)))
    assert_close(analysis.kernel_alignment(one, 3 * one), jnp.float32(1))
    # A constant kernel is nothing once it is centred.
    assert float(analysis.kernel_alignment(one, 0 * one + 2, centered=True)) < 1e-6
    grad = jax.grad(lambda k: analysis.kernel_alignment(k, two))(jnp.asarray(one))
    flat = reference.jacobian(
        lambda k: np.array([reference.cosine(k, two.ravel())]), one.ravel()
    )
    np.testing.assert_allclose(grad, flat.reshape(4, 4), atol=1e-5)


def test_refusals():
    with pytest.raises(TypeError, match="holds operators at 'w'. Differentiate state"):
        analysis.kernel(model, {"w": lrk.LowRank(PARAMS["w"], A, B)}, X)
    with pytest.raises(TypeError, match="none of 1 leaves of params is floating"):
        analysis.kernel(model, {"w": jnp.ones(2, jnp.int32)}, X)
    with pytest.raises(ValueError, match="first axis of examples as x, got none"):
        analysis.kernel(model, PARAMS, {})
    with pytest.raises(ValueError, match=r"examples as other, got \[\(3,\), \(4,\)\]"):
        analysis.kernel(model, PARAMS, X, (X, Y))
    with untyped(), pytest.raises(TypeError, match="batch_size must be an int, got '2"):
        analysis.kernel(model, PARAMS, X, batch_size="2")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        analysis.kernel(model, PARAMS, X, batch_size=0)
    with pytest.raises(ValueError, match="kernel: expected finite numbers, .* in 'w'"):
        analysis.kernel(model, PARAMS | {"w": PARAMS["w"] * jnp.nan}, X)
    align = analysis.kernel_alignment
    with pytest.raises(ValueError, match=r"kernels of one shape, got \(4, 6\) and"):
        align(X, Y)
    with pytest.raises(ValueError, match=r"expected \[N, M\] to centre, got \(4,\)"):
        align(X[:, 0], X[:, 0], centered=True)
    with pytest.raises(ValueError, match="expected finite numbers, .* in k2"):
        align(X, X * np.nan)
