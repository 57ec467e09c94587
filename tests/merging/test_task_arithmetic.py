"""`task_arithmetic`: the exact sum, and one rank for each `A`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import concat, task_arithmetic
from tests.merging.exact_cases import (
    PARAMS,
    WEIGHTS,
    assert_lives_on,
    assert_refuses,
    assert_slope,
    merged_by,
    tree,
    trees,
)
from tests.network import numbers
from tests.reference import merging_exact as reference
from tests.tolerances import assert_close


def test_it_is_the_scaled_sum():
    merged = task_arithmetic(trees(), [0.3 * w for w in WEIGHTS])
    want = merged_by(reference.task_arithmetic, trees(), [0.3 * w for w in WEIGHTS])
    assert_close(lrk.materialize(merged), want)
    scaled = task_arithmetic(trees(), WEIGHTS, scale=0.3)
    assert_close(lrk.materialize(scaled), want)
    assert scaled["norm"] is PARAMS["norm"]


def test_the_gradient_is_that_of_the_sum():
    assert_slope(task_arithmetic, reference.task_arithmetic)


def test_the_scale_may_be_traced():
    def total(scale):
        merged = task_arithmetic(trees(), WEIGHTS, scale=scale)
        return sum(jnp.sum(x) for x in jax.tree.leaves(lrk.materialize(merged)))

    unit = {p: np.float64(x) for p, x in merged_by_one().items()}
    want = sum(np.sum(unit[p] - np.float64(PARAMS[p])) for p in PARAMS)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.3), want, rtol=1e-4)


def merged_by_one():
    return merged_by(reference.task_arithmetic, trees(), WEIGHTS)


def test_it_lives_on():
    assert_lives_on(lambda own, w: task_arithmetic(own, w, scale=0.3))


def test_one_adapter_keeps_its_rank():
    merged = task_arithmetic([trees()[0]], [0.5])
    assert merged["layers"].rank == 2
    assert_close(
        lrk.materialize(merged),
        merged_by(reference.task_arithmetic, trees()[:1], [0.5]),
    )


def sharing(equal):
    """Two trees with the `A` of the first, as one array or equal ones; a third."""
    first, third = tree(100, 2), tree(300, 2)
    second = {
        p: x.replace(a=jnp.array(first[p].a, copy=True) if equal else first[p].a)
        if isinstance(x, lrk.LowRank)
        else x
        for p, x in tree(200, 2, 0.7).items()
    }
    return first, second, third


@pytest.mark.parametrize("equal", [False, True], ids=["one-array", "equal-arrays"])
def test_trees_that_share_a_are_summed_in_one_rank(equal):
    own = sharing(equal)
    merged = task_arithmetic(own[:2], WEIGHTS[:2])
    assert [merged[p].rank for p in ("w", "layers", "heads")] == [2, 2, 2]
    assert_close(merged["w"].a, own[0]["w"].a)
    want = merged_by(reference.task_arithmetic, own[:2], WEIGHTS[:2])
    assert_close(lrk.materialize(merged), want)
    mixed = task_arithmetic(own, WEIGHTS)
    assert [mixed[p].rank for p in ("w", "layers", "heads")] == [4, 4, 4]
    want = merged_by(reference.task_arithmetic, own, WEIGHTS)
    assert_close(lrk.materialize(mixed), want)


def test_what_is_not_known_is_put_side_by_side():
    own = sharing(True)[:2]
    merged = jax.jit(lambda *trees: task_arithmetic(trees))(*own)
    assert merged["w"].rank == 4
    assert_close(lrk.materialize(merged), lrk.materialize(task_arithmetic(own)))
    known = jax.jit(lambda: task_arithmetic(own))()
    assert known["w"].rank == 2


def test_one_a_restored_from_files_is_found():
    own = [jax.tree.map(np.array, tree) for tree in sharing(True)[:2]]
    assert task_arithmetic(own)["w"].rank == 2


def test_weights_by_path():
    paths = ("w", "bias", "layers", "heads")
    by_path = dict.fromkeys(paths, 0.0) | {"w": 2.0}
    merged = task_arithmetic(trees()[:2], [0.5, by_path])
    halved = lrk.materialize(task_arithmetic(trees()[:2], [0.5, 2.0]))
    alone = lrk.materialize(task_arithmetic(trees()[:1], [0.5]))
    want = alone | {"w": halved["w"]}
    assert_close(lrk.materialize(merged), want)


def test_the_value_is_that_of_concat():
    own = sharing(True)
    assert_close(
        lrk.materialize(task_arithmetic(own, WEIGHTS)),
        lrk.materialize(concat(own, WEIGHTS)),
    )


def test_half_precision_stays():
    w = jnp.zeros((6, 4), jnp.bfloat16)
    a, b = (jnp.asarray(numbers(1, *s), jnp.bfloat16) for s in ((6, 2), (2, 4)))
    merged = task_arithmetic([{"w": lrk.LowRank(w, a, b)}] * 2, jnp.array([0.5, 1.0]))
    assert (merged["w"].a.dtype, merged["w"].b.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_refusals():
    assert_refuses("task_arithmetic", task_arithmetic)


@pytest.mark.parametrize("scale", [float("nan"), jnp.ones(2), jnp.inf])
def test_refuses_a_scale_that_is_no_number(scale):
    with pytest.raises(ValueError, match="task_arithmetic: scale must be a finite"):
        task_arithmetic(trees(), scale=scale)
