"""`interference`: cosines, shared inputs and sign conflicts, against dense deltas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import interference, overlap
from tests.merging.exact_cases import (
    PARAMS,
    adapters,
    assert_refuses,
    sizes,
    trees,
    wide,
)
from tests.network import numbers
from tests.reference import merging_exact as reference
from tests.tolerances import assert_close

PAIRS = list(itertools.combinations(range(3), 2))


def entry(table, name, s, t):
    """The number of a pair of trees at `w`, or at `layers/1`."""
    path, *index = name.split("/")
    return table[path][(*map(int, index), s, t)]


@pytest.mark.parametrize("name", ["w", "heads", "layers/0", "layers/1"])
def test_numbers_are_those_of_the_dense_deltas(name):
    found = interference(trees(), signs=True)
    own = [adapters(tree)[name] for tree in trees()]
    deltas = [reference.delta(x) for x in own]
    for s, t in PAIRS:
        cosine = reference.cosine(deltas[s], deltas[t])
        assert_close(entry(found.cosine, name, s, t), np.float32(cosine))
        angle = reference.principal_cosines(own[s][1], own[t][1])[0]
        assert_close(entry(found.overlap, name, s, t), np.float32(angle))
        share = reference.sign_conflict(deltas[s], deltas[t])
        assert_close(entry(found.conflict, name, s, t), np.float32(share))
        assert not entry(found.same_inputs, name, s, t)


def test_biases_have_a_cosine_and_no_inputs():
    found = interference(trees(), signs=True)
    one, two = (np.asarray(t["bias"].d, np.float64) for t in trees()[:2])
    assert_close(found.cosine["bias"][0, 1], np.float32(reference.cosine(one, two)))
    share = reference.sign_conflict(one, two)
    assert_close(found.conflict["bias"][0, 1], np.float32(share))
    assert set(found.overlap) == set(found.same_inputs) == {"w", "layers", "heads"}
    assert list(found.cosine) == ["bias", "heads", "layers", "w"]


def test_tables_are_symmetric_with_the_tree_itself_on_the_diagonal():
    found = interference(trees(), signs=True)
    for table, own in zip(found, (1, 1, True, 0), strict=True):
        for x in table.values():
            assert_close(x, jnp.swapaxes(x, -1, -2))
            diagonal = jnp.diagonal(x, axis1=-2, axis2=-1)
            assert_close(diagonal, jnp.full(diagonal.shape, own, x.dtype))


def test_without_signs_no_delta_is_formed():
    own = wide()
    assert interference(own).conflict == {}
    run = [
        sizes(lambda *own, s=signs: interference(own, signs=s), *own)
        for signs in (False, True)
    ]
    assert max(run[0]) == 40 * 6
    assert max(run[1]) == 40 * 30


def test_the_overlap_is_that_of_overlap():
    found = interference(trees())
    for path, largest in overlap(trees()).items():
        own = jnp.stack([found.overlap[path][..., s, t] for s, t in PAIRS])
        assert_close(jnp.max(own, axis=0), largest)


def low(a, b=None, w=PARAMS["w"]):
    a = jnp.asarray(a, jnp.float32)
    return {"w": lrk.LowRank(w, a, jnp.ones((a.shape[-1], 4)) if b is None else b)}


def unit(*rows):
    return np.eye(6, dtype=np.float32)[:, list(rows)]


TURN = np.array([[1, 2], [0.5, -1]], np.float32)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (unit(0, 1), unit(0, 1) @ TURN, True),
        (numbers(1, 6, 2), -3 * numbers(1, 6, 2), True),
        (unit(0, 1), unit(0, 2), False),
        (unit(0, 1), unit(0), False),
        (unit(0), unit(0, 1), False),
        (unit(0, 1) * np.float32([1, 0]), unit(0), True),
        (np.zeros((6, 1)), np.zeros((6, 1)), False),
    ],
    ids=["turned", "scaled", "one-shared", "part", "whole", "deficient", "nothing"],
)
def test_input_spaces_that_are_one_are_found(one, two, same):
    assert bool(interference([low(one), low(two)]).same_inputs["w"][0, 1]) == same


def test_the_trap_of_one_key_is_found_and_other_keys_are_not():
    params, tx = {"w": jnp.ones((64, 8))}, lrk.lori(2)
    own = [tx.apply(params, tx.init(jax.random.key(i), params)) for i in (0, 0, 1)]
    found = interference(own)
    assert found.same_inputs["w"].tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]
    # Before training nothing is changed yet.
    assert_close(found.cosine["w"], jnp.zeros((3, 3)))
    assert "(0, 1)" in repr(found)
    assert "1 of 1 leaves share their inputs" in repr(found)


def test_opposite_deltas():
    one, two = low(unit(0, 1)), low(unit(0, 1), -jnp.ones((2, 4)))
    found = interference([one, two], signs=True)
    assert_close(found.cosine["w"], jnp.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert_close(found.conflict["w"], jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    apart = interference([one, low(unit(2, 3))], signs=True)
    assert float(apart.conflict["w"][0, 1]) == 0


def test_trees_that_leave_a_leaf_alone_are_zero():
    found = interference([low(unit(0)), {"w": PARAMS["w"]}], signs=True)
    want = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    assert_close(found.cosine["w"], want)
    assert_close(found.overlap["w"], want)
    assert found.same_inputs["w"].tolist() == [[True, False], [False, False]]
    bias = {"b": lrk.Delta(jnp.zeros(3), jnp.ones(3))}
    assert_close(interference([bias, {"b": bias["b"].w}]).cosine["b"], want)


def test_a_plain_delta_reads_all_inputs_of_a_wide_matrix():
    w = jnp.zeros((4, 6))
    plain = {"w": lrk.Delta(w, jnp.asarray(numbers(1, 4, 6)))}
    thin = {"w": lrk.LowRank(w, numbers(2, 4, 1), numbers(3, 1, 6))}
    found = interference([plain, thin])
    assert_close(found.overlap["w"][0, 1], jnp.ones(()))
    d = np.float64(numbers(2, 4, 1)) @ numbers(3, 1, 6)
    want = reference.cosine(np.float64(numbers(1, 4, 6)), d)
    assert_close(found.cosine["w"][0, 1], np.float32(want))


def test_it_runs_under_jit_and_cosines_have_gradients():
    def run(*own):
        found = interference(own, signs=True)
        assert "traced" in repr(found)
        return found

    assert_close(jax.jit(run)(*trees()), interference(trees(), signs=True))
    one, two = low(numbers(1, 6, 2)), low(numbers(2, 6, 2))

    def cosine(b):
        return interference([low(one["w"].a, b), two]).cosine["w"][0, 1]

    b = jnp.asarray(numbers(3, 2, 4))
    d = np.float64(numbers(2, 6, 2)) @ np.ones((2, 4))

    def wanted(flat):
        return reference.cosine(np.float64(numbers(1, 6, 2)) @ flat.reshape(2, 4), d)

    want = reference.slope(wanted, numbers(3, 2, 4).reshape(-1)).reshape(2, 4)
    assert_close(jax.grad(cosine)(b), want.astype(np.float32))


def test_it_prints_the_worst_pairs():
    found = interference(trees(), signs=True)
    lines = repr(found).splitlines()
    assert lines[0] == "Interference"
    assert lines[1].split() == [
        "path", "cosine", "overlap", "conflict", "same", "inputs",
    ]  # fmt: skip
    row = next(line for line in lines if line.strip().startswith("layers"))
    values = np.asarray(found.cosine["layers"])
    worst = max(
        ((i, s, t) for i in (0, 1) for s, t in PAIRS), key=lambda p: abs(values[p])
    )
    assert f"{values[worst]:.3f} ({worst[1]}, {worst[2]})" in row
    assert row.strip().endswith("no")
    assert "<table>" in found._repr_html_()
    plain = interference(trees())
    assert plain._table()[1][0][2:] == ["-", "-", "-"]


def test_refusals():
    assert_refuses("interference", lambda own, _=None: interference(own), False)
    with pytest.raises(
        ValueError, match="expected at least two adapted trees, got one"
    ):
        interference(trees()[:1])
