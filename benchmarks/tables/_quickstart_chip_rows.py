"""Rows of the quickstart's chip: one for each task, all from one chip."""

import time
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.tables import _quickstart_score as scoring
from benchmarks.tables._quickstart_chip import METHOD, Outcome, device, outcome
from benchmarks.tables._quickstart_tasks import TITLES
from benchmarks.tables._quickstart_work import Work


def chip_rows(work: Work, seed: int) -> None:
    """Deploys the merge to one chip, heals it, and writes the missing rows."""
    session, given = work.session, {}
    for name in TITLES:
        own = work.given("chip", name, seed)
        if session.row(f"chip-{name}-s{seed}", **own) is None:
            given[name] = own
    if not given:
        return
    begin = time.perf_counter()
    merged = {
        name: session.row(f"{METHOD}-{name}-s{seed}", **work.given(METHOD, name, seed))
        for name in TITLES
    }
    lacking = [name for name, record in merged.items() if record is None]
    if lacking:
        raise RuntimeError(f"quickstart: no {METHOD} rows of {lacking} to deploy.")
    weight = next(r.get("merge_weight") for r in merged.values() if r is not None)
    found = outcome(work, weight, seed)
    seconds = (time.perf_counter() - begin) / len(TITLES)
    for task in work.tasks:
        if task.name not in given:
            continue
        whole = merged[task.name]
        before = "" if whole is None else whole.metrics["predictions"]["merged"]
        session.save(
            f"chip-{task.name}-s{seed}",
            _metrics(work, found, task.name, before, weight),
            config=given[task.name],
            series={"loss": found.losses},
            seconds=seconds,
            seed=seed,
        )


def _metrics(
    work: Work, found: Outcome, task: str, before: str, weight: float
) -> dict[str, Any]:
    """What a record says of one task."""
    config, choice = work.config, found.choice
    own = next(t for t in work.tasks if t.name == task).parts["test"].labels
    labels = own[-config.chip_test :]
    guesses = {"merged": scoring.numbers(before)[-len(labels) :]}
    guesses |= {kind: by_task[task] for kind, by_task in found.guesses.items()}
    names = ("p_lrs", "p_hrs", "g_min", "g_max")
    used = device(config, choice.rate)
    return {
        "device": {name: getattr(used, name) for name in names},
        "rate": choice.rate,
        "valid_by_rate": choice.tried,
        "merge_weight": weight,
        "numbers": found.numbers,
        "block_seconds": found.seconds,
        "accuracy": {
            kind: float(np.mean(guess == labels)) for kind, guess in guesses.items()
        },
        "healed_minus_head": stats.paired_bootstrap(
            guesses["healed"] == labels, guesses["head"] == labels
        )._asdict(),
        "predictions": {
            "labels": scoring.digits(labels),
            **{kind: scoring.digits(guess) for kind, guess in guesses.items()},
        },
    }
