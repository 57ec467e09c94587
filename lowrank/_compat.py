"""The few names that differ between JAX versions: all version-bound code is here.

Checked by `tests/test_compat.py` on the installed version.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_LIBRARIES = (str(Path(jax.__file__).parent), str(Path(__file__).parent))


def is_concrete(value: Any) -> bool:
    """Whether a value is an array with numbers in it, not a tracer or a shape."""
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)


def is_known(value: Any) -> bool:
    """Whether the numbers of a value can be read: Python's, NumPy's or JAX's."""
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


def is_literal(var: Any) -> bool:
    """Whether an equation's operand is a literal."""
    return isinstance(var, core.Literal)


def binders(closed: Any) -> list[Any]:
    """Variables of a closed jaxpr that stand for its constants and arguments."""
    if hasattr(closed, "all_invars"):  # jax >= 0.11: a closed jaxpr is a jaxpr
        return list(closed.all_invars)
    return [*closed.jaxpr.constvars, *closed.jaxpr.invars]


def body(closed: Any) -> Any:
    """The jaxpr inside a closed jaxpr."""
    return getattr(closed, "jaxpr", closed)


def close(jaxpr: Any) -> Any:
    """A closed jaxpr of a jaxpr that may lack constants."""
    if hasattr(jaxpr, "consts") or hasattr(jaxpr, "all_invars"):
        return jaxpr
    return core.ClosedJaxpr(jaxpr, ())


def constants(closed: Any) -> list[Any]:
    """The constants of a closed jaxpr."""
    return list(getattr(closed, "consts", ()))


def bind(eqn: Any, args: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on arrays or tracers."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


@contextmanager
def context(eqn: Any) -> Iterator[None]:
    """The configuration and the name scope under which an equation was staged."""
    names = str(eqn.source_info.name_stack)
    with eqn.ctx.manager:
        if names:
            with jax.named_scope(names):
                yield
        else:
            yield


def live(jaxpr: Any) -> set[int]:
    """Equations whose results reach an output, or that have effects."""
    wanted = {var for var in jaxpr.outvars if not is_literal(var)}
    found = set()
    for site in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[site]
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            found.add(site)
            wanted |= {var for var in eqn.invars if not is_literal(var)}
    return found


def resharded(array: Any, mesh: Any, spec: Any) -> Any:
    """An array laid out as a spec wants it, where the mesh is part of its type."""
    explicit = jax.sharding.AxisType.Explicit
    if explicit not in getattr(mesh, "axis_types", ()) or not array.ndim:
        return array
    return jax.sharding.reshard(array, jax.sharding.NamedSharding(mesh, spec))


def source_line(eqn: Any) -> str:
    """`file.py:12` of the user's code that staged an equation, or nothing."""
    trace = eqn.source_info.traceback
    frames = [] if trace is None else trace.frames
    mine = [f for f in frames if not f.file_name.startswith(_LIBRARIES)]
    users = [f for f in mine if "site-packages" not in f.file_name] or mine
    if not users:
        return ""
    return f"{Path(users[0].file_name).name}:{users[0].line_num}"


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds."""
    return list(core.jaxprs_in_params(eqn.params))


def scan_counts(eqn: Any, args: Sequence[Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    groups = eqn.params["ft_in"].update(list(args)).unpack()  # jax >= 0.11
    return len(list(groups[0].vals)), len(list(groups[1].vals))


def abstract(array: Any) -> Any:
    """Abstract value of an array, with weak type, sharding and varying axes."""
    return jax.typeof(array)


def varying(aval: Any) -> frozenset[Any]:
    """Mesh axes over which a value varies inside `shard_map`."""
    manual = getattr(aval, "manual_axis_type", None)
    axes = getattr(manual, "varying", None) if manual is not None else None
    return frozenset(axes or getattr(aval, "vma", None) or ())


def join_varying(aval: Any, others: Sequence[Any]) -> Any:
    """`aval`, varying over the mesh axes of the other arrays too."""
    avals = [jax.typeof(x) for x in others]
    if all(varying(x) <= varying(aval) for x in avals):
        return aval

    def joined(w: Any, *terms: Any) -> Any:
        ones = [(t.ravel()[0] != 0).astype(w.dtype) for t in terms if t.size]
        return w + sum(ones[1:], ones[0])

    return jax.make_jaxpr(joined)(aval, *avals).out_avals[0]


def is_plain_threefry(key: Any) -> bool:
    """Whether `jax.random` makes its bits of a key from counters, as Threefry does."""
    if not getattr(jax.config, "jax_threefry_partitionable", True):
        return False
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(key)) == "threefry2x32"
    return getattr(jax.config, "jax_default_prng_impl", "") == "threefry2x32"
