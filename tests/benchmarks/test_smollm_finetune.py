"""The table of the fine-tuned language model on made-up texts, and its parts."""

import dataclasses
import pathlib

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.record import Record, Records
from benchmarks.report import Table
from benchmarks.runner import Session
from benchmarks.tables import _smollm_data as data
from benchmarks.tables import _smollm_net as nets
from benchmarks.tables import _smollm_numbers as numbers
from benchmarks.tables import smollm_finetune as table
from benchmarks.tables._smollm_bases import BASES
from benchmarks.tables._smollm_data import Example, Packed, pack
from benchmarks.tables._smollm_work import Work

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
CONFIG = dataclasses.replace(table.Config().smoke(), length=64, longest=64)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return Work(CONFIG, Session("smollm_finetune", folder))


def test_examples_are_packed_in_order_and_completions_alone_count():
    examples = [Example([7, 8, 9], 1), Example([1, 2], 1), Example([3], 0)]
    packed = pack([*examples, Example([4, 4, 4], 0)], 2, 4)
    assert packed.ids.tolist() == [[7, 8, 9, 3], [1, 2, 0, 0]]
    assert packed.owner.tolist() == [[0, 0, 0, 2], [1, 1, -1, -1]]
    assert packed.weight.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match="too few examples for 2 rows of 4"):
        pack(examples[:2], 2, 4)


def test_splits_share_no_example_and_replies_end(work):
    corpora = work.data()
    for corpus in data.CORPORA:
        parts = [corpora.examples(corpus, split) for split in data.NOVELS]
        sets = [{tuple(example.ids) for example in part} for part in parts]
        assert all(sets)
        assert not sets[0] & (sets[1] | sets[2])
    end = corpora.end()
    assert all(own.ids[-1] == end for own in corpora.examples("dialogue", "test"))
    pair = next(own for own in corpora.examples("dialogue", "test"))
    assert 0 < pair.start < len(pair.ids) - 1


def test_losses_of_packed_examples_are_those_of_each_alone(work):
    net, packed = work.net(), work.packed("dialogue", "test")
    found = net.score(net.params, packed, 2)
    assert found.nll.shape == (packed.owner.max() + 1,)
    assert found.tokens.sum() == packed.weight.sum()
    number = int(packed.owner[0].max())
    kept = packed.owner[0] == number
    ids, weight = (np.zeros((2, 64), kind) for kind in (np.int32, np.float32))
    ids[0, : kept.sum()], weight[0, : kept.sum()] = (
        packed.ids[0][kept],
        packed.weight[0][kept],
    )
    owner = np.where(np.arange(64) < kept.sum(), 0, -1) * np.ones((2, 1), int)
    alone = net.score(net.params, Packed(ids, owner.astype(np.int32), weight), 2)
    assert alone.nll[0] == pytest.approx(found.nll[number], rel=1e-4)


def test_a_row_of_each_kind_learns_and_scores_both_corpora(work):
    dense = work.row("lori-d", "dialogue", 0)
    sparse = work.row("lori-s", "dialogue", 0)
    assert sparse["trained"] == pytest.approx(CONFIG.density * dense["trained"], abs=1)
    assert np.mean(list(sparse["kept"].values())) == pytest.approx(0.1, abs=0.05)
    for way, found in (("lori-d", dense), ("lori-s", sparse)):
        assert set(found["test"]) == set(data.CORPORA)
        assert found["cost"]["temporaries"] > 0
        assert len(found["losses"]) == CONFIG.steps
        assert found["rate"] == CONFIG.rates[way][0]
    assert sparse["cost"]["trainable"] < dense["cost"]["trainable"]


def test_training_lowers_the_loss_of_its_own_batch(work):
    net = work.net()
    trainer = nets.Trainer(net, nets.whole(), net.params)
    start = trainer.tx.init(None, net.params)
    batch = work.batches("dialogue", 0)[0]
    found = trainer.train(start, [batch] * 8, 3e-2)
    assert found.losses[-1] < 0.9 * found.losses[0]
    assert found.cost.optimizer > 2 * found.cost.trainable


def test_a_quantised_base_is_smaller_and_close(work):
    net = work.net()
    small = BASES["nf4"](net)
    assert nets.tree_bytes(small) < 0.5 * nets.tree_bytes(net.params)
    assert nets.tree_bytes(BASES["bfloat16"](net)) == nets.tree_bytes(net.params) / 2


def _record(way, corpus, seed, nll, **more):
    """Two examples of two and four tokens on each corpus."""
    test = {c: {"nll": list(own), "tokens": [2, 4]} for c, own in nll.items()}
    cost = {"arguments": 100, "temporaries": 100, "trainable": 1, "fixed": 1}
    cost |= {"optimizer": 1, "speed": 10.0} | more
    metrics = {"test": test, "cost": cost, "trained": 5, "rate": 1e-3}
    metrics["rates_tried"] = {"0.001": 1.0, "0.1": 2.0}
    metrics |= {"bytes": 1, "linear": 1, "forward": 1.0}
    metrics["tokens"] = {"all": 9, "used": 8, "counted": 7}
    said = {"greedy": ["a\nb"] * 3, "drawn": [""] * 3}
    metrics["samples"] = {c: said for c in data.CORPORA}
    facts = {"there": {"test": 9}, "scored": 2, "counted": 6}
    metrics["data"] = {c: facts for c in data.CORPORA}
    config = {"way": way, "corpus": corpus, "seed": seed}
    config |= {"steps": 1, "rows": 1, "length": 9}
    row = f"{way}-{corpus}-s{seed}" if corpus else way
    return Record(
        "smollm_finetune", row, config, "", seed, metrics, {}, 1.0, "2026", "",
        versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def _records(lora=1.0, sparse=1.5):
    """Nats per token: 2 for the base; an adapter's are given, 3 on the other corpus."""
    base = _record("base", "", 0, {c: (4.0, 8.0) for c in data.CORPORA})
    found = [base]
    for way, own in (("lora", lora), ("lori-s", sparse)):
        for corpus in data.CORPORA:
            nll = {c: (6.0, 12.0) for c in data.CORPORA} | {corpus: (2 * own, 4 * own)}
            found += [_record(way, corpus, seed, nll) for seed in (0, 1)]
    full = _record(
        "full", "dialogue", 0, {c: (2.0, 4.0) for c in data.CORPORA}, arguments=301
    )
    return Records([*found, full])


def test_losses_have_the_mean_per_token_and_pairs_the_same_seeds():
    rows = [_record("base", "", 0, {"austen": (1.0, 8.0)})]
    assert numbers.losses(rows, "austen").mean() == pytest.approx(9 / 6)
    assert numbers.losses([], "austen") is None
    records = _records()
    base, lora = (numbers.rows_of(records, *w) for w in (("base",), ("lora", "austen")))
    one, two = numbers.paired(base, lora[1:])
    assert (one, two) == ([base[0]], [lora[1]])
    assert numbers.gap(lora, base, "austen") == pytest.approx((-1, -1, -1))
    assert numbers.gap(lora, base, "dialogue") == pytest.approx((1, 1, 1))


def test_hypotheses_are_judged_by_their_margins():
    def verdicts(**losses):
        found = numbers.hypotheses(_records(**losses))
        return {own.name: own.verdict() for own in found}

    found = verdicts()
    assert found["S1"] is None  # rows are missing
    assert found["S4"] == "open"
    assert found["S7"] == "holds"
    assert verdicts(sparse=1.6)["S3"] == "fails"
    assert verdicts(sparse=1.4)["S3"] == "holds"
    assert verdicts(lora=2.5)["S1"] == "fails"
    assert {h.verdict() for h in numbers.hypotheses(Records())} == {None}


def test_the_report_stands_with_and_without_records():
    full = [block for block in table.report(_records()) if isinstance(block, Table)]
    empty = [block for block in table.report(Records()) if isinstance(block, Table)]
    assert len(full) == len(empty) == 8
    assert full[1].text()[1][:4] == ["LoRA", "5", "0.001 of 0.001, 0.1", "2"]
    assert full[1].text()[1][4].startswith("2.72")
    assert "a b" in full[-2].text()[0]
    assert full[-1].text()[1][1] == "2 of 9; 6"
    assert all("not run" in row for block in empty for row in block.text())
    assert "<!-- records:smollm_finetune -->" in (DOCS / "smollm.md").read_text()


def test_every_way_has_as_many_rates():
    assert len({len(rates) for rates in table.RATES.values()}) == 1
