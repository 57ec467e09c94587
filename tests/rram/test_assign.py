"""`assign`: costs and placements against brute force, spare rows, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.rram._assign import placement_costs
from tests.network import numbers
from tests.reference import assign as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

W = jnp.asarray(numbers(1, 4, 3))
OMEGA = jnp.abs(jnp.asarray(numbers(2, 4, 3)))
PARAMS, IMPORTANCE = {"w": W, "bias": jnp.ones(3)}, {"w": OMEGA}
FAULTY = lrk.rram.Device(p_lrs=0.2, p_hrs=0.2)
NOISY = lrk.rram.Device(p_lrs=0.2, levels=8, write=lrk.rram.Lognormal(0.3), g_lrs=140.0)
CLIPPED = lrk.rram.Device(p_hrs=0.2, write=lrk.rram.Additive(0.3))


def chip_of(device, seed=0, rows=4):
    params = {"w": jnp.zeros((rows, 3))}
    return lrk.rram.crossbar(device).init(jax.random.key(seed), params)


def numbers_of(state, device):
    """A chip for the reference: what is added before and after clipping is one here."""
    chip = state.fixed["w"]
    offset = chip["offset"] + chip.get("shift", 0.0)
    found = {"gain": np.asarray(chip["gain"]), "offset": np.asarray(offset)}
    return found | {"g_min": 10.0, "g_max": 100.0, "levels": device.levels}


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize(
    "device", [FAULTY, NOISY, CLIPPED], ids=["stuck", "noisy", "clipped"]
)
def test_costs_are_those_of_every_row_in_every_place(device, columns):
    state = chip_of(device, rows=6)
    got = placement_costs(W, OMEGA, state.fixed["w"], device.scheme, columns)
    chip = numbers_of(state, device)
    want = reference.costs(W, OMEGA, **chip, columns=columns)
    assert_close(got, want.astype(np.float32))
    assert want.max() > 0.1


SCHEMES = [lrk.rram.TwoSided(), lrk.rram.Offset(), lrk.rram.HighZero()]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_costs_are_what_deploying_the_placed_weight_gives(scheme):
    device = lrk.rram.wan2022().replace(p_lrs=0.2, levels=8, scheme=scheme)
    state = chip_of(device)
    costs = placement_costs(W, OMEGA, state.fixed["w"], scheme)
    rows = np.array([2, 0, 3, 1])
    placed, omega = (jnp.zeros((4, 3)).at[rows].set(x) for x in (W, OMEGA))
    error = lrk.rram.deploy(placed, state.fixed["w"], scheme) - placed
    want = jnp.sum(omega * error**2, axis=1)[rows]
    assert_close(costs[np.arange(4), rows], want)


def test_a_known_answer():
    # Word line 0 is stuck in the zero state, and only row 1 of the weight is all zero:
    # it goes there. Row 2 is negative and needs line 1, whose plus cells are stuck; the
    # healthy line 2 is left for the positive row 0.
    w = jnp.asarray([[1.0, 0.5], [0.0, 0.0], [-1.0, -0.5]])
    state = lrk.rram.crossbar(FAULTY).init(jax.random.key(0), {"w": w})
    codes = np.zeros((2, 3, 2), int)
    codes[:, 0] = codes[0, 1] = lrk.rram.HRS
    state = lrk.rram.with_faults(state, {"w": codes})
    omega = {"w": jnp.ones((3, 2))}
    found = lrk.rram.assign({"w": w}, state, FAULTY.scheme, omega)
    assert found.rows["w"].tolist() == [2, 0, 1]
    assert found.rows["w"].dtype == jnp.int32
    # Where they are: row 0 is lost on line 0, the others are as they should be.
    assert found.cost["w"] == pytest.approx((1.25, 0.0), abs=1e-9)
    assert found.seconds > 0


@pytest.mark.parametrize("rows", [4, 6])
@pytest.mark.parametrize("device", [FAULTY, NOISY], ids=["stuck", "noisy"])
def test_the_placement_is_the_best_of_all(device, rows):
    state = chip_of(device, seed=1, rows=rows)
    kw = {"spare": rows - 4}
    found = lrk.rram.assign(PARAMS, state, device.scheme, IMPORTANCE, **kw)
    costs = reference.costs(W, OMEGA, **numbers_of(state, device))
    best, cost = reference.best_placement(costs)
    before, after = found.cost["w"]
    assert after == pytest.approx(cost, rel=1e-4)
    assert before == pytest.approx(np.trace(costs[:, :4]), rel=1e-4)
    assert after < 0.9 * before
    if rows == 4:
        assert found.rows["w"].tolist() == best


def test_spare_rows_take_what_sits_on_faults():
    # All cells of the first four lines are stuck high: all rows that matter move.
    state = chip_of(lrk.rram.Device(), rows=6)
    codes = np.zeros((2, 6, 3), int)
    codes[:, :2] = lrk.rram.LRS
    state = lrk.rram.with_faults(state, {"w": codes})
    scheme = FAULTY.scheme
    found = lrk.rram.assign(PARAMS, state, scheme, IMPORTANCE, spare=2)
    assert sorted(found.rows["w"].tolist()) == [2, 3, 4, 5]
    assert found.cost["w"][1] < 1e-9 < found.cost["w"][0]


def test_the_whole_chain_from_a_chip_to_a_better_weight():
    ident = {"w": np.arange(4)}
    bar = lrk.rram.crossbar(NOISY)
    key, spare = jax.random.key(0), {"w": 2}

    def chained(rows, signs=None):
        wires = lrk.rram.permute(rows, spare=spare)
        back = lrk.rram.unpermute(rows, spare=spare)
        if signs is None:
            return lrk.chain(wires, bar, back)
        turn = lrk.rram.flip(signs)
        return lrk.chain(wires, turn, bar, turn, back)

    def error(tx, state):
        return float(jnp.sum(OMEGA * (tx.apply(PARAMS, state)["w"] - W) ** 2))

    first = chained(ident)
    state = first.init(key, PARAMS)
    scheme = NOISY.scheme
    found = lrk.rram.assign(PARAMS, state, scheme, IMPORTANCE, spare=spare)
    assert error(first, state) == pytest.approx(found.cost["w"][0], rel=1e-4)
    placed = chained(found.rows)
    same = placed.init(key, PARAMS)
    for name, x in same.fixed[1]["w"].items():
        np.testing.assert_array_equal(x, state.fixed[1]["w"][name])
    assert error(placed, same) == pytest.approx(found.cost["w"][1], rel=1e-4)
    wires = lrk.rram.permute(found.rows, spare=spare)
    own = wires.init(key, PARAMS)
    there = wires.apply(PARAMS, own), wires.apply(IMPORTANCE, own)
    signs = lrk.rram.choose_flips(there[0], state, scheme, there[1])
    turned = chained(found.rows, signs)
    begun = turned.init(key, PARAMS)
    parts = (*begun.fixed[:2], state.fixed[1], *begun.fixed[3:])
    begun = begun._replace(fixed=parts)
    assert error(turned, begun) < 0.99 * found.cost["w"][1]
    assert -1 in signs["w"].tolist()
    # Exactly what the chip makes of the weight as it is placed and turned.
    s = signs["w"][None]
    back = lrk.rram.deploy(there[0]["w"] * s, state.fixed[1]["w"], scheme) * s
    got = turned.apply(PARAMS, begun)["w"]
    np.testing.assert_array_equal(got, back[found.rows["w"]])


def test_layers_of_a_stack_and_kernels():
    axes = {"s": lrk.Axes((0,), (1,), (2,)), "c": lrk.Axes((), (0, 1), (2,))}
    params = {"s": jnp.stack([W, 2 * W[::-1]]), "c": jnp.asarray(numbers(3, 2, 2, 3))}
    bar = lrk.rram.crossbar(FAULTY, select=lambda *_: True, axes=axes)
    state = bar.init(jax.random.key(2), params)
    omega = jax.tree.map(jnp.ones_like, params)
    scheme = FAULTY.scheme
    found = lrk.rram.assign(params, state, scheme, omega, axes=axes)
    cells = ("code", "gain", "offset")
    total = 0.0
    for i in range(2):
        own = {n: x[i] if n in cells else x for n, x in state.fixed["s"].items()}
        one = {"w": params["s"][i]}, lrk.State({}, {"w": own})
        alone = lrk.rram.assign(*one, scheme, {"w": jnp.ones((4, 3))})
        assert found.rows["s"][i].tolist() == alone.rows["w"].tolist()
        total += alone.cost["w"][1]
    assert found.cost["s"][1] == pytest.approx(total)
    flat = {"w": params["c"].reshape(4, 3)}, lrk.State({}, {"w": state.fixed["c"]})
    alone = lrk.rram.assign(*flat, scheme, {"w": jnp.ones((4, 3))})
    assert found.rows["c"].tolist() == alone.rows["w"].tolist()


# --- messages ------------------------------------------------------------------------


def test_messages_of_trees_and_chips():
    state, scheme = chip_of(FAULTY), FAULTY.scheme
    with pytest.raises(ValueError, match="assign: the state holds no chip"):
        lrk.rram.assign(PARAMS, lrk.State({}, {"w": {"a": W}}), scheme, IMPORTANCE)
    twice = lrk.State(({}, {}), (state.fixed, state.fixed))
    with pytest.raises(ValueError, match="assign: the state holds two chips for 'w'"):
        lrk.rram.assign(PARAMS, twice, scheme, IMPORTANCE)
    with pytest.raises(ValueError, match="assign: the chip has 'w', .* nearest .*'v'"):
        lrk.rram.assign({"v": W}, state, scheme, IMPORTANCE)
    cells = r"'w': expected cells \(2, 6, 3\), got \(2, 4, 3\)"
    with pytest.raises(ValueError, match=f"assign: the chip does not fit: {cells}"):
        lrk.rram.assign(PARAMS, state, scheme, IMPORTANCE, spare=2)
    with pytest.raises(ValueError, match="assign: the importance .* 'w' is missing"):
        lrk.rram.assign(PARAMS, state, scheme, {})
    with pytest.raises(ValueError, match="assign: spare must be at least 0, got -1"):
        lrk.rram.assign(PARAMS, state, scheme, IMPORTANCE, spare=-1)
    with untyped(), pytest.raises(TypeError, match="assign: spare must be an int"):
        lrk.rram.assign(PARAMS, state, scheme, IMPORTANCE, spare=0.5)


def test_messages_of_numbers():
    state, scheme = chip_of(FAULTY), FAULTY.scheme
    with pytest.raises(ValueError, match="assign: 'w' has importance that is negative"):
        lrk.rram.assign(PARAMS, state, scheme, {"w": OMEGA - 1})
    with pytest.raises(ValueError, match="assign: 'w' has weights that are not finite"):
        lrk.rram.assign({"w": W / 0}, state, scheme, IMPORTANCE)

    def traced(w):
        lrk.rram.assign({"w": w}, state, scheme, IMPORTANCE)

    with pytest.raises(TypeError, match="assign: runs on the host, and something is"):
        jax.jit(traced)(W)
