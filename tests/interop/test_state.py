"""States as files: every kind comes back, and nothing else is taken for one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import lowrank as lrk
from lowrank.interop import load_state, read_notes, save_state
from tests.untyped import untyped

SUFFIXES = (".npz", ".safetensors")


@pytest.fixture(scope="module")
def params():
    return {"größe:x": {"w": jnp.ones((4, 3))}, "b": jnp.zeros(3)}


@pytest.fixture(scope="module")
def tx():
    mask = {"größe:x/w": np.eye(2, 3, dtype=int)}
    sparse = lrk.chain(lrk.lori(2, mask=mask, store_a=False), lrk.identity())
    return lrk.chain(lrk.dora(2), sparse, lrk.full(select=lrk.matching("b$")))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_chain_of_chains_comes_back(tx, params, suffix, tmp_path):
    state = jax.jit(tx.init)(jax.random.key(0), params)
    file = tmp_path / "ein Ordner é" / f"state{suffix}"
    save_state(file, state, notes={"rank": 2})
    like = jax.eval_shape(tx.init, jax.random.key(0), params)
    back = load_state(file, like=like)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    kinds = [[x.dtype for x in jax.tree.leaves(one)] for one in (back, state)]
    assert kinds[0] == kinds[1]
    assert read_notes(file) == {"rank": 2}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_half_precision_needs_safetensors(tmp_path):
    state = lrk.State({"w": {"d": jnp.ones(3, jnp.bfloat16)}}, {})
    save_state(tmp_path / "x.safetensors", state)
    assert (
        load_state(tmp_path / "x.safetensors").trainable["w"]["d"].dtype == "bfloat16"
    )
    with pytest.raises(ValueError, match=r"cannot hold the dtype of trainable::w:d"):
        save_state(tmp_path / "x.npz", state)


def test_what_differs_from_the_expected_state_is_listed(params, tmp_path):
    tx = lrk.lora(2)
    state = jax.eval_shape(tx.init, jax.random.key(0), params)
    made = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    save_state(tmp_path / "x.npz", made)
    other = lrk.chain(lrk.lora(1), lrk.identity())
    like = jax.eval_shape(other.init, jax.random.key(0), params)
    with pytest.raises(
        ValueError,
        match=r"missing 'trainable:0:.*; unexpected 'trainable::.*Nothing was",
    ):
        load_state(tmp_path / "x.npz", like=like)
    like = jax.eval_shape(lrk.lora(1).init, jax.random.key(0), params)
    with pytest.raises(
        ValueError, match=r"expected float32\[4, 1\], got float32\[4, 2"
    ):
        load_state(tmp_path / "x.npz", like=like)
    with pytest.raises(TypeError, match=r"no numbers at trainable::.*outside jit"):
        save_state(tmp_path / "x.npz", state)
    with untyped(), pytest.raises(TypeError, match="expected a State, got dict"):
        save_state(tmp_path / "x.npz", {})
    with pytest.raises(ValueError, match=r"ends in .safetensors or .npz, got 'x.pkl'"):
        load_state("x.pkl")


def test_pickles_and_other_files_are_refused(tmp_path):
    npz, st = tmp_path / "x.npz", tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no file at .*x.npz"):
        load_state(npz)
    with pytest.raises(FileNotFoundError, match="no file at .*x.safetensors"):
        load_state(st)
    np.savez(npz, header=np.array([{}], object))
    with pytest.raises(ValueError, match="objects in 'header.npy', which are never lo"):
        load_state(npz)
    np.savez_compressed(npz, x=np.zeros(10_000))
    with pytest.raises(ValueError, match="uncompressed .npz file .*or compressed data"):
        load_state(npz)
    np.savez(npz, x=np.zeros(3))
    save_file({"x": np.zeros(3)}, st)
    for file in (npz, st):
        with pytest.raises(ValueError, match="is no state of this version"):
            load_state(file)
    header = {"format": "lowrank state", "version": "1", "members": "[0]"}
    for key in ("x", "trainable:7:x:y", "other:0:x:y", "trainable::x:y"):
        save_file({key: np.zeros(3)}, st, header)
        with pytest.raises(ValueError, match="its names are not those of a state"):
            load_state(st)
    for members in ("{}", "[" * 99 + "]" * 99, "?"):
        save_file({"trainable::x:y": np.zeros(3)}, st, header | {"members": members})
        with pytest.raises(ValueError, match="its names are not those of a state"):
            load_state(st)
    save_file({"x": np.zeros(3)}, st, header | {"notes": json.dumps([])})
    with pytest.raises(ValueError, match="notes in .* are no JSON object"):
        read_notes(st)
