"""The protocol: states, transforms, operators as pytrees, operators outside `lift`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import _base
from tests.network import numbers
from tests.tolerances import assert_close

W = jnp.asarray(numbers(1, 4, 3))
A, B = jnp.asarray(numbers(2, 4, 2)), jnp.asarray(numbers(3, 2, 3))


class Opaque(lrk.Operator):
    """Declares nothing but its fields."""

    fields = ("w",)


class Noisy(lrk.Operator):
    """A random operator without a dense form."""

    fields = ("w", "site")
    own_dense = False
    own_exact = False
    own_stochastic = True

    @property
    def aval(self):
        return jax.typeof(self.w)

    def at(self, site, step=0):
        return self.replace(site=(site, step))


def low_rank(w=W):
    return lrk.LowRank(w, A, B, 0.5)


def test_an_operator_is_a_pytree_node_with_named_children():
    flat, treedef = jax.tree_util.tree_flatten_with_path({"k": low_rank()})
    names = [jax.tree_util.keystr(path) for path, _ in flat]
    assert names == ["['k'].w", "['k'].a", "['k'].b", "['k'].scale"]
    back = jax.tree.unflatten(treedef, [leaf for _, leaf in flat])["k"]
    assert type(back) is lrk.LowRank
    assert back.w is W
    assert (back.a_dims, back.b_dims) == ((0,), (1,))


def test_unflattening_takes_what_is_no_array():
    op = jax.tree.map(lambda _: None, low_rank())
    assert jax.tree.leaves(op) == []
    assert jax.tree.map(lambda x: x.shape, low_rank()).a == (4, 2)


def test_static_fields_compare_by_value():
    other = lrk.LowRank(W, A, B, a_dims=(0,), b_dims=(1,))
    assert jax.tree.structure(other) == jax.tree.structure(low_rank())
    flipped = lrk.LowRank(W.T, A, B, a_dims=(1,), b_dims=(0,))
    assert jax.tree.structure(flipped) != jax.tree.structure(low_rank())


def test_operators_are_read_only_and_replaced_in_part():
    op = low_rank()
    with pytest.raises(AttributeError, match=r"LowRank.a is read-only. Use .replace"):
        op.a = A
    new = op.replace(a=2 * A)
    assert new.b is op.b
    assert op.a is A
    assert_close(new.a, 2 * A)


def test_shape_follows_from_the_base():
    op = low_rank(W.astype(jnp.bfloat16))
    assert (op.shape, op.ndim, op.size, op.dtype) == ((4, 3), 2, 12, jnp.bfloat16)


def test_a_nested_base_has_its_say():
    plain, nested = low_rank(), lrk.Delta(Noisy._make(w=W, site=None), W)
    assert (plain.has_dense, plain.exact_grad, plain.stochastic) == (True, True, False)
    assert not nested.has_dense
    assert not nested.exact_grad
    assert nested.stochastic


def test_at_reaches_nested_random_operators_alone():
    nested = lrk.Delta(Noisy._make(w=W, site=None), W)
    assert nested.at(7, 2).w.site == (7, 2)
    op = low_rank()
    assert op.at(7, 2) is op


DECLINED = [
    ("contract", (W, None)),
    ("conv", (W, None)),
    ("gather", (W, None)),
    ("transpose", ((1, 0),)),
    ("reshape", ((12,),)),
    ("slice", ((0,), (1,), None)),
    ("dynamic_slice", ((0,), (1,))),
    ("reverse", ((0,),)),
    ("cast", (jnp.bfloat16,)),
    ("scaled", (2.0,)),
    ("add", (W,)),
    ("premerge", ()),
    ("unstack", ()),
    ("partition", (None,)),
    ("constrain", (None,)),
]


@pytest.mark.parametrize(("method", "arguments"), DECLINED)
def test_the_default_answer_is_to_decline(method, arguments):
    assert getattr(Opaque._make(w=W), method)(*arguments) is NotImplemented


def test_an_operator_without_aval_or_dense_form_says_so():
    op = Opaque._make(w=W)
    with pytest.raises(NotImplementedError, match="Opaque must define aval"):
        _ = op.aval
    with pytest.raises(TypeError, match="Opaque has no dense form"):
        op.dense()
    assert op.mismatch() is None
    assert op.settle() is op
    assert op.describe_axes() == "-"


UNLIFTED = {
    "matmul": lambda op: W.T @ op,
    "dot": lambda op: jnp.dot(W.T, op),
    "add": lambda op: op + 1,
    "right add": lambda op: 1 + op,
    "numpy": np.asarray,
    "index": lambda op: op[0],
    "transpose": lambda op: op.T,
    "cast": lambda op: op.astype(jnp.bfloat16),
    "bool": bool,
    "len": len,
    "iterate": list,
    "compare": lambda op: op < 1,
    "sum": lambda op: op.sum(),
}


@pytest.mark.parametrize("use", UNLIFTED.values(), ids=UNLIFTED)
def test_outside_lift_an_operator_tells_the_way(use):
    with pytest.raises(TypeError, match=r"Call lrk\.lift\(fn\)\(adapted, \.\.\.\)"):
        use(low_rank())


def test_an_attribute_of_an_array_is_also_an_attribute_error():
    assert not hasattr(low_rank(), "T")
    assert not hasattr(low_rank(), "mean")
    with pytest.raises(AttributeError, match="'LowRank' has no attribute 'typo'"):
        _ = low_rank().typo


def test_operators_are_told_apart_by_identity_and_hash():
    op = low_rank()
    assert len({op, low_rank()}) == 2
    assert op in {op}
    with pytest.raises(TypeError, match="__eq__"):
        _ = op == low_rank()


def test_structs_of_arrays_operators_and_shapes():
    want = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    assert [_base.as_struct(x) for x in (W, low_rank(), want)] == [want] * 3


def test_what_counts_as_an_array_and_as_floating():
    leaves = (W, low_rank(), jnp.arange(2), jnp.ones(2, jnp.bfloat16), 3.0, None, "w")
    assert [_base.is_array(x) for x in leaves] == [True] * 4 + [False] * 3
    floating = [True, True, False, True, False, False, False]
    assert [_base.is_floating(x) for x in leaves] == floating
    assert [_base.is_operator(x) for x in leaves[:3]] == [False, True, False]


def test_state_is_a_pair():
    state = lrk.State({"w": {"a": A}}, {})
    assert state._replace(trainable=1) == (1, {})
    doubled = jax.tree.map(lambda x: 2 * x, state)
    assert isinstance(doubled, lrk.State)
    assert_close(doubled.trainable["w"]["a"], 2 * A)
