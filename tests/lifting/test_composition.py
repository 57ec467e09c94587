"""`lift` under and over other transformations."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from tests.lifting.patterns import control_flow, sharding
from tests.lifting.patterns.pattern import (
    IN_OUT,
    dense_delta,
    low_rank,
    normal,
    random_factors,
)
from tests.tolerances import assert_close

D, F, TOKENS = 8, 6, 4
AXES = {"up": IN_OUT, "down": IN_OUT}


def _params():
    return {"up": jnp.asarray(normal(1, D, F)), "down": jnp.asarray(normal(2, F, D))}


def _factors(seed=3):
    return jax.tree.map(jnp.asarray, random_factors(seed, _params(), AXES))


def _adapted(factors):
    return {n: low_rank(w, factors[n], IN_OUT) for n, w in _params().items()}


def _dense(factors):
    return {n: w + dense_delta(factors[n], IN_OUT) for n, w in _params().items()}


def _mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


X = jnp.asarray(normal(4, TOKENS, D, scale=1.0))


def test_a_block_called_twelve_times_is_lowered_once():
    factors = _factors()

    def text(run, tree):
        lowered = jax.jit(lambda f, x: run(tree(f), x)).lower(factors, X)
        return lowered.as_text()

    def blocks(text):
        return len(re.findall(r"func\.func private @jitted_block\w*", text))

    model = control_flow.jit_in_jit
    assert blocks(text(model, _dense)) == 1
    assert blocks(text(lrk.lift(model), _adapted)) == 1


def test_the_base_product_stays_unbatched_under_vmap():
    many = jax.tree.map(lambda v: jnp.stack([v, 2 * v, -v]), _factors())
    x = jnp.stack([X, X + 1, X - 1])
    run = jax.jit(jax.vmap(lambda f, x: lrk.lift(_mlp)(_adapted(f), x)))
    text = run.lower(many, x).compile().as_text()
    assert f"f32[{3 * TOKENS},{F}]" in text
    assert not re.search(rf"f32\[3,({D},{F}|{F},{D})\]", text)


def test_second_derivatives_both_ways():
    factors = _factors()
    tangents = jax.tree.map(jnp.cos, factors)

    def loss(run, tree, factors):
        return jnp.sum(run(tree(factors), X) ** 3)

    def hvp_forward(run, tree):
        grad = jax.grad(functools.partial(loss, run, tree))
        return jax.jvp(grad, (factors,), (tangents,))[1]

    def hvp_reverse(run, tree):
        def slope(f):
            grads = jax.grad(functools.partial(loss, run, tree))(f)
            pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(tangents), strict=True)
            return sum(jnp.vdot(g, t) for g, t in pairs)

        return jax.grad(slope)(factors)

    @jax.jit
    def every():
        lifted = lrk.lift(_mlp)
        want = hvp_forward(_mlp, _dense)
        return hvp_forward(lifted, _adapted), hvp_reverse(lifted, _adapted), want

    forward, reverse, want = every()
    assert_close(forward, want)
    assert_close(reverse, want)


def test_lift_inside_lift():
    def outer(params, x):
        return lrk.lift(_mlp)({"up": params["up"], "down": inner["down"]}, x)

    inner = _adapted(_factors())
    got = jax.jit(lambda x: lrk.lift(outer)({"up": inner["up"]}, x))(X)
    assert_close(got, jax.jit(_mlp)(_dense(_factors()), X))


def test_without_operators_lift_is_the_function():
    assert_close(lrk.lift(_mlp)(_dense(_factors()), X), _mlp(_dense(_factors()), X))


def test_operators_in_any_argument_and_static_keywords():
    def model(x, *, weights, flag, activation, **rest):
        if flag is not False or rest != {"n": 3, "name": "model", "nothing": None}:
            raise TypeError("a static keyword lost its Python value")
        return activation(x @ weights[0]) @ weights[1]

    op = _adapted(_factors())
    static = {"flag": False, "activation": jnp.tanh, "nothing": None, "n": 3}
    got = lrk.lift(model)(X, weights=[op["up"], op["down"]], name="model", **static)
    assert_close(got, _mlp(_dense(_factors()), X))


def test_an_eager_call_equals_a_jitted_one():
    lifted, op = lrk.lift(_mlp), _adapted(_factors())
    assert_close(lifted(op, X), jax.jit(lifted)(op, X))


def test_one_trace_of_the_model_for_two_calls(traces):
    run = jax.jit(lrk.lift(traces(_mlp)))
    run(_adapted(_factors(3)), X)
    run(_adapted(_factors(5)), X + 1)
    assert traces.count == 1


def test_a_python_number_is_a_scale():
    f = _factors()["up"]
    op = lrk.LowRank(_params()["up"], f.a, f.b, 0.7)
    want = X @ (_params()["up"] + 0.7 * f.a @ f.b)
    assert_close(lrk.lift(jnp.matmul)(X, op), want)


def test_lift_inside_shard_map():
    def run(adapted, x):
        return lrk.lift(_mlp)(adapted, x)

    mapped = jax.shard_map(
        run, mesh=sharding.mesh(), in_specs=(P(), P("m")), out_specs=P("m")
    )

    def loss(run, tree, factors):
        return jnp.sum(run(tree(factors), X) ** 2)

    @jax.jit
    def both(factors):
        ours = jax.value_and_grad(functools.partial(loss, mapped, _adapted))
        dense = jax.value_and_grad(functools.partial(loss, _mlp, _dense))
        return ours(factors), dense(factors)

    assert_close(*both(_factors()))


def test_lift_inside_shard_map_over_shards_of_the_weight():
    factors = _factors()
    rows, columns = P("m", None), P(None, "m")

    def operators(w, a, b, scale):
        return lrk.LowRank(w, a, b, scale)

    def run(up, down, x):
        params = {"up": operators(*up), "down": operators(*down)}
        return jax.lax.psum(lrk.lift(_mlp)(params, x), "m")

    mapped = jax.shard_map(
        run,
        mesh=sharding.mesh(),
        in_specs=((columns, P(), columns, P()), (rows, rows, P(), P()), P()),
        out_specs=P(),
    )
    up, down = ((_params()[n], *factors[n]) for n in ("up", "down"))
    assert_close(jax.jit(mapped)(up, down, X), _mlp(_dense(factors), X))


@pytest.mark.parametrize("spec", [P(None, "m"), P("m", None), P()], ids=str)
def test_explicit_sharding(spec):
    mesh = sharding.mesh(AxisType.Explicit)
    factors, x = _factors()["up"], X
    w = jax.device_put(_params()["up"], NamedSharding(mesh, spec))
    if spec == P("m", None):
        x = jax.device_put(x, NamedSharding(mesh, P(None, "m")))

    def model(params, x):
        out = P(None, "m") if spec == P(None, "m") else P(None, None)
        return jnp.tanh(
            jnp.einsum(
                "td,df->tf", x, params["w"], out_sharding=NamedSharding(mesh, out)
            )
        )

    with jax.set_mesh(mesh):
        op = low_rank(w, jax.tree.map(_replicated(mesh), factors), IN_OUT)
        got = jax.jit(lrk.lift(model))({"w": op}, x)
        want = jax.jit(model)({"w": w}, x)
    assert got.sharding == want.sharding
    dense = _params()["up"] + dense_delta(factors, IN_OUT)
    assert_close(np.asarray(got), np.asarray(jnp.tanh(X @ dense)))


def _replicated(mesh):
    return lambda v: jax.device_put(v, NamedSharding(mesh, P()))


def test_per_example_adapters_under_vmap():
    many = jax.tree.map(lambda v: jnp.stack([v, 2 * v, -v]), _factors())
    ids = jnp.array([2, 0, 0, 1])

    def one(adapter, x):
        return lrk.lift(_mlp)(_adapted(adapter), x)

    got = jax.jit(lambda x: jax.vmap(one)(jax.tree.map(lambda v: v[ids], many), x))(X)
    for row, i in enumerate(ids):
        own = jax.tree.map(lambda v, i=i: v[i], many)
        assert_close(got[row], _mlp(_dense(own), X[row]))
