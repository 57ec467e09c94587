"""Recurrent networks and M5 against PyTorch, the recommender against its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lowrank.models import (
    GRU,
    LSTM,
    M5,
    M5Config,
    NeuMF,
    NeuMFConfig,
    RecurrentConfig,
    functional,
)
from tests.models import golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # sums of a few float32 numbers of the order 1


def stored(name):
    found = golden.arrays("small_models")
    return {k.removeprefix(f"{name}/"): x for k, x in found.items() if f"{name}/" in k}


@pytest.mark.parametrize(("name", "kind"), [("gru", GRU), ("lstm", LSTM)])
def test_states_of_two_recurrent_layers(name, kind):
    given = stored(name)
    config = RecurrentConfig(input_size=3, hidden_size=4, num_layers=2)
    apply, params = functional(kind(config, rngs=nnx.Rngs(0)))
    for i in range(2):
        for ours, theirs in (("input", "ih"), ("state", "hh")):
            own = params["layers"][str(i)][ours]
            own["kernel"] = jnp.asarray(given[f"weight_{theirs}_l{i}"].T)
            own["bias"] = jnp.asarray(given[f"bias_{theirs}_l{i}"])
    np.testing.assert_allclose(
        jax.jit(apply)(params, given["in"]), given["out"], **CLOSE
    )


def test_logits_of_waves():
    given = stored("m5")
    config = M5Config(
        widths=(3, 4), first_window=7, first_stride=2, pool=2, num_labels=2
    )
    apply, params = functional(M5(config, rngs=nnx.Rngs(0)))
    for i in range(2):
        block = params["blocks"][str(i)]
        block["conv"]["kernel"] = jnp.asarray(given[f"conv{i}"].transpose(2, 1, 0))
        for name in ("scale", "bias"):
            block["norm"][name] = jnp.asarray(given[f"{name}{i}"])
    params["classifier"] = {
        "kernel": jnp.asarray(given["fc"].T),
        "bias": jnp.asarray(given["fc_bias"]),
    }
    np.testing.assert_allclose(
        jax.jit(apply)(params, given["in"]), given["out"], **CLOSE
    )


def test_scores_of_pairs():
    config = NeuMFConfig(num_users=3, num_items=4, mf_size=2, mlp_sizes=(6, 5))
    apply, params = functional(NeuMF(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x + 0.1, params)
    users, items = np.array([2, 0, 2]), np.array([0, 3, 1])
    own = jax.tree.map(np.asarray, params)
    tables = {name: own[name]["embedding"] for name in own if "_" in name}
    product = tables["mf_user"][users] * tables["mf_item"][items]
    pair = np.concatenate([tables["mlp_user"][users], tables["mlp_item"][items]], 1)
    (layer,) = own["layers"].values()
    hidden = np.maximum(pair @ layer["kernel"] + layer["bias"], 0)
    both = np.concatenate([product, hidden], 1)
    want = both @ own["output"]["kernel"][:, 0] + own["output"]["bias"]
    np.testing.assert_allclose(jax.jit(apply)(params, users, items), want, **CLOSE)


def test_wrong_sizes_are_refused():
    with pytest.raises(
        ValueError, match="RecurrentConfig: wrong sizes at 'hidden_size'"
    ):
        RecurrentConfig(input_size=3, hidden_size=0)
    with pytest.raises(ValueError, match="'mlp_sizes': expected one or more"):
        NeuMFConfig(num_users=3, num_items=4, mlp_sizes=(5, 2))
    with pytest.raises(ValueError, match="'widths': expected one or more, each at"):
        M5Config(widths=())


def test_wrong_inputs_are_refused():
    gru = GRU(RecurrentConfig(input_size=3, hidden_size=4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="GRU: wrong inputs: expected shape"):
        gru(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="GRU: no classifier: expected num_labels of"):
        gru.logits(np.zeros((1, 2, 3)))
    pairs = NeuMF(NeuMFConfig(num_users=3, num_items=4), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="NeuMF: wrong users: expected integers, got"):
        pairs(np.zeros(2), np.zeros(2, int))
    with pytest.raises(ValueError, match="NeuMF: wrong items: expected one for each"):
        pairs(np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="M5: wrong waves: expected shape"):
        M5(M5Config(widths=(2,)), rngs=nnx.Rngs(0))(np.zeros((2, 32)))
