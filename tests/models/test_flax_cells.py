"""Flax's recurrent cells under LoRA: in factors, or refused with a way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from tests.network import filled, numbers
from tests.tolerances import assert_close

X = jnp.asarray(numbers(1, 2, 3, 4))  # sequences, steps, features


def adapted(cell):
    """A model of one cell, and its weights with LoRA on every kernel."""
    model = nn.RNN(cell(5))
    params = jax.jit(model.init)(jax.random.key(0), X)
    tx = lrk.lora(2)
    return model.apply, tx.apply(params, filled(tx, params))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.SimpleCell])
def test_kernels_of_inputs_and_of_the_state_multiply_in_factors(cell):
    apply, params = adapted(cell)
    assert len(jax.tree.leaves(params, is_leaf=is_low_rank)) > 2
    got = jax.jit(lrk.lift(apply))(params, X)
    assert_close(got, jax.jit(apply)(lrk.materialize(params), X))


def is_low_rank(leaf):
    return isinstance(leaf, lrk.LowRank)


def test_joined_kernels_are_refused_by_name_and_run_dense():
    apply, params = adapted(nn.OptimizedLSTMCell)
    with pytest.raises(lrk.LiftError, match="cell/hf/kernel"):
        lrk.lift(apply)(params, X)
    got = jax.jit(lrk.lift(apply, plan={"cell": "dense"}))(params, X)
    assert_close(got, jax.jit(apply)(lrk.materialize(params), X))


def test_both_lstm_cells_have_the_same_names():
    one, two = (
        jax.eval_shape(nn.RNN(cell(5)).init, jax.random.key(0), X)
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell)
    )
    assert jax.tree.structure(one) == jax.tree.structure(two)
