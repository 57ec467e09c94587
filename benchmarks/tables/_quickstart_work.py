"""What the rows of the quickstart share, made once and kept on disk."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import lowrank as lrk
from benchmarks import data
from benchmarks.runner import Session
from benchmarks.tables import _quickstart_score as scoring
from benchmarks.tables import _quickstart_train as training
from benchmarks.tables._quickstart_probe import Probe, fit_probe
from benchmarks.tables._quickstart_tasks import (
    SPLITS,
    TITLES,
    Model,
    Task,
    embed,
    load_model,
    load_task,
)


class Work:
    """What the rows share, each made when it is first needed.

    Attributes:
        config: The options.
        session: The run.
    """

    def __init__(self, config: Any, session: Session) -> None:
        """Takes the options; loads nothing."""
        self.config = config
        self.session = session
        self._compiled: dict[str, tuple[Callable[..., Any], scoring.Encoders]] = {}

    @functools.cached_property
    def model(self) -> Model:
        """The encoder."""
        return load_model(synthetic=self.config.synthetic)

    @functools.cached_property
    def tasks(self) -> list[Task]:
        """The tasks, tokenised."""
        config = self.config
        caps = {split: getattr(config, split) for split in SPLITS}
        return [
            load_task(
                name,
                self.model.tokenizer,
                caps,
                config.edges[-1],
                synthetic=config.synthetic,
            )
            for name in TITLES
        ]

    @functools.cached_property
    def frozen(self) -> dict[str, dict[str, np.ndarray]]:
        """Features of the bare encoder, by task and split; kept on disk."""
        given = self.data_given()
        found = self.session.load_arrays("features", config=given)
        return self._embed_all() if found is None else found

    def _embed_all(self) -> dict[str, dict[str, np.ndarray]]:
        """Reads every text once with the bare encoder."""
        total = sum(len(t.parts[s].labels) for t in self.tasks for s in SPLITS)
        encoder, edges = self.model.params["encoder"], self.config.edges
        with self.session.progress(total, "frozen features (texts)") as bar:
            found = {
                task.name: {
                    split: embed(self.model, encoder, part.tokens, edges, bar.update)
                    for split, part in task.parts.items()
                }
                for task in self.tasks
            }
        self.session.save_arrays("features", found, config=self.data_given())
        return found

    @functools.cached_property
    def probes(self) -> dict[str, Probe]:
        """The tuned probe of each task."""
        found = {}
        for task in self.tasks:
            train, valid = (
                (self.frozen[task.name][split], task.parts[split].labels)
                for split in ("train", "valid")
            )
            found[task.name] = fit_probe(train, valid, task.classes)
        return found

    def compiled(self, method: str) -> tuple[Callable[..., Any], scoring.Encoders]:
        """The jitted step of a method, and what forms its encoders.

        A transform's `apply` reads the state only, so one serves every task and mask.
        """
        if method not in self._compiled:
            tx = training.adapter(method, self.config.rank, self.config.alpha)
            self._compiled[method] = (
                training.make_step(training.with_head(tx), self.model),
                scoring.Encoders(tx, self.model, len(self.tasks)),
            )
        return self._compiled[method]

    def data_given(self) -> dict[str, Any]:
        """What decides the features and the probes."""
        names = ("train", "valid", "test", "edges", "synthetic")
        return {name: getattr(self.config, name) for name in names}

    def given(self, method: str, task: str, seed: int) -> dict[str, Any]:
        """What decides a row of a method."""
        names = {field.name for field in dataclasses.fields(self.config)}
        names -= {"seeds"} if method == "lori-s" else {"seeds", "density"}
        if method != "chip":
            names = {name for name in names if not name.startswith("chip_")}
        options = {name: getattr(self.config, name) for name in sorted(names)}
        return {**options, "method": method, "task": task, "seed": seed}

    def together(self, method: str, seed: int) -> dict[str, Any]:
        """What decides the trained states of a method."""
        given = self.given(method, "all", seed)
        return {name: value for name, value in given.items() if name != "weights"}


def masks_of(work: Work, seed: int) -> list[Any]:
    """For each task the mask that its LoRI-D run gave."""
    dense = trained_state(work, "lori-d", seed)
    states = training.adapters_of(dense.state)
    return [
        jax.tree.map(
            np.asarray,
            lrk.lori_mask(training.unstacked(states, i), density=work.config.density),
        )
        for i in range(len(work.tasks))
    ]


def trained_state(
    work: Work, method: str, seed: int, masks: list[Any] | None = None
) -> training.Trained:
    """The trained states of a method, from disk where they are there."""
    config, session = work.config, work.session
    kept = masks or [None] * len(work.tasks)
    given = work.together(method, seed)
    stored = session.load_arrays(f"{method}-s{seed}", config=given)
    if stored is not None:
        return _restored(stored)
    members = [
        training.with_head(training.adapter(method, config.rank, config.alpha, mask))
        for mask in kept
    ]
    heads = [work.probes[task.name].head for task in work.tasks]
    state = training.start(members, work.model, heads, seed)
    batches = list(
        data.multi_task_batches(
            [task.parts["train"].tokens.lengths for task in work.tasks],
            config.batch,
            config.steps,
            edges=config.edges,
            seed=seed,
        )
    )
    step, encoders = work.compiled(method)

    def judge(state: lrk.State) -> list[float]:
        return scoring.judge(encoders, work.model, work.tasks, state, config.edges)

    total = config.steps + (len(config.rates) - 1) * config.trial
    title = f"{training.METHODS[method]}, seed {seed} (steps)"
    with session.progress(total, title) as bar:
        trained = training.train(
            step,
            work.model,
            work.tasks,
            state,
            batches,
            config.rates,
            config.trial,
            judge,
            bar.update,
        )
    session.save_arrays(f"{method}-s{seed}", _storable(trained), config=given)
    return trained


def _storable(trained: training.Trained) -> dict[str, Any]:
    """Nested dicts of arrays, for `save_arrays`."""
    names = ("head", "adapter")
    state = {
        part: dict(zip(names, values, strict=True))
        for part, values in trained.state._asdict().items()
    }
    return {**trained._asdict(), "state": state}


def _restored(stored: dict[str, Any]) -> training.Trained:
    """The inverse of `_storable`; empty dicts are not stored."""
    parts = {
        part: tuple(stored["state"][part].get(name, {}) for name in ("head", "adapter"))
        for part in ("trainable", "fixed")
    }
    return training.Trained(
        lrk.State(parts["trainable"], parts["fixed"]),
        stored["losses"],
        stored["rates"],
        stored["trial"],
        float(stored["seconds"]),
        float(stored["step_seconds"]),
    )
