"""Two adapters side by side."""

import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import A, W, low
from tests.merging.exact_cases import adapters, trees
from tests.reference import analysis as reference
from tests.reference import merging_exact
from tests.untyped import untyped


@pytest.fixture(scope="module")
def found():
    return analysis.compare(*trees()[:2])


@pytest.mark.parametrize("name", ["w", "heads", "layers/0", "layers/1"])
def test_rows_are_those_of_formed_changes(found, name):
    path = name.replace("/0", "[0]").replace("/1", "[1]")
    row = next(row for row in found.records() if row["path"] == path)
    (_, a1, _), (_, a2, _) = own = [adapters(tree)[name] for tree in trees()[:2]]
    d1, d2 = (merging_exact.delta(x) for x in own)
    angles = reference.angles(a1, a2)
    want = {
        "rank_1": 2,
        "rank_2": 1,
        "norm_1": np.linalg.norm(d1),
        "norm_2": np.linalg.norm(d2),
        "cosine": reference.cosine(d1, d2),
        "inputs": reference.similarity(d1.T, d2.T, 1, 1),
        "outputs": reference.similarity(d1, d2, 1, 1),
        "overlap": np.cos(angles[0]),
        "smallest_angle": angles[0],
        "largest_angle": angles[-1],
        "sign_conflict": reference.sign_conflicts([d1, d2]),
    }
    assert row["shape"] == (6, 4)
    for key, value in want.items():
        np.testing.assert_allclose(row[key], value, rtol=2e-4, atol=1e-6, err_msg=key)


def test_the_overlap_is_that_of_merging(found):
    overlap = lrk.merging.overlap(trees()[:2])
    rows = {row["path"]: row["overlap"] for row in found.records()}
    np.testing.assert_allclose(rows["w"], overlap["w"], rtol=1e-5)
    np.testing.assert_allclose(rows["layers[1]"], overlap["layers"][1], rtol=1e-5)
    assert list(rows) == ["heads", "layers[0]", "layers[1]", "w"]
    assert "of all directions" in str(found)


def test_known_pairs():
    eye = np.eye(6, dtype=np.float32)
    b = np.ones((2, 5), np.float32) * [[2], [1]]
    b[1, 0] = -1
    one = {"w": low(a=eye[:, :2], b=b), "v": jnp.asarray(W)}
    two = {"w": low(a=eye[:, [0, 2]], b=-b), "v": low()}
    alone, both = analysis.compare(one, two).records()
    # The first direction is common, and reversed; the others do not meet.
    np.testing.assert_allclose(both["overlap"], 1)
    np.testing.assert_allclose(both["smallest_angle"], 0, atol=1e-6)
    np.testing.assert_allclose(both["largest_angle"], np.pi / 2, rtol=1e-6)
    np.testing.assert_allclose(both["cosine"], -20 / 25, rtol=1e-5)
    np.testing.assert_allclose(both["outputs"], 1, rtol=1e-5)
    assert both["sign_conflict"] == 1.0
    assert (alone["path"], alone["rank_1"], alone["rank_2"]) == ("v", None, 3)
    assert alone["cosine"] is alone["overlap"] is None


def test_a_change_of_zero_still_has_its_inputs():
    zero = {"w": low(b=np.zeros((3, 5), np.float32))}
    (row,) = analysis.compare(zero, zero, rank=2).records()
    assert row["cosine"] == row["inputs"] == row["sign_conflict"] == 0
    np.testing.assert_allclose(row["overlap"], 1)


def test_refusals():
    own = {"w": low(), "v": lrk.operators.Magnitude(low(), jnp.ones(5))}
    with pytest.raises(ValueError, match=r"compare: .* at 'v' \(Magnitude\)"):
        analysis.compare(own, own)
    assert len(analysis.compare(own, own, select=lrk.matching("w")).rows) == 1
    with pytest.raises(ValueError, match="compare: the selection matches none of 2"):
        analysis.compare(own, own, select=lrk.matching("kernel"))
    with pytest.raises(ValueError, match="compare: .*'v': not in every tree"):
        analysis.compare(own, {"w": low()})
    with pytest.raises(ValueError, match="compare: none of 1 leaves is adapted"):
        analysis.compare({"w": jnp.asarray(W)}, {"w": jnp.asarray(W)})
    with pytest.raises(ValueError, match="compare: expected finite .* in 'w'"):
        analysis.compare({"w": low(a=A * np.nan)}, {"w": low()})
    with pytest.raises(ValueError, match="expected rank in .* got 0"):
        analysis.compare({"w": low()}, {"w": low()}, rank=0)
    with untyped(), pytest.raises(TypeError, match="select must be a function"):
        analysis.compare({"w": low()}, {"w": low()}, select="w")
