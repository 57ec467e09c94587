"""`partition` and `combine`: round trips, joint training, messages."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

PARAMS = {"w": jnp.asarray(numbers(2, 6, 5)), "v": jnp.asarray(numbers(1, 4, 6))}
BATCHES = jnp.asarray(numbers(4, 3, 7, 4))
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "shared_private.md"

METHODS = {
    "lora+lori": (lambda: lrk.chain(lrk.lora(2), lrk.lori(2)), "^1/"),
    "mtl-lora": (lambda: lrk.mtl_lora(2, 3), "/(task|mix)$"),
    "hydra, a router each": (lambda: lrk.hydra(2, 3), "/router$"),
    "dora, own lengths": (lambda: lrk.dora(2), "/m$"),
}


def moved(state, seed=9):
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [x + 0.5 * numbers(seed + i, *x.shape) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, new))


def model(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"]


def names(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path) for path, _ in flat}


def task_states(tx, regex):
    """What three tasks own, stacked, and what they share."""
    states = [moved(tx.init(jax.random.key(i), PARAMS), 40 * i) for i in range(3)]
    pairs = [lrk.partition(state, lrk.matching(regex)) for state in states]
    return [private for private, _ in pairs], pairs[0][1]


@pytest.mark.parametrize("name", METHODS)
def test_every_leaf_is_in_one_part_and_combine_is_the_inverse(name):
    build, regex = METHODS[name]
    state = build().init(jax.random.key(0), PARAMS)
    private, shared = lrk.partition(state, lrk.matching(regex))
    assert isinstance(private, lrk.State)
    assert names(private) & names(shared) == set()
    assert names(private) | names(shared) == names(state)
    back = lrk.combine(private, shared)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert_close(lrk.combine(shared, private), state)
    half = lrk.partition(state.trainable, lrk.matching(regex))
    assert names(half[0]) == names(private.trainable)
    assert_close(lrk.combine(*half), state.trainable)


@pytest.mark.parametrize("name", METHODS)
def test_the_joint_gradient_of_the_shared_part_is_the_sum_over_tasks(name):
    build, regex = METHODS[name]
    tx = build()
    privates, shared = task_states(tx, regex)

    def task_loss(own, common, private, batch):
        mine = private._replace(trainable=own), shared._replace(trainable=common)
        adapted = tx.apply(PARAMS, lrk.combine(*mine))
        return jnp.sum(jnp.sin(lrk.lift(model)(adapted, batch)))

    def joint(own, common):
        each = jax.vmap(task_loss, in_axes=(0, None, 0, 0))
        return each(own, common, stacked, BATCHES).sum()

    stacked = lrk.stack(privates)
    grad = jax.grad(joint, argnums=(0, 1))
    own, common = grad(stacked.trainable, shared.trainable)
    single = jax.grad(task_loss, argnums=(0, 1))
    alone = [
        single(private.trainable, shared.trainable, private, batch)
        for private, batch in zip(privates, BATCHES, strict=True)
    ]
    assert_close(common, jax.tree.map(lambda *gs: sum(gs), *(g for _, g in alone)))
    assert_close(own, jax.tree.map(lambda *gs: jnp.stack(gs), *(g for g, _ in alone)))
    assert all(bool(g.any()) for g in jax.tree.leaves((own, common)))


def test_the_page_trains_each_method_for_two_steps(capsys):
    cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", PAGE.read_text(), re.S)
    exec(compile("\n".join(cells), str(PAGE), "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.count("->") == 4


def test_the_fixed_half_is_divided_too():
    tx = lrk.chain(lrk.lora(2), lrk.lori(2))
    privates, shared = task_states(tx, "^1/")
    a = [private.fixed[1]["w"]["a"] for private in privates]
    assert not np.allclose(a[0], a[1])
    assert shared.fixed == ({"w": shared.fixed[0]["w"], "v": shared.fixed[0]["v"]},) + (
        {"w": {}, "v": {}},
    )
    stacked = lrk.stack(privates)
    assert stacked.fixed[1]["w"]["a"].shape == (3, 6, 2)
    for got, want in zip(lrk.unstack(stacked), privates, strict=True):
        assert_close(got, want)


def test_private_masks_of_unequal_length_stack():
    def tx(task):
        mask = {p: numbers(5 + task, 2, PARAMS[p].shape[1]) > 0.2 * task for p in "vw"}
        return lrk.chain(lrk.lora(2), lrk.lori(2, mask=mask))

    states = [tx(t).init(jax.random.key(t), PARAMS) for t in range(3)]
    privates = [lrk.partition(s, lrk.matching("^1/"))[0] for s in states]
    assert len({p.trainable[1]["w"]["b"].size for p in privates}) > 1
    for got, want in zip(lrk.unstack(lrk.stack(privates)), privates, strict=True):
        assert_close(got, want)


def test_the_predicate_sees_paths_with_member_and_name():
    seen = {}

    def select(path, leaf):
        seen[path] = leaf.shape
        return True

    state = lrk.chain(lrk.lora(2), lrk.identity()).init(jax.random.key(0), PARAMS)
    whole, rest = lrk.partition(state, select)
    assert seen["0/w/a"] == (6, 2)
    assert "0/v/scale" in seen
    assert_close(whole, state)
    assert jax.tree.leaves(rest) == []


def test_refuses_selections_and_trees():
    state = lrk.lora(2).init(jax.random.key(0), PARAMS)
    message = r"matches none of 6 leaves; the first are 'v/a', .* the leaf's name"
    with pytest.raises(ValueError, match=message):
        lrk.partition(state, lrk.matching("/task$"))
    with untyped(), pytest.raises(TypeError, match="partition: select must be a func"):
        lrk.partition(state, "/a$")
    message = "expected dicts of arrays by path, got list"
    with untyped(), pytest.raises(TypeError, match=message):
        lrk.partition([state], lrk.matching("a"))


def test_combine_names_what_does_not_fit():
    state = lrk.lora(2).init(jax.random.key(0), {"w": PARAMS["w"]})
    message = r"'trainable/w/a' is in two of them; .*'fixed/w/scale' is in two"
    with pytest.raises(ValueError, match=message):
        lrk.combine(state, state)
    with pytest.raises(ValueError, match="of different kinds"):
        lrk.combine(state.trainable, (state.trainable,))
    with pytest.raises(ValueError, match="expected at least one part, got none"):
        lrk.combine()
