"""The version-bound names do on the installed JAX what the evaluator counts on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank import _compat
from tests.tolerances import assert_close

X = jnp.arange(3.0)


def equation(fn, *args, name=None):
    """The first equation of a function, or the first of some primitive."""
    closed = jax.make_jaxpr(fn)(*args)
    eqns = _compat.body(closed).eqns
    return next(eqn for eqn in eqns if name in (None, eqn.primitive.name))


def test_only_arrays_with_numbers_are_concrete():
    seen = []
    jax.jit(lambda x: seen.append(_compat.is_concrete(x)))(X)
    assert seen == [False]
    assert _compat.is_concrete(X)
    assert not _compat.is_concrete(jax.ShapeDtypeStruct((3,), jnp.float32))
    assert not _compat.is_concrete(np.ones(3))


def test_numbers_of_python_numpy_and_jax_are_known():
    seen = []
    jax.jit(lambda x: seen.append(_compat.is_known(x)))(X)
    assert seen == [False]
    assert not _compat.is_known(jax.ShapeDtypeStruct((3,), jnp.float32))
    assert all(map(_compat.is_known, (X, np.ones(3), np.float32(1), 1.0)))


def test_binders_are_constants_then_arguments():
    constant = jnp.array([1.0, 2.0, 5.0])
    closed = jax.make_jaxpr(lambda x: x * constant)(X)
    constants = _compat.constants(closed)
    binders = _compat.binders(closed)
    assert len(binders) == len(constants) + 1
    (eqn,) = _compat.body(closed).eqns
    operands = [v for v in eqn.invars if not _compat.is_literal(v)]
    assert set(operands) <= set(binders)


def test_literals_are_told_from_variables():
    eqn = equation(lambda x: x * 2.0, X)
    assert sorted(_compat.is_literal(v) for v in eqn.invars) == [False, True]


def test_a_bare_jaxpr_is_closed_and_a_closed_one_stays():
    closed = jax.make_jaxpr(jnp.sin)(X)
    assert _compat.close(closed) is closed
    again = _compat.close(_compat.body(closed))
    assert len(_compat.body(again).eqns) == 1
    assert _compat.constants(again) == []


BOUND = {
    "plain": jnp.sin,
    "multiple results": lambda x: lax.top_k(x, 2),
    "jit": jax.jit(lambda x: x + 1),
    "scan": lambda x: lax.scan(lambda c, y: (c + y, c * y), 0.0, x),
    "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "custom": jax.custom_jvp(lambda x: x * 3),
}
BOUND["custom"].defjvp(lambda x, t: (x[0] * 3, t[0] * 3))


@pytest.mark.parametrize("fn", BOUND.values(), ids=BOUND)
def test_equations_are_evaluated_one_by_one(fn):
    closed = jax.make_jaxpr(fn)(X)
    values = dict(
        zip(_compat.binders(closed), [*_compat.constants(closed), X], strict=True)
    )

    def read(var):
        return var.val if _compat.is_literal(var) else values[var]

    for eqn in _compat.body(closed).eqns:
        with _compat.context(eqn):
            out = _compat.bind(eqn, [read(v) for v in eqn.invars])
        values.update(zip(eqn.outvars, out, strict=True))
    got = [read(v) for v in _compat.body(closed).outvars]
    assert_close(got, jax.tree.leaves(fn(X)))


def test_the_name_scope_of_an_equation_is_entered_again():
    def named(x):
        with jax.named_scope("inner"):
            return jnp.sin(x)

    eqn = equation(named, X)

    def again(x):
        with _compat.context(eqn):
            return _compat.bind(eqn, [x])[0]

    staged = equation(again, X)
    assert "inner" in str(staged.source_info.name_stack)


def test_source_lines_are_those_of_the_user():
    line = _compat.source_line(equation(lambda x: jnp.sin(x), X))
    assert line.startswith("test_compat.py:")
    assert int(line.split(":")[1]) > 0


def test_inner_jaxprs_are_found():
    eqn = equation(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), X, name="cond")
    names = {_compat.body(j).eqns[0].primitive.name for j in _compat.inner_jaxprs(eqn)}
    assert names == {"sin", "cos"}
    assert _compat.inner_jaxprs(equation(jnp.sin, X)) == []


def test_scans_tell_constants_from_carries():
    def scanned(w, h, xs):
        return lax.scan(lambda c, x: ((c[0] * w, c[1] + x), x), (h, h), xs)

    eqn = equation(scanned, 2.0, 1.0, X, name="scan")
    assert _compat.scan_counts(eqn, eqn.invars) == (1, 2)


def test_equations_that_reach_no_output_are_not_live():
    def fn(x):
        _ = jnp.sin(x)
        return jnp.cos(jnp.exp(x))

    jaxpr = _compat.body(jax.make_jaxpr(fn)(X))
    live = {jaxpr.eqns[i].primitive.name for i in _compat.live(jaxpr)}
    assert live == {"exp", "cos"}


def test_equations_with_effects_are_live():
    def fn(x):
        jax.debug.callback(lambda _: None, x)
        return x

    jaxpr = _compat.body(jax.make_jaxpr(fn)(X))
    assert len(_compat.live(jaxpr)) == len(jaxpr.eqns) > 0


def test_arrays_are_laid_out_anew_only_where_the_mesh_is_part_of_their_type():
    spec = jax.sharding.PartitionSpec("x")
    kinds = jax.sharding.AxisType
    auto = jax.make_mesh((2,), ("x",), axis_types=(kinds.Auto,))
    explicit = jax.make_mesh((2,), ("x",), axis_types=(kinds.Explicit,))
    x = jnp.ones(4)
    assert _compat.resharded(x, auto, spec) is x
    with jax.set_mesh(explicit):
        own = jax.device_put(x, jax.sharding.NamedSharding(explicit, spec))
        whole = _compat.resharded(own, explicit, jax.sharding.PartitionSpec())
        assert jax.typeof(whole).sharding.spec == jax.sharding.PartitionSpec(None)


def test_abstract_keeps_the_weak_type():
    assert _compat.abstract(jnp.asarray(2.0)).weak_type
    assert not _compat.abstract(X).weak_type
    assert _compat.abstract(X).shape == (3,)


def test_varying_axes_are_joined_inside_shard_map():
    mesh = jax.make_mesh((2,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    seen = {}

    def body(w, a):
        aval = _compat.abstract(w)
        seen["w"], seen["a"] = _compat.varying(aval), _compat.varying(jax.typeof(a))
        joined = _compat.join_varying(aval, [a])
        seen["joined"] = _compat.varying(joined)
        seen["same"] = _compat.join_varying(aval, [w]) is aval
        assert (joined.shape, joined.dtype) == (w.shape, w.dtype)
        return a

    specs = {"in_specs": (spec(), spec("tasks")), "out_specs": spec("tasks")}
    jax.eval_shape(
        jax.shard_map(body, mesh=mesh, **specs), X, jnp.ones((2, 3), jnp.float32)
    )
    assert seen == {
        "w": frozenset(),
        "a": frozenset({"tasks"}),
        "joined": frozenset({"tasks"}),
        "same": True,
    }


def test_which_keys_are_plain_threefry():
    assert _compat.is_plain_threefry(jax.random.key(0))
    assert _compat.is_plain_threefry(jax.random.key_data(jax.random.key(0)))
    assert not _compat.is_plain_threefry(jax.random.key(0, impl="rbg"))
    with jax.threefry_partitionable(False):
        assert not _compat.is_plain_threefry(jax.random.key(0))
