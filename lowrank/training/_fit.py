"""Training of many adapters over one frozen base: a loop around one compiled step."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lowrank._base import Array, PyTree, State, Transform
from lowrank.lifting import lift as lift_fn
from lowrank.training._batches import Batches, Data, batches_from
from lowrank.training._fetch import gathered
from lowrank.training._loss_scale import LossScale
from lowrank.training._report import Callback, Keeper, Report, progress_bar, show
from lowrank.training._run import Run, program_of
from lowrank.training._step import Loss, Optimizer, cast, looped

_WHO = "training.fit"
_FOREVER = np.iinfo(np.int32).max

Evaluate = Callable[[State], Mapping[str, Any]]


class Fitted(NamedTuple):
    """What `fit` leaves behind.

    Attributes:
        states: The trained states, stacked: `lrk.unstack` takes them apart.
        steps: Steps that each adapter has taken, `[adapters]`.
        metrics: By name, `[steps, adapters]`, NaN where an adapter had taken its steps;
            from where this call began.
        scores: What `evaluate` gave, by name, `[evaluations, adapters]`.
        evaluated: The steps at which it was called.
    """

    states: State
    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    evaluated: np.ndarray


def fit(
    loss: Loss,
    tx: Transform,
    params: PyTree,
    states: State | Sequence[State],
    data: Data,
    *,
    optimizer: Optimizer,
    steps: int | Sequence[int] | np.ndarray | Array | None = None,
    hyper: Mapping[str, Any] | None = None,
    batch_axis: int | None = 0,
    key: Array | None = None,
    names: Sequence[str] | None = None,
    accumulate: int = 1,
    method: str = "auto",
    lift: Callable[[Loss], Loss] = lift_fn,
    dtype: Any = None,
    remat: Callable[..., Any] | None = None,
    loss_scale: LossScale | None = None,
    fused: int = 1,
    every: int = 100,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Keeper | None = None,
    save_every: int | None = None,
    progress: bool | None = None,
) -> Fitted:
    """Train many adapters at once over one shared, frozen base.

    Tasks, seeds, learning rates and alphas are adapters side by side: `states` holds
    one state for each, `hyper` one number for each. All take their steps in one
    compiled program, and an adapter's result is that of training it alone. The base is
    an argument of that program; only what is trained and the optimiser's state are
    donated. The host waits for the device once in `every` steps, to fetch metrics.

    Args:
        loss: `loss(params, batch, key)`, a scalar or `(scalar, metrics)`: the loss that
            one writes for the plain model. It is lifted here.
        tx: The transform that the states belong to.
        params: The frozen base.
        states: A list of states, or what `lrk.stack` returned. They are left as they
            are. States of unequal rank go through `lrk.pad_ranks` first.
        data: Batches, pytrees of arrays: any iterable, or a function that is given the
            number of batches to skip and returns one. Shapes may change from batch to
            batch; each new shape compiles.
        optimizer: An Optax transformation for all, or a function such as `optax.adam`
            that makes one from the numbers `hyper` of an adapter.
        steps: Optimiser steps, one number or one for each adapter; None: until the data
            ends.
        hyper: Arguments of `optimizer` by name: one number for each adapter, or one for
            all. They are arrays in the program: other numbers do not compile again.
        batch_axis: 0 if every leaf of a batch has a leading axis of adapters, None if
            all adapters see the same batch.
        key: A random key, for dropout and losses that draw; each adapter and step gets
            its own. None: the loss gets None, and a `tx` that draws refuses.
        names: Names of the adapters for reports; None: their numbers.
        accumulate: Batches whose gradients are averaged into one step, at least 1.
        method: `vmap`, `map` or `auto`, as for `map_tasks`.
        lift: As for `step`.
        dtype: As for `step`: what to compute in, such as `jnp.bfloat16`.
        remat: As for `step`.
        loss_scale: As for `step`.
        fused: Steps in one program, at least 1: more of them spare the host where a
            step takes less than launching it.
        every: Steps between reports, at least 1.
        evaluate: `evaluate(states) -> {name: [adapters]}`, given the stacked state:
            what `evaluator` returns, for one.
        evaluate_every: Steps between evaluations, at least 1; None: only at the end.
        callbacks: Called with a `Report` in every report; one that returns bools stops
            these adapters there. `JsonLines` is one.
        checkpoint: A `Checkpoint`, or any object with `save(step, tree)` and
            `restore(like) -> (step, tree) | None`. What it restores is gone on from; as
            many batches are skipped. `hyper` and `key` must be those it was begun with;
            `steps` may grow for adapters that had not ended before others.
        save_every: Steps between saves, at least 1; None: only at the end.
        progress: Whether to show a bar of tqdm; None: if standard error is a terminal.

    Returns:
        A `Fitted`: states, metrics of every step, scores.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of range, numbers of adapters disagree, or a
            checkpoint cannot be gone on from; once training has begun, if the data ends
            before the steps are taken.

    Example:
        >>> import optax
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> def loss(params, batch, key):
        ...     return jnp.mean((batch @ params["w"] - 1) ** 2)
        >>> states = [tx.init(jax.random.key(i), params) for i in range(3)]
        >>> fitted = lrk.training.fit(
        ...     loss, tx, params, states, [jnp.ones((5, 4))] * 20,
        ...     optimizer=optax.adam, hyper={"learning_rate": [1e-3, 1e-2, 1e-1]},
        ...     steps=20, batch_axis=None,
        ... )
        >>> fitted.metrics["loss"].shape
        (20, 3)
        >>> bool(fitted.metrics["loss"][-1, 2] < fitted.metrics["loss"][0, 2])
        True

    Notes:
        Under `vmap` an adapter that has taken its steps is computed and dropped; once
        half of them have, the program is compiled anew for half as many. Calls with the
        same functions share their compiled programs. Of several processes each makes
        the same call, and is told of all adapters.
    """
    run = Run(
        program_of(
            loss,
            tx,
            optimizer,
            (batch_axis, accumulate, method, lift, dtype, remat, loss_scale, fused),
        ),
        cast(params, dtype),
        states,
        _limits(steps),
        hyper,
        key,
        narrow=not looped(method),
        batch_axis=batch_axis,
    )
    periods = _Periods(
        _period("every", every),
        _period("evaluate_every", evaluate_every),
        _period("save_every", save_every),
    )
    journal = _Journal(run, names, steps is not None, evaluate, callbacks, checkpoint)
    begun = journal.resume()
    total = run.last if steps is not None else None
    bar = progress_bar(progress, total, begun)
    found = batches_from(data, begun * accumulate)
    batches = Batches(found, accumulate, fused, batch_axis)
    try:
        _loop(run, journal, batches, periods, bar)
    finally:
        if bar is not None:
            bar.close()
    return journal.finish()


class _Periods(NamedTuple):
    """Steps between reports, evaluations and saves; None: only at the end."""

    report: int | None
    evaluate: int | None
    save: int | None

    def next(self, done: int) -> int:
        """The next step at which something is due."""
        return min(n * (done // n + 1) for n in self if n is not None)

    def due(self, done: int) -> tuple[bool, bool]:
        """Whether it is time to evaluate, and to save."""
        evaluate, save = (n is not None and done % n == 0 for n in self[1:])
        return evaluate, save


def _loop(
    run: Run,
    journal: "_Journal",
    batches: Batches,
    periods: _Periods,
    bar: Any,
) -> None:
    """Step and report until all adapters have taken their steps."""
    while run.done < run.last:
        stop = min(periods.next(run.done), run.last)
        while run.done < stop and (found := batches.take(stop - run.done)) is not None:
            run.advance(*found)
        ended = run.done < stop or (not journal.limited and batches.over)
        metrics, final = run.fetch(), ended or run.done >= run.last
        if metrics:
            show(bar, run.done, metrics, int(run.active.sum()))
            evaluated, saved = periods.due(run.done)
            journal.report(metrics, evaluated=final or evaluated, saved=final or saved)
        if ended:
            journal.ended()
            return
        run.narrow()


class _Journal:
    """What is told and kept of a run."""

    def __init__(
        self,
        run: Run,
        names: Sequence[str] | None,
        limited: bool,
        evaluate: Evaluate | None,
        callbacks: Sequence[Callback],
        checkpoint: Keeper | None,
    ) -> None:
        self.run, self.limited, self.evaluate = run, limited, evaluate
        self.callbacks, self.checkpoint = callbacks, checkpoint
        self.names = tuple(map(str, range(run.number) if names is None else names))
        if len(self.names) != run.number:
            raise ValueError(
                f"{_WHO}: expected {run.number} names, got {len(self.names)}."
            )
        self.metrics: list[dict[str, np.ndarray]] = []
        self.scores: list[tuple[int, dict[str, np.ndarray]]] = []
        self.start = time.perf_counter()

    def resume(self) -> int:
        """Go on from the last checkpoint, if there is one; returns its step."""
        if self.checkpoint is None:
            return 0
        like = self.run.kept()
        found = self.checkpoint.restore(like)
        if found is not None:
            leaves = jax.tree.leaves(found[1])
            tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
            self.run.resume(found[0], tree, self.names)
        return self.run.done

    def report(
        self, metrics: dict[str, np.ndarray], *, evaluated: bool, saved: bool
    ) -> None:
        """Evaluate, tell the callbacks, and save."""
        self.metrics.append(metrics)
        scores = self._score() if evaluated else {}
        report = Report(
            self.run.done,
            self.run.last if self.limited else None,
            self.names,
            metrics,
            scores,
            self.run.active,
            time.perf_counter() - self.start,
            self.run.state,
        )
        for callback in self.callbacks:
            which = callback(report)
            if which is not None:
                own = np.broadcast_to(np.asarray(which, bool), self.run.number)
                self.run.stop(own, self.run.done)
        over = self.run.last <= self.run.done  # a callback may have stopped them all
        if over and not evaluated:
            self._score()
        if (saved or over) and self.checkpoint is not None:
            self.checkpoint.save(self.run.done, self.run.kept())

    def _score(self) -> dict[str, np.ndarray]:
        """Evaluate all adapters as they are."""
        if self.evaluate is None:
            return {}
        found = self.evaluate(self.run.state())
        scores = {name: np.asarray(x) for name, x in gathered(dict(found)).items()}
        self.scores.append((self.run.done, scores))
        return scores

    def ended(self) -> None:
        """Refuse data that ends too early.

        Raises:
            ValueError: If steps were asked for.
        """
        if self.limited:
            raise ValueError(
                f"{_WHO}: the data ended after {self.run.done} of {self.run.last} "
                "steps. Pass itertools.cycle(batches), fewer steps, or steps=None."
            )

    def finish(self) -> Fitted:
        """What is left behind."""
        kept = self.run.whole()
        names = self.metrics[0] if self.metrics else {}
        scored = self.scores[0][1] if self.scores else {}
        return Fitted(
            State(kept.trainable, self.run.fixed),
            np.array(gathered(kept.step)),
            {n: np.concatenate([m[n] for m in self.metrics]) for n in names},
            {n: np.stack([own[n] for _, own in self.scores]) for n in scored},
            np.array([at for at, _ in self.scores], np.int64),
        )


def _limits(steps: Any) -> Any:
    """Steps of each adapter.

    Raises:
        ValueError: If one is negative.
    """
    if steps is None:
        return _FOREVER
    numbers = np.asarray(steps)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or (numbers < 0).any():
        raise ValueError(
            f"{_WHO}: steps must be ints of at least 0, one for all adapters or one "
            f"for each, got {steps!r}."
        )
    return numbers.astype(np.int32)


def _period(name: str, value: Any) -> int | None:
    """A number of steps.

    Raises:
        ValueError: If it is no int of at least 1.
    """
    if value is None and name != "every":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{_WHO}: {name} must be an int of at least 1, got {value!r}.")
    return value
