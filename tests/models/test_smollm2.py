"""The real language model: its published answer, and `transformers`' likelihoods."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.data import CATALOG, smollm2_file
from lowrank.models import (
    functional,
    generate,
    gguf_metadata,
    load_chat_template,
    load_gguf,
    load_gguf_tokenizer,
    render_chat,
)
from tests.models import golden


@pytest.fixture(scope="module")
def file():
    """Where the weights lie: a named file, or the cache that benchmarks fill."""
    if named := os.environ.get("LOWRANK_SMOLLM2_FILE"):
        return named
    if not CATALOG["smollm2"].cached():
        pytest.skip(
            "SmolLM2 is neither cached (python -m benchmarks.data fetch smollm2) nor "
            "named by LOWRANK_SMOLLM2_FILE"
        )
    return smollm2_file()


@pytest.fixture(scope="module")
def model(file):
    return load_gguf(file, scan=True)[0]


@pytest.mark.slow
def test_the_capital_of_france(file, model):
    tokenizer = load_gguf_tokenizer(file)
    end = gguf_metadata(file)["tokenizer.ggml.eos_token_id"]
    question = {"role": "user", "content": "What is the capital of France?"}
    text = render_chat(load_chat_template(file), [question])
    ids = jnp.array([tokenizer.encode(text).ids])
    out = generate(model, ids, length=12, stop=(end,))
    answer = np.asarray(out.ids)[np.asarray(out.mask) != 0]
    assert tokenizer.decode(answer.tolist()) == "The capital of France is Paris."
    assert answer[-1] == end


@pytest.mark.slow
def test_likelihood_of_a_text(file, model):
    stored = golden.arrays("smollm2")
    ids = load_gguf_tokenizer(file).encode(str(stored["text"])).ids
    assert ids == stored["ids"].tolist()
    assert len(ids) == 55
    apply, params = functional(model)
    logits = jax.jit(apply)(params, jnp.array([ids]))[0, :-1]
    target = jnp.array(ids[1:])[:, None]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=1)[:, 0]
    np.testing.assert_allclose(nll, stored["nll"], rtol=1e-3, atol=2e-3)
    assert np.exp(nll.mean()) == pytest.approx(19.10, abs=0.01)
