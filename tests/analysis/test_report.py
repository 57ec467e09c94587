"""The report of one adapter: rows, against the functions and against float64."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import lowrank as lrk
from lowrank import analysis
from tests.analysis.cases import STACK, A, B, W, delta, low
from tests.network import numbers
from tests.reference import analysis as reference

mpl.use("agg")
BIAS, D = numbers(41, 5), numbers(42, 5)
SCALE = 3.0
KIND = {"rank": 2, "energy": 0.8, "intruders": 3, "epsilon": 0.7}


def tree():
    """Two equal kernels, a stack of two more, a bias, a leaf that is left alone."""
    w, a, b = STACK
    return {
        "one": low(scale=SCALE),
        "bias": lrk.Delta(jnp.asarray(BIAS), jnp.asarray(D)),
        "layers": lrk.LowRank(jnp.asarray(w), a, b, jnp.array([1.0, SCALE])),
        "norm": jnp.ones(5),
    }


def wanted(w, d, rank=3):
    """A row from a weight and its change, both formed, in float64."""
    w, size = np.float64(w), np.linalg.norm(d)
    cosines = reference.intruder_cosines(w.T, d.T, 3)
    return {
        "shape": (6, 5),
        "rank": rank,
        "norm": size,
        "relative": size / np.linalg.norm(w),
        "cosine": reference.cosine(w, d),
        "effective": reference.effective_rank(d),
        "stable": reference.stable_rank(d),
        "numerical": np.linalg.matrix_rank(d),
        "participation": reference.participation_ratio(d),
        "energy": reference.energy_at_rank(d, 2),
        "energy_rank": reference.rank_at_energy(d, 0.8),
        "amplification": reference.amplification(w, d, 2),
        "intruders": int((cosines < 0.7).sum()),
    }


def assert_row(got, path, want):
    assert list(got) == ["path", *want]
    assert got["path"] == path
    for name, value in want.items():
        if value is None or isinstance(value, tuple):
            assert got[name] == value
        else:
            np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def found():
    return analysis.report(tree(), **KIND)


def test_rows_are_those_of_formed_changes(found):
    w, a, b = STACK
    rows = {row["path"]: row for row in found.records()}
    assert list(rows) == ["bias", "layers[0]", "layers[1]", "one"]
    assert_row(rows["one"], "one", wanted(W, delta(scale=SCALE)))
    for i, scale in ((0, 1.0), (1, SCALE)):
        d = scale * np.float64(a[i]) @ b[i]
        assert_row(rows[f"layers[{i}]"], f"layers[{i}]", wanted(w[i], d))
    size = np.linalg.norm(D)
    names = dict.fromkeys(wanted(W, delta()))
    cosine = reference.cosine(np.float64(BIAS), D)
    bias = {"shape": (5,), "norm": size, "relative": size / np.linalg.norm(BIAS)}
    assert_row(rows["bias"], "bias", names | bias | {"cosine": cosine})
    assert {type(x) for x in rows["one"].values()} == {str, tuple, int, float}
    json.dumps(found.records())


def test_layers_of_one_shape_are_measured_in_one_call(monkeypatch):
    from lowrank.analysis import _report

    calls = []

    def measure(a, *_):
        calls.append(a.shape)
        return {"norm": jnp.zeros(a.shape[0])}

    monkeypatch.setattr(_report, "_measure", measure)
    own = {name: x for name, x in tree().items() if name != "bias"}
    assert len(analysis.report(own, **KIND).rows) == 3
    assert calls == [(3, 6, 3)]
    monkeypatch.setattr("lowrank.analysis._rows.MOST", 2 * 30)
    assert len(analysis.report(own, **KIND).rows) == 3
    assert calls[1:] == [(2, 6, 3), (1, 6, 3)]


def test_a_full_fine_tune_is_compared_with_what_it_started_from():
    params = {"w": jnp.asarray(W), "bias": jnp.asarray(BIAS), "kept": jnp.ones((2, 2))}
    d = numbers(43, 6, 5)
    tuned = params | {"w": params["w"] + d, "bias": params["bias"] + D}
    tuned["kept"] = jnp.ones((2, 2))
    rows = analysis.report(tuned, params=params, **KIND).records()
    assert [row["path"] for row in rows] == ["bias", "w"]
    assert_row(rows[1], "w", wanted(W, np.float64(d), None))


def test_factors_over_the_parameters_stay_factors():
    params = lrk.base(tree())
    copied = params | {"one": params["one"] + 0}
    for own in (params, copied):
        rows = analysis.report(tree(), params=own, **KIND).records()
        assert {row["path"]: row["rank"] for row in rows}["one"] == 3


def test_a_magnitude_is_compared_and_not_guessed():
    params = {"w": jnp.asarray(W), "v": jnp.ones((2, 2))}
    odd = lrk.operators.Magnitude(low(), jnp.ones(5))
    adapted = params | {"w": odd}
    with pytest.raises(ValueError, match=r"'w' of .* Magnitude is no .*params="):
        analysis.report(adapted)
    (row,) = analysis.report(adapted, params=params, **KIND).records()
    assert_row(row, "w", wanted(W, np.float64(odd.dense()) - W, None))


def test_what_a_chip_cannot_tell_is_left_out():
    tx = lrk.rram.crossbar(lrk.rram.Device(adc=lrk.rram.Converter(4)))
    params = {"w": jnp.asarray(W)}
    chip = tx.apply(params, tx.init(jax.random.key(0), params))
    adapted = {"w": lrk.LowRank(chip["w"], A, B)}
    (row,) = analysis.report(adapted, **KIND).records()
    np.testing.assert_allclose(row["norm"], np.linalg.norm(delta()), rtol=1e-5)
    assert row["relative"] is row["intruders"] is row["amplification"] is None
    with pytest.raises(ValueError, match="LowRank has no small dense form"):
        analysis.report(adapted, params=params)


def test_axes_and_more_axes():
    d = numbers(44, 2, 6, 5)
    own = {"layers": lrk.Delta(jnp.asarray(STACK[0]), jnp.asarray(d))}
    axes = {"layers": lrk.Axes((0,), (1,), (2,))}
    rows = analysis.report(own, axes=axes, **KIND).records()
    for i in (0, 1):
        assert_row(rows[i], f"layers[{i}]", wanted(STACK[0][i], np.float64(d[i]), None))
    (row,) = analysis.report(own, intruders=0).records()
    assert row["shape"] == (2, 6, 5)
    assert row["effective"] is None
    assert "intruders" not in row


def test_it_prints(found):
    lines = str(found).splitlines()
    assert lines[0] == "Report"
    assert lines[1].split()[:4] == ["path", "shape", "rank", "norm"]
    assert lines[-1].split(";")[0].strip() == "4 rows"
    assert "of 2 directions" in lines[-1]
    assert "intruders of 3 below 0.7" in lines[-1]
    row = next(line.split() for line in lines if line.split()[0] == "one")
    assert row[1:3] == ["6x5", "3"]
    assert row[3] == f"{np.linalg.norm(delta(scale=SCALE)):.3g}"
    bias = next(line.split() for line in lines if line.split()[0] == "bias")
    assert bias[2] == bias[-1] == "-"
    assert repr(found) == str(found)
    assert found._repr_html_().count("<tr>") == 5


def test_it_plots(found):
    from matplotlib import pyplot

    axes = found.plot("norm", "effective")
    assert [x.get_title() for x in axes] == ["norm", "effective"]
    widths = [bar.get_width() for bar in axes[0].patches]
    np.testing.assert_allclose(widths, [row["norm"] for row in found.rows])
    assert [t.get_text() for t in axes[0].get_yticklabels()][0] == "bias"
    (axes,) = analysis.Table(
        "T", ({"path": "w", "x": np.inf}, {"path": "v", "x": 2.0})
    ).plot()
    axes.figure.canvas.draw()  # an infinite bar would warn
    assert [bar.get_width() for bar in axes.patches] == [0, 2]
    pyplot.close("all")
    with pytest.raises(ValueError, match=r"columns of numbers, got \['shape'\]"):
        found.plot("shape")


def test_pandas_if_there_is_one(found, monkeypatch):
    frames = types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows))
    monkeypatch.setitem(sys.modules, "pandas", frames)
    assert found.to_pandas() == ("frame", found.records())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_pandas: pandas is not installed"):
        found.to_pandas()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="plot: matplotlib is not installed"):
        found.plot()


def test_refusals():
    own = {"w": low(), "v": low(b=B * np.nan)}
    with pytest.raises(ValueError, match="report: expected finite numbers, .* in 'v'"):
        analysis.report(own)
    with pytest.raises(ValueError, match="none of 1 leaves is adapted"):
        analysis.report({"w": jnp.asarray(W)})
    with pytest.raises(ValueError, match="report: the tree holds no arrays. Pass an"):
        analysis.report({})
    with pytest.raises(ValueError, match=r"matches none of 2 leaves \('v', 'w"):
        analysis.report(own, select=lrk.matching("kernel"))
    assert len(analysis.report(own, select=lrk.matching("w"), intruders=0).rows) == 1
    with pytest.raises(ValueError, match="got tracers or shapes at 'w'"):
        jax.jit(lambda t: analysis.report(t).rows[0]["norm"])({"w": low()})
    with pytest.raises(ValueError, match="report: .* 'w': expected one shape"):
        analysis.report({"w": low()}, params={"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="expected rank in .* got 0"):
        analysis.report(own, rank=0)
    with pytest.raises(ValueError, match=r"energy in \(0, 1\], got 2"):
        analysis.report(own, energy=2.0)
    with pytest.raises(ValueError, match="expected intruders in .* got -1"):
        analysis.report(own, intruders=-1)
