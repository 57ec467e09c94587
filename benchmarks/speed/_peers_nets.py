"""The networks of `speed/peers`: shapes of public models, random weights, one batch."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.stats import generator
from lowrank.models import Bert, BertConfig, Llama, LlamaConfig, functional

Tree = Any
Factors = dict[str, dict[str, np.ndarray]]
CLASSES = 16


@dataclasses.dataclass(frozen=True)
class Net:
    """Sizes of a network and of a batch.

    Attributes:
        kind: `bert`, trained to classify texts, or `llama`, to predict tokens.
        config: The sizes that differ from the defaults of the model's config.
        batch: Sequences.
        length: Tokens in a sequence.
    """

    kind: str
    config: dict[str, Any]
    batch: int
    length: int

    @property
    def pattern(self) -> str:
        """Matches the paths of the adapted layers: every dense one of a block."""
        if self.kind == "bert":
            return r"encoder/layer/\d+/.*(query|key|value|dense)"
        return r"model/layers/\d+/.*_proj"

    def shrunk(self, by: int) -> "Net":
        """The same with everything that has a size divided, for tests."""
        if by == 1:
            return self
        names = ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers")
        config = self.config | {n: max(self.config[n] // by, 1) for n in names}
        batch, length = max(self.batch // by, 2), max(self.length // by, 4)
        return dataclasses.replace(self, config=config, batch=batch, length=length)


NETS = {
    "minilm": Net(
        "bert",
        {
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
        batch=16,
        length=64,
    ),
    "smollm2": Net(
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": True,
        },
        batch=2,
        length=64,
    ),
    # Two layers and few words: what is compared is the layers.
    "llama8b": Net(
        "llama",
        {
            "vocab_size": 1024,
            "hidden_size": 4096,
            "num_hidden_layers": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        batch=4,
        length=512,
    ),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model with random weights, factors for its dense layers, and a batch.

    Attributes:
        net: Sizes.
        model: The unmodified model.
        factors: `a: [in, r]` and `b: [r, out]` by path of the kernel, neither zero.
        batch: `ids`, `labels` and, for texts, a fixed output layer `head`.
        rank: Rank of the factors.
        alpha: The adapters' scale is `alpha / rank`.
        dtype: Of the products, and of what is not trained.
    """

    net: Net
    model: nnx.Module
    factors: Factors
    batch: dict[str, Any]
    rank: int
    alpha: float
    dtype: str

    @property
    def scale(self) -> float:
        """The scale of the adapters."""
        return self.alpha / self.rank

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.net.batch * self.net.length

    def params(self) -> tuple[Callable[..., Any], Tree]:
        """The model as a function of a plain tree, and the tree."""
        return functional(self.model)

    def loss(self, run: Callable[[Any], jax.Array], batch: Mapping[str, Any]) -> Any:
        """Mean cross entropy, given what maps ids to hidden states or logits."""
        out = run(batch["ids"]).astype(jnp.float32)
        if self.net.kind == "bert":
            out = out.mean(axis=1) @ batch["head"]
        log = jax.nn.log_softmax(out, axis=-1)
        picked = jnp.take_along_axis(log, batch["labels"][..., None], axis=-1)
        return -jnp.mean(picked)


def problem(
    name: str, rank: int, alpha: float, dtype: str, shrink: int, seed: int
) -> Problem:
    """Draws a problem.

    Args:
        name: One of `NETS`.
        rank: Rank of the adapters.
        alpha: Their scale times the rank.
        dtype: `float32` or `bfloat16`.
        shrink: Divides all sizes; 1 for the network itself.
        seed: Of all numbers.
    """
    net = NETS[name].shrunk(shrink)
    options: Any = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(seed)}
    if net.kind == "bert":
        model: nnx.Module = Bert(BertConfig(**net.config), **options)
    else:
        model = Llama(LlamaConfig(**net.config), **options)
    factors = _factors(model, net, rank, seed)
    return Problem(net, model, factors, _batch(net, seed), rank, alpha, dtype)


def paths(model: nnx.Module, pattern: str) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Modules of the adapted layers by path, with the parts of the path."""
    found = {}
    for parts, module in nnx.iter_modules(model):
        path = "/".join(map(str, parts))
        if isinstance(module, nnx.Linear) and re.fullmatch(pattern, path):
            found[path] = parts, module
    return found


def _factors(model: nnx.Module, net: Net, rank: int, seed: int) -> Factors:
    """Factors in the range that training gives them; `b` is not left at zero."""
    draw, found = generator(seed), {}
    for path, (_, module) in paths(model, net.pattern).items():
        n, m = module.kernel.shape
        a = draw.standard_normal((n, rank)) * n**-0.5
        b = draw.standard_normal((rank, m)) * 0.1 * m**-0.5
        found[f"{path}/kernel"] = {
            "a": a.astype(np.float32),
            "b": b.astype(np.float32),
        }
    return found


def _batch(net: Net, seed: int) -> dict[str, Any]:
    draw = generator(seed + 1)
    size, width = net.config["vocab_size"], net.config["hidden_size"]
    ids = draw.integers(size, size=(net.batch, net.length), dtype=np.int32)
    if net.kind == "llama":
        labels = draw.integers(size, size=ids.shape, dtype=np.int32)
        return {"ids": jnp.asarray(ids), "labels": jnp.asarray(labels)}
    labels = draw.integers(CLASSES, size=net.batch, dtype=np.int32)
    head = draw.standard_normal((width, CLASSES)) * width**-0.5
    return {
        "ids": jnp.asarray(ids),
        "labels": jnp.asarray(labels),
        "head": jnp.asarray(head, jnp.float32),
    }
