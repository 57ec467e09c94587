"""Every ordered pair of transforms: composed, or refused by a message of the page.

Abstractly for all pairs; in numbers for one pair of each nesting of operators, and for
a sample.
"""

import functools
import re
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
        composed = re.search(r"[+|]", "".join(pair))  # deeper, and no new pair
        if outcome.nesting not in seen and not composed:
            seen.add(outcome.nesting)
            cases.append(pair)
    rest = sorted(
        set(found) - set(cases), key=lambda p: zlib.crc32("+".join(p).encode())
    )
    return cases + rest[:SAMPLE]


def filled(init):
    """A state with numbers near 1 for floats (any will do), and indices of `init`."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(init))
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rest():
        drawn = jax.tree.leaves(init())
        return [x for x, is_float in zip(drawn, floats, strict=True) if not is_float]

    kept = iter([] if all(floats) else jax.jit(rest)())
    made = [
        (1 + numbers(i, *x.shape, scale=0.5)).astype(x.dtype) if f else next(kept)
        for i, (x, f) in enumerate(zip(leaves, floats, strict=True))
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
        state = filled(functools.partial(tx.init, pairs.KEY, tree()))
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
    long = "x: none at 'a' (Routed), 'b/c' (Delta), which is tanh (network.py:3)."
    assert pairs.shortened(long) == "x: none at 'a' (Operator), ..., which is tanh."
