"""What all merges share: one base, one structure, and fitting weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank._parts import parts
from lowrank.merging import concat, overlap, task_arithmetic
from lowrank.merging._common import check_weights
from tests.network import numbers
from tests.untyped import untyped

PARAMS = {"v": jnp.asarray(numbers(1, 4, 3)), "w": jnp.asarray(numbers(2, 4, 3))}
MERGES = [concat, overlap]


def adapted(params, seed=0):
    tx = lrk.lora(1)
    return tx.apply(params, tx.init(jax.random.key(seed), params))


class Doubled(lrk.Operator):
    """A base that is an operator, and no additive term."""

    fields = ("w",)

    def __init__(self, w):
        object.__setattr__(self, "w", w)

    @property
    def aval(self):
        return jax.typeof(self.w)

    def dense(self):
        return 2 * self.w


def over_operators(w):
    """An adapter whose base is an operator."""
    factors = jnp.ones((4, 1)), jnp.ones((1, 3))
    return {"w": lrk.LowRank(Doubled(w), *factors)}


def refusal(*problems):
    return re.escape(
        f"the trees are not adapted from one base: {'; '.join(problems)}. Apply"
    )


def test_parts_are_the_base_and_the_terms_of_every_tree():
    one = lrk.full(select=lrk.matching("w"))
    tx = lrk.chain(one, lrk.lora(1, select=lrk.matching("w")))
    both = tx.apply(PARAMS, tx.init(jax.random.key(0), PARAMS))
    found = parts("who", [both, adapted(PARAMS), PARAMS])
    assert list(found) == ["v", "w"]
    assert found["w"].base is PARAMS["w"]
    kinds = [[type(term) for term in own] for own in found["w"].terms]
    assert kinds == [[lrk.LowRank, lrk.Delta], [lrk.LowRank], []]
    assert all(term.w is None for own in found["w"].terms for term in own)
    assert [len(own) for own in found["v"].terms] == [0, 1, 0]


def test_equal_copies_of_the_base_are_one_base():
    copy = jax.tree.map(lambda x: x + 0, PARAMS)
    assert concat([adapted(PARAMS), adapted(copy)])["w"].w is PARAMS["w"]
    host = jax.tree.map(np.asarray, PARAMS)
    assert concat([PARAMS, host])["w"] is PARAMS["w"]


def test_bases_known_under_jit_are_compared_there_too():
    copy = jax.tree.map(lambda x: x + 0, PARAMS)

    def run(weight, other):
        return lrk.materialize(concat([adapted(PARAMS), adapted(other)], [weight, 1]))

    other = {**copy, "w": copy["w"] + 1}
    jax.jit(lambda weight: run(weight, copy))(1.0)
    with pytest.raises(ValueError, match=refusal("'w': the bases differ in value")):
        jax.jit(lambda weight: run(weight, other))(1.0)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
def test_refuses_bases_of_other_values(merge, kind):
    own = {path: kind(leaf) for path, leaf in PARAMS.items()}
    other = {"v": own["v"], "w": kind(own["w"] + 1e-6)}
    with pytest.raises(ValueError, match=refusal("'w': the bases differ in value")):
        merge([adapted(own), adapted(other)])


@pytest.mark.parametrize("merge", MERGES)
def test_names_every_leaf_that_does_not_fit(merge):
    other = {"v": PARAMS["v"].astype(jnp.bfloat16), "w": jnp.ones((3, 4)), "u": PARAMS}
    problems = (
        "'u/v': not in every tree",
        "'u/w': not in every tree",
        "'v': base float32[4, 3] against bfloat16[4, 3]",
        "'w': base float32[4, 3] against float32[3, 4]",
    )
    with pytest.raises(ValueError, match=r"(concat|overlap): the trees") as error:
        merge([adapted(PARAMS), adapted(other, 1)])
    for problem in problems:
        assert problem in str(error.value)


def test_the_third_tree_is_compared_too():
    other = {**PARAMS, "w": PARAMS["w"] + 1}
    with pytest.raises(ValueError, match=refusal("'w': the bases differ in value")):
        concat([adapted(PARAMS), adapted(PARAMS), adapted(other)])


def test_bases_that_are_operators_are_compared_by_their_parts():
    w = PARAMS["w"]
    own = [over_operators(w), over_operators(w + 0)]
    merged = concat(own)
    assert lrk.split(merged["w"])[0] is lrk.split(own[0]["w"])[0]
    assert float(jnp.abs(lrk.materialize(merged)["w"] - 2 * w - 2).max()) < 1e-6
    jax.jit(lambda *trees: lrk.materialize(concat(trees)))(*own)
    with pytest.raises(ValueError, match=refusal("'w': the bases differ in value")):
        concat([over_operators(w), over_operators(w + 1)])
    with pytest.raises(
        ValueError, match=refusal("'w': the bases are different operators")
    ):
        concat([over_operators(w), {"w": w}])


@pytest.mark.parametrize("merge", MERGES)
def test_refuses_what_is_trained_and_no_additive_term(merge):
    tx = lrk.dora(1)
    one = tx.apply(PARAMS, tx.init(jax.random.key(0), PARAMS))
    message = r"cannot merge 'v' \(Magnitude\), 'w' \(Magnitude\): what is trained"
    with pytest.raises(ValueError, match=message):
        merge([one, one])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *trees: merge(trees), one, one)


def test_an_adapter_over_what_is_trained_is_merged_where_any_tree_has_one():
    tx, select = lrk.dora(1, select=lrk.matching("w")), lrk.matching("w")
    under = tx.apply(PARAMS, tx.init(jax.random.key(0), PARAMS))
    over = lrk.lora(1, select=select)
    one = over.apply(under, over.init(jax.random.key(1), under))
    for merge in (concat, task_arithmetic):
        assert lrk.split(merge([under, one])["w"])[0] is under["w"]


def test_a_frozen_base_without_an_adapter_is_kept():
    class Halved(Doubled):
        fields = ("w",)
        own_trained = False

    base = {"v": Halved(PARAMS["v"]), "w": PARAMS["w"]}
    select = lrk.matching("w")
    tx = lrk.lora(1, select=select)
    one = tx.apply(base, tx.init(jax.random.key(0), base))
    assert concat([one, one])["v"] is base["v"]


@pytest.mark.parametrize("merge", MERGES)
def test_refuses_what_is_no_list_of_trees(merge):
    with pytest.raises(ValueError, match="expected at least one adapted tree, got non"):
        merge([])
    message = "expected a list of adapted trees, got dict"
    with untyped(), pytest.raises(TypeError, match=message):
        merge(adapted(PARAMS))


# --- weights -------------------------------------------------------------------------


def test_weights_are_ones_or_as_given():
    assert check_weights("who", None, 3) == [1.0, 1.0, 1.0]
    assert check_weights("who", (0.5, -2), 2) == [0.5, -2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"concat: expected 2 weights, one .* got 1 of shapes \[\(\)\]"),
        (jnp.ones(3), "expected 2 weights, .* got 3"),
        (np.ones((2, 2)), r"got 2 of shapes \[\(2,\), \(2,\)\]"),
        (0.5, "expected 2 weights, one number for each tree, got 0.5"),
        ([1.0, np.nan], r"the weights must be finite, got \[1.0, nan\]"),
        (jnp.array([np.inf, 1.0]), "the weights must be finite"),
        ("ab", r"concat: expected numbers as weights, got \['a', 'b'\]"),
        ([None, 1j], r"expected numbers as weights, got \[None, 1j\]"),
    ],
)
def test_refuses_weights_that_do_not_fit(weights, message):
    with pytest.raises(ValueError, match=message):
        concat([PARAMS, PARAMS], weights)


def test_traced_weights_are_counted_but_not_looked_at():
    own = [adapted(PARAMS), adapted(PARAMS, 1)]
    formed = jax.jit(lambda w: lrk.materialize(concat(own, w)))(jnp.array([0.0, 1.0]))
    assert bool(jnp.isfinite(formed["w"]).all())
    with pytest.raises(ValueError, match="expected 2 weights"):
        jax.eval_shape(lambda w: concat(own, w), jnp.ones(3))
