"""`regmean`: the regression over all tasks' inputs, from their Gram matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import gram, regmean
from tests.network import numbers
from tests.once import once
from tests.reference import merging_data as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

AXES = {
    "heads": lrk.Axes((), (0, 1), (2,)),
    "layers": lrk.Axes((0,), (1,), (2,)),
}
PARAMS = {
    "bias": jnp.asarray(numbers(1, 3)),
    "heads": jnp.asarray(numbers(2, 2, 3, 4)),
    "layers": jnp.asarray(numbers(3, 2, 6, 4)),
    "w": jnp.asarray(numbers(4, 6, 4)),
}
KERNELS = lrk.matching("heads|layers|w")
WEIGHTS = (0.5, 2.0)
OPTIONS = {"off_diagonal": 0.7, "ridge": 1e-3}


def adapted(rank, seed):
    """A trained adapter at the matrices, and a plain change of the bias."""
    tx = lrk.chain(
        lrk.lora(rank, alpha=3, select=KERNELS, axes=AXES),
        lrk.full(select=lrk.matching("bias")),
    )
    state = tx.init(jax.random.key(seed), PARAMS)
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [jnp.asarray(numbers(seed + i, *x.shape)) for i, x in enumerate(leaves)]
    return tx.apply(PARAMS, state._replace(trainable=treedef.unflatten(new)))


@once
def trees():
    return [adapted(1, 10), adapted(2, 20)]


def grams(seed):
    """Of ten made-up rows for each leaf."""
    x = jnp.asarray(numbers(seed, 10, 6))
    layers = jnp.asarray(numbers(seed + 1, 2, 10, 6))
    stacked = jnp.matrix_transpose(layers) @ layers
    return {"heads": x.T @ x, "layers": stacked, "w": 2 * x.T @ x}


GRAMS = [grams(30), grams(40)]


def flat(tree):
    """Every matrix as `[..., n, m]`, as NumPy."""
    dense = lrk.materialize(tree)
    kept = {path: np.asarray(dense[path], np.float64) for path in PARAMS}
    return kept | {"heads": kept["heads"].reshape(6, 4)}


def exact(path, own=None, weights=WEIGHTS, off_diagonal=0.7, ridge=1e-3):
    base = flat(PARAMS)[path]
    changes = [flat(tree)[path] - base for tree in own or trees()]
    given = [np.asarray(g[path]) for g in GRAMS]
    if path != "layers":
        return base + reference.regmean(changes, given, weights, off_diagonal, ridge)
    merged = [
        reference.regmean(d, g, weights, off_diagonal, ridge)
        for d, g in zip(np.stack(changes, 1), np.stack(given, 1), strict=True)
    ]
    return base + np.stack(merged)


def assert_merged(merged, path, want):
    assert_close(flat(merged)[path].astype(np.float32), want.astype(np.float32))


def test_the_merge_solves_the_regression_and_stays_factored():
    merged = regmean(trees(), GRAMS, WEIGHTS, **OPTIONS)
    for path in ("heads", "layers", "w"):
        assert isinstance(merged[path], lrk.LowRank)
        assert merged[path].rank == 1 + 2
        assert_merged(merged, path, exact(path))
    assert lrk.base(merged)["heads"] is PARAMS["heads"]


def test_leaves_without_a_gram_matrix_get_the_weighted_mean():
    only = [{"w": own["w"]} for own in GRAMS]
    merged = regmean(trees(), only, WEIGHTS, **OPTIONS)
    one, two = map(flat, trees())
    for path in ("bias", "heads", "layers"):
        assert_merged(merged, path, (one[path] + 4 * two[path]) / 5)
    assert_merged(merged, "w", exact("w"))


def test_exact_regressions_are_pooled_exactly():
    params = {"w": jnp.asarray(numbers(1, 3, 2))}
    x = [numbers(50 + i, 8, 3) for i in range(2)]
    y = [numbers(60 + i, 8, 2) for i in range(2)]
    fits = [np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(x, y, strict=True)]
    own = [{"w": lrk.Delta(params["w"], jnp.asarray(f) - params["w"])} for f in fits]

    def model(p, x):
        return x @ p["w"]

    given = [gram(model, tree, rows) for tree, rows in zip(own, x, strict=True)]
    merged = regmean(own, given, off_diagonal=1.0, ridge=0.0)
    pooled = np.linalg.lstsq(np.concatenate(x), np.concatenate(y), rcond=None)[0]
    assert_close(lrk.materialize(merged)["w"], pooled)
    apart = np.mean(fits, axis=0)
    assert np.abs(apart - pooled).max() > 0.05


def test_equal_trees_are_themselves_whatever_the_inputs():
    merged = regmean([trees()[0]] * 2, GRAMS)
    for path in ("bias", "heads", "layers", "w"):
        assert_merged(merged, path, flat(trees()[0])[path])


def test_directions_that_no_input_has_get_the_mean():
    corner = jnp.zeros((6, 6)).at[:2, :2].set(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    given = [{"w": corner}, {"w": 3 * corner}]
    merged = flat(regmean(trees(), given, off_diagonal=1.0, ridge=1e-4))["w"]
    one, two = (flat(tree)["w"] for tree in trees())
    # Where inputs are, the Gram matrices weigh 1 : 3; elsewhere the ridges do.
    np.testing.assert_allclose(merged, (one + 3 * two) / 4, atol=1e-4)
    level = regmean(trees(), [given[0]] * 2, off_diagonal=1.0, ridge=1e-4)
    assert_merged(level, "w", (one + two) / 2)


def test_without_off_diagonals_each_input_is_weighted_alone():
    merged = flat(regmean(trees(), GRAMS, off_diagonal=0.0, ridge=0.0))["w"]
    base = flat(PARAMS)["w"]
    counts = [np.diag(own["w"])[:, None] for own in GRAMS]
    changes = [flat(tree)["w"] - base for tree in trees()]
    want = sum(c * d for c, d in zip(counts, changes, strict=True)) / sum(counts)
    np.testing.assert_allclose(merged, base + want, rtol=1e-4, atol=1e-5)


def test_one_tree_is_itself():
    merged = regmean(trees()[:1], GRAMS[:1], [0.1])
    assert_merged(merged, "w", flat(trees()[0])["w"])


def test_jit_is_eager_and_weights_have_gradients():
    def total(weights, given):
        merged = lrk.materialize(regmean(trees(), given, weights, **OPTIONS))
        return jnp.sum(merged["w"] ** 2) + jnp.sum(merged["layers"] ** 2)

    weights = jnp.array(WEIGHTS)
    value, slope = jax.jit(jax.value_and_grad(total))(weights, GRAMS)
    assert_close(value, total(weights, GRAMS))

    def again(weights):
        return sum(
            np.sum(exact(path, weights=weights) ** 2) for path in ("w", "layers")
        )

    step = 1e-4 * np.eye(2)
    want = [(again(WEIGHTS + s) - again(WEIGHTS - s)) / 2e-4 for s in step]
    assert_close(slope, np.asarray(want, np.float32))


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: [*g, g[0]], "expected 2 of Gram, one for each tree, got 3"),
        (
            lambda g: [{}, g[1]],
            r"at 'heads': given for some trees, missing for \[0\]; ",
        ),
        (
            lambda g: [{**own, "bias": jnp.eye(3)} for own in g],
            "fit at 'bias': the leaf is no matrix",
        ),
        (
            lambda g: [{**own, "v": jnp.eye(3)} for own in g],
            r"at 'v': no tree adapts it\.",
        ),
        (
            lambda g: [{**g[0], "layers": g[0]["w"]}, g[1]],
            r"at 'layers': expected shape \(2, 6, 6\), got \(6, 6\)\.",
        ),
        (
            lambda g: [{**g[0], "w": g[0]["w"] * jnp.inf}, g[1]],
            r"at 'w': it is not finite\.",
        ),
        (
            lambda g: [{**g[0], "w": g[0]["w"] - 100 * jnp.eye(6)}, g[1]],
            r"at 'w': it has negative entries\.",
        ),
    ],
)
def test_refuses_gram_matrices_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=f"regmean: .*{message}"):
        regmean(trees(), change(GRAMS))


def test_refuses_what_is_no_list_of_dicts():
    with untyped(), pytest.raises(TypeError, match="a list with a Gram of each tree"):
        regmean(trees(), GRAMS[0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "expected 2 weights"),
        ([jnp.inf, 1.0], "must be finite"),
        ([{"w": 1.0}, 1.0], "missing 'bias', 'heads', 'layers'"),
        ([-1.0, 2.0], "must not be negative, nor all be zero, at 'bias', 'heads'"),
    ],
)
def test_refuses_weights_that_make_no_mean(weights, message):
    with pytest.raises(ValueError, match=f"regmean: .*{message}"):
        regmean(trees(), GRAMS, weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"off_diagonal": 1.1}, r"off_diagonal must be in \[0, 1\], got 1\.1"),
        ({"off_diagonal": jnp.nan}, r"off_diagonal must be in \[0, 1\], got nan"),
        ({"ridge": -1e-3}, r"ridge must be at least 0, got -0\.001"),
    ],
)
def test_refuses_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"regmean: {message}"):
        regmean(trees(), GRAMS, **options)


def test_refuses_no_tree_and_other_bases():
    with pytest.raises(ValueError, match="regmean: expected at least one adapted tree"):
        regmean([], [])
    moved = {**PARAMS, "w": lrk.Delta(PARAMS["w"] + 1, PARAMS["w"])}
    with pytest.raises(ValueError, match="'w': the bases differ in value"):
        regmean([trees()[0], moved], GRAMS)
