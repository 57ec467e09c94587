"""`permute` and `unpermute`: places, spare rows, layouts, gradients, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
W = jnp.asarray(numbers(1, 4, 3))
PARAMS = {"w": W, "bias": jnp.ones(3)}
ROWS = np.array([2, 0, 5, 1])
CONV = {"conv": jnp.asarray(numbers(2, 2, 2, 1, 3))}
CONV_AXES = {"conv": lrk.Axes((), (0, 1, 2), (3,))}
STACK = {"layers": jnp.asarray(numbers(3, 2, 4, 3))}
STACK_AXES = {"layers": lrk.Axes((0,), (1,), (2,))}


def run(tx, params):
    return tx.apply(params, tx.init(KEY, params))


def both(rows, **kw):
    return lrk.chain(lrk.rram.permute(rows, **kw), lrk.rram.unpermute(rows, **kw))


def test_each_row_is_where_it_was_put():
    placed = run(lrk.rram.permute({"w": ROWS}, spare=2), PARAMS)
    want = np.zeros((6, 3), np.float32)
    for r, q in enumerate(ROWS):
        want[q] = W[r]
    np.testing.assert_array_equal(placed["w"], want)
    assert placed["bias"] is PARAMS["bias"]


def test_the_state_holds_the_places_and_nothing_is_trained():
    state = lrk.rram.permute({"w": ROWS}, spare=2).init(KEY, PARAMS)
    assert state.trainable == {}
    assert list(state.fixed) == ["w"]
    assert state.fixed["w"]["rows"].dtype == jnp.int32
    np.testing.assert_array_equal(state.fixed["w"]["rows"], ROWS)
    assert lrk.count(state) == (0, 0)


@pytest.mark.parametrize(
    ("params", "rows", "spare", "axes"),
    [
        (PARAMS, {"w": ROWS}, 2, None),
        (CONV, {"conv": np.array([3, 1, 0, 2])}, 0, CONV_AXES),
        (STACK, {"layers": np.array([[4, 1, 0, 2], [3, 4, 2, 1]])}, 1, STACK_AXES),
        ({"w": W.T}, {"w": ROWS}, {"w": 2}, {"w": lrk.Axes((), (1,), (0,))}),
    ],
    ids=["matrix", "convolution", "stack", "outputs first"],
)
def test_back_is_the_same_bit_for_bit(params, rows, spare, axes):
    back = run(both(rows, spare=spare, axes=axes), params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_rows_of_a_kernel_are_its_flattened_inputs():
    rows = np.array([3, 1, 0, 2])
    placed = run(lrk.rram.permute({"conv": rows}, axes=CONV_AXES), CONV)["conv"]
    assert placed.shape == (2, 2, 1, 3)
    flat, moved = CONV["conv"].reshape(4, 3), placed.reshape(4, 3)
    np.testing.assert_array_equal(moved[rows], flat)


def test_each_layer_of_a_stack_has_its_own_places():
    rows = np.array([[3, 1, 0, 2], [0, 1, 2, 3]])
    tx = lrk.rram.permute({"layers": rows}, axes=STACK_AXES)
    placed = run(tx, STACK)["layers"]
    np.testing.assert_array_equal(placed[0][rows[0]], STACK["layers"][0])
    np.testing.assert_array_equal(placed[1], STACK["layers"][1])


def test_gradients_go_back_to_the_rows():
    g = jnp.asarray(numbers(4, 6, 3))
    tx = lrk.rram.permute({"w": ROWS}, spare=2)
    state = tx.init(KEY, PARAMS)
    slope = jax.grad(lambda p: jnp.sum(g * tx.apply(p, state)["w"]))(PARAMS)["w"]
    np.testing.assert_array_equal(slope, g[ROWS])
    back = lrk.rram.unpermute({"w": ROWS}, spare=2)
    down = jax.grad(lambda p: jnp.sum(W * back.apply(p, state)["w"]))({"w": g})["w"]
    np.testing.assert_array_equal(down, tx.apply(PARAMS, state)["w"])


def test_traced_places_under_jit_and_one_for_each_chip():
    chips = jnp.asarray([[2, 0, 5, 1], [0, 1, 2, 3], [5, 4, 3, 2]])

    def place(rows):
        return run(lrk.rram.permute({"w": rows}, spare=2), PARAMS)["w"]

    want = jnp.stack([place(rows) for rows in chips])
    np.testing.assert_array_equal(jax.jit(jax.vmap(place))(chips), want)
    tx = lrk.rram.permute({"w": chips[0]}, spare=2)
    states = lrk.State({}, {"w": {"rows": chips}})
    got = jax.vmap(lambda s: tx.apply(PARAMS, s)["w"])(states)
    np.testing.assert_array_equal(got, want)


def test_a_deployed_weight_with_spare_rows():
    device = lrk.rram.Device(p_lrs=0.2, p_hrs=0.2)
    rows = {"w": ROWS}
    wires = lrk.rram.permute(rows, spare=2), lrk.rram.unpermute(rows, spare=2)
    tx = lrk.chain(wires[0], lrk.rram.crossbar(device), wires[1])
    state = tx.init(KEY, PARAMS)
    placed = jnp.zeros((6, 3)).at[ROWS].set(W)
    back = lrk.rram.deploy(placed, state.fixed[1]["w"], device.scheme)
    assert float(jnp.abs(back - placed).max()) > 0.1
    np.testing.assert_array_equal(tx.apply(PARAMS, state)["w"], back[ROWS])


def test_behind_converters_the_inputs_are_placed_before_the_product():
    device = lrk.rram.Device(p_hrs=0.2, adc=lrk.rram.Converter(4, limit=2.0))
    rows, signs = {"w": ROWS}, {"w": np.array([1, -1, 1])}
    bar, turn = lrk.rram.crossbar(device), lrk.rram.flip(signs)
    wires = lrk.rram.permute(rows, spare=2), lrk.rram.unpermute(rows, spare=2)
    tx = lrk.chain(wires[0], turn, bar, turn, wires[1])
    state = tx.init(KEY, PARAMS)
    x = jnp.asarray(numbers(5, 7, 4))
    got = lrk.lift(lambda p, x: x @ p["w"])(tx.apply(PARAMS, state), x)
    # By hand: the crossbar alone, with weights and inputs already where they sit.
    s = signs["w"][None]
    there = {"w": jnp.zeros((6, 3)).at[ROWS].set(W) * s}
    chip = bar.apply(there, lrk.State({}, state.fixed[2]))
    driven = jnp.zeros((7, 6)).at[:, ROWS].set(x)
    want = lrk.lift(lambda p, x: x @ p["w"])(chip, driven) * s
    np.testing.assert_array_equal(got, want)


def test_behind_an_operator_the_inputs_are_placed():
    op = lrk.LowRank(jnp.zeros((6, 3)), jnp.ones((6, 1)), jnp.asarray(W[:1]))
    back = run(lrk.rram.unpermute({"w": ROWS}, spare=2), {"w": op})["w"]
    assert type(back) is lrk.operators.Rewired
    np.testing.assert_array_equal(back.dense(), op.dense()[ROWS])
    ahead = run(both({"w": ROWS}, spare=2), {"w": op.replace(w=W, a=jnp.ones((4, 1)))})
    assert_close(lrk.materialize(ahead)["w"], W + W[:1])


MESSAGES = [
    ({"w": [0, 1, 2, 2]}, {}, ValueError, "permute: .*'w' has two rows at one place"),
    (
        {"w": [0, 1, 2, 4]},
        {},
        ValueError,
        "permute: .*'w': expected 0 to 3, got 0 to 4",
    ),
    ({"w": [0, 1, 2, -1]}, {}, ValueError, "'w': expected 0 to 3, got -1 to 2"),
    ({"w": 3}, {}, ValueError, "permute: .*'w' is a scalar"),
    ({}, {}, ValueError, "permute: expected rows for at least one path, got none"),
    ({"w": [0.5, 1.0]}, {}, TypeError, "permute: rows must be integers, unlike .*'w'"),
    (
        {"w": [0, 1]},
        {"spare": -1},
        ValueError,
        "permute: spare must be at least 0, got -1",
    ),
    (
        {"w": [0, 1]},
        {"spare": 1.0},
        TypeError,
        "permute: spare must be an int, got 1.0",
    ),
    (
        {"w": [0, 1]},
        {"spare": {"v": 1}},
        ValueError,
        "spare rows for 'v', which no rows",
    ),
]


@pytest.mark.parametrize(("rows", "kw", "error", "match"), MESSAGES)
def test_messages_of_the_factory(rows, kw, error, match):
    with untyped(), pytest.raises(error, match=match):
        lrk.rram.permute({p: np.asarray(x) for p, x in rows.items()}, **kw)


def test_messages_of_init():
    with pytest.raises(
        ValueError, match="permute: the state has 'v', .* nearest .*'w'"
    ):
        run(lrk.rram.permute({"v": ROWS}, spare=2), PARAMS)
    wrong = r"'w' of shape \(4, 3\): expected rows of shape \(4,\), got \(2,\)"
    with pytest.raises(ValueError, match=f"permute: {wrong}"):
        run(lrk.rram.permute({"w": ROWS[:2]}, spare=4), PARAMS)
    less = r"'w' of shape \(4, 3\): expected rows of shape \(2,\), got \(4,\)"
    with pytest.raises(ValueError, match=f"unpermute: {less}"):
        run(lrk.rram.unpermute({"w": ROWS}, spare=2), PARAMS)
    with pytest.raises(ValueError, match="'conv' .* has several input axes"):
        run(lrk.rram.permute({"conv": ROWS}, spare=2, axes=CONV_AXES), CONV)
    with pytest.raises(ValueError, match="cannot adapt 'bias' of shape"):
        run(lrk.rram.permute({"bias": ROWS}, spare=2), PARAMS)
    op = lrk.Delta(STACK["layers"], STACK["layers"])
    tx = lrk.rram.permute({"layers": np.tile(np.arange(4), (2, 1))}, axes=STACK_AXES)
    with pytest.raises(ValueError, match="'layers' .* is an operator, and only those"):
        run(tx, {"layers": op})


def test_a_state_of_another_tree():
    tx = lrk.rram.permute({"w": ROWS}, spare=2)
    state = tx.init(KEY, PARAMS)
    with pytest.raises(ValueError, match="permute: the state has 'w', which the param"):
        tx.apply({"v": W}, state)
    with pytest.raises(ValueError, match="permute: the state does not fit: 'w' lacks"):
        tx.apply(PARAMS, lrk.State({}, {"w": {"signs": W}}))
    with pytest.raises(ValueError, match=r"expected rows of shape \(2,\), got \(4,\)"):
        tx.apply({"w": W[:2]}, state)
