"""Sampled chips: rates, common random numbers, keys."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank import rram
from tests.untyped import untyped

KEY = jax.random.key(5)
SHAPE = (200, 150)
CELLS = 2 * 200 * 150


def codes(**numbers):
    return np.asarray(rram.sample(KEY, SHAPE, rram.Device(**numbers))["code"])


def within(count, n, p, sigmas=4.0):
    return abs(count - n * p) <= sigmas * np.sqrt(n * p * (1 - p))


def test_rates_are_those_asked_for():
    code = codes(p_lrs=0.1, p_hrs=0.03)
    assert within((code == rram.LRS).sum(), CELLS, 0.1)
    assert within((code == rram.HRS).sum(), CELLS, 0.03)
    assert not (code == rram.OPEN).any()
    for side in code:  # each cell of a pair by itself
        assert within((side == rram.LRS).sum(), CELLS // 2, 0.1)
    both = (code == rram.LRS).all(0).sum()
    assert within(both, CELLS // 2, 0.01)


@pytest.mark.parametrize("clusters", [None, rram.Clusters(3.0)])
def test_raising_a_rate_only_adds_faults(clusters):
    low = codes(p_lrs=0.05, p_hrs=0.05, clusters=clusters)
    for numbers in ({"p_lrs": 0.2, "p_hrs": 0.05}, {"p_lrs": 0.05, "p_hrs": 0.3}):
        high = codes(**numbers, clusters=clusters)
        assert (high[low != rram.OK] == low[low != rram.OK]).all()
        assert (high != rram.OK).sum() > (low != rram.OK).sum()


def test_all_or_nothing():
    assert (codes(p_lrs=1.0) == rram.LRS).all()
    assert (codes(p_hrs=1.0) == rram.HRS).all()
    assert (codes() == rram.OK).all()


@pytest.mark.parametrize("length", [1.0, 6.0])
def test_clusters_keep_rates_exact(length):
    """The mean over chips: within one, neighbours fail together."""
    device = rram.Device(p_lrs=0.1, p_hrs=0.05, clusters=rram.Clusters(length))

    def share(key):
        code = rram.sample(key, (40, 30), device)["code"]
        return jnp.stack([(code == c).mean() for c in (rram.LRS, rram.HRS)])

    shares = np.asarray(
        jax.jit(lambda k: jax.lax.map(share, k))(jax.random.split(KEY, 300))
    )
    error = shares.std(0, ddof=1) / np.sqrt(len(shares))
    assert (np.abs(shares.mean(0) - (0.1, 0.05)) < 4 * error).all()


def test_neighbours_fail_together_in_clusters():
    def together(code):
        bad = code != rram.OK
        return (bad[:, 1:] & bad[:, :-1]).mean()

    clustered = codes(p_lrs=0.1, clusters=rram.Clusters(5.0))
    assert together(clustered) > 4 * together(codes(p_lrs=0.1))
    # The two cells of a weight are neighbours too.
    assert (clustered != rram.OK).all(0).mean() > 0.05
    alone = codes(p_lrs=0.1, clusters=rram.Clusters(5.0, share=0.0))
    assert within((alone != rram.OK).all(0).sum(), CELLS // 2, 0.01)


def test_open_lines_take_all_their_cells():
    code = codes(p_row=0.2, p_column=0.1, p_lrs=0.3)
    dead = code == rram.OPEN
    rows = dead.all(axis=(0, 2))  # a word line drives both cells
    columns = dead.all(axis=1)
    assert within(rows.sum(), 200, 0.2)
    assert within(columns.sum(), 300, 0.1)
    assert (dead == (rows[None, :, None] | columns[:, None, :])).all()
    chip = rram.sample(KEY, SHAPE, rram.Device(p_row=0.2, p_lrs=0.3))
    assert (chip["offset"][chip["code"] == rram.OPEN] == 0).all()
    assert (chip["gain"][chip["code"] == rram.OPEN] == 0).all()


def test_each_tile_has_bit_lines_of_its_own():
    device = rram.Device(p_column=0.3)
    code = np.asarray(rram.sample(KEY, (50, 400), device, 20)["code"]) == rram.OPEN
    tiles = [code[:, top : top + 20] for top in (0, 20, 40)]  # the last has 10 rows
    assert [(t.all(1) == t.any(1)).all() for t in tiles] == [True] * 3
    dead = np.stack([t.all(1) for t in tiles])
    assert within(dead.sum(), dead.size, 0.3)
    assert within((dead[0] & dead[1]).sum(), dead[0].size, 0.09)


def test_an_open_word_line_drives_no_reference():
    device = rram.Device(p_row=0.5, p_lrs=0.2, scheme=rram.Offset())
    chip = rram.sample(KEY, (40, 3), device)
    cut = np.asarray(chip["code"][0] == rram.OPEN).all(1)
    assert 0 < cut.sum() < 40
    reference = np.asarray(chip["code"][1])
    assert (reference[cut] == rram.OPEN).all()
    assert (reference[~cut] == rram.OK).all()
    numbers = {"g_min": device.g_min, "g_max": device.g_max}
    back = rram.deploy(jnp.ones((40, 3)), chip | numbers, device.scheme)
    assert (np.asarray(back)[cut] == 0).all()


def test_the_tail_of_clusters_has_the_rates_asked_for(monkeypatch):
    """The distribution function of a large normal number is 1 in float32."""

    def large(key, shape, dtype):
        del key
        return jnp.full(shape, 9.0, dtype)

    monkeypatch.setattr(jax.random, "normal", large)
    clusters = rram.Clusters(2.0, share=0.0)
    for rate in (0.1, 1.0):
        device = rram.Device(p_hrs=rate, clusters=clusters)
        code = np.asarray(rram.sample(KEY, (4, 3), device)["code"])
        assert (code == (rram.HRS if rate == 1.0 else rram.OK)).all()


@pytest.mark.parametrize(
    ("shape", "device", "tile", "error", "message"),
    [
        ((3,), rram.Device(), None, ValueError, r"expected \(\*stack, rows, cols\)"),
        ((3, 2), rram.Device(), 4, ValueError, "sample: tile .* the 3 rows, got 4"),
        ((3, 2), 0.1, None, TypeError, "sample: expected a Device, got float"),
    ],
)
def test_what_cannot_be_drawn_is_refused(shape, device, tile, error, message):
    with untyped(), pytest.raises(error, match=message):
        rram.sample(KEY, shape, device, tile)


def test_stuck_cells_have_conductances_of_their_own():
    device = rram.Device(
        p_lrs=0.3,
        p_hrs=0.3,
        g_lrs=(300.0, 1200.0),
        g_hrs=0.5,
        write=rram.Lognormal(2.0),
    )
    chip = {n: np.asarray(x) for n, x in rram.sample(KEY, SHAPE, device).items()}
    lrs, hrs = (chip["code"] == c for c in (rram.LRS, rram.HRS))
    assert chip["offset"][lrs].min() >= 300
    assert chip["offset"][lrs].max() <= 1200
    assert abs(chip["offset"][lrs].mean() - 750) < 4 * 260 / np.sqrt(lrs.sum())
    assert (chip["offset"][hrs] == 0.5).all()
    assert (chip["gain"][lrs | hrs] == 0).all()  # neither noise nor drift
    assert (chip["offset"][~(lrs | hrs)] == 0).all()


def test_write_noise_has_the_spread_asked_for():
    gain = np.asarray(
        rram.sample(KEY, SHAPE, rram.Device(write=rram.Lognormal(0.3)))["gain"]
    )
    logs = np.log(gain)
    assert abs(logs.std() - 0.3) < 4 * 0.3 / np.sqrt(2 * CELLS)
    assert abs(logs.mean()) < 4 * 0.3 / np.sqrt(CELLS)


def test_ageing_multiplies_then_shifts():
    old = rram.Device(
        write=rram.Additive(0.01),
        drift=rram.PowerDrift(0.05),
        relaxation=rram.Relaxation(-0.1),
        time=1e4,
    )
    new = rram.sample(KEY, (3, 2), rram.Device(write=rram.Additive(0.01)))
    aged = rram.sample(KEY, (3, 2), old)
    left = 1e4**-0.05
    np.testing.assert_allclose(aged["gain"], left, rtol=1e-6)
    want = np.asarray(new["shift"]) * left - 0.1 * np.log(1e4)
    np.testing.assert_allclose(aged["shift"], want, rtol=1e-5)


def test_no_effect_moves_another_ones_draws():
    plain = rram.sample(KEY, (4, 3), rram.Device(p_lrs=0.4))
    more = rram.sample(
        KEY,
        (4, 3),
        rram.Device(p_lrs=0.4, p_hrs=0.1, write=rram.Lognormal(0.1), p_row=0.1),
    )
    stuck = plain["code"] == rram.LRS
    kept = more["code"] != rram.OPEN
    assert (more["code"][stuck & kept] == rram.LRS).all()


def test_a_reference_is_ideal():
    device = rram.Device(
        p_lrs=0.5, p_hrs=0.5, write=rram.wan2022().write, scheme=rram.Offset()
    )
    chip = rram.sample(KEY, (4, 3), device)
    assert (chip["code"][0] != rram.OK).all()
    assert (chip["code"][1] == rram.OK).all()
    assert (chip["gain"][1] == 1).all()
    assert (chip["theta"][1] == 0).all()


def test_vmap_over_keys_is_a_loop_bit_for_bit():
    device = rram.Device(p_lrs=0.2, p_hrs=0.1, clusters=None, write=rram.Lognormal(0.4))
    keys = jax.random.split(KEY, 3)
    mapped = jax.vmap(lambda k: rram.sample(k, (5, 4), device))(keys)
    for i, key in enumerate(keys):
        one = rram.sample(key, (5, 4), device)
        for name in one:
            assert np.array_equal(mapped[name][i], one[name]), name


def test_double_precision_draws_the_same_chip():
    device = rram.Device(
        p_lrs=0.1, p_hrs=0.1, p_row=0.2, p_column=0.2, g_lrs=(120.0, 200.0),
        write=rram.Additive(0.1), drift=rram.PowerDrift(0.05, 0.02), time=1e4,
        clusters=rram.Clusters(2.0),
    )  # fmt: skip
    want = rram.sample(KEY, (6, 5), device)
    with jax.enable_x64(True):
        got = rram.sample(KEY, (6, 5), device)
    for name, x in want.items():
        assert got[name].dtype == x.dtype, name
        np.testing.assert_allclose(got[name], x, rtol=1e-6, err_msg=name)


_PROGRAM = """
import jax, jax.numpy as jnp, lowrank as lrk
params = {%s}
tx = lrk.rram.crossbar(lrk.rram.Device(p_lrs=0.3, p_hrs=0.2))
state = tx.init(jax.random.key(7), params)
print("".join(str(int(c)) for c in state.fixed["w"]["code"].ravel()))
"""


def test_one_key_one_chip_in_every_process_and_order():
    w, v = '"w": jnp.ones((6, 5))', '"v": jnp.ones((6, 5))'
    seen = set()
    for leaves in (f"{w}, {v}", f"{v}, {w}", w):
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM % leaves],
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(run.stdout)
    assert len(seen) == 1
    assert len(seen.pop().strip()) == 60
