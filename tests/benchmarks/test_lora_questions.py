"""LoRA's own questions: what is read off changes, and the report."""

import pathlib

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records
from benchmarks.study import methods as ways
from benchmarks.tables import _lora_questions_measure as measure
from benchmarks.tables import _lora_questions_report as reporting
from benchmarks.tables import lora_questions

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"


def test_shared_directions_are_told_one_by_one():
    basis = np.eye(12, dtype=np.float32)
    one = basis[:, [0, 1, 2]] * np.array([3.0, 2.0, 1.0], np.float32)
    two = basis[:, [0, 5, 2]] * np.array([3.0, 2.0, 1.0], np.float32)
    np.testing.assert_allclose(measure._shared([(one, two)]), [1, 0, 1], atol=1e-6)


def test_a_change_is_read_beside_its_weight():
    w = {"w": np.diag(np.array([4.0, 2.0, 0.5, 0.25], np.float32))}
    change = {"w": np.zeros((4, 4), np.float32)}
    change["w"][2, 2] = 3.0
    found = measure.beside(w, change, 1)
    assert found["amplification"] == pytest.approx(6.0)  # 3 over the weight's 0.5
    assert found["amplification, own"] == pytest.approx(0.75)  # over its largest, 4
    assert found["effective"] == pytest.approx(0.25, rel=1e-5)
    assert found["cosine"] == pytest.approx(0.5 / np.linalg.norm(w["w"]), rel=1e-5)


def test_places_name_the_weights_that_they_say():
    shapes = {"a": np.zeros((4, 8)), "b": np.zeros((8, 4))}
    names = ("attention/self/query", "attention/self/value", "attention/output/dense")
    names += ("intermediate/dense", "output/dense")
    tree = {f"layer/4/{name}/kernel": shapes for name in names}
    counts = {
        name: sum(
            bool(np.any(own["b"]))
            for own in ways.keep(ways.QUESTIONS[f"{name}-r{rank}"], tree, None).values()
        )
        for name, (_, _, rank) in ways.PLACES.items()
    }
    assert counts == {
        "query": 1, "key": 0, "value": 1, "out": 1,
        "query-value": 2, "attention": 3, "wide": 2, "all": 5,
    }  # fmt: skip


def _record(row, metrics, **config):
    return Record(
        "lora_questions", row, config, "", 0, metrics, {}, 1.0, "2026-01-01", "",
        versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def _rows(first, last, small, large):
    shares = {"other seed, change": [first, *[0.3] * 6, last]}
    own = {
        p: dict.fromkeys(reporting.KINDS, [0.1] * 8) | shares
        for p in ("query", "value")
    }
    row = dict.fromkeys(reporting.COLUMNS, 0.6)
    changes = {
        "all-r4": row | {"amplification": small},
        "all-r64": row | {"amplification": large},
        "full": row,
    }
    published = dict.fromkeys(reporting.PUBLISHED, row | {"cosine": 0.02})
    return Records(
        [
            _record("directions-trec-s0", own, kind="directions"),
            _record("change-trec-s0", changes, kind="change"),
            _record("published", published, kind="published"),
        ]
    )


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [
        ((0.8, 0.1, 9.0, 2.0), ["supported"] * 3),
        ((0.4, 0.1, 9.0, 2.0), ["contradicted", "supported", "supported"]),
        ((0.8, 0.1, 2.0, 9.0), ["supported", "contradicted", "supported"]),
    ],
)
def test_verdicts_follow_the_numbers(numbers, verdicts):
    table = reporting.verdicts(_rows(*numbers))
    assert [row[1] for row in table.rows] == verdicts


def test_the_report_stands_without_records():
    tables = [b for b in lora_questions.report(Records([])) if isinstance(b, Table)]
    assert len(tables) == 6
    assert "<!-- records:lora_questions -->" in (DOCS / "lora.md").read_text()
