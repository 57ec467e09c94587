"""`flip` and `choose_flips`: signs, the best of them, chips, gradients, messages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import assign as reference
from tests.tolerances import assert_close

KEY = jax.random.key(3)
W = jnp.asarray(numbers(1, 4, 3))
OMEGA = jnp.abs(jnp.asarray(numbers(2, 4, 3)))
PARAMS = {"w": W, "bias": jnp.ones(3)}
COLUMNS, ROWS = np.array([1, -1, -1]), np.array([-1, 1, 1, -1])
DEVICE = lrk.rram.Device(
    p_lrs=0.2, p_hrs=0.2, levels=8, write=lrk.rram.Lognormal(0.3), g_lrs=140.0
)


def run(tx, params):
    return tx.apply(params, tx.init(KEY, params))


def chip_of(seed, params=PARAMS, device=DEVICE, axes=None):
    select = lrk.matching("w")
    tx = lrk.rram.crossbar(device, select=select, axes=axes)
    return tx.init(jax.random.key(seed), params)


def test_signs_multiply_and_undo_themselves():
    tx = lrk.rram.flip({"w": COLUMNS}, {"w": ROWS})
    state = tx.init(KEY, PARAMS)
    once = tx.apply(PARAMS, state)
    np.testing.assert_array_equal(once["w"], W * COLUMNS[None] * ROWS[:, None])
    np.testing.assert_array_equal(tx.apply(once, state)["w"], W)
    assert once["bias"] is PARAMS["bias"]
    assert state.trainable == {}
    assert {n: str(x.dtype) for n, x in state.fixed["w"].items()} == {
        "columns": "int8",
        "rows": "int8",
    }


@pytest.mark.parametrize("kind", ["columns", "rows"])
def test_one_kind_alone_in_the_dtype_of_the_weight(kind):
    signs = {"columns": COLUMNS, "rows": ROWS}[kind]
    half = {"w": W.astype(jnp.bfloat16)}
    got = run(lrk.rram.flip(**{kind: {"w": signs}}), half)["w"]
    wide = signs[None] if kind == "columns" else signs[:, None]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got), np.asarray(half["w"]) * wide)


def test_columns_of_a_kernel_and_of_each_layer():
    axes = {"c": lrk.Axes((), (0, 1), (2,)), "s": lrk.Axes((0,), (1,), (2,))}
    x = jnp.asarray(numbers(4, 2, 2, 3))
    layers = np.array([[1, -1, 1], [-1, -1, 1]])
    tx = lrk.rram.flip({"c": COLUMNS, "s": layers}, axes=axes)
    got = run(tx, {"c": x, "s": x + 1})
    np.testing.assert_array_equal(got["c"], x * COLUMNS[None, None])
    np.testing.assert_array_equal(got["s"], (x + 1) * layers[:, None])


def test_gradients_have_the_same_signs():
    tx = lrk.rram.flip({"w": COLUMNS}, {"w": ROWS})
    state = tx.init(KEY, PARAMS)
    slope = jax.grad(lambda p: tx.apply(p, state)["w"].sum())(PARAMS)["w"]
    np.testing.assert_array_equal(slope, COLUMNS[None] * ROWS[:, None] * 1.0)


# --- the choice ----------------------------------------------------------------------


def test_a_known_answer():
    # The plus cells of column 0 are stuck at zero: a positive column is lost, and saved
    # when its sign is turned. Column 1 is negative, and sits on healthy minus cells.
    params = {"w": jnp.asarray([[1.0, -1.0], [0.5, -0.5]])}
    device = lrk.rram.Device()
    state = lrk.rram.crossbar(device).init(KEY, params)
    codes = np.zeros((2, 2, 2), int)
    codes[0] = lrk.rram.HRS
    state = lrk.rram.with_faults(state, {"w": codes})
    omega = {"w": jnp.ones((2, 2))}
    signs = lrk.rram.choose_flips(params, state, device.scheme, omega)
    assert signs["w"].tolist() == [-1, 1]
    wires = lrk.rram.flip(signs)
    tx = lrk.chain(wires, lrk.rram.crossbar(device), wires)
    fixed = tx.init(KEY, params).fixed
    got = tx.apply(params, lrk.State(({}, {}, {}), (fixed[0], state.fixed, fixed[2])))
    assert_close(got["w"], params["w"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_choice_is_the_best_of_all_and_helps(seed):
    state = chip_of(seed)
    omega = {"w": OMEGA}
    signs = lrk.rram.choose_flips(PARAMS, state, DEVICE.scheme, omega)["w"]
    chip = {n: np.asarray(state.fixed["w"][n], float) for n in ("gain", "offset")}
    chip |= {"g_min": 10.0, "g_max": 100.0, "levels": 8}
    best, error = reference.best_signs(np.asarray(W), np.asarray(OMEGA), **chip)
    assert signs.tolist() == best
    as_is = lrk.rram.deploy(W, state.fixed["w"], DEVICE.scheme)
    turned = lrk.rram.deploy(W * signs[None], state.fixed["w"], DEVICE.scheme)
    before = float(jnp.sum(OMEGA * (as_is - W) ** 2))
    after = float(jnp.sum(OMEGA * (turned * signs[None] - W) ** 2))
    assert after == pytest.approx(error, rel=1e-4)
    assert after < before or best == [1, 1, 1]


def test_the_choice_sees_tiles_and_one_scale_for_all():
    wide = {"w": jnp.asarray(numbers(5, 4, 6))}
    state, omega = chip_of(0, wide), {"w": jnp.abs(wide["w"])}
    for kw in ({"tile": 2}, {"columns": False}):
        signs = lrk.rram.choose_flips(wide, state, DEVICE.scheme, omega, **kw)["w"]
        errors = {}
        for sign in (1, -1):
            chip = state.fixed["w"]
            back = sign * lrk.rram.deploy(sign * wide["w"], chip, DEVICE.scheme, **kw)
            errors[sign] = jnp.sum(omega["w"] * (back - wide["w"]) ** 2, axis=0)
        want = jnp.where(errors[-1] < errors[1], -1, 1)
        assert signs.tolist() == want.tolist()
        assert set(signs.tolist()) == {1, -1}


@pytest.mark.parametrize("kw", [{}, {"tile": 2}])
def test_rows_are_turned_where_that_is_best(kw):
    """Against every choice: 2^4 signs of rows, behind columns that are turned."""
    state, omega = chip_of(2), {"w": OMEGA}
    turned = W * COLUMNS[None]
    choose = lrk.rram.choose_row_flips
    signs = choose({"w": turned}, state, DEVICE.scheme, omega, **kw)["w"]
    errors = {}
    for own in itertools.product((1, -1), repeat=4):
        s = jnp.asarray(own)[:, None]
        back = s * lrk.rram.deploy(s * turned, state.fixed["w"], DEVICE.scheme, **kw)
        errors[own] = float(jnp.sum(OMEGA * (back - turned) ** 2))
    assert errors[tuple(signs.tolist())] == pytest.approx(min(errors.values()))
    assert errors[(1, 1, 1, 1)] > 1.01 * min(errors.values())
    with pytest.raises(ValueError, match="choose_row_flips: the state holds no chip"):
        choose(PARAMS, lrk.State({}, {}), DEVICE.scheme, omega)


def test_a_healthy_chip_turns_nothing():
    device = lrk.rram.Device()
    state = chip_of(0, device=device)
    signs = lrk.rram.choose_flips(PARAMS, state, device.scheme, {"w": OMEGA})
    assert signs["w"].tolist() == [1, 1, 1]


def test_vmap_over_chips_of_a_chain():
    chips = [chip_of(seed) for seed in range(3)]
    chains = [lrk.State(({}, {}), ({}, chip.fixed)) for chip in chips]

    def choose(state):
        return lrk.rram.choose_flips(PARAMS, state, DEVICE.scheme, {"w": OMEGA})["w"]

    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *chains)
    got = jax.jit(jax.vmap(choose))(stacked)
    np.testing.assert_array_equal(got, jnp.stack([choose(chip) for chip in chips]))


def test_each_layer_of_a_stack_has_its_own_signs():
    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    stack = {"w": jnp.stack([W, 2 * W])}
    state = chip_of(1, stack, axes=axes)
    both = lrk.rram.choose_flips(
        stack, state, DEVICE.scheme, {"w": jnp.stack([OMEGA] * 2)}, axes=axes
    )["w"]
    cells = ("code", "gain", "offset")
    for i in range(2):
        own = {n: x[i] if n in cells else x for n, x in state.fixed["w"].items()}
        one = lrk.State({}, {"w": own})
        layer = {"w": stack["w"][i]}
        want = lrk.rram.choose_flips(layer, one, DEVICE.scheme, {"w": OMEGA})["w"]
        np.testing.assert_array_equal(both[i], want)


# --- messages ------------------------------------------------------------------------


def test_messages_of_flip():
    with pytest.raises(ValueError, match="flip: expected signs of columns or of rows"):
        lrk.rram.flip()
    with pytest.raises(ValueError, match="1 or -1, unlike those of rows of 'w'"):
        lrk.rram.flip(rows={"w": np.array([1, 0, 1, 1])})
    with pytest.raises(ValueError, match="flip: the state has 'v', which the param"):
        run(lrk.rram.flip({"v": COLUMNS}), PARAMS)
    wrong = r"'w' of shape \(4, 3\): expected columns of shape \(3,\), got \(4,\)"
    with pytest.raises(ValueError, match=f"flip: {wrong}"):
        run(lrk.rram.flip({"w": ROWS}), PARAMS)
    tx = lrk.rram.flip({"w": COLUMNS})
    with pytest.raises(ValueError, match=r"flip: 'w' of shape \(4, 3\) has no signs"):
        tx.apply(PARAMS, lrk.State({}, {"w": {}}))
    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    op = lrk.Delta(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3)))
    signs = np.ones((2, 3), int)
    with pytest.raises(ValueError, match="'w' .* is an operator, and only those"):
        run(lrk.rram.flip({"w": signs}, axes=axes), {"w": op})


def test_messages_of_choose_flips():
    state, omega = chip_of(0), {"w": OMEGA}
    choose = lrk.rram.choose_flips
    with pytest.raises(ValueError, match="choose_flips: the state holds no chip"):
        choose(PARAMS, lrk.State({}, {}), DEVICE.scheme, omega)
    with pytest.raises(ValueError, match="choose_flips: the chip has 'w', which the"):
        choose({"v": W}, state, DEVICE.scheme, omega)
    with pytest.raises(ValueError, match=r"'w': expected cells \(2, 2, 3\), got"):
        choose({"w": W[:2]}, state, DEVICE.scheme, omega)
    with pytest.raises(ValueError, match=r"the importance does not fit .* 'w' is miss"):
        choose(PARAMS, state, DEVICE.scheme, {})
