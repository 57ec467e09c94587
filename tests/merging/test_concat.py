"""`concat`: the exact weighted sum of adapters, in value, gradient and under `lift`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import concat
from tests.network import numbers
from tests.tolerances import assert_close

KEY = jax.random.key(0)
AXES = {
    "layers/kernel": lrk.Axes((0,), (1,), (2,)),
    "heads/kernel": lrk.Axes((), (0,), (1, 2)),
}
PARAMS = {
    "first": {"kernel": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.zeros(4)},
    "layers": {"kernel": jnp.asarray(numbers(2, 3, 4, 4))},
    "heads": {"kernel": jnp.asarray(numbers(3, 4, 2, 3))},
    "norm": {"scale": jnp.ones(4)},
}
KERNELS = lrk.matching("kernel$")
BIAS = lrk.matching("bias$")


def adapted(tx, seed, params=PARAMS):
    """A tree whose adapter has been trained."""
    state = tx.init(jax.random.key(seed), params)
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [jnp.asarray(numbers(seed + i, *x.shape)) for i, x in enumerate(leaves)]
    trainable = jax.tree.unflatten(treedef, new)
    return tx.apply(params, state._replace(trainable=trainable))


def lora(rank, **more):
    return lrk.lora(rank, select=KERNELS, axes=AXES, **more)


@functools.cache
def trees():
    """Unequal ranks and scales, plain deltas, adapters on adapters, a sparse task."""
    head = lrk.matching("first/kernel")
    return [
        adapted(lrk.chain(lora(2, alpha=3), lrk.full(select=BIAS)), 10),
        adapted(lrk.chain(lora(1), lora(3, scale=0.2), lrk.full(select=KERNELS)), 20),
        adapted(lrk.lori(2, mask={"first/kernel": np.eye(2, 4)}, select=head), 30),
    ]


WEIGHTS = (0.5, -1.25, 2.0)


def exact(trees, weights):
    """The base plus the weighted sum of what each tree adds, in float64."""

    def total(base, *leaves):
        base = np.asarray(base, np.float64)
        terms = [
            w * (np.asarray(x, np.float64) - base)
            for w, x in zip(weights, leaves, strict=True)
        ]
        return np.asarray(base + sum(terms), np.float32)

    return jax.tree.map(total, PARAMS, *map(lrk.materialize, trees))


def model(params, x):
    h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    h, _ = jax.lax.scan(
        lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"]["kernel"]
    )
    h = h * params["norm"]["scale"][None]
    return jnp.einsum("nd,dhk->nhk", h, params["heads"]["kernel"])


X = jnp.asarray(numbers(4, 5, 6))


@pytest.mark.parametrize("weights", [WEIGHTS, np.array(WEIGHTS), jnp.array(WEIGHTS)])
def test_the_merge_is_the_weighted_sum_of_the_changes(weights):
    merged = concat(trees(), weights)
    assert_close(lrk.materialize(merged), exact(trees(), WEIGHTS))


def test_without_weights_each_counts_once():
    merged = concat(tuple(trees()))
    assert_close(lrk.materialize(merged), exact(trees(), (1, 1, 1)))


def test_ranks_add_up_and_the_base_is_kept_once():
    merged = concat(trees(), WEIGHTS)
    kernel = merged["first"]["kernel"]
    assert isinstance(kernel, lrk.LowRank)
    assert kernel.rank == 2 + (1 + 3) + 2
    base, terms = lrk.split(kernel)
    assert base is PARAMS["first"]["kernel"]
    assert [type(term) for term in terms] == [lrk.LowRank, lrk.Delta]
    assert merged["layers"]["kernel"].a.shape == (3, 4, 6)
    assert merged["layers"]["kernel"].b.shape == (3, 6, 4)
    assert merged["heads"]["kernel"].b.shape == (6, 2, 3)
    assert isinstance(merged["first"]["bias"], lrk.Delta)
    assert merged["norm"]["scale"] is PARAMS["norm"]["scale"]
    assert jax.tree.map(id, lrk.base(merged)) == jax.tree.map(id, PARAMS)


def test_the_lifted_merge_is_the_materialised_one_in_value_and_gradient():
    weights, own = jnp.array(WEIGHTS), trees()

    def total(weights, form):
        out = form(concat(own, weights))
        return jnp.sum(out**2), out

    def lifted(tree):
        return lrk.lift(model)(tree, X)

    def formed(tree):
        return model(lrk.materialize(tree), X)

    run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    (slope, out), (want, dense) = run(weights, lifted), run(weights, formed)
    assert_close(out, dense)
    assert_close(slope, want)
    assert_close(out, model(exact(own, WEIGHTS), X))
    assert bool((jnp.abs(slope) > 1e-3).all())


def test_weights_may_be_swept_by_vmap():
    own = trees()
    sweep = jnp.array([WEIGHTS, (1.0, 0.0, 0.0)])
    formed = jax.vmap(lambda w: lrk.materialize(concat(own, w)), out_axes=0)(sweep)
    for i, weights in enumerate(sweep.tolist()):
        part = jax.tree.map(lambda x, i=i: x[i], formed)
        assert_close(part, exact(own, weights))


def test_trees_may_be_arguments_of_a_jitted_function():
    own = trees()
    merged = jax.jit(lambda *trees: concat(trees, WEIGHTS))(*own)
    assert_close(lrk.materialize(merged), exact(own, WEIGHTS))


def test_a_merge_can_be_merged_again():
    one, two, three = trees()
    nested = concat([concat([one, two], [2.0, 0.5]), three], [0.25, -1.0])
    want = exact([one, two, three], (0.5, 0.125, -1.0))
    assert_close(lrk.materialize(nested), want)


def test_one_scale_for_each_layer_is_kept():
    w = PARAMS["layers"]["kernel"]
    a, b = jnp.asarray(numbers(5, 3, 4, 2)), jnp.asarray(numbers(6, 3, 2, 4))
    scale = jnp.array([0.5, 1.0, -2.0])
    op = {"w": lrk.LowRank(w, a, b, scale)}
    merged = lrk.materialize(concat([op, op], [1.0, 0.5]))["w"]
    want = w + 1.5 * scale[:, None, None] * jnp.einsum("lir,lro->lio", a, b)
    assert_close(merged, want)


def test_abstract_trees_merge_too():
    own = trees()
    shapes = jax.eval_shape(lambda *trees: concat(trees), *own)
    eager = jax.eval_shape(lambda tree: tree, concat(own))
    assert jax.tree.leaves(shapes) == jax.tree.leaves(eager)


# --- messages ------------------------------------------------------------------------


def test_refuses_terms_without_an_exact_sum_and_names_them_all():
    tx = lora(2, dropout=0.5)
    state = tx.init(KEY, PARAMS)
    random = tx.apply(PARAMS, state, key=KEY)
    message = (
        r"concat: cannot merge 'first/kernel' \(DropoutLowRank\), 'heads/kernel' "
        r"\(DropoutLowRank\), 'layers/kernel' \(DropoutLowRank\)\. Merge .* dropout=0"
    )
    with pytest.raises(ValueError, match=message):
        concat([random, random])


def test_refuses_factors_of_different_axes_and_names_them_all():
    params = {"v": jnp.ones((4, 4)), "w": jnp.ones((4, 4)), "x": jnp.ones((4, 4))}
    turned = {path: lrk.Axes((), (1,), (0,)) for path in ("v", "w")}
    own = [adapted(lrk.lora(1, axes=axes), 1, params) for axes in (None, turned)]
    message = (
        r"the factors hold different axes at 'v': \[\(\(0,\), \(1,\)\), \(\(1,\), "
        r"\(0,\)\)\]; 'w': .*\. Make the adapters with one axes="
    )
    with pytest.raises(ValueError, match=message):
        concat(own)
