"""`learn_weights`: planted weights, gradients through merges, entropy, messages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank.merging import concat, entropy, learn_weights
from tests.network import numbers
from tests.once import once
from tests.tolerances import assert_close
from tests.untyped import untyped

PARAMS = {
    "v": jnp.asarray(numbers(1, 6, 4)),
    "w": jnp.asarray(numbers(2, 4, 5)),
    "scale": jnp.ones(4),
}
KERNELS = lrk.matching("^[vw]$")
X = jnp.asarray(numbers(4, 12, 6))
PLANTED = [{"v": 0.2, "w": 1.4}, {"v": 0.9, "w": -0.5}]


@once
def trees():
    """Two tasks that adapt two leaves of three."""
    tx, found = lrk.lora(2, select=KERNELS), []
    for seed in (10, 20):
        state = tx.init(jax.random.key(seed), PARAMS)
        leaves, treedef = jax.tree.flatten(state.trainable)
        new = [jnp.asarray(numbers(seed + i, *x.shape)) for i, x in enumerate(leaves)]
        trainable = jax.tree.unflatten(treedef, new)
        found.append(tx.apply(PARAMS, state._replace(trainable=trainable)))
    return found


def model(params, x):
    return (x @ params["v"] * params["scale"][None]) @ params["w"]


lifted = lrk.lift(model)


def error(adapted, batch):
    """Of a linear model against its outputs under the weights that were planted."""
    return jnp.mean((lifted(adapted, batch["x"]) - batch["y"]) ** 2)


def planted(weights):
    return {"x": X, "y": lifted(concat(trees(), weights), X)}


def every(batch):
    return lambda _: batch


def learn(objective, batch, **more):
    told = {"steps": 250, "batches": every(batch)} | more
    return learn_weights(concat, trees(), objective, optax.adam(0.05), **told)


# --- planted weights -----------------------------------------------------------------


def test_one_weight_for_each_tree_is_recovered():
    found = learn(error, planted([0.7, -0.4]))
    np.testing.assert_allclose(found.weights, [0.7, -0.4], atol=1e-3)
    assert found.history.shape == (250,)
    assert found.history[-1] < 1e-5 * found.history[0]


def test_a_weight_for_each_leaf_is_recovered_where_one_for_each_tree_cannot():
    batch = planted(PLANTED)
    found = learn(error, batch, scope="leaf", init=[0.5, 0.5], steps=400)
    coarse = learn(error, batch)
    assert [list(w) for w in found.weights] == [["v", "w"]] * 2
    for own, want in zip(found.weights, PLANTED, strict=True):
        for path in want:
            np.testing.assert_allclose(own[path], want[path], atol=0.02)
    assert found.history[-1] < 1e-3 * coarse.history[-1]


def test_what_it_returns_is_the_merge_with_its_weights():
    found = learn(error, planted(PLANTED), scope="leaf", steps=3)
    assert_close(
        lrk.materialize(found.tree), lrk.materialize(concat(trees(), found.weights))
    )
    assert found.tree["scale"] is PARAMS["scale"]


def test_one_step_is_the_optimizer_s_step_on_the_gradient():
    batch, start = planted([1.0, 1.0]), jnp.array([0.3, 0.6])

    def value(weights):
        return error(concat(trees(), weights), batch)

    found = learn_weights(
        concat,
        trees(),
        error,
        optax.sgd(0.1),
        steps=1,
        batches=every(batch),
        init=start,
    )
    score, slope = jax.value_and_grad(value)(start)
    assert_close(found.weights, start - 0.1 * slope)
    assert_close(found.history, score[None])


def test_the_gradient_through_concat_is_that_of_finite_differences():
    def outputs(weights):
        return [
            sum(float(w) * np.asarray(t.delta(), np.float64) for w, t in terms)
            for terms in (
                [(weights[0][p], trees()[0][p]), (weights[1][p], trees()[1][p])]
                for p in ("v", "w")
            )
        ]

    y = planted([0.7, -0.4])["y"]

    def reference(flat):
        v, w = outputs([{"v": flat[0], "w": flat[1]}, {"v": flat[2], "w": flat[3]}])
        base = {p: np.asarray(PARAMS[p], np.float64) for p in PARAMS}
        out = np.asarray(X, np.float64) @ (base["v"] + v) @ (base["w"] + w)
        return np.mean((out - np.asarray(y, np.float64)) ** 2)

    def value(flat):
        weights = [{"v": flat[0], "w": flat[1]}, {"v": flat[2], "w": flat[3]}]
        return error(concat(trees(), weights), {"x": X, "y": y})

    at, h = np.array([0.3, 0.8, -0.2, 1.1]), 1e-5
    slopes = [
        (reference(at + h * e) - reference(at - h * e)) / (2 * h) for e in np.eye(4)
    ]
    got = jax.grad(value)(jnp.asarray(at, jnp.float32))
    np.testing.assert_allclose(got, slopes, rtol=2e-4)


# --- groups, batches, starts ---------------------------------------------------------


def test_leaves_of_a_group_share_their_weight():
    grouped = learn(error, planted(PLANTED), scope=lambda _: "all", steps=5)
    single = learn(error, planted(PLANTED), steps=5)
    for t, own in enumerate(grouped.weights):
        assert_close(
            jnp.stack([own["v"], own["w"]]), jnp.stack([single.weights[t]] * 2)
        )


def test_each_step_takes_its_batch_and_starts_again():
    def first(adapted, batch):
        del adapted
        return batch["number"]

    rows = {"number": jnp.arange(3.0)}
    found = learn(first, None, steps=7, batches=rows)
    assert found.history.tolist() == [0, 1, 2, 0, 1, 2, 0]
    told = learn(first, None, steps=4, batches=lambda step: {"number": 2.0 * step})
    assert told.history.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("init", "scope", "want"),
    [
        (0.3, "model", [0.3, 0.3]),
        ([0.1, 0.2], "model", [0.1, 0.2]),
        (0.3, "leaf", [{"v": 0.3, "w": 0.3}] * 2),
        (
            [0.1, {"v": 0.4, "w": 0.5}],
            "leaf",
            [{"v": 0.1, "w": 0.1}, {"v": 0.4, "w": 0.5}],
        ),
    ],
)
def test_weights_start_where_they_are_told(init, scope, want):
    told = {"steps": 1, "init": init, "scope": scope}
    still = learn_weights(
        concat,
        trees(),
        lambda _, batch: batch,
        optax.sgd(1.0),
        batches=jnp.ones(1),
        **told,
    )
    got = jax.tree.map(lambda w: round(float(w), 6), list(still.weights))
    assert got == want


def test_other_merges_and_optimizers_will_do():
    class Sign(NamedTuple):
        """Not optax: fixed steps against the sign of the gradient."""

        def init(self, params):
            del params
            return jnp.zeros((), jnp.int32)

        def update(self, grads, state, params):
            del params
            return -0.01 * jnp.sign(grads), state + 1

    def doubled(trees, weights):
        return concat(trees, [2 * w for w in weights])

    batch = planted([1.0, 0.2])
    told = {"steps": 60, "batches": every(batch)}
    found = learn_weights(doubled, trees(), error, Sign(), **told)
    np.testing.assert_allclose(found.weights, [0.5, 0.1], atol=0.011)


def test_it_runs_under_jit_and_vmap_and_traces_once(traces):
    batch = planted([0.7, -0.4])
    counted = traces(error)

    def run(init):
        return learn(counted, batch, init=init, steps=3)[::2]

    starts = jnp.array([[0.3, 0.3], [1.0, 0.0]])
    weights, history = jax.jit(jax.vmap(run))(starts)
    assert traces.count == 1
    for i in range(2):
        alone = learn(error, batch, init=starts[i], steps=3)
        assert_close(weights[i], alone.weights)
        assert_close(history[i], alone.history)


# --- entropy -------------------------------------------------------------------------


def test_entropy_is_the_mean_of_minus_p_log_p():
    logits = numbers(7, 3, 5, 4, scale=3.0)
    wide = np.asarray(logits, np.float64)
    p = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    want = np.float32((-p * np.log(p)).sum(-1).mean())
    assert_close(entropy(jnp.asarray(logits)), want)
    assert entropy(jnp.asarray(logits, jnp.bfloat16)).dtype == jnp.float32


def test_entropy_knows_its_bounds():
    assert_close(entropy(jnp.zeros((2, 8))), np.float32(np.log(8)))
    assert float(entropy(jnp.array([[300.0, 0.0, 0.0]]))) == 0.0


def test_entropy_and_its_gradient_are_finite_at_extreme_logits():
    logits = jnp.array([[1e30, 0.0, -1e30], [0.0, -jnp.inf, 0.0], [-200.0, 0.0, -99.0]])
    value, slope = jax.value_and_grad(entropy)(logits)
    assert_close(value, np.float32(np.log(2) / 3))
    assert np.isfinite(slope).all()


def test_unlabelled_entropy_falls():
    def unsure(adapted, batch):
        return entropy(lifted(adapted, batch))

    found = learn(unsure, X, steps=40)
    assert (np.diff(found.history) < 0).all()
    assert entropy(lifted(found.tree, X)) < 0.9 * found.history[0]


# --- messages ------------------------------------------------------------------------


def refused(error, message, **changes):
    told = {"merge": concat, "trees": trees(), "objective": lambda *_: jnp.ones(())}
    told |= {"optimizer": optax.sgd(0.1), "steps": 1, "batches": jnp.ones(1)}
    with untyped(), pytest.raises(error, match=message):
        learn_weights(**(told | changes))


def test_refuses_what_is_no_function():
    refused(TypeError, "merge is 'concat'", merge="concat")
    refused(TypeError, "objective is None", objective=None)
    message = r"optimizer.init is None; optimizer.update is None. Pass \(merge, trees"
    refused(TypeError, message, optimizer=0.1)


@pytest.mark.parametrize("steps", [2.0, True, None])
def test_refuses_steps_that_are_no_int(steps):
    refused(TypeError, f"steps must be an int, got {steps}", steps=steps)


def test_refuses_no_step():
    refused(ValueError, "steps must be at least 1, got 0", steps=0)


def test_refuses_trees_that_nothing_adapts():
    refused(ValueError, "no tree has an adapted leaf", trees=[PARAMS, PARAMS])


def test_refuses_unknown_scopes():
    refused(ValueError, "unknown scope 'layer'. Use 'model', 'leaf'", scope="layer")


@pytest.mark.parametrize(
    "batches", [{}, jnp.ones(()), {"x": jnp.ones((2, 3)), "y": jnp.ones(3)}]
)
def test_refuses_batches_without_one_leading_axis(batches):
    refused(ValueError, "batches must be arrays with one leading axis", batches=batches)


@pytest.mark.parametrize("result", [jnp.ones(2), jnp.ones((), jnp.int32)])
def test_refuses_objectives_that_are_no_scalar(result):
    message = r"must return a floating scalar, got (float32\[2\]|int32\[\])"
    refused(ValueError, message, objective=lambda *_: result)


def test_refuses_starts_that_do_not_fit():
    refused(ValueError, "learn_weights: init: expected 2 weights", init=[1.0])
    refused(ValueError, "learn_weights: init: the weights must be", init=jnp.nan)
    half = [0.1, {"v": 0.4}]
    refused(ValueError, "learn_weights: init: weights by path", init=half, scope="leaf")
    uneven = [0.1, {"v": 0.4, "w": 0.5}]
    refused(ValueError, r"init differs within a group at \['w'\]", init=uneven)
