"""Starts of LoRA's factors: PiSSA, OLoRA and initialisers; PEFT's numbers, messages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.adapters._initializers import basis
from tests.network import numbers
from tests.reference import inits as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(1, 6, 5))}
GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "inits.npz")
RANK, ALPHA = 2, 3.0
STARTS = {"pissa": lrk.pissa, "olora": lrk.olora}


def f32(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def golden(name, *keys):
    """PEFT's arrays in our layout."""
    return tuple(jnp.asarray(f32(GOLDEN[f"{name}/{key}"].T)) for key in keys)


def drawn(tx, params):
    """A fresh state, by one compiled program."""
    return jax.jit(tx.init)(KEY, params)


def run(tx, params, state, x, g):
    """Results and gradients by one compiled program."""

    def objective(trainable):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        y = lrk.lift(lambda p, x: x @ p["w"])(adapted, x)
        return jnp.sum(y * g), y

    grads, y = jax.jit(jax.grad(objective, has_aux=True))(state.trainable)
    return y, grads["w"]


# --- PEFT ----------------------------------------------------------------------------

CASES = {
    "pissa": lambda: lrk.pissa(RANK, alpha=ALPHA),
    "olora": lambda: lrk.olora(RANK, alpha=ALPHA),
    "orthogonal": lambda: lrk.lora(RANK, alpha=ALPHA),
    "gaussian": lambda: lrk.lora(RANK, alpha=ALPHA),
    "rslora": lambda: lrk.lora(RANK, scale=ALPHA / RANK**0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_peft(name):
    assert str(GOLDEN["provenance"]).startswith("peft 0.21.2")
    params = {"w": jnp.asarray(GOLDEN["w"].T)}
    x, g = (jnp.asarray(f32(GOLDEN[n])) for n in "xg")
    tx = CASES[name]()
    state = drawn(tx, params)
    a0, b0 = golden(name, "a0", "b0")
    if name in STARTS:
        own = state.trainable["w"]
        assert_close(own["a"] @ own["b"], a0 @ b0)
        assert_close(jnp.abs(own["a"]), jnp.abs(a0))  # signs are free
    start = state._replace(trainable={"w": {"a": a0, "b": b0}})
    assert_close(run(tx, params, start, x, g)[0], f32(GOLDEN[f"{name}/y0"]))
    a, b = golden(name, "a", "b")
    moved = state._replace(trainable={"w": {"a": a, "b": b}})
    y, grads = run(tx, params, moved, x, g)
    assert_close(y, f32(GOLDEN[f"{name}/y"]))
    want = golden(name, "grad_a", "grad_b")
    assert_close((grads["a"], grads["b"]), want)
    formed = lrk.materialize(tx.apply(params, moved))["w"]
    assert_close(formed, golden(name, "merged")[0])


# --- PiSSA and OLoRA -----------------------------------------------------------------


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(("told", "scale"), [({}, 1.0), ({"scale": 0.3}, 0.3)])
def test_weight_follows_the_equations(name, told, scale):
    tx, w = STARTS[name](3, **told), PARAMS["w"]
    state = tx.init(KEY, PARAMS)
    a0, b0 = getattr(reference, name)(w, 3, scale)
    own = state.trainable["w"]
    assert_close(own["a"] @ own["b"], f32(a0 @ b0))
    assert_close((state.fixed["w"]["a0"], state.fixed["w"]["b0"]), tuple(own.values()))
    assert_close(lrk.materialize(tx.apply(PARAMS, state)), PARAMS)
    a, b = jnp.asarray(numbers(2, 6, 3)), jnp.asarray(numbers(3, 3, 5))
    moved = state._replace(trainable={"w": {"a": a, "b": b}})
    want = reference.weight(w, a, b, a0, b0, scale)
    assert_close(lrk.materialize(tx.apply(PARAMS, moved))["w"], f32(want))


def test_pissa_leaves_the_smaller_singular_values():
    state = lrk.pissa(3).init(KEY, PARAMS)
    own = state.trainable["w"]
    rest = np.linalg.svd(PARAMS["w"] - own["a"] @ own["b"], compute_uv=False)
    whole = np.linalg.svd(PARAMS["w"], compute_uv=False)
    assert_close(rest[:2], whole[3:])


@pytest.mark.parametrize("name", STARTS)
def test_axes_say_which_matrix_is_taken_apart(name):
    shapes = {"torch": (5, 6), "layers": (2, 6, 5), "heads": (6, 2, 2)}
    axes = {
        "torch": lrk.Axes((), (1,), (0,)),
        "layers": lrk.Axes((0,), (1,), (2,)),
        "heads": lrk.Axes((), (0,), (1, 2)),
    }
    params = {p: jnp.asarray(numbers(4, *s)) for p, s in shapes.items()}
    tx = STARTS[name](2, select=lrk.matching("."), axes=axes)
    state = drawn(tx, params)
    assert_close(jax.jit(lambda s: lrk.materialize(tx.apply(params, s)))(state), params)
    own = {p: np.asarray(leaf["a"]) for p, leaf in state.trainable.items()}
    matrices = {"torch": params["torch"].T, "layers": params["layers"][1]}
    plain = drawn(STARTS[name](2), matrices).trainable
    assert_close(own["torch"], np.asarray(plain["torch"]["a"]))
    assert_close(own["layers"][1], np.asarray(plain["layers"]["a"]))
    assert own["heads"].shape == (6, 2)


def test_starts_from_the_weight_as_it_is_met():
    moved = {"w": {"d": jnp.asarray(numbers(5, 6, 5))}}
    tx = lrk.chain(lrk.full(select=lrk.is_matrix), lrk.pissa(2))
    below = lrk.full(select=lrk.is_matrix).apply(PARAMS, lrk.State(moved, {}))
    alone = lrk.pissa(2).init(KEY, lrk.materialize(below))
    assert_close(lrk.pissa(2).init(KEY, below), alone)
    assert jax.eval_shape(tx.init, KEY, PARAMS).trainable[1]["w"]["a"].shape == (6, 2)


def test_the_residual_of_a_bf16_weight_is_not_rounded():
    params = {"w": PARAMS["w"].astype(jnp.bfloat16)}
    tx = lrk.pissa(2)
    state = tx.init(KEY, params)
    assert state.trainable["w"]["a"].dtype == jnp.float32
    np.testing.assert_array_equal(
        lrk.materialize(tx.apply(params, state))["w"], params["w"]
    )
    twins = zip(state.trainable["w"].values(), state.fixed["w"].values(), strict=False)
    assert all(x is not y for x, y in twins)  # a donated factor frees no fixed one


# --- initialisers --------------------------------------------------------------------


def test_orthogonal_factors_are_those_of_peft_and_cancel():
    a0, b0 = golden("orthogonal", "a0", "b0")
    assert float(jnp.abs(a0 @ b0).max()) < 1e-6
    told = {"init": lrk.adapters.orthogonal_a, "init_b": lrk.adapters.orthogonal_b}
    tx = lrk.lora(4, **told)
    own = jax.tree.map(np.asarray, jax.jit(tx.init)(KEY, PARAMS).trainable["w"])
    q = np.asarray(basis(4, jnp.float32))
    assert_close(q @ q.T, np.eye(4, dtype=np.float32))
    # Each factor lies in its half, and the half is what PEFT takes: every other row.
    assert np.abs(own["a"] @ q[1::2].T).max() < 1e-6
    assert np.abs(q[0::2] @ own["b"]).max() < 1e-6
    assert np.abs(own["a"] @ own["b"]).max() < 1e-6
    assert min(np.linalg.matrix_rank(own[name]) for name in "ab") == 2


def test_gaussian_factors_have_a_spread_of_one_over_the_rank():
    a = lrk.adapters.gaussian(KEY, (2000, 4))
    error = 0.25 / (2 * 8000) ** 0.5
    assert abs(float(jnp.std(a)) - 0.25) < 5 * error


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize("name", STARTS)
def test_refuses_what_cannot_be_started(name):
    tx = STARTS[name]
    with pytest.raises(ValueError, match=f"{name}: rank must be at least 1, got 0"):
        tx(0)
    with pytest.raises(ValueError, match=f"{name}: got both alpha and scale"):
        tx(2, alpha=1, scale=1)
    with pytest.raises(ValueError, match=rf"{name}: cannot adapt 'w' .*rank 6 exceeds"):
        tx(6).init(KEY, PARAMS)
    behind = lrk.chain(lrk.hydra(2, 2), tx(2))
    message = rf"{name}: no weight to start from at 'w' \(Routed\).*Put {name} before"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(behind.init, KEY, PARAMS)
    with pytest.raises(ValueError, match=f"{name}: .*'w' lacks fixed 'a0'"):
        tx(2).apply(PARAMS, lrk.lora(2).init(KEY, PARAMS))


def test_refuses_a_scale_whose_root_is_not_real():
    with pytest.raises(ValueError, match="pissa: the scale must be above 0, got -1"):
        lrk.pissa(2, scale=-1)


@pytest.mark.parametrize("init", ["orthogonal_a", "orthogonal_b"])
def test_refuses_an_odd_rank_that_has_no_halves(init):
    shape = (6, 3) if init == "orthogonal_a" else (3, 5)
    with pytest.raises(ValueError, match="the rank must be even, got 3"):
        getattr(lrk.adapters, init)(KEY, shape)
