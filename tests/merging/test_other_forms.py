"""Merges of terms of other forms: refused by path, and taken once they are formed."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from tests.network import filled, numbers
from tests.tolerances import assert_close

PARAMS = {"table": jnp.asarray(numbers(1, 6, 4)), "w": jnp.asarray(numbers(2, 4, 6))}


def trees():
    """Two adapters, each with rows of a table and a Kronecker product."""
    made = []
    for seed, rows in enumerate(([1, 4], [4, 0])):
        tx = lrk.chain(
            lrk.trainable_tokens(rows, select=lrk.matching("table")),
            lrk.lokr(1, factor=2, select=lrk.matching("w")),
        )
        made.append(tx.apply(PARAMS, filled(tx, PARAMS, seed=9 + 20 * seed)))
    return made


def formed(leaf):
    base, terms = lrk.split(leaf)
    return lrk.Delta(base, sum(term.delta() for term in terms)) if terms else leaf


@pytest.mark.parametrize("merge", [lrk.merging.concat, lrk.merging.task_arithmetic])
def test_refused_by_path(merge):
    with pytest.raises(ValueError, match=r"'table' \(RowDelta\), 'w' \(Factored\)"):
        merge(trees())


def test_formed_they_add_up():
    adapted = [
        jax.tree.map(formed, tree, is_leaf=lambda x: isinstance(x, lrk.Operator))
        for tree in trees()
    ]
    merged = lrk.merging.concat(adapted, [2.0, -0.5])
    one, two = map(lrk.materialize, trees())
    want = {
        name: w + 2.0 * (one[name] - w) - 0.5 * (two[name] - w)
        for name, w in PARAMS.items()
    }
    assert_close(lrk.materialize(merged), want)
