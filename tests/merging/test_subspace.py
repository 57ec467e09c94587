"""What all merges in a subspace share: refusals, jit, gradients, ranks, composition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import (
    core_space,
    iso,
    iso_cts,
    knots,
    task_arithmetic,
    ties,
    tsv,
)
from tests.merging.subspace import (
    BASE,
    LEAVES,
    PATTERN,
    WEIGHTS,
    added,
    by_matrix,
    changes,
    expected,
    largest,
    models,
    slope,
    trees,
)
from tests.network import numbers
from tests.reference import merging_subspace as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

DENSITY = 0.4


def ties_of(vectors):
    return reference.ties(vectors, DENSITY)


# Each merge beside what the equations make of the same changes.
PAIRS = {
    "knots": (
        functools.partial(knots, density=DENSITY),
        lambda w: reference.knots(changes(), w, ties_of),
    ),
    "core_space": (
        functools.partial(core_space, merge=functools.partial(ties, density=DENSITY)),
        lambda w: reference.core_space(models(), w, ties_of),
    ),
    "tsv": (tsv, lambda w: by_matrix(reference.tsv, w)),
    "iso": (iso, lambda w: by_matrix(reference.iso, w)),
    "iso_cts": (
        functools.partial(iso_cts, common=0.5),
        lambda w: by_matrix(reference.iso_cts, w, 0.5),
    ),
}
NAMES = list(PAIRS)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_dense_equations(name):
    merge, dense = PAIRS[name]
    own = trees(bias=False)

    def total(weights):
        out = added(merge(own, weights))
        return jnp.sum(out * PATTERN.astype(np.float32)), out

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, jitted), gradient = run(jnp.array(WEIGHTS))
    eager = added(merge(own, list(WEIGHTS)))
    assert_close(jitted, expected(dense(WEIGHTS)).astype(np.float32))
    assert_close(jitted, eager)
    want = slope(dense, WEIGHTS)
    assert (np.abs(want) > 1e-2).all()
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-4 * abs(want).max())


@pytest.mark.parametrize("name", ["tsv", "iso", "iso_cts"])
def test_derivatives_by_the_factors_are_those_of_the_equations(name):
    merge, dense = (
        {"tsv": tsv, "iso": iso, "iso_cts": PAIRS["iso_cts"][0]}[name],
        {
            "tsv": reference.tsv,
            "iso": reference.iso,
            "iso_cts": functools.partial(reference.iso_cts, common=0.5),
        }[name],
    )
    pairs = [(numbers(i, 8, r), numbers(i + 9, r, 6)) for i, r in ((1, 2), (3, 3))]
    moves = jax.tree.map(lambda x: numbers(77, *x.shape), pairs)
    w, ones = jnp.zeros((8, 6)), (1.0, 1.0)

    def run(pairs):
        own = merge([{"w": lrk.LowRank(w, a, b)} for a, b in pairs])
        return lrk.materialize(own)["w"]

    def along(step):
        moved = jax.tree.map(
            lambda x, d: x.astype(np.float64) + step * d.astype(np.float64),
            pairs,
            moves,
        )
        return dense([(a @ b).T for a, b in moved], ones).T

    _, tangent = jax.jit(lambda x, d: jax.jvp(run, (x,), (d,)))(pairs, moves)
    want = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(tangent, want, rtol=2e-3, atol=2e-4 * abs(want).max())


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_one_adapted_tree_that_composes(name):
    merge, _ = PAIRS[name]
    merged = merge(trees(), WEIGHTS)
    assert lrk.split(merged["first"])[0] is BASE["first"]
    assert merged["norm"] is BASE["norm"]
    assert isinstance(merged["bias"], lrk.Delta)
    for path, leaf in LEAVES.items():
        rank = sum(leaf[3])
        assert isinstance(merged[path], lrk.LowRank)
        assert merged[path].rank <= rank
        assert merged[path].shape == BASE[path].shape
    d = lrk.split(merged["only"])[1][0].delta()
    assert np.linalg.matrix_rank(d, tol=1e-4) <= 3
    x = jnp.asarray(numbers(70, 4, 8))
    lifted = lrk.lift(jnp.matmul)(x, merged["first"])
    assert_close(lifted, x @ lrk.materialize(merged)["first"])
    shapes = jax.eval_shape(lambda *own: merge(own, WEIGHTS), *trees())
    assert jax.tree.leaves(shapes) == jax.tree.leaves(jax.eval_shape(lambda: merged))
    again = task_arithmetic([merged, merged], [2.0, -0.5])
    assert_close(added(again), 1.5 * added(merged))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_size_of_a_weight_is_formed(name):
    # Elementwise merges of KnOTS act on [n, k]; those of Core Space on [k, k].
    w = jnp.zeros((64, 48))
    own = [
        {"w": lrk.LowRank(w, numbers(i, 64, 2), numbers(i + 5, 2, 48))} for i in (1, 2)
    ]
    run = functools.partial(PAIRS[name][0], own)
    assert largest(run, [1.0, 2.0]) < 64 * 48 / 4
    assert largest(lambda w: lrk.materialize(run(w)), [1.0, 2.0]) == 64 * 48


@pytest.mark.parametrize("name", ["tsv", "iso", "iso_cts"])
def test_weights_may_differ_by_path(name):
    merge, dense = PAIRS[name]
    maps = [dict.fromkeys(LEAVES, w) for w in WEIGHTS]
    maps[0]["only"] = jnp.array(-3.0)
    got = added(merge(trees(bias=False), maps))
    first, second = expected(dense(WEIGHTS)), expected(dense((-3.0, *WEIGHTS[1:])))
    want = np.concatenate([first[:-48], second[-48:]])
    assert_close(got, want.astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_any_change_leaves_finite_derivatives(name):
    merge, _ = PAIRS[name]
    w, a, b = jnp.zeros((8, 6)), numbers(1, 8, 2), numbers(2, 2, 6)

    def total(b2, weights):
        own = [{"w": lrk.LowRank(w, a, x)} for x in (b, b2)]
        return jnp.sum(jnp.sin(lrk.materialize(merge(own, weights))["w"]))

    zero = jnp.zeros((2, 6))
    found = jax.jit(jax.grad(total, (0, 1)))(zero, jnp.ones(2))
    assert all(jnp.isfinite(x).all() for x in found)


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_refusals_name_the_merge_and_what_is_wrong(name):
    merge, _ = PAIRS[name]
    with pytest.raises(ValueError, match=f"^{name}: expected at least one adapted"):
        merge([])
    message = f"^{name}: expected a list of adapted trees"
    with untyped(), pytest.raises(TypeError, match=message):
        merge(iter(trees()))
    with pytest.raises(ValueError, match=f"^{name}: expected 3 weights"):
        merge(trees(), [1.0, 2.0])
    with pytest.raises(ValueError, match=f"^{name}: the weights must be finite"):
        merge(trees(), [1.0, float("nan"), 2.0])
    other = {**trees()[1], "norm": jnp.zeros(8)}
    with pytest.raises(
        ValueError, match=f"^{name}: the trees are not adapted from one"
    ):
        merge([trees()[0], other])
