"""`lori`: against the equations, packed against dense, seeds, many tasks, messages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import lori as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {
    "v": jnp.asarray(numbers(1, 6, 4)),
    "w": jnp.asarray(numbers(2, 4, 5)),
    "bias": jnp.asarray(numbers(3, 5)),
}
X = jnp.asarray(numbers(4, 7, 6))
PATHS = ("v", "w")
SHAPES = {"v": (2, 4), "w": (2, 5)}
MASK = {p: numbers(5 + i, *SHAPES[p]) > 0.2 for i, p in enumerate(PATHS)}
KEPT = {p: int(m.sum()) for p, m in MASK.items()}


def model(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"] + params["bias"][None]


def moved(state, seed=9):
    """A state whose trainable numbers are not zero."""
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [jnp.asarray(numbers(seed + i, *x.shape)) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, new))


def f32(array):
    return np.asarray(array, np.float32)


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def formed(tx, state, params=PARAMS):
    return lrk.materialize(tx.apply(params, state))


# --- the equations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "scale"), [({}, 1.0), ({"alpha": 3}, 1.5), ({"scale": 0.2}, 0.2)]
)
@pytest.mark.parametrize("mask", [None, MASK], ids=["dense", "sparse"])
def test_forward_and_gradient_follow_the_equations(arguments, scale, mask):
    params, g = {"v": PARAMS["v"]}, numbers(8, 7, 4)
    mask = mask and {"v": mask["v"]}
    tx = lrk.lori(2, mask=mask, **arguments)
    state = moved(tx.init(KEY, params))

    def objective(trainable):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        out = lrk.lift(lambda p, x: x @ p["v"])(adapted, X)
        return jnp.sum(out * g), out

    grads, out = jax.grad(objective, has_aux=True)(state.trainable)
    a, b = state.fixed["v"]["a"], np.asarray(state.trainable["v"]["b"])
    kept = np.ones((2, 4)) if mask is None else mask["v"]
    places = reference.pack(kept, kept)[1]
    whole = reference.unpack(np.ravel(b), places, (2, 4))
    want = reference.forward(X, params["v"], a, whole, kept, scale)
    assert_close(out, f32(want))
    slope = reference.gradient_of_b(X, a, kept, scale, g)
    got = np.ravel(grads["v"]["b"])
    assert_close(got, f32(reference.pack(slope, kept)[0]))
    if mask is not None:
        np.testing.assert_array_equal(state.fixed["v"]["index"], places)


def test_what_is_trained_and_what_is_kept():
    state = lrk.lori(2, alpha=3).init(KEY, PARAMS)
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), state)
    assert shapes.trainable == {p: {"b": (SHAPES[p], "float32")} for p in PATHS}
    assert shapes.fixed["v"] == {"a": ((6, 2), "float32"), "scale": ((), "float32")}
    assert state.fixed["w"]["scale"] == 1.5
    assert lrk.count(state) == (2 * 4 + 2 * 5, 6 * 2 + 4 * 2)
    sparse = lrk.lori(2, mask=MASK).init(KEY, PARAMS)
    assert lrk.count(sparse) == (sum(KEPT.values()), 6 * 2 + 4 * 2)
    seeded = lrk.lori(2, mask=MASK, store_a=False).init(KEY, PARAMS)
    assert lrk.count(seeded) == (sum(KEPT.values()), 0)
    assert not any(b.any() for b in jax.tree.leaves(seeded.trainable))


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_bytes_of_training_follow_the_kept_entries(density):
    params = {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
    entries = 4 * 256
    kept = int(density * entries)
    mask = {"w": (np.arange(entries) < kept).reshape(4, 256)}
    tx = lrk.lori(4, mask=mask, store_a=False)
    state = tx.init(KEY, params)
    adam = optax.adam(1e-3).init(state.trainable)
    assert nbytes(state.trainable) == 4 * kept
    assert nbytes(adam) == 2 * 4 * kept + 4  # two moments and the count
    # All else is one int32 for each kept entry, a seed and a scale.
    assert nbytes(state.fixed) == 4 * kept + 8 + 4


def test_a_leaf_of_which_nothing_is_kept_stays_as_it_is():
    tx = lrk.lori(2, mask={**MASK, "v": np.zeros((2, 4))})
    state = moved(tx.init(KEY, PARAMS))
    assert state.trainable["v"]["b"].shape == (0,)
    dense = formed(tx, state)
    assert_close(dense["v"], PARAMS["v"])
    assert float(jnp.abs(dense["w"] - PARAMS["w"]).max()) > 0.1


# --- packed against dense and masked -------------------------------------------------


def objective(tx, state, mask=None):
    def loss(trainable):
        if mask is not None:
            trainable = {p: {"b": trainable[p]["b"] * mask[p]} for p in PATHS}
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return jnp.mean((lrk.lift(model)(adapted, X) - 1) ** 2)

    return loss


def descent(loss, trainable, steps, rate=0.05):
    """The trainable numbers after each of some steps of Adam."""
    optimizer = optax.adam(rate)

    @jax.jit
    def step(trainable, own):
        grads = jax.grad(loss)(trainable)
        updates, own = optimizer.update(grads, own)
        return optax.apply_updates(trainable, updates), own

    own, found = optimizer.init(trainable), []
    for _ in range(steps):
        trainable, own = step(trainable, own)
        found.append(trainable)
    return found


def test_packed_training_is_dense_and_masked_training_step_by_step():
    dense, sparse = lrk.lori(2, alpha=4), lrk.lori(2, alpha=4, mask=MASK)
    whole, packed = dense.init(KEY, PARAMS), sparse.init(KEY, PARAMS)
    kept = {p: jnp.asarray(m, jnp.float32) for p, m in MASK.items()}
    want = descent(objective(dense, whole, kept), whole.trainable, 6)
    got = descent(objective(sparse, packed), packed.trainable, 6)
    for one, two in zip(got, want, strict=True):
        for path in PATHS:
            values, places = reference.pack(np.asarray(two[path]["b"]), MASK[path])
            assert_close(np.asarray(one[path]["b"]), values)
            back = reference.unpack(values, places, SHAPES[path])
            np.testing.assert_array_equal(f32(back), two[path]["b"])
    assert all(np.abs(got[-1][p]["b"]).min() > 0.01 for p in PATHS)


def test_packed_training_is_adam_on_the_equations():
    params, target = {"v": PARAMS["v"]}, numbers(8, 7, 4)
    tx = lrk.lori(2, scale=0.5, mask={"v": MASK["v"]})
    state = tx.init(KEY, params)

    def loss(trainable):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        return jnp.sum((lrk.lift(lambda p: X @ p["v"])(adapted) - target) ** 2) / 2

    a = np.asarray(state.fixed["v"]["a"])

    def slope(b):
        out = reference.forward(X, params["v"], a, b, MASK["v"], 0.5)
        return reference.gradient_of_b(X, a, MASK["v"], 0.5, out - target)

    want = reference.adam(np.zeros((2, 4)), slope, 5, 0.02)
    got = descent(loss, state.trainable, 5, 0.02)
    for one, two in zip(got, want, strict=True):
        values = f32(reference.pack(two, MASK["v"])[0])
        assert_close(np.asarray(one["v"]["b"]), values)


def test_gradient_of_the_packed_b_is_the_gathered_dense_gradient():
    dense, sparse = lrk.lori(2), lrk.lori(2, mask=MASK)
    packed, whole = moved(sparse.init(KEY, PARAMS)), dense.init(KEY, PARAMS)
    values = {
        path: {
            "b": jnp.asarray(
                f32(
                    reference.unpack(
                        np.asarray(packed.trainable[path]["b"]),
                        np.asarray(packed.fixed[path]["index"]),
                        SHAPES[path],
                    )
                )
            )
        }
        for path in PATHS
    }
    want = jax.grad(objective(dense, whole))(values)
    got = jax.grad(objective(sparse, packed))(packed.trainable)
    for path in PATHS:
        gathered = reference.pack(np.asarray(want[path]["b"]), MASK[path])[0]
        assert_close(np.asarray(got[path]["b"]), gathered)


def test_unpacking_costs_one_scatter_and_its_gradient_one_gather():
    tx = lrk.lori(2, mask={"v": MASK["v"]})
    params = {"v": PARAMS["v"]}
    state = tx.init(KEY, params)

    def total(trainable):
        adapted = tx.apply(params, state._replace(trainable=trainable))
        return jnp.sum(adapted["v"].b ** 2)

    text = jax.jit(jax.grad(total)).lower(state.trainable).as_text()
    counts = [text.count(f'"stablehlo.{op}"(') for op in ("scatter", "gather")]
    assert counts == [1, 1]


# --- the frozen factor ---------------------------------------------------------------


def _key(kind):
    if kind == "raw":
        return jax.random.key_data(jax.random.key(5))
    return jax.random.key(5, impl=kind)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg", "raw"])
def test_a_from_its_seed_is_the_stored_a_bit_for_bit(kind):
    params = {**PARAMS, "layers": jnp.asarray(numbers(6, 3, 4, 5))}
    told = {"axes": {"layers": lrk.Axes((0,), (1,), (2,))}, "alpha": 3}
    told["select"] = lrk.neither(lrk.matching("bias"))
    stored, drawn = lrk.lori(2, **told), lrk.lori(2, store_a=False, **told)
    kept = stored.init(_key(kind), params)
    seeded = drawn.init(_key(kind), params)
    assert {name for leaf in seeded.fixed.values() for name in leaf} == {
        "seed",
        "scale",
    }
    state = moved(kept)
    again = seeded._replace(trainable=state.trainable)
    apply = jax.jit(lambda tx, state: tx.apply(params, state), static_argnums=0)
    for run in (lambda tx, state: tx.apply(params, state), apply):
        one, two = run(stored, state), run(drawn, again)
        for path in ("v", "w", "layers"):
            np.testing.assert_array_equal(two[path].a, kept.fixed[path]["a"])
            np.testing.assert_array_equal(two[path].b, one[path].b)
    for path, leaf in formed(stored, state, params).items():
        np.testing.assert_array_equal(formed(drawn, again, params)[path], leaf)


def test_a_is_drawn_again_whatever_the_default_generator_is():
    stored, drawn = lrk.lori(2), lrk.lori(2, store_a=False)
    seeded, kept = drawn.init(KEY, PARAMS), stored.init(KEY, PARAMS)
    with jax.default_prng_impl("rbg"):
        adapted = drawn.apply(PARAMS, seeded)
        wide = jax.random.key_data(jax.random.key(0))
        own = drawn.init(wide, PARAMS), stored.init(wide, PARAMS)
    assert wide.shape == (4,)
    np.testing.assert_array_equal(adapted["v"].a, kept.fixed["v"]["a"])
    again = drawn.apply(PARAMS, own[0])
    np.testing.assert_array_equal(again["v"].a, own[1].fixed["v"]["a"])


def test_lori_s_has_the_a_of_lori_d_from_the_same_key():
    dense, sparse = lrk.lori(2), lrk.lori(2, mask=MASK)
    for path in PATHS:
        one = dense.init(KEY, PARAMS).fixed[path]["a"]
        np.testing.assert_array_equal(sparse.init(KEY, PARAMS).fixed[path]["a"], one)
        other = sparse.init(jax.random.key(1), PARAMS).fixed[path]["a"]
        assert not np.allclose(other, one)


def test_tasks_of_different_keys_are_nearly_orthogonal():
    params = {"w": jax.ShapeDtypeStruct((256, 8), jnp.float32)}
    keys = jax.random.split(KEY, 6)
    drawn = [lrk.lori(8).init(key, params).fixed["w"]["a"] for key in keys]
    units = [a / jnp.linalg.norm(a, axis=0, keepdims=True) for a in drawn]
    cosines = np.abs([p.T @ q for p, q in itertools.combinations(units, 2)]).ravel()
    # Of two independent directions of R^n the cosine is near N(0, 1/n).
    mean, spread = np.sqrt(2 / np.pi / 256), np.sqrt((1 - 2 / np.pi) / 256)
    assert abs(cosines.mean() - mean) < 4 * spread / np.sqrt(cosines.size)
    same = np.abs(np.asarray(units[0].T @ units[0]))
    assert np.diagonal(same).min() > 0.999


# --- many tasks ----------------------------------------------------------------------

TASKS = [
    {p: numbers(20 + 7 * t + i, *SHAPES[p]) > 0.3 * t for i, p in enumerate(PATHS)}
    for t in range(3)
]


def task_states(**told):
    txs = [lrk.lori(2, alpha=3, mask=mask, **told) for mask in TASKS]
    inits = [tx.init(jax.random.key(i), PARAMS) for i, tx in enumerate(txs)]
    return txs, [moved(state, 50 * i) for i, state in enumerate(inits)]


def test_the_tasks_keep_different_numbers_of_entries():
    lengths = [tuple(int(m[p].sum()) for p in PATHS) for m in TASKS]
    assert all(len({n[i] for n in lengths}) == 3 for i in range(2))


def test_vmap_over_tasks_with_different_masks_is_a_loop():
    txs, states = task_states()
    pairs = list(zip(txs, states, strict=True))

    def run(state, tx=txs[0]):
        return lrk.lift(model)(tx.apply(PARAMS, state), X)

    loop = jnp.stack([run(state, tx) for tx, state in pairs])
    stacked = lrk.stack(states)
    assert_close(jax.jit(jax.vmap(run))(stacked), loop)

    def slope(state, tx=txs[0]):
        return jax.grad(objective(tx, state))(state.trainable)

    grads = jax.jit(jax.vmap(slope))(stacked)
    for path in PATHS:
        for task, (tx, state) in enumerate(pairs):
            own = np.asarray(slope(state, tx)[path]["b"])
            found = np.asarray(grads[path]["b"][task])
            assert_close(found[: own.size], own)
            assert not found[own.size :].any()


def test_padding_is_not_counted_and_unstack_takes_it_off():
    _, states = task_states()
    stacked = lrk.stack(states)
    longest = max(int(mask["v"].sum()) for mask in TASKS)
    assert stacked.trainable["v"]["b"].shape == (3, longest)
    total = sum(int(m.sum()) for mask in TASKS for m in mask.values())
    assert lrk.count(stacked) == (total, 3 * (6 * 2 + 4 * 2))
    assert stacked.trainable["v"]["b"].size + stacked.trainable["w"]["b"].size > total
    for got, want in zip(lrk.unstack(stacked), states, strict=True):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_whatever_stands_in_the_padding_reaches_no_weight():
    txs, states = task_states()
    stacked = lrk.stack(states)
    beyond = stacked.fixed["v"]["index"] >= 8
    assert bool(beyond.any())
    dirty = jnp.where(beyond, jnp.nan, stacked.trainable["v"]["b"])
    spoilt = stacked._replace(trainable={**stacked.trainable, "v": {"b": dirty}})
    for i, state in enumerate(states):
        part = jax.tree.map(lambda x, i=i: x[i], spoilt)
        assert_close(formed(txs[0], part), formed(txs[i], state))


def test_stacked_tasks_inside_a_chain():
    def tx(mask):
        return lrk.chain(lrk.lori(2, mask=mask), lrk.full(select=lrk.matching("bias")))

    states = [
        moved(tx(m).init(jax.random.key(3), PARAMS), 9 * i) for i, m in enumerate(TASKS)
    ]
    stacked = lrk.stack(states)
    total = sum(int(m.sum()) for mask in TASKS for m in mask.values())
    assert lrk.count(stacked)[0] == total + 3 * 5
    for got, want in zip(lrk.unstack(stacked), states, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, want)


# --- axes, sweeps, shapes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes", "a_shape", "b_shape"),
    [
        ((3, 6, 4), lrk.Axes((0,), (1,), (2,)), (3, 6, 2), (3, 2, 4)),
        ((4, 2, 3), lrk.Axes((), (0,), (1, 2)), (4, 2), (2, 2, 3)),
        ((5, 6), lrk.Axes((), (1,), (0,)), (6, 2), (2, 5)),
    ],
)
def test_packed_leaves_of_any_axes_are_the_masked_dense_ones(
    shape, axes, a_shape, b_shape
):
    params = {"w": jnp.asarray(numbers(7, *shape))}
    told = {"axes": {"w": axes}, "select": lrk.matching("w")}
    mask = numbers(8, *b_shape) > 0.1
    dense, sparse = lrk.lori(2, **told), lrk.lori(2, mask={"w": mask}, **told)
    state, packed = moved(dense.init(KEY, params)), sparse.init(KEY, params)
    assert state.fixed["w"]["a"].shape == a_shape
    assert state.trainable["w"]["b"].shape == b_shape
    b = np.asarray(state.trainable["w"]["b"]) * mask
    whole = state._replace(trainable={"w": {"b": jnp.asarray(b)}})
    values = jnp.asarray(reference.pack(b, mask)[0])
    packed = packed._replace(trainable={"w": {"b": values}})
    assert_close(formed(sparse, packed, params), formed(dense, whole, params))


def test_alpha_may_be_swept_by_vmap():
    state = moved(lrk.lori(2, mask=MASK).init(KEY, PARAMS))

    def weight(alpha):
        tx = lrk.lori(2, alpha=alpha, mask=MASK)
        own = tx.init(KEY, PARAMS)._replace(trainable=state.trainable)
        return formed(tx, own)["w"] - PARAMS["w"]

    one, five = jax.vmap(weight)(jnp.array([1.0, 5.0]))
    assert_close(five, 5 * one)


def test_init_gives_a_its_distribution():
    tx = lrk.lori(2, init=jax.nn.initializers.constant(7.0))
    assert bool((tx.init(KEY, PARAMS).fixed["v"]["a"] == 7).all())


def test_init_runs_on_shapes_and_under_jit():
    tx = lrk.lori(2, mask={p: jnp.asarray(m) for p, m in MASK.items()})
    eager = tx.init(KEY, PARAMS)
    shapes = jax.eval_shape(tx.init, KEY, jax.eval_shape(lambda p: p, PARAMS))
    assert shapes == jax.eval_shape(lambda s: s, eager)
    assert_close(jax.jit(tx.init)(KEY, PARAMS), eager)


# --- messages ------------------------------------------------------------------------


def test_refuses_ranks_that_are_no_positive_ints():
    with pytest.raises(ValueError, match="lori: rank must be at least 1, got 0"):
        lrk.lori(0)
    message = "lori: rank must be an int, got 2.0"
    with untyped(), pytest.raises(TypeError, match=message):
        lrk.lori(2.0)


def test_refuses_alpha_beside_scale():
    with pytest.raises(ValueError, match="lori: got both alpha and scale. Pass one"):
        lrk.lori(2, alpha=1, scale=1)


def test_refuses_a_traced_mask():
    def run(b):
        state = lrk.State({"w": {"b": b}}, {})
        return lrk.lori(2, mask=lrk.lori_mask(state)).init(KEY, PARAMS)

    with pytest.raises(TypeError, match=r"not concrete at \['w'\].* outside jit"):
        jax.jit(run)(jnp.ones((2, 5)))


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, np.nan])
def test_refuses_masks_of_other_numbers(value):
    masks = {"v": np.eye(2, 4), "w": np.full((2, 5), value)}
    with pytest.raises(ValueError, match=r"masks must hold 0 and 1, .* at \['w'\]"):
        lrk.lori(2, mask=masks)


def test_names_every_mask_that_does_not_fit():
    masks = {"w": np.ones((5, 2)), "bias": np.ones(5), "u": np.ones((2, 2))}
    message = (
        r"the mask does not fit: 'v': no mask; 'bias': not selected; 'u': not selected;"
        r" 'w': expected shape \(2, 5\), got \(5, 2\)\. Extract it with lrk.lori_mask"
    )
    with pytest.raises(ValueError, match=message):
        lrk.lori(2, mask=masks).init(KEY, PARAMS)


def test_names_every_leaf_that_cannot_be_adapted():
    tx = lrk.lori(5, select=lrk.is_matrix)
    with pytest.raises(
        ValueError,
        match=r"lori: cannot adapt 'v' .* rank 5 exceeds 4; 'w' of shape \(4, 5\)",
    ):
        tx.init(KEY, PARAMS)


def test_refuses_a_state_of_another_tree():
    state = lrk.lori(2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="lori: the state has 'v', .*lack"):
        lrk.lori(2).apply({"w": PARAMS["w"]}, state)


def test_refuses_what_is_no_key():
    message = "lori: expected one random key, got None"
    with untyped(), pytest.raises(TypeError, match=message):
        lrk.lori(2).init(None, PARAMS)


def test_a_state_of_another_transform_is_refused_by_path():
    params = {"w": jnp.ones((4, 3)), "v": jnp.ones((4, 3))}
    other = lrk.lora(2).init(jax.random.key(0), params)
    with pytest.raises(ValueError, match="'v' lacks fixed 'seed'; 'w' lacks fixed"):
        lrk.lori(2).apply(params, other)
