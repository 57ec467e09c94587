"""The studies' engine: what trains together, masks, draws of `A`, and the rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from benchmarks.runner import Session
from benchmarks.study import methods as ways
from benchmarks.study import scores
from benchmarks.study.encoder import kernels
from benchmarks.study.singles import Options, Singles
from benchmarks.study.train import OPTIMIZER, batches, schedule

TASK = "trec"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Tiny runs on made-up texts."""
    options = dataclasses.replace(Options(), **Options().tiny())
    session = Session("lori_mask", tmp_path_factory.mktemp("results"), smoke=True)
    return Singles(options, session, "tasks")


def start(work, seed=0):
    return work.fresh("lora", TASK, seed)


# --- training ------------------------------------------------------------------------


def test_masked_gradients_take_the_steps_of_a_packed_lori(work):
    dense = work.state("lori-d", work.single("lori-d", TASK, 0))
    mask, _ = work._mask("lori-s", TASK, 0)
    assert dense.trainable.keys() == mask.keys()
    state, trained, _ = work._run("lori-s", TASK, 0, 0.01)

    rank = work.options.rank
    made = lrk.lori(rank, scale=ways.SCALE, mask=mask, select=kernels(work.cut))
    packed = made.init(jax.random.key(0), work.cut.params)
    fixed = {
        path: {**own, "a": jnp.asarray(state.trainable[path]["a"])}
        for path, own in packed.fixed.items()
    }
    got = by_hand(work, made, packed._replace(fixed=fixed), 0.01)
    adapted = made.apply(work.cut.params, lrk.State(got, fixed))
    want = work.trainer.form("lora", work.transform("lora"), state)
    for path in mask:
        one, two = (leaf(tree, path) for tree in (lrk.materialize(adapted), want))
        np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-6)
    assert np.isfinite(trained.losses).all()


def leaf(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def by_hand(work, tx, state, peak):
    """The same steps, written out: no masks on gradients, one jitted step."""
    task, split = work.task(TASK), work.suite.splits["train"]
    head = tuple(jnp.asarray(x) for x in work.trainer.head(task))
    texts = len(work.suite.labels("train", task))

    def loss(train, index):
        own, (kernel, bias) = train
        adapted = tx.apply(work.cut.params, lrk.State(own, state.fixed))
        pooled = work.cut.pool(
            lrk.materialize(adapted), split.hidden[task, index], split.mask[task, index]
        )
        logits = (pooled @ kernel + bias[None])[:, : work.suite.classes[task]]
        labels = split.labels[task, index]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    train = (state.trainable, head)
    memory = OPTIMIZER.init(train)
    slope = jax.jit(jax.grad(loss))
    steps = work.options.steps
    order = batches(texts, steps, work.options.batch, 0)
    for index, share in zip(order, schedule(steps), strict=True):
        update, memory = OPTIMIZER.update(slope(train, index), memory)
        rate = np.float32(peak * share)
        train = jax.tree.map(lambda x, u, r=rate: x - r * u, train, update)
    return train[0]


def test_what_is_frozen_stays(work):
    for name, frozen in (("lori-d", "a"), ("lori-s", "a")):
        before = start(work).trainable
        after = work.single(name, TASK, 0).trainable
        for path, own in before.items():
            assert np.array_equal(own[frozen], after[path][frozen])
            assert not np.array_equal(own["b"], after[path]["b"])
    mask = work.mask("lori-s", TASK, 0)
    trained = work.single("lori-s", TASK, 0).trainable
    for path, kept in mask.items():
        assert not np.any(trained[path]["b"][~kept])


def test_a_stored_run_comes_back_as_it_was(work):
    one, two = work.single("lora", TASK, 1), work.single("lora", TASK, 1)
    assert one.rate == two.rate
    assert one.trained == two.trained
    for left, right in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        assert np.array_equal(left, right)


def test_every_text_is_seen_once_before_any_is_seen_twice():
    order = batches(10, 7, 4, 0).ravel()
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:20]) == list(range(10))
    assert not np.array_equal(order[:10], order[10:20])


# --- masks, and what is counted ------------------------------------------------------


def test_masks_of_one_density_hold_one_number_of_entries(work):
    size = sum(own["b"].size for own in start(work).trainable.values())
    for name in ("lori-s", "random-leaf", "random", "smallest", "gradient"):
        mask = work.mask(name, TASK, 0)
        assert sum(int(kept.sum()) for kept in mask.values()) == int(0.1 * size), name


def test_controls_are_what_they_say(work):
    best, leaf_counts = work.mask("lori-s", TASK, 0), work.mask("random-leaf", TASK, 0)
    for path, kept in best.items():
        assert kept.sum() == leaf_counts[path].sum()
    smallest = work.mask("smallest", TASK, 0)
    assert not any(np.any(kept & smallest[path]) for path, kept in best.items())
    other = work.mask("other-task", TASK, 0)
    after = work.suite.tasks[(work.task(TASK) + 1) % len(work.suite.tasks)]
    expected = work.mask("lori-s", after, 0)
    assert all(np.array_equal(kept, expected[path]) for path, kept in other.items())


def test_trained_numbers_are_counted(work):
    state, rank = start(work).trainable, work.options.rank
    a, b = (sum(own[n].size for own in state.values()) for n in ("a", "b"))
    counted = {
        name: ways.trained_numbers(ways.METHODS[name], state, None)
        for name in ("lora", "lori-d", "lora-small")
    }
    attention = [own for path, own in state.items() if ways.ATTENTION in path]
    small = sum(own["a"].size + own["b"].size for own in attention) // rank
    assert counted == {"lora": a + b, "lori-d": b, "lora-small": small}


def test_factors_left_out_of_a_smaller_rank_add_nothing(work):
    method, state = ways.METHODS["lora-small"], start(work)
    began = ways.start(method, state, None, None)
    for path, own in began.trainable.items():
        used = own["a"].any(axis=0)
        assert used.sum() == (ways.ATTENTION in path)


@pytest.mark.parametrize("draw", list(ways.DRAWS))
def test_draws_of_a_have_one_size(draw):
    a = np.asarray(ways.DRAWS[draw](jax.random.key(0), 384, 8))
    assert np.mean(np.sum(a**2, axis=0)) == pytest.approx(1 / 3, rel=0.1)
    gram = 3 * a.T @ a
    off = np.abs(gram - np.diag(np.diag(gram))).max()
    assert off < (1e-5 if draw == "orthogonal" else 0.35)
    if draw == "hadamard":
        assert np.unique(np.abs(a).round(6)).size == 1


def test_tasks_share_a_where_it_is_said(work):
    name = "lori-d-gaussian-shared"
    one, two = (work.fresh(name, task, 0).trainable for task in work.suite.tasks[:2])
    apart = work.fresh("lori-d-gaussian", work.suite.tasks[1], 0).trainable
    for path, own in one.items():
        assert np.array_equal(own["a"], two[path]["a"])
        assert not np.array_equal(own["a"], apart[path]["a"])


# --- scores --------------------------------------------------------------------------


def test_differences_are_paired():
    right = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool)
    assert scores.gap(right, right).difference == 0
    worse = np.array([[1, 0, 0, 0]], bool)
    assert scores.gap(right, worse).difference == pytest.approx(25.0)


def test_predictions_fit_in_a_record():
    numbers = np.array([3, 0, 9, 1])
    assert np.array_equal(scores.numbers(scores.digits(numbers)), numbers)
