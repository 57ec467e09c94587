"""Spectra of changes: against float64, on known spectra, where nothing is changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import STACK, A, B, W, delta, known, low
from tests.merging.exact_cases import sizes
from tests.network import numbers
from tests.reference import analysis as reference
from tests.reference.merging_exact import slope
from tests.tolerances import assert_close
from tests.untyped import untyped

SMOOTH = ("effective_rank", "stable_rank", "participation_ratio")


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("kind", ["leaf", "pair", "tall", "wide"])
def test_ranks_are_those_of_the_formed_change(name, kind):
    change = {
        "leaf": low(scale=0.5),
        "pair": (jnp.asarray(A), jnp.asarray(B)),
        "tall": jnp.asarray(W),
        "wide": jnp.asarray(W.T),
    }[kind]
    formed = {"leaf": delta(), "pair": delta(), "tall": W, "wide": W.T}[kind]
    want = getattr(reference, name)(formed)
    assert_close(getattr(analysis, name)(change), np.float32(want))


def test_singular_values_are_those_of_the_change_alone():
    want = reference.values(delta(scale=2.0))[:3].astype(np.float32)
    assert_close(analysis.singular_values(low(scale=2.0)), want)
    assert_close(analysis.norm(low(scale=2.0)), np.linalg.norm(want))
    d = jnp.asarray(numbers(9, *W.shape))
    both = lrk.Delta(low(), d)
    want = reference.values(delta() + np.asarray(d)).astype(np.float32)
    assert_close(analysis.singular_values(both)[:5], want)
    assert_close(analysis.norm(both), np.linalg.norm(want))


def test_nothing_of_the_size_of_a_weight_is_formed():
    pair = jnp.asarray(numbers(1, 40, 2)), jnp.asarray(numbers(2, 2, 30))
    assert max(sizes(lambda *p: analysis.effective_rank(p), *pair)) <= 80
    assert max(sizes(lambda *p: analysis.norm(p), *pair)) <= 80


def test_a_known_spectrum():
    change = tuple(map(jnp.asarray, known(3, 1)))
    assert_close(analysis.singular_values(change), jnp.array([3.0, 1.0]))
    share = np.array([0.75, 0.25])
    want = np.float32(np.exp(-np.sum(share * np.log(share))))
    assert_close(analysis.effective_rank(change), want)
    assert_close(analysis.stable_rank(change), np.float32(10 / 9))
    assert_close(analysis.participation_ratio(change), np.float32(100 / 82))
    assert_close(analysis.energy_at_rank(change, 1), np.float32(0.9))
    found = [analysis.rank_at_energy(change, e) for e in (0.89, 0.91, 1.0)]
    assert [int(x) for x in found] == [1, 2, 2]
    found = [analysis.numerical_rank(change, t) for t in (None, 0.3, 0.4)]
    assert [int(x) for x in found] == [2, 2, 1]


def test_energies_are_those_of_the_best_approximation():
    for rank in (1, 2, 5):
        want = np.float32(reference.energy_at_rank(W, rank))
        assert_close(analysis.energy_at_rank(jnp.asarray(W), rank), want)
    for energy in (0.3, 0.8, 0.999):
        got = analysis.rank_at_energy(jnp.asarray(W), energy)
        assert int(got) == reference.rank_at_energy(W, energy)


def test_rounding_is_no_rank():
    a = np.concatenate([A, A[:, :1] + A[:, 1:2]], axis=1)
    pair = jnp.asarray(a), jnp.asarray(numbers(9, 4, 5))
    assert int(analysis.numerical_rank(pair)) == 3
    assert int(analysis.rank_at_energy(pair, 1.0)) <= 4


def test_where_nothing_is_changed():
    zero = low(b=np.zeros_like(B))
    for name in (*SMOOTH, "norm"):
        fn = getattr(analysis, name)
        assert float(fn(zero)) == 0
        grad = jax.grad(lambda b, fn=fn: fn((jnp.asarray(A), b)))(jnp.zeros_like(B))
        assert bool(jnp.isfinite(grad).all())
    assert int(analysis.numerical_rank(zero)) == 0
    assert int(analysis.rank_at_energy(zero)) == 0
    assert float(analysis.energy_at_rank(zero, 2)) == 0


@pytest.mark.parametrize("name", [*SMOOTH, "energy_at_rank"])
def test_gradients(name):
    rank = (2,) if name == "energy_at_rank" else ()

    def wanted(flat):
        return getattr(reference, name)(delta(b=flat.reshape(B.shape)), *rank)

    got = jax.grad(lambda b: getattr(analysis, name)((jnp.asarray(A), b), *rank))(B)
    want = slope(wanted, B.reshape(-1)).reshape(B.shape)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_stacks_are_layers_under_vmap_and_jit():
    w, a, b = map(jnp.asarray, STACK)
    op = lrk.LowRank(w, a, b)
    want = [analysis.stable_rank((a[i], b[i])) for i in (0, 1)]
    assert_close(analysis.stable_rank(op), jnp.stack(want))
    layers = lrk.LowRank(w, a, b, jnp.ones(2))

    def one(w, a, b):
        return analysis.stable_rank(lrk.LowRank(w, a, b))

    mapped = jax.jit(jax.vmap(one))(layers.w, layers.a, layers.b)
    assert_close(mapped, jnp.stack(want))
    share = analysis.rank_at_energy(op, jnp.asarray(0.9))
    assert share.shape == (2,)


def test_more_axes_are_merged():
    heads = lrk.LowRank(jnp.zeros((6, 1, 5)), A, B.reshape(3, 1, 5))
    got = analysis.singular_values(heads)
    assert_close(got, analysis.singular_values((jnp.asarray(A), jnp.asarray(B))))


def test_refusals():
    nan = np.where(B == B.max(), np.nan, B)
    with pytest.raises(ValueError, match="norm: expected finite numbers, got NaN or"):
        analysis.norm(low(b=nan))
    with pytest.raises(ValueError, match=r"norm: .* floating matrix, .* float32\[3\]"):
        analysis.norm(jnp.ones(3))
    with pytest.raises(ValueError, match=r"norm: .* floating matrix, .* int32\[2, 2\]"):
        analysis.norm(jnp.ones((2, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"factors .* got \(6, 3\) and \(2, 5\)"):
        analysis.norm((jnp.asarray(A), jnp.asarray(B[:2])))
    with pytest.raises(ValueError, match=r"with entries, got \(0, 5\)"):
        analysis.norm(jnp.zeros((0, 5)))
    with pytest.raises(ValueError, match="change of a Delta: a plain delta of 1 axes"):
        analysis.norm(lrk.Delta(jnp.ones(3), jnp.ones(3)))
    odd = lrk.operators.Magnitude(low(), jnp.ones(5))
    with pytest.raises(ValueError, match="of a Magnitude: it adds nothing to a base"):
        analysis.norm(odd)
    turned = low().transpose((1, 0)).replace(w=low(w=W.T, a=W.T[:, :3], b=A.T))
    with pytest.raises(ValueError, match="its factors hold different axes"):
        analysis.norm(turned)
    with pytest.raises(ValueError, match=r"rank in \[1, 5\], .* got 6"):
        analysis.energy_at_rank(low(), 6)
    with pytest.raises(ValueError, match=r"energy in \(0, 1\], got 1.5"):
        analysis.rank_at_energy(low(), 1.5)
    with pytest.raises(ValueError, match=r"tolerance in \[0, 1\], got -1"):
        analysis.numerical_rank(low(), -1)
    with untyped():
        with pytest.raises(TypeError, match="rank as an int, got 1.0"):
            analysis.energy_at_rank(low(), 1.0)
        with pytest.raises(TypeError, match="energy as one number, got '0.9'"):
            analysis.rank_at_energy(low(), "0.9")
        with pytest.raises(TypeError, match=r"tolerance as one number, got \[0"):
            analysis.numerical_rank(low(), [0.1, 0.2])
        with pytest.raises(TypeError, match="got dict. Of an adapted tree pass one"):
            analysis.norm({"w": low()})
        with pytest.raises(TypeError, match="or a pair .* of factors, got str"):
            analysis.norm("w")
        with pytest.raises(TypeError, match=r"expected a pair \(a, b\) .* got 3"):
            analysis.norm((A, B, W))
