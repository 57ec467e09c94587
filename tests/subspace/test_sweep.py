"""`subspace.trial` and `subspace.sweep`: many dimensions, rates and seeds at once."""

import shelve

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.subspace._sweep_runs import content
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

PARAMS = {"w": jnp.asarray(numbers(1, 4, 3)), "b": jnp.zeros(3)}
TARGET = jnp.asarray(numbers(2, 15))
STEPS = 6
DENSE, GATHER = lrk.subspace.dense(), lrk.subspace.gather()


def flat(tree):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def descend(place, trainable, rate, key, target):
    """Gradient descent on the distance to a target; a score, and what was trained."""

    def loss(trained):
        gaps = flat(lrk.materialize(place(trained))) - target
        return jnp.sum(jnp.square(gaps))

    def step(trained, _):
        down = jax.tree.map(lambda x, g: x - rate * g, trained, jax.grad(loss)(trained))
        return down, None

    trained, _ = jax.lax.scan(step, trainable, length=STEPS)
    return {"loss": loss(trained), "z": trained["subspace"]["z"], "draw": order(key)}


def order(key):
    return jax.random.uniform(key)


def alone(projection, d, rate, seed, params=PARAMS, largest=None):
    """The same run without masks or maps, from the transform itself."""
    first, drawn, last = jax.random.split(jax.random.key(seed), 3)
    tx = lrk.subspace.random(largest or d, projection)
    state = tx.init(drawn, params)
    z, keep = np.zeros(largest or d), np.arange(largest or d) < d

    def value(z):
        moved = state._replace(trainable={"subspace": {"z": z}})
        gaps = flat(lrk.materialize(tx.apply(params, moved))) - TARGET
        return jnp.sum(jnp.square(gaps))

    z = jnp.asarray(z, jnp.float32)
    for _ in range(STEPS):
        z = z - rate * keep * jax.grad(value)(z)
    del first
    return value(z), z, order(last)


def swept(projection, ds=(2, 5), rates=(0.1, 0.3), seeds=(0, 3), **kwargs):
    return lrk.subspace.sweep(
        descend, PARAMS, projection, ds, rates=rates, seeds=seeds, data=TARGET, **kwargs
    )


@pytest.fixture(scope="module")
def dense():
    return swept(DENSE)


def test_scores_are_those_of_single_runs(dense):
    assert dense.scores["loss"].shape == (2, 2, 2)
    assert dense.scores["z"].shape == (2, 2, 2, 5)
    for i, j, k in np.ndindex(2, 2, 2):
        d, rate, seed = dense.ds[i], dense.rates[j], dense.seeds[k]
        loss, z, draw = alone(DENSE, d, rate, seed, largest=5)
        assert_close(dense.scores["loss"][i, j, k], np.asarray(loss))
        assert_close(dense.scores["z"][i, j, k], np.asarray(z))
        assert dense.scores["draw"][i, j, k] == draw


def test_masked_numbers_do_not_train(dense):
    z = dense.scores["z"]
    assert not z[0, :, :, 2:].any()
    assert (z[1] != 0).all()
    assert (z[0, :, :, :2] != 0).all()


def test_the_mask_is_the_smaller_subspace():
    """Not only some subspace: that of the first columns, which alone are in use."""
    run = lrk.subspace.trial(descend, DENSE, 5)
    masked = run(PARAMS, 2, 0.3, jax.random.key(3), TARGET)
    _, drawn, _ = jax.random.split(jax.random.key(3), 3)
    fixed = lrk.subspace.random(5, DENSE).init(drawn, PARAMS).fixed
    p = np.concatenate([fixed["b"]["p"], fixed["w"]["p"]]).astype(np.float64)[:, :2]
    z, origin = np.zeros(2), np.asarray(flat(PARAMS), np.float64)
    for _ in range(STEPS):
        z -= 0.3 * 2 * p.T @ (origin + p @ z - np.asarray(TARGET))
    assert_close(np.asarray(masked["z"])[:2], z.astype(np.float32))


def test_one_program_serves_all_dimensions(traces):
    swept(DENSE, ds=(1, 2, 4), rates=(0.1,), seeds=(0,))
    counted = traces(descend)
    lrk.subspace.sweep(
        counted, PARAMS, DENSE, (1, 2, 4), rates=(0.1, 0.2), seeds=(0, 1), data=TARGET
    )
    nested, traces.count = traces.count, 0
    lrk.subspace.sweep(
        counted, PARAMS, GATHER, (1, 2, 4), rates=(0.1, 0.2), seeds=(0, 1), data=TARGET
    )
    assert traces.count == 3 * nested


def test_what_is_not_nested_is_drawn_for_each_dimension():
    found = swept(GATHER, rates=(0.1,), seeds=(1,), ds=(2, 15))
    own = {name: leaf[:, 0, 0] for name, leaf in found.scores.items()}
    for i, d in enumerate((2, 15)):
        loss, z, draw = alone(GATHER, d, 0.1, 1)
        assert_close(own["loss"][i], np.asarray(loss))
        assert own["draw"][i] == draw
        assert_close(own["z"][i, :d], np.asarray(z))
    assert not own["z"][0, 2:].any()


def only_loss(place, trainable, rate, key, target):
    return descend(place, trainable, rate, key, target)["loss"]


def test_takes_any_transform_of_d():
    found = lrk.subspace.sweep(
        lambda _place, trainable, rate, _key, _data: flat(trainable).size + 0 * rate,
        PARAMS,
        lambda d: lrk.subspace.structured(d, DENSE),
        (4, 7),
        rates=(0.1,),
        seeds=(0,),
    )
    assert found.scores.ravel().tolist() == [4, 7]


@pytest.mark.parametrize("method", ["map", "vmap"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(dense, chunk, method):
    found = swept(DENSE, chunk=chunk, method=method)
    assert_close(found.scores["loss"], dense.scores["loss"])


def test_each_seed_has_a_start_of_its_own():
    def start(key, params):
        return jax.tree.map(lambda x: x + jax.random.normal(key, ()), params)

    def first(place, trainable, rate, _key, _data):
        return lrk.materialize(place(trainable))["b"][0] + 0 * rate

    found = lrk.subspace.sweep(
        first, PARAMS, DENSE, (1, 2), rates=(0.1,), seeds=(0, 1), start=start
    ).scores[:, 0]
    assert (found[0] == found[1]).all()  # the same start for all dimensions
    want = [
        jax.random.normal(jax.random.split(jax.random.key(s), 3)[0], ()) for s in (0, 1)
    ]
    assert_close(found[0], np.asarray(jnp.stack(want)))


def test_resumes_from_the_runs_that_a_file_holds(tmp_path, traces):
    told, counted = [], traces(descend)

    def swept_into(path, ds, stop=False, data=TARGET):
        def progress(done, runs):
            told.append((done, runs))
            if stop:
                raise KeyboardInterrupt

        with shelve.open(path) as runs:
            return lrk.subspace.sweep(
                counted, PARAMS, DENSE, ds, rates=(0.1,), seeds=(0, 1), data=data,
                progress=progress, runs=runs,
            )  # fmt: skip

    path = str(tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        swept_into(path, (1, 2), stop=True)
    found = swept_into(path, (1, 2))
    assert told == [(2, 4), (4, 4)]
    again, before = swept_into(path, (1, 2)), traces.count
    assert (told[2:], traces.count) == ([], before)  # nothing was left to run
    for one, two in zip(found.scores.values(), again.scores.values(), strict=True):
        np.testing.assert_array_equal(one, two)
    swept_into(path, (1, 3))
    assert told[2:] == [(2, 4), (4, 4)]  # of 3 columns d = 1 is another subspace
    other = swept_into(path, (1, 2), data=2 * TARGET)
    assert told[4:] == [(2, 4), (4, 4)]  # nor are runs on other data the same
    assert np.all(other.scores["loss"] != found.scores["loss"])
    assert_close(
        found.scores["loss"], swept(DENSE, (1, 2), (0.1,), (0, 1)).scores["loss"]
    )


def test_what_runs_are_on_is_told_apart_by_every_number():
    tree = {"w": jnp.ones(3), "n": 2, "key": jax.random.key(0)}
    want = content(tree, None)
    assert (
        content({"n": 2, "key": jax.random.key(0), "w": np.ones(3, "f4")}, None) == want
    )
    others = (
        tree | {"w": jnp.ones(3).at[2].set(1.001)},
        tree | {"w": jnp.ones((3, 1))},
        tree | {"n": 3},
        tree | {"key": jax.random.key(1)},
        {"v": tree["w"], "n": 2, "key": tree["key"]},
    )
    assert len({want, *(content(other, None) for other in others)}) == 6


def test_says_how_long_the_rest_takes():
    lines = []
    swept(DENSE, rates=(0.1,), log=lines.append)
    (line,) = lines
    assert "2 run(s) took" in line
    assert "the other 2 are expected to take" in line
    swept(DENSE, rates=(0.1,), ds=(2,), log=lines.append)
    assert len(lines) == 1  # there was nothing left to tell


def test_best_rates_are_chosen_by_other_scores():
    valid = np.array([[[0.1, 0.3], [0.2, 0.1]], [[0.5, np.nan], [0.1, 0.1]]])
    test = np.arange(8.0).reshape(2, 2, 2)
    found = lrk.subspace.at_best_rate(test, valid)
    assert found.tolist() == [[0, 1], [6, 7]]


# Messages


def test_refuses_grids_that_are_none():
    with pytest.raises(
        ValueError, match=r"wrong ds \[\].*rates \[-1\.0\].*seeds \[1, 1\]"
    ):
        swept(DENSE, ds=(), rates=(-1.0,), seeds=(1, 1))
    with pytest.raises(ValueError, match=r"ds \[0, 2\]: expected .* at least 1"):
        swept(DENSE, ds=(0, 2))
    with pytest.raises(ValueError, match=r"rates \[nan\]"):
        swept(DENSE, rates=(float("nan"),))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        swept(DENSE, chunk=0)
    with (
        untyped(),
        pytest.raises(TypeError, match=r"ds must be ints, got 2\.5"),
    ):
        swept(DENSE, ds=(2.5,))
    with pytest.raises(ValueError, match="d=16 exceeds the 15 entries"):
        swept(DENSE, ds=(16,))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 3}, "seeds must be a sequence, got 3. Pass a list"),
        ({"seeds": (0.5,)}, "seeds must be ints, got 0.5"),
        ({"rates": 0.1}, "rates must be a sequence, got 0.1"),
        ({"rates": ("a",)}, r"rates must be numbers, got \['a'\]"),
        ({"chunk": 2.0}, "chunk must be an int, got 2.0"),
        ({"runs": "runs.db"}, r"runs as a mapping, got 'runs.db'. .* shelve.open"),
    ],
)
def test_refuses_arguments_of_another_kind(wrong, words):
    options = {"rates": (0.1,), "seeds": (0,)} | wrong
    with untyped(), pytest.raises(TypeError, match=words):
        lrk.subspace.sweep(descend, PARAMS, DENSE, (1,), data=TARGET, **options)


def test_refuses_what_is_no_subspace():
    with untyped(), pytest.raises(TypeError, match="function to train with, got 3"):
        lrk.subspace.sweep(3, PARAMS, DENSE, (1,), rates=(1.0,), seeds=(0,))
    with untyped(), pytest.raises(TypeError, match="a Projection, or a function d"):
        swept("dense")
    with pytest.raises(TypeError, match="a Projection, or a function d"):
        swept(lambda d: d)
    with untyped(), pytest.raises(TypeError, match="a Projection, or a function d"):
        swept(lrk.subspace.sparse)
    with untyped(), pytest.raises(TypeError, match="trial: expected a function to"):
        lrk.subspace.trial(3, DENSE, 1)
    tx = lambda d: lrk.subspace.random(d, DENSE)  # noqa: E731
    with pytest.raises(ValueError, match="select= is for projections"):
        swept(tx, select=lrk.matching("w"))


def test_a_trial_that_is_not_nested_has_one_dimension():
    run = lrk.subspace.trial(only_loss, GATHER, 4)
    assert run(PARAMS, 4, 0.1, jax.random.key(0), TARGET).shape == ()
    with pytest.raises(ValueError, match="not nested: expected d=4, got 2"):
        run(PARAMS, 2, 0.1, jax.random.key(0), TARGET)


def test_dimensions_of_a_trial_may_be_numpy_ints_up_to_the_largest():
    def seen(_place, trainable, _rate, _key, _data):
        return flat(trainable).size

    run = lrk.subspace.trial(seen, GATHER, 4)
    assert run(PARAMS, np.int64(4), 0.1, jax.random.key(0), None) == 4
    run = lrk.subspace.trial(seen, DENSE, 4)
    with pytest.raises(ValueError, match="expected d up to largest=4, got 5"):
        run(PARAMS, 5, 0.1, jax.random.key(0), None)


def test_refuses_scores_of_other_shapes():
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 2\)"):
        lrk.subspace.at_best_rate(np.ones((2, 2)), np.ones((2, 2)))
