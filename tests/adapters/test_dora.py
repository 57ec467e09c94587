"""`dora` and `magnitude`: equations, PEFT's numbers, composition, messages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import dora as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {"v": jnp.asarray(numbers(1, 6, 4)), "w": jnp.asarray(numbers(2, 4, 5))}
X = jnp.asarray(numbers(4, 7, 6))
GOLDEN = Path(__file__).parent.parent / "golden" / "dora.npz"


def model(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"]


def moved(state, seed=9):
    """A state whose trainable numbers are not where init left them."""
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [x + 0.5 * numbers(seed + i, *x.shape) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, new))


def f32(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def formed(tx, state, params=PARAMS):
    return lrk.materialize(tx.apply(params, state))


def run(tx, state, params=PARAMS, x=X):
    return lrk.lift(model)(tx.apply(params, state), x)


def assert_lifts(tx, params=PARAMS):
    """A moved state runs on operators as it does on the weights they stand for."""
    state = moved(tx.init(KEY, params))
    assert_close(run(tx, state, params), model(formed(tx, state, params), X))
    return state


# --- the equations -------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    ("arguments", "scale"), [({}, 1.0), ({"alpha": 3}, 1.5), ({"scale": 0.2}, 0.2)]
)
def test_weight_and_gradients_follow_the_equations(arguments, scale, detach):
    params, g = {"v": PARAMS["v"]}, numbers(8, 7, 4)
    tx = lrk.dora(2, detach=detach, **arguments)
    state = moved(tx.init(KEY, params))

    def objective(trainable):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        out = lrk.lift(lambda p, x: x @ p["v"])(adapted, X)
        return jnp.sum(out * g), out

    grads, out = jax.grad(objective, has_aux=True)(state.trainable)
    (low,), (length,) = (member.values() for member in state.trainable)
    parts = (params["v"], low["a"], low["b"], length["m"], scale)
    want = reference.weight(*parts)
    assert_close(formed(tx, state, params), f32({"v": want}))
    assert_close(out, f32(np.asarray(X, np.float64) @ want))
    slopes = reference.gradients if detach else reference.exact_gradients
    a, b, m = f32(slopes(X, *parts, g))
    assert_close(grads, ({"v": {"a": a, "b": b}}, {"v": {"m": m}}))


@pytest.mark.parametrize("detach", [True, False])
def test_no_plan_changes_the_gradients(detach):
    tx = lrk.dora(2, detach=detach)
    state = moved(tx.init(KEY, PARAMS))

    def slope(plan):
        def objective(trainable):
            adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
            return jnp.sum(jnp.sin(lrk.lift(model, plan=plan)(adapted, X)))

        return jax.grad(objective)(state.trainable)

    assert_close(slope({".": "dense"}), slope(None))


def test_agrees_with_peft():
    stored = np.load(GOLDEN)
    assert str(stored["provenance"]).startswith("peft 0.21.2")
    turned = f32({n: stored[n].T for n in ("w", "a", "b", "merged")})
    params = {"w": jnp.asarray(turned["w"])}
    x, g, bias = (jnp.asarray(f32(stored[n])) for n in ("x", "g", "bias"))
    tx = lrk.dora(2, alpha=3)
    state = tx.init(KEY, params)
    np.testing.assert_allclose(state.fixed[0]["w"]["scale"], stored["scale"])
    low = {n: jnp.asarray(turned[n]) for n in ("a", "b")}
    trainable = ({"w": low}, {"w": {"m": jnp.asarray(f32(stored["m"]))}})

    def objective(trainable, x):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        y = lrk.lift(lambda p, x: x @ p["w"] + bias[None])(adapted, x)
        return jnp.sum(y * g), y

    grad = jax.grad(objective, argnums=(0, 1), has_aux=True)
    (grads, of_x), y = grad(trainable, x)
    assert_close(y, f32(stored["y"]))
    assert_close(of_x, f32(stored["grad_x"]))
    assert_close(
        formed(tx, state._replace(trainable=trainable), params)["w"], turned["merged"]
    )
    assert_close(grads[0]["w"]["a"], f32(stored["grad_a"].T))
    assert_close(grads[0]["w"]["b"], f32(stored["grad_b"].T))
    assert_close(grads[1]["w"]["m"], f32(stored["grad_m"]))


# --- init ----------------------------------------------------------------------------


def test_m_starts_as_the_norm_of_what_init_meets():
    tx = lrk.chain(lrk.full(select=lrk.is_matrix), lrk.magnitude())
    want = np.linalg.norm(np.asarray(PARAMS["v"], np.float64), axis=0)
    for start in (tx.init, jax.jit(tx.init)):
        state = start(KEY, PARAMS)
        assert_close(state.trainable[1]["v"]["m"], f32(want))
    shapes = jax.eval_shape(tx.init, KEY, jax.eval_shape(lambda p: p, PARAMS))
    assert shapes == jax.eval_shape(lambda s: s, state)
    assert lrk.count(lrk.magnitude().init(KEY, PARAMS)) == (4 + 5, 0)


def test_dora_is_the_chain_of_its_two_members():
    told = {"alpha": 3, "init_b": jax.nn.initializers.normal()}
    chained = lrk.chain(lrk.lora(2, **told), lrk.magnitude())
    one, two = lrk.dora(2, **told).init(KEY, PARAMS), chained.init(KEY, PARAMS)
    assert_close(one, two)
    assert_close(formed(lrk.dora(2, **told), one), formed(chained, two))
    length = one.trainable[1]["v"]["m"]
    assert_close(length, jnp.linalg.norm(formed(chained, two)["v"], axis=0))


def test_a_column_of_zeros_stays_zero_with_finite_gradients():
    params = {"w": PARAMS["v"].at[:, 1].set(0.0)}
    for detach in (True, False):
        tx = lrk.dora(2, detach=detach)
        state = tx.init(KEY, params)
        assert_close(formed(tx, state, params), params)

        def objective(trainable, tx=tx, state=state):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            return jnp.sum(lrk.lift(jnp.matmul)(X, adapted["w"]) ** 2)

        grads = jax.grad(objective)(state.trainable)
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


# --- composition ---------------------------------------------------------------------

CHAINS = {
    "dora+lora": lambda: lrk.chain(lrk.dora(1), lrk.lora(2)),
    "lora+dora": lambda: lrk.chain(lrk.lora(2), lrk.dora(1)),
    "lori+magnitude": lambda: lrk.chain(lrk.lori(2, alpha=3), lrk.magnitude()),
    "full+magnitude": lambda: lrk.chain(
        lrk.full(select=lrk.is_matrix), lrk.magnitude()
    ),
    "dora+full": lambda: lrk.chain(lrk.dora(2), lrk.full(select=lrk.is_matrix)),
    "dora+dora": lambda: lrk.chain(lrk.dora(1), lrk.dora(2)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_composes_on_both_sides(name):
    assert_lifts(CHAINS[name]())


def test_the_outer_term_of_a_chain_is_not_rescaled():
    tx = lrk.chain(lrk.dora(1), lrk.lora(2))
    state = moved(tx.init(KEY, PARAMS))
    inner = lrk.State(state.trainable[0], state.fixed[0])
    outer = state.trainable[1]["v"]
    want = formed(lrk.dora(1), inner)["v"] + outer["a"] @ outer["b"]
    assert_close(formed(tx, state)["v"], want)


def test_over_a_bf16_base():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
    state = moved(lrk.dora(2).init(KEY, params))
    assert state.trainable[1]["v"]["m"].dtype == jnp.float32
    new = formed(lrk.dora(2), state, params)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    assert_close(f32(new), f32(formed(lrk.dora(2), state, wide)), "bfloat16")


def test_axes_say_which_are_the_columns():
    shapes = {"layers": (3, 6, 4), "heads": (6, 2, 2), "torch": (4, 6)}
    params = {p: jnp.asarray(numbers(6, *s)) for p, s in shapes.items()}
    axes = {
        "layers": lrk.Axes((0,), (1,), (2,)),
        "heads": lrk.Axes((), (0,), (1, 2)),
        "torch": lrk.Axes((), (1,), (0,)),
    }
    tx = lrk.dora(2, select=lrk.matching("."), axes=axes)
    state = moved(tx.init(KEY, params))
    sizes = {p: leaf["m"].shape for p, leaf in state.trainable[1].items()}
    assert sizes == {"layers": (3, 4), "heads": (2, 2), "torch": (4,)}
    new = formed(tx, state, params)
    for path, dims in axes.items():
        norms = jnp.linalg.norm(new[path], axis=dims.inputs[0])
        assert_close(norms, jnp.abs(state.trainable[1][path]["m"]))


def test_vmap_over_states_is_a_loop():
    tx = lrk.dora(2)
    states = [moved(tx.init(jax.random.key(i), PARAMS), 30 * i) for i in range(3)]
    mapped = jax.vmap(lambda state: run(tx, state))(lrk.stack(states))
    assert_close(mapped, jnp.stack([run(tx, state) for state in states]))
    trees = [tx.apply(PARAMS, state) for state in states]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    axes = lrk.in_axes(stacked)
    assert (axes["v"].w.w, axes["v"].m, axes["v"].norm) == (None, 0, 0)


def test_dropout_leaves_the_norm_alone():
    tx = lrk.dora(2, dropout=0.5)
    state = moved(tx.init(KEY, PARAMS))
    still = lrk.dora(2).apply(PARAMS, state)["v"]
    shaken = tx.apply(PARAMS, state, key=KEY)["v"]
    assert (shaken.has_dense, shaken.stochastic) == (False, True)
    np.testing.assert_array_equal(shaken.norm, still.norm)
    out = lrk.lift(model)(tx.apply(PARAMS, state, key=KEY), X)
    assert not np.allclose(out, run(lrk.dora(2), state))


# --- messages ------------------------------------------------------------------------


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="dora: rank must be at least 1, got 0"):
        lrk.dora(0)
    with pytest.raises(ValueError, match="dora: got both alpha and scale"):
        lrk.dora(2, alpha=1, scale=1)
    with untyped(), pytest.raises(TypeError, match="magnitude: select must be a func"):
        lrk.magnitude(select="kernel")


def test_names_every_leaf_that_cannot_be_rescaled():
    params = {"order": jnp.ones((2, 2), jnp.int32), **PARAMS}
    tx = lrk.chain(lrk.hydra(2, 2), lrk.magnitude(select=lrk.matching(".")))
    message = (
        r"magnitude: cannot rescale 'order' of shape \(2, 2\): not floating; 'v' of "
        r"shape \(6, 4\): Routed has no dense form; 'w' .* Put magnitude before"
    )
    with pytest.raises(ValueError, match=message):
        tx.init(KEY, params)


def test_refuses_states_that_do_not_fit():
    tx = lrk.magnitude()
    state = tx.init(KEY, PARAMS)
    with pytest.raises(ValueError, match="magnitude: the state has 'v', .*lack"):
        tx.apply({"w": PARAMS["w"]}, state)
    stacked = lrk.stack([state, state])
    with pytest.raises(ValueError, match=r"a factor of \(2, 4\) does not fit"):
        tx.apply(PARAMS, stacked)
    with pytest.raises(ValueError, match="'w' lacks trainable 'm'"):
        tx.apply(PARAMS, lrk.full(select=lrk.is_matrix).init(KEY, PARAMS))
