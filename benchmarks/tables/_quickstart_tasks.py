"""The four tasks of the quickstart, the encoder they share, and its features."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lowrank as lrk
from benchmarks import data
from benchmarks.data.synthetic import wordpiece_tokenizer_file

TITLES = {
    "trec": "TREC questions",
    "sms_spam": "SMS spam",
    "sentiment_movie": "movie reviews",
    "sentiment_amazon": "product reviews",
}
SPLITS = ("train", "valid", "test")
CLASSES = 6  # of the task with most; logits of the others are padded
EVAL_BATCH = 32
WEIGHTS = "all-MiniLM-L6-v2, Apache-2.0"


class Part(NamedTuple):
    """One split of a task: what the encoder reads, and class numbers `[n]`."""

    tokens: data.Tokens
    labels: np.ndarray


class Task(NamedTuple):
    """A task.

    Attributes:
        name: Name of the data set.
        classes: How many classes it has.
        parts: The splits that are used, after the cap.
        facts: What the report says of the data: sizes, classes, licence, source.
    """

    name: str
    classes: int
    parts: dict[str, Part]
    facts: dict[str, Any]

    @property
    def valid(self) -> np.ndarray:
        """Which of the padded logits exist: `[CLASSES]` bool."""
        return np.arange(CLASSES) < self.classes


class Model(NamedTuple):
    """The encoder with a head for each task.

    Attributes:
        params: `{"encoder": ..., "head": {"kernel", "bias"}}`; the head is zero.
        forward: `forward(params, ids, mask)`: logits `[batch, CLASSES]`.
        pool: `pool(encoder, ids, mask)`: mean hidden states `[batch, width]`, jitted.
        tokenizer: Its tokenizer.
    """

    params: dict[str, Any]
    forward: Callable[..., jax.Array]
    pool: Callable[..., jax.Array]
    tokenizer: Any


def load_model(*, synthetic: bool) -> Model:
    """The real MiniLM, or a tiny random encoder that needs no file."""
    if synthetic:
        with tempfile.TemporaryDirectory() as folder:
            path = wordpiece_tokenizer_file(f"{folder}/tokenizer.json")
            tokenizer = data.load_tokenizer(path)
        sizes = lrk.models.BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
        )
        encoder = lrk.models.Bert(sizes, rngs=nnx.Rngs(0))
    else:
        folder = data.minilm_dir()
        tokenizer = data.load_tokenizer(folder)
        encoder, sizes = lrk.models.load_bert(folder)
    apply, params = lrk.models.functional(encoder, _mean)
    head = {
        "kernel": jnp.zeros((sizes.hidden_size, CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }

    def forward(params: Mapping[str, Any], ids: Any, mask: Any) -> jax.Array:
        pooled = apply(params["encoder"], ids, mask)
        return pooled @ params["head"]["kernel"] + params["head"]["bias"][None]

    return Model({"encoder": params, "head": head}, forward, jax.jit(apply), tokenizer)


def _mean(encoder: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return lrk.models.mean_pool(encoder(ids, mask), mask)


def load_task(
    name: str, tokenizer: Any, caps: Mapping[str, int], longest: int, *, synthetic: bool
) -> Task:
    """A task; each split, which is shuffled, is cut to its first examples.

    Args:
        name: Name of the data set.
        tokenizer: The model's.
        caps: The most examples, by split.
        longest: Texts are cut to so many tokens.
        synthetic: Whether to take the made-up twin.
    """
    found = data.load(name, synthetic=synthetic)
    parts, sizes = {}, {}
    for split in SPLITS:
        whole = found.splits[split]
        used = whole.take(slice(caps[split]))
        parts[split] = Part(data.encode(used.x, tokenizer, longest), used.y)
        sizes[split] = {"used": len(used), "of": len(whole)}
    counts = np.bincount(parts["train"].labels, minlength=len(found.classes))
    facts = {
        "sizes": sizes,
        "classes": list(found.classes),
        "majority": int(counts.argmax()),
        "licence": found.licence,
        "source": found.source,
    }
    return Task(name, len(found.classes), parts, facts)


def embed(
    model: Model,
    encoder: Any,
    tokens: data.Tokens,
    edges: Sequence[int],
    tick: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Mean-pooled hidden states of texts.

    Args:
        model: The model.
        encoder: Plain parameters of the encoder, adapted or not.
        tokens: `n` texts.
        edges: Lengths to pad to; each is compiled once.
        tick: Is told after each batch how many texts were done.

    Returns:
        `[n, width]` float32.
    """
    width = model.params["head"]["kernel"].shape[0]
    out = np.zeros((len(tokens.lengths), width), np.float32)
    for batch in data.length_buckets(tokens.lengths, EVAL_BATCH, edges=edges):
        ids, mask = tokens.batch(batch.index, batch.length)
        out[batch.index] = model.pool(encoder, ids, mask)
        if tick is not None:
            tick(int(batch.weight.sum()))
    return out


class Head(NamedTuple):
    """A linear classifier: `kernel [width, CLASSES]`, `bias [CLASSES]`."""

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray, classes: int) -> np.ndarray:
        """Logits `[n, classes]`, the padding left out."""
        return (features @ self.kernel + self.bias)[:, :classes]


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of `labels [n]` under `logits [n, classes]`."""
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return float(np.mean(total - logits[np.arange(len(labels)), labels]))
