"""`adalora` and its allocation: equations, PEFT's steps, pruning, messages."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.adapters import (
    Importance,
    adalora_budget,
    adalora_freeze,
    adalora_importance,
    adalora_mask,
    adalora_penalty,
    adalora_prune,
)
from lowrank.adapters._adalora_budget import triplet_scores
from tests.network import numbers
from tests.reference import adalora as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "adalora.npz")
PARAMS = {name: jnp.asarray(np.float32(GOLDEN[name].T)) for name in "vw"}
NAMES = ("a", "b", "lambda")
TX = lrk.adalora(3, scale=6 / (3 + 1e-5))  # as PEFT divides
SCHEDULE = {"start": 6, "end": 2, "total": 7, "warmup": 1, "cooldown": 1}


def f32(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def stored(step, kind=""):
    """PEFT's arrays of one step in our layout."""
    found = {}
    for path in "vw":
        own = {name: GOLDEN[f"{step}/{kind}{path}/{name}"] for name in NAMES}
        found[path] = {"a": own["a"].T, "b": own["b"].T, "lambda": own["lambda"][:, 0]}
    return jax.tree.map(jnp.asarray, f32(found))


def drawn():
    return jax.jit(TX.init)(KEY, PARAMS)


@pytest.fixture(scope="module")
def run():
    """Results and gradients of the two layers, compiled once."""
    x, g = (jnp.asarray(f32(GOLDEN[n])) for n in "xg")

    def objective(trainable, fixed):
        adapted = TX.apply(PARAMS, lrk.State(trainable, fixed))
        y = lrk.lift(lambda p, x: jnp.tanh(x @ p["v"]) @ p["w"])(adapted, x)
        return jnp.sum(y * g), (y, lrk.materialize(adapted))

    return jax.jit(jax.grad(objective, has_aux=True))


# --- PEFT ----------------------------------------------------------------------------


def test_results_and_gradients_agree_with_peft(run):
    assert str(GOLDEN["provenance"]).startswith("peft 0.21.2")
    fixed = drawn().fixed
    for t in range(6):
        grads, (y, merged) = run(stored(t), fixed)
        assert_close(y, f32(GOLDEN[f"{t}/y"]))
        assert_close(grads, stored(t, "grad_"))
        assert_close(merged, {n: f32(GOLDEN[f"{t}/{n}/merged"].T) for n in "vw"})


def test_steps_of_the_allocation_agree_with_peft():
    state = drawn()

    @jax.jit
    def step(trainable, grads, before, t):
        importance = adalora_importance(trainable, grads, before)
        budget = adalora_budget(t, **SCHEDULE)
        mask = adalora_mask(importance, budget)
        pruned = adalora_prune(state._replace(trainable=trainable), mask)
        return importance, budget, pruned.trainable

    zeros = jax.tree.map(jnp.zeros_like, state.trainable)
    importance = Importance(zeros, zeros)
    for t in range(6):
        trainable, grads = stored(t), stored(t, "grad_")
        importance, budget, after = step(trainable, grads, importance, t)
        assert budget == GOLDEN[f"{t}/budget"]
        for path in "vw":
            want = f32(GOLDEN[f"{t}/{path}/pruned"])
            assert_close(np.asarray(after[path]["lambda"]), want)
            assert after[path]["a"].shape == trainable[path]["a"].shape


# --- the equations -------------------------------------------------------------------


def test_weight_follows_the_equation_and_the_mask(run):
    trainable, fixed = stored(0), drawn().fixed
    mask = {"v": jnp.array([True, False, True]), "w": jnp.zeros(3, bool)}
    frozen = adalora_freeze(lrk.State(trainable, fixed), mask)
    for own in (fixed, frozen.fixed):
        grads, (_, formed) = run(trainable, own)
        for path, leaf in trainable.items():
            kept = np.where(own[path]["mask"], leaf["lambda"], 0)
            parts = (leaf["a"], kept, leaf["b"], own[path]["scale"])
            want = reference.weight(PARAMS[path], *parts)
            assert_close(formed[path], f32(want))
    assert not any(x.any() for x in jax.tree.leaves(grads["w"]))
    dead = grads["v"]["a"][:, 1], grads["v"]["b"][1], grads["v"]["lambda"][1]
    assert not any(x.any() for x in dead)
    assert grads["v"]["lambda"][0] != 0


def test_penalty_is_that_of_the_equation():
    trainable = stored(0)
    pairs = [(leaf["a"], leaf["b"]) for leaf in trainable.values()]
    assert_close(jax.jit(adalora_penalty)(trainable), f32(reference.penalty(pairs)))
    a = numbers(1, 2, 2, 3, 4)
    stack = {"a": a, "b": numbers(2, 2, 4, 5), "lambda": numbers(3, 2, 4)}
    pairs = [(a[i].reshape(6, 4), stack["b"][i]) for i in range(2)]
    own = jax.tree.map(jnp.asarray, {"w": stack})
    assert_close(jax.jit(adalora_penalty)(own), f32(reference.penalty(pairs)))


def test_scores_of_a_stack_are_those_of_its_layers():
    ones = {"a": np.ones((2, 3, 4)), "b": np.ones((2, 4, 5)), "lambda": np.ones((2, 4))}
    own = {"a": numbers(4, 2, 3, 4), "b": numbers(5, 2, 4, 5)}
    own["lambda"] = numbers(6, 2, 4)
    found = triplet_scores(Importance({"w": own}, {"w": f32(ones)}))["w"]
    want = [
        reference.scores(*(own[n][i] for n in ("a", "lambda", "b"))) for i in (0, 1)
    ]
    assert_close(np.asarray(found), f32(np.stack(want)))


def test_exactly_as_many_have_a_place_also_where_scores_are_equal():
    zeros = jax.tree.map(jnp.zeros_like, stored(0))
    mask = jax.jit(adalora_mask)
    for budget in (0, 1, 5, 6, 9):
        found = mask(Importance(zeros, zeros), budget)
        assert sum(int(np.sum(x)) for x in found.values()) == min(budget, 6)


def test_a_pruned_triplet_may_come_back(run):
    state = lrk.State(stored(0), drawn().fixed)
    mask = {"v": jnp.zeros(3, bool), "w": jnp.ones(3, bool)}
    pruned = adalora_prune(state, mask)
    assert not pruned.trainable["v"]["lambda"].any()
    grads, _ = run(*pruned)
    assert bool(jnp.all(grads["v"]["lambda"] != 0))


# --- messages ------------------------------------------------------------------------


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="adalora: rank must be at least 1, got 0"):
        lrk.adalora(0)
    with pytest.raises(ValueError, match="adalora: got both alpha and scale"):
        lrk.adalora(2, alpha=1, scale=1)
    with pytest.raises(ValueError, match=r"adalora_budget: end must lie in \[0, 4\]"):
        adalora_budget(0, start=4, end=5, total=9)
    message = r"warmup \+ cooldown must be less than total = 9, got 5 \+ 4"
    with pytest.raises(ValueError, match=message):
        adalora_budget(0, start=4, end=2, total=9, warmup=5, cooldown=4)


def test_refuses_what_does_not_fit():
    state = drawn()
    for act in (adalora_prune, adalora_freeze):
        message = (
            rf"{act.__name__}: the mask does not fit: 'v': expected \(3,\), got "
            r"\(2,\); 'w': expected \(3,\), got None\. Make it with adalora_mask"
        )
        with pytest.raises(ValueError, match=message):
            act(state, {"v": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match="adalora: .*'v' lacks trainable 'lambda'"):
        TX.apply(PARAMS, lrk.lora(2).init(KEY, PARAMS))
    with pytest.raises(ValueError, match=r"adalora: cannot adapt 'v' .*exceeds 4"):
        lrk.adalora(5).init(KEY, PARAMS)
