"""`tsv`: tasks cut to their leading directions, which are then decorrelated."""

import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import core_space, tsv
from tests.merging.subspace import (
    LEAVES,
    WEIGHTS,
    added,
    by_matrix,
    expected,
    golden,
    golden_trees,
    trees,
)
from tests.network import numbers
from tests.reference import merging_subspace as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

W = jnp.zeros((8, 6))


def test_a_rank_cuts_each_task_to_its_leading_directions():
    merged = tsv(trees(), WEIGHTS, rank=1)
    want = by_matrix(reference.tsv, WEIGHTS, rank=1)
    assert_close(added(merged), expected(want).astype(np.float32))
    assert {path: merged[path].rank for path in LEAVES} == {
        "first": 3,
        "layers": 3,
        "only": 2,
    }


def test_orthogonal_tasks_are_added_up_and_equal_ones_averaged():
    a, b = np.eye(8, 2, dtype=np.float32), numbers(1, 2, 6)
    other = np.linalg.qr(b.T, mode="complete")[0][:, 2:4].T
    one = {"w": lrk.LowRank(W, a, b)}
    two = {"w": lrk.LowRank(W, a[::-1], other)}
    merged = lrk.materialize(tsv([one, two], [2.0, -3.0]))["w"]
    assert_close(merged, (2 * a @ b - 3 * a[::-1] @ other).astype(np.float32))
    assert_close(lrk.materialize(tsv([one, one]))["w"], a @ b)


def test_null_directions_of_a_task_take_no_part():
    a, b = numbers(1, 8, 2), numbers(2, 2, 6)
    one = {"w": lrk.LowRank(W, a, b)}
    zero = {"w": lrk.LowRank(W, numbers(3, 8, 2), jnp.zeros((2, 6)))}
    flat = {"w": lrk.LowRank(W, np.repeat(a[:, :1], 2, 1), np.repeat(b[:1], 2, 0))}
    assert_close(lrk.materialize(tsv([one, zero]))["w"], a @ b)
    alone = {"w": lrk.LowRank(W, a[:, :1], 2 * b[:1])}
    merged = lrk.materialize(tsv([one, flat]))["w"]
    assert_close(merged, lrk.materialize(tsv([one, alone]))["w"])


def test_the_published_form_keeps_a_share_of_the_smaller_side():
    pairs = [(numbers(i, 8, 3), numbers(i + 9, 3, 6)) for i in (1, 2)]
    own = [{"w": lrk.LowRank(W, a, b)} for a, b in pairs]
    merged = tsv(own, WEIGHTS[:2], conformance="paper")
    dense = [(a.astype(np.float64) @ b).T for a, b in pairs]
    want = reference.tsv(dense, WEIGHTS[:2], published=True)
    assert_close(lrk.materialize(merged)["w"], want.T.astype(np.float32))
    # Beyond a task's rank it fills null directions, where the support form is.
    thin = [{"w": lrk.LowRank(W, a[:, :1], b[:1])} for a, b in pairs]
    same = lrk.materialize(tsv(thin))["w"]
    filled = lrk.materialize(tsv(thin, conformance="paper"))["w"]
    assert float(jnp.abs(same - filled).max()) > 1e-3
    assert_close(lrk.materialize(tsv(thin, rank=5))["w"], same)


def test_what_is_no_matrix_is_summed_or_as_published_averaged():
    base = lrk.base(trees()[0])["bias"]
    total = WEIGHTS[0] * 2 + WEIGHTS[2]
    merged = lrk.materialize(tsv(trees(), WEIGHTS))["bias"]
    assert_close(merged - base, jnp.full(6, total), "float32")
    kernel = {"w": W, "bias": base}
    own = [{**kernel, "bias": t["bias"]} for t in trees()]
    merged = lrk.materialize(tsv(own, WEIGHTS, conformance="paper"))["bias"]
    assert_close(merged, base + total / 3)


def test_the_authors_code_gives_the_same():
    merged = lrk.materialize(tsv(golden_trees("full"), conformance="paper"))
    assert_close(merged, golden("tsv"))
    # Their share of a core is the rank of a task: the form over the support.
    own = golden_trees("thin")
    assert_close(lrk.materialize(tsv(own)), golden("core_tsv"))
    published = core_space(own, merge=lambda t, w: tsv(t, w, conformance="paper"))
    assert_close(lrk.materialize(published), golden("core_tsv"))


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "tsv: expected rank of at least 1, got 0"),
        ({"rank": 1.5}, TypeError, r"tsv: expected rank as an int, got 1\.5"),
        ({"rank": True}, TypeError, "tsv: expected rank as an int, got True"),
        (
            {"rank": 1, "conformance": "paper"},
            ValueError,
            "tsv: rank and conformance='paper' exclude each other",
        ),
        (
            {"conformance": "peft"},
            ValueError,
            "tsv: expected conformance=None or 'paper', got 'peft'",
        ),
    ],
)
def test_refuses_options_out_of_range(options, error, message):
    with untyped(), pytest.raises(error, match=message):
        tsv(trees(), **options)


def test_refuses_the_published_form_where_it_keeps_nothing():
    own = [{"v": lrk.Delta(W, W), "w": lrk.LowRank(W[:2], W[:2, :1], W[:1])}] * 3
    message = r"tsv: conformance='paper' keeps min\(n, m\) // 3 = 0 directions of 'w'\."
    with pytest.raises(ValueError, match=message):
        tsv(own, conformance="paper")
