"""The laws that every transform obeys.

A law is a function of one `Instance` that asserts. `tests/test_laws.py` runs, for every
row of the tables in `tests/instances`, all laws that its claims call for.
"""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import lowrank as lrk
from tests.instances import Instance
from tests.network import (
    BIASES,
    arrays,
    loss,
    model,
    numbers,
)
from tests.tolerances import assert_close

KEY = jax.random.key(11)
# Optimised in full as a graph; the machine code is left plain: half the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


# --- tools ---------------------------------------------------------------------------


def initial(instance: Instance, seed: int = 0) -> lrk.State:
    """A fresh state."""
    return instance.build().init(jax.random.key(seed), instance.tree())


def _moved(trainable: Any, seed: int) -> Any:
    leaves, treedef = jax.tree.flatten(trainable)
    moved = [
        leaf + jnp.asarray(numbers(seed + i, *leaf.shape, scale=0.3), leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, moved)


def trained(state: lrk.State, seed: int = 100) -> lrk.State:
    """The state with every trainable number moved, as training would."""
    return state._replace(trainable=_moved(state.trainable, seed))


def applied(
    instance: Instance, state: lrk.State, params: Any = None, key: Any = KEY
) -> Any:
    """The adapted tree; stochastic instances get a key."""
    params = instance.tree() if params is None else params
    keys = {"key": key} if instance.stochastic else {}
    return instance.build().apply(params, state, **keys)


def lifted(instance: Instance, state: lrk.State, params: Any, x: Any) -> Any:
    """The output of the lifted model."""
    return lrk.lift(model)(applied(instance, state, params), x)


def dense(instance: Instance, state: lrk.State, params: Any, x: Any) -> Any:
    """The output of the plain model on the materialised tree."""
    return model(lrk.materialize(applied(instance, state, params)), x)


def compiled_grad(form: Callable[..., Any], instance: Instance) -> Any:
    """`f(trainable, fixed, params, x) -> (gradients, outputs)`, compiled."""

    def run(trainable: Any, fixed: Any, params: Any, x: Any) -> Any:
        def objective(trainable: Any) -> Any:
            out = form(instance, lrk.State(trainable, fixed), params, x)
            return loss(out), out

        return jax.grad(objective, has_aux=True)(trainable)

    state = jax.eval_shape(instance.build().init, KEY, instance.tree())
    args = (*state, instance.tree(), arrays()["x"])
    return jax.jit(run).lower(*args).compile(QUICK)


@functools.cache
def _lifted_grad(instance: Instance) -> Any:
    return compiled_grad(lifted, instance)


@functools.cache
def plain_flops(paths: tuple[str, ...], params: Callable[[], Any]) -> float:
    """FLOPs of the plain model's gradient with respect to some of its weights."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(params())
    names = ["/".join(k.key for k in path) for path, _ in flat]
    leaves = [leaf for _, leaf in flat]

    def run(own: dict[str, Any], x: Any) -> Any:
        full = [own.get(n, leaf) for n, leaf in zip(names, leaves, strict=True)]
        out = model(jax.tree.unflatten(treedef, full), x)
        return loss(out), out

    own = {n: leaf for n, leaf in zip(names, leaves, strict=True) if n in paths}
    args = (own, arrays()["x"])
    lowered = jax.jit(jax.grad(run, has_aux=True)).lower(*args)
    return lowered.compile(QUICK).cost_analysis()["flops"]


def assert_same(actual: Any, expected: Any) -> None:
    """Trees are equal, bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    flat = jax.tree_util.tree_flatten_with_path(expected)[0]
    for got, (path, want) in zip(jax.tree.leaves(actual), flat, strict=True):
        assert got.dtype == want.dtype, jax.tree_util.keystr(path)
        assert np.array_equal(got, want), f"{jax.tree_util.keystr(path)} differs"


def drawn(instance: Instance, state: lrk.State) -> dict[str, jax.Array]:
    """The random leaves of a state; each declared name occurs."""
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in flat
        if path[-1].key in instance.random
    }
    assert {n for n in instance.random if any(f"'{n}'" in p for p in found)} == set(
        instance.random
    )
    return found


def _by_path(params: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: isinstance(x, lrk.Operator)
    )[0]
    return {"/".join(k.key for k in path): leaf for path, leaf in flat}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(adapted: Any) -> Any:
    """Structure and numbers of an adapted tree, random keys left out."""
    leaves, treedef = jax.tree.flatten(adapted)
    return treedef, [leaf for leaf in leaves if not _is_key(leaf)]


def _assert_same_tree(actual: Any, expected: Any) -> None:
    (tree_a, kept_a), (tree_b, kept_b) = map(_without_keys, (actual, expected))
    assert tree_a == tree_b
    assert_same(kept_a, kept_b)


# --- the laws ------------------------------------------------------------------------

Law = Callable[[Instance], None]
LAWS: dict[Law, Callable[[Instance], bool]] = {}


def law(when: Callable[[Instance], bool] = lambda _: True) -> Callable[[Law], Law]:
    """Register a law that holds for the instances which make a claim."""

    def register(fn: Law) -> Law:
        LAWS[fn] = when
        return fn

    return register


@law()
def law_structure_shape_dtype_kept(instance: Instance) -> None:
    state, params = trained(initial(instance)), instance.tree()
    adapted = applied(instance, state, params)
    before, after = _by_path(params), _by_path(adapted)
    added = [path for path in after if path not in before]
    assert [path for path in after if path not in added] == list(before)
    assert bool(added) == instance.adds
    for path, leaf in before.items():
        assert (after[path].shape, after[path].dtype) == (leaf.shape, leaf.dtype)
    x = arrays()["x"]
    plain = jax.eval_shape(model, params, x)
    assert jax.eval_shape(lrk.lift(model), adapted, x) == plain
    if instance.has_dense:
        formed = _by_path(jax.eval_shape(lrk.materialize, adapted))
        kept = {path: leaf for path, leaf in formed.items() if path not in added}
        assert kept == _by_path(jax.eval_shape(lambda p: p, params))


@law()
def law_inputs_unchanged(instance: Instance) -> None:
    params, tx = instance.tree(), instance.build()
    state = tx.init(jax.random.key(0), params)
    before = jax.tree.map(id, (params, state))
    applied(instance, state, params)
    assert jax.tree.map(id, (params, state)) == before


@law()
def law_unselected_leaves_are_the_same_object(instance: Instance) -> None:
    params = instance.tree()
    adapted = applied(instance, initial(instance), params)
    touched = lrk.select_paths(instance.build(), params)
    before, after = _by_path(params), _by_path(adapted)
    untouched = [path for path in before if path not in touched]
    assert "order" in untouched
    assert [p for p in untouched if after[p] is not before[p]] == []


@law()
def law_dtypes_never_promote_implicitly(instance: Instance) -> None:
    state, params, x = initial(instance), instance.tree(), arrays()["x"]
    with jax.numpy_dtype_promotion("strict"):
        run = functools.partial(lifted, instance)
        jax.eval_shape(run, state, params, x)
        if instance.has_dense:
            jax.eval_shape(functools.partial(dense, instance), state, params, x)


@law()
def law_same_key_same_state(instance: Instance) -> None:
    assert_same(initial(instance, 3), initial(instance, 3))


@law(when=lambda i: bool(i.random))
def law_different_keys_different_draws(instance: Instance) -> None:
    one, two = (drawn(instance, initial(instance, seed)) for seed in (3, 4))
    assert [p for p in one if np.array_equal(one[p], two[p])] == []


@law(when=lambda i: bool(i.random))
def law_equal_shapes_different_draws(instance: Instance) -> None:
    found = drawn(instance, initial(instance))
    parts = {
        (path, i): np.asarray(part)
        for path, leaf in found.items()
        for i, part in enumerate(leaf if leaf.ndim == 3 else [leaf])
    }
    pairs = itertools.combinations(parts, 2)
    same = [(p, q) for p, q in pairs if np.array_equal(parts[p], parts[q])]
    assert len(parts) > 1
    assert same == []


@law(when=lambda i: i.identity_at_init)
def law_identity_at_init(instance: Instance) -> None:
    params, state = instance.tree(), initial(instance)
    if instance.has_dense:
        assert_close(lrk.materialize(applied(instance, state, params)), params)
    else:
        x = arrays()["x"]
        plain = jax.jit(model)(params, x)
        assert_close(
            jax.jit(lifted, static_argnums=0)(instance, state, params, x), plain
        )


@law()
def law_jit_is_eager(instance: Instance) -> None:
    params, state, x = instance.tree(), trained(initial(instance)), arrays()["x"]
    compiled = jax.jit(lifted, static_argnums=0)(instance, state, params, x)
    assert_close(compiled, lifted(instance, state, params, x))
    if instance.has_dense:
        eager = lrk.materialize(applied(instance, state, params))
        formed = jax.jit(lambda s, p: lrk.materialize(applied(instance, s, p)))
        assert_close(formed(state, params), eager)


@law(when=lambda i: bool(i.alive))
def law_vmap_over_states_is_a_loop(instance: Instance) -> None:
    params, x = instance.tree(), arrays()["x"]
    makers = instance.tasks or (instance.build,) * 3
    own = [dataclasses.replace(instance, build=maker) for maker in makers]
    states = [trained(initial(one, i), 50 * i) for i, one in enumerate(own)]
    run = jax.jit(lifted, static_argnums=0)
    loop = [run(one, s, params, x) for one, s in zip(own, states, strict=True)]
    mapped = jax.jit(jax.vmap(lambda s: lifted(instance, s, params, x)))
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    assert_close(mapped(lrk.stack(states)), expected)


@law(when=lambda i: i.has_dense)
def law_lift_is_materialize(instance: Instance) -> None:
    state, params, x = trained(initial(instance)), instance.tree(), arrays()["x"]
    grads, out = _lifted_grad(instance)(*state, params, x)
    dense_grads, dense_out = compiled_grad(dense, instance)(*state, params, x)
    assert_close(out, dense_out)
    if not instance.exact_grad:
        return
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    for (path, got), want in zip(flat, jax.tree.leaves(dense_grads), strict=True):
        name = jax.tree_util.keystr(path)
        kind = "bfloat16" if "half" in name else "float32"
        assert_close({name: got}, {name: want}, kind)


@law(when=lambda i: bool(i.alive))
def law_flops_of_the_gradient_are_bounded(instance: Instance) -> None:
    paths = lrk.select_paths(instance.build(), instance.tree())
    flops = _lifted_grad(instance).cost_analysis()["flops"]
    assert flops <= instance.flops * plain_flops(paths, instance.tree)


@law()
def law_gradients_finite_and_alive(instance: Instance) -> None:
    state = trained(initial(instance))
    grads, _ = _lifted_grad(instance)(*state, instance.tree(), arrays()["x"])
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    named = [(jax.tree_util.keystr(p), p[-1].key, np.asarray(g)) for p, g in flat]
    assert [path for path, _, g in named if not np.isfinite(g).all()] == []
    assert set(instance.alive) <= {name for _, name, _ in named}
    assert [p for p, name, g in named if name in instance.alive and not g.any()] == []


@law()
def law_two_calls_one_trace(instance: Instance) -> None:
    count = {"from state": 0, "from operators": 0}
    params = instance.tree()

    @jax.jit
    def from_state(state: lrk.State) -> Any:
        count["from state"] += 1
        return applied(instance, state, params)["order"]

    @jax.jit
    def from_operators(adapted: Any) -> Any:
        count["from operators"] += 1
        return adapted["order"]

    first, second = initial(instance), trained(initial(instance, 1))
    for state in (first, second):
        from_state(state)
        from_operators(applied(instance, state))
    assert count == {"from state": 1, "from operators": 1}


@law()
def law_init_under_jit_and_eval_shape(instance: Instance) -> None:
    tx, params = instance.build(), instance.tree()
    eager = tx.init(KEY, params)
    assert_close(jax.jit(tx.init)(KEY, params), eager)
    shapes = jax.eval_shape(lambda p: p, params)
    assert jax.eval_shape(tx.init, KEY, shapes) == jax.eval_shape(lambda s: s, eager)


@law()
def law_chain_is_associative(
    instance: Instance, chain: Callable[..., lrk.Transform] = lrk.chain
) -> None:
    t, params = instance.build(), instance.tree()
    p, q = lrk.full(select=BIASES), lrk.lora(1, select=lrk.matching("second/kernel"))
    states = [trained(tx.init(KEY, params)) for tx in (t, p, q)]
    s, u, v = states

    def grouped(part: str, left: bool) -> Any:
        a, b, c = (getattr(state, part) for state in (s, u, v))
        return ((a, b), c) if left else (a, (b, c))

    adapted = []
    for left in (True, False):
        tx = chain(chain(t, p), q) if left else chain(t, chain(p, q))
        state = lrk.State(grouped("trainable", left), grouped("fixed", left))
        assert jax.tree.structure(tx.init(KEY, params)) == jax.tree.structure(state)
        adapted.append(tx.apply(params, state, key=KEY))
    _assert_same_tree(*adapted)


@law()
def law_identity_is_neutral(
    instance: Instance, identity: Callable[[], lrk.Transform] = lrk.identity
) -> None:
    tx, params, state = instance.build(), instance.tree(), trained(initial(instance))
    alone = applied(instance, state, params)
    empty = identity().init(KEY, params)
    for pair, states in (
        ((tx, identity()), (state, empty)),
        ((identity(), tx), (empty, state)),
    ):
        both = lrk.State(*map(tuple, zip(*states, strict=True)))
        adapted = lrk.chain(*pair).apply(params, both, key=KEY)
        _assert_same_tree(adapted, alone)
        before, after = _by_path(alone), _by_path(adapted)
        assert after["order"] is before["order"]


@law()
def law_an_unrelated_leaf_changes_no_draw(instance: Instance) -> None:
    small, params = initial(instance), instance.tree()
    extra = {"kernel": arrays()["first"] + 1, "bias": arrays()["bias"] + 1}
    more = {"a_first": extra, **params}
    large = instance.build().init(jax.random.key(0), more)
    old, new = (
        {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(s)}
        for s in (small, large)
    )
    assert set(old) <= set(new)
    assert all("a_first" in path for path in set(new) - set(old))
    assert_same({path: new[path] for path in old}, old)


@law()
def law_state_round_trips_through_flatten(instance: Instance) -> None:
    state = trained(initial(instance))
    leaves, treedef = jax.tree.flatten(state)
    assert [leaf for leaf in leaves if not isinstance(leaf, jax.Array)] == []
    assert [leaf for leaf in leaves if _is_key(leaf) or leaf.weak_type] == []
    stored = [np.asarray(leaf) for leaf in leaves]
    back = jax.tree.unflatten(treedef, [jnp.asarray(array) for array in stored])
    assert isinstance(back, lrk.State)
    assert_same(back, state)


@law(when=lambda i: bool(i.alive))
def law_state_round_trips_through_orbax(instance: Instance) -> None:
    state = trained(initial(instance))
    shapes = jax.eval_shape(instance.build().init, KEY, instance.tree())
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as io:
        io.save(Path(folder) / "state", state)
        io.wait_until_finished()
        assert_same(io.restore(Path(folder) / "state", shapes), state)


@law(when=lambda i: i.rank is not None)
def law_rank_of_the_change_is_bounded(instance: Instance) -> None:
    params = instance.tree()
    params["half"] = {"kernel": params["half"]["kernel"].astype(jnp.float32)}
    state = trained(instance.build().init(KEY, params))
    formed = lrk.materialize(applied(instance, state, params))
    for path in lrk.select_paths(instance.build(), params):
        change = np.asarray(_by_path(formed)[path] - _by_path(params)[path])
        values = np.linalg.svd(change, compute_uv=False)
        ranks = np.sum(values > 1e-4 * values.max(), axis=-1)
        assert np.all(ranks >= 1), path
        assert np.all(ranks <= instance.rank), f"{path} has rank {ranks}"


@law()
def law_randomness_comes_from_the_key(instance: Instance) -> None:
    tx, params, state = instance.build(), instance.tree(), trained(initial(instance))
    if not instance.stochastic:
        assert_same(tx.apply(params, state, key=KEY), tx.apply(params, state))
        return
    with pytest.raises(TypeError, match="key"):
        tx.apply(params, state)
    run = jax.jit(
        lambda key: lrk.lift(model)(tx.apply(params, state, key=key), arrays()["x"])
    )
    same, again, other = (run(key)["main"] for key in (KEY, KEY, jax.random.key(12)))
    assert_same(same, again)
    assert not np.allclose(same, other)
