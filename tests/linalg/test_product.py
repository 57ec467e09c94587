"""Products of labelled arrays, and reshapes told by groups of axes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank.linalg import labelled_product, regroup
from tests.network import numbers
from tests.tolerances import assert_close

SIZES = {"b": 2, "c": 3, "i": 4, "j": 5, "k": 2, "m": 3}

EQUATIONS = [
    "ij,jk->ik",
    "bij,jk->bik",
    "ij,kj->ik",
    "ji,jk->ik",
    "ij,jk->ki",
    "bij,bjk->bik",
    "ibj,jbk->bik",
    "bcij,cbjk->bcik",
    "bij,ji->b",
    "ij,ij->",
    "i,k->ik",
    "i,k->ki",
    "bi,bk->bik",
    "bicj,mjic->bm",
    "ij,j->i",
    "bi,b->bi",
    "jbi,kj->bki",
    "bcij,jmk->bcimk",
]


def arrays(equation):
    terms, _ = equation.split("->")
    return [
        jnp.asarray(numbers(i, *(SIZES[n] for n in labels)))
        for i, labels in enumerate(terms.split(","))
    ]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_is_an_einsum(equation):
    (xl, yl), out = equation.split("->")[0].split(","), equation.split("->")[1]
    x, y = arrays(equation)
    want = np.einsum(equation, np.asarray(x, np.float64), np.asarray(y, np.float64))
    got = labelled_product(x, list(xl), y, list(yl), list(out))
    assert_close(got, want.astype(np.float32))


def dot_shapes(fn, *args):
    jaxpr = jax.make_jaxpr(fn)(*args)
    (dot,) = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    return [v.aval.shape for v in dot.invars], dot.params


def test_axes_of_one_kind_are_merged_into_a_matrix_product():
    x, y = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    shapes, _ = dot_shapes(
        lambda x, y: labelled_product(x, "bci", y, "ij", "bcj"), x, y
    )
    assert shapes == [(6, 4), (4, 5)]
    shapes, _ = dot_shapes(
        lambda x, y: labelled_product(x, "bij", y, "ijk", "bk"),
        jnp.ones((2, 4, 5)),
        jnp.ones((4, 5, 2)),
    )
    assert shapes == [(2, 20), (20, 2)]


def test_nothing_is_moved_where_the_axes_lie_in_order():
    def run(x, y):
        return labelled_product(x, "bci", y, "ij", "bcj")

    jaxpr = jax.make_jaxpr(run)(jnp.ones((2, 3, 4)), jnp.ones((4, 5)))
    assert "transpose" not in str(jaxpr)


def test_options_reach_the_product():
    x = jnp.ones((2, 3), jnp.bfloat16)
    options = {
        "precision": lax.Precision.HIGHEST,
        "preferred_element_type": jnp.float32,
    }
    got = labelled_product(x, "ij", x, "kj", "ik", **options)
    assert got.dtype == jnp.float32
    _, params = dot_shapes(
        lambda x: labelled_product(x, "ij", x, "kj", "ik", **options), x
    )
    assert "HIGHEST" in str(params["precision"])


def test_arrays_whose_type_is_sharded_keep_their_axes():
    axis = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis,))
    x, y = numbers(1, 2, 3, 4), numbers(2, 4, 5)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

        def run(x, y):
            return labelled_product(x, "bci", y, "ij", "bcj")

        shapes, _ = dot_shapes(run, split, jnp.asarray(y))
        assert shapes == [(2, 3, 4), (4, 5)]
        out = jax.jit(run)(split, jnp.asarray(y))
        assert out.sharding.spec[0] == "data"
    assert_close(np.asarray(out), np.einsum("bci,ij->bcj", x, y))


REGROUPS = [
    ((4, 6), (4, 6), [([0], [0]), ([1], [1])]),
    ((4, 6), (24,), [([0, 1], [0])]),
    ((24,), (4, 6), [([0], [0, 1])]),
    ((4, 6), (4, 2, 3), [([0], [0]), ([1], [1, 2])]),
    ((4, 6), (8, 3), [([0, 1], [0, 1])]),
    ((2, 3, 4), (6, 4), [([0, 1], [0]), ([2], [1])]),
    ((2, 2, 3), (2, 6), [([0], [0]), ([1, 2], [1])]),
    ((), (), []),
]


@pytest.mark.parametrize(("old", "new", "groups"), REGROUPS)
def test_regroup_finds_the_smallest_groups(old, new, groups):
    assert regroup(old, new) == groups


@pytest.mark.parametrize(
    ("old", "new"), [((4, 6), (1, 4, 1, 6)), ((1, 4, 6, 1), (4, 6)), ((1,), ())]
)
def test_axes_of_length_one_come_and_go(old, new):
    groups = regroup(old, new)
    assert [d for left, _ in groups for d in left] == list(range(len(old)))
    assert [d for _, right in groups for d in right] == list(range(len(new)))
    for left, right in groups:
        assert math.prod(old[d] for d in left) == math.prod(new[d] for d in right)


def test_regroup_gives_up_on_other_sizes():
    assert regroup((4, 6), (5, 5)) is None
