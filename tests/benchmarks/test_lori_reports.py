"""The reports of masks and merges, from small made-up records."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.record import Record, Records
from benchmarks.report import (
    Figure,
    Report,
    Table,
    Text,
    render_page,
    update_markdown,
)
from benchmarks.stats import Difference
from benchmarks.study.methods import HEADLINE
from benchmarks.study.singles import Options
from benchmarks.study.tasks import SUITES
from benchmarks.tables import _lori_mask_report as masks
from benchmarks.tables import _lori_merging_report as merging
from benchmarks.tables import _lori_merging_scores as scores
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_hypotheses import of_masks, of_merging
from benchmarks.tables._quickstart_figures import PROJECTIONS

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
TASKS = tuple(SUITES["tasks"])
LABELS = "01" * 10
DATA = {
    "classes": ["no", "yes"],
    "sizes": {s: {"used": 3, "of": 9} for s in ("head", "train", "valid", "test")},
    "licence": "none: made up",
    "source": "made up",
}
KEPT = {
    layer: dict.fromkeys(PROJECTIONS, share)
    for layer, share in (("4", 0.05), ("5", 0.15))
}


def guesses(right):
    """Answers of which the first `right` are right."""
    wrong = LABELS[right:].translate(str.maketrans("01", "10"))
    return LABELS[:right] + wrong


def record(row, seed, config, metrics):
    base = dataclasses.asdict(Options())
    own = {**base, "suite": "tasks", "seed": seed, **config}
    kept = {"commit": "unknown", "dirty": False, "device": {}, "versions": {}}
    return Record(
        "made_up", row, own, "", seed, metrics, {}, 1.5 + seed, "2026-01-01", "", **kept
    )


def predicted(right, **more):
    kinds = {"test": guesses(right), **{k: guesses(n) for k, n in more.items()}}
    return {"labels": LABELS, **kinds}


def of_method(name, right, seeds=(0, 1), tasks=TASKS):
    """Records of a method of the table of masks; `right` answers on each task."""
    found = []
    for task in tasks:
        for seed in seeds:
            metrics = {
                "accuracy": right / 20,
                "macro_f1": 0.5,
                "predictions": predicted(right),
                "rate": 0.006,
                "rates_tried": [0.5, 0.25, 1e30],
                "trained": 1234,
                "kept": KEPT,
                "data": DATA,
            }
            row, config = f"{name}-{task}-s{seed}", {"method": name, "task": task}
            found.append(record(row, seed, config, metrics))
    return found


def tables(blocks):
    return [block for block in blocks if isinstance(block, Table)]


def verdicts(hypotheses):
    return {h.name: h.verdict() for h in hypotheses}


def shown_rows(table):
    """Cells as they are shown, without the spaces that line them up."""
    return [[cell.strip() for cell in row] for row in table.text()]


# Words


def found(low, high):
    return Difference((low + high) / 2, low, high, 0.5)


@pytest.mark.parametrize(
    ("test", "low", "high", "mark"),
    [
        (words.above, 0.1, 2, 1), (words.above, -0.1, 2, 0), (words.above, -2, -1, -1),
        (words.below, -2, -0.1, 1), (words.below, 0.1, 2, -1),
        (words.within, -1, 0.9, 1), (words.within, -1.1, 0.5, 0),
        (words.within, 1.1, 2, -1), (words.within, -3, -1.1, -1),
        (words.no_cost, -0.9, 0.2, 1), (words.no_cost, -1.1, 0.2, 0),
        (words.no_cost, -0.4, -0.1, -1), (words.no_cost, 2, 3, 1),
        (words.no_gain, -0.2, 0.9, 1), (words.no_gain, -0.2, 1.1, 0),
        (words.no_gain, 0.1, 0.4, -1), (words.no_gain, -3, -2, 1),
        (words.short_of, -0.8, -0.1, 1), (words.short_of, -0.8, 0.1, -1),
        (words.short_of, -1.8, 0.1, 0), (words.short_of, 1, 2, -1),
    ],
)  # fmt: skip
def test_claims_are_read_off_intervals(test, low, high, mark):
    assert test(found(low, high)) == mark


def test_a_hypothesis_holds_only_if_all_of_its_comparisons_do():
    def verdict(*gaps):
        claims = [words.Claim("one", gap, words.above) for gap in gaps]
        return words.Hypothesis("H0", "text", claims).verdict()

    good, bad, open_ = found(1, 2), found(-2, -1), found(-1, 1)
    assert verdict(good, good) == "supported"
    assert verdict(good, open_) == "not supported"
    assert verdict(good, open_, bad) == "contradicted"
    assert verdict(bad, None) == "contradicted"
    assert verdict(good, None) == "undecided: rows are missing"
    assert verdict(None) == "not run"


def test_many_comparisons_are_counted_and_shown_by_their_ends():
    gaps = [found(i - 0.5, i + 0.5) for i in range(-3, 5)]
    claims = [words.Claim(f"m{i}", gap, words.above) for i, gap in enumerate(gaps)]
    text = words.Hypothesis("H0", "text", claims).figures()
    assert text == (
        "of 8 comparisons 4 better, 3 worse, in 1 no difference seen; "
        "m0 -3.0 [-3.5, -2.5] to m7 +4.0 [+3.5, +4.5]"
    )
    few = words.Hypothesis("H0", "text", claims[:1])
    assert few.figures() == "m0 -3.0 [-3.5, -2.5]"


def test_differences_pair_the_seeds_that_both_have():
    one = words.Rights((0, 2), {"t": np.array([[1, 1], [1, 0]])})
    two = words.Rights((2, 3), {"t": np.array([[0, 0], [1, 1]])})
    assert words.difference(one, two).difference == 50  # seed 2: one right of two
    assert words.difference(one, two._replace(seeds=(3, 4))) is None
    assert words.difference(one, None) is None
    start = words.Rights(None, {"t": np.array([[1, 1]])})
    assert words.difference(one, start).difference == -25


def test_a_seed_that_lacks_a_task_is_left_out():
    rows = of_method("lora", 15)
    whole = words.of_singles(Records(rows), TASKS)
    assert whole.seeds == (0, 1)
    assert whole.pooled().shape == (2, 80)
    assert words.of_singles(Records(rows[1:]), TASKS).seeds == (1,)
    assert words.of_singles(Records(rows[2:]), TASKS) is None


# Masks


def test_masks_of_nothing_say_so():
    blocks = masks.blocks(Records())
    assert any(isinstance(b, Text) and "Nothing to compare" in b.text for b in blocks)
    shown = tables(blocks)
    assert len(shown) == 6
    assert all("not run" in row for table in shown for row in table.text())
    assert len(shown[1].rows) == 1 + len(HEADLINE)
    assert len(shown[2].rows) == 11
    assert not any(isinstance(block, Figure) for block in blocks)


def test_verdicts_on_masks_are_computed():
    right = {
        "lora": 15, "lori-d": 15, "lori-s": 15, "random-leaf": 10, "random": 12,
        "gradient": 14, "smallest": 5, "other-task": 15, "redrawn": 15,
        "lora-twice": 12,
    }  # fmt: skip
    rows = [r for name, n in right.items() for r in of_method(name, n)]
    cells = {n: words.of_singles(Records(rows).where(method=n), TASKS) for n in right}
    assert verdicts(of_masks(cells, {})) == {
        "H1": "supported",  # the same answers
        "H2": "supported",
        "H3": "supported",
        "H4": "supported",
        "H5": "not supported",  # the same answers
        "H6": "not run",
        "H7": "contradicted",
    }
    text = masks.verdict(cells)
    assert "of 9 comparisons 0 better, 5 worse, in 4 no difference seen" in text
    assert "random, same counts per matrix: worse (-25.0 [" in text
    assert "DoRA" not in text  # was not run
    h2 = of_masks(cells, {})[1].figures()
    assert h2.startswith("LoRI-S minus random, same counts per matrix +25.0 [")


def test_densities_are_compared_on_their_own_tasks_and_common_seeds():
    two = ("trec", "sentiment_movie")
    rows = [*of_method("lori-s", 15), *of_method("lori-d", 15)]
    rows += of_method("density-0.5", 15, seeds=(1,), tasks=two)
    rows += of_method("density-0.01", 5, seeds=(1, 2), tasks=two)
    records = Records(rows)
    assert masks.swept_tasks(records) == two
    shown = tables(masks.blocks(records))
    density = shown[2]
    assert "Seeds that all have: 1." in density.caption
    assert len(density.columns) == 6
    cells = {row[0]: row for row in shown_rows(density)}
    assert cells["0.1"][2] == "–"
    assert cells["0.01"][2].startswith("-50.0 [")
    assert cells["0.9"][1] == "not run"
    h6 = next(row for row in shown[0].text() if row[0].startswith("H6"))
    assert h6[1] == "undecided: rows are missing"
    assert "LoRI-S, density 0.01 minus LoRI-S -50.0" in h6[2]
    rates = {row[0]: row for row in shown_rows(shown[4])}
    assert rates["LoRI-S, density 0.5"][1] == "–"
    assert rates["LoRI-S, density 0.5"][2] == "0.006 (0.500, 0.250, inf)"
    assert "3 trials for every method" in shown[4].caption


def test_masks_show_costs_headroom_and_figures():
    rows = [*of_method("lori-s", 15), *of_method("lori-d", 12)]
    start = of_method("start", 19, seeds=(0,))
    for own in start:
        own.metrics.pop("macro_f1")
    records = Records([*rows, *start])
    blocks = masks.blocks(records)
    headline = tables(blocks)[1]
    cells = {row[0]: row for row in shown_rows(headline)}
    dense, sparse = cells["LoRI-D"], cells["LoRI-S: largest |B|, all layers"]
    assert dense[-3:] == ["48", "1,234", "2.0"]
    assert sparse[-3:] == ["48 + 48", "1,234", "2.0"]
    assert dense[2].startswith("-15.0 [")
    first = shown_rows(headline)[0]
    assert float(first[-4]) == pytest.approx(0.950, abs=0.001)  # one wrong of twenty
    assert first[-3:] == ["–"] * 3
    assert "SMS spam 5.0" in headline.notes[1]
    figures = [block for block in blocks if isinstance(block, Figure)]
    assert len(figures) == 3  # density, and where masks keep: by layer, by task
    assert figures[1].alt.startswith("Most, 15.0 per cent, at layer 6")
    assert render_page("made up", blocks, records, base="").count("<svg") == 3


# Merges


def merged_rows(adapter, merge, right, seeds=(0, 1), fixed=None, scale=0.6):
    found = []
    for seed in seeds:

        def tasks(number):
            own = {"accuracy": 0.5, "macro_f1": 0.25, "predictions": predicted(number)}
            return {"mean": 0.5, "tasks": dict.fromkeys(TASKS, own)}

        metrics = {"scale": scale, **tasks(right)}
        if fixed is not None:
            metrics["at_fixed"] = {"weight": 0.4, **tasks(fixed)}
        config = {"kind": "merge", "merge": merge, "method": adapter, "scales": [0.6]}
        row = f"tasks-{merge}-{adapter}-s{seed}"
        found.append(record(row, seed, config, metrics))
    return found


def alone(adapter, right, off, seeds=(0, 1), **by_task):
    """Single rows; `by_task` sets the right answers of a task with the adapter."""
    found = []
    for task in TASKS:
        for seed in seeds:
            number = by_task.get(task, right)
            metrics = {
                "macro_f1": 0.75,
                "data": DATA,
                "predictions": predicted(number, off=off),
            }
            config = {"kind": "single", "method": adapter, "task": task}
            row = f"single-tasks-{adapter}-{task}-s{seed}"
            found.append(record(row, seed, config, metrics))
    return found


def joint_rows(right):
    rows, config = (
        merged_rows("lora", "none", right),
        {"suite": "tasks", "kind": "joint"},
    )
    return [
        dataclasses.replace(own, row=f"joint-{own.seed}", config=config) for own in rows
    ]


def board(rows):
    return scores.board(Records(rows), "tasks", tuple(merging.MERGES))


def test_merges_of_nothing_say_so():
    blocks = merging.blocks(Records())
    shown = tables(blocks)
    assert len(shown) == 2 * 7
    assert all("not run" in row for table in shown for row in table.text())
    said = [block.text for block in blocks if isinstance(block, Text)]
    assert said == ["Nothing to compare yet."] * 2
    assert not any(isinstance(block, Figure) for block in blocks)


def test_normalised_score_is_that_by_hand():
    # Off 10, alone 18, merged 14 of 20: half of the gain. SMS spam gains nothing.
    rows = [
        *alone("lora", 18, 10, sms_spam=10),
        *merged_rows("lora", "concat", 14, fixed=12),
    ]
    own = board(rows)
    counting = own.counting("lora")
    assert counting == TASKS[1:]
    share = scores.shares([own.parts(("concat", "lora"))], counting)
    value, low, high = scores.interval(share[0])
    assert value == pytest.approx(50)
    assert 0 < low < 50 < high < 100
    fixed = scores.shares([own.parts(("concat", "lora"), fixed=True)], counting)
    assert fixed[0, 0] == pytest.approx(25)
    assert scores.shares([own.parts(("concat", "lora"))], ()) is None
    assert own.counting("lori-d") == ()

    gains = shown_rows(tables(merging.blocks(Records(rows)))[3])
    assert gains[0][0] == "sum (concat)"
    assert gains[0][1].startswith("50 [")
    assert gains[0][2] == "not run"
    assert gains[-1][:3] == ["tasks that count", "3 of 4", "not run"]


def test_tasks_weigh_the_same_in_a_normalised_score():
    rows = [
        *alone("lora", 20, 10, trec=16),
        *merged_rows("lora", "concat", 16),
    ]
    own = board(rows)
    share = scores.shares([own.parts(("concat", "lora"))], own.counting("lora"))
    assert share[0, 0] == pytest.approx((60 + 100 + 60 + 60) / 4)


def test_verdicts_on_merges_are_computed():
    rows = joint_rows(19)
    for name, right in (("lora", 12), ("lori-d", 14), ("lori-s", 17)):
        rows += alone(name, 18, 10)
        rows += merged_rows(name, "concat", right)
        rows += merged_rows(name, "linear", right - 2)
        for merge in ("magnitude", "ties", "dare", "dare-ties", "della", "breadcrumbs"):
            rows += merged_rows(name, merge, right)
        for merge in ("tsv", "iso", "iso-cts", "core"):
            rows += merged_rows(name, merge, right + 2)
    own = board(rows)
    assert verdicts(of_merging(own)) == {
        "H8": "supported",
        "H9": "supported",
        "H10": "supported",
        "H11": "supported",
        "H12": "supported",
        "H13": "contradicted",  # 17 + 2 of 20 is what the joint adapter has
    }
    h8 = of_merging(own)[0].figures()  # 4/8 and 7/8 of the gain against 2/8
    assert "LoRI-D minus LoRA, in per cent of the gain, +25.0 [" in h8
    assert "LoRI-S minus LoRA, in per cent of the gain, +62.5 [" in h8
    text = merging.verdict(own)
    assert "LoRA, against its sum: better: Core Space, TIES inside (+10.0 [" in text
    assert "worse: linear (PEFT, cross terms) (-10.0 [" in text


def test_merges_show_scales_fixed_weights_and_tasks():
    rows = [*alone("lora", 18, 10), *joint_rows(20)]
    rows += merged_rows("lora", "concat", 14, fixed=12)
    interference = {"cosine": 0.31, "overlap": 0.4, "conflict": 0.375}
    config = {"kind": "interference", "method": "lora"}
    rows.append(record("interference", 0, config, interference))
    records = Records(rows)
    blocks = merging.blocks(records)
    shown = tables(blocks)
    accuracy = {row[0]: row for row in shown_rows(shown[1])}
    assert accuracy["sum (concat)"][4] == "0.6 / – / –"
    assert accuracy["sum (concat)"][1].startswith("70.0 [")
    fixed = accuracy["sum (concat), at the authors' weight"]
    assert fixed[1].startswith("60.0 [")
    assert fixed[4] == "0.4 / – / –"
    assert accuracy["joint: one LoRA for all tasks"][2:] == ["–"] * 3
    assert accuracy["off: the heads, no adapter"][1].startswith("50.0 [")
    paired = {row[0]: row for row in shown_rows(shown[2])}
    assert paired["single"][1].startswith("+20.0 [")
    assert paired["joint"][1].startswith("+30.0 [")
    by_task = shown_rows(shown[4])[0]
    assert by_task[:2] == ["SMS spam", "LoRA"]
    assert by_task[2:] == ["50.0", "50.0", "90.0", "70.0", "20.0", "0.750", "0.250"]
    assert shown_rows(shown[5])[0] == ["LoRA", "0.310", "0.400", "0.375"]
    figures = [block for block in blocks if isinstance(block, Figure)]
    assert len(figures) == 1
    assert "concat 70.0, linear not run" in figures[0].alt
    assert render_page("made up", blocks, records, base="").count("<svg") == 1


# The page


@pytest.mark.parametrize(
    ("name", "blocks"), [("lori_mask", masks), ("lori_merging", merging)]
)
def test_tables_go_onto_the_page_of_the_study(name, blocks):
    page = (DOCS / "lori.md").read_text()
    entry = runner.find(name)
    report = Report(entry, blocks.blocks(Records()), Records(), [], smoke=False)
    text = update_markdown(report, page)
    assert "No records yet" in text
    assert update_markdown(report, text) == text


@pytest.mark.parametrize(
    "name",
    [
        "lori_mask",
        "lori_merging",
        "lori_continual",
        "lori_projection",
        "shared_private",
    ],
)
def test_the_page_has_the_hypotheses_of_the_tables_word_for_word(name):
    page = " ".join((DOCS / "lori.md").read_text().replace("\n- H", ". H").split())
    doc = " ".join(runner.find(name).doc.split())
    told = re.search(r"before the run\. (H.*?)\. Command:", doc)[1]
    for one in re.split(r"\. (?=H\d)", told):
        assert one in page
