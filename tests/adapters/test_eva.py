"""`eva`: PEFT's ranks and directions, the reference, stacks, messages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import eva as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "eva.npz")
PARAMS = {"one": jnp.asarray(numbers(1, 6, 5)), "two": jnp.asarray(numbers(2, 5, 4))}
INPUTS = {"one": GOLDEN["x"][:, :6], "two": GOLDEN["x"][:, 6:]}
TX = lrk.lora(2, alpha=3.0)


def model(params, x):
    return x[:, :6] @ params["one"], x[:, 6:] @ params["two"]


def drawn(params=PARAMS, tx=TX):
    return jax.jit(tx.init)(KEY, params)


def grams(inputs):
    return {path: np.float32(x).T @ np.float32(x) for path, x in inputs.items()}


def test_agrees_with_peft():
    assert str(GOLDEN["provenance"]).startswith("peft 0.21.2")
    x = jnp.asarray(GOLDEN["x"])
    found = jax.jit(lambda x: lrk.merging.gram(model, PARAMS, x, select=lrk.is_matrix))(
        x
    )
    state = lrk.eva(drawn(), found)
    for path, leaf in state.trainable.items():
        want = GOLDEN[f"{path}/a"].T
        assert leaf["a"].shape == want.shape
        signs = np.sign(np.sum(np.asarray(leaf["a"]) * want, axis=0, keepdims=True))
        # Eigenvectors of a float32 Gram matrix: its error over the gap of two values.
        np.testing.assert_allclose(np.asarray(leaf["a"]) * signs, want, atol=1e-4)
        assert leaf["b"].shape == (want.shape[1], PARAMS[path].shape[1])
        assert state.fixed[path]["scale"] == GOLDEN[f"{path}/scale"]


def test_what_is_trained_from_there_agrees_with_peft():
    """Forward, gradients and merged weights; the gradients at the start as well."""
    base = {p: jnp.asarray(GOLDEN[f"{p}/w"].T, jnp.float32) for p in PARAMS}
    x, g = (jnp.asarray(GOLDEN[n], jnp.float32) for n in "xg")
    bias = np.concatenate([GOLDEN[f"{p}/bias"] for p in PARAMS]).astype("f4")
    start = lrk.eva(drawn(base), grams(INPUTS))

    @jax.jit
    def run(trainable, x):
        def objective(trainable, x):
            adapted = TX.apply(base, start._replace(trainable=trainable))
            y = jnp.concatenate(lrk.lift(model)(adapted, x), axis=-1) + bias[None]
            return jnp.sum(y * g), (y, lrk.materialize(adapted))

        return jax.grad(objective, (0, 1), has_aux=True)(trainable, x)

    def factors(kind=""):
        return {
            p: {n: jnp.asarray(GOLDEN[f"{p}/{kind}{n}"].T, jnp.float32) for n in "ab"}
            for p in PARAMS
        }

    own = factors()
    (grads, _), _ = run(start.trainable, x)
    for path, leaf in start.trainable.items():
        assert not grads[path]["a"].any()
        signs = np.sign(np.sum(leaf["a"] * own[path]["a"], axis=0))[:, None]
        want = GOLDEN[f"{path}/start_grad_b"].T
        atol = 1e-4 * np.abs(want).max()  # that of the directions, above
        np.testing.assert_allclose(grads[path]["b"] * signs, want, atol=atol)
    (grads, of_x), (y, merged) = run(own, x)
    assert_close((y, of_x), tuple(np.float32(GOLDEN[n]) for n in ("y", "grad_x")))
    assert_close(grads, factors("grad_"))
    assert_close(merged, {p: np.float32(GOLDEN[f"{p}/merged"].T) for p in PARAMS})


@pytest.mark.parametrize("rho", [1, 1.5, 2, 10])
def test_ranks_and_directions_follow_the_inputs(rho):
    state = lrk.eva(drawn(), grams(INPUTS), rho=rho)
    ranks = {path: leaf["a"].shape[-1] for path, leaf in state.trainable.items()}
    assert ranks == reference.ranks(INPUTS, 2, rho)
    assert sum(ranks.values()) == 4
    for path, rank in ranks.items():
        a = np.asarray(state.trainable[path]["a"], np.float64)
        within = reference.directions(INPUTS[path], rank).T @ a
        np.testing.assert_allclose(np.abs(np.linalg.det(within)), 1, atol=1e-4)
        assert_close(a.T @ a, np.eye(rank), "float32")


def test_the_state_is_one_of_the_same_transform():
    state = lrk.eva(drawn(), grams(INPUTS))
    adapted = TX.apply(PARAMS, state)
    assert [adapted[path].rank for path in PARAMS] == [1, 3]
    assert all(not leaf["b"].any() for leaf in state.trainable.values())
    assert lrk.count(state) == (6 + 5 + 3 * (5 + 4), 0)


def test_a_leaf_without_a_share_is_left_out():
    flat = {"one": np.eye(6), "two": np.diag([9.0, 8.0, 7.0, 6.0, 0.0])}
    state = lrk.eva(drawn(), flat)
    assert set(state.trainable) == set(state.fixed) == {"two"}
    assert TX.apply(PARAMS, state)["one"] is PARAMS["one"]


def test_a_stack_has_one_rank_and_directions_of_its_own():
    axes = {"layers": lrk.Axes((0,), (1, 2), (3,))}
    params = {"layers": jnp.ones((3, 2, 3, 4)), "two": PARAMS["two"]}
    tx = lrk.lora(2, select=lrk.matching("."), axes=axes)
    x = numbers(5, 3, 9, 6)
    found = {"layers": np.einsum("lti,ltj->lij", x, x), **grams({"two": INPUTS["two"]})}
    state = lrk.eva(drawn(params, tx), found, rho=1)
    a = np.asarray(state.trainable["layers"]["a"], np.float64)
    assert (a.shape, state.trainable["layers"]["b"].shape) == ((3, 2, 3, 2), (3, 2, 4))
    for own, inputs in zip(a.reshape(3, 6, 2), x, strict=True):
        within = reference.directions(inputs, 2).T @ own
        np.testing.assert_allclose(np.abs(np.linalg.det(within)), 1, atol=1e-4)


def test_refuses_what_does_not_fit():
    state = drawn()
    with pytest.raises(ValueError, match=r"eva: rho must be at least 1, got 0\.5"):
        lrk.eva(state, grams(INPUTS), rho=0.5)
    wrong = {"one": np.ones((5, 5))}
    message = (
        r"eva: 'one': expected \[\*stack, n, n\] for an A of \(6, 2\), got \(5, 5\); "
        r"'two': no Gram matrix\. Collect the inputs"
    )
    with pytest.raises(ValueError, match=message):
        lrk.eva(state, wrong)
    with pytest.raises(ValueError, match="'two': no input that varies"):
        lrk.eva(state, {**grams(INPUTS), "two": np.zeros((5, 5))})
    with (
        untyped(),
        pytest.raises(ValueError, match="eva: expected a state of lrk.lora"),
    ):
        lrk.eva(lrk.State((state.trainable,), (state.fixed,)), grams(INPUTS))


def test_refuses_traced_numbers_since_ranks_are_shapes():
    state = drawn()
    with pytest.raises(TypeError, match=r"eva: .*\['one', 'two'\] are not concrete"):
        jax.eval_shape(lambda found: lrk.eva(state, found), grams(INPUTS))
