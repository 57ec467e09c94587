"""What lift may cost, read from compiled programs: nothing here is timed."""

import functools

import jax
import pytest

from benchmarks.speed import _contenders as contenders
from benchmarks.speed import _hlo as hlo
from benchmarks.speed import _measure as measure
from benchmarks.speed import _networks as networks

# No product of two of these is another: 15 tokens, widths 12 and 20, rank 2, 7 heads.
TASKS = 8
SIZES = networks.Sizes(
    layers=2, width=12, hidden=20, heads=2, batch=3, length=5, vocabulary=17, rank=2
)
NAMES = ("layer", "transformer")


@functools.cache
def network(name):
    if name == "layer":
        return networks.layer_network(12, batch=3, length=5, rank=2)
    return networks.transformer(SIZES)


@functools.cache
def program(name, contender):
    made = contenders.own(network(name))[contender]
    return measure.build(contenders.step(made), measure.arguments(made))


@functools.cache
def scanned(contender):
    made = contenders.scanned(networks.scanned_transformer(SIZES))[contender]
    return measure.build(contenders.step(made), measure.arguments(made))


def products(built):
    return hlo.products(built.compiled.as_text())


def weight_gradients(found, name):
    shapes = {tuple(sorted(w.shape)) for w in network(name).kernels.values()}
    return sum(sum(hlo.forming(found, *shape).values()) for shape in shapes)


@pytest.mark.parametrize("name", NAMES)
def test_lift_compiles_to_the_program_of_the_flattened_layer_by_hand(name):
    lifted, by_hand = program(name, "lowrank"), program(name, "flat")
    assert lifted.costs["gflop"] == by_hand.costs["gflop"]
    assert products(lifted) == products(by_hand)
    assert lifted.costs["temp_mb"] <= by_hand.costs["temp_mb"]


@pytest.mark.parametrize("name", NAMES)
def test_every_product_with_a_base_weight_is_on_two_axes(name):
    found = products(program(name, "lowrank"))
    kernels = network(name).kernels.values()
    tokens = 3 * 5
    base = {
        product: count
        for shape in {tuple(sorted(w.shape)) for w in kernels}
        for product, count in hlo.with_size(found, *shape).items()
    }
    # Forward and backward; the first block's q, k and v pass nothing back.
    want = 2 if name == "layer" else 2 * len(kernels) - 3
    assert sum(base.values()) == want
    assert all(len(p.lhs) == 2 and tokens in p.lhs for p in base)
    assert not any(product.batched for product in base)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_of_a_weight_is_formed(name):
    assert weight_gradients(products(program(name, "lowrank")), name) == 0
    formed = weight_gradients(products(program(name, "full")), name)
    assert formed == len(network(name).kernels)


def test_under_scan_and_remat_the_products_are_those_of_the_layer_by_hand():
    found = products(scanned("lowrank"))
    assert found == products(scanned("flat"))
    assert weight_gradients(found, "transformer") == 0
    assert weight_gradients(products(scanned("materialised")), "transformer") > 0
    assert scanned("lowrank").costs["gflop"] == scanned("flat").costs["gflop"]


@pytest.mark.parametrize("name", NAMES)
def test_eight_adapters_share_one_unbatched_base_product(name):
    built = measure.build(*contenders.many_tasks(network(name), TASKS))
    text = built.compiled.as_text()
    found = measure.base_products(text, network(name), TASKS)
    want = 2 if name == "layer" else 2 * len(network(name).kernels) - 3
    assert found["base_products"] == found["all_tokens"] == want
    assert found["copies"] == 0
    assert found["example"] == "[120, 12] @ [12, 12] -> [120, 12]"


def test_a_weight_per_task_is_seen():
    net = network("layer")
    made = contenders.by_hand(net, contenders.materialised)
    _, args = contenders.many_tasks(net, TASKS)
    args = (args[0], args[1], made.frozen, args[3])
    run = jax.vmap(contenders.step(made), in_axes=(0, 0, None, 0))
    text = measure.build(run, args).compiled.as_text()
    assert measure.base_products(text, net, TASKS)["copies"] > 0
