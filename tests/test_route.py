"""Mixed batches: every example runs with an adapter of its own, over one base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import lowrank as lrk
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

PARAMS = {
    "w": jnp.asarray(numbers(1, 6, 4)),
    "bias": jnp.asarray(numbers(2, 4)),
    "layers": jnp.asarray(numbers(3, 2, 4, 4)),
    "head": jnp.asarray(numbers(4, 4, 2)),
}
AXES = {"layers": lrk.Axes((0,), (1,), (2,))}
KERNELS = lrk.matching("w|layers")
X = jnp.asarray(numbers(5, 5, 3, 6))
IDS = np.asarray([2, 0, -1, 3, 4])


def model(params, x):
    h = jnp.tanh(x @ params["w"] + params["bias"][None])
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"])
    return h @ params["head"]


def trained(tx, seed):
    """A state in which nothing is zero."""
    state = jax.jit(tx.init)(jax.random.key(seed), PARAMS)
    flat, treedef = jax.tree.flatten(state.trainable)
    flat = [jnp.asarray(numbers(10 * seed + i, *x.shape)) for i, x in enumerate(flat)]
    return state._replace(trainable=jax.tree.unflatten(treedef, flat))


def kinds():
    """Adapters of every kind that is low rank or a delta, of several ranks."""
    full = lrk.full(select=lrk.matching("bias|head"))
    given = {"select": KERNELS, "axes": AXES}
    mask = {"w": numbers(6, 2, 4) > 0, "layers": numbers(7, 2, 2, 4) > 0}
    return [
        lrk.lora(1, alpha=3, **given),
        lrk.chain(lrk.lora(2, **given), full),
        lrk.lori(2, alpha=1, mask=mask, **given),
        lrk.chain(lrk.lora(1, alpha=2, select=lrk.matching("w")), lrk.lora(2, **given)),
    ]


@pytest.fixture(scope="module")
def states():
    return [trained(tx, i) for i, tx in enumerate(kinds())]


def trees_of(states):
    """The adapted trees; the last is what merging two of them gives."""
    trees = [tx.apply(PARAMS, s) for tx, s in zip(kinds(), states, strict=True)]
    return [*trees, lrk.merging.concat(trees[:2], weights=[0.5, -1.0])]


def mixed(tree, x):
    run = jax.vmap(lrk.lift(model), in_axes=(lrk.in_axes(tree), 0))
    return run(tree, x)


def one_by_one(trees, ids):
    plain = jax.jit(lrk.lift(model))
    return jnp.stack(
        [plain(trees[i] if i >= 0 else PARAMS, x) for i, x in zip(ids, X, strict=True)]
    )


def test_every_example_runs_with_its_own_adapter_and_gradients_come_back(states):
    def loss(trainables, ids, route):
        own = [s._replace(trainable=t) for s, t in zip(states, trainables, strict=True)]
        trees = trees_of(own)
        out = mixed(lrk.route(trees, ids), X) if route else one_by_one(trees, IDS)
        return jnp.sum(out * numbers(8, *out.shape)), out

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    trainables = [s.trainable for s in states]
    (_, got), got_grads = slope(trainables, jnp.asarray(IDS), True)
    (_, want), want_grads = slope(trainables, jnp.asarray(IDS), False)
    assert_close(got, want)
    assert_close(got_grads, want_grads)


def test_untouched_leaves_are_the_same_and_the_base_multiplies_all_examples(states):
    tree = lrk.route(trees_of(states)[:1], np.asarray([0, -1, 0, 0, 0]))
    assert tree["head"] is PARAMS["head"]
    assert tree["w"].w is PARAMS["w"]
    assert tree["w"].a.shape == (5, 6, 1)
    closed = jax.make_jaxpr(mixed)(tree, X)
    shapes = [
        [tuple(v.aval.shape) for v in eqn.invars]
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name == "dot_general"
    ]
    assert ((5, 3, 6), (6, 4)) in [tuple(pair) for pair in shapes]
    assert not any((5, 6, 4) in pair or (5, 4, 4) in pair for pair in shapes)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def test_a_bank_serves_adapters_that_come_and_go_with_one_program(states, traces):
    trees = trees_of(states)
    bank = lrk.bank(trees[:2], capacity=4, rank=5)
    assert bank.capacity == 4
    assert bank.tree["w"].a.shape == (4, 6, 5)

    @jax.jit
    @traces
    def serve(bank, ids, x):
        return mixed(bank.route(ids), x)

    ids = np.asarray([0, 1, 3, 9, 1])
    first = serve(bank, ids, X)
    kept = [*trees[:2], PARAMS, PARAMS]
    padded = np.where(ids == 9, -1, ids)
    assert_close(first, one_by_one(kept, padded))
    bank = bank.set(3, trees[3]).set(0, trees[2]).set(1, PARAMS)
    kept = [trees[2], PARAMS, PARAMS, trees[3]]
    assert_close(serve(bank, ids, X), one_by_one(kept, padded))
    assert traces.count == 1
    swapped = jax.jit(lambda b, i, t: b.set(i, t))(bank, 1, trees[3])
    assert_close(swapped, bank.set(1, trees[3]))


def test_a_scale_for_each_layer_is_kept():
    tx = lrk.lora(2, select=lrk.matching("layers"), axes=AXES)
    one, two = (trained(tx, i) for i in (1, 2))
    fixed = {"layers": {"scale": jnp.asarray([2.0, 0.5])}}
    trees = [tx.apply(PARAMS, s) for s in (one, two._replace(fixed=fixed))]
    bank = lrk.bank(trees)
    assert bank.tree["layers"].scale.tolist() == [[1.0, 1.0], [2.0, 0.5]]
    with pytest.raises(ValueError, match="no room for.*'layers': a scale for each"):
        lrk.bank(trees[:1]).set(0, trees[1])


def mixing(params, x):
    """A model that takes the mean over the examples of a batch."""
    h = x @ params["w"] + params["bias"][None]
    return h - jax.lax.pmean(h, "examples")


def test_a_model_that_mixes_examples_is_refused_unless_the_axis_has_its_name():
    tx = lrk.lora(1, select=lrk.matching("w"))
    tree = lrk.route([tx.apply(PARAMS, trained(tx, 1))], [0, 0, -1, 0, 0])
    axes = (lrk.in_axes(tree), 0)
    lifted = lrk.lift(mixing)
    with pytest.raises(NameError, match="unbound axis name: examples"):
        jax.vmap(lifted, in_axes=axes)(tree, X)
    out = jax.vmap(lifted, in_axes=axes, axis_name="examples")(tree, X)
    assert_close(out.mean(0) + 1, jnp.ones((3, 4)))
    with pytest.raises(lrk.LiftError, match="vmap"):
        lrk.lift(mixing)(tree, X)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.float32([0, 1]), r"one axis of integers, one for each.*got float32\[2\]"),
        (0, r"one axis of integers.*got int32\[\]"),
        ([0, 5, -2], r"-1 \(the base alone\) or below 2.*got \[-2, 5\]"),
    ],
)
def test_ids_that_name_no_adapter_are_refused(states, ids, message):
    with (
        untyped(),
        pytest.raises(ValueError, match=f"route: task_ids must be {message}"),
    ):
        lrk.route(trees_of(states)[:2], ids)


def test_adapters_that_cannot_be_routed_are_refused_by_path(states):
    trees = trees_of(states)
    dora = lrk.dora(2, select=lrk.matching("w"))
    key = jax.random.key(0)
    other = dora.apply(PARAMS, jax.jit(dora.init)(key, PARAMS))
    message = r"bank: cannot route 'w' \(Magnitude\).*Route low-rank terms"
    with pytest.raises(ValueError, match=message):
        lrk.bank([other, other])
    drop = lrk.lora(2, dropout=0.5, select=lrk.matching("w"))
    other = drop.apply(PARAMS, jax.jit(drop.init)(key, PARAMS), key=key)
    with pytest.raises(ValueError, match=r"cannot route 'w' \(DropoutLowRank\)"):
        lrk.route([trees[0], other], [0])
    other = kinds()[0].apply(PARAMS | {"w": PARAMS["w"] + 1}, states[0])
    with pytest.raises(ValueError, match="bank: the trees are not adapted from one"):
        lrk.bank([trees[0], other])
    with pytest.raises(ValueError, match="bank: no leaf is adapted"):
        lrk.bank([PARAMS])


def test_a_bank_without_room_is_refused(states):
    trees = trees_of(states)
    with pytest.raises(ValueError, match="a capacity of at least 2, got 1"):
        lrk.bank(trees[:2], capacity=1)
    with pytest.raises(ValueError, match="no room for.*'w': rank 1 exceeds 0"):
        lrk.bank(trees[:1], rank=0)
    bank = lrk.bank(trees[:1], capacity=2)
    with pytest.raises(ValueError, match="'bias': the bank holds no plain deltas.*he"):
        bank.set(0, trees[1])
    with pytest.raises(ValueError, match="'layers': rank 2 exceeds 1.*'w': rank 2 ex"):
        bank.set(0, trees[2])
    turned = lrk.Axes((), (1,), (0,))
    tx = lrk.lora(1, select=lrk.matching("w"), axes={"w": turned})
    with pytest.raises(ValueError, match=r"'w': other axes than \(\(0,\), \(1,\)\)"):
        bank.set(0, tx.apply(PARAMS, trained(tx, 1)))
    with pytest.raises(ValueError, match="slot must be at least 0 and below.*2, got 2"):
        bank.set(2, trees[0])
