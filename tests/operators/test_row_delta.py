"""`RowDelta`: every rule against the dense weight."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lowrank as lrk
from lowrank.operators import RowDelta
from tests.network import numbers
from tests.tolerances import assert_close

INDEX = jnp.asarray([5, 2, 2**31 - 1])  # the last points nowhere


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def table(w=None):
    return RowDelta(array(1, 6, 4) if w is None else w, array(2, 3, 4), INDEX)


def layers():
    return RowDelta(array(1, 2, 6, 4), array(2, 3, 2, 4), INDEX, axis=1)


def same(run, op, *xs):
    def both(op, *xs):
        return lrk.lift(run)(op, *xs), run(op.dense(), *xs)

    assert_close(*jax.jit(both)(op, *xs))


def test_stands_for_the_changed_rows():
    op = table()
    assert_close(op.dense(), op.w.at[jnp.array([5, 2])].add(op.d[:2]))
    base, (term,) = lrk.split(op)
    assert_close(base + term.delta(), op.dense())
    assert (op.additive, op.describe_axes()) == (True, "rows[0]")
    assert isinstance(table(table()).settle().w, RowDelta)


def _filled(w):
    return jnp.take(w, jnp.array([2, 9]), 0, fill_value=7.0)


RUNS = {
    "look-up": (table, lambda w, x: w[jnp.array([[2, 0], [5, 3]])] @ x.T, 4),
    "filled": (table, lambda w, x: x @ _filled(w).T, 4),
    "free rows": (table, lambda w, x: x @ w.T, 4),
    "summed rows": (table, lambda w, x: x @ w, 6),
    "scaled": (table, lambda w, x: x @ (2.0 * w + jnp.ones((6, 4))), 6),
    "slice": (table, lambda w, x: x @ w[3:, ::2], 3),
    "before": (table, lambda w, x: x @ w[:3], 3),
    "dynamic": (table, lambda w, x: x @ lax.dynamic_slice(w, (9, 1), (4, 2)).T, 2),
    "over factors": (
        lambda: table(lrk.LowRank(array(1, 6, 4), array(3, 6, 2), array(4, 2, 4))),
        lambda w, x: w[jnp.array([2, 0])] @ x.T,
        4,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_acts_as_the_dense_weight(name):
    make, run, width = RUNS[name]
    same(run, make(), array(9, 5, width))


def test_scan_slices_the_changes():
    def run(w, x):
        return lax.scan(lambda y, w: (y + x @ w, None), jnp.zeros((5, 4)), w)[0]

    same(run, layers(), array(9, 5, 6))
    assert table().unstack() is NotImplemented


def test_premerged_has_the_same_gradients():
    op, x = table(), array(9, 5, 6)

    @jax.jit
    def slopes(d):
        def loss(d, plan):
            run = lrk.lift(lambda w: jnp.sum(jnp.sin(x @ w)), plan=plan)
            return run(op.replace(d=d))

        return [jax.grad(loss)(d, p) for p in (None, {".": "premerged"})]

    assert_close(*slopes(op.d))


def test_a_bf16_table_gives_bf16_rows():
    op = table(array(1, 6, 4).astype(jnp.bfloat16))
    rows = lrk.lift(lambda w: w[jnp.array([2, 0])])(op)
    assert_close(rows, op.dense()[jnp.array([2, 0])])


def test_what_it_cannot_answer_is_declined():
    assert table().slice((0, 0), (6, 4), (2, 1)) is NotImplemented
    assert layers().gather(jnp.array([[0]]), _rows_of_axis_zero()) is NotImplemented
    assert table().constrain("data") is NotImplemented


def _rows_of_axis_zero():
    numbers_ = lax.GatherDimensionNumbers((1, 2), (0,), (0,))
    return lrk.operators.Gather(numbers_, (1, 6, 4), "clip")


def test_the_changes_are_split_as_the_weight():
    specs = table().partition(PartitionSpec("data", "model"))
    assert (specs.d, specs.index) == (PartitionSpec(None, "model"), PartitionSpec())
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    put = jax.jit(lambda op: op.constrain(NamedSharding(mesh, PartitionSpec("d"))))
    assert_close(put(table()).dense(), table().dense())


def test_refuses_rows_that_do_not_fit():
    with pytest.raises(ValueError, match=r"RowDelta: changes \(3, 4\) of rows \(3,\)"):
        RowDelta(jnp.ones((6, 5)), array(2, 3, 4), INDEX)
