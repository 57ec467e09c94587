"""Training through a chip's map, and on the chip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank import rram
from tests.network import numbers
from tests.untyped import untyped

PARAMS = {
    "first": {"kernel": jnp.asarray(numbers(1, 3, 4)), "bias": jnp.zeros(4)},
    "second": {"kernel": jnp.asarray(numbers(2, 4, 2))},
    "steps": jnp.arange(2),  # not floating: never trained
}
BATCHES = (jnp.asarray(numbers(3, 6, 5, 3)), jnp.asarray(numbers(4, 6, 5, 2)))
STAGES = (lrk.matching("^first"), lrk.matching("^second"))
ADAM = optax.adam(0.05)
FIRST, SECOND, BIAS = "first/kernel", "second/kernel", "first/bias"
TX = rram.crossbar(rram.Device())
HEALTHY = TX.init(jax.random.key(0), PARAMS)


def loss(params, batch):
    x, y = batch
    h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return jnp.mean((h @ params["second"]["kernel"] - y) ** 2)


def broken():
    """The first row of each kernel reads 0, as on open lines."""
    fixed = {
        path: {**c, "gain": c["gain"].at[:, 0].set(0.0)}
        for path, c in HEALTHY.fixed.items()
    }
    return HEALTHY._replace(fixed=fixed)


BROKEN = broken()


def through(state):
    return lambda params: TX.apply(params, state)


def run(deploy, params=PARAMS, batches=BATCHES, optimizer=ADAM, **told):
    out = rram.retrain(loss, params, deploy, batches, optimizer, **told)
    leaves = {FIRST: out.params["first"]["kernel"], BIAS: out.params["first"]["bias"]}
    return {**leaves, SECOND: out.params["second"]["kernel"]}, out


def cut(first, end):
    return jax.tree.map(lambda x: x[first:end], BATCHES)


@pytest.fixture(scope="module")
def plain():
    """The same training by hand, without a chip: the weights after each step."""
    floats = {"first": PARAMS["first"], "second": PARAMS["second"]}
    memory, path = ADAM.init(floats), []

    @jax.jit
    def step(params, memory, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, memory = ADAM.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory, value

    for i in range(6):
        batch = jax.tree.map(lambda x, i=i: x[i], BATCHES)
        floats, memory, value = step(floats, memory, batch)
        path.append((floats, value))
    return path


def test_a_healthy_chip_trains_as_no_chip_does(plain):
    _, out = run(through(HEALTHY))
    np.testing.assert_allclose(out.losses, [value for _, value in plain], rtol=1e-4)
    for name in ("first", "second"):
        for key, w in plain[-1][0][name].items():
            np.testing.assert_allclose(out.params[name][key], w, atol=1e-4)
    assert out.params["steps"] is PARAMS["steps"]


def test_frozen_weights_are_zero_and_stay_while_others_train():
    hit = {FIRST: jnp.zeros((3, 4), bool).at[0].set(True)}
    hit[FIRST] = hit[FIRST].at[1, 1].set(True)
    importance = {FIRST: jnp.arange(12.0).reshape(3, 4)}
    order = rram.freeze_order(importance, hit)
    # Two before each of the first two steps: of the five, four are frozen at the end.
    new, _ = run(through(BROKEN), batches=cut(0, 2), order=order, per_step=2)
    held = np.asarray(rram.frozen(order, 4)[FIRST])
    assert held.sum() == 4
    assert held[1, 1]
    assert not held[0, 0]
    assert (np.asarray(new[FIRST])[held] == 0.0).all()
    moved = np.asarray(new[FIRST] != PARAMS["first"]["kernel"])
    assert moved[1:, 1:].all()  # the first hidden unit ends on an open line
    assert (new[SECOND] != PARAMS["second"]["kernel"])[1:].all()
    # A target in the place of zero, approached by halves in two steps.
    goal = {FIRST: jnp.full((3, 4), 3.0)}
    new, _ = run(
        through(BROKEN), batches=cut(0, 2), order=order, per_step=4,
        shrink=jnp.float32(0.5), target=goal,
    )  # fmt: skip
    first = held & np.asarray(order[FIRST] < 4)
    expected = 3 + 0.25 * (np.asarray(PARAMS["first"]["kernel"]) - 3)
    np.testing.assert_allclose(
        np.asarray(new[FIRST])[first], expected[first], rtol=1e-5
    )


def test_weights_out_of_the_mask_keep_their_values():
    """FAP+T: pruned weights are zero, and no step changes them."""
    keep = {SECOND: jnp.asarray([[True, False]] * 4)}
    pruned = {**PARAMS, "second": {"kernel": PARAMS["second"]["kernel"] * keep[SECOND]}}
    new, _ = run(through(HEALTHY), pruned, batches=cut(0, 2), mask=keep)
    assert (new[SECOND][:, 1] == 0).all()
    assert (new[SECOND][:, 0] != PARAMS["second"]["kernel"][:, 0]).all()


def test_the_penalty_is_added_and_not_reported():
    sgd = optax.sgd(1.0)
    with_it, out = run(
        through(BROKEN), batches=cut(0, 1), optimizer=sgd, penalty=0.5,
        importance={FIRST: jnp.ones((3, 4))},
    )  # fmt: skip
    without, same = run(through(BROKEN), batches=cut(0, 1), optimizer=sgd)
    assert float(out.losses[0]) == float(same.losses[0])
    # On open lines the penalty is 0.5 w^2, and the loss has no gradient there.
    np.testing.assert_allclose(with_it[FIRST][0], 0.0, atol=1e-6)
    np.testing.assert_allclose(without[FIRST][0], PARAMS["first"]["kernel"][0])
    np.testing.assert_allclose(with_it[SECOND], without[SECOND], atol=1e-6)


def test_layers_are_adjusted_in_order_of_depth(plain):
    """Two batches for each stage and for the end."""
    out = rram.retrain(loss, PARAMS, through(BROKEN), BATCHES, ADAM, stages=STAGES)
    assert len(out.losses) == 6
    # The first stage sees no fault in the second layer: the same as training with
    # faults in the first alone.
    only = HEALTHY._replace(fixed={**HEALTHY.fixed, FIRST: BROKEN.fixed[FIRST]})
    early = rram.retrain(loss, PARAMS, through(only), cut(0, 2), ADAM)
    np.testing.assert_allclose(out.losses[:2], early.losses, rtol=1e-5)
    assert not np.allclose(early.losses, [value for _, value in plain[:2]])
    # The second stage begins with what the first left, and with all faults.
    batch = jax.tree.map(lambda x: x[2], BATCHES)
    shown = loss(TX.apply(early.params, BROKEN), batch)
    np.testing.assert_allclose(out.losses[2], shown, rtol=1e-5)


def test_layers_before_the_stage_are_fixed():
    calls = []

    def recorded(grads, memory, _):
        calls.append(dict(grads))
        return jax.tree.map(lambda g: -0.1 * g, grads), memory

    class Recorder:
        init = staticmethod(lambda _: ())
        update = staticmethod(recorded)

    with jax.disable_jit():
        rram.retrain(loss, PARAMS, through(HEALTHY), cut(0, 3), Recorder, stages=STAGES)
    moves = [{p for p, g in call.items() if bool((g != 0).any())} for call in calls]
    assert moves == [{FIRST, BIAS, SECOND}, {SECOND}, {FIRST, BIAS, SECOND}]


def test_each_step_draws_anew():
    drawn = lambda params, key: jax.tree.map(  # noqa: E731
        lambda w: w + jax.random.normal(key) if w.dtype == jnp.float32 else w, params
    )
    same = jax.tree.map(lambda x: jnp.stack([x[0]] * 2), BATCHES)
    _, out = run(drawn, batches=same, optimizer=optax.sgd(0.0), key=jax.random.key(0))
    assert out.losses[0] != out.losses[1]


def refused(match, **told):
    with pytest.raises(ValueError, match=match):
        run(through(HEALTHY), **told)


def test_bad_input_is_refused_by_name():
    order = {FIRST: jnp.zeros((3, 4), jnp.int32)}
    refused(r"retrain: per_step must be at least 0, got -1", per_step=-1, order=order)
    refused(r"retrain: got per_step=2 without an order", per_step=2)
    refused(r"retrain: shrink must be at least 0 and at most 1, got 2", shrink=2)
    refused(r"retrain: shrink must be below 1", shrink=1.0)
    refused(r"retrain: penalty must be at least 0, got -0.1", penalty=-0.1)
    refused(r"retrain: order has 'third'.*nearest are", order={"third": order[FIRST]})
    refused(r"retrain: mask has 'steps'", mask={"steps": jnp.ones(2, bool)})
    refused(
        r"retrain: target .*'first/bias': expected shape", target={BIAS: jnp.zeros(3)}
    )
    refused(r"retrain: stages must be predicates", stages=())
    with untyped():
        refused(r"retrain: stages must be predicates", stages=("first",))
    third = (*STAGES, lrk.matching("third"))
    refused(r"retrain: stages \[2\] match nothing.*'first/bias'", stages=third)
    refused(
        r"retrain: expected at least 3 batches.*got 2", batches=cut(0, 2), stages=STAGES
    )
    refused(r"retrain: batches: .*got sizes \[\(0,\)\]", batches=cut(0, 0))
    uneven = (BATCHES[0], BATCHES[1][:3])
    refused(r"retrain: batches: expected arrays with the same number", batches=uneven)


# --- on the device -------------------------------------------------------------------

DEVICE = rram.Device(g_min=10.0, g_max=110.0)
CELLS = rram.programmed(DEVICE)
SMALL = {"w": jnp.asarray([[1.0, 2.0], [0.5, -1.0]]), "b": jnp.zeros(2)}


class Descent:
    init = staticmethod(lambda _: ())
    update = staticmethod(
        lambda grads, memory, _: (jax.tree.map(lambda g: -g, grads), memory)
    )


def slope(params, batch):
    return jnp.sum(params["w"] * batch) + jnp.sum(params["b"])


def test_programmed_cells():
    state = rram.crossbar(DEVICE).init(jax.random.key(0), SMALL)
    found = CELLS(SMALL, state)["w"]
    assert found.shape == (2, 2, 2)
    np.testing.assert_allclose(found[0], [[110.0, 110.0], [60.0, 10.0]], atol=1e-3)
    np.testing.assert_allclose(found[1], [[10.0, 10.0], [10.0, 60.0]], atol=1e-3)
    with untyped(), pytest.raises(TypeError, match=r"programmed: expected a Device"):
        rram.programmed({})
    with pytest.raises(ValueError, match=r"programmed: the state has 'w', which the"):
        CELLS({"v": SMALL["w"]}, state)


def on_device(state, updates, **told):
    tx = rram.crossbar(DEVICE)
    return rram.on_device(
        slope, SMALL, tx, state, -jnp.asarray(updates), Descent, cells=CELLS, **told
    )


def test_writes_are_counted_cell_by_cell():
    """Updates by hand: first 0.5 -> -0.5, then 0.02 to a large weight and to -1."""
    state = rram.crossbar(DEVICE).init(jax.random.key(0), SMALL)
    updates = [[[0.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.02, 0.5]]]
    out = on_device(state, updates)
    # The sign changes: both cells. Then one cell of each of the two weights.
    assert out.writes.tolist() == [2, 2]
    np.testing.assert_allclose(out.params["w"], [[1.0, 2.0], [-0.48, -0.5]], atol=1e-6)
    assert out.params["b"].tolist() == [-2.0, -2.0]  # off the chip: no writes
    # 0.02 of a scale of 1 is 2 uS: below the threshold, and so not written.
    out = on_device(state, updates, threshold=jnp.float32(5.0))
    assert out.writes.tolist() == [2, 1]
    np.testing.assert_allclose(out.params["w"], [[1.0, 2.0], [-0.5, -0.5]], atol=1e-6)
    # Twice 0.03 is 6 uS: what is not written adds up.
    out = on_device(state, [[[0.0, 0.0], [0.03, 0.0]]] * 2, threshold=5.0)
    assert out.writes.tolist() == [0, 1]
    np.testing.assert_allclose(out.params["w"][1, 0], 0.56, atol=1e-6)
    # A mask keeps a weight from being written.
    out = on_device(
        state, updates, mask={"w": jnp.asarray([[True, True], [False, True]])}
    )
    assert out.writes.tolist() == [0, 1]


def test_stuck_cells_are_never_written():
    state = rram.crossbar(DEVICE.replace(p_hrs=1.0)).init(jax.random.key(0), SMALL)
    out = on_device(state, [[[0.1, 0.1], [0.1, 0.1]]])
    assert out.writes.tolist() == [0]
    assert out.params["w"].tolist() == SMALL["w"].tolist()


def test_the_gradient_on_the_device_goes_through_converters_and_fresh_noise():
    noisy = DEVICE.replace(read=0.1, dac=rram.Converter(4, limit=1.0))
    tx = rram.crossbar(noisy)
    state, x = tx.init(jax.random.key(0), SMALL), jnp.ones((2, 3, 2)) * 0.3
    out = rram.on_device(
        lrk.lift(lambda p, x: jnp.sum(x @ p["w"])), SMALL, tx, state, x,
        optax.sgd(0.0), jax.random.key(1), cells=CELLS,
    )  # fmt: skip
    assert out.losses[0] != out.losses[1]
    exact = float(jnp.sum(x[0] @ SMALL["w"]))
    assert abs(float(out.losses.mean()) - exact) < 3.0
    assert out.writes.tolist() == [0, 0]


def test_bad_device_steps_are_refused_by_name():
    state = rram.crossbar(DEVICE).init(jax.random.key(0), SMALL)
    update = [[[0.0, 0.0], [0.0, 0.0]]]
    with pytest.raises(ValueError, match=r"on_device: threshold must be at least 0"):
        on_device(state, update, threshold=-1.0)
    with pytest.raises(ValueError, match=r"on_device: mask has 'v'"):
        on_device(state, update, mask={"v": True})
    with pytest.raises(ValueError, match=r"on_device: cells must give \[2, \*shape\]"):
        rram.on_device(
            slope, SMALL, rram.crossbar(DEVICE), state, jnp.asarray(update), Descent,
            cells=lambda *_: {"w": jnp.ones(3)},
        )  # fmt: skip
