"""The quickstart on made-up texts: one tiny run, and its parts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lowrank as lrk
from benchmarks.data import multi_task_batches
from benchmarks.record import Records, read_folder
from benchmarks.report import Figure, Table, Text, render_page
from benchmarks.runner import Session
from benchmarks.tables import _quickstart_chip as chips
from benchmarks.tables import _quickstart_chip_report as chip_report
from benchmarks.tables import _quickstart_figures as figures
from benchmarks.tables import _quickstart_report as reporting
from benchmarks.tables import _quickstart_score as scoring
from benchmarks.tables import _quickstart_train as training
from benchmarks.tables import _quickstart_work as working
from benchmarks.tables import quickstart
from benchmarks.tables._quickstart_probe import fit_probe
from benchmarks.tables._quickstart_tasks import CLASSES, TITLES, Head, embed, nll

CONFIG = dataclasses.replace(
    quickstart.Config().smoke(), rank=2, steps=4, trial=1, train=48, test=20, valid=16
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One tiny run, kept for all tests: its folder, its session, what it shared."""
    results = tmp_path_factory.mktemp("results")
    session = Session("quickstart", results)
    made = []

    def kept(*args):
        made.append(working.Work(*args))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "Work", kept)
        quickstart.run(CONFIG, session)
    return results, session, made[0]


@pytest.fixture
def records(ran):
    found, problems = read_folder(ran[1].folder)
    assert not problems
    return found


def fresh(results):
    return Session("quickstart", results)


def test_every_method_and_task_has_a_row(records):
    rows = {record.row for record in records}
    assert rows == {f"probe-{t}" for t in TITLES} | {
        f"{m}-{t}-s0" for m in ("lora", "lori-d", "lori-s", "chip") for t in TITLES
    }


def test_parameter_counts_are_those_of_the_shapes(records):
    per_layer = 4 * (32 + 32) + 2 * (32 + 64)  # in + out of the six projections
    outputs = 4 * 32 + 64 + 32
    lora, dense, sparse = (
        records.get(f"{m}-trec-s0").metrics["parameters"]
        for m in ("lora", "lori-d", "lori-s")
    )
    assert lora == {"adapter": 2 * 2 * per_layer, "head": 33 * 6, "fixed": 0}
    assert dense["adapter"] == 2 * 2 * outputs
    assert dense["adapter"] + dense["fixed"] == lora["adapter"]
    assert sparse["adapter"] == int(0.1 * dense["adapter"])
    assert records.get("lora-sms_spam-s0").get("parameters/head") == 33 * 2


def test_the_mask_of_lori_s_is_that_of_lori_d(ran, records):
    stored = ran[1].load_arrays("lori-d-s0")["state"]["trainable"]["adapter"]
    for i, task in enumerate(TITLES):
        sizes = {path: np.abs(leaf["b"][i]) for path, leaf in stored.items()}
        values = np.concatenate([b.ravel() for b in sizes.values()])
        threshold = np.sort(values)[-int(0.1 * values.size)]
        kept = records.get(f"lori-s-{task}-s0").metrics["kept"]
        for path, b in sizes.items():
            layer, name = path.split("/layer/")[1].removesuffix("/kernel").split("/", 1)
            assert kept[layer][name] == pytest.approx(np.mean(b >= threshold))


def test_lori_s_trains_its_kept_entries_and_nothing_else(ran):
    dense, sparse = (ran[1].load_arrays(f"lori-{v}-s0")["state"] for v in "ds")
    for path, leaf in sparse["fixed"]["adapter"].items():
        np.testing.assert_array_equal(leaf["a"], dense["fixed"]["adapter"][path]["a"])
        b = sparse["trainable"]["adapter"][path]["b"]
        assert b.shape == leaf["index"].shape
        padding = leaf["index"] >= dense["trainable"]["adapter"][path]["b"][0].size
        assert not b[padding].any()
    moved = [leaf["b"] for leaf in sparse["trainable"]["adapter"].values()]
    assert all(np.any(np.concatenate([b[i] for b in moved])) for i in range(4))


def test_tasks_draw_their_own_factors(ran):
    a = next(
        iter(ran[1].load_arrays("lori-d-s0")["state"]["fixed"]["adapter"].values())
    )
    assert all(np.abs(a["a"][0] - a["a"][i]).max() > 1e-3 for i in (1, 2, 3))


def test_recorded_numbers_are_those_of_the_predictions(records):
    for record in records:
        guess = {
            kind: scoring.numbers(text)
            for kind, text in record.metrics["predictions"].items()
        }
        if record.row.startswith("chip"):
            for kind in chips.KINDS:
                share = (guess[kind] == guess["labels"]).mean()
                assert record.metrics["accuracy"][kind] == pytest.approx(share)
            continue
        right = guess["test"] == guess["labels"]
        assert record.get("accuracy/value") == pytest.approx(right.mean())
        if not record.row.startswith("probe"):
            merged = guess["merged"] == guess["labels"]
            assert record.get("merged/accuracy/value") == pytest.approx(merged.mean())
            probe = records.get(f"probe-{record.config['task']}").metrics
            gap = right.mean() - probe["accuracy"]["value"]
            assert record.get("minus_probe/difference") == pytest.approx(gap)


def test_recorded_predictions_are_those_of_the_lifted_model(ran, records):
    work = ran[2]
    task = work.tasks[0]
    trained = working.trained_state(work, "lora", 0)
    tx = training.with_head(training.adapter("lora", 2, CONFIG.alpha))
    adapted = tx.apply(work.model.params, training.unstacked(trained.state, 0))
    part = task.parts["test"]
    ids, mask = part.tokens.batch(np.arange(len(part.labels)), 32)
    logits = jax.jit(lrk.lift(work.model.forward))(adapted, ids, mask)
    guess = np.asarray(logits)[:, : task.classes].argmax(axis=1)
    recorded = records.get("lora-trec-s0").metrics["predictions"]["test"]
    assert scoring.digits(guess) == recorded


def test_merging_adds_the_adapters_at_the_weight(ran):
    work = ran[2]
    state = training.adapters_of(working.trained_state(work, "lori-d", 0).state)
    encoders = work.compiled("lori-d")[1]
    base = jax.tree.map(np.asarray, work.model.params["encoder"])
    own = [jax.tree.map(np.asarray, encoders.alone(state, i)) for i in range(4)]
    merged = encoders.merged(state, 0.5)
    wanted = jax.tree.map(lambda w, *ds: w + 0.5 * sum(d - w for d in ds), base, *own)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), merged, wanted
    )
    layer = merged["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    w = base["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    assert np.abs(layer - w).max() > 1e-5


def test_a_second_run_does_no_work(ran, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("work was done again")

    monkeypatch.setattr(working, "load_model", refuse)
    monkeypatch.setattr(working, "load_task", refuse)
    session = fresh(ran[0])
    quickstart.run(CONFIG, session)
    assert len(session.reused) == 20
    assert not session.written


def test_an_interrupted_run_goes_on_with_the_unfinished_method(ran, monkeypatch):
    session = fresh(ran[0])
    row = session.folder / "lori-s-trec-s0.json"
    before = json.loads(row.read_text())
    row.unlink()
    monkeypatch.setattr(working.training, "train", None)  # its states are on disk
    quickstart.run(CONFIG, session)
    after = json.loads(row.read_text())
    assert after["metrics"] == before["metrics"]
    assert set(session.written) == {"lori-s-trec-s0"}
    assert len(session.reused) == 19


def test_report_shows_what_was_run(records):
    found = quickstart.report(records)
    tables = [block for block in found if isinstance(block, Table)]
    assert len(tables) == len(TITLES) + 3
    for table in tables:
        assert not any("not run" in cell for row in table.text() for cell in row)
    names = [row[0] for row in tables[0].text()]
    assert names == ["majority class", "probe", "LoRA", "LoRI-D", "LoRI-S"]
    assert sum(isinstance(block, Figure) for block in found) == 3 + len(TITLES)
    page = render_page("quickstart", found, records, base="")
    assert page.count("<svg") == 3 + len(TITLES)


def test_report_of_nothing_says_so():
    found = quickstart.report(Records())
    tables = [block for block in found if isinstance(block, Table)]
    assert all("not run" in row for table in tables for row in table.text())
    assert any(isinstance(b, Text) and "Nothing to compare" in b.text for b in found)


@pytest.mark.parametrize(
    ("right", "word"),
    [(90, "beats the probe (+20"), (50, "is below the probe (-20"), (71, "be told")],
)
def test_verdict_is_computed_from_the_predictions(records, right, word):
    def made(name, count):
        record = records.get(name)
        guess = "0" * count + "1" * (100 - count)
        kinds = dict.fromkeys(("test", "off", "merged"), guess)
        metrics = record.metrics | {"predictions": {"labels": "0" * 100, **kinds}}
        return dataclasses.replace(record, metrics=metrics)

    pair = [made("probe-trec", 70), made("lora-trec-s0", right)]
    text = reporting.blocks(Records(pair))[1].text
    assert word in text
    assert "Of 1 comparisons" in text


def test_intervals_over_several_seeds_use_all_of_them(records):
    first = records.get("lora-trec-s0")
    labels = first.metrics["predictions"]["labels"]
    wrong = "".join("1" if letter == "0" else "0" for letter in labels)
    pair = [
        dataclasses.replace(
            first,
            row=f"lora-trec-s{seed}",
            metrics=first.metrics | {"predictions": {"labels": labels, "test": guess}},
        )
        for seed, guess in enumerate((labels, wrong))
    ]
    assert figures.Cell(Records(pair)).percent()[0] == 50


# --- the chip ------------------------------------------------------------------------


def test_the_chip_holds_the_merge_but_for_its_stuck_cells(ran):
    work = ran[2]
    hold = chips.chip(work, 0)
    state = training.adapters_of(working.trained_state(work, "lora", 0).state)
    merged = work.compiled("lora")[1].merged(state, 0.5)
    same, faulty = hold(0.5, 0.0), hold(0.5, 0.1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), same, merged)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(faulty),
        jax.tree.leaves(merged),
        strict=True,
    )
    wrong = {
        jax.tree_util.keystr(path): np.mean(np.abs(x - y) > 1e-4)
        for (path, x), y in pairs
    }
    changed = {path: share for path, share in wrong.items() if share}
    assert len(changed) == 6 * 2  # the projections of two layers, and nothing else
    assert all("kernel" in path for path in changed)
    # A cell that is at the end of the range where it sticks is no error.
    assert all(0.05 < share < 0.19 for share in changed.values())


def test_the_rate_whose_loss_is_nearest_the_middle_is_chosen(ran, monkeypatch):
    work = ran[2]
    tasks = chips.few_texts(work)
    marks = {0.0: 0.9, 0.1: 0.85, 0.2: 0.68, 0.3: 0.1}
    seen = []

    def found(_, encoders, tasks, split):
        seen.append((encoders[0], split))
        return dict.fromkeys((task.name for task in tasks), encoders[0])

    def right(guessed, _):
        return marks[guessed]

    monkeypatch.setattr(chips, "features", found)
    monkeypatch.setattr(chips, "guess", lambda own, *_: own)
    monkeypatch.setattr(chips.stats, "accuracy", right)
    config = dataclasses.replace(CONFIG, chip_rates=(0.3, 0.2, 0.1))
    monkeypatch.setattr(work, "config", config)
    choice = chips.choose(work, tasks, lambda rate: rate, [])
    assert choice.rate == 0.2
    assert seen == [(rate, "valid") for rate in (0.0, 0.1, 0.2)]  # 0.3 is not tried
    assert choice.tried == {"0": 0.9, "0.1": 0.85, "0.2": 0.68}


def test_healing_trains_beside_the_chip_and_leaves_it_alone(ran):
    work = ran[2]
    tasks, encoder = chips.few_texts(work), chips.chip(work, 0)(0.5, 0.1)
    before = jax.tree.map(np.array, encoder)
    heads = training.heads_of(working.trained_state(work, "lora", 0).state)
    healed = chips.heal(work, tasks, encoder, heads, 0)
    jax.tree.map(np.testing.assert_array_equal, before, encoder)
    assert healed.losses.shape == (CONFIG.chip_steps, len(TITLES))
    first = [x["encoder"]["layer"]["1"]["output"]["dense"] for x in healed.encoders]
    base = encoder["encoder"]["layer"]["1"]["output"]["dense"]
    change = np.asarray(first[0]["kernel"] - base["kernel"])
    assert 0 < np.abs(change).max()
    assert np.linalg.matrix_rank(change, tol=1e-6) <= CONFIG.rank
    np.testing.assert_array_equal(first[0]["bias"], base["bias"])
    assert np.abs(first[0]["kernel"] - first[1]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("head", "healed", "words"),
    [
        (70, 80, "Healing does more than a new head"),
        (70, 70, "Healing fails to do more than a new head"),
        (75, 62, "it fails here"),
        (60, 58, "cannot be told from doing nothing"),
    ],
)
def test_the_chips_verdict_is_computed(records, head, healed, words):
    counts = {"merged": 85, "deployed": 60, "head": head, "healed": healed}

    def made(task):
        record = records.get(f"chip-{task}-s0")
        own = {
            kind: "0" * count + "1" * (100 - count)
            for kind, count in {**counts, "control": 86}.items()
        }
        metrics = record.metrics | {"predictions": {"labels": "0" * 100, **own}}
        return dataclasses.replace(record, metrics=metrics)

    blocks = chip_report.blocks(Records([made(task) for task in TITLES]))
    assert words in blocks[1].text
    assert "lose 25.0 points" in blocks[1].text
    assert "outside" not in blocks[1].text
    cells = {row[0]: row[-2] for row in blocks[2].text()}
    assert cells[chips.KINDS["healed"]] == f"{healed:.1f}"
    assert chip_report.blocks(Records())[1].text == "The chip was not run."


def test_probe_folds_its_standardising_in():
    x = np.array(jax.random.normal(jax.random.key(0), (60, 3))) * [1, 10, 0.1] + 5
    y = (x[:, 1] > 5).astype(int)
    probe = fit_probe((x[:40], y[:40]), (x[40:], y[40:]), 2, (0.01,))
    logits = probe.head.logits(x, 2)
    assert (logits.argmax(axis=1) == y).mean() > 0.95
    assert probe.loss == pytest.approx(nll(logits[40:], y[40:]), rel=1e-5)
    assert probe.head.kernel.shape == (3, CLASSES)
    assert not probe.head.kernel[:, 2:].any()
    units = fit_probe((x[:40] * 4, y[:40]), (x[40:] * 4, y[40:]), 2, (0.01,))
    np.testing.assert_allclose(units.head.kernel * 4, probe.head.kernel, rtol=1e-3)


def test_probe_takes_the_penalty_that_validates_best():
    keys = jax.random.split(jax.random.key(1), 3)
    x = np.array(jax.random.normal(keys[0], (40, 30)))
    noise = np.array(jax.random.bernoulli(keys[1], 0.5, (40,))).astype(int)
    held = np.array(jax.random.normal(keys[2], (200, 30)))
    probe = fit_probe((x, noise), (held, np.arange(200) % 2), 2, (1e-4, 1e-2, 10.0))
    assert probe.strength == 10.0  # nothing to learn: the strongest is best


def test_schedule_warms_up_and_ends_near_zero():
    rates = [training.schedule(i, 100) for i in range(100)]
    assert rates[0] == pytest.approx(1 / 6)
    assert max(rates) == 1.0
    assert rates.index(1.0) == 5
    assert rates[-1] == pytest.approx(1 / 94)
    assert training.schedule(0, 1) == 1.0


def test_each_task_goes_on_from_its_best_rate(ran):
    """A rate of zero and a useful one: every task must pick by its own loss."""
    work = ran[2]
    step, _ = work.compiled("lora")
    tx = training.with_head(training.adapter("lora", 2, CONFIG.alpha))
    heads = [work.probes[task.name].head for task in work.tasks]
    state = training.start([tx] * 4, work.model, heads, 0)
    lengths = [task.parts["train"].tokens.lengths for task in work.tasks]
    batches = list(multi_task_batches(lengths, 16, 3, edges=(32,)))
    marks = iter([[1.0, 2.0, 1.0, np.nan], [2.0, 1.0, 2.0, 2.0]])
    seen = []

    def judge(given):
        seen.append(given)
        return next(marks)

    base = jax.tree.map(np.array, work.model.params)
    trained = training.train(
        step, work.model, work.tasks, state, batches, (0.0, 1e-2), 1, judge
    )
    assert trained.rates.tolist() == [0.0, 1e-2, 0.0, 1e-2]
    assert len(seen) == 2
    assert trained.losses.shape == (3, 4)
    before, after = training.heads_of(state), training.heads_of(trained.state)
    same = [
        np.array_equal(x.kernel, y.kernel) for x, y in zip(before, after, strict=True)
    ]
    assert same == [True, False, True, False]
    for i, head in enumerate(after):  # padded classes never move
        assert not head.kernel[:, work.tasks[i].classes :].any()
    jax.tree.map(np.testing.assert_array_equal, base, work.model.params)


def test_heads_start_as_the_probe(ran):
    """Before the first step the model's predictions are the probe's."""
    work = ran[2]
    task = work.tasks[0]
    head = work.probes[task.name].head
    tx = training.with_head(training.adapter("lori-d", 2, CONFIG.alpha))
    state = training.unstacked(training.start([tx], work.model, [head], 0), 0)
    part = task.parts["valid"]
    ids, mask = part.tokens.batch(np.arange(16), 32)
    adapted = tx.apply(work.model.params, state)
    logits = jax.jit(lrk.lift(work.model.forward))(adapted, ids, mask)
    wanted = head.logits(work.frozen[task.name]["valid"], CLASSES)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_embed_keeps_the_order_and_ignores_padding(ran):
    work = ran[2]
    tokens = work.tasks[1].parts["train"].tokens
    encoder = work.model.params["encoder"]
    together = embed(work.model, encoder, tokens, (32,))
    ids, mask = tokens.batch(np.array([5]), 32)
    alone = work.model.pool(encoder, ids, mask)
    np.testing.assert_allclose(together[5], alone[0], atol=1e-5)


def test_nll_and_padding_of_heads():
    head = Head(np.zeros((2, CLASSES)), np.arange(CLASSES, dtype=float))
    logits = head.logits(np.ones((3, 2)), 2)
    assert logits.shape == (3, 2)
    assert nll(logits, np.array([1, 1, 1])) == pytest.approx(np.log1p(np.exp(-1)))
