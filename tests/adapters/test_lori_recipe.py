"""`lori_two_stage`: equal to its steps by hand, its controls, and its messages."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.untyped import untyped

KEY = jax.random.key(3)
PARAMS = {
    "v": jnp.asarray(numbers(1, 6, 4)),
    "w": jnp.asarray(numbers(2, 4, 5)),
    "bias": jnp.asarray(numbers(3, 5)),
}
X, Y = jnp.asarray(numbers(4, 7, 6)), jnp.asarray(numbers(5, 7, 5))
RATES = {"dense": 0.05, "sparse": 0.1}
STEPS = 4


def model(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"] + params["bias"][None]


def fit(tx, state, stage):
    """A few steps of Adam as one jitted scan, faster in the sparse stage."""
    optimizer = optax.adam(RATES[stage])

    def loss(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return jnp.mean((lrk.lift(model)(adapted, X) - Y) ** 2)

    def step(carry, _):
        trainable, memory = carry
        updates, memory = optimizer.update(jax.grad(loss)(trainable), memory)
        return (optax.apply_updates(trainable, updates), memory), None

    @jax.jit
    def run(trainable):
        carry = (trainable, optimizer.init(trainable))
        return jax.lax.scan(step, carry, length=STEPS)[0][0]

    return state._replace(trainable=run(state.trainable))


def untrained(tx, state, stage):
    """The dense stage moves `B` to known numbers; the sparse stage does nothing."""
    del tx
    if stage == "sparse":
        return state
    moved = {p: {"b": jnp.asarray(B[p])} for p in state.trainable}
    return state._replace(trainable=moved)


B = {"v": numbers(6, 2, 4), "w": numbers(7, 2, 5, scale=0.4)}


def assert_same(actual, expected):
    """Bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def ones(mask):
    return sum(int(np.sum(m)) for m in mask.values())


# --- the steps -----------------------------------------------------------------------


@functools.cache
def by_hand():
    dense = lrk.lori(2, alpha=4)
    calibration = fit(dense, dense.init(KEY, PARAMS), "dense")
    mask = lrk.lori_mask(calibration, density=0.3, scope="matrix")
    sparse = lrk.lori(2, alpha=4, mask=mask)
    return fit(sparse, sparse.init(KEY, PARAMS), "sparse"), mask, calibration


def test_it_is_the_three_steps_bit_for_bit():
    run = lrk.lori_two_stage(KEY, PARAMS, 2, fit, alpha=4, density=0.3, scope="matrix")
    assert_same(run[1:], by_hand())
    assert {p: int(m.sum()) for p, m in run.mask.items()} == {"v": 2, "w": 3}
    moved = jax.tree.map(lambda b: bool((b != 0).all()), run.state.trainable)
    assert jax.tree.leaves(moved) == [True, True]


def test_its_transform_applies_its_state():
    run = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, scale=0.5, keep_b=True)
    formed = lrk.materialize(run.tx.apply(PARAMS, run.state))
    for path in ("v", "w"):
        a = np.asarray(run.state.fixed[path]["a"], np.float64)
        delta = 0.5 * a @ (B[path] * np.asarray(run.mask[path]))
        np.testing.assert_allclose(
            formed[path] - PARAMS[path], delta, rtol=1e-4, atol=1e-6
        )
    np.testing.assert_array_equal(formed["bias"], PARAMS["bias"])


def test_stages_come_in_order_and_start_at_zero():
    seen = []

    def spy(tx, state, stage):
        seen.append((stage, jax.tree.map(lambda b: not b.any(), state.trainable)))
        return untrained(tx, state, stage)

    run = lrk.lori_two_stage(KEY, PARAMS, 2, spy, density=0.5)
    zero = {"v": {"b": True}, "w": {"b": True}}
    assert seen == [("dense", zero), ("sparse", zero)]
    assert_same(run.calibration.trainable, {p: {"b": b} for p, b in B.items()})


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_the_number_trained_is_the_number_kept(density):
    run = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, density=density)
    assert lrk.count(run.state)[0] == ones(run.mask) == max(1, int(density * 18))


def test_without_density_and_scope_they_are_those_of_lori_mask():
    run = lrk.lori_two_stage(KEY, PARAMS, 2, untrained)
    assert_same(run.mask, lrk.lori_mask(run.calibration))
    assert ones(run.mask) == 1


# --- A -------------------------------------------------------------------------------


@pytest.mark.parametrize("store_a", [True, False])
def test_the_second_stage_has_the_first_one_s_a_unless_it_is_redrawn(store_a):
    told = {"density": 0.5, "store_a": store_a}
    name = "a" if store_a else "seed"
    run = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, **told)
    anew = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, reuse_a=False, **told)
    second = jax.random.fold_in(KEY, zlib.crc32(b"lori_two_stage"))
    other = lrk.lori(2, store_a=store_a).init(second, PARAMS)
    for path in ("v", "w"):
        first = run.calibration.fixed[path][name]
        np.testing.assert_array_equal(run.state.fixed[path][name], first)
        np.testing.assert_array_equal(anew.calibration.fixed[path][name], first)
        drawn = anew.state.fixed[path][name]
        np.testing.assert_array_equal(drawn, other.fixed[path][name])
        assert (np.asarray(drawn) != np.asarray(first)).any()
    assert_same(anew.mask, run.mask)


# --- B and the mask ------------------------------------------------------------------


def test_keep_b_starts_at_the_masked_b():
    run = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, density=0.4, keep_b=True)
    for path, b in B.items():
        kept = b[np.asarray(run.mask[path])]
        np.testing.assert_array_equal(run.state.trainable[path]["b"], kept)
    reset = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, density=0.4)
    assert not any(b.any() for b in jax.tree.leaves(reset.state.trainable))
    assert_same(reset.mask, run.mask)


def test_another_mask_takes_the_place_of_lori_s():
    def shuffled(state):
        return lrk.random_mask(jax.random.key(9), lrk.lori_mask(state, density=0.4))

    run = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, density=0.4)
    control = lrk.lori_two_stage(KEY, PARAMS, 2, untrained, mask_from=shuffled)
    assert_same(control.mask, shuffled(control.calibration))
    counts = [{p: int(m.sum()) for p, m in r.mask.items()} for r in (run, control)]
    assert counts[0] == counts[1]
    assert any((run.mask[p] != control.mask[p]).any() for p in B)
    index = control.state.fixed["v"]["index"]
    assert index.tolist() == np.flatnonzero(control.mask["v"]).tolist()


def test_axes_and_selection_reach_every_step():
    params = {"layers": {"kernel": jnp.ones((3, 6, 4))}, "head": jnp.ones((4, 4))}
    axes = {"layers/kernel": lrk.Axes((0,), (1,), (2,))}
    uneven = np.array([1.0, 0.2, 0.5], np.float32)[:, None, None]
    b = jnp.asarray(numbers(8, 3, 2, 4) * uneven)

    def move(tx, state, stage):
        del tx
        moved = {"layers/kernel": {"b": b}}
        return state._replace(trainable=moved) if stage == "dense" else state

    told = {"axes": axes, "select": lrk.matching("layers"), "scope": "matrix"}
    run = lrk.lori_two_stage(KEY, params, 2, move, density=0.25, **told)
    assert list(run.mask) == ["layers/kernel"]
    assert run.mask["layers/kernel"].sum((1, 2)).tolist() == [2, 2, 2]


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_refuses_a_fit_that_returns_something_else(stage):
    def bad(result):
        def fit(tx, state, now):
            return result(state) if now == stage else untrained(tx, state, now)

        return fit

    message = rf"in the {stage} stage fit returned .* unlike the state it got"
    cut = bad(lambda state: state._replace(trainable={"v": state.trainable["v"]}))
    with untyped():
        for broken in (cut, bad(lambda state: state.trainable), bad(lambda _: None)):
            with pytest.raises(ValueError, match=message):
                lrk.lori_two_stage(KEY, PARAMS, 2, broken, density=0.5)


def test_refuses_density_and_scope_beside_a_mask_of_one_s_own():
    told = {"density": 0.3, "scope": "layer", "mask_from": lrk.lori_mask}
    with pytest.raises(ValueError, match="both mask_from and density and scope"):
        lrk.lori_two_stage(KEY, PARAMS, 2, untrained, **told)


def test_refuses_what_is_no_function():
    with untyped():
        with pytest.raises(TypeError, match="fit must be a function, got None"):
            lrk.lori_two_stage(KEY, PARAMS, 2, None)
        with pytest.raises(TypeError, match="mask_from must be a function, got 0.1"):
            lrk.lori_two_stage(KEY, PARAMS, 2, untrained, mask_from=0.1)


def test_refuses_to_be_traced():
    run = functools.partial(lrk.lori_two_stage, rank=2, fit=untrained)
    with pytest.raises(TypeError, match="Jit inside fit, and call this outside"):
        jax.jit(lambda key: run(key, PARAMS).state)(KEY)
    with pytest.raises(TypeError, match="under jit, vmap or grad"):
        jax.jit(lambda params: run(KEY, params).state)(PARAMS)


def test_what_lori_and_lori_mask_refuse_is_refused():
    with pytest.raises(ValueError, match="lori: rank must be at least 1"):
        lrk.lori_two_stage(KEY, PARAMS, 0, untrained)
    with pytest.raises(ValueError, match="every `b` is zero. Train before"):
        lrk.lori_two_stage(KEY, PARAMS, 2, lambda tx, state, stage: state)  # noqa: ARG005
    with pytest.raises(ValueError, match="lori: the mask does not fit: 'w': no mask"):
        lrk.lori_two_stage(
            KEY, PARAMS, 2, untrained, mask_from=lambda _: {"v": np.ones((2, 4))}
        )
    with pytest.raises(TypeError, match=r"lori_two_stage: .* Call lori_two_stage\("):
        lrk.lori_two_stage(PARAMS["v"], PARAMS, 2, untrained)
