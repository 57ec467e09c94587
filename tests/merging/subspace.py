"""Trees for the merges in a subspace, and what they add in float64."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from lowrank import _compat
from tests.network import numbers
from tests.once import once

# Matrices of 8 x 6, laid out in several ways: shape, a_dims, b_dims, rank of each task.
LEAVES = {
    "first": ((8, 6), (0,), (1,), (1, 2, 2)),
    "layers": ((2, 8, 2, 3), (2, 1), (2, 0, 3), (2, 1, 2)),
    "only": ((8, 6), (0,), (1,), (1, 0, 2)),
}
SCALES = (1.0, 0.5, 2.0)
WEIGHTS = (0.5, -1.25, 2.0)
BIAS = (2, 0, 1)  # the trees that change it are those with a number
GOLDEN = Path(__file__).parents[1] / "golden" / "merging_subspace.npz"

BASE = {
    path: jnp.asarray(numbers(i, *x[0])) for i, (path, x) in enumerate(LEAVES.items())
}
BASE |= {"bias": jnp.asarray(numbers(8, 6)), "norm": jnp.ones(8)}


def depth(path):
    return 2 if path == "layers" else 1


@functools.cache
def factors(path, task):
    """`A: [S, 8, r]` and `B: [S, r, 6]` in float32, without the scale."""
    rank, seed = LEAVES[path][3][task], 20 + 10 * list(LEAVES).index(path) + task
    a = numbers(seed, depth(path), 8, rank)
    return a, numbers(seed + 100, depth(path), rank, 6)


def operator(path, task, a, b):
    shape, a_dims, b_dims, _ = LEAVES[path]
    stack = (2,) if path == "layers" else ()
    b = b.reshape(*stack, a.shape[-1], *((2, 3) if stack else (6,)))
    dims = {"a_dims": a_dims, "b_dims": b_dims}
    return lrk.LowRank(BASE[path], a.reshape(*stack, 8, -1), b, SCALES[task], **dims)


@once
def trees(bias=True):
    """Three tasks: unequal ranks and scales, a stack, a leaf that one leaves alone."""
    found = []
    for task in range(3):
        tree = dict(BASE)
        for path, leaf in LEAVES.items():
            if leaf[3][task]:
                tree[path] = operator(path, task, *factors(path, task))
        if bias and BIAS[task]:
            tree["bias"] = lrk.Delta(BASE["bias"], BIAS[task] * jnp.ones(6))
        found.append(tree)
    return found


def models():
    """For each task, the `(A: [r, 8], B: [6, r])` of all matrices, as in the papers."""
    return [
        [
            (a.astype(np.float64).T, SCALES[task] * b.astype(np.float64).T)
            for path in LEAVES
            for a, b in zip(*factors(path, task), strict=True)
        ]
        for task in range(3)
    ]


def changes():
    """For each task, the `[6, 8]` changes of all matrices."""
    return [[b @ a for a, b in own] for own in models()]


def by_matrix(merge, *args, **kwargs):
    """A reference that takes the changes of one matrix, run for all of them."""
    return [merge(own, *args, **kwargs) for own in zip(*changes(), strict=True)]


def expected(matrices):
    """What a reference says, as one vector."""
    return np.concatenate([d.T.ravel() for d in matrices])


def added(merged):
    """What a merged tree adds to its matrices, as one vector in the same order."""
    found = []
    for path, (_, a_dims, b_dims, _) in LEAVES.items():
        _, terms = lrk.split(merged[path])
        d = sum(term.delta() for term in terms)
        stack = [x for x in a_dims if x in b_dims]
        order = [*stack, *(x for x in a_dims if x not in stack)]
        order += [x for x in b_dims if x not in stack]
        found.append(jnp.transpose(d, order).ravel())
    return jnp.concatenate(found)


PATTERN = numbers(500, 4 * 48).astype(np.float64)


def slope(reference, at, step=1e-5):
    """Derivatives of `sum(PATTERN * reference(x))` by central differences."""
    found = []
    for i in range(len(at)):
        ends = []
        for sign in (1, -1):
            x = np.array(at, np.float64)
            x[i] += sign * step
            ends.append(float(PATTERN @ expected(reference(x))))
        found.append((ends[0] - ends[1]) / (2 * step))
    return np.array(found, np.float32)


def largest(fn, *args):
    """Size of the largest array that a function computes."""

    def sizes(jaxpr):
        for eqn in _compat.body(jaxpr).eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for inner in _compat.inner_jaxprs(eqn):
                yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(fn)(*args)))


def golden_trees(kind):
    """The adapters that the authors' code was run on, in our layout."""
    stored = np.load(GOLDEN)

    def leaf(task, name):
        b, a = (stored[f"{kind}/{task}/{name}/{side}"].T for side in "ba")
        return lrk.LowRank(jnp.zeros((a.shape[0], b.shape[1])), a, b)

    bases = {name: leaf(0, name).w for name in "xy"}
    return [
        {name: leaf(task, name).replace(w=bases[name]) for name in "xy"}
        for task in range(3)
    ]


def golden(name):
    """What the authors' code made of them."""
    stored = np.load(GOLDEN)
    return {leaf: stored[f"{name}/{leaf}"].T for leaf in "xy"}
