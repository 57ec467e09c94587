"""Learning rates by rank: the scales, runs mapped and alone, the report."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import runner
from benchmarks.blocks import Figure, Table
from benchmarks.record import Record, Records
from benchmarks.runner import Session
from benchmarks.study import rank_sweep as sweeping
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _lr_rank_report as reporting
from benchmarks.tables import lr_rank

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
RANKS, RATES = (4, 8, 16), (0.001, 0.002, 0.004, 0.008)


def test_both_rules_meet_at_one_rank():
    at = {rule: sweeping.scale(rule, sweeping.MEETING) for rule in sweeping.RULES}
    assert set(at.values()) == {sweeping.SCALE}
    assert sweeping.scale("rank", 32) == sweeping.SCALE / 4
    assert sweeping.scale("root", 32) == sweeping.SCALE / 2


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Tiny runs on made-up texts."""
    options = dataclasses.replace(Options(), **Options().tiny() | {"rank": 2})
    session = Session("lr_rank", tmp_path_factory.mktemp("results"), smoke=True)
    return Singles(options, session, "tasks")


def test_a_mapped_run_is_the_run_at_its_own_rank(work):
    scale = 2.0  # that of the studies, which the single run has
    runs = [(scale, 2, 1, 0.01), (scale, 4, 0, 0.01)]
    found = sweeping.sweep(work, "trec", (2, 4), runs)
    state, trained, _ = work._run("lora", "trec", 1, 0.01)
    head = (trained.heads[0][0], trained.heads[1][0])
    alone = {
        split: work.logits("lora", state, head, "trec", split)
        for split in ("valid", "test")
    }
    np.testing.assert_allclose(found.valid[0], alone["valid"], rtol=1e-4, atol=1e-5)
    assert np.mean(found.test[0] == alone["test"].argmax(axis=1)) > 0.9
    assert np.abs(found.valid[1] - alone["valid"]).max() > 1e-3


def test_ranks_are_filled_up_with_zeros(work):
    seeds = len(work.options.seeds)
    states = sweeping.padded(work, (1, 3), "trec")
    for own in states.trainable.values():
        assert own["a"].shape[::2] == (2 * seeds, 3)
        assert not np.any(own["a"][:seeds, :, 1:])
        assert np.all(np.any(own["a"][seeds:], axis=1))
    places = {
        sweeping._place((1, 3), work.options.seeds, r, s)
        for r in (1, 3)
        for s in (0, 1)
    }
    assert places == set(range(2 * seeds))
    assert jax.tree.leaves(states)[0].shape[0] == 2 * seeds


# --- the report ----------------------------------------------------------------------


def _record(rule, rank, seed, best, low, right):
    """A row whose loss is least at one rate, by so much, and right in so many texts."""
    losses = [low + 0.5 * abs(i - best) + 0.001 * seed for i in range(len(RATES))]
    guesses = ["1" * right + "0" * (200 - right)] * len(RATES)
    config = {"rule": rule, "rank": rank, "seed": seed, "rates": list(RATES)}
    config |= {"largest": max(RANKS), "layers": 1, "synthetic": True, "steps": 1}
    config |= {"batch": 1, "train": 1, "head": 1, "valid": 1, "test": 1}
    metrics = {
        "valid_loss": losses,
        "valid_accuracy": [0.5] * len(RATES),
        "labels": "1" * 200,
        "test": guesses,
    }
    return Record(
        "lr_rank", f"{rule}-r{rank}-s{seed}", config, "", seed, metrics, {}, 1.0,
        "2026-01-01", "", versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def _records(places, lows, rights):
    """Both rules, two seeds: by rank the best rate, the loss there, what is right."""
    return Records(
        [
            _record(rule, rank, seed, places[rule][i], lows[rule], rights[rule][i])
            for rule in places
            for i, rank in enumerate(RANKS)
            for seed in (0, 1)
        ]
    )


MOVING, STILL = (0, 1, 2), (1, 1, 1)


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        (
            _records(
                {"rank": MOVING, "root": STILL},
                {"rank": 0.9, "root": 0.5},
                {"rank": (150, 160, 190), "root": (150, 160, 190)},
            ),
            "supported",
        ),
        (
            _records(
                {"rank": STILL, "root": MOVING},
                {"rank": 0.2, "root": 0.9},
                {"rank": (150, 150, 190), "root": (180, 170, 120)},
            ),
            "contradicted",
        ),
    ],
    ids=["as claimed", "the other way round"],
)
def test_verdicts_follow_the_records(records, wanted):
    grids = {rule: reporting.grid(records, rule) for rule in reporting.RULES}
    assert [h.verdict() for h in reporting.expected(grids)] == [wanted] * 4


def test_the_drift_is_a_slope_of_doublings():
    records = _records(
        {"rank": MOVING, "root": STILL},
        {"rank": 0.5, "root": 0.5},
        {"rank": (9, 9, 9), "root": (9, 9, 9)},
    )
    one, two = (reporting.grid(records, rule) for rule in ("rank", "root"))
    assert reporting.drift(one, one.losses) == pytest.approx(1)
    assert reporting.drift(two, two.losses) == pytest.approx(0)
    blocks = lr_rank.report(records)
    table = next(b for b in blocks if isinstance(b, Table) and "best rate" in b.columns)
    assert [row[2] for row in table.rows[:3]] == ["0.001*", "0.002", "0.004"]
    assert sum(isinstance(block, Figure) for block in blocks) == 2


def test_the_report_stands_without_records():
    tables = [b for b in lr_rank.report(Records([])) if isinstance(b, Table)]
    assert len(tables) == 3
    assert "<!-- records:lr_rank -->" in (DOCS / "lr_rank.md").read_text()
