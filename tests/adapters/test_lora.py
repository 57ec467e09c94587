"""`lora`: against the equations, by axes, initialisers, dropout and messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import lora as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(1, 6, 4)), "bias": jnp.asarray(numbers(2, 4))}
X = jnp.asarray(numbers(3, 5, 6))


def trained(tx, params, seed=9):
    """A state whose `b` is not zero."""
    state = tx.init(KEY, params)
    return state._replace(
        trainable={
            path: {**leaf, "b": jnp.asarray(numbers(seed, *leaf["b"].shape))}
            for path, leaf in state.trainable.items()
        }
    )


def model(params, x):
    return x @ params["w"]


def f32(array):
    return np.asarray(array, np.float32)


@pytest.mark.parametrize(
    ("arguments", "scale"),
    [({}, 1.0), ({"alpha": 6}, 3.0), ({"alpha": 1.5}, 0.75), ({"scale": 0.2}, 0.2)],
)
def test_forward_and_gradients_follow_the_equations(arguments, scale):
    tx = lrk.lora(2, **arguments)
    state = trained(tx, PARAMS)
    a, b = state.trainable["w"]["a"], state.trainable["w"]["b"]
    g = numbers(4, 5, 4)

    def objective(trainable, x):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        out = lrk.lift(model)(adapted, x)
        return jnp.sum(out * g), out

    (grads, dx), out = jax.grad(objective, argnums=(0, 1), has_aux=True)(
        state.trainable, X
    )
    assert_close(out, f32(reference.forward(X, PARAMS["w"], a, b, scale)))
    want = reference.gradients(X, PARAMS["w"], a, b, scale, g)
    got = (dx, grads["w"]["a"], grads["w"]["b"])
    assert_close(got, tuple(map(f32, want)))
    adapted = tx.apply(PARAMS, state)
    assert_close(
        lrk.materialize(adapted)["w"], f32(reference.weight(PARAMS["w"], a, b, scale))
    )


def test_state_holds_float32_factors_by_path():
    params = {"w": jnp.ones((6, 4), jnp.bfloat16)}
    state = lrk.lora(3, alpha=6).init(KEY, params)
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), state)
    assert shapes.trainable == {
        "w": {"a": ((6, 3), "float32"), "b": ((3, 4), "float32")}
    }
    assert shapes.fixed == {"w": {"scale": ((), "float32")}}
    assert state.fixed["w"]["scale"] == 2.0
    assert not state.trainable["w"]["b"].any()


def test_a_is_uniform_within_the_kaiming_bound():
    params = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    a = lrk.lora(64).init(KEY, params).trainable["w"]["a"]
    bound = reference.kaiming_bound(64)
    assert bound == pytest.approx(1 / 8)
    assert jnp.abs(a).max() <= bound
    # 4096 draws: the largest is within 1 % of the end, the variance within 5 errors.
    assert jnp.abs(a).max() > 0.99 * bound
    error = bound**2 * (4 / 45) ** 0.5 / 64
    assert abs(float(jnp.mean(a**2)) - bound**2 / 3) < 5 * error
    assert abs(float(jnp.mean(a))) < 5 * bound / 3**0.5 / 64


def test_fan_in_is_the_product_of_the_input_axes():
    axes = {"w": lrk.Axes((0,), (1, 2), (3,))}
    params = {"w": jax.ShapeDtypeStruct((2, 4, 4, 16), jnp.float32)}
    tx = lrk.lora(16, axes=axes, select=lrk.matching("w"))
    a = tx.init(KEY, params).trainable["w"]["a"]
    assert a.shape == (2, 4, 4, 16)
    bound = reference.kaiming_bound(16)
    assert 0.95 * bound < jnp.abs(a).max() <= bound


def test_initialisers_are_called_for_each_stack_index():
    calls = []

    def constant(value):
        def init(key, shape, dtype):
            calls.append((jnp.shape(key), shape, dtype))
            return jnp.full(shape, value, dtype)

        return init

    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    tx = lrk.lora(
        2,
        axes=axes,
        select=lrk.matching("w"),
        init=constant(3.0),
        init_b=constant(5.0),
    )
    state = tx.init(KEY, {"w": jnp.ones((3, 6, 4))})
    assert calls == [((), (6, 2), jnp.float32), ((), (2, 4), jnp.float32)]
    a, b = state.trainable["w"]["a"], state.trainable["w"]["b"]
    assert (a.shape, b.shape) == ((3, 6, 2), (3, 2, 4))
    assert bool((a == 3).all())
    assert bool((b == 5).all())


def test_a_and_b_draw_from_different_keys():
    normal = jax.nn.initializers.normal(1.0)
    tx = lrk.lora(2, init=normal, init_b=normal)
    leaf = tx.init(KEY, {"w": jnp.ones((2, 2))}).trainable["w"]
    assert not np.allclose(leaf["a"], leaf["b"])


AXES_CASES = [
    # shape, axes, einsum of a and b, shapes of a and b
    ((4, 2, 3), lrk.Axes((), (0,), (1, 2)), "dr,rhk->dhk", (4, 2), (2, 2, 3)),
    ((2, 3, 4), lrk.Axes((), (0, 1), (2,)), "hkr,rd->hkd", (2, 3, 2), (2, 4)),
    ((4, 6), lrk.Axes((), (1,), (0,)), "ir,ro->oi", (6, 2), (2, 4)),
    ((3, 4, 6), lrk.Axes((0,), (2,), (1,)), "lir,lro->loi", (3, 6, 2), (3, 2, 4)),
    ((4, 3, 6), lrk.Axes((1,), (0,), (2,)), "lir,lro->ilo", (3, 4, 2), (3, 2, 6)),
]


@pytest.mark.parametrize(("shape", "axes", "spec", "a_shape", "b_shape"), AXES_CASES)
def test_axes_say_which_factor_holds_which_axis(shape, axes, spec, a_shape, b_shape):
    params = {"w": jnp.asarray(numbers(5, *shape))}
    tx = lrk.lora(2, alpha=3, axes={"w": axes}, select=lrk.matching("w"))
    state = trained(tx, params)
    a, b = state.trainable["w"]["a"], state.trainable["w"]["b"]
    assert (a.shape, b.shape) == (a_shape, b_shape)
    formed = lrk.materialize(tx.apply(params, state))["w"]
    assert_close(formed, f32(reference.multi_axis(params["w"], a, b, 1.5, spec)))


def test_alpha_may_be_swept_by_vmap_and_differentiated():
    def total(alpha):
        tx = lrk.lora(2, alpha=alpha)
        state = trained(tx, PARAMS)
        return lrk.lift(model)(tx.apply(PARAMS, state), X).sum()

    state = trained(lrk.lora(2), PARAMS)
    a, b = (state.trainable["w"][name] for name in "ab")
    alphas = jnp.array([1.0, 5.0])
    want = [reference.forward(X, PARAMS["w"], a, b, n / 2).sum() for n in (1, 5)]
    assert_close(jax.vmap(total)(alphas), f32(want))
    slope = reference.forward(X, 0 * PARAMS["w"], a, b, 0.5).sum()
    assert_close(jax.grad(total)(2.0), f32(slope))


def test_the_largest_rank_is_the_smaller_side():
    assert lrk.lora(4).init(KEY, PARAMS).trainable["w"]["a"].shape == (6, 4)
    with pytest.raises(ValueError, match=r"'w' of shape \(6, 4\): rank 5 exceeds 4"):
        lrk.lora(5).init(KEY, PARAMS)


def test_dropout_thins_the_input_of_the_factors_alone():
    rate, tx = 0.25, lrk.lora(2, dropout=0.25)
    state = trained(tx, PARAMS)
    a, b = state.trainable["w"]["a"], state.trainable["w"]["b"]
    adapted = tx.apply(PARAMS, state, key=KEY)
    x = jnp.eye(6)
    term = lrk.lift(model)(adapted, x) - PARAMS["w"]
    kept = np.abs(term).sum(1) > 1e-6
    assert 0 < kept.sum() < 6
    whole = (1 / (1 - rate)) * np.asarray(a @ b, np.float64)
    assert_close(term, f32(np.where(kept[:, None], whole, 0)), "float16")


def test_dropout_keeps_the_mean():
    tx = lrk.lora(2, dropout=0.5)
    state = trained(tx, PARAMS)
    a, b = state.trainable["w"]["a"], state.trainable["w"]["b"]
    x, draws = X[:1], 2000
    keys = jax.random.split(KEY, draws)
    out = jax.vmap(lambda k: lrk.lift(model)(tx.apply(PARAMS, state, key=k), x))(keys)
    want = reference.forward(x, PARAMS["w"], a, b, 1.0)
    error = np.asarray(out).std(0) / draws**0.5
    assert np.all(np.abs(np.asarray(out).mean(0) - want) < 5 * error)
    assert np.all(error > 0)


def test_the_same_state_evaluates_without_dropout():
    state = trained(lrk.lora(2, dropout=0.5), PARAMS)
    plain = lrk.lora(2, dropout=0).apply(PARAMS, state)
    assert isinstance(plain["w"], lrk.LowRank)
    assert plain["w"].has_dense


def test_dropout_needs_a_key():
    tx = lrk.lora(2, dropout=0.5)
    message = r"dropout needs a key: .*got None.*Call apply\("
    with pytest.raises(TypeError, match=message):
        tx.apply(PARAMS, tx.init(KEY, PARAMS))


def test_a_traced_dropout_rate_needs_a_key_too():
    state = lrk.lora(2).init(KEY, PARAMS)

    def run(rate):
        return lrk.lora(2, dropout=rate).apply(PARAMS, state)

    with pytest.raises(TypeError, match="dropout needs a key"):
        jax.eval_shape(run, jnp.float32(0.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "lora: rank must be at least 1, got 0"),
        ((2.0,), TypeError, "lora: rank must be an int, got 2.0"),
        ((True,), TypeError, "lora: rank must be an int, got True"),
    ],
)
def test_refuses_ranks_that_are_no_positive_ints(arguments, error, message):
    with untyped(), pytest.raises(error, match=message):
        lrk.lora(*arguments)


def test_a_numpy_integer_is_a_rank():
    with untyped():
        state = lrk.lora(np.int64(2)).init(KEY, PARAMS)
    assert state.trainable["w"]["a"].shape == (6, 2)


def test_refuses_a_state_without_its_parts():
    state = lrk.State({"w": {"a": jnp.ones((6, 2))}}, {})
    message = "lora: .* 'w' lacks trainable 'b'; 'w' lacks fixed 'scale'"
    with pytest.raises(ValueError, match=message):
        lrk.lora(2).apply(PARAMS, state)


def test_stack_indices_have_draws_of_their_own():
    tx = lrk.lora(2, axes={"w": lrk.Axes((0,), (1,), (2,))}, select=lrk.matching("w"))
    a = tx.init(KEY, {"w": jnp.ones((3, 6, 4))}).trainable["w"]["a"]
    assert not np.allclose(a[0], a[1])
    assert not np.allclose(a[1], a[2])


@pytest.mark.parametrize("rate", [1.0, -0.1, 2])
def test_refuses_dropout_outside_its_range(rate):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\), got {rate}"):
        lrk.lora(2, dropout=rate)


def test_refuses_alpha_beside_scale():
    with pytest.raises(ValueError, match="both alpha and scale. Pass one"):
        lrk.lora(2, alpha=1, scale=1)


def test_names_every_leaf_that_cannot_be_adapted():
    params = {
        "w": jnp.ones((3, 3)),
        "ids": jnp.ones((4, 4), int),
        "v": jnp.ones((2, 9)),
    }
    tx = lrk.lora(3, select=lrk.matching("."))
    message = r"'ids' of shape \(4, 4\): not floating; 'v' of shape \(2, 9\): rank 3"
    with pytest.raises(ValueError, match=message):
        tx.init(KEY, params)


def test_refuses_leaves_without_two_axes_where_no_axes_are_told():
    params = {"bias": jnp.ones(3), "conv": jnp.ones((2, 3, 4))}
    with pytest.raises(
        ValueError,
        match=r"'bias' of shape \(3,\): needs 2 axes; 'conv' of shape \(2, 3, 4\)",
    ):
        lrk.lora(2, select=lrk.matching(".")).init(KEY, params)


def test_refuses_a_state_of_another_tree():
    state = lrk.lora(2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="lora: the state has 'w', .*lack.*'v'"):
        lrk.lora(2).apply({"v": PARAMS["w"]}, state)


def test_refuses_factors_that_no_longer_fit():
    state = lrk.lora(2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match=r"do not fit a weight of shape \(4, 6\)"):
        lrk.lora(2).apply({"w": PARAMS["w"].T}, state)


@pytest.mark.parametrize("key", [None, 3, jax.random.split(jax.random.key(0))])
def test_refuses_what_is_no_key(key):
    with (
        untyped(),
        pytest.raises(TypeError, match="lora: expected one random key, got"),
    ):
        lrk.lora(2).init(key, PARAMS)


def test_raw_key_data_draws_as_the_key():
    raw = jax.random.key_data(KEY)
    assert_close(lrk.lora(2).init(raw, PARAMS), lrk.lora(2).init(KEY, PARAMS))


def test_a_select_that_is_no_predicate_is_refused_in_the_factory():
    message = r"lora: select must be a function.*lrk\.matching\('kernel'\)"
    with untyped(), pytest.raises(TypeError, match=message):
        lrk.lora(2, select="kernel")


def test_a_scale_that_is_no_number_is_refused_in_the_factory():
    with untyped(), pytest.raises(TypeError, match="lora: alpha must be a number"):
        lrk.lora(2, alpha="16")


def test_swapped_arguments_of_init_are_told_without_their_numbers():
    params = {"w": jnp.ones((4, 3))}
    message = r"lora: expected one random key, got dict\. Call init\(jax\.random"
    with untyped(), pytest.raises(TypeError, match=message):
        lrk.lora(2).init(params, jax.random.key(0))


def test_a_tree_without_arrays_is_refused():
    with pytest.raises(ValueError, match="lora: the tree holds no arrays"):
        lrk.lora(2).init(jax.random.key(0), {})
