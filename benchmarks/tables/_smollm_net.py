"""The language model and its compiled programs: training, scores, text."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lowrank as lrk
from benchmarks.data import load_tokenizer, smollm2_file
from benchmarks.data.synthetic import wordpiece_tokenizer_file
from benchmarks.tables._smollm_data import CLOSE, OPEN, START, Packed
from lowrank.models import (
    Llama,
    LlamaConfig,
    functional,
    generate,
    load_gguf,
    load_gguf_tokenizer,
)

CLIP = 1.0  # largest norm of a gradient
Batch = tuple[Any, Any, Any]


class Scores(NamedTuple):
    """What each example costs.

    Attributes:
        nll: Negative log-likelihood of its completion, in nats.
        tokens: Tokens of its completion.
    """

    nll: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.nll.sum() / self.tokens.sum())


class Cost(NamedTuple):
    """What a compiled training step takes, in bytes, and how fast it ran.

    Attributes:
        arguments: Arrays that it is given: base, adapter, optimiser, batch.
        temporaries: What it needs besides while it runs.
        trainable: Trained arrays.
        fixed: Arrays of the adapter that are not trained.
        optimizer: The state of the optimiser.
        speed: Tokens per second, padding included: the median over steps.
    """

    arguments: int
    temporaries: int
    trainable: int
    fixed: int
    optimizer: int
    speed: float


class Trained(NamedTuple):
    """A trained state, the loss of each step, and the cost of one."""

    state: lrk.State
    losses: list[float]
    cost: Cost


class Net:
    """SmolLM2-135M-Instruct from its 4-bit file, or a tiny random model."""

    def __init__(self, synthetic: bool):
        self.tokenizer: Any
        if synthetic:
            self.tokenizer = _tiny_tokenizer()
            config = _tiny_config(self.tokenizer.get_vocab_size())
            model = Llama(config, scan=True, rngs=nnx.Rngs(0))
        else:
            file = smollm2_file()
            self.tokenizer = load_gguf_tokenizer(file)
            model, _ = load_gguf(file, scan=True)
        self.model = model
        self.apply, self.params = functional(model, token_losses)
        shape = jnp.zeros((1, 8), jnp.int32)
        weight = jnp.zeros((1, 8))
        found = lrk.trace_axes(self.apply, self.params, shape, shape, weight)
        self.axes = {path: own for path, own in found.items() if is_linear(path)}
        self._losses = jax.jit(self.apply)

    def score(self, params: Any, packed: Packed, rows: int) -> Scores:
        """Losses of every example under dense weights, some rows at a time."""
        return scores(partial(self._losses, params), packed, rows)

    @cached_property
    def _text(self) -> Callable[..., Any]:
        """Continues prompts: `(params, ids, mask, temperature, key) -> Generated`."""
        end = self.tokenizer.token_to_id(CLOSE)

        def run(model: Llama, ids: Any, mask: Any, length: int, **how: Any) -> Any:
            return generate(model, ids, mask, length=length, stop=(end,), **how)

        return functional(self.model, run)[0]

    def texts(
        self, params: Any, prompts: Sequence[Sequence[int]], length: int, heat: float
    ) -> list[str]:
        """What the model writes after each prompt; the likeliest if `heat` is 0."""
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), np.int32)
        mask = np.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, 1
        how = {"temperature": heat, "key": jax.random.key(0)}
        out = self._text(params, jnp.asarray(ids), jnp.asarray(mask), length, **how)
        pairs = zip(np.asarray(out.ids), np.asarray(out.mask), strict=True)
        return [self.tokenizer.decode(row[kept != 0].tolist()) for row, kept in pairs]


class Trainer:
    """Trains the states of one transform over one base; compiles once."""

    def __init__(self, net: Net, tx: lrk.Transform, base: Any):
        self.tx, self.base = tx, base
        self._lifted = lrk.lift(net.apply)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(CLIP), optax.scale_by_adam()
        )
        self._compiled: Any = None
        self._through = jax.jit(lambda p, s, *b: self._lifted(tx.apply(p, s), *b))
        self._dense = jax.jit(lambda p, s: lrk.materialize(tx.apply(p, s)))

    def losses(self, state: lrk.State) -> Callable[..., jax.Array]:
        """The losses of tokens through the operators, `(*batch) -> [rows, length]`."""
        return partial(self._through, self.base, state)

    def dense(self, state: lrk.State) -> Any:
        """The weights with a state, as plain arrays."""
        return self._dense(self.base, state)

    def train(
        self, start: lrk.State, batches: Sequence[Packed], rate: float
    ) -> Trained:
        """Adam with a rate that falls linearly to zero."""
        trainable = jax.tree.map(jnp.array, start.trainable)
        memory = self._optimizer.init(trainable)
        sizes = [tree_bytes(part) for part in (trainable, start.fixed, memory)]
        if self._compiled is None:
            given = trainable, memory, start.fixed, self.base, batches[0], rate
            program = jax.jit(self._step, donate_argnums=(0, 1))
            self._compiled = program.lower(*given).compile()
        losses, seconds = [], []
        for i, batch in enumerate(batches):
            begin = time.perf_counter()
            now = rate * (1 - i / len(batches))
            trainable, memory, loss = self._compiled(
                trainable, memory, start.fixed, self.base, batch, now
            )
            losses.append(float(loss))
            seconds.append(time.perf_counter() - begin)
        stats = self._compiled.memory_analysis()
        if stats is None:
            raise RuntimeError("Trainer: this backend has no analysis of memory.")
        cost = Cost(
            arguments=stats.argument_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            trainable=sizes[0],
            fixed=sizes[1],
            optimizer=sizes[2],
            speed=batches[0].ids.size / statistics.median(seconds),
        )
        return Trained(start._replace(trainable=trainable), losses, cost)

    def _step(
        self, trainable: Any, memory: Any, fixed: Any, base: Any, batch: Any, rate: Any
    ) -> tuple[Any, Any, jax.Array]:
        def loss(trainable: Any) -> jax.Array:
            adapted = self.tx.apply(base, lrk.State(trainable, fixed))
            return self._lifted(adapted, *batch).sum() / batch.weight.sum()

        value, grads = jax.value_and_grad(loss)(trainable)
        change, memory = self._optimizer.update(grads, memory)
        step = jax.tree.map(lambda x: (-rate * x).astype(x.dtype), change)
        return optax.apply_updates(trainable, step), memory, value


def token_losses(
    model: Llama, ids: jax.Array, owner: jax.Array, weight: jax.Array
) -> jax.Array:
    """Weighted negative log-likelihoods `[rows, length]`, each at its own token."""
    logits = model(ids, segment_ids=owner)[:, :-1]
    chosen = jnp.take_along_axis(logits, ids[:, 1:, None], axis=2)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.pad(nll, ((0, 0), (1, 0))) * weight


def scores(losses: Callable[..., Any], packed: Packed, rows: int) -> Scores:
    """Losses of every example, from those of tokens, some rows at a time."""
    found = [
        np.asarray(losses(*packed.rows(i, i + rows)))
        for i in range(0, len(packed.ids), rows)
    ]
    kept = packed.weight != 0
    owner = packed.owner[kept]
    nll = np.bincount(owner, np.concatenate(found)[kept].astype(float))
    return Scores(nll, np.bincount(owner))


def whole() -> lrk.Transform:
    """Full fine-tuning, without a second copy of the weights: they are the state."""

    def init(key: Any, params: Any) -> lrk.State:
        del key
        return lrk.State(params, {})

    def apply(params: Any, state: lrk.State, *, key: Any = None) -> Any:
        del params, key
        return state.trainable

    return lrk.Transform(init, apply)


def is_linear(path: str, leaf: Any = None) -> bool:
    """Whether a leaf is one of the layers' linear maps."""
    del leaf
    return path.endswith("_proj/kernel")


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _tiny_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )


def _tiny_tokenizer() -> Any:
    """One that knows the made-up texts."""
    with tempfile.TemporaryDirectory() as folder:
        file = wordpiece_tokenizer_file(Path(folder, "tokenizer.json"))
        tokenizer = load_tokenizer(file)
    tokenizer.add_special_tokens([START, OPEN, CLOSE])
    return tokenizer
