"""The transform: layouts, composition, sweeps, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import rram
from tests.network import STACKED, numbers
from tests.untyped import untyped

KEY = jax.random.key(2)
FAULTY = rram.Device(p_lrs=0.1, p_hrs=0.1, levels=16, write=rram.Lognormal(0.3))


CROWDED = rram.Device(p_lrs=0.6)


def timeless(g_min):
    """Under `jit`, where numbers are not looked at."""
    device = rram.Device(g_min=g_min, drift=rram.PowerDrift(0.1))
    return rram.crossbar(device).init(KEY, params())


def params():
    return {"w": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.zeros(4)}


def test_a_layout_is_a_matrix_of_inputs_and_outputs():
    """A convolution, heads and a stack are deployed as their matrices are."""
    leaves = {
        "conv": jnp.asarray(numbers(1, 2, 2, 3, 5)),
        "heads": jnp.asarray(numbers(2, 3, 2, 4)),
        "stack": jnp.asarray(numbers(3, 2, 6, 4)),
    }
    axes = {
        "conv": lrk.Axes((), (0, 1, 2), (3,)),
        "heads": lrk.Axes((), (1, 2), (0,)),
        "stack": lrk.Axes((0,), (1,), (2,)),
    }
    tx = rram.crossbar(FAULTY, select=lambda *_: True, axes=axes)
    state = tx.init(KEY, leaves)
    shapes = {path: leaf["code"].shape for path, leaf in state.fixed.items()}
    assert shapes == {"conv": (2, 12, 5), "heads": (2, 8, 3), "stack": (2, 2, 6, 4)}
    out = tx.apply(leaves, state)
    scheme = FAULTY.scheme
    conv = rram.deploy(leaves["conv"].reshape(12, 5), state.fixed["conv"], scheme)
    np.testing.assert_allclose(out["conv"], conv.reshape(2, 2, 3, 5), rtol=1e-6)
    heads = rram.deploy(leaves["heads"].reshape(3, 8).T, state.fixed["heads"], scheme)
    np.testing.assert_allclose(out["heads"], heads.T.reshape(3, 2, 4), rtol=1e-6)
    for i in range(2):
        own = {n: x[i] if x.ndim == 4 else x for n, x in state.fixed["stack"].items()}
        one = rram.deploy(leaves["stack"][i], own, scheme)
        np.testing.assert_allclose(out["stack"][i], one, rtol=1e-6)


def test_untouched_leaves_are_the_same_objects():
    tx, tree = rram.crossbar(FAULTY), params()
    out = tx.apply(tree, tx.init(KEY, tree))
    assert out["bias"] is tree["bias"]
    assert isinstance(out["w"], jax.Array)


def test_half_precision_weights_keep_their_dtype():
    tree = {"w": params()["w"].astype(jnp.bfloat16)}
    tx = rram.crossbar(rram.Device())
    out = tx.apply(tree, tx.init(KEY, tree))["w"]
    assert out.dtype == jnp.bfloat16
    assert np.array_equal(out, tree["w"])


def test_order_decides_what_sits_on_the_chip():
    """Digital beside analog; merged on the chip; both on the chip."""
    tree, device = params(), rram.Device(p_lrs=0.2, p_hrs=0.2)
    low, bar = (
        lrk.lora(2, init_b=jax.nn.initializers.normal(0.1)),
        rram.crossbar(device),
    )
    chip, adapter = bar.init(KEY, tree), low.init(KEY, tree)

    def run(first, second, states):
        tx = lrk.chain(first, second)
        halves = zip(*states, strict=True)
        adapted = tx.apply(tree, lrk.State(*map(tuple, halves)))
        return lrk.materialize(adapted)["w"]

    delta = lrk.materialize(low.apply(tree, adapter))["w"] - tree["w"]
    deployed = bar.apply(tree, chip)["w"]
    beside = run(bar, low, (chip, adapter))
    np.testing.assert_allclose(beside, deployed + delta, atol=1e-6)
    merged = run(low, bar, (adapter, chip))
    want = bar.apply({**tree, "w": tree["w"] + delta}, chip)["w"]
    np.testing.assert_allclose(merged, want, atol=1e-6)
    assert np.abs(np.asarray(merged - beside)).max() > 1e-3


def test_a_merge_is_programmed_like_any_weight():
    tree = params()
    low = lrk.lora(2, init_b=jax.nn.initializers.normal(0.1))
    trees = [low.apply(tree, low.init(jax.random.key(i), tree)) for i in (1, 2)]
    merged = lrk.merging.concat(trees, weights=[0.5, 0.5])
    bar = rram.crossbar(FAULTY)
    state = bar.init(KEY, merged)
    want = bar.apply(lrk.materialize(merged), state)["w"]
    np.testing.assert_allclose(bar.apply(merged, state)["w"], want, rtol=1e-6)


def test_one_chip_holds_other_weights():
    tree, tx = params(), rram.crossbar(FAULTY)
    state = tx.init(KEY, tree)
    twice = tx.apply({**tree, "w": 2 * tree["w"]}, state)["w"]
    np.testing.assert_allclose(twice, 2 * tx.apply(tree, state)["w"], rtol=1e-5)


def test_jit_is_eager_and_chips_map():
    tree, tx = params(), rram.crossbar(FAULTY)
    keys = jax.random.split(KEY, 3)

    def chip(key):
        return tx.apply(tree, tx.init(key, tree))["w"]

    loop = jnp.stack([chip(key) for key in keys])
    np.testing.assert_allclose(jax.jit(jax.vmap(chip))(keys), loop, rtol=1e-5)
    np.testing.assert_allclose(lrk.map_tasks(chip, method="map")(keys), loop, rtol=1e-5)


def test_sweeping_rates_and_spreads_compiles_once():
    tree, traces = params(), []

    @jax.jit
    def run(rate, sigma, levels):
        traces.append(None)
        device = rram.Device(
            p_lrs=rate, p_hrs=rate / 2, levels=levels, write=rram.Lognormal(sigma)
        )
        tx = rram.crossbar(device)
        return tx.apply(tree, tx.init(KEY, tree))["w"]

    outs = [run(0.1 * i, 0.2 * i, 4 + i) for i in range(4)]
    assert len(traces) == 1
    for i, out in enumerate(outs):
        device = rram.Device(
            p_lrs=0.1 * i, p_hrs=0.05 * i, levels=4 + i, write=rram.Lognormal(0.2 * i)
        )
        tx = rram.crossbar(device)
        np.testing.assert_allclose(
            out, tx.apply(tree, tx.init(KEY, tree))["w"], rtol=1e-4, atol=1e-5
        )


def test_a_device_of_arrays_sweeps_by_vmap():
    tree = params()

    def lost(device):
        tx = rram.crossbar(device)
        return jnp.abs(tx.apply(tree, tx.init(KEY, tree))["w"] - tree["w"]).mean()

    rates = jnp.asarray([0.0, 0.2, 0.6])
    axes = jax.tree.map(lambda _: None, rram.Device()).replace(p_lrs=0)
    found = jax.vmap(lost, in_axes=(axes,))(rram.Device().replace(p_lrs=rates))
    assert (np.diff(found) > 0).all()
    assert float(found[0]) < 1e-6


PRESETS = (rram.chen2015_a, rram.chen2015_b, rram.liu2017, rram.yousuf2025)
PRESETS += (rram.wan2022, rram.milo2021, rram.cmo_hfox)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)
def test_a_published_device_may_be_an_argument_of_a_compiled_call(preset):
    def chip(device):
        return rram.crossbar(device).init(KEY, params())

    shapes = jax.eval_shape(chip, preset())
    assert jax.tree.structure(shapes) == jax.tree.structure(chip(preset()))


def test_coefficients_of_a_fit_sweep_and_have_gradients():
    tree, fit = params(), rram.wan2022()

    @jax.jit
    @jax.grad
    def slope(device):
        tx = rram.crossbar(device)
        return tx.apply(tree, tx.init(KEY, tree))["w"][0, 0]

    first = slope(fit).write.coefficients[0]
    moved = []
    for step in (-0.5, 0.5):
        own = (fit.write.coefficients[0] + step, *fit.write.coefficients[1:])
        tx = rram.crossbar(fit.replace(write=rram.Polynomial(own, 40.0)))
        moved.append(tx.apply(tree, tx.init(KEY, tree))["w"][0, 0])
    assert abs(float(first)) > 1e-4
    np.testing.assert_allclose(first, moved[1] - moved[0], rtol=1e-3)


def test_states_of_chips_stack():
    tree, tx = params(), rram.crossbar(FAULTY)
    states = [tx.init(jax.random.key(i), tree) for i in range(2)]
    both = lrk.stack(states)
    assert both.fixed["w"]["code"].shape == (2, 2, 6, 4)
    out = jax.vmap(lambda s: tx.apply(tree, s)["w"])(both)
    np.testing.assert_allclose(out[1], tx.apply(tree, states[1])["w"], rtol=1e-6)


def test_the_state_holds_arrays_only_and_restores_from_shapes():
    tx = rram.crossbar(rram.wan2022(), select=lrk.matching("kernel"), axes=STACKED)
    tree = {"layers": {"kernel": jnp.ones((3, 4, 4))}}
    state = tx.init(KEY, tree)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    shapes = jax.eval_shape(tx.init, KEY, tree)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rram.crossbar(0.1), TypeError, "expected a Device, got float"),
        (lambda: rram.crossbar(FAULTY, tile=0), ValueError, "tile must be at least 1"),
        (lambda: rram.crossbar(FAULTY, tile=2.0), TypeError, "tile must be an int"),
        (
            lambda: rram.crossbar(FAULTY.replace(write="lognormal")),
            TypeError,
            "write must be .* got str",
        ),
        (
            lambda: rram.crossbar(rram.Device(adc=8)),
            TypeError,
            "adc must be a Converter, got int",
        ),
        (
            lambda: rram.crossbar(FAULTY.replace(scheme=rram.OneSided)),
            TypeError,
            r"scheme must be one like OneSided\(\), got <class",
        ),
        (
            lambda: rram.crossbar(rram.Device(p_lrs=None, write=rram.Additive(None))),
            TypeError,
            "crossbar: the device has None for p_lrs, write.sigma",
        ),
        (
            lambda: rram.crossbar(rram.Device(p_lrs=jnp.asarray([0.1, 0.2]))),
            ValueError,
            r"one of each number, got p_lrs of shape \(2,\)",
        ),
        (
            lambda: rram.crossbar(rram.Device(g_lrs=jnp.asarray([150.0, 200.0]))),
            ValueError,
            r"one of each number, got g_lrs of shape \(2,\)",
        ),
        (
            lambda: rram.crossbar(jax.tree.map(lambda x: 2 * x, CROWDED)),
            ValueError,
            "p_lrs must be .* got 1.2",
        ),
        (
            lambda: jax.jit(timeless)(1.0),
            ValueError,
            "drift and relaxation need a time",
        ),
        (
            lambda: rram.crossbar(FAULTY, tile=7).init(KEY, params()),
            ValueError,
            r"'w' of shape \(6, 4\): 6 rows, tile=7",
        ),
        (
            lambda: rram.crossbar(FAULTY, select=lambda *_: True).init(KEY, params()),
            ValueError,
            r"'bias' of shape \(4,\): needs 2 axes",
        ),
        (
            lambda: rram.crossbar(FAULTY).init(KEY, {"w": jnp.ones((2, 2), int)}),
            ValueError,
            "crossbar: the selection matches none of 1 leaves",
        ),
        (
            lambda: rram.crossbar(FAULTY, select=lambda *_: True).init(
                KEY, {"w": jnp.ones((2, 2), int)}
            ),
            ValueError,
            r"cannot lay 'w' of shape \(2, 2\): not floating on a crossbar",
        ),
    ],
)
def test_what_cannot_be_laid_on_a_crossbar_is_refused(make, error, message):
    with untyped(), pytest.raises(error, match=message):
        make()


def test_a_chip_of_another_tree_is_refused():
    tx = rram.crossbar(FAULTY)
    state = tx.init(KEY, params())
    with pytest.raises(
        ValueError, match=r"another tree: 'w': expected cells \(2, 5, 4\)"
    ):
        tx.apply({"w": jnp.ones((5, 4))}, state)
    with pytest.raises(
        ValueError, match="the state has 'w', which the parameters lack"
    ):
        tx.apply({"v": jnp.ones((6, 4))}, state)
    with pytest.raises(ValueError, match="'w' lacks fixed 'levels'"):
        tx.apply(params(), rram.crossbar(rram.Device()).init(KEY, params()))


def test_a_tile_larger_than_the_weight_is_refused_in_apply_too():
    state = rram.crossbar(FAULTY).init(KEY, params())
    with pytest.raises(ValueError, match=r"'w' of shape \(6, 4\): 6 rows, tile=9"):
        rram.crossbar(FAULTY, tile=9).apply(params(), state)


def test_a_chip_that_knows_more_effects_serves_a_device_with_fewer():
    """Scored without noise and wires on the chip that was trained with them."""
    device = rram.Device(dac=rram.Converter(6), read=0.1, wire=5.0)
    state = rram.crossbar(device).init(KEY, params())
    op = rram.crossbar(device.replace(read=None, wire=None)).apply(params(), state)["w"]
    assert not op.stochastic
    assert set(op.numbers) == {"dac_bits"}
    np.testing.assert_allclose(op.programmed_weight(), params()["w"], atol=1e-6)


def test_what_has_no_weight_cannot_be_programmed():
    tree = params()
    noisy = lrk.lora(2, dropout=0.5)
    tx = lrk.chain(noisy, rram.crossbar(FAULTY))
    state = tx.init(KEY, tree)
    with pytest.raises(ValueError, match=r"no weight to program at 'w' \(Dropout"):
        tx.apply(tree, state, key=KEY)


@pytest.mark.parametrize("scheme", [rram.OneSided(), rram.Offset()])
def test_read_noise_is_that_of_its_noisy_cells(scheme):
    """In uS on every cell of a pair, on one cell where the other is a reference."""
    device = rram.Device(read=0.02, scheme=scheme)
    tx, tree = rram.crossbar(device), {"w": jnp.ones((8, 500))}
    x = jnp.asarray(numbers(5, 60, 8))
    op = tx.apply(tree, tx.init(KEY, tree), key=KEY)["w"]
    off = np.asarray(lrk.lift(jnp.matmul)(x, op) - x @ tree["w"])
    cells = 1 if scheme.reference else 2
    unit = (device.g_max - device.g_min) / scheme.gain
    want = 0.02 * device.g_max * np.sqrt(cells) / unit
    got = off / np.linalg.norm(x, axis=1, keepdims=True)
    assert abs(got.std() - want) < 4 * want / np.sqrt(2 * got.size)
    assert abs(got.mean()) < 4 * want / np.sqrt(got.size)


def test_what_acts_in_the_product_needs_a_key_and_says_so():
    tx = rram.crossbar(rram.Device(adc=rram.Converter(8, noise=0.1)))
    state = tx.init(KEY, params())
    with pytest.raises(TypeError, match=r"apply\(params, state, key=key\)"):
        tx.apply(params(), state)
    quiet = rram.crossbar(rram.Device(dac=rram.Converter(8)))
    op = quiet.apply(params(), quiet.init(KEY, params()))["w"]
    assert not op.stochastic
    assert not op.has_dense
    np.testing.assert_allclose(op.programmed_weight(), params()["w"], atol=1e-6)
    assert "dac_bits" in repr(op)


@pytest.mark.parametrize("limit", [3.0, None])
def test_the_difference_of_cells_multiplies_as_the_pair(limit):
    """Without wires the operator holds `G+ - G-`; with none of 0 ohm, both cells."""
    device = rram.Device(
        p_lrs=0.2, levels=8, dac=rram.Converter(6, limit), adc=rram.Converter(6)
    )
    tree, x = params(), jnp.asarray(numbers(7, 3, 6))
    ops = []
    for own in (device, device.replace(wire=0.0)):
        tx = rram.crossbar(own, tile=4)
        ops.append(tx.apply(tree, tx.init(KEY, tree))["w"])
    assert [op.pair.shape[0] for op in ops] == [1, 2]
    y, z = (lrk.lift(jnp.matmul)(x, op) for op in ops)
    np.testing.assert_allclose(y, z, atol=1e-5)
