"""`linear`: PEFT's sum of factors, cross terms and all."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import concat, linear, svd, task_arithmetic
from tests.merging.exact_cases import (
    PARAMS,
    WEIGHTS,
    assert_lives_on,
    assert_refuses,
    assert_slope,
    merged_by,
    sizes,
    tree,
    trees,
    wide,
)
from tests.network import numbers
from tests.reference import merging_exact as reference
from tests.tolerances import assert_close

GOLDEN = Path(__file__).parent.parent / "golden" / "merging_linear.npz"
SAME = (2, 2, 2)
SIGNED = (0.5, -1.25, 2.0)


@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
def test_it_has_all_the_cross_terms(weights):
    merged = linear(trees(SAME), weights)
    want = merged_by(reference.linear, trees(SAME), weights)
    assert_close(lrk.materialize(merged), want)
    assert merged["layers"].rank == 2
    assert merged["norm"] is PARAMS["norm"]


@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
def test_the_gradient_is_that_of_the_equation(weights):
    assert_slope(linear, reference.linear, weights, trees(SAME))


def test_it_lives_on():
    assert_lives_on(linear, trees(SAME))


def test_one_adapter_is_scaled():
    want = merged_by(reference.task_arithmetic, trees()[:1], [-0.5])
    assert_close(lrk.materialize(linear(trees()[:1], [-0.5])), want)


def test_a_shared_a_makes_it_too_large_by_the_number_of_trees():
    w, a = jnp.zeros((6, 4)), numbers(1, 6, 2)
    own = [{"w": lrk.LowRank(w, a, numbers(i, 2, 4), 1.5)} for i in (2, 3, 4)]
    exact = lrk.materialize(task_arithmetic(own, [0.4] * 3))["w"]
    assert_close(lrk.materialize(linear(own, [0.4] * 3))["w"], 3 * exact)


def with_one_a(own):
    """The trees, all with the `A` of the first, as arrays of their own."""
    return [
        {
            path: op.replace(a=np.array(own[0][path].a))
            if isinstance(op, lrk.LowRank)
            else op
            for path, op in tree.items()
        }
        for tree in own
    ]


@pytest.mark.parametrize("weights", [WEIGHTS, SIGNED])
def test_over_one_shared_a_it_is_the_sum(weights):
    own = with_one_a(trees(SAME))
    merge = functools.partial(linear, shared_a=True)
    merged = merge(own, weights)
    want = merged_by(reference.task_arithmetic, own, weights)
    assert_close(lrk.materialize(merged), want)
    assert [merged[path].rank for path in ("w", "layers", "heads")] == [2] * 3
    assert_slope(merge, reference.task_arithmetic, weights, own)


def test_over_one_shared_a_it_lives_on():
    own = with_one_a(trees(SAME))
    assert_lives_on(functools.partial(linear, shared_a=True), own)


def test_shared_terms_of_one_tree_are_one_factor():
    w, a, b, c = (
        jnp.zeros((6, 4)),
        *(numbers(i, 6, 1) for i in (1, 2)),
        numbers(3, 2, 4),
    )
    one = {"w": lrk.LowRank(lrk.LowRank(w, a, c[:1]), b, c[1:])}
    two = {"w": lrk.LowRank(w, np.concatenate([b, a], axis=1), c[::-1])}
    merged = linear([one, two], [0.5, 2.0], shared_a=True)
    assert_close(lrk.materialize(merged)["w"], 2.5 * (a @ c[:1] + b @ c[1:]))


def test_terms_of_one_tree_are_one_factor():
    w = jnp.zeros((6, 4))
    parts = [(0.5 + i, numbers(i, 6, 1), numbers(i + 9, 1, 4)) for i in range(4)]
    (s0, a0, b0), (s1, a1, b1), (s2, a2, b2), (s3, a3, b3) = parts
    one = {"w": lrk.LowRank(lrk.LowRank(w, a0, b0, s0), a1, b1, s1)}
    two = {"w": lrk.LowRank(lrk.LowRank(w, a2, b2, s2), a3, b3, s3)}
    # Outermost first: column by column the factors meet in this order.
    first = reference.linear([parts[1], parts[3]], [0.5, 2.0])
    second = reference.linear([parts[0], parts[2]], [0.5, 2.0])
    got = lrk.materialize(linear([one, two], [0.5, 2.0]))["w"]
    assert_close(got, (first + second).astype(np.float32))


def test_trees_that_leave_a_leaf_alone_do_not_count():
    only = {"w": trees()[1]["w"]}
    own = [only, {"w": PARAMS["w"]}]
    assert_close(lrk.materialize(linear(own)), lrk.materialize(concat([only])))
    plain = {"w": lrk.Delta(PARAMS["w"], jnp.ones((6, 4)))}
    got = lrk.materialize(linear([only, plain], [1.0, 2.0]))["w"]
    assert_close(got, lrk.materialize(only)["w"] + 2)


def test_a_weight_of_zero_has_a_finite_gradient():
    own = trees(SAME)[:2]

    def total(weights):
        return sum(map(jnp.sum, jax.tree.leaves(lrk.materialize(linear(own, weights)))))

    assert bool(jnp.isfinite(jax.grad(total)(jnp.array([1.0, 0.0]))).all())


def test_it_forms_nothing_of_the_size_of_a_weight():
    own = wide()
    found = sizes(lambda w: linear(own, w)["w"].replace(w=None), jnp.ones(3))
    assert max(found) == 40 * 2


# --- PEFT --------------------------------------------------------------------------


@functools.cache
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


def stored_trees(names=("one", "two", "three")):
    """The adapters of the file; our kernels are `[in, out]`."""
    data = golden()
    bases = {
        layer: jnp.asarray(data[f"{layer}/base"].T) for layer in ("first", "second")
    }

    def low(layer, name):
        a, b, scale = (data[f"{layer}/{name}/{field}"] for field in ("a", "b", "scale"))
        return lrk.LowRank(bases[layer], a.T, b.T, scale)

    return [{layer: low(layer, name) for layer in bases} for name in names]


def test_the_file_says_where_it_is_from():
    assert str(golden()["provenance"]).startswith("peft 0.21.2, torch 2.13.0")


@pytest.mark.parametrize("case", ["plain", "negative"])
def test_factors_are_those_of_peft(case):
    merged = linear(stored_trees(), golden()[f"weights/{case}"])
    for layer, op in merged.items():
        assert_close(op.a, golden()[f"{layer}/linear_{case}/a"].T)
        assert_close(op.b, golden()[f"{layer}/linear_{case}/b"].T)


@pytest.mark.parametrize("case", ["plain", "negative"])
@pytest.mark.parametrize(
    ("kind", "merge"),
    [
        ("linear", linear),
        ("cat", concat),
        ("cat", task_arithmetic),
        ("svd", functools.partial(svd, rank=3)),
    ],
    ids=["linear", "concat", "task_arithmetic", "svd"],
)
def test_weights_are_those_of_peft(kind, merge, case):
    got = lrk.materialize(merge(stored_trees(), golden()[f"weights/{case}"]))
    (peft,) = stored_trees([f"{kind}_{case}"])
    assert_close(got, lrk.materialize(peft))


# --- messages ------------------------------------------------------------------------


def test_refusals():
    assert_refuses("linear", linear)


def test_refuses_unequal_ranks_and_names_them_all():
    message = r"got ranks 'heads': \[2, 1\]; 'layers': \[2, 1\]; 'w': \[2, 1\]\. Use"
    with pytest.raises(ValueError, match=message):
        linear([tree(1, 2), tree(2, 1)])


def test_refuses_a_shared_a_that_is_not_where_it_can_be_seen():
    message = r"linear: shared_a=True .* the A differ at 'heads', 'layers', 'w'\. Use"
    with pytest.raises(ValueError, match=message):
        linear(trees(SAME), shared_a=True)
    own = with_one_a(trees(SAME))
    mixed = [own[0], own[1] | {"w": trees(SAME)[1]["w"]}]
    with pytest.raises(ValueError, match=r"the A differ at 'w'\. Use"):
        linear(mixed, shared_a=True)


def test_refuses_another_conformance():
    with pytest.raises(ValueError, match="linear: expected conformance 'peft', got 'p"):
        linear(trees(SAME), conformance="paper")
