"""What each tree adds, as arrays, and their rows as tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging._dense import dense_deltas
from tests.network import numbers
from tests.tolerances import assert_close

BASE = {
    "bias": jnp.zeros(3),
    "conv": jnp.zeros((2, 2, 3, 4)),
    "heads": jnp.zeros((4, 2, 3)),
    "layers": jnp.zeros((2, 4, 3)),
    "rest": jnp.zeros(2),
}


def tree():
    """Two terms at one leaf, a stack, two output axes, and plain deltas."""
    a, b = jnp.asarray(numbers(1, 4, 2)), jnp.asarray(numbers(2, 2, 2, 3))
    heads = lrk.LowRank(BASE["heads"], a, b, 0.5)
    a, b = jnp.asarray(numbers(3, 2, 4, 1)), jnp.asarray(numbers(4, 2, 1, 3))
    return BASE | {
        "bias": lrk.Delta(BASE["bias"], jnp.arange(3.0)),
        "conv": lrk.Delta(BASE["conv"], jnp.asarray(numbers(6, 2, 2, 3, 4))),
        "heads": lrk.Delta(heads, jnp.asarray(numbers(5, 4, 2, 3))),
        "layers": lrk.LowRank(BASE["layers"], a, b, jnp.array([1.0, -2.0])),
    }


def test_changes_of_adapted_leaves_and_none_of_untouched():
    found = dense_deltas("who", [tree(), BASE])
    assert list(found) == ["bias", "conv", "heads", "layers"]
    formed = lrk.materialize(tree())
    for path, leaf in found.items():
        assert leaf.base is BASE[path]
        assert_close(leaf.d[0], formed[path])
        assert leaf.d[1] is None


def test_rows_are_outputs_and_stacked_layers_tensors():
    found = dense_deltas("who", [tree(), BASE])
    shapes = {path: leaf.tensors().shape for path, leaf in found.items()}
    assert shapes == {
        "bias": (2, 1, 1, 3),
        "conv": (2, 1, 4, 12),
        "heads": (2, 1, 6, 4),
        "layers": (2, 2, 3, 4),
    }
    formed = lrk.materialize(tree())
    row = found["layers"].tensors()[0, 1, 2]
    assert_close(row, formed["layers"][1, :, 2])
    assert_close(found["heads"].tensors()[0, 0, 4], formed["heads"][:, 1, 1])
    assert not found["heads"].tensors()[1].any()


def test_tensors_become_the_leaf_again():
    for path, leaf in dense_deltas("who", [tree()]).items():
        op = leaf.operator(leaf.tensors()[0])
        assert op.w is BASE[path]
        assert_close(op.d, leaf.d[0])


def test_the_product_of_narrow_factors_is_taken_in_float32():
    a, b = (
        jnp.asarray(numbers(i, *s), "bfloat16") for i, s in ((1, (4, 3)), (2, (3, 4)))
    )
    leaf = {"w": lrk.LowRank(jnp.zeros((4, 4), "bfloat16"), a, b, 0.3)}
    found = dense_deltas("who", [leaf])["w"].d[0]
    want = 0.3 * np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert_close(found, want.astype(np.float32))


def test_refuses_what_has_no_dense_sum():
    tx = lrk.lora(1, dropout=0.5)
    params = {"w": jnp.ones((4, 3))}
    key = jax.random.key(0)
    random = tx.apply(params, tx.init(key, params), key=key)
    with pytest.raises(ValueError, match=r"who: cannot merge 'w' \(DropoutLowRank\)"):
        dense_deltas("who", [random])
