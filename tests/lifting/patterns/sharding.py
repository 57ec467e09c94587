"""Sharding constraints and `shard_map` inside the model, on a mesh of two devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.lifting.patterns.pattern import IN_OUT, STACKED, Pattern, normal

D, F, EXPERTS = 48, 64, 4


@functools.cache
def mesh(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """Two devices on one axis, made when a test first asks for it."""
    return jax.make_mesh((2,), ("m",), axis_types=(kind,))


def _constrain(x, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh(), P(*spec)))


def constrained_activations(params, x):
    hidden = _constrain(jnp.tanh(x @ params["up"]), "m", None, None)
    return _constrain(hidden @ params["down"], "m", None, None)


def constrained_weights(params, x):
    up = _constrain(params["up"], None, "m")
    down = _constrain(params["down"], "m", None)
    return _constrain(jnp.tanh(x @ up) @ down, None, None, None)


def _mlp(up, down, x):
    return jnp.tanh(x @ up) @ down


def data_parallel(params, x):
    @functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(P(), P("m")), out_specs=P("m")
    )
    def run(params, x):
        return _mlp(params["up"], params["down"], x)

    return run(params, x)


def tensor_parallel(params, x):
    @functools.partial(
        jax.shard_map,
        mesh=mesh(),
        in_specs=(P(None, "m"), P("m", None), P()),
        out_specs=P(),
    )
    def run(up, down, x):
        return jax.lax.psum(_mlp(up, down, x), "m")

    return run(params["up"], params["down"], x)


def expert_parallel(params, x):
    @functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(P("m"), P("m")), out_specs=P("m")
    )
    def run(w, x):
        return jnp.tanh(jnp.einsum("etd,edf->etf", x, w))

    return run(params["w"], x)


def _build(fn):
    def build(seed):
        k1, k2, kx = seed, seed + 1, seed + 2
        params = {"up": normal(k1, D, F), "down": normal(k2, F, D)}
        return fn, params, (normal(kx, 4, 16, D, scale=1.0),)

    return build


def _build_experts(seed):
    kw, kx = seed, seed + 1
    x = normal(kx, EXPERTS, 32, D, scale=1.0)
    return expert_parallel, {"w": normal(kw, EXPERTS, D, F)}, (x,)


PAIR = {"up": IN_OUT, "down": IN_OUT}

PATTERNS = (
    Pattern(
        "constrained_activations", _build(constrained_activations), PAIR, bound=0.7
    ),
    Pattern("constrained_weights", _build(constrained_weights), PAIR, bound=0.75),
    Pattern("data_parallel", _build(data_parallel), PAIR, bound=0.7),
    Pattern("tensor_parallel", _build(tensor_parallel), PAIR, bound=0.75),
    Pattern("expert_parallel", _build_experts, {"w": STACKED}),
)
