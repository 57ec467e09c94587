"""The real sentence encoder gives its published similarities."""

import os

import jax
import numpy as np
import pytest

from benchmarks.data import CATALOG, minilm_dir
from lowrank.models import encode, functional, load_bert, load_tokenizer, mean_pool


def folder():
    """Where the encoder lies: a named folder, or the cache that quickstart fills."""
    if named := os.environ.get("LOWRANK_MINILM_DIR"):
        return named
    return minilm_dir() if CATALOG["minilm"].cached() else None


@pytest.mark.slow
def test_similarities_of_sentences():
    if (where := folder()) is None:
        pytest.skip(
            "all-MiniLM-L6-v2 is neither cached nor named by LOWRANK_MINILM_DIR"
        )
    model, config = load_bert(where)
    assert config.num_hidden_layers == 6
    texts = [
        "That is a happy person",
        "That is a very happy person",
        "That is a happy dog",
        "Today is a sunny day",
    ]
    ids, mask = encode(load_tokenizer(where), texts, 16)
    apply, params = functional(
        model, lambda model, ids, mask: mean_pool(model(ids, mask), mask)
    )
    out = np.asarray(jax.jit(apply)(params, ids, mask), np.float64)
    unit = out / np.linalg.norm(out, axis=1, keepdims=True)
    np.testing.assert_allclose(unit[0] @ unit[1:].T, [0.943, 0.695, 0.257], atol=5e-4)
