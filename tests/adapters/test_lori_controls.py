"""Control masks: by score against NumPy, at random with exact counts, messages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import lori as lori_reference
from tests.reference import lori_controls as reference

KEY = jax.random.key(0)
PATHS = ("block/0/q/kernel", "block/0/v/kernel", "block/1/q/kernel")
B = {
    path: jnp.asarray(numbers(i, 2, 5, scale=size))
    for i, (path, size) in enumerate(zip(PATHS, (1.0, 0.3, 0.7), strict=True))
}
MASK = lori_reference.masks(B, 0.4, lambda *_: "")
AXES = {"layers/kernel": lrk.Axes((0,), (1,), (2,))}
STACK = {"layers/kernel": numbers(8, 3, 2, 4) > 0.3, "head": numbers(9, 2, 4) > 0.5}


def scored(matrices):
    return {path: {"b": b} for path, b in matrices.items()}


def assert_masks(actual, expected):
    assert list(actual) == list(expected)
    for path, mask in expected.items():
        assert actual[path].dtype == bool
        np.testing.assert_array_equal(actual[path], mask, path)


# --- by score ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "group"),
    [("model", lambda *_: ""), ("matrix", lambda path, _: path)],
)
def test_the_largest_scores_are_kept_by_value(scope, group):
    mask = lrk.score_mask(scored(B), density=0.35, scope=scope)
    assert_masks(mask, reference.by_score(B, 0.35, group))
    by_size = lori_reference.masks(B, 0.35, group)
    assert any((by_size[path] != mask[path]).any() for path in B)


def test_the_scores_of_lori_give_lori_s_mask():
    state = lrk.State(scored(B), {})
    sizes = jax.tree.map(jnp.abs, state.trainable)
    assert_masks(lrk.score_mask(sizes), lrk.lori_mask(state))


def test_smallest_and_largest_are_complements_at_half_density():
    sizes = jax.tree.map(jnp.abs, scored(B))
    large = lrk.score_mask(sizes, density=0.5)
    small = lrk.score_mask(jax.tree.map(jnp.negative, sizes), density=0.5)
    assert_masks(small, {path: ~np.asarray(m) for path, m in large.items()})


def test_the_number_of_ones_is_exact_whatever_the_ties():
    ties = {"w": {"b": jnp.array([[1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])}}
    mask = lrk.score_mask(ties, density=0.5)["w"]
    assert np.flatnonzero(mask).tolist() == [0, 1, 3]


def test_a_gradient_at_init_is_a_tree_of_scores():
    params, x = {"v": jnp.ones((6, 4))}, jnp.asarray(numbers(1, 7, 6))
    tx = lrk.lora(2)  # its gradient has an `a`, too
    state = tx.init(KEY, params)

    def loss(trainable):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        return jnp.sum(jnp.tanh(lrk.lift(lambda p: x @ p["v"])(adapted)) ** 2)

    grads = jax.tree.map(jnp.abs, jax.grad(loss)(state.trainable))
    mask = lrk.score_mask(grads, density=0.25)
    want = reference.by_score({"v": grads["v"]["b"]}, 0.25, lambda *_: "")
    assert_masks(mask, want)
    assert mask["v"].sum() == 2


def test_axes_and_chains_are_followed():
    stacked = {"layers/kernel": jnp.asarray(numbers(3, 3, 2, 4))}
    nested = ({}, (scored(stacked), scored({"head": B[PATHS[0]]})))
    told = {"density": 0.3, "scope": "matrix", "axes": AXES}
    want = reference.by_score(
        stacked | {"head": B[PATHS[0]]},
        0.3,
        lambda path, index: (path, index[0] if path != "head" else 0),
    )
    assert_masks(lrk.score_mask(nested, **told), want)


def test_score_mask_runs_under_jit():
    mask = jax.jit(lambda s: lrk.score_mask(s, density=0.35))(scored(B))
    assert_masks(mask, lrk.score_mask(scored(B), density=0.35))


# --- at random -----------------------------------------------------------------------

GROUPS = {
    "matrix": lambda path, _: path,
    "layer": lambda path, _: path[:7],
    "model": lambda *_: "",
}


@pytest.mark.parametrize("scope", GROUPS)
def test_each_group_keeps_its_number_of_ones(scope):
    drawn = lrk.random_mask(KEY, MASK, scope=scope)
    group = GROUPS[scope]
    assert reference.counts(drawn, group) == reference.counts(MASK, group)
    assert all(m.dtype == bool and m.shape == (2, 5) for m in drawn.values())
    assert any((drawn[path] != MASK[path]).any() for path in MASK)
    if scope != "matrix":  # then single matrices may keep another number
        finer = GROUPS["matrix"]
        keys = jax.random.split(KEY, 4)
        many = [lrk.random_mask(key, MASK, scope=scope) for key in keys]
        own = reference.counts(MASK, finer)
        assert any(reference.counts(m, finer) != own for m in many)


def test_with_axes_each_layer_of_a_stack_keeps_its_number():
    def group(path, index):
        return (path, index[0] if path != "head" else 0)

    drawn = lrk.random_mask(KEY, STACK, axes=AXES)
    assert reference.counts(drawn, group) == reference.counts(STACK, group)
    plain = [lrk.random_mask(k, STACK) for k in jax.random.split(KEY, 3)]
    own = reference.counts(STACK, group)
    assert any(reference.counts(m, group) != own for m in plain)


def test_places_are_uniform():
    mask = {"w": np.arange(8).reshape(2, 4) < 3}
    keys = jax.random.split(KEY, 2000)
    drawn = jax.vmap(lambda key: lrk.random_mask(key, mask)["w"])(keys)
    share, error = 3 / 8, (3 / 8 * 5 / 8 / 2000) ** 0.5
    np.testing.assert_allclose(drawn.mean(0), share, atol=4 * error)
    pairs = np.asarray(drawn[:, 0, 0] & drawn[:, 1, 3]).mean()
    both = 3 / 8 * 2 / 7  # without replacement
    assert abs(pairs - both) < 4 * (both * (1 - both) / 2000) ** 0.5


def test_keys_and_leaves_decide():
    same = {
        "v": np.arange(24).reshape(4, 6) < 12,
        "w": np.arange(24).reshape(4, 6) < 12,
    }
    one = lrk.random_mask(KEY, same)
    assert_masks(lrk.random_mask(KEY, same), one)
    assert (one["v"] != one["w"]).any()
    other = lrk.random_mask(jax.random.key(1), same)
    assert (other["v"] != one["v"]).any()
    alone = lrk.random_mask(KEY, {"w": same["w"]})
    np.testing.assert_array_equal(alone["w"], one["w"])


def test_a_stack_of_equal_layers_has_a_draw_for_each():
    mask = {
        "layers/kernel": np.broadcast_to(np.arange(24).reshape(4, 6) < 12, (3, 4, 6))
    }
    drawn = np.asarray(lrk.random_mask(KEY, mask, axes=AXES)["layers/kernel"])
    assert all((i != j).any() for i, j in itertools.combinations(drawn, 2))


def test_random_mask_of_a_traced_mask():
    drawn = jax.jit(lrk.random_mask)(KEY, {p: jnp.asarray(m) for p, m in MASK.items()})
    assert_masks(drawn, lrk.random_mask(KEY, MASK))


def test_what_they_return_is_what_lori_takes():
    params = {"w": jnp.ones((6, 4))}
    mask = lrk.score_mask({"w": {"b": jnp.asarray(numbers(1, 2, 4))}}, density=0.4)
    drawn = lrk.random_mask(KEY, mask)
    for own in (mask, drawn):
        state = lrk.lori(2, mask=own).init(KEY, params)
        assert state.trainable["w"]["b"].shape == (3,)


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_score_mask_refuses_densities_outside_their_range(density):
    with pytest.raises(ValueError, match=r"score_mask: density must lie in \(0, 1\]"):
        lrk.score_mask(scored(B), density=density)


def test_unknown_scopes_are_refused_by_name():
    with pytest.raises(ValueError, match="score_mask: unknown scope 'module'"):
        lrk.score_mask(scored(B), scope="module")
    with pytest.raises(ValueError, match="random_mask: unknown scope 'leaf'"):
        lrk.random_mask(KEY, MASK, scope="leaf")


@pytest.mark.parametrize("scores", [{}, {"w": {"a": np.ones(3)}}, {"w": np.ones(3)}])
def test_score_mask_refuses_trees_without_scores(scores):
    with pytest.raises(ValueError, match="score_mask: there are no scores: expected"):
        lrk.score_mask(scores)


def test_score_mask_refuses_scores_that_tell_nothing():
    with pytest.raises(ValueError, match="every score is zero"):
        lrk.score_mask({"w": {"b": jnp.zeros((2, 3))}})
    bad = {"v": {"b": jnp.ones((2, 3))}, "w": {"b": jnp.array([[1.0, jnp.inf]])}}
    with pytest.raises(ValueError, match=r"scores are not finite at \['w'\]"):
        lrk.score_mask(bad)


def test_score_mask_refuses_two_members_with_one_path():
    with pytest.raises(ValueError, match=r"more than one member .* \['w'\]"):
        lrk.score_mask(({"w": {"b": jnp.ones(3)}},) * 2)


def test_random_mask_refuses_what_is_no_mask():
    with pytest.raises(ValueError, match="random_mask: the mask is empty"):
        lrk.random_mask(KEY, {})
    with pytest.raises(ValueError, match=r"hold 0 and 1, unlike those at \['w'\]"):
        lrk.random_mask(KEY, {"v": np.eye(2), "w": np.full((2, 2), 0.5)})


def test_random_mask_refuses_what_is_no_key():
    with pytest.raises(TypeError, match=r"random_mask: .* Call random_mask\(jax"):
        lrk.random_mask(jax.random.split(KEY, 2), MASK)
