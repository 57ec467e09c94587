"""The loop: many adapters to their ends, told of, saved, resumed, and compiled once."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank import training
from lowrank.training import _run
from tests.tolerances import assert_close
from tests.training.small import PARAMS, RATES, TX, batches, by_hand, loss, row, states
from tests.untyped import untyped

HYPER = {"learning_rate": RATES}


def fit(data, state=None, **options):
    """`fit` of the small net, with all the functions that its programs are of."""
    state = states() if state is None else state
    given = {"optimizer": optax.adam, "hyper": HYPER, "method": "map"} | options
    return training.fit(loss, TX, PARAMS, state, data, **given)


class Memory:
    """A checkpoint in memory."""

    def __init__(self):
        self.kept = []

    def save(self, step, tree):
        self.kept.append((step, jax.tree.map(np.asarray, tree)))

    def restore(self, like):
        if not self.kept:
            return None
        step, tree = self.kept[-1]
        assert jax.tree.structure(tree) == jax.tree.structure(like)
        return step, tree


class Reports:
    """A callback that keeps what it is told."""

    def __init__(self, stop=None):
        self.all, self.stop = [], stop

    def __call__(self, report):
        self.all.append(report)
        return self.stop


@pytest.fixture(scope="module")
def plain():
    """Four steps of three adapters, of which two stop earlier."""
    return fit(batches(), steps=[4, 1, 2])


def test_every_adapter_ends_where_it_would_alone(plain):
    assert plain.steps.tolist() == [4, 1, 2]
    assert plain.metrics["loss"].shape == (4, 3)
    for i, limit in enumerate(plain.steps):
        own = [(x[i], y[i]) for x, y in batches()[:limit]]
        want, losses = by_hand(row(states(), i), own, RATES[i])
        assert_close(row(plain.states.trainable, i), row(want, ...))
        np.testing.assert_allclose(plain.metrics["loss"][:limit, i], losses, rtol=1e-5)
        assert np.isnan(plain.metrics["loss"][limit:, i]).all()
    assert_close(plain.states.fixed, states().fixed)


def test_the_states_and_the_base_are_left_alone_and_what_is_carried_is_donated():
    state = states()
    before = jax.tree.map(np.array, (state, PARAMS))
    program, seen = _run.program_of, []

    def watched(*args):
        found = program(*args)

        def update(*given):
            seen.append(given[3])
            return found.update(*given)

        return found._replace(update=update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowrank.training._fit.program_of", watched)
        fit(batches(1), state, steps=1)
    assert_close(jax.tree.map(np.asarray, (state, PARAMS)), before)
    assert all(x.is_deleted() for x in jax.tree.leaves(seen[0].trainable))


def test_other_numbers_do_not_compile_again_and_metrics_are_fetched_once_a_report(
    traces, monkeypatch
):
    counted = traces(loss)
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(1) or get(x))

    def run(rates, steps):
        training.fit(
            counted, TX, PARAMS, states(), batches(), optimizer=optax.adam,
            hyper={"learning_rate": rates}, steps=steps, every=3, method="map",
        )  # fmt: skip

    run(RATES, 4)
    traced = traces.count
    assert len(fetched) == 2
    run(2 * RATES, [2, 3, 4])
    assert traces.count == traced


def test_finished_adapters_leave_the_program_once_half_of_them_are(traces):
    counted = traces(loss)
    state, limits = states(4), [1, 4, 2, 4]
    data, rates = batches(4, 4), np.append(RATES, np.float32(0.1))
    widths, options = [], {"optimizer": optax.adam, "hyper": {"learning_rate": rates}}
    step = _run.Run.advance

    def watched(run, batch, count):
        widths.append(len(run.rows))
        step(run, batch, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run.Run, "advance", watched)
        got = training.fit(
            counted, TX, PARAMS, state, data, steps=limits, every=1, method="vmap",
            evaluate=lambda s: {"b": np.asarray(s.trainable[0]["w"]["b"])[:, 0, 0]},
            evaluate_every=3, **options,
        )  # fmt: skip
    assert widths == [4, 4, 2, 2]
    for i, limit in enumerate(limits):
        own = [(x[i], y[i]) for x, y in data[:limit]]
        want, losses = by_hand(row(state, i), own, rates[i])
        assert_close(row(got.states.trainable, i), row(want, ...))
        np.testing.assert_allclose(got.metrics["loss"][:limit, i], losses, rtol=1e-5)
    assert got.steps.tolist() == limits
    assert got.evaluated.tolist() == [3, 4]
    np.testing.assert_array_equal(*got.scores["b"][:, [0, 2]])


@pytest.mark.parametrize(
    ("limits", "widths"), [([3, 1, 1], [3, 1, 1]), ([3, 1, 2, 1, 3], [5, 3, 2])]
)
def test_odd_numbers_of_adapters_leave_the_program_too(limits, widths):
    number, seen = len(limits), []
    data, step = batches(3, number), _run.Run.advance

    def watched(run, batch, count):
        seen.append(len(run.rows))
        step(run, batch, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run.Run, "advance", watched)
        got = fit(
            data, states(number), steps=limits, every=1, method="vmap",
            hyper={"learning_rate": 0.03},
        )  # fmt: skip
    assert seen == widths
    for i, limit in enumerate(limits):
        own = [(x[i], y[i]) for x, y in data[:limit]]
        want, losses = by_hand(row(states(number), i), own, np.float32(0.03))
        assert_close(row(got.states.trainable, i), row(want, ...))
        np.testing.assert_allclose(got.metrics["loss"][:limit, i], losses, rtol=1e-5)


def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_happened(plain):
    memory, limits = Memory(), [4, 1, 2]
    data = batches()
    with pytest.raises(ValueError, match="data ended after 3 of 4 steps. Pass iter"):
        fit(data[:3], steps=limits, checkpoint=memory, save_every=2)
    assert [step for step, _ in memory.kept] == [2, 3]
    got = fit(data, steps=limits, checkpoint=memory)
    assert_close(got.states, plain.states)
    assert got.metrics["loss"].shape == (1, 3)
    asked = []
    again = fit(
        lambda skip: asked.append(skip) or iter(data[skip:]),
        steps=limits, checkpoint=memory,
    )  # fmt: skip
    assert (asked, again.metrics) == ([4], {})
    assert_close(again.states, plain.states)


def test_a_run_goes_on_with_what_it_was_begun_with_alone(plain):
    memory, key = Memory(), jax.random.key(3)
    fit(batches(2), steps=[2, 1, 2], checkpoint=memory, key=key)
    with pytest.raises(ValueError, match="step 2: steps is more than .* of '1', whose"):
        fit(batches(), steps=[4, 4, 4], checkpoint=memory, key=key)
    other = {"learning_rate": np.append(RATES[:2], np.float32(1))}
    named = {"checkpoint": memory, "key": key, "names": ["x", "y", "z"]}
    with pytest.raises(ValueError, match="'learning_rate' is another one for 'z'"):
        fit(batches(), steps=[4, 1, 2], hyper=other, **named)
    with pytest.raises(ValueError, match="key is another one for '0', '1', '2'"):
        fit(batches(), steps=[4, 1, 2], checkpoint=memory, key=jax.random.key(4))
    got = fit(batches(), steps=[4, 1, 2], checkpoint=memory, key=key)
    assert got.steps.tolist() == [4, 1, 2]
    assert_close(got.states, plain.states)


def test_the_checkpoints_of_the_library_are_such_a_place(plain, tmp_path):
    with training.Checkpoint(tmp_path / "kept", PARAMS) as checkpoint:
        fit(batches(2), steps=[2, 1, 2], checkpoint=checkpoint)
        got = fit(batches(), steps=[4, 1, 2], checkpoint=checkpoint)
    assert checkpoint.directory.exists()
    assert_close(got.states, plain.states)


def test_steps_in_one_program_are_the_same_steps_whatever_the_shapes(plain):
    mixed = [*batches(2), *batches(1, size=2)]
    got = fit(iter(mixed), fused=3)
    assert got.metrics["loss"].shape == (3, 3)
    own = [(x[0], y[0]) for x, y in mixed]
    want, losses = by_hand(row(states(), 0), own, RATES[0])
    assert_close(row(got.states.trainable, 0), row(want, ...))
    np.testing.assert_allclose(got.metrics["loss"][:, 0], losses, rtol=1e-5)
    np.testing.assert_allclose(got.metrics["mean"][0], plain.metrics["mean"][0])


def test_batches_of_one_step_come_one_after_another():
    twice = [batch for batch in batches(2) for _ in range(2)]
    got = fit(twice, accumulate=2)
    want = fit(batches(2))
    assert_close(got.states, want.states)
    assert got.metrics["loss"].shape == (2, 3)
    uneven = [*batches(1), *batches(1, size=2)]
    with pytest.raises(ValueError, match="the 2 batches of one step differ in shape"):
        fit(uneven, accumulate=2)


def test_callbacks_are_told_and_may_stop_adapters(tmp_path):
    reports = Reports(stop=[False, True, False])
    path = tmp_path / "new" / "metrics.jsonl"
    memory = Memory()
    got = fit(
        batches(), steps=4, every=2, names=["x", "y", "z"], checkpoint=memory,
        evaluate=lambda _: {"n": jnp.asarray([1.0, np.nan, 3.0])}, evaluate_every=2,
        callbacks=[training.JsonLines(path), reports],
    )  # fmt: skip
    assert got.steps.tolist() == [4, 2, 4]
    assert memory.kept[-1][1]["stopped"].tolist() == [False, True, False]
    assert [r.step for r in reports.all] == [2, 4]
    assert [r.active.tolist() for r in reports.all] == [[True] * 3, [False] * 3]
    assert reports.all[0].metrics["mean"].shape == (2, 3)
    kept = reports.all[0].state()
    assert not any(x.is_deleted() for x in jax.tree.leaves(kept))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["step"], x["adapter"]) for x in lines] == [
        (n, name) for n in (2, 4) for name in "xyz"
    ]
    first = got.metrics["loss"][:2, 0].mean()
    assert lines[0]["loss"] == pytest.approx(first, rel=1e-6)
    assert lines[4]["loss"] is None
    assert [x["eval/n"] for x in lines[:3]] == [1.0, None, 3.0]


def test_a_callback_that_stops_all_ends_the_run_and_keeps_it():
    memory = Memory()
    got = fit(
        itertools.cycle(batches()), steps=1000, every=2, checkpoint=memory,
        evaluate=lambda _: {"one": np.ones(3)}, callbacks=[Reports(stop=True)],
    )  # fmt: skip
    assert got.steps.tolist() == [2, 2, 2]
    assert got.evaluated.tolist() == [2]
    assert memory.kept[-1][0] == 2


def test_an_adapter_that_diverges_disturbs_no_other(plain):
    rates = np.array([np.nan, *RATES[1:]])
    got = fit(batches(), steps=[4, 1, 2], hyper={"learning_rate": rates})
    assert np.isnan(got.states.trainable[0]["w"]["b"][0]).all()
    for i in (1, 2):
        assert_close(row(got.states, i), row(plain.states, i))


def test_python_values_in_the_base_stay_what_they_are():
    def own(params, batch, key):
        return params["act"](loss(params, batch, key)[0]) * params["times"]

    base = PARAMS | {"act": jnp.tanh, "times": 2}
    got = training.fit(
        own, TX, base, states(), batches(1), optimizer=optax.sgd(0.1), method="map"
    )
    want = 2 * np.tanh(fit(batches(1)).metrics["loss"])
    np.testing.assert_allclose(got.metrics["loss"], want, rtol=1e-5)


def test_evaluator_is_the_mean_over_batches():
    def metrics(params, batch):
        return {"loss": loss(params, batch, None)[0]}

    evaluate = training.evaluator(metrics, TX, PARAMS, batches(2), method="map")
    found = evaluate(states())["loss"]
    want = [fit([batch]).metrics["loss"][0] for batch in batches(2)]
    np.testing.assert_allclose(found, np.mean(want, axis=0), rtol=1e-5)
    none = training.evaluator(metrics, TX, PARAMS, [])
    with pytest.raises(ValueError, match="evaluator: there is no batch. Pass a list"):
        none(states())


def test_a_bar_is_shown_where_somebody_sees_it(capsys, monkeypatch):
    fit(batches(2), steps=2, progress=True)
    assert "2/2" in capsys.readouterr().err
    fit(batches(2), steps=2)
    fit(batches(2), steps=2, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    fit(batches(2), steps=2)
    with pytest.raises(ValueError, match="progress=True needs tqdm. Install lowrank"):
        fit(batches(2), steps=2, progress=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be ints of at least 0, one for all"),
        ({"steps": 1.5}, ValueError, "steps must be ints of at least 0.*got 1.5"),
        ({"every": 0}, ValueError, "every must be an int of at least 1, got 0"),
        ({"save_every": 0.5}, ValueError, "save_every must be an int of at least 1"),
        ({"fused": 0}, ValueError, "fused must be an int of at least 1, got 0"),
        ({"names": ["x"]}, ValueError, "expected 3 names, got 1"),
        ({"data": 3}, TypeError, "data must be an iterable of batches, or a function"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    data = options.pop("data", batches(1))
    with untyped(), pytest.raises(error, match=f"training.fit: .*{message}"):
        fit(data, **options)


def test_the_family_is_found_without_being_imported():
    assert {"interop", "models", "training"} <= set(lrk._LAZY)


def test_nothing_to_do_is_done():
    got = fit(batches(1), steps=0)
    assert_close(got.states, states())
    assert (got.steps.tolist(), got.metrics) == ([0, 0, 0], {})
    assert isinstance(lrk.unstack(got.states)[0], lrk.State)
