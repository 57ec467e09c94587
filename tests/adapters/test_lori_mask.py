"""`lori_mask`: which entries each scope keeps, exactly how many, and its messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import lori as reference

PATHS = ("block/0/q/kernel", "block/0/v/kernel", "block/10/q/kernel", "head/kernel")
SIZES = (1.0, 0.3, 0.7, 0.5)  # so that the scopes disagree
B = {
    path: jnp.asarray(numbers(i, 2, 5, scale=size))
    for i, (path, size) in enumerate(zip(PATHS, SIZES, strict=True))
}
LAYERS = {
    "block/0/q/kernel": "0",
    "block/0/v/kernel": "0",
    "block/10/q/kernel": "10",
    "head/kernel": "head",
}
PROJECTIONS = {
    "block/0/q/kernel": "q",
    "block/0/v/kernel": "v",
    "block/10/q/kernel": "q",
    "head/kernel": "head",
}


def state_of(matrices):
    return lrk.State({p: {"b": b} for p, b in matrices.items()}, {})


def assert_masks(actual, expected):
    assert list(actual) == list(expected)
    for path, mask in expected.items():
        assert actual[path].dtype == bool
        np.testing.assert_array_equal(actual[path], mask, path)


SCOPES = {
    "model": ("model", lambda *_: ""),
    "layer": ("layer", lambda path, _: LAYERS[path]),
    "matrix": ("matrix", lambda path, _: path),
    "projection": ("projection", lambda path, _: PROJECTIONS[path]),
    "callable": (lambda path: path.split("/")[0], lambda path, _: path.split("/")[0]),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_each_scope_keeps_the_largest_of_each_group(scope):
    argument, group = SCOPES[scope]
    mask = lrk.lori_mask(state_of(B), density=0.35, scope=argument)
    assert_masks(mask, reference.masks(B, 0.35, group))


def test_the_scopes_differ_on_this_input():
    found = [
        np.concatenate(
            [np.ravel(m) for m in reference.masks(B, 0.35, group).values()]
        ).tobytes()
        for _, group in SCOPES.values()
    ]
    assert len(set(found)) == len(found)


def test_the_default_is_a_tenth_of_the_whole_model():
    mask = lrk.lori_mask(state_of(B))
    assert_masks(mask, reference.masks(B, 0.1, lambda *_: ""))
    assert sum(int(m.sum()) for m in mask.values()) == 4


def test_a_leaf_may_keep_nothing_in_the_scope_of_the_model():
    small = {"large": jnp.ones((2, 3)), "small": jnp.full((2, 3), 0.1)}
    mask = lrk.lori_mask(state_of(small), density=0.5)
    assert (int(mask["large"].sum()), int(mask["small"].sum())) == (6, 0)


def test_the_sign_of_an_entry_does_not_count():
    b = jnp.array([[-3.0, 2.0, -0.5]])
    mask = lrk.lori_mask(state_of({"w": b}), density=0.7)
    assert mask["w"].tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (1e-9, 1),
        (0.05, 1),
        (0.1, 1),
        (0.19, 1),
        (0.2, 2),
        (0.5, 5),
        (0.99, 9),
        (1.0, 10),
    ],
)
def test_the_number_of_ones_is_exact_whatever_the_ties(density, kept):
    ties = state_of({"w": jnp.array([[1.0, -1.0, 1.0, 1.0, -1.0]] * 2)})
    mask = lrk.lori_mask(ties, density=density)["w"]
    assert np.flatnonzero(mask).tolist() == list(range(kept))


# --- stacks of layers ----------------------------------------------------------------

AXES = {
    "layers/q/kernel": lrk.Axes((0,), (1,), (2,)),
    "layers/v/kernel": lrk.Axes((0,), (1,), (2,)),
    "moe/up/kernel": lrk.Axes((0, 1), (2,), (3,)),
}
SCALES = np.array([1.0, 0.4, 0.7], np.float32)
STACKED = {
    "layers/q/kernel": jnp.asarray(numbers(1, 3, 2, 4) * SCALES[:, None, None]),
    "layers/v/kernel": jnp.asarray(numbers(2, 3, 2, 4) * 0.5),
    "moe/up/kernel": jnp.asarray(numbers(3, 3, 2, 2, 3) * SCALES[None, :2, None, None]),
    "head/kernel": jnp.asarray(numbers(4, 2, 3)),
}


def _layer(path, index):
    return path if path == "head/kernel" else index[0]


def _matrix(path, index):
    return (path, *index[: {"layers": 1, "moe": 2, "head": 0}[path.split("/")[0]]])


@pytest.mark.parametrize(("scope", "group"), [("layer", _layer), ("matrix", _matrix)])
def test_with_axes_the_places_of_a_stack_are_layers_and_matrices(scope, group):
    mask = lrk.lori_mask(state_of(STACKED), density=0.4, scope=scope, axes=AXES)
    want = reference.masks(STACKED, 0.4, group)
    assert_masks(mask, want)
    whole = reference.masks(STACKED, 0.4, lambda path, _: path)
    assert any((want[path] != whole[path]).any() for path in STACKED)


def test_experts_of_a_numbered_layer_share_that_layer():
    axes = {f"block/0/{n}/kernel": lrk.Axes((0,), (1,), (2,)) for n in ("up", "down")}
    b = {path: jnp.asarray(numbers(i, 2, 2, 3)) for i, path in enumerate(axes)}
    mask = lrk.lori_mask(state_of(b), density=0.5, scope="layer", axes=axes)
    assert_masks(mask, reference.masks(b, 0.5, lambda *_: ""))


@pytest.mark.parametrize("scope", ["model", "projection", lambda path: path[:5]])
def test_axes_change_no_other_scope(scope):
    plain = lrk.lori_mask(state_of(STACKED), density=0.4, scope=scope)
    told = lrk.lori_mask(state_of(STACKED), density=0.4, scope=scope, axes=AXES)
    assert_masks(told, plain)


def test_without_axes_a_stack_is_one_matrix():
    mask = lrk.lori_mask(state_of(STACKED), density=0.4, scope="matrix")
    assert_masks(mask, reference.masks(STACKED, 0.4, lambda path, _: path))


# --- under transformations -----------------------------------------------------------


def test_vmap_over_stacked_tasks_is_a_loop():
    tasks = [
        state_of({p: jnp.asarray(numbers(9 * i + j, 2, 5)) for j, p in enumerate(B)})
        for i in range(3)
    ]
    mapped = jax.vmap(lrk.lori_mask)(lrk.stack(tasks))
    loop = [lrk.lori_mask(task) for task in tasks]
    assert_masks(mapped, {p: np.stack([m[p] for m in loop]) for p in B})
    assert len({np.asarray(mask[PATHS[0]]).tobytes() for mask in loop}) == 3


def test_under_jit():
    state = state_of(B)
    mask = jax.jit(lambda s: lrk.lori_mask(s, density=0.35, scope="layer"))(state)
    assert_masks(mask, lrk.lori_mask(state, density=0.35, scope="layer"))


# --- which states --------------------------------------------------------------------


def test_every_dense_b_of_a_chain_counts():
    nested = lrk.State(
        ({}, ({"w": {"b": B[PATHS[0]]}}, {"v": {"b": B[PATHS[1]]}})), ({}, ({}, {}))
    )
    mask = lrk.lori_mask(nested, density=0.35)
    both = {"w": B[PATHS[0]], "v": B[PATHS[1]]}
    assert_masks(mask, reference.masks(both, 0.35, lambda *_: ""))


def test_what_it_returns_is_what_lori_takes():
    params = {"layers": {"kernel": jnp.ones((3, 6, 4))}, "bias": jnp.ones(4)}
    told = {"axes": {"layers/kernel": lrk.Axes((0,), (1,), (2,))}}
    told["select"] = lrk.matching("kernel")
    b = {"layers/kernel": jnp.asarray(numbers(3, 3, 2, 4))}
    mask = lrk.lori_mask(state_of(b), density=0.5)
    state = lrk.lori(2, mask=mask, **told).init(jax.random.key(0), params)
    assert state.trainable["layers/kernel"]["b"].shape == (12,)


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan")])
def test_refuses_densities_outside_their_range(density):
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1\], got {density}"):
        lrk.lori_mask(state_of(B), density=density)


def test_refuses_unknown_scopes():
    with pytest.raises(
        ValueError, match=r"unknown scope 'module'. Use one of \('model"
    ):
        lrk.lori_mask(state_of(B), scope="module")


def test_refuses_states_without_a_dense_b():
    params = {"w": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    full = lrk.full(select=lrk.matching("bias")).init(jax.random.key(0), params)
    with pytest.raises(ValueError, match="the state has no dense `b`. Pass a trained"):
        lrk.lori_mask(full)
    sparse = lrk.lori(2, mask={"w": np.eye(2, 3)}).init(jax.random.key(0), params)
    with pytest.raises(ValueError, match="no dense `b`"):
        lrk.lori_mask(sparse)


def test_refuses_a_state_that_was_not_trained():
    state = lrk.lori(2).init(jax.random.key(0), {"w": jnp.ones((4, 3))})
    for own in (state, jax.tree.map(np.asarray, state)):  # from a file, too
        with pytest.raises(ValueError, match="every `b` is zero. Train before"):
            lrk.lori_mask(own)


def test_refuses_a_run_that_diverged():
    bad = {"v": jnp.ones((2, 3)), "w": jnp.array([[1.0, jnp.nan]])}
    with pytest.raises(ValueError, match=r"not finite at \['w'\]"):
        lrk.lori_mask(state_of(bad))


def test_refuses_two_members_with_one_path():
    twice = lrk.State(({"w": {"b": B[PATHS[0]]}},) * 2, ({}, {}))
    with pytest.raises(ValueError, match=r"more than one member .* \['w'\]. Pass the"):
        lrk.lori_mask(twice)
