"""Small decoders over characters: pretrained here, and a bench that adapts them."""

import functools
import math
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lowrank as lrk
from benchmarks import data
from benchmarks.runner import Session
from benchmarks.study.subspaces import Plan, Problem, cross_entropy
from benchmarks.study.train import OPTIMIZER, batches, schedule
from benchmarks.study.trials import Cell
from lowrank.models import Llama, LlamaConfig, functional

STRIDE = 16  # characters between two places where an example may begin
BLOCKS = 100  # parts of a text: of ten in a row one is for validation, one for the test
HEAD = 16  # channels of a head
EVAL_BATCH = 64
INIT = 0  # the checkpoint before the first step
PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
KERNELS = lrk.matching(rf"(({PROJECTIONS})|^lm_head)/kernel$")


ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'\"-"
_LETTERS = frozenset(ALPHABET)
_SAME = str.maketrans("‘’“”–—_", '\'\'""--"')  # noqa: RUF001


class Size(NamedTuple):
    """A decoder: width of its hidden states, and layers."""

    width: int
    layers: int

    @property
    def name(self) -> str:
        """Name in rows."""
        return f"w{self.width}x{self.layers}"


class Corpus(NamedTuple):
    """A text as numbers, cut into its splits.

    Attributes:
        train: `[n]` uint8.
        valid: Windows `[n, context + 1]` uint8, that do not overlap.
        test: The same.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def plain(text: str) -> str:
    """A text in `ALPHABET`: lower case, no accents; other characters are dropped.

    Example:
        >>> plain("“Café” no. 5")
        '"cafe" no. 5'
    """
    text = unicodedata.normalize("NFKD", text.translate(_SAME)).lower()
    return "".join(letter for letter in text if letter in _LETTERS)


def novels(*, synthetic: bool) -> str:
    """Jane Austen's novels, a paragraph a line."""
    found = data.austen(synthetic=synthetic).values()
    return plain("\n".join(line for lines in found for line in lines))


def dialogue(*, synthetic: bool) -> str:
    """Film dialogue, a statement or reply a line."""
    found = data.film_dialogue(synthetic=synthetic)
    return plain("\n".join(line for pair in found for line in pair))


def corpus(text: str, context: int, valid: int, test: int) -> Corpus:
    """A text's splits: parts far apart, so that no window lies in two of them.

    Args:
        text: In `ALPHABET`.
        context: Characters that a prediction sees at most.
        valid: Windows for validation, at most.
        test: Windows for the test, at most.
    """
    places = {letter: i for i, letter in enumerate(ALPHABET)}
    numbers = np.array([places[letter] for letter in text], np.uint8)
    parts = np.array_split(numbers, BLOCKS)
    held = {}
    for name, place, most in (("valid", 8, valid), ("test", 9, test)):
        rows = [_windows(p, context + 1) for p in parts[place::10]]
        every = np.concatenate(rows)
        step = max(1, len(every) // most)
        held[name] = every[::step][:most]
    train = [part for i, part in enumerate(parts) if i % 10 < 8]
    return Corpus(np.concatenate(train), held["valid"], held["test"])


def _windows(part: np.ndarray, length: int) -> np.ndarray:
    count = len(part) // length
    return part[: count * length].reshape(count, length)


@functools.cache
def decoder(size: Size, context: int) -> tuple[Callable[..., Any], Any]:
    """The function of a decoder, and its weights before training."""
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=size.width,
        intermediate_size=2 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // HEAD),
        max_position_embeddings=context,
        initializer_range=0.02,
    )
    return functional(Llama(config, rngs=nnx.Rngs(0)))


def count(params: Any) -> int:
    """Numbers in a tree."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


class Language:
    """Adapting pretrained decoders to another text; scores are nats a character."""

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        context: int,
        weights: Callable[[str], tuple[Size, Any]],
    ) -> None:
        """Takes the texts by name, and `weights(name)`: a size and its weights."""
        self.corpora, self.context, self._weights = corpora, context, weights
        self._losses: dict[Size, Callable[..., Any]] = {}
        self._scorers: dict[Size, Callable[..., Any]] = {}

    def problem(self, cell: Cell) -> Problem:
        """The training windows of a text."""
        return self.examples(cell.task, self._weights(cell.weights)[0])

    def examples(self, task: str, size: Size) -> Problem:
        """The same, for a decoder of a size."""
        text = self.corpora[task].train
        number = (len(text) - self.context - 1) // STRIDE
        return Problem(self.loss(size), jnp.asarray(text), number)

    def loss(self, size: Size) -> Callable[..., Any]:
        """The loss of one size, always the same object."""
        if size not in self._losses:
            apply, _ = decoder(size, self.context)

            def loss(params: Any, text: Any, rows: Any) -> jax.Array:
                places = STRIDE * rows[:, None] + jnp.arange(self.context + 1)[None]
                return _nats(apply, params, text[places])

            self._losses[size] = loss
        return self._losses[size]

    def start(self, cell: Cell, seed: int) -> Any:
        """The weights of a checkpoint, the same for every seed."""
        del seed
        return self._weights(cell.weights)[1]

    def valid(self, cell: Cell, params: Any) -> float:
        """Mean nats a character on validation windows; infinite if not finite."""
        found = float(self._held_out(cell, params, "valid").mean())
        return found if math.isfinite(found) else math.inf

    def test(self, cell: Cell, params: Any) -> dict[str, Any]:
        """Mean nats a character on test windows."""
        return {"loss": float(self._held_out(cell, params, "test").mean())}

    def _held_out(self, cell: Cell, params: Any, split: str) -> np.ndarray:
        """Mean nats a character of each held-out window."""
        size = self._weights(cell.weights)[0]
        if size not in self._scorers:
            apply, _ = decoder(size, self.context)

            def score(params: Any, windows: Any) -> jax.Array:
                one = functools.partial(_nats, apply, params)
                return jax.lax.map(
                    lambda own: one(own[None]), windows, batch_size=EVAL_BATCH
                )

            self._scorers[size] = jax.jit(score)
        windows = jnp.asarray(getattr(self.corpora[cell.task], split))
        return np.asarray(self._scorers[size](params, windows))


def _nats(apply: Any, params: Any, windows: Any) -> jax.Array:
    """Mean cross entropy of the next characters."""
    ids = windows.astype(jnp.int32)
    return cross_entropy(apply(params, ids[:, :-1]), ids[:, 1:])


def begin_row(
    session: Session,
    language: Language,
    cell: Cell,
    given: Mapping[str, Any],
    **more: Any,
) -> None:
    """The row of a start: its losses before any adaptation, and what else is told."""
    row = f"start-{cell.weights}-{cell.task}"
    if session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    params = language.start(cell, 0)
    metrics = language.test(cell, params) | {"weights": count(params), **more}
    for name in language.corpora:
        other = cell._replace(task=name)
        metrics[f"loss_{name}"] = language.test(other, params)["loss"]
    seconds = time.perf_counter() - begin
    session.save(row, metrics, config=given, seconds=seconds, seed=0)


class Snapshots:
    """Trains all weights and gives them at chosen steps."""

    def __init__(self, problem: Problem, plan: Plan, rate: float, seed: int) -> None:
        """Takes what `advance` needs."""

        def advance(carry: Any, data: Any, order: Any, rates: Any) -> Any:
            def step(carry: Any, now: Any) -> Any:
                params, memory = carry
                rows, rate = now
                value, slope = jax.value_and_grad(problem.loss)(params, data, rows)
                update, memory = OPTIMIZER.update(slope, memory)
                params = jax.tree.map(lambda x, u: x - rate * u, params, update)
                return (params, memory), value

            return jax.lax.scan(step, carry, (order, rates))[0]

        self._advance, self._data = jax.jit(advance), problem.data
        self._order = batches(problem.number, plan.steps, plan.batch, seed)
        self._rates = (rate * schedule(plan.steps)).astype(np.float32)

    def begin(self, params: Any) -> Any:
        """Weights and the optimiser's memory, before the first step."""
        return params, OPTIMIZER.init(params)

    def advance(self, carry: Any, start: int, end: int, unit: int) -> Any:
        """Goes from one step to another, `unit` steps a call."""
        for at in range(start, end, unit):
            part = slice(at, at + unit)
            given = (self._order[part], self._rates[part])
            carry = self._advance(carry, self._data, *given)
        return carry

    def through(self, params: Any, at: Sequence[int]) -> dict[int, Any]:
        """Weights after the steps in `at`, increasing."""
        unit, carry, found, last = math.gcd(*at), self.begin(params), {}, 0
        for end in at:
            carry = self.advance(carry, last, end, unit)
            found[end], last = carry[0], end
        return found


def pretrained(
    store: Session,
    problem: Problem,
    start: Any,
    plan: Plan,
    rate: float,
    at: Sequence[int],
    name: str,
    given: Mapping[str, Any],
) -> dict[int, Any]:
    """Checkpoints of one pretraining run: those on disk are read, the rest is trained.

    A checkpoint holds the optimiser's memory, so that a run that was interrupted goes
    on from its last one.
    """
    once, unit = Snapshots(problem, plan, rate, seed=0), math.gcd(*at)
    carry, found, last = once.begin(start), {INIT: start}, 0
    leaves, treedef = jax.tree.flatten(carry)
    for end in at:
        row, own = f"{name}-step{end}", {**given, "rate": rate, "at": list(at)}
        own |= {**plan._asdict(), "step": end, "name": name}
        kept = store.load_arrays(row, config=own)
        if kept is None:
            carry = once.advance(carry, last, end, unit)
            flat = jax.tree.leaves(carry)
            kept = {f"leaf{i}": np.asarray(x) for i, x in enumerate(flat)}
            store.save_arrays(row, kept, config=own)
        flat = [kept[f"leaf{i}"] for i in range(len(leaves))]
        carry = jax.tree.unflatten(treedef, flat)
        found[end], last = carry[0], end
    return found
