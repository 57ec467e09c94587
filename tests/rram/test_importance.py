"""`importance` and `fisher_importance`: values, layouts, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

PARAMS = {
    "a": {"kernel": jnp.asarray(numbers(1, 3, 4)), "bias": jnp.ones(4)},
    "half": jnp.asarray(numbers(2, 4, 2), jnp.bfloat16),
}
OTHER = {
    "a": {"kernel": jnp.asarray(numbers(3, 3, 4)), "bias": jnp.ones(4)},
    "half": jnp.asarray(numbers(4, 4, 2), jnp.bfloat16),
}
PATHS = ("a/kernel", "half")


def pairs():
    """Weights and second arrays of the selected leaves, in float32."""
    ws = (PARAMS["a"]["kernel"], PARAMS["half"])
    gs = (OTHER["a"]["kernel"], OTHER["half"])
    both = zip(PATHS, ws, gs, strict=True)
    return {p: [np.asarray(v, np.float32) for v in (w, g)] for p, w, g in both}


def test_magnitude_times_gradient():
    found = lrk.rram.importance(PARAMS, OTHER)
    assert_close(found, {p: np.abs(w * g) for p, (w, g) in pairs().items()})
    assert list(found) == list(PATHS)
    assert all(x.dtype == jnp.float32 for x in found.values())


def test_squared_weight_times_fisher_information_by_path():
    by_path = {p: jnp.abs(jnp.asarray(g)) for p, (_, g) in pairs().items()}
    found = jax.jit(lrk.rram.fisher_importance)(PARAMS, by_path)
    assert_close(found, {p: w * w * np.abs(g) for p, (w, g) in pairs().items()})


def test_the_change_of_a_quadratic_loss_when_a_weight_is_lost():
    # At the minimum of sum F (w - v)^2 / 2, losing weight i costs F_i w_i^2 / 2.
    w, f = jnp.asarray(numbers(5, 2, 3)), jnp.abs(jnp.asarray(numbers(6, 2, 3)))
    lost = 0.5 * f * (0.0 - w) ** 2
    found = lrk.rram.fisher_importance({"w": w}, {"w": f})["w"]
    assert_close(0.5 * found, lost)


def test_a_selection_of_any_shape():
    chosen = lrk.rram.importance(PARAMS, OTHER, select=lrk.matching("bias"))
    assert list(chosen) == ["a/bias"]
    assert chosen["a/bias"].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_an_adapted_leaf_is_the_weight_that_it_stands_for():
    w, g = PARAMS["a"]["kernel"], OTHER["a"]["kernel"]
    op = lrk.LowRank(w, jnp.ones((3, 1)), jnp.ones((1, 4)))
    found = lrk.rram.importance({"w": op}, {"w": g})["w"]
    assert_close(found, jnp.abs((w + 1) * g))


@pytest.mark.parametrize("name", ["importance", "fisher_importance"])
def test_messages(name):
    measure = getattr(lrk.rram, name)
    wrong = {"a": {"kernel": jnp.ones((4, 3))}}
    with pytest.raises(
        ValueError,
        match=rf"{name}: .*'a/kernel': expected shape \(3, 4\), got \(4, 3\); "
        "'half' is missing",
    ):
        measure(PARAMS, wrong)
    with pytest.raises(ValueError, match=f"{name}: the selection matches none"):
        measure({"b": jnp.ones(3)}, {"b": jnp.ones(3)})
    with (
        untyped(),
        pytest.raises(TypeError, match=f"{name}: select must be a function"),
    ):
        measure(PARAMS, OTHER, select="kernel")
