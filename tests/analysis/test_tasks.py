"""Several adapters: conflicts of signs, SAR and STI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import A, W, low
from tests.merging.exact_cases import adapters, sizes, trees, wide
from tests.network import numbers
from tests.reference import analysis as reference
from tests.reference import merging_exact
from tests.tolerances import assert_close
from tests.untyped import untyped

NAMES = ("w", "heads", "layers/0", "layers/1")


def deltas(own, name):
    return [merging_exact.delta(adapters(tree)[name]) for tree in own]


def entry(table, name):
    path, *index = name.split("/")
    return table[path][tuple(map(int, index))]


def test_sign_conflicts_of_three():
    found = analysis.sign_conflicts(trees())
    for name in NAMES:
        want = np.float32(reference.sign_conflicts(deltas(trees(), name)))
        assert_close(entry(found, name), want)
    bias = [np.asarray(tree["bias"].d) for tree in trees()]
    assert_close(found["bias"], np.float32(reference.sign_conflicts(bias)))
    assert set(found) == {"w", "heads", "layers", "bias"}


def test_sign_conflicts_of_two_are_those_of_interference():
    pair = trees()[:2]
    want = lrk.merging.interference(pair, signs=True).conflict
    found = analysis.sign_conflicts(pair)
    assert_close(found["layers"], want["layers"][:, 0, 1])
    assert_close(found["bias"], want["bias"][0, 1])


def test_known_conflicts():
    def tree(*d):
        return {"w": lrk.Delta(jnp.zeros(4), jnp.array(d, jnp.float32))}

    # Nothing, one alone, two that agree, and two of three that do not.
    own = [tree(0, 1, 1, 1), tree(0, 0, 2, -1), tree(0, 0, 0, 5)]
    assert_close(analysis.sign_conflicts(own)["w"], jnp.float32(0.5))
    assert float(analysis.sign_conflicts([own[0], tree(5, 0, 0, 0)])["w"]) == 0
    assert float(analysis.sign_conflicts([own[0], {"w": jnp.zeros(4)}])["w"]) == 0


def test_alignment_with_the_sum_and_with_a_merge():
    merged = lrk.merging.svd(trees(), rank=2)
    for error in (0.05, 0.6):
        found = analysis.alignment_ratio(trees(), error=error)
        other = analysis.alignment_ratio(trees(), merged, error=error)
        for name in NAMES:
            own = [d.T for d in deltas(trees(), name)]
            u, s, vt = np.linalg.svd(sum(own))
            pairs = ((found, sum(own)), (other, (u[:, :2] * s[:2]) @ vt[:2]))
            for table, target in pairs:
                want = [reference.alignment_ratio(d, target, error) for d in own]
                assert_close(entry(table, name), np.float32(want))
    assert set(found) == {"w", "heads", "layers"}


def test_known_alignments():
    w = jnp.zeros((3, 3))
    one, two = (jnp.diag(jnp.array(d)) for d in ([3.0, 0.0, 0.0], [0.0, 0.0, 4.0]))
    own = [{"w": lrk.Delta(w, d)} for d in (one, two)]
    # 3 of 5 is more than the error of 0.5, so that both directions are kept.
    assert_close(analysis.alignment_ratio(own, error=0.5)["w"], jnp.ones(2))
    want = jnp.array([0.0, 1.0])
    assert_close(analysis.alignment_ratio(own, error=0.65)["w"], want)
    alone = [own[0], {"w": w}]
    assert_close(analysis.alignment_ratio(alone)["w"], jnp.array([1.0, 0.0]))


def test_interference_of_tasks():
    for rank in (None, 1):
        found = analysis.task_interference(trees(), rank=rank)
        for name in NAMES:
            own = [d.T for d in deltas(trees(), name)]
            ranks = (2, 1, 2) if rank is None else (1, 1, 1)
            want = reference.task_interference(own, ranks)
            assert_close(entry(found, name), np.float32(want))


def test_known_interference():
    eye = np.eye(6, dtype=np.float32)

    def tree(i, size):
        return {"w": low(a=eye[:, [i]], b=size * np.eye(5, dtype=np.float32)[[i]])}

    apart = analysis.task_interference([tree(0, 2.0), tree(1, 3.0)])
    assert_close(apart["w"], jnp.float32(0))
    # One direction in both: each sees the other's value come back.
    same = analysis.task_interference([tree(0, 2.0), tree(0, 3.0)])
    assert_close(same["w"], jnp.float32(5))


def test_they_come_from_factors_and_run_under_jit():
    for fn in (analysis.alignment_ratio, analysis.task_interference):
        assert max(sizes(lambda *own, fn=fn: fn(own), *wide())) < 40 * 30
    pair = trees()[:2]

    def run(*own):
        one = analysis.sign_conflicts(own)["layers"]
        two = analysis.task_interference(own)["layers"]
        return one, two, analysis.alignment_ratio(own)["layers"]

    assert_close(jax.jit(run)(*pair), run(*pair))


def test_refusals():
    own = [{"w": low()}, {"w": low(a=numbers(20, 6, 3))}]
    calls = (
        analysis.sign_conflicts,
        analysis.task_interference,
        analysis.alignment_ratio,
    )
    for call in calls:
        who = call.__name__
        with (
            untyped(),
            pytest.raises(TypeError, match=f"{who}: .* a list of .* dict"),
        ):
            call(own[0])
        with pytest.raises(ValueError, match=f"{who}: expected at least"):
            call([])
        with pytest.raises(ValueError, match=f"{who}: .*'v': not in every tree"):
            call([*own, own[0] | {"v": jnp.ones(3)}])
        with pytest.raises(ValueError, match=f"{who}: .*'w': expected one shape"):
            call([*own, {"w": jnp.ones((2, 2))}])
        with pytest.raises(ValueError, match=f"{who}: none of 1 leaves is adapted"):
            call([{"w": jnp.asarray(W)}] * 2)
        with pytest.raises(ValueError, match=f"{who}: expected finite .* in 'w'"):
            call([own[0], {"w": low(a=A * np.nan)}])
        odd = {"w": lrk.operators.Magnitude(low(), jnp.ones(5))}
        with pytest.raises(ValueError, match=rf"{who}: .* at 'w' \(Magnitude\)"):
            call([own[0], odd])
    bias = {"b": lrk.Delta(jnp.zeros(3), jnp.ones(3))}
    with pytest.raises(ValueError, match=r"adapted leaves \('b'\) is a matrix"):
        analysis.alignment_ratio([bias])
    turned = low(w=W.T, a=W.T[:, :3], b=A.T).transpose((1, 0))
    with pytest.raises(ValueError, match="'w': its factors hold different axes"):
        analysis.task_interference([own[0], {"w": turned}])
    with pytest.raises(
        ValueError, match="alignment_ratio: none of 1 leaves is adapted"
    ):
        analysis.alignment_ratio(own, lrk.materialize(own[0]))
    with pytest.raises(ValueError, match=r"error in \(0, 1\], got 0"):
        analysis.alignment_ratio(own, error=0)
    with pytest.raises(ValueError, match="expected rank in .* got 0"):
        analysis.task_interference(own, rank=0)
