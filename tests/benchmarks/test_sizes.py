"""The tables of sizes: reports from made-up rows, verdicts, and a run of each."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records, read_folder
from benchmarks.runner import Session
from benchmarks.study.scores import digits
from benchmarks.tables import _intrinsic_text_report as text_report
from benchmarks.tables import _low_rank_fails_report as fails_report
from benchmarks.tables import _low_rank_fails_shares as fails_shares
from benchmarks.tables import _low_rank_fails_verdicts as fails_verdicts
from benchmarks.tables import _sizes_curves as curves
from benchmarks.tables import _sizes_report as sizes_report
from benchmarks.tables import _sizes_rules as rules
from benchmarks.tables import _sizes_work as sizes_work
from benchmarks.tables import intrinsic_text, low_rank_fails, sizes
from lowrank.subspace import IntrinsicDimension

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
TABLES = {"intrinsic_text": intrinsic_text, "sizes": sizes}
TABLES |= {"low_rank_fails": low_rank_fails}


def row(way, weights, task, size, seed, metrics, series=None):
    config = {"way": way, "weights": weights, "task": task, "size": size}
    config |= {"layers": 1, "train": 8, "valid": 8, "steps": 4, "batch": 2}
    config |= {"context": 8, "pretraining": 4, "pretraining_batch": 2, "test": 8}
    name = f"{way}-{weights}-{task}-n{size}-s{seed}"
    return Record(
        "t", name, config | {"synthetic": True}, "", seed, metrics, series or {}, 1.0,
        "2026", "", versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def texts(way, weights, task, size, share, numbers=100):
    """Two seeds of 20 texts, so many of them right."""
    right = digits(np.arange(20) < 20 * share)
    metrics = {"accuracy": share, "right": right, "trained": numbers}
    return [row(way, weights, task, size, seed, metrics) for seed in (0, 1)]


def verdicts(table):
    return {r[0].split(":")[0]: r[1] for r in table.rows}


@pytest.mark.parametrize("name", list(TABLES))
def test_reports_stand_without_records(name):
    page = {"low_rank_fails": "low_rank_fails.md"}.get(name, f"{name}.md")
    tables = [b for b in TABLES[name].report(Records([])) if isinstance(b, Table)]
    assert len(tables) >= 4
    assert all(np.size(t.rows) for t in tables)
    assert f"<!-- records:{name} -->" in (DOCS / page).read_text()


# --- text


def text_rows(fresh_at=0.9):
    found = []
    for task in text_report.TASKS:
        for weights, full, middle in (("pretrained", 0.9, 0.85), ("fresh", 0.8, 0.4)):
            found += texts("full", weights, task, 1, full, 100_000)
            found += texts("head", weights, task, 1, 0.5)
            for way in ("did", "said"):
                found += texts(way, weights, task, 50, 0.2)
                found += texts(way, weights, task, 100, middle)
                found += texts(way, weights, task, 400, fresh_at)
            found += texts("lora", weights, task, 1, 0.85)
            found += texts("lora", weights, task, 4, 0.9)
    return Records(found)


def test_text_needs_are_read_off():
    records = text_rows()
    found = text_report.local(records, "did", "pretrained", "trec")
    assert found.tested == 100
    assert found.interpolated == pytest.approx(50 + 50 * (0.81 - 0.2) / 0.65)
    fresh = text_report.local(records, "did", "fresh", "trec")
    assert fresh.interpolated == pytest.approx(100 + 300 * (0.72 - 0.4) / 0.5)
    assert text_report.overall(records, "did", "fresh", "trec").interpolated > (
        fresh.interpolated
    )
    gain = text_report.of_gain(records, "lora", "pretrained", "trec")
    assert gain.tested == 4  # 0.85 is 7/8 of the gain


def test_text_verdicts_follow_the_numbers():
    found = verdicts(text_report.blocks(text_rows())[1])
    assert found == {
        "I1": "supported",
        "I2": "not contradicted",  # equal: intervals meet
        "I3": "supported",  # 97 of 100,000
        "I4": "supported",
        "I5": "not supported",
    }


# --- decoders


def decoder_rows(large=300):
    """Losses: two sizes, one with two checkpoints and random weights."""
    found = []
    for name, weights, start, full in (
        ("w8x1-step0", 1000, 4.0, 2.0), ("w8x1-step2", 1000, 3.0, 2.0),
        ("w8x1-step4", 1000, 2.5, 2.0), ("w16x1-step4", 4000, 2.0, 1.5),
    ):  # fmt: skip
        losses = {"loss": start, "loss_novels": start, "weights": weights}
        found.append(row("start", name, "dialogue", 0, 0, losses))
        gain = start - full
        middle = {"w8x1-step4": 0.95, "w8x1-step2": 0.8}.get(name, 0.5)
        if name.startswith("w16") and large == 100:
            middle = 0.99
        for seed in (0, 1):
            parts = {("full", 1): 1.0, ("did", 10): 0.1, ("did", 100): middle}
            parts |= {("did", 300): 1.0, ("lora", 1): 0.5, ("lora", 2): 0.95}
            for (way, size), part in parts.items():
                metrics = {"loss": start - gain * part, "trained": size}
                found.append(row(way, name, "dialogue", size, seed, metrics))
    for name in ("w8x1-step4", "w16x1-step4"):
        for way, last in (("ranks", 0.4), ("pretraining ranks", 0.6)):
            series = {"steps": [2, 4], "effective": [0.3, last]}
            series |= {"stable": [0.1, 0.1], "relative": [0.1, 0.2]}
            found.append(row(way, name, "dialogue", 1, 0, {}, series))
    return Records(found)


def test_a_decoder_needs_a_share_of_its_gain_or_one_loss():
    records = decoder_rows()
    name = "w8x1-step4"
    found = curves.local(records, "did", name)
    assert found.tested == 100
    assert found.interpolated == pytest.approx(10 + 90 * 0.8 / 0.85)
    level = curves.level(records, name)
    assert level == pytest.approx(2.05)
    other = curves.overall(records, "did", "w16x1-step4", level)
    assert (other.tested, other.interpolated) == (0, 0)
    early = curves.overall(records, "did", "w8x1-step2", level)
    assert early.interpolated == pytest.approx(100 + 200 * 0.15 / 0.2)


def test_decoder_verdicts_follow_the_numbers():
    names = curves.lasts(decoder_rows())
    assert names == ["w8x1-step4", "w16x1-step4"]
    assert len(curves.of_middle(decoder_rows())) == 3
    found = verdicts(sizes_report.blocks(decoder_rows())[1])
    assert found == {
        "S1": "supported",  # 9.5 % and 6.5 %
        "S2": "contradicted",
        "S3": "not contradicted",
        "S4": "supported",
        "S5": "supported",
        "S6": "supported",
    }
    less = verdicts(sizes_report.blocks(decoder_rows(large=100))[1])
    assert less["S2"] == "supported"


def test_the_rank_of_a_change_is_a_share_of_its_width():
    own = {"q_proj": {"kernel": np.eye(4, dtype=np.float32)}}
    start = {"model": {"layers": {"0": {"attn": own}}}}
    kernel = np.eye(4, dtype=np.float32)
    kernel[0, 0] += 2.0
    after = {"model": {"layers": {"0": {"attn": {"q_proj": {"kernel": kernel}}}}}}
    found = sizes_work.change(start, after)
    assert found["effective"] == pytest.approx(0.25)
    assert found["relative"] == pytest.approx(1.0)


def dimension(value, low=None, high=None, threshold=0.9):
    low, high = (value if x is None else x for x in (low, high))
    return IntrinsicDimension(value, value, low, high, threshold)


NOT = dimension(math.inf)


def test_all_weights_cap_a_local_dimension():
    assert rules.capped(dimension(50, 40, math.inf), 100)[1:4] == (50, 40, 100)
    assert rules.capped(NOT, 100)[:4] == (100,) * 4
    assert rules.falls([NOT, NOT]) == [0]
    ends = [rules.capped(NOT, n) for n in (100, 200)]
    assert rules.falls(ends) == [-1]
    shares = [curves.scaled(own, n) for own, n in zip(ends, (100, 200), strict=True)]
    assert rules.falls(shares) == [0]  # all of both
    nothing = dimension(math.inf, threshold=-0.1)  # all weights gain nothing
    assert rules.capped(nothing, 100) == nothing
    assert rules.falls([nothing, dimension(5)]) == [0]
    assert rules.capped(None, 100) is None


def test_pairs_that_neither_reaches_are_left_out_and_counted():
    low, high = dimension(10), dimension(20)
    assert rules.falls_where_reached([NOT, NOT, high, low]) == ("supported", 1)
    assert rules.falls_where_reached([NOT, NOT, low, high]) == ("contradicted", 1)
    assert rules.falls_where_reached([NOT, NOT]) == ("undecided: not reached", 1)
    assert rules.falls_where_reached([]) == (None, 0)
    assert rules.falls_where_reached([high, None])[0] is None


def test_no_more_is_no_support_where_intervals_meet():
    low, high, wide = dimension(10), dimension(20), dimension(15, 5, 25)
    assert rules.no_more([(low, high)]) == "supported"
    assert rules.no_more([(low, high), (low, wide)]) == "not contradicted"
    assert rules.no_more([(high, low), (low, wide), (NOT, NOT)]) == "contradicted"
    assert rules.no_more([(NOT, low)]) == "contradicted"
    assert rules.no_more([(low, NOT)]) == "supported"
    assert rules.no_more([(low, high), (NOT, NOT)]) == "undecided: not reached"
    assert rules.no_more([(low, high), (None, low)]) == "undecided: rows are missing"
    assert rules.no_more([]) is None


def test_a_report_counts_the_pairs_that_it_leaves_out():
    def less(r):
        way, weights = r.config["way"], r.config["weights"]
        return way != "did" or weights not in ("w8x1-step0", "w8x1-step2")

    known = decoder_rows()
    far = [
        row("did", name, "dialogue", size, seed, {"loss": 2.9, "trained": size})
        for name in ("w8x1-step0", "w8x1-step2")
        for size in (10, 100, 300)
        for seed in (0, 1)
    ]
    table = sizes_report.blocks(Records([*filter(less, known), *far]))[1]
    fourth = next(r for r in table.rows if r[0].startswith("S4"))
    assert fourth[1] == "supported"
    assert fourth[2].endswith("neither is reached: 1")


def test_all_ways_and_ranks_have_as_many_rates():
    assert rules.lora_rates((1e-3, 2e-3), 8) == (1e-3, 2e-3)
    assert rules.lora_rates((1e-3,), 2) == pytest.approx((2e-3,))
    c, d = sizes.Config(), low_rank_fails.Config()
    assert len(c.rates) == len(c.moves) == len(c.full_rates)
    texts = (d.rates, d.random_rates, d.full_rates, d.moves, d.head_rates, d.bias_rates)
    texts = (*texts, d.last_rates)
    decoder = (d.decoder_rates, d.decoder_full_rates, d.decoder_moves)
    decoder = (*decoder, d.decoder_part_rates)
    e = intrinsic_text.Config()
    own = (e.rates, e.full_rates, e.moves, e.said_moves, e.head_rates)
    assert len({len(rates) for rates in own}) == 1
    assert len({len(own) for own in texts}) == 1
    assert len({len(own) for own in decoder}) == 1
    assert max(d.ds) <= d.block


# --- failing ranks


def fails_rows(one=0.5):
    found = []
    for task in ("trec", "files", "random"):
        found += texts("full", "pretrained", task, 1, 0.9)
        base = fails_shares.BASE[task]
        found += texts(base, "pretrained", task, int(base == "head"), 0.5)
        first = 0.9 if task == "trec" else one
        for size, share in ((1, first), (8, 0.85), (64, 0.9)):
            found += texts("lora", "pretrained", task, size, share)
        easy = 0.9 if task == "trec" else 0.6
        for size, share in ((100, easy), (300, 0.88), (1000, 0.9)):
            found += texts("did", "pretrained", task, size, share)
    return Records(found)


def test_ranks_that_fail_are_told():
    records = fails_rows()
    own = fails_shares.share(records, "lora", 8, "files")
    assert own.value == pytest.approx(0.875)
    assert own.low < own.value < own.high == 1.0
    assert fails_shares.of_gain(records, "lora", "trec").tested == 1
    assert fails_shares.of_gain(records, "lora", "files").tested == 64
    found = verdicts(fails_report.blocks(records)[1])
    assert found["F1"] == found["F2"] == found["F3"] == "supported"
    assert found["F4"] is None
    worse = verdicts(fails_report.blocks(fails_rows(one=0.9))[1])
    assert worse["F3"] == "contradicted"


def test_without_a_gain_nothing_is_decided():
    records = Records(
        [
            *texts("full", "pretrained", "files", 1, 0.5),
            *texts("head", "pretrained", "files", 1, 0.6),
            *texts("lora", "pretrained", "files", 1, 0.7),
        ]
    )
    assert fails_verdicts.fails(records, 1, "files") == 0
    assert fails_verdicts.fails(records, 64, "files") is None  # not run
    second = fails_report.blocks(records)[1].rows[1]
    assert second[2] == "rank 1: all weights gain nothing"


def test_a_share_pairs_seeds_and_decides_by_its_interval():
    part = np.array([[-0.8], [-0.9], [-0.5]])  # losses: all weights -0.5, start -1.5
    found = [row("start", "w", "dialogue", 0, s, {"loss": 1.5}) for s in range(5)]
    full = (0.5, 0.5, 0.5, 0.1, 0.1)
    found += [
        row("full", "w", "dialogue", 1, s, {"loss": x}) for s, x in enumerate(full)
    ]
    found += [
        row("lora", "w", "dialogue", 1, s, {"loss": -float(x)})
        for s, (x,) in enumerate(part)
    ]
    records = Records(found)
    own = fails_shares.share(records, "lora", 1, "dialogue")
    assert own.value == pytest.approx(2.3 / 3)  # of three seeds, not of five
    assert (own.low, own.high) == pytest.approx((0.6, 1.0))
    assert fails_verdicts.fails(records, 1, "dialogue") == 0  # it holds 90 %
    table = fails_report.blocks(records)[1]
    assert verdicts(table)["F4"] == "not supported"
    assert table.rows[3][2] == "rank 1: 77 [60, 100] %"
    less = [r for r in found if r.config["way"] != "lora" or r.seed < 2]
    assert fails_verdicts.fails(Records(less), 1, "dialogue") == 1


def test_a_ratio_without_a_gain_is_unbounded():
    whole = np.array([[1.0], [-0.5]])
    own = fails_shares.ratio(np.array([[1.0], [1.0]]), whole)
    assert (own.low, own.high) == (-math.inf, math.inf)
    assert fails_shares.ratio(whole, np.array([[0.0], [0.0]])) is None


def test_the_easiest_and_the_hardest_problem_must_be_alone():
    ranks = {"a": 1.0, "b": 2.0, "c": 3.0}
    same, other = {"a": 10.0, "b": 20.0, "c": 30.0}, {"a": 30.0, "b": 20.0, "c": 10.0}
    never = dict.fromkeys(ranks, math.inf)

    def agree(one, two):
        return [fails_verdicts.agree(one, two, pick) for pick in (min, max)]

    assert agree(ranks, same) == [1, 1]
    assert agree(ranks, other) == [-1, -1]
    assert agree(ranks, never) == agree(never, never) == [0, 0]
    assert agree(ranks | {"b": 1.0}, same) == [0, 1]
    assert agree(ranks | {"c": math.inf}, same) == [1, 0]
    assert agree(ranks, same | {"b": math.inf}) == [1, 0]
    assert agree(ranks, same | {"a": math.inf}) == [0, 0]
    assert agree(ranks, same | {"b": 10.0}) == [0, 1]


def test_no_dimension_that_was_reached_supports_nothing():
    found = [r for r in fails_rows() if r.config["way"] != "did"]
    for task in ("trec", "files", "random"):
        found += texts("did", "pretrained", task, 100, 0.5)
    for seed in (0, 1):
        for way, size, loss in (
            ("start", 0, 2.0), ("full", 1, 1.0), ("lora", 1, 1.0), ("did", 100, 2.0),
        ):  # fmt: skip
            found.append(row(way, "w", "dialogue", size, seed, {"loss": loss}))
    table = fails_report.blocks(Records(found))[1]
    assert verdicts(table)["F5"] == "not supported"
    assert "d not reached" in table.rows[4][2]


def test_ways_are_compared_on_equal_tasks():
    records = fails_rows()
    table = next(
        b
        for b in fails_report.blocks(records)
        if isinstance(b, Table) and b.columns[-1] == "decoder, nats"
    )
    by = {r[0]: r for r in table.rows}
    assert by["all weights"][3].startswith("+5.0")
    assert by["LoRA, rank 8"][3] == "–"
    assert by["biases"][2] is None


# --- runs

SMALL = {
    "intrinsic_text": {"ways": ("said",), "weights": ("fresh",), "ds": (8,)},
    "sizes": {"widths": (8,), "layers": (1,), "ways": ("did",), "parts": ("sizes",)},
    "low_rank_fails": {
        "problems": ("files",),
        "tasks": (),
        "ways": ("head", "lora"),
        "compared": (1,),
    },
}


@pytest.mark.parametrize("name", list(TABLES))
def test_tables_run_and_resume(name, tmp_path):
    module = TABLES[name]
    config = dataclasses.replace(module.Config().smoke(), **SMALL[name])
    session = Session(name, tmp_path, smoke=True)
    module.run(config, session)
    records, _ = read_folder(session.folder)
    assert len(records) == len(session.written) > 0
    assert all(np.isfinite(r.seconds) for r in records)
    assert module.report(records)
    again = Session(name, tmp_path, smoke=True)
    module.run(config, again)
    assert not again.written
