"""`core_space`: lossless cores, and any merge on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import (
    concat,
    core_space,
    dare,
    iso,
    lego,
    linear,
    magnitude,
    svd,
    task_arithmetic,
    ties,
    tsv,
)
from tests.merging.subspace import (
    LEAVES,
    WEIGHTS,
    added,
    expected,
    golden,
    golden_trees,
    models,
    trees,
)
from tests.network import numbers
from tests.reference import merging_subspace as reference
from tests.tolerances import assert_close
from tests.untyped import untyped


@pytest.mark.parametrize("merge", [task_arithmetic, concat])
def test_linear_merges_lose_nothing(merge):
    merged = core_space(trees(), WEIGHTS, merge=merge)
    assert_close(added(merged), added(merge(trees(), WEIGHTS)))
    dense = reference.core_space(models(), WEIGHTS, reference.task_sum)
    assert_close(added(merged), expected(dense).astype(np.float32))


def test_cores_are_as_small_as_the_ranks_and_carry_each_change():
    seen = []

    def merge(cores, weights):
        seen.extend(cores)
        return task_arithmetic(cores, weights)

    core_space(trees(), WEIGHTS, merge=merge)
    for core, tree in zip(seen, trees(), strict=True):
        shapes = {path: core[path].shape for path in LEAVES}
        assert shapes == {"first": (5, 5), "layers": (2, 5, 5), "only": (3, 3)}
        for path in ("first", "layers"):
            d = lrk.split(tree[path])[1][0].delta()
            m = lrk.materialize(core)[path]
            assert float(jnp.vdot(m, m)) == pytest.approx(float(jnp.vdot(d, d)), 1e-5)


@pytest.mark.parametrize(
    "merge",
    [tsv, iso, functools.partial(svd, rank=2)],
    ids=["tsv", "iso", "svd"],
)
def test_merges_by_singular_vectors_do_not_see_the_basis(merge):
    own = trees(bias=False)
    merged = core_space(own, WEIGHTS, merge=merge)
    assert_close(added(merged), added(merge(own, WEIGHTS)))


@pytest.mark.parametrize(
    "merge",
    [
        linear,
        functools.partial(lego, rank=2, key=jax.random.key(0)),
        functools.partial(magnitude, density=0.5),
        functools.partial(dare, density=0.5, key=jax.random.key(0)),
    ],
    ids=["linear", "lego", "magnitude", "dare"],
)
def test_other_merges_of_the_library_run_on_cores(merge):
    w = jnp.zeros((7, 6))
    pairs = [(numbers(i, 7, 2), numbers(i + 5, 2, 6)) for i in range(2)]
    own = [{"w": lrk.LowRank(w, a, b)} for a, b in pairs]
    found = lrk.materialize(core_space(own, [1.0, 0.5], merge=merge))["w"]
    u = np.linalg.qr(np.concatenate([a for a, _ in pairs], 1))[0]
    v = np.linalg.qr(np.concatenate([b for _, b in pairs]).T)[0]
    assert_close(u @ (u.T @ found @ v) @ v.T, found)
    assert float(jnp.abs(found).max()) > 0.1


def test_an_isotropic_core_is_iso_of_the_merge():
    merged = core_space(trees(), WEIGHTS, merge=concat, isotropic=True)
    assert_close(added(merged), added(iso(trees(), WEIGHTS)))


def test_more_ranks_than_either_side():
    pairs = [(numbers(i, 4, 3), numbers(i + 5, 3, 5)) for i in range(3)]
    w = jnp.zeros((4, 5))
    own = [{"w": lrk.LowRank(w, a, b)} for a, b in pairs]
    merged = lrk.materialize(core_space(own, merge=task_arithmetic))["w"]
    assert_close(merged, sum(a @ b for a, b in pairs))


def test_the_authors_code_gives_the_same():
    own = golden_trees("thin")
    for name, merge in (("tv", concat), ("tsv", tsv)):
        for even in (False, True):
            merged = core_space(own, merge=merge, isotropic=even)
            want = golden(f"core_{name}{'_iso' * even}")
            assert_close(lrk.materialize(merged), want)
    # They trim each matrix alone, and keep one entry more than the share.
    merge = functools.partial(ties, density=(int(0.2 * 36) + 1.5) / 36)
    for path, want in golden("core_ties").items():
        alone = core_space([{path: tree[path]} for tree in own], merge=merge)
        assert_close(lrk.materialize(alone)[path], want)


# --- messages ------------------------------------------------------------------------


def test_refuses_a_merge_that_is_none():
    message = "core_space: expected the inner merge as a function of"
    with untyped(), pytest.raises(TypeError, match=message):
        core_space(trees(), merge=None)


def test_refuses_a_materialised_core():
    def merge(cores, weights):
        return lrk.materialize(concat(cores, weights))

    message = r"core_space: the inner merge must .*'only': .*Pass a merge of this"
    with pytest.raises(ValueError, match=message):
        core_space(trees(), merge=merge)
