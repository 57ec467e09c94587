"""What every projection of a subspace does, and what each of them is."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.subspace._kronecker import split_of
from tests.laws import QUICK
from tests.network import numbers
from tests.reference import subspace_projections as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

subspace = lrk.subspace
KEY = jax.random.key(5)
SIZES = {"a": 21, "b": 3, "c": 40}  # 64 entries: one transform, nothing cut
TOTAL = sum(SIZES.values())
CUT = {"a": 21, "b": 3, "c": 33}
D = 9  # above the size of one leaf
MAKERS = {
    "dense": subspace.dense,
    "sparse": subspace.sparse,
    "gather": subspace.gather,
    "fastfood": subspace.fastfood,
    "stacked": subspace.fastfood_stacked,
    "blocks": functools.partial(subspace.fastfood_stacked, 8),
    "kronecker": subspace.kronecker,
    "per_leaf": lambda: subspace.per_leaf(subspace.fastfood()),
    "per_leaf-sparse": lambda: subspace.per_leaf(subspace.sparse()),
    "regenerated": lambda: subspace.regenerated(subspace.fastfood_stacked()),
}
NESTED = {"dense", "sparse", "fastfood", "blocks", "per_leaf", "per_leaf-sparse"}
each = pytest.mark.parametrize("name", MAKERS)


def product(projection, fixed, sizes):
    """`z -> P z` as one vector."""

    def run(z):
        parts = projection.apply(fixed, z, sizes)
        assert list(parts) == list(sizes)
        return jnp.concatenate(list(parts.values()))

    return run


def compiled(fn, *args):
    """`fn(*args)`, compiled as fast as can be."""
    return jax.jit(fn).lower(*args).compile(QUICK)(*args)


class Drawn(NamedTuple):
    """What one projection drew and does, all from one compilation."""

    projection: lrk.subspace.Projection
    sizes: dict
    fixed: dict
    p: np.ndarray
    derived: dict


@functools.cache
def drawn(name, cut=False, d=D):
    """A projection, its sizes, what it drew, `P` and its derivatives at `V` and `G`."""
    projection, sizes = MAKERS[name](), CUT if cut else SIZES

    def every(key, v, g):
        fixed = projection.draw(key, sizes, d)
        run = product(projection, fixed, sizes)
        derived = {
            "forward": run(v),
            "transposed": jax.linear_transpose(run, v)(g)[0],
            "pulled": jax.vjp(run, v)[1](g)[0],
            "pushed": jax.jvp(run, (v,), (v,))[1],
        }
        return fixed, jax.vmap(run)(jnp.eye(d)), derived

    g = jnp.asarray(numbers(2, sum(sizes.values())))
    fixed, columns, derived = compiled(every, KEY, jnp.asarray(numbers(1, d)), g)
    fixed = {path: fixed[path] for path in (*sizes, *(fixed.keys() - sizes))}
    return Drawn(projection, sizes, fixed, np.asarray(columns, np.float64).T, derived)


# --- every projection -----------------------------------------------------------------


@each
def test_adjoint(name):
    own = drawn(name, cut=True)
    v, g = numbers(1, D).astype(np.float64), numbers(2, 57).astype(np.float64)
    assert_close(own.derived["forward"], (own.p @ v).astype(np.float32))
    assert_close(own.derived["pushed"], own.derived["forward"])
    for way in ("transposed", "pulled"):
        assert_close(own.derived[way], (own.p.T @ g).astype(np.float32))
    left = np.vdot(own.derived["forward"], g)
    assert left == pytest.approx(np.vdot(v, own.derived["transposed"]), rel=2e-5)


@each
def test_columns_have_norm_one_over_the_network(name):
    p = drawn(name).p
    # Per leaf, transforms are cut: see below how far norms may then be from one.
    limit = 0.5 if name == "per_leaf" else 1e-5
    np.testing.assert_allclose(np.linalg.norm(p, axis=0), 1, atol=limit)
    assert np.linalg.matrix_rank(p) == D


@pytest.mark.parametrize(
    ("name", "rows", "lengths"),
    [
        ("fastfood", (57,), (64,)),
        ("blocks", (8,) * 4 + (7, 6, 6, 6), (8,) * 8),
        ("per_leaf", (21, 3, 33), (32, 4, 64)),
    ],
)
def test_cut_transforms_keep_norms_near_one(name, rows, lengths):
    projection, keys = MAKERS[name](), jax.random.split(KEY, 100)

    def squares(key):
        run = product(projection, projection.draw(key, CUT, D), CUT)
        return jnp.sum(jnp.square(jax.vmap(run)(jnp.eye(D))), axis=1)

    found = np.asarray(compiled(jax.vmap(squares), keys), np.float64)
    # A column of a whole transform is uniform on a sphere, so that the share of its
    # squared norm in `n` of `L` rows has a beta distribution.
    cut = zip(rows, lengths, strict=True)
    variance = sum(2 * n * (length - n) / (length + 2) for n, length in cut) / 57**2
    means = found.mean(axis=1)
    assert abs(means.mean() - 1) < 4 * means.std() / 10
    spread = (found - 1) ** 2
    error = spread.mean(axis=1).std() / 10
    assert abs(spread.mean() - variance) < 4 * error + 0.1 * variance


@pytest.mark.parametrize("name", ["gather", "kronecker"])
@pytest.mark.parametrize("cut", [False, True])
def test_columns_are_orthonormal_where_that_is_claimed(name, cut):
    p = drawn(name, cut).p
    np.testing.assert_allclose(p.T @ p, np.eye(D), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("dense", lambda n: 1 / n),
        ("sparse", lambda n: 1 / n),
        ("fastfood", lambda n: 2 / (n + 2)),
        ("blocks", lambda n: 2 / (n + 2)),
    ],
)
def test_inner_products_of_columns_are_as_large_as_theory_says(name, variance):
    sizes, d, found = {"w": 256}, 8, []
    projection = MAKERS[name]()

    def gram(key):
        run = product(projection, projection.draw(key, sizes, d), sizes)
        p = jax.vmap(run)(jnp.eye(d))
        return p @ p.T

    grams = compiled(jax.vmap(gram), jax.random.split(KEY, 40))
    # One row of each: its entries are independent, also in Fastfood.
    found = np.asarray(grams, np.float64)[:, 0, 1:].reshape(-1)
    expected = variance(256)
    error = found.std() / found.size**0.5
    assert abs(found.mean()) < 4 * error
    squares = found**2
    assert abs(squares.mean() - expected) < 4 * squares.std() / found.size**0.5


@each
def test_nested_says_whether_a_prefix_is_the_smaller_subspace(name):
    projection = MAKERS[name]()
    assert projection.nested == (name in NESTED)
    k = 3
    small = drawn(name, d=k).p.copy()
    large = drawn(name).p[:, :k].copy()
    for matrix in (small, large):
        matrix /= np.linalg.norm(matrix, axis=0)
    cosines = np.abs(np.sum(small * large, axis=0))
    if projection.nested:
        np.testing.assert_allclose(cosines, 1, atol=1e-6)
    else:
        assert cosines.min() < 0.9


@each
def test_fixed_arrays_are_as_declared(name):
    projection, sizes, fixed, *_ = drawn(name)
    shared = fixed.get("subspace", {})
    assert set(shared) == set(projection.shared)
    for path in sizes:
        assert set(fixed[path]) == set(projection.names)


@pytest.mark.parametrize("name", ["gather", "fastfood", "stacked", "kronecker"])
def test_memory_does_not_grow_with_the_dimension(name):
    def numbers_in(d):
        shapes = jax.eval_shape(lambda k: MAKERS[name]().draw(k, {"w": 4096}, d), KEY)
        return sum(x.size for x in jax.tree.leaves(shapes))

    assert numbers_in(512) <= numbers_in(2) + 2.2 * (4096 * 512) ** 0.5


# --- each projection ------------------------------------------------------------------


def transforms(own):
    """Gains and orders of each transform, and the outer half of its length."""
    gain, order = (np.asarray(own[n]) for n in ("gain", "order"))
    chunks, outer, count, inner = gain.shape
    shape = (chunks, count, outer * inner)
    gains = gain.astype(np.float64).swapaxes(1, 2).reshape(shape)
    return gains, np.broadcast_to(order[:, None].astype(int), shape), outer


def check_permutations(orders, width):
    """Each place of a vector that repeats itself is taken equally often."""
    length = orders.shape[-1]
    once = np.repeat(np.arange(width), length // width)
    assert (np.sort(orders, axis=-1) == once).all()


@pytest.mark.parametrize("cut", [False, True])
def test_fastfood_is_the_published_formula(cut):
    _, sizes, fixed, p, _ = drawn("fastfood", cut)
    own = fixed["subspace"]
    gains, orders, _ = transforms(own)
    assert gains.shape == (1, 1, 64)
    total = sum(sizes.values())
    want = reference.fastfood(own["flip"], gains[0, 0], orders[0, 0], total)
    np.testing.assert_allclose(p, want, atol=2e-6)
    check_permutations(orders, 16)
    assert set(np.unique(own["flip"]).tolist()) == {-1, 1}


@pytest.mark.parametrize("name", ["stacked", "blocks"])
@pytest.mark.parametrize("cut", [False, True])
def test_stacked_fastfood_is_blocks_of_it(name, cut):
    _, sizes, fixed, p, _ = drawn(name, cut)
    own = fixed["subspace"]
    gains, orders, outer = transforms(own)
    assert gains.shape == ((1, 4, 16) if name == "stacked" else (2, 8, 8))
    check_permutations(orders, gains.shape[-1])
    total = sum(sizes.values())
    want = reference.fastfood_blocks(own["flip"], gains, orders, total, outer)
    np.testing.assert_allclose(p, want, atol=2e-6)


@pytest.mark.parametrize("name", ["fastfood", "blocks"])
def test_gains_are_gaussian_and_places_shuffled(name):
    draw = MAKERS[name]().draw
    fixed = compiled(lambda key: draw(key, {"w": 4096}, 8), KEY)["subspace"]
    gains, orders, _ = transforms(fixed)
    gain = gains.reshape(-1) / gains.std()
    assert abs(gain.mean()) < 4 / 64
    assert abs((gain**4).mean() - 3) < 4 * 96**0.5 / 64
    check_permutations(orders, 8)
    assert (np.diff(orders) < 0).mean() > 0.25  # shuffled


def test_a_small_leaf_sees_all_numbers_and_moves_by_its_share():
    _, sizes, fixed, p, _ = drawn("per_leaf")
    ends = np.cumsum(list(sizes.values()))[:-1]
    for (path, size), part in zip(sizes.items(), np.split(p, ends), strict=True):
        assert (np.abs(part).max(axis=0) > 0).all(), path
        # Squared norm n / D of each column, not 1: averaged over columns.
        share = (part**2).sum() / D
        assert 0.5 < share / (size / TOTAL) < 1.6, path
    gains, orders, outer = transforms(fixed["b"])
    assert gains.shape == (3, 1, 4)
    flip = fixed["b"]["flip"]
    want = reference.fastfood_blocks(flip, gains, orders, 3, outer)
    np.testing.assert_allclose(p[21:24], want * (3 / TOTAL) ** 0.5, atol=2e-6)


def test_gradients_of_leaves_add_up_without_a_factor_for_each_length():
    projection, sizes, fixed, p, _ = drawn("per_leaf")
    g = {path: jnp.asarray(numbers(i, n)) for i, (path, n) in enumerate(sizes.items())}
    flat = np.concatenate([np.asarray(x, np.float64) for x in g.values()])

    def run(z):
        return projection.apply(fixed, z, sizes)

    back = compiled(lambda g: jax.linear_transpose(run, jnp.zeros(D))(g)[0], g)
    # The published backward pass divides what each tensor adds by the root of its L.
    ends = np.cumsum(list(sizes.values()))[:-1]
    terms = zip(np.split(p, ends), np.split(flat, ends), (32, 4, 64), strict=True)
    wrong = sum(part.T @ own / length for part, own, length in terms)
    right = p.T @ flat
    assert right @ wrong < 0.95 * np.linalg.norm(right) * np.linalg.norm(wrong)
    assert_close(back, right.astype(np.float32))


def test_sparse_is_the_normalised_draw():
    _, sizes, fixed, p, _ = drawn("sparse")
    rows, signs = (
        [np.asarray(fixed[path][name]) for path in sizes] for name in ("row", "sign")
    )
    want = reference.sparse(rows, signs, sizes.values())
    np.testing.assert_allclose(p, want, atol=1e-6)
    assert [(p[s] != 0).sum(axis=0).tolist() for s in (slice(21), slice(24, 64))] == [
        [5] * D,
        [6] * D,
    ]


def test_sparse_rows_are_uniform():
    draw = subspace.sparse().draw
    fixed = compiled(lambda key: draw(key, {"w": 10}, 4000), KEY)["w"]
    counts = np.bincount(np.asarray(fixed["row"]).reshape(-1), minlength=10)
    assert abs(counts - 1200).max() < 4 * 1200**0.5
    assert abs(int(fixed["sign"].sum())) < 4 * 12000**0.5


@pytest.mark.parametrize("cut", [False, True])
def test_kronecker_is_the_formula(cut):
    _, _, fixed, p, _ = drawn("kronecker", cut)
    own = fixed["subspace"]
    want = reference.kronecker(own["q1"], own["q2"], own["rest"], own["order"])
    np.testing.assert_allclose(p, want, atol=2e-6)


def test_kronecker_splits_every_size():
    for total in range(1, 60):
        for d in range(1, total + 1):
            a, b, r, p, q, s = split_of(total, d)
            assert (a * b + r, p * q + s) == (total, d)
            assert a >= p
            assert b >= q
            assert r >= s
    assert split_of(199_210, 750) == (446, 446, 294, 27, 27, 21)


def test_kronecker_with_a_rest_keeps_norms():
    for d in (1, 7):
        p = drawn("kronecker", cut=True, d=d).p
        np.testing.assert_allclose(p.T @ p, np.eye(d), atol=2e-6)


def test_regenerated_is_the_same_map_from_seeds():
    projection, sizes, fixed, p, _ = drawn("regenerated")
    assert {path: x["seed"].shape for path, x in fixed.items()} == dict.fromkeys(
        sizes, (2,)
    )
    seeds = [np.asarray(x["seed"]) for x in fixed.values()]
    key = jax.random.wrap_key_data(jnp.asarray(np.bitwise_xor.reduce(seeds)))
    inner = subspace.fastfood_stacked()

    def columns(key):
        run = product(inner, inner.draw(key, sizes, D), sizes)
        return jax.vmap(run)(jnp.eye(D)).T

    np.testing.assert_allclose(p, compiled(columns, key), atol=1e-6)
    grad = jax.grad(lambda z: product(projection, fixed, sizes)(z).sum())
    assert "prevent_cse=True" in str(jax.make_jaxpr(grad)(jnp.ones(D)))  # drawn twice


# --- messages -------------------------------------------------------------------------


def test_refuses_small_leaves_where_the_inner_projection_does():
    for inner in (subspace.gather(), subspace.kronecker()):
        with pytest.raises(ValueError, match=r"d=9 exceeds (the 3 entries|D=3)"):
            subspace.per_leaf(inner).draw(KEY, SIZES, D)


def test_refuses_what_is_no_projection_or_block():
    for wrap in (subspace.per_leaf, subspace.regenerated):
        with (
            untyped(),
            pytest.raises(TypeError, match="expected a Projection, got <fu"),
        ):
            wrap(subspace.dense)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        subspace.fastfood_stacked(0)
    with untyped(), pytest.raises(TypeError, match=r"block must be an int, got 2\.5"):
        subspace.fastfood_stacked(2.5)


@pytest.mark.parametrize("name", ["fastfood", "kronecker"])
def test_refuses_arrays_of_another_network(name):
    projection, _, fixed, *_ = drawn(name)
    with pytest.raises(
        ValueError, match=f"{name}: the state does not move 124 entries"
    ):
        projection.apply(fixed, jnp.zeros(D), {**SIZES, "c": 100})
