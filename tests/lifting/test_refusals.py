"""What cannot stay factored is refused by name, or computed where that is allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lowrank as lrk
from tests.lifting.patterns.pattern import (
    IN_OUT,
    STACKED,
    dense_delta,
    low_rank,
    normal,
    random_factors,
)
from tests.tolerances import assert_close

N = 4
X = jnp.asarray(normal(5, 3, N, scale=1.0))


def _params():
    kernel, other = (jnp.asarray(normal(seed, N, N)) for seed in (1, 2))
    return {"layer": {"kernel": kernel}, "other": other}


def _factors(seed, w, axes):
    made = random_factors(seed, {"w": w}, {"w": axes})["w"]
    return jax.tree.map(jnp.asarray, made)


FACTORS = _factors(3, _params()["other"], IN_OUT)


def _adapted(factors=FACTORS):
    params = _params()
    params["layer"]["kernel"] = low_rank(params["layer"]["kernel"], factors, IN_OUT)
    return params


def _dense(factors=FACTORS):
    params = _params()
    params["layer"]["kernel"] += dense_delta(factors, IN_OUT)
    return params


def norm_of_the_weight(params, x):
    w = params["layer"]["kernel"]
    return x @ w / jnp.linalg.norm(w)


def inverse(params, x):
    return jnp.linalg.solve(params["layer"]["kernel"], x.T)


def concatenation(params, x):
    return x @ jnp.concatenate([params["layer"]["kernel"], params["other"]], axis=1)


def non_linear(params, x):
    return x @ jnp.tanh(params["layer"]["kernel"])


def weight_squared(params, x):
    w = params["layer"]["kernel"]
    return x @ (w @ w)


def elementwise_mask(params, x):
    return x @ (params["layer"]["kernel"] * params["other"])


def scatter(params, x):
    return x @ params["layer"]["kernel"].at[0].set(1.0)


@jax.custom_vjp
def straight_through(x, w):
    return x @ jnp.round(4 * w) / 4


def _straight_fwd(x, w):
    return straight_through(x, w), (x, w)


def _straight_bwd(residuals, g):
    x, w = residuals
    return g @ w.T, 3.0 * x.T @ g


straight_through.defvjp(_straight_fwd, _straight_bwd)


@jax.custom_jvp
def halved(x, w):
    return x @ w


@halved.defjvp
def _halved_jvp(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return x @ w, dx @ w + 0.5 * (x @ dw)


def custom_vjp_of_the_weight(params, x):
    return straight_through(x, params["layer"]["kernel"])


def custom_jvp_of_the_weight(params, x):
    return halved(x, params["layer"]["kernel"])


@jax.jit
def _hidden(w):
    return jnp.exp(w)


def inside_jit_and_scan(params, x):
    def step(h, _):
        return jnp.tanh(h @ _hidden(params["layer"]["kernel"])), None

    return jax.lax.scan(step, x, None, length=2)[0]


def branches_that_differ(params, x):
    w = jax.lax.cond(
        x[0, 0] < 10, lambda: params["layer"]["kernel"], lambda: params["other"]
    )
    return x @ w


def stacked_output(params, x):
    def step(h, _):
        return jnp.tanh(h @ params["layer"]["kernel"]), params["layer"]["kernel"]

    h, weights = jax.lax.scan(step, x, None, length=2)
    return h, jnp.sum(weights, 0)


def carry_that_changes(params, x):
    def step(carry, _):
        w, h = carry
        return (w.T, jnp.tanh(h @ w)), None

    return jax.lax.scan(step, (params["layer"]["kernel"], x), None, length=3)[0][1]


CASES = (
    (norm_of_the_weight, "mul|integer_pow|square|reduce_sum|dot_general"),
    (inverse, "lu|triangular_solve|custom_linear_solve|custom_jvp_call|linear_solve"),
    (concatenation, "concatenate"),
    (non_linear, "tanh"),
    (weight_squared, "dot_general"),
    (elementwise_mask, "mul"),
    (scatter, "scatter"),
    (custom_vjp_of_the_weight, "custom_vjp_call"),
    (custom_jvp_of_the_weight, "custom_jvp_call"),
    (inside_jit_and_scan, "exp"),
    (branches_that_differ, "cond"),
    (stacked_output, "scan"),
    (carry_that_changes, "scan"),
)
cases = pytest.mark.parametrize(
    ("fn", "primitive"), [pytest.param(*case, id=case[0].__name__) for case in CASES]
)


@cases
def test_refused_with_leaf_operation_line_and_remedy(fn, primitive):
    with pytest.raises(lrk.LiftError) as caught:
        jax.eval_shape(lrk.lift(fn), _adapted(), X)
    message = str(caught.value)
    where = rf"'layer/kernel'.*\b({primitive})\b.*\btest_refusals\.py:\d+"
    assert re.search(where, message), message
    assert 'on_dense="allow"' in message
    lines = [int(n) for n in re.findall(r"test_refusals\.py:(\d+)", message)]
    code = fn.__code__
    inside = {line for c in (code, *_inner(code)) for line in _lines(c)}
    inside |= set(_lines(_hidden.__wrapped__.__code__))
    assert set(lines) <= inside, f"{message} names no line of {fn.__name__}"


def _lines(code):
    return [line for _, _, line in code.co_lines() if line]


def _inner(code):
    return [c for c in code.co_consts if hasattr(c, "co_lines")]


@cases
def test_allowed_gives_the_dense_values_and_gradients(fn, primitive):
    del primitive

    def loss(run, tree, factors):
        out = run(tree(factors), X)
        total = sum(jnp.sum(y * jnp.cos(y)) for y in jax.tree.leaves(out))
        return total, out

    @jax.jit
    def both(factors):
        lifted = lrk.lift(fn, on_dense="allow")
        ours = jax.value_and_grad(lambda f: loss(lifted, _adapted, f), has_aux=True)
        dense = jax.value_and_grad(lambda f: loss(fn, _dense, f), has_aux=True)
        return ours(factors), dense(factors)

    assert_close(*both(FACTORS))


def test_every_refusal_of_a_call_is_listed():
    params = _adapted()
    params["other"] = low_rank(params["other"], FACTORS, IN_OUT)

    def fn(params, x):
        return x @ jnp.sin(params["layer"]["kernel"]) @ jnp.cos(params["other"])

    with pytest.raises(lrk.LiftError, match=r"(?s)'layer/kernel'.*sin.*'other'.*cos"):
        lrk.lift(fn)(params, X)


def test_an_ignored_leaf_is_refused_by_path():
    def ignores(params, x):
        return x @ params["other"]

    with pytest.raises(lrk.LiftError, match=r"'layer/kernel'.*on_unused=\"allow\""):
        lrk.lift(ignores)(_adapted(), X)
    out = lrk.lift(ignores, on_unused="allow")(_adapted(), X)
    assert_close(out, X @ _params()["other"])


def test_a_leaf_that_is_only_passed_to_a_function_is_ignored():
    @jax.jit
    def first(x, w):
        del w
        return 2 * x

    def passes(params, x):
        return first(x, params["layer"]["kernel"])

    with pytest.raises(lrk.LiftError, match=r"never uses 'layer/kernel'"):
        lrk.lift(passes)(_adapted(), X)


def test_factors_that_do_not_fit_are_refused_at_once_with_all_paths():
    fit = low_rank(_params()["other"], FACTORS, IN_OUT)
    leaves, treedef = jax.tree.flatten({"a": fit, "b": fit, "fine": fit})
    taller = [leaf[1:] if i in (1, 5) else leaf for i, leaf in enumerate(leaves)]
    tree = jax.tree.unflatten(treedef, taller)
    with pytest.raises(lrk.LiftError, match="'a'.*'b'") as caught:
        lrk.lift(lambda p, x: x @ p["a"] @ p["b"] @ p["fine"])(tree, X)
    assert "'fine'" not in str(caught.value)


def test_stacked_adapters_passed_whole_are_refused_with_advice():
    many = jax.tree.map(lambda v: jnp.stack([v, v]), FACTORS)
    op = low_rank(_params()["other"], FACTORS, IN_OUT)
    leaves, treedef = jax.tree.flatten(op)
    whole = jax.tree.unflatten(treedef, [leaves[0], many.a, many.b, many.scale])
    with pytest.raises(lrk.LiftError, match=r"vmap"):
        lrk.lift(lambda p, x: x @ p["w"])({"w": whole}, X)


@pytest.mark.parametrize("name", ["a", "b", "scale"])
def test_constructor_refuses_factors_that_do_not_fit(name):
    w = jnp.asarray(normal(1, 2, N, N))
    fit = _factors(1, w, STACKED)
    wrong = fit._replace(**{name: getattr(fit, name)[1:]})
    with pytest.raises(ValueError, match=r"LowRank: .*\(2, 4, 4\)"):
        lrk.LowRank(w, *wrong)


UNLIFTED = {
    "x @ op": lambda op: X @ op,
    "numpy x @ op": lambda op: np.asarray(X) @ op,
    "op @ x": lambda op: op @ X.T,
    "jnp.dot": lambda op: jnp.dot(X, op),
    "jnp.einsum": lambda op: jnp.einsum("td,df->tf", X, op),
    "op + 1": lambda op: op + 1,
    "2 * op": lambda op: 2 * op,
    "-op": lambda op: -op,
    "op ** 2": lambda op: op**2,
    "op[0]": lambda op: op[0],
    "op.T": lambda op: op.T,
    "op.astype": lambda op: op.astype(jnp.bfloat16),
    "op.sum": lambda op: op.sum(),
    "np.asarray": np.asarray,
    "jnp.asarray": jnp.asarray,
    "jnp.tanh": jnp.tanh,
    "float": float,
    "len": len,
    "iter": lambda op: [*op],
    "linen": lambda op: nn.Dense(N).apply(
        {"params": {"kernel": op, "bias": jnp.zeros(N)}}, X
    ),
}


@pytest.mark.parametrize("use", UNLIFTED.values(), ids=UNLIFTED.keys())
def test_an_operator_in_an_unlifted_function_says_what_to_call(use):
    op = low_rank(_params()["other"], FACTORS, IN_OUT)
    with pytest.raises(TypeError, match=r"lrk\.lift"):
        use(op)


@pytest.mark.parametrize("choice", ["on_dense", "on_unused"])
def test_unknown_choices_are_refused(choice):
    with pytest.raises(ValueError, match=f"lift: {choice}.*'warn'"):
        lrk.lift(jnp.dot, **{choice: "warn"})
