"""Runs one model pattern in its lifted, materialised and hand-written forms."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from tests.lifting.patterns.pattern import (
    Factors,
    Pattern,
    adapted,
    random_factors,
)

# The graph is optimised in full; only the machine code is left plain: half the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Instance(NamedTuple):
    """A pattern with its numbers: `model(arrays)` gives params and args again."""

    pattern: Pattern
    fn: Callable
    arrays: list[jax.Array]
    model: Callable[[list], tuple[Any, tuple]]
    factors: dict[str, Factors]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and not isinstance(
        leaf, bool
    )


def instance(pattern: Pattern) -> Instance:
    """Builds the model; arrays are kept apart from static Python values."""
    fn, params, args = pattern.build(1)
    leaves, treedef = jax.tree.flatten((params, args))
    where = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

    def model(arrays: list) -> tuple[Any, tuple]:
        full = list(leaves)
        for i, array in zip(where, arrays, strict=True):
            full[i] = array
        return jax.tree.unflatten(treedef, full)

    factors = random_factors(7, params, pattern.adapt)
    return Instance(pattern, fn, [leaves[i] for i in where], model, factors)


def lifted(inst: Instance, factors: Mapping[str, Factors], arrays: list) -> Any:
    """The output of the lifted model, on operators."""
    params, args = inst.model(arrays)
    return lrk.lift(inst.fn)(adapted(inst.pattern, params, factors), *args)


def materialised(inst: Instance, factors: Mapping[str, Factors], arrays: list) -> Any:
    """The output of the plain model on `lrk.materialize` of the same tree."""
    params, args = inst.model(arrays)
    return inst.fn(lrk.materialize(adapted(inst.pattern, params, factors)), *args)


def by_hand(inst: Instance, factors: Mapping[str, Factors], arrays: list) -> Any:
    """The output of the hand-written low-rank model."""
    params, args = inst.model(arrays)
    return inst.pattern.hand(params, factors, *args)


def _loss(out: Any) -> jax.Array:
    """A quadratic function with another weight for every output."""
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(out):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            flat = leaf.astype(jnp.float32).reshape(-1)
            ramp = np.linspace(-1.0, 2.0, flat.size, dtype=np.float32)
            total += jnp.mean(flat * (flat + ramp))
    return total


def value_and_grad(form: Callable, inst: Instance) -> Callable:
    """`f(factors, arrays) -> (outputs, derivatives)` of one of the forms above.

    Derivatives are gradients with respect to every `a`, `b` and `scale`, or one
    directional derivative where the pattern asks for forward mode.
    """

    def loss(factors: Mapping[str, Factors], arrays: list) -> tuple[jax.Array, Any]:
        out = lrk.materialize(form(inst, factors, arrays))
        return _loss(out), out

    def run(factors: Mapping[str, Factors], arrays: list) -> tuple[Any, Any]:
        if inst.pattern.forward:
            _, slope, out = jax.jvp(
                lambda f: loss(f, arrays),
                (factors,),
                (jax.tree.map(jnp.cos, factors),),
                has_aux=True,
            )
            return out, slope
        grads, out = jax.grad(loss, has_aux=True)(factors, arrays)
        return out, grads

    return run


class Result(NamedTuple):
    """What one compiled form gave."""

    out: Any
    derivatives: Any
    flops: float
    run: Callable


def compile_and_run(form: Callable, inst: Instance) -> Result:
    """One compilation gives the values, the derivatives and the FLOPs."""
    lowered = jax.jit(value_and_grad(form, inst)).lower(inst.factors, inst.arrays)
    compiled = lowered.compile(QUICK)
    flops = compiled.cost_analysis()["flops"]
    return Result(*compiled(inst.factors, inst.arrays), flops, compiled)
