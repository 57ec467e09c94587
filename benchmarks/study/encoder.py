"""MiniLM cut in two: frozen layers that run once, and layers that are adapted."""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lowrank as lrk
from benchmarks import data
from benchmarks.data.synthetic import wordpiece_tokenizer_file

EVAL_BATCH = 64
PROJECTIONS = (
    "attention/self/query",
    "attention/self/key",
    "attention/self/value",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)


class Cut(NamedTuple):
    """The encoder, cut below its last layers.

    Attributes:
        params: Parameters of the layers above the cut, `{"layer": {"4": ...}}`.
        lower: `lower(ids, mask)`: hidden states `[batch, length, width]` at the cut.
        pool: `pool(params, hidden, mask)`: mean-pooled outputs `[batch, width]`.
        tokenizer: Its tokenizer.
        width: Size of a hidden state.
        name: Which weights these are.
    """

    params: dict[str, Any]
    lower: Callable[..., jax.Array]
    pool: Callable[..., jax.Array]
    tokenizer: Any
    width: int
    name: str


def load_cut(layers: int, *, synthetic: bool) -> Cut:
    """MiniLM with its last `layers` layers above the cut; or a tiny random twin."""
    if synthetic:
        with tempfile.TemporaryDirectory() as folder:
            path = wordpiece_tokenizer_file(f"{folder}/tokenizer.json")
            tokenizer = data.load_tokenizer(path)
        sizes = lrk.models.BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            num_hidden_layers=layers + 1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=128,
        )
        encoder = lrk.models.Bert(sizes, rngs=nnx.Rngs(0))
        name = "a random encoder of width 16"
    else:
        folder = data.minilm_dir()
        tokenizer = data.load_tokenizer(folder)
        encoder, sizes = lrk.models.load_bert(folder)
        name = f"all-MiniLM-L6-v2, last {layers} of 6 layers adapted"
    every = list(encoder.encoder.layer)
    below, above = every[:-layers], every[-layers:]

    def lower(ids: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = encoder.embeddings(ids, jnp.zeros_like(ids))
        for layer in below:
            hidden = layer(hidden, mask)
        return hidden

    parts = [lrk.models.functional(layer) for layer in above]
    runs = {str(len(below) + i): apply for i, (apply, _) in enumerate(parts)}
    params = {name: own for name, (_, own) in zip(runs, parts, strict=True)}

    def pool(params: Mapping[str, Any], hidden: jax.Array, mask: jax.Array) -> Any:
        for name, run in runs.items():
            hidden = run(params["layer"][name], hidden, mask)
        return lrk.models.mean_pool(hidden, mask)

    return Cut(
        {"layer": params}, jax.jit(lower), pool, tokenizer, sizes.hidden_size, name
    )


def kernels(cut: Cut) -> Any:
    """Selects the six projections of every layer above the cut."""
    del cut
    return lrk.matching(rf"^layer/\d+/({'|'.join(PROJECTIONS)})/kernel$")


def hidden_states(cut: Cut, tokens: data.Tokens, length: int) -> tuple[Any, Any]:
    """States at the cut `[n, length, width]` and masks `[n, length]` of texts."""
    number = len(tokens.lengths)
    states = np.zeros((number, length, cut.width), np.float32)
    masks = np.zeros((number, length), np.int8)
    for start in range(0, number, EVAL_BATCH):
        index = np.arange(start, start + EVAL_BATCH) % number
        ids, mask = tokens.batch(index, length)
        kept = min(EVAL_BATCH, number - start)
        states[index[:kept]] = np.asarray(cut.lower(ids, mask))[:kept]
        masks[index[:kept]] = mask[:kept]
    return states, masks


def features(cut: Cut, params: Any, states: Any, masks: Any) -> np.ndarray:
    """Pooled outputs `[n, width]`, in batches; `params` hold plain arrays."""
    return np.asarray(_features(cut.pool)(params, states, masks))


_JITTED: dict[Any, Any] = {}


def _features(pool: Callable[..., Any]) -> Any:
    """The jitted loop over batches of one encoder."""
    if pool not in _JITTED:

        def run(params: Any, states: jax.Array, masks: jax.Array) -> jax.Array:
            number = states.shape[0]
            batches = -(-number // EVAL_BATCH)
            extra = batches * EVAL_BATCH - number
            wide = jnp.pad(states, ((0, extra), (0, 0), (0, 0)))
            own = jnp.pad(masks, ((0, extra), (0, 0)))
            parts = (
                wide.reshape(batches, EVAL_BATCH, *states.shape[1:]),
                own.reshape(batches, EVAL_BATCH, masks.shape[1]),
            )
            found = jax.lax.map(lambda part: pool(params, *part), parts)
            return found.reshape(batches * EVAL_BATCH, -1)[:number]

        _JITTED[pool] = jax.jit(run)
    return _JITTED[pool]
