"""Nets on chips: their data and forms, ways of healing, and the call that heals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowrank as lrk
from benchmarks import runner
from benchmarks.chips import healing, methods, nets, points
from benchmarks.chips.healing import Healer, Options
from benchmarks.chips.methods import Way, parse
from benchmarks.chips.nets import Net
from benchmarks.chips.points import Fault
from lowrank.models import LeNet5, functional
from tests.benchmarks.small_net import tiny_net

FAULT = Fault(0.15, 0.15)


@pytest.fixture(scope="module")
def net():
    return tiny_net()


@pytest.fixture(scope="module")
def healer(net):
    own = Options(steps=12, batch=16, calibration=3, mask_rank=3, capacity=4, scored=16)
    return Healer(net, own)


# Nets


def test_accuracy_counts_a_last_part_that_is_not_full(net):
    x, y = net.test
    wrong = np.where(np.arange(64) < 5, (y + 1) % 4, y)
    for batch in (64, 60, 7):
        found = nets.accuracy(net.apply, net.params, x, wrong, batch=batch)
        assert float(found) == pytest.approx(59 / 64)


def test_lenet_as_products_of_patches_is_lenet():
    apply, params = functional(LeNet5(rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (3, 28, 28, 1))
    bias = jax.random.normal(jax.random.key(1), (6,))
    params["conv1"]["bias"] = params["conv1"]["bias"] + bias
    np.testing.assert_allclose(
        nets.lenet_apply(params, images), apply(params, images), atol=1e-5
    )


def test_a_net_is_trained_once_and_kept(tmp_path):
    store = runner.Session("chips", tmp_path)
    told = []
    net = nets.load("mlp", "mnist", store, synthetic=True, log=told.append)
    assert told == ["nets: mlp-mnist-twin-s0 trained"]
    assert net.train[0].shape[1:] == (784,)
    assert net.axes["layers/0/kernel"] == lrk.Axes((), (0,), (1,))
    assert float(nets.accuracy(net.apply, net.params, *net.valid)) > 0.9
    again = nets.load("mlp", "mnist", store, synthetic=True, log=told.append)
    assert len(told) == 1
    jax.tree.map(np.testing.assert_array_equal, net.params, again.params)
    with pytest.raises(ValueError, match="no net 'vgg' on 'mnist'"):
        nets.load("vgg", "mnist", store)


# Ways


def test_names_are_read_back():
    for way in (Way("head"), Way("lora", 8), Way("lori-s", 200)):
        assert parse(way.name) == way
    assert parse("lora-8").title == "LoRA, rank 8"
    assert parse("patchw-1000").title.endswith(", 1,000 weights")
    for bad in ("lora", "head-3", "lora-0", "magic"):
        with pytest.raises(ValueError, match=f"no way '{bad}'"):
            parse(bad)


@pytest.mark.parametrize("name", ["head", "bias", "lora-6", "lori-d-2", "subspace-5"])
def test_what_is_counted_is_what_is_trained(net, name):
    way = parse(name)
    tx = methods.transform(way, net, 3)
    state = jax.eval_shape(tx.init, jax.random.key(0), net.params)
    found = methods.cost(way, net, 3)
    assert found.numbers == lrk.count(state)[0]
    assert found.bytes == 4 * found.numbers


def test_costs_count_places_and_positions(net):
    assert methods.cost(parse("patch-10"), net, 3).bytes == 80
    masked = methods.cost(parse("lori-s-6"), net, 3)
    assert (masked.numbers, masked.bytes, masked.seeded) == (6, 48, 3 * (6 + 8))
    lora = methods.cost(parse("lora-2"), net, 3)
    assert lora.multiply_adds == 2 * (6 + 8) + 2 * (8 + 4)
    assert methods.cost(parse("retrain"), net, 3).written
    conv = net._replace(
        params={"conv1": {"kernel": np.zeros((5, 5, 1, 6), np.float32)}},
        axes={"conv1/kernel": lrk.Axes((), (0, 1, 2), (3,))},
    )
    assert methods.cost(parse("lora-1"), conv, 3).multiply_adds == 576 * (25 + 6)


def test_masks_keep_the_largest_entries(net):
    tx = methods.transform(parse("lori-s-4"), net, 3)
    state = tx.init(jax.random.key(0), net.params)
    error = {path: np.zeros(size) for path, size in methods.sides(net).items()}
    error["b/kernel"][:, 1] = 1.0  # all the error is in one column
    mask = methods.fault_aware(
        state,
        error,
        3,
    )
    assert not mask["a/kernel"].any()
    np.testing.assert_array_equal(mask["b/kernel"].sum(0), [0, 3, 0, 0])


# Points


def test_grams_are_those_of_the_library(net):
    found = points.grams(net, 32)
    params = jax.tree.map(jnp.asarray, net.params)
    wanted = lrk.merging.gram(
        net.apply, params, jnp.asarray(net.train[0][:32]), select=methods.kernels
    )
    for path, gram in wanted.items():
        np.testing.assert_allclose(found[path], gram, rtol=1e-4, atol=1e-4)


def test_grams_of_convolutions_are_of_patches():
    _, params = functional(LeNet5(rngs=nnx.Rngs(0)))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 28, 28, 1)))
    axes = {f"{name}/kernel": None for name in ("conv1", "conv2", "fc1", "fc2", "fc3")}
    own = Net("lenet", nets.lenet_apply, params, axes, (x, 0), (x, 0), (x, 0))
    found = points.grams(own, 2)
    patch = x[:, 3:27, 2:26, 0]  # what the entry (3, 2) of the first kernel meets
    assert float(found["conv1/kernel"][17, 17]) == pytest.approx((patch**2).sum(), 1e-4)
    assert found["conv2/kernel"].shape == (150, 150)
    assert found["fc1/kernel"].shape == (256, 256)


def test_the_spectrum_of_a_flat_error(net):
    deployed = jax.tree.map(lambda w: w, net.params)
    deployed["b"] = {**deployed["b"], "kernel": np.zeros((8, 4), np.float32)}
    found = points.spectrum(net, net.params, deployed)
    # b's error is an identity, of rank 4 of 4; a has none, which counts as rank 1.
    assert float(found["stable_rank"]) == pytest.approx((4 * 4 + 6 * 0) / 10, abs=1e-3)
    assert float(found["norm"]) == pytest.approx(np.sqrt(4 / 12), abs=1e-4)


def test_the_nearest_rate_and_its_band():
    assert points.nearest([0.1, 0.2, 0.4], [0.02, 0.18, 0.5], 0.2) == (0.2, True)
    assert points.nearest([0.1, 0.2], [0.01, 0.05], 0.2) == (0.2, False)
    given = Fault.of("lrs", 0.12, length=8.0).given()
    assert given["p_lrs"] == pytest.approx(0.1)
    assert given["cluster_length"] == 8.0
    assert Fault.of("equal", 0.1).given()["cluster_share"] == 0.0


# Healing


LOW = ("head", "lora-2", "lori-d-2", "lori-s-8", "lori-f-8")


def test_ways_heal_and_do_not_disturb_each_other(healer):
    ways = [parse(name) for name in LOW]
    rates = dict.fromkeys(LOW, 0.05)
    none = healer.run([Way("none")], FAULT, chips=4)["none"]
    assert none.mean() < 0.9
    found = healer.run(ways, FAULT, chips=4, rates=rates)
    assert found["lora-2"].mean() > none.mean() + 0.05
    alone = healer.run(ways[1:2], FAULT, chips=3, rates=rates)
    np.testing.assert_allclose(alone["lora-2"], found["lora-2"][:3], atol=0.02)
    assert alone["lora-2"].shape == (3,)
    still = healer.run(ways, FAULT, chips=4, rates=dict.fromkeys(LOW, 0.0))
    for name in LOW:  # with a rate of zero nothing moves
        np.testing.assert_array_equal(still[name], none)
    assert healer.traces[(tuple(ways), 0.0, 0.8)] == 1  # rates and counts are traced


def test_a_whole_correction_restores_the_net(healer):
    names = ("none", "svd-1", "svd-6", "svdw-6", "patch-80", "patchw-1")
    ways = [parse(name) for name in names]
    found = healer.run(ways, FAULT, chips=3)
    for name in ("svd-6", "svdw-6", "patch-80"):
        np.testing.assert_array_equal(found[name], 1.0)
    assert found["none"].mean() < 1.0
    assert found["spectrum"]["norm"].shape == (3,)


def test_chips_that_choices_see_are_others(healer):
    one, two = (healer.keys(kind, 4) for kind in ("scored", "tuning"))
    same = jax.random.key_data(one)[:, None] == jax.random.key_data(two)[None]
    assert not bool(same.all(-1).any())


def test_a_chip_sees_as_many_labels_as_it_may(healer):
    inputs = healing.Inputs(*(None,) * 4, jnp.int32(3), 0, 0, {}, {}, {})._replace(
        train=healer.net.train
    )
    index = healer._examples(jax.random.key(0), inputs)
    assert index.shape == (12, 16)
    assert len(np.unique(index)) == 3


def test_the_whole_net_through_the_map(healer):
    ways = [Way("retrain"), Way("itt")]
    rates = {"retrain": 0.02, "itt": 0.02}
    none = healer.run([Way("none")], FAULT, chips=3)["none"]
    found = healer.run(ways, FAULT, chips=3, rates=rates)
    for way in ways:
        assert found[way.name].mean() > none.mean()
        assert (found[f"{way.name}/written"] > 0).all()
    still = healer.run(ways[:1], FAULT, chips=3, rates={"retrain": 0.0})
    np.testing.assert_array_equal(still["retrain"], none)
    np.testing.assert_array_equal(still["retrain/written"], 0)
