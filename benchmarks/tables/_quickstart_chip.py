"""The last block: the merged adapters on one faulty chip, and what brings them back.

The four merged adapters and the encoder become one set of weights, and those are
programmed into a crossbar with stuck cells: `crossbar` applied to the tree that
`merging.concat` returned. For healing, each task gets a LoRA beside the faulty weights,
in digital memory: one more transform of the same tree, trained by the very step that
trained the adapters.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks import data, stats
from benchmarks.tables import _quickstart_score as scoring
from benchmarks.tables import _quickstart_train as training
from benchmarks.tables._quickstart_probe import fit_probe
from benchmarks.tables._quickstart_tasks import Head, Part, Task, embed
from benchmarks.tables._quickstart_work import Work, trained_state
from lowrank import rram

METHOD = "lora"  # whose merge goes on the chip, and what heals it
KINDS = {
    "merged": "merged, no chip",
    "deployed": "deployed, no action",
    "head": "new head only",
    "healed": "healed: LoRA and head",
    "control": "the same LoRA, no faults",
}
LAYERS = lrk.matching(r"^encoder/layer/\d+/.*kernel$")
LOST = (0.1, 0.3)  # what the chip is meant to cost, as a share of all texts

Features = dict[str, np.ndarray]


class Choice(NamedTuple):
    """The stuck rate that was chosen on validation data.

    Attributes:
        rate: Share of stuck cells.
        tried: Mean validation accuracy over the tasks, by rate; without faults at 0.
        encoder: The encoder that the chip holds: plain arrays.
        valid: Its features of the validation texts, by task.
    """

    rate: float
    tried: dict[str, float]
    encoder: Any
    valid: Features


class Outcome(NamedTuple):
    """What the block measured.

    Attributes:
        choice: The rate.
        guesses: Predictions on the test texts, by kind and task.
        numbers: How many digital numbers each kind trains for one task, the head left
            out.
        losses: Training loss of each step of healing, `[steps, tasks]`.
        seconds: Wall time by part.
    """

    choice: Choice
    guesses: dict[str, dict[str, np.ndarray]]
    numbers: dict[str, int]
    losses: np.ndarray
    seconds: dict[str, float]


def few_texts(work: Work) -> list[Task]:
    """The tasks with as many texts of each split as the block uses."""
    return [
        task._replace(
            parts={
                split: _some(part, getattr(work.config, f"chip_{split}"), split)
                for split, part in task.parts.items()
            }
        )
        for task in work.tasks
    ]


def _some(part: Part, number: int, split: str) -> Part:
    """The first texts of a split; of the test texts the last."""
    own = slice(-number, None) if split == "test" else slice(number)
    tokens = data.Tokens(part.tokens.ids[own], part.tokens.lengths[own])
    return Part(tokens, part.labels[own])


def features(
    work: Work, encoders: Sequence[Any], tasks: Sequence[Task], split: str
) -> Features:
    """Features of a split by task, each under its encoder."""
    edges = work.config.edges
    return {
        task.name: embed(work.model, encoder, task.parts[split].tokens, edges)
        for task, encoder in zip(tasks, encoders, strict=True)
    }


def guess(
    found: Features, tasks: Sequence[Task], heads: Sequence[Head]
) -> dict[str, np.ndarray]:
    """Predictions by task."""
    return {
        task.name: scoring.predict(head, found[task.name], task)
        for task, head in zip(tasks, heads, strict=True)
    }


def device(config: Any, rate: Any) -> rram.Device:
    """The device at a share of stuck cells, which may be traced."""
    share = config.chip_lrs
    return rram.Device(p_lrs=share * rate, p_hrs=(1 - share) * rate)


def chip(work: Work, seed: int) -> Callable[[float, float], Any]:
    """The encoder that the chip holds, by merge weight and share of stuck cells.

    One compiled call serves all shares; more only adds faults to the same chip.
    """
    config, number = work.config, len(work.tasks)
    tx = training.adapter(METHOD, config.rank, config.alpha)
    states = training.adapters_of(trained_state(work, METHOD, seed).state)
    # Tasks have 0, 1, ...; `number` was the chip on which the block was written.
    key = jax.random.fold_in(jax.random.key(seed), number + 1)

    def form(params: Any, states: lrk.State, weight: Any, rate: Any) -> Any:
        own = [training.of_task(states, task) for task in range(number)]
        trees = [tx.apply(params, state)["encoder"] for state in own]
        merged = lrk.merging.concat(trees, [weight] * number)
        onto = rram.crossbar(device(config, rate), select=LAYERS)
        return onto.apply(merged, onto.init(key, merged))

    return functools.partial(jax.jit(form), work.model.params, states)


def choose(
    work: Work,
    tasks: Sequence[Task],
    hold: Callable[[float], Any],
    heads: Sequence[Head],
) -> Choice:
    """Raises the share of stuck cells until the chip loses what it is meant to lose.

    Of those tried, the one whose loss on validation data is nearest to the middle of
    the range is taken.
    """
    tried: dict[str, float] = {}
    found: list[Choice] = []
    middle = sum(LOST) / 2
    for rate in (0.0, *sorted(work.config.chip_rates)):
        encoder = hold(rate)
        valid = features(work, [encoder] * len(tasks), tasks, "valid")
        own = guess(valid, tasks, heads)
        right = [stats.accuracy(own[t.name], t.parts["valid"].labels) for t in tasks]
        tried[f"{rate:g}"] = float(np.mean(right))
        found.append(Choice(rate, tried, encoder, valid))
        if tried["0"] - tried[f"{rate:g}"] >= middle:
            break
    if len(found) < 2:
        raise ValueError("quickstart: no chip_rates given. Pass at least one.")

    def off(choice: Choice) -> float:
        return abs(tried["0"] - tried[f"{choice.rate:g}"] - middle)

    return min(found[1:], key=off)


def new_heads(work: Work, tasks: Sequence[Task], choice: Choice) -> list[Head]:
    """Probes on the features that the chip gives."""
    found = features(work, [choice.encoder] * len(tasks), tasks, "train")
    return [
        fit_probe(
            (found[task.name], task.parts["train"].labels),
            (choice.valid[task.name], task.parts["valid"].labels),
            task.classes,
        ).head
        for task in tasks
    ]


class Healed(NamedTuple):
    """For each task the healed encoder, plain, and its head; losses; adapter size."""

    encoders: list[Any]
    heads: list[Head]
    losses: np.ndarray
    numbers: int


def heal(
    work: Work,
    tasks: Sequence[Task],
    encoder: Any,
    heads: Sequence[Head],
    seed: int,
    tick: Callable[[], Any] = lambda: None,
) -> Healed:
    """Trains a LoRA beside the chip's weights and a head for each task, all at once.

    Args:
        work: The shared work.
        tasks: The tasks, with the texts to train on.
        encoder: What the chip holds; it stays as it is.
        heads: Heads to start from.
        seed: Seed of the adapters and of the order of texts.
        tick: Is called after each step.
    """
    config, number = work.config, len(tasks)
    model = work.model._replace(params={**work.model.params, "encoder": encoder})
    tx = training.adapter(METHOD, config.rank, config.alpha)
    state = training.start([training.with_head(tx)] * number, model, heads, seed)
    batches = data.multi_task_batches(
        [task.parts["train"].tokens.lengths for task in tasks],
        config.batch,
        config.chip_steps,
        edges=config.edges,
        seed=seed,
    )
    step, _ = work.compiled(METHOD)

    def formed(state: lrk.State) -> list[Any]:
        own = training.adapters_of(state)
        states = [training.unstacked(own, i) for i in range(number)]
        return [
            lrk.materialize(tx.apply(model.params, one)["encoder"]) for one in states
        ]

    def judge(state: lrk.State) -> list[float]:
        found = features(work, formed(state), tasks, "valid")
        return [
            scoring.nll(
                head.logits(found[task.name], task.classes), task.parts["valid"].labels
            )
            for task, head in zip(tasks, training.heads_of(state), strict=True)
        ]

    found = training.train(
        step,
        model,
        tasks,
        state,
        list(batches),
        config.chip_learning,
        config.chip_trial,
        judge,
        tick,
    )
    own = training.unstacked(training.adapters_of(found.state), 0)
    numbers, _ = lrk.count(own)
    heads = training.heads_of(found.state)
    return Healed(formed(found.state), heads, found.losses, numbers)


def outcome(work: Work, weight: float, seed: int) -> Outcome:
    """Deploys, fits new heads, heals, and reads the test texts once for each.

    Args:
        work: The shared work.
        weight: Weight of the merge.
        seed: Seed of the trained adapters, of the chip and of healing.
    """
    tasks, seconds = few_texts(work), {}
    heads = training.heads_of(trained_state(work, METHOD, seed).state)
    hold = functools.partial(chip(work, seed), weight)
    title = "faulty chip (steps)"
    more = (len(work.config.chip_learning) - 1) * work.config.chip_trial
    with work.session.progress(2 * (work.config.chip_steps + more), title) as bar:
        clock = time.perf_counter()
        choice = choose(work, tasks, hold, heads)
        seconds["choosing"], clock = _lap(clock)
        fresh = new_heads(work, tasks, choice)
        seconds["new heads"], clock = _lap(clock)
        healed = heal(work, tasks, choice.encoder, heads, seed, bar.update)
        control = heal(work, tasks, hold(0.0), heads, seed, bar.update)
        seconds["healing"], clock = _lap(clock)
    faulty = features(work, [choice.encoder] * len(tasks), tasks, "test")
    guesses = {
        "deployed": guess(faulty, tasks, heads),
        "head": guess(faulty, tasks, fresh),
    }
    for kind, own in (("healed", healed), ("control", control)):
        found = features(work, own.encoders, tasks, "test")
        guesses[kind] = guess(found, tasks, own.heads)
    seconds["scores"], _ = _lap(clock)
    numbers = {"healed": healed.numbers, "control": control.numbers}
    return Outcome(choice, guesses, numbers, healed.losses, seconds)


def _lap(clock: float) -> tuple[float, float]:
    """Seconds since a time, and the time now."""
    now = time.perf_counter()
    return now - clock, now
