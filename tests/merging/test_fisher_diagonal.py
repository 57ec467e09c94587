"""`fisher_diagonal`: squared gradients per example, at given or drawn labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import fisher_diagonal
from tests.network import numbers
from tests.reference import merging_data as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

W = jnp.asarray(numbers(1, 4, 3))
X = jnp.asarray(numbers(2, 5, 4))
LABELS = jnp.array([0, 2, 1, 1, 0])
PARAMS = {"bias": jnp.zeros(3), "name": "linear", "w": W}


def model(params, x):
    return x @ params["w"] + params["bias"][None]


def adapted():
    factors = jnp.asarray(numbers(3, 4, 2)), jnp.asarray(numbers(4, 2, 3))
    return {**PARAMS, "w": lrk.LowRank(W, *factors)}


def test_it_is_taken_at_the_adapted_point_over_all_batches():
    batches = [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])]
    found = fisher_diagonal(model, adapted(), batches, chunk=2)
    want = reference.softmax_fisher(X, lrk.materialize(adapted()["w"]), LABELS)
    assert_close(found, {"w": want.astype(np.float32)})


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_chunk_changes_nothing(chunk):
    found = fisher_diagonal(model, adapted(), [(X, LABELS)], chunk=chunk)
    whole = fisher_diagonal(model, adapted(), [(X, LABELS)], chunk=2)
    assert_close(found, whole)


def test_of_plain_parameters_every_floating_leaf_is_taken():
    found = fisher_diagonal(model, PARAMS, [(X, LABELS)])
    assert set(found) == {"bias", "w"}
    assert_close(found["w"], reference.softmax_fisher(X, W, LABELS).astype(np.float32))
    only = fisher_diagonal(model, PARAMS, [(X, LABELS)], select=lrk.is_matrix)
    assert set(only) == {"w"}


def test_with_a_key_the_mean_over_draws_is_the_true_information():
    many = 4000
    x = jnp.broadcast_to(X[:1], (many, 4))
    found = fisher_diagonal(model, PARAMS, [(x, None)], jax.random.key(0), chunk=500)
    want = reference.expected_softmax_fisher(X[:1], W)
    squares = [reference.softmax_fisher(X[:1], W, [i]) for i in range(3)]
    spread = np.max(squares, axis=0) - np.min(squares, axis=0)
    assert (np.abs(found["w"] - want) < 4 * spread / 2 / many**0.5).all()
    labelled = reference.softmax_fisher(X[:1], W, [0])
    assert (np.abs(labelled - want) > 4 * spread / 2 / many**0.5).any()


def test_draws_differ_between_batches_and_follow_the_key():
    def found(key, batches=1):
        batch = [(X, None)] * batches
        return fisher_diagonal(model, PARAMS, batch, jax.random.key(key))["w"]

    assert_close(found(1), found(1))
    assert not np.allclose(found(1), found(2))
    assert not np.allclose(found(1), found(1, batches=2))


def test_positions_of_an_example_are_summed_before_squaring():
    tokens, labels = X[None, :3], jnp.array([[0, 2, -1]])

    def per_token(params, x):
        return x @ params["w"]

    found = fisher_diagonal(per_token, {"w": W}, [(tokens, labels)])["w"]

    def total(w):
        logs = jax.nn.log_softmax(tokens[0] @ w)
        return logs[0, 0] + logs[1, 2]

    assert_close(found, jax.grad(total)(W) ** 2)
    drawn = fisher_diagonal(
        per_token, {"w": W}, [(tokens, -jnp.ones_like(labels))], jax.random.key(0)
    )
    assert not drawn["w"].any()


def test_gradients_of_low_precision_are_squared_in_float32():
    low = {"w": W.astype(jnp.bfloat16)}
    found = fisher_diagonal(lambda p, x: x @ p["w"].astype(x.dtype), low, [(X, LABELS)])
    want = reference.softmax_fisher(X, low["w"].astype(jnp.float32), LABELS)
    assert found["w"].dtype == jnp.float32
    assert_close(found["w"], want.astype(np.float32), "bfloat16")


def test_it_runs_under_jit():
    run = jax.jit(
        lambda w, x: fisher_diagonal(model, {**PARAMS, "w": w}, [(x, LABELS)])
    )
    assert_close(run(W, X), fisher_diagonal(model, PARAMS, [(X, LABELS)]))


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "expected at least one batch, got none"),
        ([X], r"batch 0: expected a pair \(x, labels\)"),
        ([(X, LABELS), (X, None)], r"batch 1 has no labels\. Pass a key"),
        ([(X, LABELS[:2])], r"batch 0: .* got sizes \[\(2,\), \(5,\)\]"),
        ([(X[:0], LABELS[:0])], r"batch 0: .* at least one, got sizes \[\(0,\)\]"),
    ],
)
def test_refuses_batches_that_do_not_fit(batches, message):
    refused = pytest.raises(ValueError, match=f"fisher_diagonal: {message}")
    with untyped(), refused:
        fisher_diagonal(model, PARAMS, batches)


def test_refuses_an_empty_choice_and_chunk():
    message = "no leaf to look at: none is adapted or selected, among 'bias', 'w'"
    with pytest.raises(ValueError, match=f"fisher_diagonal: {message}"):
        fisher_diagonal(model, PARAMS, [(X, LABELS)], select=lrk.matching("v$"))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        fisher_diagonal(model, PARAMS, [(X, LABELS)], chunk=0)
