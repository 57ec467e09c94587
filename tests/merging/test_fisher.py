"""`fisher`: the Fisher-weighted mean of changes, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import fisher
from tests.network import numbers
from tests.once import once
from tests.reference import merging_data as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

AXES = {"layers": lrk.Axes((0,), (1,), (2,))}
PARAMS = {
    "bias": jnp.asarray(numbers(1, 3)),
    "layers": jnp.asarray(numbers(2, 2, 4, 3)),
    "w": jnp.asarray(numbers(3, 4, 3)),
}
WEIGHTS = (0.5, 2.0)
EPS = 1e-3


def adapted(seed, select="bias|layers|w"):
    """A trained adapter at the matrices, and a plain change of the bias."""
    tx = lrk.chain(
        lrk.lora(seed, alpha=3, select=lrk.matching("layers|w"), axes=AXES),
        lrk.full(select=lrk.matching("bias")),
    )
    if select == "w":
        tx = lrk.lora(seed, select=lrk.matching("w"))
    state = tx.init(jax.random.key(seed), PARAMS)
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [jnp.asarray(numbers(seed + i, *x.shape)) for i, x in enumerate(leaves)]
    return tx.apply(PARAMS, state._replace(trainable=treedef.unflatten(new)))


@once
def trees():
    return [adapted(1), adapted(2)]


def information(seed):
    return {p: jnp.asarray(numbers(seed, *x.shape)) ** 2 for p, x in PARAMS.items()}


FISHERS = [information(20), information(30)]


def changes(trees, path):
    """What each tree adds to a leaf, in float64."""
    base = np.asarray(PARAMS[path], np.float64)
    return [
        np.asarray(lrk.materialize(tree)[path], np.float64) - base for tree in trees
    ]


def exact(trees, path, fishers=FISHERS, weights=WEIGHTS, eps=EPS):
    own = [f[path] for f in fishers]
    mean = reference.fisher_mean(changes(trees, path), own, weights, eps)
    return np.asarray(PARAMS[path] + mean, np.float32)


def test_the_merge_is_the_mean_of_the_equation():
    merged = fisher(trees(), FISHERS, WEIGHTS, eps=EPS)
    want = {path: exact(trees(), path) for path in PARAMS}
    assert_close(lrk.materialize(merged), want)
    assert all(isinstance(leaf, lrk.Delta) for leaf in merged.values())
    assert lrk.base(merged)["w"] is PARAMS["w"]


def test_equal_informations_give_the_mean():
    same = [FISHERS[0]] * 2
    got = lrk.materialize(fisher(trees(), same))
    want = jax.tree.map(lambda x, y: (x + y) / 2, *map(lrk.materialize, trees()))
    assert_close(got, want)


def test_entries_that_no_task_is_sure_about_get_the_weighted_mean():
    nothing = {path: jnp.zeros_like(x) for path, x in PARAMS.items()}
    partly = {**nothing, "w": nothing["w"].at[0].set(1.0)}
    merged = lrk.materialize(fisher(trees(), [partly, nothing], WEIGHTS, eps=EPS))
    one, two = map(lrk.materialize, trees())
    mean = jax.tree.map(lambda x, y: (x + 4 * y) / 5, one, two)
    assert_close(merged["layers"], mean["layers"])
    assert_close(merged["w"][1:], mean["w"][1:])
    assert_close(merged["w"][0], exact(trees(), "w", [partly, nothing])[0])


def test_only_the_ratios_of_informations_and_of_weights_count():
    scaled = [jax.tree.map(lambda f: 50 * f, own) for own in FISHERS]
    merged = fisher(trees(), scaled, [5.0, 20.0], eps=EPS)
    assert_close(
        lrk.materialize(merged),
        lrk.materialize(fisher(trees(), FISHERS, WEIGHTS, eps=EPS)),
    )


def test_leaves_without_information_get_the_weighted_mean_and_stay_factored():
    only = [{"w": own["w"]} for own in FISHERS]
    merged = fisher(trees(), only, WEIGHTS, eps=EPS)
    assert isinstance(merged["layers"], lrk.LowRank)
    one, two = map(lrk.materialize, trees())
    got = lrk.materialize(merged)
    for path in ("bias", "layers"):
        assert_close(got[path], (one[path] + 4 * two[path]) / 5)
    assert_close(got["w"], exact(trees(), "w"))


def test_a_tree_that_leaves_a_leaf_alone_counts_with_no_change():
    own = [adapted(1), adapted(2, "w")]
    merged = lrk.materialize(fisher(own, FISHERS, WEIGHTS, eps=EPS))
    for path in ("bias", "layers"):
        assert_close(merged[path], exact(own, path))


def test_one_tree_is_itself():
    merged = fisher(trees()[:1], FISHERS[:1], [3.0])
    assert_close(lrk.materialize(merged), lrk.materialize(trees()[0]))


def test_jit_is_eager_and_weights_have_gradients():
    def total(weights, fishers):
        merged = fisher(trees(), fishers, weights, eps=EPS)
        return sum(jnp.sum(leaf.d**2) for leaf in merged.values())

    weights = jnp.array(WEIGHTS)
    value, slope = jax.jit(jax.value_and_grad(total))(weights, FISHERS)
    assert_close(value, total(weights, FISHERS))
    step = 1e-2 * jnp.eye(2)
    for i in range(2):
        ends = [float(total(weights + s * step[i], FISHERS)) for s in (1, -1)]
        np.testing.assert_allclose(slope[i], (ends[0] - ends[1]) / 2e-2, rtol=2e-2)


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [f[0]], r"expected 2 of Fisher information, .* got 1"),
        (
            lambda f: [f[0], {}],
            r"fit at 'bias': given for some trees, missing for \[1\]; ",
        ),
        (
            lambda f: [{**own, "v": own["w"]} for own in f],
            r"fit at 'v': no tree adapts it\.",
        ),
        (
            lambda f: [f[0], {**f[1], "w": f[1]["bias"]}],
            r"at 'w': expected shape \(4, 3\), got \(3,\)\.",
        ),
        (
            lambda f: [f[0], {**f[1], "w": f[1]["w"].at[0, 0].set(jnp.nan)}],
            r"at 'w': it is not finite\.",
        ),
        (
            lambda f: [f[0], {**f[1], "w": -f[1]["w"]}],
            r"at 'w': it has negative entries\.",
        ),
    ],
)
def test_refuses_informations_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=f"fisher: .*{message}"):
        fisher(trees(), change(FISHERS))


def test_refuses_what_is_no_list_of_dicts():
    with (
        untyped(),
        pytest.raises(TypeError, match="expected a list with a Fisher .*, got dict"),
    ):
        fisher(trees(), FISHERS[0])
    with (
        untyped(),
        pytest.raises(TypeError, match="each Fisher information must be a dict"),
    ):
        fisher(trees(), [None, FISHERS[0]])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "expected 2 weights"),
        ([1.0, jnp.nan], "must be finite"),
        (
            [1.0, -1.0],
            "must not be negative, nor all be zero, at 'bias', 'layers', 'w'",
        ),
        ([0.0, jnp.zeros(())], "nor all be zero"),
    ],
)
def test_refuses_weights_that_make_no_mean(weights, message):
    with pytest.raises(ValueError, match=f"fisher: .*{message}"):
        fisher(trees(), FISHERS, weights)


def test_refuses_no_tree_other_bases_and_a_floor_of_nothing():
    with pytest.raises(ValueError, match="fisher: expected at least one adapted tree"):
        fisher([], [])
    moved = {**PARAMS, "w": lrk.Delta(PARAMS["w"] + 1, PARAMS["w"])}
    with pytest.raises(ValueError, match="'w': the bases differ in value"):
        fisher([adapted(1), moved], FISHERS)
    with pytest.raises(ValueError, match=r"fisher: eps must be above 0, got 0\.0"):
        fisher(trees(), FISHERS, eps=0.0)
