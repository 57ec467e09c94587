"""The frozen base held in four ways."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import lowrank as lrk
from benchmarks.tables._smollm_net import Net, is_linear


def _low(tree: Any) -> Any:
    """Arrays in bfloat16; operators as they are."""

    def cast(x: Any) -> Any:
        return x if isinstance(x, lrk.Operator) else x.astype(jnp.bfloat16)

    return jax.tree.map(cast, tree, is_leaf=lambda x: isinstance(x, lrk.Operator))


def _quantised(make: Callable[..., lrk.Transform]) -> Callable[[Net], Any]:
    """Linear maps as codes, the rest (embeddings, norms) in bfloat16."""

    def base(net: Net) -> Any:
        tx = make(select=is_linear, axes=net.axes)
        state = jax.jit(tx.init)(jax.random.key(0), net.params)
        return _low(tx.apply(net.params, state))

    return base


BASES: dict[str, Callable[[Net], Any]] = {
    "float32": lambda net: net.params,
    "bfloat16": lambda net: _low(net.params),
    "int8": _quantised(lrk.quantization.int8),
    "nf4": _quantised(lrk.quantization.nf4),
}
