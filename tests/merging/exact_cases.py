"""Trees that the tests of exact merges share, with their numbers taken apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference.merging_exact import slope
from tests.tolerances import assert_close
from tests.untyped import untyped

N, M = 6, 4
PARAMS = {
    "w": jnp.asarray(numbers(1, N, M)),
    "bias": jnp.asarray(numbers(2, M)),
    "layers": jnp.asarray(numbers(3, 2, N, M)),
    "heads": jnp.asarray(numbers(4, N, 2, 2)),
    "norm": jnp.ones(M),
}
SCALES = (0.5, 2.0)
WEIGHTS = (0.5, 1.25, 2.0)


def tree(seed, rank, scale=1.5, params=PARAMS):
    """A matrix, a stack of two, more axes, a bias, and a leaf that is left alone."""

    def low(i, base, b, scale, **dims):
        stack = base.shape[:-2] if base.shape[0] == 2 else ()
        a = numbers(seed + i, *stack, N, rank)
        b = numbers(seed + i + 5, *stack, rank, *b)
        return lrk.LowRank(base, a, b, scale, **dims)

    return {
        "w": low(1, params["w"], (M,), scale),
        "bias": lrk.Delta(params["bias"], jnp.asarray(numbers(seed, M))),
        "layers": low(2, params["layers"], (M,), scale * np.array(SCALES, np.float32)),
        "heads": low(3, params["heads"], (2, 2), scale),
        "norm": params["norm"],
    }


@functools.cache
def trees(ranks=(2, 1, 2)):
    """Unequal ranks and scales."""
    return tuple(tree(100 * (i + 1), r, 1.5 + i) for i, r in enumerate(ranks))


def adapters(tree):
    """By name, the matrices `(scale, a, b)` that a tree's leaves hold."""
    found = {
        "w": tree["w"],
        "heads": tree["heads"],
        "layers/0": tree["layers"],
        "layers/1": tree["layers"],
    }

    def apart(name, op):
        scale, a, b = (np.asarray(x, np.float64) for x in (op.scale, op.a, op.b))
        if name.startswith("layers"):
            i = int(name[-1])
            scale, a, b = scale[i], a[i], b[i]
        return scale, a, b.reshape(b.shape[0], M)

    return {name: apart(name, op) for name, op in found.items()}


def added_by(reference, trees, weights):
    """What a reference adds to each leaf, in float64; biases are summed."""
    own = [adapters(tree) for tree in trees]
    found = {name: reference([x[name] for x in own], weights) for name in own[0]}
    deltas = [np.asarray(tree["bias"].d, np.float64) for tree in trees]
    return {
        "w": found["w"],
        "bias": sum(w * d for w, d in zip(weights, deltas, strict=True)),
        "layers": np.stack([found["layers/0"], found["layers/1"]]),
        "heads": found["heads"].reshape(N, 2, 2),
    }


def merged_by(reference, trees, weights):
    """The dense tree that a reference gives."""
    added = added_by(reference, trees, weights) | {"norm": np.zeros(M)}
    return {p: np.float32(np.asarray(PARAMS[p], np.float64) + added[p]) for p in PARAMS}


PROBE = {p: numbers(50 + i, *x.shape) for i, (p, x) in enumerate(PARAMS.items())}


def probed(dense, np=np):
    """One number that depends on every entry of a dense tree, not linearly."""
    return sum(np.sum(PROBE[p] * x + x**2) for p, x in dense.items())


def assert_slope(merge, reference, weights=WEIGHTS, own=None):
    """The gradient with respect to the weights is that of the reference."""
    own = trees() if own is None else own

    def total(weights):
        dense = lrk.materialize(merge(own, weights))
        return probed({p: x for p, x in dense.items() if p != "norm"}, jnp)

    def wanted(weights):
        added = added_by(reference, own, weights)
        return probed({p: np.float64(PARAMS[p]) + x for p, x in added.items()})

    got = jax.grad(total)(jnp.array(weights, jnp.float32))
    want = slope(wanted, weights)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())


def sizes(fn, *args):
    """Sizes of all arrays that a function makes, in inner jaxprs too."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (int(np.prod(v.aval.shape)) for v in eqn.outvars)
            for value in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr):
                if is_jaxpr(value):
                    yield from walk(getattr(value, "jaxpr", value))

    def is_jaxpr(value):
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    return set(walk(jax.make_jaxpr(fn)(*args).jaxpr))


def wide(n=40, m=30, rank=2, number=3):
    """Trees over one weight far larger than its factors."""
    w = jnp.zeros((n, m))
    return [
        {"w": lrk.LowRank(w, numbers(i, n, rank), numbers(i + 9, rank, m))}
        for i in range(number)
    ]


def assert_lives_on(merge, own=None):
    """What comes out can be lifted, materialised and merged again; jit = eager."""
    own = trees() if own is None else own
    result = merge(own, WEIGHTS)
    x = jnp.asarray(numbers(8, 3, N))
    dense = lrk.materialize(result)
    own_use = {p: result[p] for p in ("w", "bias")}
    lifted = lrk.lift(lambda p, x: x @ p["w"] + p["bias"][None])(own_use, x)
    assert_close(lifted, x @ dense["w"] + dense["bias"][None])
    again = lrk.materialize(lrk.merging.concat([result, own[0]], [1.0, 0.5]))
    extra = lrk.materialize(lrk.merging.concat([own[0]], [0.5]))
    want = jax.tree.map(lambda d, e, w: d + (e - w), dense, extra, PARAMS)
    assert_close(again, want)
    assert jax.tree.map(id, lrk.base(result)) == jax.tree.map(id, PARAMS)

    @jax.jit
    def run(sweep, *trees):
        return jax.vmap(lambda w: lrk.materialize(merge(trees, w)), out_axes=0)(sweep)

    swept = run(jnp.array([WEIGHTS, WEIGHTS[::-1]]), *own)
    assert_close(jax.tree.map(lambda x: x[0], swept), dense)
    assert_close(
        jax.tree.map(lambda x: x[1], swept), lrk.materialize(merge(own, WEIGHTS[::-1]))
    )


def assert_refuses(who, merge, weighted=True):
    """Refusals that all merges have in common, in its own name."""
    one, two = (
        {"w": lrk.LowRank(jnp.zeros((N, M)), numbers(i, N, 1), numbers(i, 1, M))}
        for i in (1, 2)
    )
    message = f"{who}: expected a list of adapted trees, got dict"
    with untyped(), pytest.raises(TypeError, match=message):
        merge(one)
    with pytest.raises(ValueError, match=f"{who}: expected at least one adapted tree"):
        merge([])
    other = {"w": two["w"].replace(w=jnp.ones((N, M)))}
    with pytest.raises(ValueError, match=f"{who}: .*'w': the bases differ in value"):
        merge([one, other])
    with pytest.raises(ValueError, match=f"{who}: .*'v': not in every tree"):
        merge([one, two | {"v": jnp.ones(3)}])
    tx = lrk.lora(1, dropout=0.5)
    state = tx.init(jax.random.key(0), {"w": one["w"].w})
    random = tx.apply({"w": one["w"].w}, state, key=jax.random.key(0))
    with pytest.raises(ValueError, match=rf"{who}: cannot merge 'w' \(DropoutLowRank"):
        merge([one, random])
    if not weighted:
        return
    with pytest.raises(ValueError, match=f"{who}: expected 2 weights, .* got 1 of"):
        merge([one, two], [1.0])
    with pytest.raises(ValueError, match=f"{who}: the weights must be finite"):
        merge([one, two], [1.0, float("nan")])
    with pytest.raises(ValueError, match=f"{who}: .* missing 'w'; not adapted 'v'"):
        merge([one, two], [1.0, {"v": 1.0}])
