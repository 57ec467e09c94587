"""What the merges that prune have in common: laws and refusals of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import breadcrumbs, concat, dare, della, magnitude, ties
from tests.merging.signs import PARAMS, trees
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
MERGES = {
    "breadcrumbs": functools.partial(breadcrumbs, gamma=0.0),
    "breadcrumbs mergekit": functools.partial(breadcrumbs, conformance="mergekit"),
    "dare": functools.partial(dare, key=KEY),
    "dare mergekit": functools.partial(dare, key=KEY, conformance="mergekit"),
    "dare peft": functools.partial(dare, key=KEY, conformance="peft"),
    "dare elect": functools.partial(dare, key=KEY, elect=True, trim=1.0),
    "della": functools.partial(della, key=KEY, epsilon=0.1),
    "della mergekit": functools.partial(
        della, key=KEY, epsilon=0.1, conformance="mergekit"
    ),
    "magnitude": magnitude,
    "magnitude peft": functools.partial(magnitude, conformance="peft"),
    "ties": ties,
    "ties mergekit": functools.partial(ties, conformance="mergekit"),
    "ties peft": functools.partial(ties, conformance="peft"),
}
PLAIN = ("breadcrumbs", "dare", "della", "magnitude", "ties")
each_merge = pytest.mark.parametrize("name", MERGES)
each_function = pytest.mark.parametrize("name", PLAIN)


def own_trees():
    """Low-rank terms alone, which every conformance takes."""
    return [{"first": tree["first"]} for tree in trees(False)]


def merge(name, **more):
    return MERGES[name](own_trees(), **more)


def materialized(name, **more):
    return lrk.materialize(merge(name, **more))


# --- laws ------------------------------------------------------------------------


@each_merge
def test_one_tree_at_density_one_is_that_tree(name):
    tree = own_trees()[:1]
    assert_close(
        lrk.materialize(MERGES[name](tree, density=1.0)), lrk.materialize(tree[0])
    )


@each_merge
def test_jit_and_traced_weights_density_and_scale_change_nothing(name, traces):
    own = own_trees()
    weights, density, scale = jnp.array([0.7, 1.3, 0.4]), jnp.float32(0.5), 2.0

    def form(own, weights, density, scale):
        merged = MERGES[name](own, weights, density=density, scale=scale)
        return lrk.materialize(merged)

    run = jax.jit(traces(form))
    eager = form(own, [0.7, 1.3, 0.4], 0.5, 2.0)
    assert_close(run(own, weights, density, scale), eager)
    run(own, 2 * weights, density / 2, scale)
    assert traces.count == 1


@each_merge
def test_densities_may_be_swept_by_vmap(name):
    sweep = jnp.array([0.25, 0.5, 1.0])
    found = jax.jit(jax.vmap(lambda d: materialized(name, density=d)))(sweep)
    for i, density in enumerate(sweep.tolist()):
        part = jax.tree.map(lambda x, i=i: x[i], found)
        assert_close(part, materialized(name, density=density))


@each_merge
def test_the_result_lifts_and_can_be_merged_again(name):
    merged = merge(name, density=0.5)
    formed = lrk.materialize(merged)
    x = jnp.asarray(numbers(9, 2, 4))

    def model(params, x):
        return jnp.tanh(x @ params["first"])

    assert_close(lrk.lift(model)(merged, x), model(formed, x))
    again = lrk.materialize(concat([merged, merged], [0.25, 0.75]))
    assert_close(again, formed)


@each_function
def test_the_base_is_kept_and_untouched_leaves_are_the_same_objects(name):
    only = [{**PARAMS, "first": t["first"]} for t in trees()]
    merged = MERGES[name](only, density=0.5)
    assert lrk.split(merged["first"])[0] is PARAMS["first"]
    assert merged["bias"] is PARAMS["bias"]
    assert merged["second"] is PARAMS["second"]


@each_function
def test_trees_that_adapt_nothing_merge_to_the_base(name):
    merged = MERGES[name]([PARAMS, PARAMS], density=0.5)
    assert all(merged[path] is PARAMS[path] for path in PARAMS)


def test_a_weight_of_zero_has_a_finite_gradient_where_roots_are_taken():
    def total(weights):
        merged = magnitude(own_trees(), weights, density=1.0, conformance="peft")
        return jnp.sum(lrk.materialize(merged)["first"])

    weights = jnp.ones(len(own_trees())).at[0].set(0.0)
    assert bool(jnp.isfinite(jax.grad(total)(weights)).all())


# --- refusals --------------------------------------------------------------------


@each_function
def test_refuses_what_is_no_list_of_trees(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least one adapted tree"):
        MERGES[name]([], density=0.5)
    with untyped(), pytest.raises(TypeError, match=f"{name}: expected a list of"):
        MERGES[name](iter(trees()), density=0.5)


@each_function
def test_refuses_other_bases(name):
    moved = {**PARAMS, "first": trees()[0]["first"].replace(w=PARAMS["first"] + 1)}
    with pytest.raises(ValueError, match=f"{name}: .* from one base: 'first'"):
        MERGES[name]([trees()[0], moved], density=0.5)


@each_function
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], "expected 3 weights"),
        ([1.0, np.nan, 1.0], "the weights must be finite"),
        ([{"first": 1.0}, 1.0, 1.0], "missing 'bias', 'second'"),
    ],
)
def test_refuses_weights_that_do_not_fit(name, weights, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}|{name}: {message}"):
        MERGES[name](trees(), weights, density=0.5)


@each_function
@pytest.mark.parametrize(
    "density", [0.0, -0.5, 1.5, np.nan, [0.5, 0.5], jnp.zeros(3), jnp.array(2.0)]
)
def test_refuses_a_density_outside_its_range(name, density):
    with pytest.raises(
        ValueError, match=rf"{name}: density must be a number in \(0, 1"
    ):
        MERGES[name](trees(), density=density)


@each_function
def test_refuses_a_scale_that_is_no_number(name):
    for scale in (np.nan, np.ones(3)):
        with pytest.raises(ValueError, match=f"{name}: scale must be a finite number"):
            MERGES[name](trees(), density=0.5, scale=scale)


@each_function
def test_refuses_an_unknown_conformance(name):
    with pytest.raises(ValueError, match=f"{name}: conformance must be one of 'paper'"):
        MERGES[name](trees(), density=0.5, conformance="notebook")
