"""`explain` tells of every operator what a call does with it, and what that costs."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from tests import network


def numbers(seed, *shape):
    return jnp.asarray(network.numbers(seed, *shape))


PARAMS = {
    "embed": numbers(1, 9, 6),
    "layers": {"kernel": numbers(2, 3, 6, 6)},
    "head": {"kernel": numbers(3, 6, 4), "bias": numbers(4, 1)},
}
AXES = {"layers/kernel": lrk.Axes((0,), (1,), (2,))}
IDS = jnp.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def model(params, ids):
    x = params["embed"][ids]

    def layer(x, w):
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x, params["layers"]["kernel"])
    return x @ params["head"]["kernel"] + params["head"]["bias"][0]


def adapted_by(tx):
    state = tx.init(jax.random.key(0), PARAMS)
    return tx.apply(PARAMS, state), state


def by_path(table):
    return {leaf.path: leaf for leaf in table.leaves}


def test_loops_are_counted_and_flops_are_those_of_the_products():
    tx = lrk.lora(2, select=lrk.matching("kernel$"), axes=AXES)
    adapted, _ = adapted_by(tx)
    leaves = by_path(lrk.explain(model, adapted, IDS))
    tokens = 2 * 5
    dense = 2 * tokens * 6 * 6
    skinny = 2 * tokens * (6 * 2 + 2 * 6)
    assert leaves["layers/kernel"].flops == 3 * (dense + skinny)
    assert leaves["layers/kernel"].dense_flops == 3 * dense
    assert leaves["head/kernel"].dense_flops == 2 * tokens * 6 * 4
    assert leaves["head/kernel"].plan == "factored"
    assert leaves["layers/kernel"].axes == "a[0, 1] b[0, 2]"


def test_operations_name_the_line_of_the_model():
    adapted, _ = adapted_by(lrk.lora(2, select=lrk.matching("embed")))
    (leaf,) = lrk.explain(model, adapted, IDS).leaves
    assert leaf.operations[0].startswith("gather (test_explain.py:")


def test_numbers_added_and_trained_are_told_apart():
    tx = lrk.chain(
        lrk.lori(1, select=lrk.matching("head/kernel")),
        lrk.full(select=lrk.matching("bias")),
    )
    adapted, state = adapted_by(tx)
    leaves = by_path(lrk.explain(model, adapted, IDS, trainable=state.trainable))
    assert leaves["head/kernel"].parameters == 6 + 4
    assert leaves["head/kernel"].trainable == 4
    assert leaves["head/bias"].parameters == leaves["head/bias"].trainable == 1
    untold = by_path(lrk.explain(model, adapted, IDS))
    assert untold["head/kernel"].trainable is None


def test_every_term_of_a_stacked_adapter_counts():
    tx = lrk.chain(
        lrk.lora(1, select=lrk.matching("head/kernel")),
        lrk.lora(2, select=lrk.matching("head/kernel")),
    )
    adapted, _ = adapted_by(tx)
    (leaf,) = lrk.explain(model, adapted, IDS).leaves
    assert leaf.parameters == (6 + 4) * 3


def test_parameters_of_nested_operators_count_and_norms_do_not():
    select = lrk.matching("head/kernel")
    tx = lrk.chain(
        lrk.lora(1, select=select),
        lrk.dora(2, select=select),
        lrk.lora(3, select=select),
    )
    adapted, state = adapted_by(tx)
    (leaf,) = lrk.explain(model, adapted, IDS, trainable=state.trainable).leaves
    assert leaf.parameters == leaf.trainable == (6 + 4) * (1 + 2 + 3) + 4
    scales, norm = 3, 4
    assert leaf.nbytes == 4 * (leaf.parameters + scales + norm)


def test_what_lift_would_refuse_is_reported_as_formed():
    def normed(params, ids):
        w = params["head"]["kernel"]
        return model(params, ids) / jnp.linalg.norm(w)

    adapted, _ = adapted_by(lrk.lora(2, select=lrk.matching("head/kernel")))
    (leaf,) = lrk.explain(normed, adapted, IDS).leaves
    assert leaf.plan == "formed"
    with pytest.raises(lrk.LiftError, match="head/kernel"):
        lrk.lift(normed)(adapted, IDS)


def test_a_leaf_that_is_not_used_is_reported():
    adapted, _ = adapted_by(lrk.lora(2, select=lrk.matching("head/kernel|embed")))
    leaves = by_path(lrk.explain(lambda p, i: p["embed"][i], adapted, IDS))
    assert leaves["head/kernel"].operations == ("unused",)


def test_a_plan_is_shown_and_one_that_matches_nothing_is_refused():
    adapted, _ = adapted_by(lrk.lora(2, select=lrk.matching("head/kernel")))
    (leaf,) = lrk.explain(model, adapted, IDS, plan={"head": "premerged"}).leaves
    assert leaf.plan == "premerged"
    with pytest.raises(ValueError, match=r"match no operator.*'head/kernel'"):
        lrk.explain(model, adapted, IDS, plan={"haed": "premerged"})


def test_it_prints_one_line_for_each_leaf_and_totals():
    tx = lrk.lora(2, select=lrk.matching("kernel$"), axes=AXES)
    adapted, _ = adapted_by(tx)
    table = lrk.explain(model, adapted, IDS)
    lines = repr(table).splitlines()
    assert len(lines) == 1 + 1 + 2 + 1
    assert lines[-1].strip().startswith("2 leaves:")
    assert table._repr_html_().count("<tr>") == 1 + 2


def test_a_tree_without_operators_is_refused():
    with pytest.raises(ValueError, match="no argument holds an operator"):
        lrk.explain(model, PARAMS, IDS)
