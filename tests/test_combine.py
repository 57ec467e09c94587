"""`chain`, `identity`, and what one does with states and adapted trees."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from lowrank._combine import PADDING
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {
    "one": {"kernel": jnp.asarray(numbers(1, 4, 3)), "bias": jnp.zeros(3)},
    "two": {"kernel": jnp.asarray(numbers(2, 4, 3))},
}
BIAS = lrk.matching("bias$")


def seen_by(tx):
    """A transform that notes what its `init` and `apply` are given."""
    notes = {}

    def init(key, params):
        notes["init"], notes["init key"] = params, key
        return tx.init(key, params)

    def apply(params, state, *, key=None):
        notes["apply"], notes["apply key"] = params, key
        return tx.apply(params, state, key=key)

    return lrk.Transform(init, apply), notes


def test_members_apply_from_left_to_right():
    tx = lrk.chain(lrk.lora(2), lrk.full(select=lrk.matching("one/kernel")))
    adapted = tx.apply(PARAMS, tx.init(KEY, PARAMS))
    assert isinstance(adapted["one"]["kernel"], lrk.Delta)
    assert isinstance(adapted["one"]["kernel"].w, lrk.LowRank)
    assert adapted["one"]["kernel"].w.w is PARAMS["one"]["kernel"]
    assert isinstance(adapted["two"]["kernel"], lrk.LowRank)
    assert adapted["one"]["bias"] is PARAMS["one"]["bias"]


def test_init_threads_the_transformed_parameters():
    second, notes = seen_by(lrk.full(select=BIAS))
    tx = lrk.chain(lrk.lora(2), second)
    state = tx.init(KEY, PARAMS)
    assert isinstance(notes["init"]["one"]["kernel"], lrk.LowRank)
    tx.apply(PARAMS, state)
    assert isinstance(notes["apply"]["one"]["kernel"], lrk.LowRank)


def test_each_member_has_a_key_of_its_own():
    members = [seen_by(lrk.full(select=BIAS)) for _ in range(2)]
    tx = lrk.chain(*(member for member, _ in members))
    state = tx.init(KEY, PARAMS)
    tx.apply(PARAMS, state, key=jax.random.key(5))
    for i, (_, notes) in enumerate(members):
        assert notes["init key"] == jax.random.fold_in(KEY, i)
        assert notes["apply key"] == jax.random.fold_in(jax.random.key(5), i)
    tx.apply(PARAMS, state)
    assert members[1][1]["apply key"] is None


def test_a_stochastic_member_inits_before_another():
    tx = lrk.chain(lrk.lora(2, dropout=0.5), lrk.full(select=BIAS))
    assert list(tx.init(KEY, PARAMS).trainable[1]) == ["one/bias"]


def test_the_state_holds_one_entry_for_each_member():
    tx = lrk.chain(lrk.lora(2), lrk.chain(lrk.full(select=BIAS)))
    state = tx.init(KEY, PARAMS)
    assert list(state.trainable[0]) == ["one/kernel", "two/kernel"]
    assert list(state.trainable[1][0]) == ["one/bias"]
    assert len(state.fixed) == 2


def test_an_empty_chain_is_the_identity():
    tx = lrk.chain()
    state = tx.init(KEY, PARAMS)
    assert state == ((), ())
    assert tx.apply(PARAMS, state) is PARAMS


def test_chain_refuses_what_is_no_transform():
    with untyped(), pytest.raises(TypeError, match=r"something else at \[0, 2\]"):
        lrk.chain([lrk.lora(2)], lrk.lora(2), lrk.lora)


def test_chain_refuses_a_state_of_another_chain():
    tx = lrk.chain(lrk.lora(2), lrk.full(select=BIAS))
    state = tx.init(KEY, PARAMS)
    longer = lrk.State((*state.trainable, {}), (*state.fixed, {}))
    with pytest.raises(ValueError, match=r"2 members, got \[3, 3\]"):
        tx.apply(PARAMS, longer)
    with pytest.raises(ValueError, match=r"2 members, got \[None, None\]"):
        tx.apply(PARAMS, lrk.lora(2).init(KEY, PARAMS))


def test_chain_refuses_what_is_no_key():
    with untyped(), pytest.raises(TypeError, match="chain: expected one random key"):
        lrk.chain(lrk.identity()).init(None, PARAMS)


def test_select_paths_is_a_dry_run_in_the_order_of_the_tree():
    tx = lrk.chain(
        lrk.full(select=lrk.matching("two")),
        lrk.full(select=BIAS),
        lrk.lora(2, select=lrk.matching("two")),
    )
    shapes = jax.eval_shape(lambda p: p, PARAMS)
    assert lrk.select_paths(tx, shapes) == ("one/bias", "two/kernel")
    assert lrk.select_paths(lrk.identity(), PARAMS) == ()


def test_select_paths_names_leaves_that_a_transform_adds():
    tx = lrk.chain(
        lrk.prefix(3, select=lrk.matching("^one/kernel")),
        lrk.lora(2, select=lrk.matching("kernel|prefix")),
    )
    assert lrk.select_paths(tx, PARAMS) == ("one/kernel", "one/prefix", "two/kernel")


def test_count_leaves_out_scales_and_integers():
    tx = lrk.chain(lrk.lora(2, alpha=4), lrk.full(select=BIAS))
    state = tx.init(KEY, PARAMS)
    assert lrk.count(state) == (2 * (8 + 6) + 3, 0)
    assert lrk.count(jax.eval_shape(tx.init, KEY, PARAMS)) == (31, 0)
    assert lrk.count(lrk.stack([state, state])) == (62, 0)
    fixed = {"w": {"a": jnp.ones((4, 2)), "seed": jnp.zeros(2, jnp.uint32)}}
    assert lrk.count(lrk.State({"w": {"b": jnp.ones(6)}}, fixed)) == (6, 8)


def test_count_ignores_padding():
    index = jnp.array([0, 4, PADDING, PADDING])
    state = lrk.State({"w": {"b": jnp.ones(4)}}, {"w": {"index": index}})
    assert lrk.count(state) == (2, 0)


def adapted_twice():
    tx = lrk.chain(lrk.lora(2), lrk.full(select=lrk.matching("one")))
    state = tx.init(KEY, PARAMS)
    moved = jax.tree.map(lambda x: x + 1, state.trainable)
    return tx.apply(PARAMS, state._replace(trainable=moved))


def test_split_takes_the_terms_off_outermost_first():
    leaf = adapted_twice()["one"]["kernel"]
    base, terms = lrk.split(leaf)
    assert base is PARAMS["one"]["kernel"]
    assert [type(term) for term in terms] == [lrk.Delta, lrk.LowRank]
    assert all(term.w is None for term in terms)
    total = base + terms[0].delta() + terms[1].delta()
    assert_close(total, lrk.materialize({"w": leaf})["w"])
    assert lrk.split(base) == (base, ())


def test_base_gives_back_the_very_arrays():
    back = lrk.base(adapted_twice())
    assert jax.tree.map(id, back) == jax.tree.map(id, PARAMS)


def test_materialize_forms_every_weight_and_keeps_the_rest():
    adapted = adapted_twice()
    formed = lrk.materialize(adapted)
    assert jax.tree.structure(formed) == jax.tree.structure(PARAMS)
    assert_close(formed["one"]["bias"], jnp.ones(3))
    plain = {**PARAMS, "name": "net", "none": None, "number": 3}
    same = lrk.materialize(plain)
    assert same["one"]["kernel"] is PARAMS["one"]["kernel"]
    assert (same["name"], same["none"], same["number"]) == ("net", None, 3)


def test_materialize_names_all_leaves_without_a_dense_form():
    tx = lrk.lora(2, dropout=0.5)
    adapted = tx.apply(PARAMS, tx.init(KEY, PARAMS), key=KEY)
    names = r"'one/kernel' \(DropoutLowRank\), 'two/kernel' \(DropoutLowRank\)"
    with pytest.raises(ValueError, match=f"no dense form at {names}"):
        lrk.materialize(adapted)
