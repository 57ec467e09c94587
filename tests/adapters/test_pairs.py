"""Every ordered pair of transforms: composed, or refused by a message of the page.

Abstractly for all pairs; in numbers for one pair of each nesting of operators, and for
a sample.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters import pairs
from tests.laws import QUICK
from tests.network import TOKENS, WIDTH, numbers, tree
from tests.tolerances import assert_close

SAMPLE = 4
X = jnp.asarray(numbers(1, TOKENS, WIDTH))


def test_the_page_says_what_the_code_does():
    if pairs.committed() != pairs.table():
        pytest.fail(
            "docs/methods/composition.md: the table is another. Run `python -m "
            "tests.adapters.pairs`, and read what changed.",
            pytrace=False,
        )


def test_every_method_is_in_the_table():
    rows = {pairs.method_of(row.name) for row in pairs.plain_rows()}
    assert {"lora", "mtl_lora", "subspace", "crossbar"} <= rows
    assert rows <= set(pairs.methods())
    assert len(pairs.outcomes()) == len(pairs.methods()) ** 2


def chosen():
    """One pair of each nesting that has a dense form, and a sample by hash."""
    found = {pair: o for pair, o in pairs.outcomes().items() if o.dense}
    seen, cases = set(), []
    for pair, outcome in found.items():
        if outcome.nesting not in seen:
            seen.add(outcome.nesting)
            cases.append(pair)
    rest = sorted(
        set(found) - set(cases), key=lambda p: zlib.crc32("+".join(p).encode())
    )
    return cases + rest[:SAMPLE]


def filled(shapes):
    """Numbers near 1 for floats, zeros for what is an index: any state will do."""
    leaves, treedef = jax.tree.flatten(shapes)
    made = [
        (1 + numbers(i, *x.shape, scale=0.5)).astype(x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else np.zeros(x.shape, x.dtype)
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, made)


def product(tx, state, params, x):
    """Of the matrix with the deepest operator: as `lift` multiplies, and dense."""
    adapted = tx.apply(params, state, key=pairs.KEY)
    op = pairs.leaves(adapted)[pairs.deepest_matrix(adapted)]
    w = op.dense() if isinstance(op, lrk.Operator) else op
    x = x.astype(w.dtype)
    return lrk.lift(jnp.matmul)(x, op), x @ w


def test_products_are_those_of_the_dense_form():
    for names in chosen():
        tx = lrk.chain(*(pairs.methods()[name].build() for name in names))
        state = filled(jax.eval_shape(tx.init, pairs.KEY, pairs.shapes()))
        run = jax.jit(functools.partial(product, tx))
        got, want = run.lower(state, tree(), X).compile(QUICK)(state, tree(), X)
        assert np.isfinite(want.astype("float32")).all(), names
        assert_close({names: got}, {names: want})


def test_a_chain_refuses_with_the_message_of_the_page():
    first_of = {o.reason: pair for pair, o in pairs.outcomes().items() if o.reason}
    assert first_of
    for reason, names in first_of.items():
        tx = lrk.chain(*(pairs.methods()[name].build() for name in names))
        with pytest.raises((TypeError, ValueError)) as caught:
            pairs.outputs(pairs.adapted(tx, pairs.shapes()))
        assert pairs.shortened(str(caught.value)) == reason


def test_a_refusal_that_is_not_ours_is_raised():
    def broken():
        raise TypeError("unsupported operand")

    with pytest.raises(TypeError, match="unsupported"):
        pairs.refusal(broken)


def test_a_message_names_one_leaf_of_each_kind():
    one = "'a/b' of shape (3, 2): too flat"
    long = f"x: cannot {one}; {one}; {one}. Do this."
    assert pairs.shortened(long) == f"x: cannot {one}, .... Do this."
    long = "x: none at 'a' (Op), 'b/c' (Op), which does not."
    assert pairs.shortened(long) == "x: none at 'a' (Op), ..., which does not."
