"""Adapters whose merges published code has made, and trees to test those merges on."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from lowrank.merging import _pieces
from tests.network import numbers
from tests.once import once

SHAPES = {"bias": (5,), "first": (4, 3), "second": (3, 5)}
PARAMS = {p: jnp.asarray(numbers(i, *s)) for i, (p, s) in enumerate(SHAPES.items())}
TASKS = 3


@functools.cache
def golden():
    """The stored arrays; matrices are in the layout of torch, `[out, in]`."""
    path = Path(__file__).parents[1] / "golden" / "merging_signs.npz"
    with np.load(path) as file:
        return dict(file)


@functools.cache
def options():
    """Weights as a list, then density, epsilon, gamma and trim."""
    weights = golden()["in/weights"].tolist()
    return weights, *golden()["in/options"].tolist()


@once
def trees(bias=True):
    """The stored adapters over one base; the third leaves `second` and `bias` alone."""
    found = []
    for t, scale in enumerate(golden()["in/scale"].tolist()):
        tree = dict(PARAMS)
        for path in ("first", "second"):
            if (name := f"in/{t}/{path}") + "/a" in golden():
                a, b = (jnp.asarray(golden()[f"{name}/{f}"].T) for f in "ab")
                tree[path] = lrk.LowRank(PARAMS[path], a, b, scale)
        if bias and t < 2:
            d = jnp.asarray(golden()[f"in/{t}/bias"])
            tree["bias"] = lrk.Delta(PARAMS["bias"], d)
        found.append(tree)
    return found


@functools.cache
def dense():
    """What each tree adds, by path, `[out, in]` in float64."""
    return [
        {path: np.asarray(x, np.float64) for path, x in changes(tree).items()}
        for tree in trees()
    ]


def changes(tree):
    """What a tree adds to the base, by path, in the layout of torch."""
    found = {}
    for path, shape in SHAPES.items():
        _, terms = lrk.split(tree[path])
        total = sum((np.asarray(t.delta()) for t in terms), np.zeros(shape, np.float32))
        found[path] = total.T
    return found


def compare(tree, want, rtol=2e-5):
    """The changes of a merged tree are those wanted."""
    got = changes(tree)
    for path, y in want.items():
        np.testing.assert_allclose(got[path], y, rtol, 5e-6, err_msg=path)


def stored(name):
    """The merged changes under one name of the stored arrays."""
    return {p: golden()[f"{name}/{p}"] for p in SHAPES if f"{name}/{p}" in golden()}


def split_flat(flat, order=("first", "second", "bias")):
    """A flat vector of the model as changes by path."""
    shapes = [SHAPES[path][::-1] for path in order]
    ends = np.cumsum([np.prod(s) for s in shapes])[:-1]
    parts = np.split(np.asarray(flat), ends)
    return {p: x.reshape(s) for p, x, s in zip(order, parts, shapes, strict=True)}


def use_masks(monkeypatch, mask):
    """Let a random merge keep what `mask(path, part, task)` says, None for nothing."""

    def draws(key, name, shape):
        del key
        u = np.ones(shape, np.float32)
        for t in range(shape[0]):
            if (own := mask(*name, t)) is not None:
                u[t] = 1 - own.reshape(shape[1:])
        return jnp.asarray(u)

    monkeypatch.setattr(_pieces, "draws", draws)


def stored_masks(name):
    """For `use_masks`: the masks that were drawn under one name."""

    def mask(path, part, t):
        dense_name, factor = f"{name}/{path}/{t}", f"{name}/{path}/{'ab'[part]}/{t}"
        if dense_name in golden():
            return golden()[dense_name]
        if f"{name}/{path}/d/{t}" in golden():
            return golden()[f"{name}/{path}/d/{t}"]
        return golden()[factor].T if factor in golden() else None

    return mask
