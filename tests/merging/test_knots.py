"""`knots`: one basis for all tasks, and what the inner merge is given."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import knots, magnitude, task_arithmetic
from tests.merging.subspace import (
    WEIGHTS,
    added,
    changes,
    expected,
    golden,
    golden_trees,
    trees,
)
from tests.network import numbers
from tests.reference import merging_subspace as reference
from tests.tolerances import assert_close
from tests.untyped import untyped


def test_with_a_linear_inner_merge_it_is_that_merge():
    merged = knots(trees(), WEIGHTS, merge=task_arithmetic)
    plain = task_arithmetic(trees(), WEIGHTS)
    assert_close(added(merged), added(plain))
    assert_close(lrk.materialize(merged)["bias"], lrk.materialize(plain)["bias"])
    dense = reference.knots(changes(), WEIGHTS, reference.task_sum)
    assert_close(added(merged), expected(dense).astype(np.float32))


def test_the_inner_merge_gets_lossless_parts_over_one_basis():
    seen = []

    def inner(parts, weights):
        seen.append((parts, weights))
        return task_arithmetic(parts, weights)

    knots(trees(), WEIGHTS, merge=inner)
    (parts, weights), own = seen[0], trees()
    assert weights == WEIGHTS
    assert [p["first"].shape for p in parts] == [(8, 5)] * 3
    assert [p["layers"].shape for p in parts] == [(2, 8, 5)] * 3
    assert isinstance(parts[1]["only"], jnp.ndarray)  # the task leaves it alone
    assert parts[0]["bias"].d is lrk.split(own[0]["bias"])[1][0].d
    basis = knots(trees(), WEIGHTS)["first"].b  # that of `ties`, which is dense
    assert_close(basis @ basis.T, jnp.eye(5))
    for part, tree in zip(parts, own, strict=True):
        delta = lrk.split(tree["first"])[1][0].delta()
        assert_close(lrk.materialize(part)["first"] @ basis, delta)
    joint = np.concatenate([lrk.materialize(p)["first"] for p in parts])
    joint = joint.T @ joint  # the squared singular values, from large to small
    assert_close(joint, np.diag(np.sort(np.diag(joint))[::-1]))


def test_more_ranks_than_outputs():
    pairs = [(numbers(i, 4, 3), numbers(i + 5, 3, 5)) for i in range(3)]
    w = jnp.zeros((4, 5))
    own = [{"w": lrk.LowRank(w, a, b)} for a, b in pairs]
    dense = [[(a.astype(np.float64) @ b).T] for a, b in pairs]
    want = reference.knots(dense, (1, 1, 1), lambda v: reference.ties(v, 0.5))
    merged = lrk.materialize(knots(own, density=0.5))["w"]
    assert_close(merged, want[0].T.astype(np.float32))


def test_ties_is_the_default_and_density_is_for_it():
    own = trees(bias=False)
    found = [added(knots(own, WEIGHTS, density=d)) for d in (0.2, 0.9)]
    assert_close(added(knots(own, WEIGHTS)), found[0])
    assert float(jnp.abs(found[0] - found[1]).max()) > 0.1
    other = functools.partial(magnitude, density=1.0)
    merged = added(knots(own, WEIGHTS, merge=other))
    assert_close(merged, added(task_arithmetic(own, WEIGHTS)))


def test_the_authors_code_gives_the_same():
    own = golden_trees("thin")
    merged = lrk.materialize(knots(own, merge=task_arithmetic))
    assert_close(merged, golden("knots_tv"))
    # Their trimming keeps one entry more than the share of 20 per cent.
    size = 6 * (10 + 11)
    merged = lrk.materialize(knots(own, density=(int(0.2 * size) + 1.5) / size))
    assert_close(merged, golden("knots_ties"))


# --- messages ------------------------------------------------------------------------


def test_refuses_an_inner_merge_that_is_none():
    with (
        untyped(),
        pytest.raises(TypeError, match="knots: expected the inner merge as"),
    ):
        knots(trees(), merge="ties")


def test_refuses_a_density_that_no_merge_would_see():
    with pytest.raises(ValueError, match="knots: density is for the default merge"):
        knots(trees(), merge=task_arithmetic, density=0.5)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            lambda trees, _: lrk.base(trees[0]),
            r"'bias': expected an adapter over shape \(6,\), got ArrayImpl of shape "
            r"\(6,\); 'first': expected an adapter over shape \(8, 5\), got",
        ),
        (
            lambda trees, _: {p: x for p, x in trees[0].items() if p != "first"},
            "'first': not in the result",
        ),
        (lambda trees, _: {**trees[0], "x": jnp.ones(3)}, "'x': not in the trees it"),
    ],
)
def test_refuses_what_is_no_merge_of_the_parts(inner, message):
    with pytest.raises(ValueError, match=f"knots: the inner merge must .*{message}"):
        knots(trees(), merge=inner)
