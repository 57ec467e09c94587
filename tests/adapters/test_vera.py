"""`vera`: equations, PEFT's numbers, what leaves share, messages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.adapters._vera import shared_factors, shared_rows, with_vectors
from tests.network import numbers
from tests.reference import vera as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
PARAMS = {"v": jnp.asarray(numbers(1, 6, 4)), "w": jnp.asarray(numbers(2, 4, 6))}
GOLDEN = Path(__file__).parent.parent / "golden" / "vera.npz"
MATRIX = lrk.Axes((), (0,), (1,))
TX = lrk.vera(3)


def factors(state, n, m, rank=3):
    """The pair of matrices of any leaf."""
    rows = (shared_rows(state.fixed["w"]["seed"], count, rank) for count in (n, m))
    return shared_factors(*rows)


def vectors(leaf):
    return leaf["lambda_d"], leaf["lambda_b"]


def f32(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def moved(state):
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [x + 0.5 * numbers(9 + i, *x.shape) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, new))


def test_agrees_with_peft():
    stored = np.load(GOLDEN)
    assert str(stored["provenance"]).startswith("peft 0.21.2")
    params = {n: jnp.asarray(f32(stored[n].T)) for n in "vw"}
    big = {n: jnp.asarray(f32(stored[f"vera_{n}"].T)) for n in "AB"}
    x, g = (jnp.asarray(f32(stored[n])) for n in "xg")
    names = ("lambda_d", "lambda_b")
    own = {n: {k: jnp.asarray(f32(stored[f"{n}/{k}"])) for k in names} for n in "vw"}

    def objective(own):
        adapted = {}
        for name, w in params.items():
            a, b = big["A"][: w.shape[0]], big["B"][:, : w.shape[1]]
            adapted[name] = with_vectors(w, a, b, own[name], MATRIX)
        y = lrk.lift(lambda p, x: jnp.tanh(x @ p["v"]) @ p["w"])(adapted, x)
        return jnp.sum(y * g), (y, lrk.materialize(adapted))

    run = jax.jit(jax.grad(objective, has_aux=True))
    grads, (y, formed) = run(own)
    assert_close(y, f32(stored["y"]))
    assert_close(formed, {n: f32(stored[f"merged_{n}"].T) for n in "vw"})
    assert_close(
        grads, {n: {k: f32(stored[f"grad_{n}/{k}"]) for k in names} for n in "vw"}
    )
    start = jax.tree.map(np.asarray, TX.init(KEY, params).trainable["v"])
    assert_close(start["lambda_d"], f32(stored["d0"]))
    assert not start["lambda_b"].any()


def test_weights_follow_the_equation():
    state = moved(TX.init(KEY, PARAMS))
    formed = jax.jit(lambda s: lrk.materialize(TX.apply(PARAMS, s)))(state)
    for path, w in PARAMS.items():
        a, b = factors(state, *w.shape)
        want = reference.weight(w, a, b, *vectors(state.trainable[path]))
        assert_close(formed[path], f32(want))


def test_leaves_share_one_pair_of_matrices():
    state = TX.init(KEY, PARAMS)
    adapted = TX.apply(PARAMS, state)
    a, of_w = adapted["v"].a * 6**0.5, adapted["w"].a * 4**0.5
    assert_close(a[:4], of_w)  # the same rows, spread by the leaf's own inputs
    other = TX.init(jax.random.key(1), PARAMS)
    assert not np.allclose(TX.apply(PARAMS, other)["v"].a, adapted["v"].a)


def test_factors_have_the_spread_of_kaiming():
    a, b = map(np.asarray, factors(TX.init(KEY, PARAMS), 50, 50, 30))
    for factor, fan in ((a, 50), (b, 30)):
        bound = (6 / fan) ** 0.5
        assert 0.99 * bound < np.abs(factor).max() <= bound
        error = bound**2 * (4 / 45) ** 0.5 / factor.size**0.5
        assert abs(np.mean(factor**2) - 2 / fan) < 5 * error
    assert not np.allclose(a[:30, :30], b[:, :30].T)


def test_a_stack_holds_the_shared_factor_once():
    axes = {"w": lrk.Axes((0,), (1, 2), (3,)), "torch": lrk.Axes((), (1,), (0,))}
    params = {
        "w": jnp.asarray(numbers(3, 4, 2, 3, 4)),
        "torch": jnp.asarray(numbers(4, 4, 6)),
    }
    tx = lrk.vera(3, select=lrk.matching("."), axes=axes)
    state = moved(tx.init(KEY, params))
    adapted = tx.apply(params, state)
    assert adapted["w"].a.shape == (2, 3, 3)
    formed = jax.jit(lrk.materialize)(adapted)
    a, b = factors(state, 6, 4)
    for i in range(4):
        own = [x[i] for x in vectors(state.trainable["w"])]
        want = reference.weight(params["w"][i].reshape(6, 4), a, b, *own)
        assert_close(formed["w"][i].reshape(6, 4), f32(want))
    own = vectors(state.trainable["torch"])
    want = reference.weight(params["torch"].T, a, b, *own)
    assert_close(formed["torch"].T, f32(want))


def test_refuses_what_cannot_be_adapted():
    with pytest.raises(ValueError, match="vera: rank must be at least 1, got 0"):
        lrk.vera(0)
    params = {"ids": jnp.ones((2, 2), int)}
    with pytest.raises(ValueError, match=r"vera: cannot adapt 'ids' .*not floating"):
        lrk.vera(2, select=lrk.matching(".")).init(KEY, params)
    with pytest.raises(ValueError, match="'v' lacks trainable 'lambda_d'"):
        TX.apply(PARAMS, lrk.lora(2).init(KEY, PARAMS))


def test_refuses_a_state_of_several_inits():
    one, two = (TX.init(jax.random.key(i), PARAMS) for i in range(2))
    mixed = {"v": one.fixed["v"], "w": two.fixed["w"]}
    message = "vera: the seeds at 'w' are not that at 'v'.*by chain"
    with pytest.raises(ValueError, match=message):
        TX.apply(PARAMS, one._replace(fixed=mixed))
