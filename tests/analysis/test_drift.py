"""How far factors moved, and whether an adapter has room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import A, B, W, low
from tests.network import numbers
from tests.reference import analysis as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

A2, B2 = numbers(21, 6, 3), numbers(22, 3, 5)


def test_drift_of_both_factors():
    found = analysis.drift({"w": low(a=A2, b=B2)}, {"w": low()})
    assert_close(found.a["w"], np.linalg.norm(A2 - A) / np.linalg.norm(A))
    assert_close(found.b["w"], np.linalg.norm(B2 - B) / np.linalg.norm(B))
    assert_close(found.a_angles["w"], np.float32(reference.angles(A2, A)))
    assert_close(found.b_angles["w"], np.float32(reference.angles(B2.T, B.T)))


def test_known_drifts():
    eye = np.eye(6, dtype=np.float32)
    start = {"w": low(a=eye[:, :2], b=0 * B[:2]), "bias": jnp.zeros(3)}
    moved = {"w": low(a=eye[:, [0, 2]], b=B[:2]), "bias": jnp.zeros(3)}
    found = analysis.drift(moved, start)
    assert_close(found.a["w"], jnp.float32(1.0))
    np.testing.assert_allclose(found.a_angles["w"], [0, np.pi / 2], atol=3e-7)
    assert bool(jnp.isinf(found.b["w"]))
    np.testing.assert_allclose(found.b_angles["w"], [np.pi / 2] * 2, atol=3e-7)
    still = analysis.drift(start, start)
    assert float(still.a["w"]) == float(still.b["w"]) == 0
    assert list(found.a) == ["w"]


def test_drift_of_stacks_and_of_adapters_on_adapters():
    params, tx = {"w": jnp.asarray(numbers(4, 2, 6, 5))}, lrk.lora(2)
    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    tx = lrk.chain(*[lrk.lora(r, select=lrk.matching("w"), axes=axes) for r in (1, 2)])
    one, two = (tx.apply(params, tx.init(jax.random.key(i), params)) for i in (0, 1))
    found = jax.jit(analysis.drift)(one, two)
    a, b = (
        np.concatenate([np.asarray(t.a) for t in lrk.split(x["w"])[1]], axis=-1)
        for x in (one, two)
    )
    want = [
        np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)
    ]
    assert_close(found.a["w"], np.float32(want))
    assert found.a_angles["w"].shape == (2, 3)
    assert_close(found.b["w"], jnp.zeros(2))


def test_refusals_of_drift():
    with pytest.raises(ValueError, match=r"'w': ranks \[3\] against \[2\]"):
        analysis.drift({"w": low()}, {"w": low(a=A[:, :2], b=B[:2])})
    with pytest.raises(ValueError, match=r"none of 1 leaves has a low-rank .*\('w'\)"):
        analysis.drift({"w": jnp.asarray(W)}, {"w": jnp.asarray(W)})
    with pytest.raises(ValueError, match="drift: .*'v': not in every tree"):
        analysis.drift({"w": low()}, {"v": low()})
    with pytest.raises(ValueError, match="drift: expected finite numbers, .* in 'w'"):
        analysis.drift({"w": low(a=A * np.nan)}, {"w": low()})


def test_capacity_counts_bits():
    params, tx = {"w": jnp.ones((4, 3))}, lrk.lori(2)
    state = tx.init(jax.random.key(0), params)  # only B is trained: 6 numbers
    found = analysis.capacity(state, bits=9.0)
    assert found.parameters == 6
    assert (float(found.available), float(found.load)) == (12, 0.75)
    assert bool(found.fits)
    found = analysis.capacity(state, nats=12 * np.log(2) * 1.5, bits_per_parameter=2)
    assert_close(found.load, jnp.float32(1.5))
    assert not bool(found.fits)
    loads = jax.vmap(lambda n: analysis.capacity(10, bits=n).load)(jnp.arange(3.0))
    assert_close(loads, jnp.arange(3.0) / 20)


def test_refusals_of_capacity():
    for both in ({}, {"nats": 1.0, "bits": 1.0}):
        with pytest.raises(ValueError, match="expected one of nats and bits"):
            analysis.capacity(3, **both)
    with pytest.raises(ValueError, match="likelihood as a finite number of at"):
        analysis.capacity(3, nats=-1.0)
    with pytest.raises(ValueError, match="finite number of at least 0, got nan"):
        analysis.capacity(3, bits=float("nan"))
    with pytest.raises(ValueError, match="bits_per_parameter as a finite .* above 0"):
        analysis.capacity(3, bits=1.0, bits_per_parameter=0)
    with pytest.raises(ValueError, match="expected trained parameters, got 0"):
        analysis.capacity(lrk.State({}, {}), bits=1.0)
    with untyped(), pytest.raises(TypeError, match="a State or a number .* got dict"):
        analysis.capacity({}, bits=1.0)
