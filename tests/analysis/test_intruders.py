"""Changes beside their weights: amplification, and intruders with their remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import STACK, A, B, W, delta, known, low
from tests.network import numbers
from tests.reference import analysis as reference
from tests.reference.merging_exact import slope
from tests.tolerances import assert_close
from tests.untyped import untyped

BIG = 3.0  # scale at which some directions are new and others are not
EPSILON = 0.7


def test_amplification_is_that_of_the_paper():
    for rank in (1, 2):
        want = np.float32(reference.amplification(W, delta(), rank))
        assert_close(analysis.amplification(jnp.asarray(W), low(), rank), want)
    want = np.float32(reference.amplification(W, delta(), 3))
    assert_close(analysis.amplification(jnp.asarray(W), low()), want)


def test_a_known_amplification():
    a, b = map(jnp.asarray, known(3, 1))
    w = a @ jnp.diag(jnp.array([2.0, 0.0])) @ b  # 6 and 0 along the change
    assert_close(analysis.amplification(w, (a, b), 1), np.float32(10**0.5 / 6))
    assert bool(jnp.isinf(analysis.amplification(jnp.zeros_like(w), (a, b))))
    assert float(analysis.amplification(w, (a, 0 * b))) == 0


def test_amplification_in_the_layout_of_a_leaf():
    op = low()
    want = analysis.amplification(jnp.asarray(W), op, 2)
    turned = op.transpose((1, 0))
    assert_close(analysis.amplification(turned.w, turned, 2), want)
    assert_close(
        analysis.amplification(lrk.Delta(jnp.zeros((6, 5)), jnp.asarray(W)), op, 2),
        want,
    )


def test_amplification_has_gradients():
    def wanted(flat):
        return reference.amplification(W, delta(b=flat.reshape(B.shape)), 2)

    got = jax.grad(lambda b: analysis.amplification(W, (jnp.asarray(A), b), 2))(B)
    want = slope(wanted, B.reshape(-1)).reshape(B.shape)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_intruders_are_those_of_the_paper():
    want = reference.intruder_cosines(W.T, delta(scale=BIG).T, 5)
    found = analysis.intruders(jnp.asarray(W), low(scale=BIG), k=5, epsilon=EPSILON)
    assert_close(found.cosine, want.astype(np.float32))
    assert found.mask.tolist() == (want < EPSILON).tolist()
    assert 0 < int(found.number) < 5
    assert found.indices == np.nonzero(want < EPSILON)[0].tolist()


def test_a_known_intruder():
    w = jnp.diag(jnp.array([4.0, 3.0, 2.0, 0.0]))[:, :4]
    new = jnp.zeros((4, 4)).at[3, 3].set(3.5)
    found = analysis.intruders(w, new, k=3)
    assert found.indices == [1]
    assert_close(found.cosine, jnp.array([1.0, 0.0, 1.0]))
    # Nothing is new where nothing is changed, or where there is nothing.
    assert int(analysis.intruders(w, 0 * new, k=4).number) == 0


def test_stacks_jit_and_vmap():
    w, a, b = map(jnp.asarray, STACK)
    found = analysis.intruders(w, (a, BIG * b), k=3, epsilon=EPSILON)
    for i in (0, 1):
        want = reference.intruder_cosines(w[i].T, BIG * np.float64(a[i] @ b[i]).T, 3)
        assert_close(found.cosine[i], want.astype(np.float32))
    assert found.indices == [np.nonzero(row)[0].tolist() for row in found.mask]

    def one(w, a, b):
        return analysis.intruders(w, (a, b), k=3, epsilon=EPSILON).number

    assert_close(jax.jit(jax.vmap(one))(w, a, BIG * b), found.number)


def test_mitigation_is_that_of_the_paper():
    tree = {"w": low(scale=BIG), "bias": lrk.Delta(jnp.zeros(5), jnp.ones(5))}
    kinds = {"k": 4, "epsilon": EPSILON}
    better = analysis.mitigate_intruders(tree, scale=0.4, **kinds)
    want = reference.mitigated(W.T, delta(scale=BIG).T, 4, EPSILON, 0.4).T
    assert_close(lrk.materialize(better)["w"], want.astype(np.float32))
    assert better["bias"] is tree["bias"]
    assert lrk.base(better)["w"] is tree["w"].w
    assert [t.rank for t in lrk.split(better["w"])[1]] == [4, 3]
    same = analysis.mitigate_intruders(tree, scale=1.0, **kinds)
    assert_close(lrk.materialize(same), lrk.materialize(tree))
    run = jax.jit(lambda t, s: analysis.mitigate_intruders(t, scale=s, **kinds))
    assert_close(lrk.materialize(run(tree, 0.4)), lrk.materialize(better))


def test_mitigation_goes_back_to_a_rank_by_a_merge():
    tree = {"w": low(scale=BIG)}
    better = analysis.mitigate_intruders(tree, k=4, epsilon=EPSILON, scale=0.4)
    cut = lrk.merging.svd([better], rank=3)
    assert cut["w"].rank == 3
    d = reference.mitigated(W.T, delta(scale=BIG).T, 4, EPSILON, 0.4).T - W
    u, s, vt = np.linalg.svd(d)
    want = (u[:, :3] * s[:3]) @ vt[:3]
    assert_close(cut["w"].delta(), want.astype(np.float32))


def test_mitigation_keeps_layouts_and_takes_small_leaves():
    w, a, b = STACK
    tree = {"layers": lrk.LowRank(jnp.asarray(w), a, BIG * b)}
    better = analysis.mitigate_intruders(tree, k=10, epsilon=EPSILON, scale=0.0)
    for i in (0, 1):
        d = BIG * np.float64(a[i]) @ b[i]
        want = reference.mitigated(w[i].T, d.T, 5, EPSILON, 0.0).T
        assert_close(lrk.materialize(better)["layers"][i], want.astype(np.float32))
    turned = {"w": low(scale=BIG).transpose((1, 0))}
    kinds = {"k": 4, "epsilon": EPSILON, "scale": 0.4}
    got = lrk.materialize(analysis.mitigate_intruders(turned, **kinds))["w"]
    want = lrk.materialize(analysis.mitigate_intruders({"w": low(scale=BIG)}, **kinds))
    assert_close(got, want["w"].T)


def test_refusals():
    with pytest.raises(ValueError, match=r"intruders: .* k in \[1, 5\], .* got 6"):
        analysis.intruders(jnp.asarray(W), low(), k=6)
    with pytest.raises(ValueError, match=r"epsilon in \(0, 1\], got 0"):
        analysis.intruders(jnp.asarray(W), low(), k=2, epsilon=0)
    with pytest.raises(ValueError, match=r"rank in \[1, 5\], .* got 9"):
        analysis.amplification(jnp.asarray(W), low(), 9)
    message = r"a weight of the shape of its change, \(6, 5\), got \(6, 3\)"
    with pytest.raises(ValueError, match=message):
        analysis.amplification(jnp.asarray(A), low())
    with pytest.raises(ValueError, match="expected finite numbers, .* in the weight"):
        analysis.amplification(jnp.full((6, 5), jnp.nan), low())
    keyed = lrk.operators.DropoutLowRank(
        W, jnp.asarray(A), jnp.asarray(B), key=jax.random.key(0), rate=0.5
    )
    with pytest.raises(ValueError, match="held by a DropoutLowRank has no dense form"):
        analysis.amplification(keyed, low())
    with (
        untyped(),
        pytest.raises(TypeError, match="weight as an array, .* NoneType"),
    ):
        analysis.amplification(None, low())
    mitigate = analysis.mitigate_intruders
    with pytest.raises(ValueError, match="none of 1 leaves is a matrix with a change"):
        mitigate({"w": jnp.asarray(W)})
    odd = lrk.operators.Magnitude(low(), jnp.ones(5))
    stack = lrk.LowRank(keyed, A, B)
    with pytest.raises(ValueError, match=r"'w' of .* Magnitude is no additive"):
        mitigate({"w": odd, "v": stack})
    over = lrk.LowRank(lrk.operators.Magnitude(low(), jnp.ones(5)), A, B)
    assert mitigate({"w": over}, k=1)["w"].rank == 1
    with pytest.raises(ValueError, match="finite numbers, .* in 'w'"):
        mitigate({"w": low(b=B * np.inf)})
    with pytest.raises(ValueError, match="expected a finite scale, got nan"):
        mitigate({"w": low()}, scale=float("nan"))


def test_a_base_without_dense_form_is_refused():
    state = lrk.rram.crossbar(lrk.rram.Device(adc=lrk.rram.Converter(4)))
    params = {"w": jnp.asarray(numbers(1, 6, 5))}
    chip = state.apply(params, state.init(jax.random.key(0), params))
    tree = {"w": lrk.LowRank(chip["w"], A, B)}
    with pytest.raises(ValueError, match="its base, a Crossbar, has no small dense"):
        analysis.mitigate_intruders(tree)
