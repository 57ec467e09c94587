"""`overlap`: principal angles between the input directions of adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import overlap
from tests.network import numbers
from tests.tolerances import assert_close

PARAMS = {"w": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.zeros(4)}


def over(*factors, w=PARAMS["w"]):
    """A tree with one adapter on another, a factor `A` each."""
    for a in factors:
        a = jnp.asarray(a, jnp.float32)
        w = lrk.LowRank(w, a, jnp.ones((*a.shape[:-2], a.shape[-1], 4)))
    return {"w": w, "bias": PARAMS["bias"]}


def unit(*rows):
    return np.eye(6, dtype=np.float32)[:, list(rows)]


def reference(a1, a2):
    """From the projectors on both spaces, in float64: no QR."""
    one, two = (a @ np.linalg.pinv(a) for a in np.asarray([a1, a2], np.float64))
    return np.float32(np.linalg.svd(one @ two, compute_uv=False)[0])


def test_it_is_the_largest_cosine_whatever_the_scale():
    a1, a2 = numbers(2, 6, 2), numbers(3, 6, 2)
    found = overlap([over(100 * a1), over(1e-3 * a2)])
    assert list(found) == ["w"]
    assert 0.1 < float(found["w"]) < 0.99
    assert_close(np.asarray(found["w"]), reference(a1, a2))


@pytest.mark.parametrize(
    ("one", "two", "cosine"),
    [
        (unit(0, 1), unit(2, 3), 0.0),
        (unit(0, 1), unit(1, 2, 3), 1.0),
        (unit(0, 1), unit(0, 1) @ np.array([[1, 2], [0.5, -1]]), 1.0),
        (unit(0), (unit(0) + unit(1)) * 7, 0.5**0.5),
        (unit(0, 1) * [1, 0], unit(1, 2), 0.0),
        (np.zeros((6, 2)), unit(1, 2), 0.0),
    ],
    ids=["apart", "shared", "same-space", "half", "rank-deficient", "zero"],
)
def test_known_angles(one, two, cosine):
    found = float(overlap([over(one), over(two)])["w"])
    assert found == pytest.approx(cosine, abs=1e-6)


def test_it_is_the_largest_over_all_pairs():
    tilted = unit(2) + unit(0)
    found = overlap([over(unit(0)), over(unit(1)), over(tilted)])["w"]
    assert float(found) == pytest.approx(0.5**0.5, abs=1e-6)


def test_nested_adapters_count_together():
    found = overlap([over(unit(0), unit(1)), over(unit(1), unit(3))])
    assert float(found["w"]) == pytest.approx(1.0, abs=1e-6)


def test_tasks_that_share_a_key_are_found():
    params = {"w": jnp.ones((256, 8)), "v": jnp.ones((256, 8))}
    tx = lrk.lori(4)
    one, same, other = (
        tx.apply(params, tx.init(jax.random.key(i), params)) for i in (0, 0, 1)
    )
    assert all(float(x) > 1 - 1e-5 for x in overlap([one, same]).values())
    # About 2 sqrt(r / n) = 0.25 between independent draws.
    assert all(0.05 < float(x) < 0.45 for x in overlap([one, other]).values())


def test_each_layer_of_a_stack_has_its_own():
    w = jnp.ones((2, 6, 4))
    one = over(np.stack([unit(0, 1), unit(2, 3)]), w=w)
    two = over(np.stack([unit(1, 2), unit(4, 5)]), w=w)
    assert_close(overlap([one, two])["w"], jnp.array([1.0, 0.0]))


def test_more_input_axes_are_one_space():
    axes = {"w": lrk.Axes((), (0, 1), (2,))}
    params = {"w": jnp.ones((3, 2, 4))}
    tx = lrk.lora(2, axes=axes, select=lrk.matching("w"))
    one, two = (tx.apply(params, tx.init(jax.random.key(i), params)) for i in range(2))
    a1, a2 = (np.asarray(t["w"].a).reshape(6, 2) for t in (one, two))
    assert_close(np.asarray(overlap([one, two])["w"]), reference(a1, a2))


def test_leaves_adapted_once_or_by_plain_deltas_are_left_out():
    delta = {"w": lrk.Delta(PARAMS["w"], jnp.ones((6, 4))), "bias": PARAMS["bias"]}
    assert overlap([over(unit(0)), delta, PARAMS]) == {}


def test_it_runs_under_jit_and_forms_nothing_of_the_size_of_a_weight():
    w = jnp.ones((300, 4))
    a = np.concatenate([numbers(2, 100, 2)] * 3)
    own = [over(a, w=w), over(a[::-1], w=w)]
    run = jax.jit(lambda *trees: overlap(trees))
    assert_close(run(*own)["w"], overlap(own)["w"])
    made = jax.make_jaxpr(lambda *trees: overlap(trees))(*own)
    shapes = {v.aval.shape for eqn in made.eqns for v in eqn.outvars}
    assert (300, 2) in shapes
    assert max(np.prod(shape) for shape in shapes) == 300 * 2


def test_half_precision_is_measured_in_float32():
    w = jnp.ones((6, 4), jnp.bfloat16)
    a = jnp.asarray(numbers(2, 6, 2), jnp.bfloat16)
    op = {"w": lrk.LowRank(w, a, jnp.ones((2, 4), jnp.bfloat16))}
    found = overlap([op, op])["w"]
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(1.0, abs=1e-5)


def test_refuses_one_tree():
    with pytest.raises(
        ValueError, match="expected at least two adapted trees, got one"
    ):
        overlap([over(unit(0))])


def test_refuses_factors_of_different_axes():
    w = jnp.ones((4, 4))
    a, b = jnp.ones((4, 1)), jnp.ones((1, 4))
    turned = lrk.LowRank(w, a, b, a_dims=(1,), b_dims=(0,))
    with pytest.raises(ValueError, match="overlap: the factors hold different axes"):
        overlap([{"w": lrk.LowRank(w, a, b)}, {"w": turned}])
