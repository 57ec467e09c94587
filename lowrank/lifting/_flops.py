"""FLOPs of the matrix products in a jaxpr."""

import math
from typing import Any

from lowrank import _compat


def count_flops(closed: Any) -> int:
    """Two for each multiply-add of every product and convolution, loops counted.

    Args:
        closed: A closed jaxpr.

    Returns:
        The count; a `while` loop counts once, since its length is not known.
    """
    return sum(count_equation(eqn) for eqn in _compat.body(closed).eqns)


def count_equation(eqn: Any) -> int:
    """FLOPs of one equation and of the functions that it holds."""
    name = eqn.primitive.name
    if name == "dot_general":
        (lc, _), _ = eqn.params["dimension_numbers"]
        summed = math.prod(eqn.invars[0].aval.shape[d] for d in lc)
        return 2 * eqn.outvars[0].aval.size * summed
    if name == "conv_general_dilated":
        out_dim = eqn.params["dimension_numbers"].rhs_spec[0]
        kernel = eqn.invars[1].aval
        return 2 * eqn.outvars[0].aval.size * (kernel.size // kernel.shape[out_dim])
    times = eqn.params.get("length", 1) if name == "scan" else 1
    return times * sum(count_flops(inner) for inner in _compat.inner_jaxprs(eqn))
