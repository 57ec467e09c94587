"""One step of many adapters: each as if alone, over a base that nothing copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

import lowrank as lrk
from lowrank import training
from lowrank.training._step import cast
from tests.tolerances import assert_close
from tests.training.small import (
    PARAMS,
    RATES,
    TX,
    batches,
    by_hand,
    loss,
    row,
    states,
)
from tests.untyped import untyped

HYPER = {"learning_rate": RATES}
W = lrk.matching("w")


def run(step, state, data, steps=10, hyper=None, key=None):
    """All batches through a step; what is carried, and the metrics of each step."""
    given, carry = step.init(state, steps=steps, hyper=hyper, key=key)
    update, found = jax.jit(step.update), []
    for batch in data:
        carry, metrics = update(PARAMS, given, carry, batch)
        found.append(metrics)
    return carry, jax.tree.map(lambda *xs: np.stack(xs), *found)


@pytest.mark.parametrize("method", ["vmap", "map"])
def test_each_adapter_is_trained_as_if_alone_until_its_steps_are_taken(method):
    state, data = states(), batches()
    step = training.step(loss, TX, optax.adam, method=method)
    limits = [4, 2, 3]
    carry, metrics = run(step, state, data, limits, HYPER)
    assert carry.step.tolist() == limits
    for i, limit in enumerate(limits):
        own = [(x[i], y[i]) for x, y in data[:limit]]
        want, losses = by_hand(row(state, i), own, RATES[i])
        assert_close(row(carry.trainable, i), row(want, ...))
        np.testing.assert_allclose(metrics["loss"][:limit, i], losses, rtol=1e-5)
        assert np.isnan(metrics["loss"][limit:, i]).all()
    assert set(metrics) == {"loss", "grad_norm", "mean"}


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def traced(step, state, batch, hyper=None):
    given, carry = step.init(state, steps=9, hyper=hyper)
    return jax.make_jaxpr(step.update)(PARAMS, given, carry, batch)


def test_the_base_is_an_argument_and_multiplies_all_examples_at_once():
    step = training.step(loss, TX, optax.adam, method="vmap")
    closed = traced(step, states(), batches(1)[0], HYPER)
    assert all(np.size(x) < PARAMS["w"].size for x in closed.consts)
    shapes = [
        [tuple(v.aval.shape) for v in eqn.invars]
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name == "dot_general"
    ]
    base = [pair for pair in shapes if (6, 4) in pair]
    assert [max(pair, key=len) for pair in base] == [(3, 5, 6)]
    assert not any((3, 6, 4) in pair for pair in shapes)


def test_gradients_of_several_batches_are_averaged():
    state, data = states(), batches()
    whole = [jax.tree.map(lambda *xs: np.concatenate(xs, 1), *data)]
    parts = [jax.tree.map(lambda *xs: np.stack(xs, 1), *data)]
    plain = training.step(loss, TX, optax.adam)
    step = training.step(loss, TX, optax.adam, accumulate=4)
    want, want_metrics = run(plain, state, whole, hyper=HYPER)
    got, metrics = run(step, state, parts, hyper=HYPER)
    assert_close(got.trainable, want.trainable)
    assert_close(metrics, want_metrics)
    with pytest.raises(ValueError, match="expected 4 batches in one step, in the"):
        jax.eval_shape(
            step.update, PARAMS, *step.init(state, steps=1, hyper=HYPER), whole[0]
        )


def steep(params, batch, key):
    """In float16 its gradient is zero unless scaled, and not finite at infinity."""
    del key
    small = jnp.mean(batch * params["w"].astype(jnp.float16)) * jnp.float16(1e-3)
    return small * jnp.float16(3e-4)


def test_a_loss_scale_grows_to_its_largest_and_comes_back():
    scaling = training.LossScale(interval=1)
    scale = scaling.start(1)._replace(scale=jnp.full(1, 2.0**23))
    seen = []
    for finite in (True, True, True, False):
        scale = scaling.after(scale, jnp.asarray([finite]))
        seen.append(scale.scale.item())
    assert seen == [2.0**24, 2.0**24, 2.0**24, 2.0**23]


def test_a_loss_scale_saves_small_gradients_and_leaves_out_infinite_ones():
    tx = lrk.full(select=lrk.matching("w"))
    state = lrk.stack([tx.init(jax.random.key(0), PARAMS)] * 2)
    sizes = np.asarray([1.0, np.inf], np.float16).reshape(2, 1, 1)
    batch = np.broadcast_to(sizes, (2, 6, 4))
    scaling = training.LossScale(initial=2.0**13, interval=2)
    step = training.step(steep, tx, optax.sgd(1.0), loss_scale=scaling)
    given, carry = step.init(state, steps=9)
    ones = carry.scale._replace(scale=np.ones(2, np.float32))
    update = jax.jit(step.update)
    _, unscaled = update(PARAMS, given, carry._replace(scale=ones), batch)
    assert unscaled["grad_norm"][0] == 0
    carry, metrics = run(step, state, [batch] * 2)
    want = 3e-7 / np.sqrt(24)
    np.testing.assert_allclose(metrics["grad_norm"][0, 0], want, rtol=1e-2)
    assert metrics["finite"].tolist() == [[1, 0], [1, 0]]
    assert metrics["loss_scale"].tolist() == [[2.0**13, 2.0**12], [2.0**14, 2.0**11]]
    d = carry.trainable["w"]["d"]
    assert (d[0] != 0).all()
    assert (d[1] == 0).all()
    assert carry.step.tolist() == [2, 2]


def test_the_base_product_runs_in_the_dtype_asked_for_and_adapters_keep_theirs():
    step = training.step(loss, TX, optax.sgd(0.1), dtype=jnp.bfloat16, method="vmap")
    closed = traced(step, states(), batches(1)[0])
    dots = [e for e in equations(closed.jaxpr) if e.primitive.name == "dot_general"]
    assert {str(v.aval.dtype) for eqn in dots for v in eqn.invars} == {"bfloat16"}
    kept = [x.dtype for x in closed.out_avals if x.ndim == 3]
    assert set(map(str, kept)) == {"float32"}


def test_a_base_of_another_kind_refuses_another_dtype():
    class Fixed(lrk.LowRank):
        def cast(self, _):
            return NotImplemented

    base = {"w": [Fixed(PARAMS["w"], np.ones((6, 1), "f4"), np.ones((1, 4), "f4"))]}
    with pytest.raises(ValueError, match=r"cannot cast 'w/0' \(Fixed\)\. Leave dtype"):
        cast(base, jnp.bfloat16)


def test_a_policy_of_recomputing_is_passed_on():
    policy = jax.checkpoint_policies.nothing_saveable
    step = training.step(loss, TX, optax.sgd(0.1), remat=policy)
    closed = traced(step, states(), batches(1)[0])
    found = [
        e
        for e in equations(closed.jaxpr)
        if e.primitive.name in ("checkpoint", "remat2", "remat")
    ]
    assert found
    assert found[0].params["policy"] is policy


def test_every_adapter_and_step_draws_anew_and_a_key_gives_the_same_again():
    tx = lrk.lora(2, dropout=0.5)

    def drawn(params, batch, key):
        return jnp.sum((batch @ params["w"]) ** 2), {"u": jax.random.uniform(key)}

    state = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), states(tx=tx))
    step = training.step(drawn, tx, optax.sgd(0.0), batch_axis=None)
    data = [np.ones((2, 6), np.float32)] * 2
    first, again = (run(step, state, data, key=jax.random.key(7))[1] for _ in range(2))
    assert_close(first, again)
    assert len(np.unique(first["u"])) == 6
    assert len(np.unique(first["loss"])) == 6
    with pytest.raises(TypeError, match="lora: dropout needs a key"):
        run(step, state, data)


def decaying(rate):
    return optax.adamw(rate, weight_decay=0.1)


def test_adapters_of_unequal_rank_train_together_as_they_would_alone():
    own = [row(states(1, lrk.lora(r, alpha=4)), 0) for r in (1, 3)]
    tx = lrk.lora(3)
    padded = lrk.pad_ranks(own)
    data = batches(3, 2)
    step = training.step(loss, tx, decaying(0.1))
    carry, _ = run(step, lrk.stack(padded), data)
    for i, rank in enumerate((1, 3)):
        part = row(carry.trainable, i)["w"]
        alone = [(x[i], y[i]) for x, y in data]
        want, _ = by_hand(own[i], alone, 0.1, decaying, tx)
        assert (part["a"][:, rank:] == 0).all()
        assert (part["b"][rank:] == 0).all()
        kept = {"a": part["a"][:, :rank], "b": part["b"][:rank]}
        assert_close({"w": kept}, row(want, ...))


def test_masks_of_unequal_length_train_together_as_they_would_alone():
    masks = [np.zeros((2, 4)), np.ones((2, 4))]
    masks[0][0] = 1
    made = [lrk.lori(2, alpha=4, mask={"w": mask}, select=W) for mask in masks]
    own = [jax.jit(tx.init)(jax.random.key(i), PARAMS) for i, tx in enumerate(made)]
    assert [s.trainable["w"]["b"].shape for s in own] == [(4,), (8,)]
    stacked, data = lrk.stack(own), batches(2, 2)
    step = training.step(loss, made[0], decaying(0.1))
    carry, _ = run(step, stacked, data)
    trained = lrk.unstack(stacked._replace(trainable=carry.trainable))
    for i, state in enumerate(own):
        alone = [(x[i], y[i]) for x, y in data]
        want, _ = by_hand(state, alone, 0.1, decaying, made[0])
        assert_close(row(trained[i].trainable, ...), row(want, ...))


def test_a_loss_may_meet_the_operators_and_lift_by_itself():
    def own(adapted, batch, key):
        ranks = [leaf.w.rank for leaf in [adapted["bias"]] if hasattr(leaf.w, "rank")]
        assert not ranks
        assert adapted["w"].rank == 2
        return lrk.lift(loss)(adapted, batch, key)

    state, data = states(), batches(1)
    bare = training.step(own, TX, optax.sgd(0.1), lift=lambda f: f)
    plain = training.step(loss, TX, optax.sgd(0.1))
    want = run(plain, state, data)[0].trainable
    assert_close(run(bare, state, data)[0].trainable, want)


def test_a_plan_may_be_given_to_lift():
    dense = functools.partial(lrk.lift, plan={"w": "dense"})
    formed = training.step(loss, TX, optax.sgd(0.1), lift=dense, method="map")
    plain = training.step(loss, TX, optax.sgd(0.1), method="map")
    shapes = []
    for step in (formed, plain):
        closed = traced(step, states(), batches(1)[0])
        dots = [e for e in equations(closed.jaxpr) if e.primitive.name == "dot_general"]
        shapes.append([tuple(e.outvars[0].aval.shape) for e in dots])
    assert (6, 4) in shapes[0]
    assert (6, 4) not in shapes[1]


def no_scalar(params, batch, key):
    del key
    return batch[0] @ params["w"] + params["bias"][None]


def bad_metrics(params, batch, key):
    return loss(params, batch, key)[0], 3.0


def taken_name(params, batch, key):
    return loss(params, batch, key)[0], {"loss": 1.0}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss must be a function, got int"),
        ({"tx": optax.sgd(0.1)}, TypeError, "expected a Transform, got Gradient"),
        ({"optimizer": 0.1}, TypeError, "expected an Optax transformation or a func"),
        ({"batch_axis": 1}, ValueError, "batch_axis must be 0 or None, got 1"),
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
        ({"accumulate": 1.5}, TypeError, "accumulate must be an int, got 1.5"),
        ({"loss_scale": 8.0}, TypeError, "loss_scale must be a LossScale or None"),
        (
            {"loss_scale": training.LossScale(initial=4.0, largest=2.0)},
            ValueError,
            "smallest > 0 and a finite largest not below these",
        ),
        (
            {"loss_scale": training.LossScale(factor=1.0)},
            ValueError,
            "loss_scale needs initial > 0, interval >= 1, factor > 1",
        ),
        ({"loss": no_scalar}, ValueError, r"must be a scalar, got \(5, 4\)"),
        ({"loss": bad_metrics}, TypeError, r"a scalar or \(scalar, dict\), got a"),
        ({"loss": taken_name}, ValueError, r"may not be called \['loss'\]"),
    ],
)
def test_what_does_not_fit_is_refused(given, error, message):
    options = {"loss": loss, "tx": TX, "optimizer": optax.sgd(0.1)} | given
    own = [options.pop(name) for name in ("loss", "tx", "optimizer")]
    with untyped(), pytest.raises(error, match=message):
        traced(training.step(*own, **options), states(), batches(1)[0])


def test_numbers_of_adapters_that_disagree_are_refused():
    step, state = training.step(loss, TX, optax.adam), states()
    with pytest.raises(ValueError, match=r"each of 3 adapters, got learning_rate \(2"):
        step.init(state, steps=1, hyper={"learning_rate": [0.1, 0.2]})
    with pytest.raises(ValueError, match="one leading axis of adapters, got"):
        step.init(row(state, 0), steps=1)
    with pytest.raises(ValueError, match="leading axis of 3 adapters.*batch_axis=None"):
        traced(step, state, row(batches(1)[0], 0), HYPER)
