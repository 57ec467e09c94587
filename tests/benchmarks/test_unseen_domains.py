"""Unseen domains: typos, whose texts are seen, what is lost, the report."""

import pathlib

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records
from benchmarks.study import methods as ways
from benchmarks.study.encoder import load_cut
from benchmarks.study.unseen import METHODS, with_typos
from benchmarks.tables import _unseen_domains_report as reporting
from benchmarks.tables import unseen_domains

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
DOMAINS = ("sentiment_movie", "sentiment_amazon")


def test_typos_swap_letters_within_words():
    text = "a plain text, of words"
    (same,) = with_typos([text], share=0.0)
    (typed,) = with_typos([text], share=1.0)
    assert same == text
    assert typed == "a lpian ettx, fo owdrs"
    assert with_typos([text] * 2) == with_typos([text] * 2)


def test_the_serial_adapter_stands_where_layers_write():
    cut = load_cut(1, synthetic=True)
    tx = ways.transform(METHODS["serial"], cut, 2)
    paths = ways.lrk.select_paths(tx, cut.params)
    assert [path.split("/", 2)[2] for path in paths] == [
        "attention/output/dense/kernel",
        "output/dense/kernel",
    ]


def _record(name, left, seen, unseen, typos):
    """20 texts of each domain, so many of them right."""

    def marks(right, mistyped):
        labels = "1" * 20
        return {
            "labels": labels,
            "test": "1" * right + "0" * (20 - right),
            "typos": "1" * mistyped + "0" * (20 - mistyped),
        }

    domains = {
        task: marks(*(unseen, typos) if task == left else (seen, typos))
        for task in DOMAINS
    }
    metrics = {"domains": domains, "trained": 7}
    config = {"method": name, "left": left, "shots": 64, "layers": 1, "rank": 2}
    config |= {"synthetic": True, "steps": 1, "batch": 1, "train": 1, "head": 1}
    config |= {"valid": 1}
    return Record(
        "unseen_domains", f"{name}-{left}", config, "", 0, metrics, {}, 1.0, "2026", "",
        versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def records():
    numbers = {"probe": (12, 12, 8), "lori-s": (18, 17, 13), "full": (20, 12, 12)}
    return Records(
        [_record(n, left, *own) for n, own in numbers.items() for left in DOMAINS]
    )


def test_seen_and_unseen_texts_are_told_apart(records):
    seen, unseen = (
        reporting.rights(records, "full", 64, where).pooled()
        for where in ("seen", "unseen")
    )
    assert (seen.mean(), unseen.mean()) == (1.0, 0.6)
    assert reporting.rights(records, "lora", 64, "seen") is None


def test_what_is_lost_is_compared(records):
    found = reporting._more_lost(
        records, "full", 64, ("seen", "test"), ("unseen", "test"), "lori-s"
    )
    assert found.difference == pytest.approx(100 * ((1.0 - 0.6) - (0.9 - 0.85)))
    assert found.low <= found.difference <= found.high
    verdicts = {h.name: h.verdict() for h in reporting.expected(records, 64, 64)}
    assert verdicts["D3"] == "supported"
    assert verdicts["D2"] == "undecided: rows are missing"


def test_the_report_stands_without_records():
    tables = [b for b in unseen_domains.report(Records([])) if isinstance(b, Table)]
    assert len(tables) == 5
    assert "<!-- records:unseen_domains -->" in (DOCS / "unseen.md").read_text()
    assert all(np.size(t.rows) for t in tables)
