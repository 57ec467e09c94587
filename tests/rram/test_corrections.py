"""Corrections of a programmed chip: `svd_correction` and `patch`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import corrections as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

PARAMS = {
    "bias": jnp.asarray(numbers(1, 3)),
    "conv": jnp.asarray(numbers(2, 2, 2, 2, 3)),
    "dense": jnp.asarray(numbers(3, 6, 4)),
}
AXES = {"conv": lrk.Axes((), (0, 1, 2), (3,))}
CHIP = {
    "bias": PARAMS["bias"],
    "conv": PARAMS["conv"] + 0.3 * numbers(4, 2, 2, 2, 3),
    "dense": PARAMS["dense"] * (numbers(5, 6, 4) > 0),
}
E = {path: np.asarray(PARAMS[path] - CHIP[path], np.float64) for path in PARAMS}
DENSE = lrk.matching("^dense$")


def added(tree, path):
    return np.asarray(tree[path].delta(), np.float64)


def near(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5)


# --- svd_correction ------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_branch_is_the_truncated_svd_of_the_error(rank):
    healed = lrk.rram.svd_correction(PARAMS, CHIP, rank, axes=AXES)
    assert healed["bias"] is CHIP["bias"]
    assert isinstance(healed["dense"], lrk.LowRank)
    assert healed["dense"].w is CHIP["dense"]
    assert healed["conv"].a.shape == (2, 2, 2, rank)
    near(added(healed, "dense"), reference.truncated(E["dense"], rank))
    flat = reference.truncated(E["conv"].reshape(8, 3), rank)
    near(added(healed, "conv").reshape(8, 3), flat)


def test_full_rank_heals_and_a_shorter_side_bounds_the_rank():
    healed = lrk.rram.svd_correction(PARAMS, CHIP, 100, axes=AXES)
    assert healed["dense"].rank == 4
    assert_close(lrk.materialize(healed), PARAMS)


@pytest.mark.parametrize("rows", [9, 3], ids=["regular", "singular"])
def test_a_gram_matrix_weighs_the_error_by_the_inputs(rows):
    x = numbers(6, rows, 6) * np.array([5.0, 1, 1, 1, 1, 0.2], np.float32)
    gram = {"dense": jnp.asarray(x.T @ x)}
    healed = lrk.rram.svd_correction(PARAMS, CHIP, 2, gram=gram, select=DENSE)
    got = added(healed, "dense")
    near(got, reference.weighted(E["dense"], x, 2))
    plain = reference.truncated(E["dense"], 2)
    rest = [np.linalg.norm(x @ (E["dense"] - c)) for c in (got, plain)]
    assert rest[0] < 0.9 * rest[1]


def test_takes_what_gram_collects():
    x = jnp.asarray(numbers(7, 5, 6))
    gram = lrk.merging.gram(lambda p, x: x @ p["dense"], CHIP, x, select=DENSE)
    healed = lrk.rram.svd_correction(PARAMS, CHIP, 1, gram=gram, select=DENSE)
    want = reference.weighted(E["dense"], x, 1)
    near(added(healed, "dense"), want)


def test_each_matrix_of_a_stack_by_itself():
    wanted, chip = jnp.asarray(numbers(8, 2, 4, 3)), jnp.zeros((2, 4, 3))
    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    gram = {"w": jnp.stack([jnp.diag(jnp.arange(1.0, 5.0)), jnp.eye(4)])}
    healed = lrk.rram.svd_correction(
        {"w": wanted}, {"w": chip}, 1, gram=gram, axes=axes
    )
    got = added(healed, "w")
    first = reference.weighted(wanted[0], np.diag(np.arange(1.0, 5.0)) ** 0.5, 1)
    near(got[0], first)
    near(got[1], reference.truncated(wanted[1], 1))


def test_under_jit_and_vmap_over_chips():
    chips = jnp.stack([CHIP["dense"], 0.5 * PARAMS["dense"]])
    wanted = {"dense": PARAMS["dense"]}

    @jax.jit
    @jax.vmap
    def heal(chip):
        healed = lrk.rram.svd_correction(wanted, {"dense": chip}, 2)
        return lrk.materialize(healed)["dense"]

    got = np.asarray(heal(chips))
    for chip, own in zip(np.asarray(chips), got, strict=True):
        error = np.asarray(PARAMS["dense"]) - chip
        near(own, chip + reference.truncated(error, 2))


def test_the_deployed_operator_stays_the_base():
    d = jnp.asarray(E["dense"], jnp.float32)
    chip = {"dense": lrk.Delta(PARAMS["dense"], -d)}
    healed = lrk.rram.svd_correction({"dense": PARAMS["dense"]}, chip, 1)
    assert healed["dense"].w is chip["dense"]
    near(added(healed, "dense"), reference.truncated(E["dense"], 1))


def test_stands_beside_converters():
    params = {"dense": PARAMS["dense"]}
    device = lrk.rram.Device(p_lrs=0.2, p_hrs=0.2, adc=lrk.rram.Converter(8))
    tx = lrk.rram.crossbar(device)
    chip = tx.apply(params, tx.init(jax.random.key(0), params))
    healed = lrk.rram.svd_correction(params, chip, 1)
    assert healed["dense"].w is chip["dense"]
    error = params["dense"] - chip["dense"].programmed_weight()
    near(added(healed, "dense"), reference.truncated(error, 1))


def test_a_single_precision_branch_for_half_weights():
    half = {"w": PARAMS["dense"].astype(jnp.bfloat16)}
    chip = {"w": CHIP["dense"].astype(jnp.bfloat16)}
    healed = lrk.rram.svd_correction(half, chip, 1)
    assert healed["w"].a.dtype == jnp.float32
    assert healed["w"].dtype == jnp.bfloat16


# --- patch ---------------------------------------------------------------------------

WEIGHTS = {path: np.abs(numbers(9 + i, *E[path].shape)) for i, path in enumerate(E)}


def patches(count, **kwargs):
    patched = lrk.rram.patch(PARAMS, CHIP, count, **kwargs)
    assert patched["bias"] is CHIP["bias"]
    return [np.asarray(patched[path].d) for path in ("conv", "dense")]


@pytest.mark.parametrize("count", [0, 1, 9])
@pytest.mark.parametrize("importance", [None, WEIGHTS], ids=["size", "importance"])
def test_keeps_the_errors_that_matter_most(count, importance):
    errors = [np.asarray(PARAMS[p] - CHIP[p]) for p in ("conv", "dense")]
    weights = [np.abs(e) for e in errors]
    if importance is not None:
        weights = [WEIGHTS[p] for p in ("conv", "dense")]
    want = reference.patched(errors, weights, count)
    got = patches(count, importance=importance)
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert sum((d != 0).sum() for d in got) == count


def test_more_than_all_errors_heal_the_chip():
    patched = lrk.rram.patch(PARAMS, CHIP, 1000)
    assert_close(lrk.materialize(patched), PARAMS)


def test_ties_go_to_the_earlier_entries_and_right_ones_take_no_place():
    params = {"a": jnp.zeros(4), "b": jnp.zeros((2, 2))}
    chip = {"a": jnp.array([0.0, 1, 1, 1]), "b": jnp.ones((2, 2))}
    nothing = {path: jnp.zeros(x.shape) for path, x in chip.items()}
    for importance in (None, nothing):
        patched = lrk.rram.patch(params, chip, 4, importance=importance)
        assert patched["a"].d.tolist() == [0, -1, -1, -1]
        assert patched["b"].d.tolist() == [[-1, 0], [0, 0]]


def test_the_count_may_be_traced(traces):
    wanted, chip = ({"w": tree["dense"]} for tree in (PARAMS, CHIP))
    run = jax.jit(traces(lambda n: lrk.rram.patch(wanted, chip, n)["w"].d))
    assert [int((run(jnp.asarray(n)) != 0).sum()) for n in (0, 2, 5)] == [0, 2, 5]
    assert traces.count == 1


def test_patch_bytes():
    assert lrk.rram.patch_bytes(10) == 80
    assert lrk.rram.patch_bytes(10, value=2, index=3) == 50


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: correct(rank=0), "rank must be at least 1, got 0"),
        (lambda: correct(chip=PARAMS), "no floating leaf differs"),
        (lambda: correct(), r"svd_correction: cannot adapt 'conv'.*needs 2 axes"),
        (lambda: correct(chip={}), "the trees differ: 'bias' is in one tree only"),
        (
            lambda: correct(chip={**CHIP, "dense": jnp.ones((7, 4))}),
            r"'dense' of shape \(6, 4\) is deployed as \(7, 4\)",
        ),
        (
            lambda: correct(gram={"dense": jnp.ones((4, 4)), "x": jnp.ones((2, 2))}),
            r"'x' is not corrected; 'dense': expected \(6, 6\), got \(4, 4\)",
        ),
        (lambda: lrk.rram.patch(PARAMS, CHIP, -1), "count must be at least 0, got -1"),
        (
            lambda: lrk.rram.patch(
                PARAMS, CHIP, 1, importance={"dense": jnp.ones((4, 6))}
            ),
            r"'conv': none given; 'dense': expected \(6, 4\), got \(4, 6\)",
        ),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def correct(chip=CHIP, rank=1, gram=None):
    axes = AXES if gram else None
    return lrk.rram.svd_correction(PARAMS, chip, rank, gram=gram, axes=axes)


def test_refuses_what_is_no_rank():
    with untyped(), pytest.raises(TypeError, match=r"rank must be an int, got 1\.5"):
        lrk.rram.svd_correction(PARAMS, CHIP, 1.5)


def test_refuses_leaves_without_numbers():
    ids = {"ids": jnp.arange(3), "w": PARAMS["dense"]}
    with pytest.raises(ValueError, match=r"patch: no floating numbers at 'ids'"):
        lrk.rram.patch(ids, ids, 1, select=lrk.matching("."))
    tx = lrk.lora(1, dropout=0.5)
    params = {"w": PARAMS["dense"]}
    state = tx.init(jax.random.key(0), params)
    chip = tx.apply(params, state, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"no floating numbers at 'w' of shape"):
        lrk.rram.svd_correction(params, chip, 1)
