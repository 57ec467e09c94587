"""What training tells while it runs: reports, JSON lines, a progress bar."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from lowrank._base import State


class Report(NamedTuple):
    """What a callback of `fit` is told.

    Attributes:
        step: Steps taken so far.
        steps: Steps in all, or None if the data decides.
        names: Names of the adapters.
        metrics: By name, `[steps since the last report, adapters]`; NaN where an
            adapter had taken its steps already.
        scores: What `evaluate` gave at this step, by name, `[adapters]`; empty if it
            was not its turn.
        active: Which adapters go on, bool `[adapters]`.
        seconds: Wall time since the start of `fit`.
        state: Called without arguments, a copy of the stacked state as it is now.
    """

    step: int
    steps: int | None
    names: tuple[str, ...]
    metrics: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    active: np.ndarray
    seconds: float
    state: Callable[[], State]


@runtime_checkable
class Callback(Protocol):
    """A function that `fit` calls with a `Report`.

    Example:
        >>> def stop_the_hopeless(report):
        ...     return report.metrics["loss"][-1] > 10.0
    """

    def __call__(self, report: Report) -> Sequence[bool] | np.ndarray | None:
        """What to do; returns which adapters are to stop here, or None."""
        ...


@runtime_checkable
class Keeper(Protocol):
    """Where `fit` keeps what it needs to go on: anything with these two methods."""

    def save(self, step: int, tree: Any) -> Any:
        """Keep a pytree of arrays under a step."""
        ...

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The last step and pytree kept, of the structure of `like`, or None."""
        ...


def means(report: Report) -> list[dict[str, Any]]:
    """One row for each adapter that took a step since the last report.

    Args:
        report: What a callback is told.

    Returns:
        Rows with `step`, `adapter`, `seconds`, the mean of each metric over the steps
        since the last report, and the scores as `eval/name`; plain numbers and lists.

    Example:
        >>> import numpy as np
        >>> report = lrk.training.Report(
        ...     2, 4, ("x", "y"), {"loss": np.asarray([[3.0, np.nan], [1.0, np.nan]])},
        ...     {"accuracy": np.asarray([0.5, 0.25])}, np.asarray([True, False]), 1.0,
        ...     lambda: None,
        ... )
        >>> [(row["adapter"], row["loss"]) for row in lrk.training.means(report)]
        [('x', 2.0), ('y', None)]
    """
    rows = []
    for i, name in enumerate(report.names):
        own = {key: values[:, i] for key, values in report.metrics.items()}
        taken = ~np.isnan(own["loss"]) if "loss" in own else slice(None)
        row: dict[str, Any] = {"step": report.step, "adapter": name}
        row["seconds"] = round(report.seconds, 3)
        for key, values in own.items():
            kept = values[taken]
            row[key] = _plain(kept.mean(0) if len(kept) else np.nan)
        row |= {f"eval/{key}": _plain(x[i]) for key, x in report.scores.items()}
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """Numbers and lists for JSON; what is not finite is None."""
    listed = np.asarray(value, np.float64).tolist()
    if isinstance(listed, list):
        return [_plain(x) for x in listed]
    return listed if math.isfinite(listed) else None


class JsonLines:
    """A callback that appends one JSON object for each adapter and report to a file.

    The file can be read while training goes on: `pandas.read_json(path, lines=True)`.
    What is not finite is `null`. A run that is resumed appends.

    Args:
        path: The file; folders above it are made.

    Example:
        >>> log = lrk.training.JsonLines("/tmp/lowrank-example/metrics.jsonl")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __call__(self, report: Report) -> None:
        """Append the rows of a report; of several processes the first does."""
        if jax.process_index():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in means(report)]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)


def progress_bar(wanted: bool | None, total: int | None, start: int) -> Any:
    """A bar of tqdm; None where none is wanted, or nobody would see it.

    Raises:
        ValueError: If one is wanted and tqdm is missing.
    """
    there = importlib.util.find_spec("tqdm") is not None
    if wanted and not there:
        raise ValueError(
            "training.fit: progress=True needs tqdm. Install lowrank[training], or "
            "leave progress out."
        )
    if wanted is False or not there or (wanted is None and not sys.stderr.isatty()):
        return None
    tqdm = importlib.import_module("tqdm.auto" if wanted else "tqdm").tqdm
    return tqdm(total=total, initial=start, desc="fit", dynamic_ncols=True)


def show(bar: Any, step: int, metrics: Mapping[str, np.ndarray], active: int) -> None:
    """Move a bar to a step, with the mean of the last losses beside it."""
    if bar is None:
        return
    last = metrics["loss"][-1]
    bar.set_postfix_str(
        f"loss {np.nanmean(last):.4g}, {active} running"
        if np.isfinite(last).any()
        else ""
    )
    bar.update(step - bar.n)
