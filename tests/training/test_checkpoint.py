"""`Checkpoint` and `fingerprint`: what is kept, what comes back, what is refused."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank import training
from tests.network import numbers
from tests.tolerances import assert_close
from tests.training import small

BASE = {"w": numbers(1, 4, 3), "b": numbers(2, 3)}
HASH = "0" * 64
TREE = {
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "key": jax.random.key(3),
    "other": jax.random.key(3, impl="rbg"),
    "none": None,
    "empty": jnp.zeros((0, 2)),
    "host": np.arange(3),
    "number": np.int32(4),
    "count": 7,
    "rate": 0.5,
    "flag": True,
    "w/x": (jnp.arange(3),),
}


@pytest.fixture
def store(tmp_path):
    with training.Checkpoint(tmp_path, HASH, keep=2) as checkpoint:
        yield checkpoint


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array | np.ndarray):
            assert_close(x, y)
            assert np.array_equal(*map(data, (x, y)))
        else:
            assert x == y


def data(x):
    key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)


def test_every_kind_of_leaf_comes_back_as_it_was(store):
    assert store.restore(TREE) is None
    store.save(1, TREE)
    step, back = store.restore(TREE)
    assert step == 1
    same(back, TREE)
    shapes = jax.eval_shape(lambda tree: tree, TREE)
    same(
        store.restore(shapes | {n: TREE[n] for n in ("host", "count", "rate", "flag")})[
            1
        ]["w/x"],
        TREE["w/x"],
    )


def test_the_last_few_are_kept_and_any_of_them_comes_back(store):
    for step in (2, 4, 7):
        store.save(step, {"x": jnp.full(2, step)})
    store.save(7, {"x": jnp.zeros(2)})  # held already: left as it is
    assert store.steps == (4, 7)
    like = {"x": jax.ShapeDtypeStruct((2,), jnp.int32)}
    assert store.restore(like)[1]["x"].tolist() == [7, 7]
    assert store.restore(like, step=4)[1]["x"].tolist() == [4, 4]
    assert store.restore(like)[1]["x"].tolist() == [7, 7]
    with pytest.raises(ValueError, match=r"no step 2 among \[4, 7\]"):
        store.restore(like, step=2)
    with pytest.raises(ValueError, match="step 5 is behind step 7 in"):
        store.save(5, {"x": jnp.zeros(2)})


def test_what_was_saved_may_be_donated_or_changed_at_once(store):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, host = step(jnp.zeros(1 << 20)), np.zeros(1 << 20)
    store.save(1, {"x": x, "host": host})
    for _ in range(3):
        x = step(x)
        host += 1
    back = store.restore({"x": x, "host": host})[1]
    assert np.all(np.asarray(back["x"]) == 1)
    assert np.all(back["host"] == 0)


def test_a_state_comes_back_into_the_shapes_that_init_would_give(tmp_path):
    tx, key = lrk.chain(lrk.lora(2), lrk.dora(1)), jax.random.key(0)
    state = jax.jit(tx.init)(key, BASE)
    with training.Checkpoint(tmp_path, BASE) as checkpoint:
        checkpoint.save(0, state)
        step, back = checkpoint.restore(jax.eval_shape(tx.init, key, BASE))
    assert step == 0
    assert isinstance(back, lrk.State)
    assert_close(back, state)
    other = BASE | {"b": BASE["b"] + 1}
    message = (
        r"step 0 in '.*' was made over another base: expected SHA-256 [0-9a-f]{64}"
    )
    with training.Checkpoint(tmp_path, other) as checkpoint:
        with pytest.raises(ValueError, match=message):
            checkpoint.restore(state)


def test_fit_goes_on_from_it_bit_for_bit(tmp_path):
    data = small.batches()

    def fit(data, folder):
        with training.Checkpoint(tmp_path / folder, small.PARAMS) as checkpoint:
            options = {"optimizer": optax.adam, "method": "map", "save_every": 2}
            options |= {"hyper": {"learning_rate": small.RATES}, "steps": 4}
            return training.fit(
                small.loss, small.TX, small.PARAMS, small.states(), data,
                checkpoint=checkpoint, **options,
            )  # fmt: skip

    with pytest.raises(ValueError, match="data ended after 3 of 4 steps"):
        fit(data[:3], "cut")
    got, whole = fit(data, "cut"), fit(data, "whole")
    assert got.metrics["loss"].shape == (1, 3)  # three steps were there
    jax.tree.map(np.testing.assert_array_equal, got.states, whole.states)


def test_leaves_that_do_not_fit_are_all_named(store):
    store.save(1, {"x": jnp.zeros(2), "y": 1, "z": jnp.zeros(3)})
    message = (
        r"no 'w' in the checkpoint; 'z' is not asked for; "
        r"'x': expected float32\[3\], got float32\[2\]; 'y': expected float, got int"
    )
    with pytest.raises(ValueError, match=message):
        store.restore({"w": 1, "x": jnp.zeros(3), "y": 1.0})


def test_refuses_what_it_cannot_save(store):
    adapted = lrk.LowRank(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((2, 3)))
    bad = {"w": adapted, "name": "x", "shape": jax.ShapeDtypeStruct((), jnp.int32)}
    message = r"'name' \(str\), 'shape' \(ShapeDtypeStruct\), 'w' \(LowRank\)"
    with pytest.raises(TypeError, match=message):
        store.save(1, bad)
    with pytest.raises(ValueError, match="the tree holds no leaves"):
        store.save(1, {})


def test_refuses_hyperparameters(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        training.Checkpoint(tmp_path, HASH, keep=0)
    with pytest.raises(ValueError, match="'runs/x' is no fingerprint"):
        training.Checkpoint(tmp_path, "runs/x")


def test_fingerprint_is_the_hash_of_paths_kinds_and_bytes(monkeypatch):
    plain = hashlib.sha256()
    for name in ("b", "w"):
        leaf = BASE[name]
        plain.update(f"{name} float32 {leaf.shape}\n".encode() + leaf.tobytes())
    want = plain.hexdigest()
    assert training.fingerprint(BASE) == want
    assert training.fingerprint(jax.tree.map(jnp.asarray, BASE)) == want
    assert (
        training.fingerprint({"b": BASE["b"], "w": np.asfortranarray(BASE["w"])})
        == want
    )
    monkeypatch.setattr("lowrank.training._fingerprint._BLOCK", 5)
    assert training.fingerprint(BASE) == want
    others = [
        {"w": BASE["w"]},
        BASE | {"b": BASE["b"].astype(np.float16)},
        BASE | {"w": BASE["w"].reshape(3, 4)},
        {"w": BASE["w"], "c": BASE["b"]},
        BASE | {"w": BASE["w"] + np.float32(1e-6)},
        BASE | {"extra": jnp.ones((), jnp.bfloat16)},
    ]
    assert len({want, *map(training.fingerprint, others)}) == len(others) + 1


def test_fingerprint_refuses_what_has_no_numbers():
    with pytest.raises(ValueError, match="got 0 at 0 paths"):
        training.fingerprint({})
    with pytest.raises(TypeError, match="no numbers at 'b', 'w'"):
        training.fingerprint(jax.eval_shape(lambda: BASE))
