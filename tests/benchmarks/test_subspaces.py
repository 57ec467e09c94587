"""Studies of sizes: what a size trains, tuning, needed sizes, texts and decoders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks.record import Record, Records
from benchmarks.runner import Session
from benchmarks.study import language as lm
from benchmarks.study import needed as sizes
from benchmarks.study.rate_ends import rate_ends
from benchmarks.study.subspaces import (
    Plan,
    Problem,
    Runner,
    did,
    lora,
    part,
    said,
    subspace_rates,
)
from benchmarks.study.texts import fresh
from benchmarks.study.trials import Cell, Trials

PARAMS = {"w": {"kernel": jnp.ones((6, 5))}, "head": {"bias": jnp.zeros(5)}}
KERNEL, HEAD = lrk.matching("kernel$"), lrk.matching("^head/")
X = jax.random.normal(jax.random.key(1), (16, 6))
Y = jax.random.normal(jax.random.key(2), (16, 5))


def loss(params, data, rows):
    guess = data["x"][rows] @ params["w"]["kernel"] + params["head"]["bias"][None]
    return jnp.mean(jnp.square(guess - data["y"][rows]))


PROBLEM = Problem(loss, {"x": X, "y": Y}, 16)


@pytest.fixture(scope="module")
def runner():
    ways = {
        "did": did(lrk.subspace.dense()),
        "said": said(lrk.subspace.dense(), lambda path: path.split("/")[0]),
        "lora": lora(KERNEL, HEAD),
        "bare": lora(KERNEL, None),
        "head": part("head", HEAD),
    }
    largest = {"did": 8, "said": 8, "lora": 4, "bare": 4, "head": 1}
    return Runner(ways, largest)


def moved(runner, name, size):
    """What a short run adds, leaf by leaf."""
    plan = Plan(6, 4)
    got, _ = runner.train(name, PROBLEM, plan, PARAMS, size=size, rate=0.1, seed=0)
    return jax.tree.map(lambda new, old: np.asarray(new - old), got, PARAMS)


def test_a_dimension_is_the_first_columns_of_the_largest(runner):
    change = moved(runner, "did", 3)
    vector = np.concatenate([x.ravel() for x in jax.tree.leaves(change)])
    tx = lrk.subspace.random(8, lrk.subspace.dense())
    _, drawn, _ = jax.random.split(jax.random.key(0), 3)
    state = tx.init(drawn, PARAMS)

    def column(i):
        z = {"subspace": {"z": jnp.zeros(8).at[i].set(1.0)}}
        new = lrk.materialize(tx.apply(PARAMS, state._replace(trainable=z)))
        gaps = jax.tree.map(jnp.subtract, new, PARAMS)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(gaps)])

    columns = np.stack([column(i) for i in range(3)], axis=1)
    best = columns @ np.linalg.lstsq(columns, vector, rcond=None)[0]
    assert np.linalg.norm(vector) > 0.1
    np.testing.assert_allclose(best, vector, atol=1e-5)


def test_a_rank_is_the_first_columns_of_the_largest(runner):
    change = moved(runner, "lora", 2)
    values = np.linalg.svd(change["w"]["kernel"], compute_uv=False)
    assert values[1] > 1e-3 > 1e-5 > values[2]
    assert np.any(change["head"]["bias"])


def test_a_head_has_its_own_rate(runner):
    """Adam's first steps move by the rate: none for the head, more for the rest."""
    plan = Plan(6, 4)
    given = {"size": 2, "rate": 0.1, "seed": 0}
    still, _ = runner.train("lora", PROBLEM, plan, PARAMS, **given, head=0.0)
    same, _ = runner.train("lora", PROBLEM, plan, PARAMS, **given, head=0.1)
    usual, _ = runner.train("lora", PROBLEM, plan, PARAMS, **given)
    assert not np.any(still["head"]["bias"])
    assert np.any(still["w"]["kernel"] != PARAMS["w"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, same, usual)


@pytest.mark.parametrize(
    ("name", "size", "number"),
    [("did", 5, 5), ("said", 5, 5), ("lora", 2, 27), ("bare", 3, 33), ("head", 1, 5)],
)
def test_numbers_are_counted(runner, name, size, number):
    assert runner.trained(name, PARAMS, size) == number


def test_steps_are_as_long_for_every_dimension():
    lengths = [rate * d**0.5 for d in (4, 100) for rate in subspace_rates([1], 50, d)]
    assert lengths == pytest.approx([50**0.5] * 2)


class Toy:
    """A bench whose validation loss is the distance to a wanted bias."""

    def problem(self, cell):
        del cell
        return PROBLEM

    def start(self, cell, seed):
        del cell, seed
        return PARAMS

    def valid(self, cell, params):
        del cell
        return float(jnp.sum(jnp.square(params["head"]["bias"])))

    def test(self, cell, params):
        return {"loss": self.valid(cell, params)}


def test_cells_are_tuned_on_validation_and_resumed(runner, tmp_path):
    session = Session("t", tmp_path)
    trials = Trials(Toy(), runner, session, Plan(6, 4), {})
    cell = Cell("head", "w", "t", 1)
    record = trials.row(cell, (0.01, 0.1, 1.0), 0)
    assert record.metrics["rate"] == 0.01  # the least movement
    assert len(record.metrics["rates_tried"]) == 3
    assert trials.row(cell, (0.01, 0.1, 1.0), 0) == record
    again = Session("t", tmp_path)
    Trials(Toy(), runner, again, Plan(6, 4), {}).row(cell, (0.01, 0.1, 1.0), 0)
    assert again.reused
    assert not again.written


def test_a_head_takes_the_rate_chosen_for_it_alone(runner, tmp_path):
    heads = {"lora": (0.02, 0.2)}
    trials = Trials(Toy(), runner, Session("t", tmp_path), Plan(6, 4), {}, heads)
    record = trials.row(Cell("lora", "w", "t", 2), (0.1, 1.0), 0)
    assert record.metrics["head_rate"] == 0.02
    assert record.config["head_rates"] == [0.02, 0.2]
    alone = trials.row(Cell("head", "w", "t", 1), (0.02, 0.2), 0)
    assert "head_rate" not in alone.metrics


# --- needed sizes


def record(size, seed, value):
    return Record(
        "t", f"n{size}-s{seed}", {"size": size}, "", seed, {"accuracy": value}, {},
        1.0, "2026", "", versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def test_curves_hold_the_seeds_that_all_sizes_have():
    rows = [record(n, s, n / 10 + s / 100) for n in (1, 4, 9) for s in (0, 1)]
    own = sizes.curve(Records([*rows, record(9, 2, 1.0)]))
    assert own.sizes == (1, 4, 9)
    assert own.seeds == (0, 1)
    assert own.mean(4) == pytest.approx(0.405)
    base = sizes.Curve((0,), (1, 0), np.array([[0.1, 0.0]]))
    gain = sizes.over(own, base)
    np.testing.assert_allclose(gain.scores[0], [0.1, 0.01])


def test_a_share_of_the_baseline_is_needed():
    own = sizes.Curve((1, 2, 4), (0, 1), np.array([[0.2, 0.2], [0.5, 0.5], [1, 1]]))
    full = sizes.Curve((1,), (0, 1), np.array([[1.0, 1.0]]))
    found = sizes.needed(own, full)
    assert found.tested == 4
    assert found.interpolated == pytest.approx(2 + 2 * 0.8)
    none = sizes.Curve((1,), (0, 1), np.array([[-0.1, 0.0]]))
    assert sizes.shown(sizes.needed(own, none), 4) == "> 4"
    assert sizes.needed(own, None) is None


def test_rates_at_an_end_of_their_grid_are_counted_once_for_all_seeds():
    def rows(size, rate, rates=(0.1, 0.2, 0.4), way="did"):
        cell = {"way": way, "weights": "w", "task": "t", "size": size}
        own = [record(size, seed, 0.0) for seed in (0, 1)]
        return [
            dataclasses.replace(
                r, row=f"{way}{r.row}", config=cell | {"rates": list(rates)},
                metrics={"rate": rate},
            )
            for r in own
        ]  # fmt: skip

    found = [*rows(1, 0.1), *rows(2, 0.2), *rows(3, 0.4), *rows(4, 0.1)]
    found += [*rows(1, 0.2, way="lora"), *rows(1, None, (), way="start")]
    table = rate_ends(Records(found), {"did": "DID", "lora": "LoRA", "head": "head"})
    assert table.rows == [["DID", 4, 2, 1], ["LoRA", 1, 0, 0], ["head"] + [None] * 3]


def test_verdicts_of_intervals():
    low, high = (sizes.IntrinsicDimension(x, x, x - 1, x + 1, 0.9) for x in (10, 20))
    assert sizes.fewer(low, high) == 1
    assert sizes.fewer(high, low) == -1
    assert sizes.fewer(low, low) == 0
    assert sizes.verdict([1, 1]) == "supported"
    assert sizes.verdict([1, None]) == "undecided: rows are missing"
    assert sizes.verdict([1, 0]) == "not supported"
    assert sizes.verdict([None]) is None


# --- texts and decoders


def test_fresh_layers_start_as_bert_does():
    old = {"a": {"kernel": jnp.ones((40, 30)), "bias": jnp.ones(3), "scale": 2.0}}
    old["a"]["scale"] = jnp.full(3, 2.0)
    new = fresh(jax.random.key(0), old)["a"]
    assert np.std(new["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not np.any(new["bias"])
    assert np.all(np.asarray(new["scale"]) == 1)


def test_text_comes_in_one_alphabet():
    assert lm.plain("“Où”, she\tsaid—1") == '"ou", shesaid-1'
    assert set(lm.dialogue(synthetic=True)) <= set(lm.ALPHABET)


def test_held_out_windows_are_of_other_parts():
    text = "".join(lm.ALPHABET[i // 100 % 10] for i in range(10_000))
    own = lm.corpus(text, 9, 6, 6)
    assert set(np.unique(own.valid)) == {8}
    assert set(np.unique(own.test)) == {9}
    assert set(np.unique(own.train)) == set(range(8))
    assert own.valid.shape == (6, 10)


def test_pretraining_goes_on_where_it_stopped(tmp_path):
    rows = functools.partial(
        lm.pretrained, problem=PROBLEM, start=PARAMS, plan=Plan(6, 4), rate=0.1,
        name="p", given={},
    )  # fmt: skip
    whole = rows(Session("whole", tmp_path), at=(2, 6))
    session = Session("stopped", tmp_path)
    rows(session, at=(2, 6))
    (session.artifacts / "p-step6.npz").unlink()
    again = rows(Session("stopped", tmp_path), at=(2, 6))
    for step in (2, 6):
        jax.tree.map(np.testing.assert_array_equal, whole[step], again[step])
    assert again[0] is PARAMS
