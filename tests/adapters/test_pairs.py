"""Every ordered pair of transforms: composed, or refused by a message of the page.

Abstractly for all pairs; in numbers for one pair of each two classes of operators that
meet at a weight, and for a sample.
"""

import functools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import operators
from tests.adapters import by_hand, pairs
from tests.network import TOKENS, WIDTH, numbers, with_images
from tests.tolerances import assert_close

SAMPLE = 4
X = jnp.asarray(numbers(1, TOKENS, WIDTH))
PARAMS = with_images()
IN_BF16 = ("half/kernel",)


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


def classes(name):
    """By matrix, the class of the outermost operator that a method puts there."""
    leaves = pairs.leaves(pairs.alone(pairs.methods()[name]))
    return {
        path: type(leaf).__name__
        for path, leaf in leaves.items()
        if isinstance(leaf, lrk.Operator) and leaf.shape == (WIDTH, WIDTH)
    }


@functools.cache
def chosen():
    """One pair of each two classes that meet at a matrix, and a sample by hash."""
    seen, cases, rest = set(), [], []
    for pair, outcome in pairs.outcomes().items():
        first, second = map(classes, pair)
        shared = [path for path in first if path in second and path not in IN_BF16]
        if outcome.reason or not shared:
            continue
        path = shared[0]
        kinds = first[path], second[path]
        (rest if kinds in seen else cases).append((*pair, path))
        seen.add(kinds)
    rest.sort(key=lambda case: zlib.crc32("+".join(case[:2]).encode()))
    return cases + rest[:SAMPLE]


@functools.cache
def filled(name):
    """A state with numbers near 1 for floats (any will do), and indices of `init`."""
    tx = pairs.built(pairs.methods()[name])
    leaves, treedef = jax.tree.flatten(jax.eval_shape(tx.init, pairs.KEY, PARAMS))
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rest():
        drawn = jax.tree.leaves(tx.init(pairs.KEY, PARAMS))
        return [x for x, is_float in zip(drawn, floats, strict=True) if not is_float]

    kept = iter([] if all(floats) else jax.jit(rest)())
    made = [
        (1 + numbers(i, *x.shape, scale=0.5)).astype(x.dtype) if f else next(kept)
        for i, (x, f) in enumerate(zip(leaves, floats, strict=True))
    ]
    return jax.tree.map(jnp.asarray, jax.tree.unflatten(treedef, made))


def stacked(first, second, path):
    """What a chain leaves at a path; dropout at a rate of 0, where it is LoRA."""
    adapted = PARAMS
    for name in (first, second):
        tx = pairs.built(pairs.methods()[name])
        adapted = tx.apply(adapted, filled(name), key=pairs.KEY)
    return without_dropout(pairs.leaves(adapted)[path])


def without_dropout(op):
    if not isinstance(op, lrk.Operator):
        return op
    new = {name: without_dropout(getattr(op, name)) for name in op.base_fields}
    if isinstance(op, operators.DropoutLowRank):
        new["rate"] = jnp.zeros(())
    return op.replace(**new)


def test_products_are_those_of_one_operator_after_another():
    for case in chosen():
        op = stacked(*case)
        got = lrk.lift(jnp.matmul)(X, op)
        want = by_hand.product(op, X)
        assert np.isfinite(want).all(), case
        assert_close({case: got}, {case: want.astype("f4")})
        if isinstance(op, lrk.Operator) and op.has_dense:
            assert_close({case: op.dense()}, {case: by_hand.weight(op).astype("f4")})


def test_every_class_is_met_on_both_sides():
    met = [(classes(a)[path], classes(b)[path]) for a, b, path in chosen()]
    of_all = {kind for name in pairs.methods() for kind in classes(name).values()}
    everywhere = {"LowRank", "Factored", "Bottleneck", "Routed", "Gated"}
    assert everywhere < of_all
    # A mesh puts that one there, no transform.
    public = [getattr(operators, name) for name in operators.__all__]
    known = {cls.__name__ for cls in public if issubclass(cls, lrk.Operator)}
    assert of_all == known - {"Gathered"}
    for kind in everywhere:
        assert {one for one, two in met if two == kind} == of_all
        # Lengths, codes and cells need a weight that can be formed.
        above = {two for one, two in met if one == kind}
        assert of_all - above <= {"Magnitude", "Quantized", "Crossbar", "Rewired"}


def test_a_chain_refuses_with_the_message_of_the_page():
    first_of = {o.reason: pair for pair, o in pairs.outcomes().items() if o.reason}
    assert first_of
    for reason, names in first_of.items():
        tx = lrk.chain(*(pairs.methods()[name].build() for name in names))
        with pytest.raises((TypeError, ValueError)) as caught:
            pairs.outputs(pairs.adapted(tx, pairs.shapes()))
        assert pairs.shortened(str(caught.value)) == reason


def test_the_calls_are_public():
    shown = pairs.calls()
    assert shown["fact_tt"] == "lrk.fact_tt(2, ...)"
    assert shown["over"].startswith("lrk.subspace.over(lrk.chain(lrk.lori(2, ...), ")
    assert shown["lora+factors"].startswith("lrk.chain(lrk.lora(2), lrk.rram.factors(")
    for text in shown.values():
        for path in re.findall(r"lrk[\w.]*\w", text):
            functools.reduce(getattr, path.split(".")[1:], lrk)


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
