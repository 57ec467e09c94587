"""int8 and NF4 against the equations; memory; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowrank as lrk
from lowrank.linalg import from_coarse, to_coarse
from lowrank.linalg._quantize import NF4
from lowrank.operators import Quantized
from tests.network import numbers
from tests.reference import quantization as reference
from tests.tolerances import assert_close

INT8 = np.arange(-127, 128) / 127


@pytest.fixture(scope="module")
def params():
    w = numbers(3, 10, 6)
    w[:, 2] = 0.0  # a column of zeros stays zero
    return {"w": jnp.asarray(w)}


def formed(tx, params):
    """The weights that stand in the end, by one compiled call."""

    @jax.jit
    def run(params):
        return lrk.materialize(tx.apply(params, tx.init(jax.random.key(0), params)))

    return run(params)


@pytest.mark.parametrize(
    ("make", "block", "levels", "fine"),
    [
        (lambda: lrk.quantization.int8(), 10, INT8, lambda s: s),
        (lambda: lrk.quantization.int8(block=3), 3, INT8, lambda s: s),
        (lambda: lrk.quantization.nf4(block=4, double=False), 4, NF4, lambda s: s),
        (lambda: lrk.quantization.nf4(block=4), 4, NF4, reference.double),
    ],
    ids=["int8", "int8-blocks", "nf4", "nf4-double"],
)
def test_weights_are_those_of_the_equations(params, make, block, levels, fine):
    expected = reference.quantise(params["w"], block, np.asarray(levels, float), fine)
    np.testing.assert_allclose(formed(make(), params)["w"], expected, atol=2e-6)


def test_levels_are_quantiles_of_a_normal_distribution():
    np.testing.assert_allclose(NF4, reference.nf4_levels(), atol=2e-6)


def test_many_scales_share_a_scale_in_groups():
    scale = 1 + numbers(5, 2, 30, 20)  # 600 scales of each member: three groups
    small, coarse, middle = jax.jit(to_coarse)(jnp.asarray(scale))
    assert (small.dtype, coarse.shape, middle.shape) == ("float8_e4m3fn", (2, 3), (2,))
    back = jax.jit(from_coarse)(small, coarse, middle)
    expected = np.stack([reference.double(part) for part in scale.astype(float)])
    np.testing.assert_allclose(back, expected, atol=2e-6)


def test_axes_say_what_a_column_is(params):
    w = params["w"]
    turned = {"heads": jnp.transpose(w.reshape(10, 2, 3), (1, 0, 2))}
    axes = {"heads": lrk.Axes((), (1,), (0, 2))}
    tx = lrk.quantization.nf4(block=4, axes=axes, select=lambda *_: True)
    plain = formed(lrk.quantization.nf4(block=4), params)["w"]
    back = jnp.transpose(formed(tx, turned)["heads"], (1, 0, 2)).reshape(10, 6)
    np.testing.assert_array_equal(back, plain)


def test_an_adapter_trains_over_codes_that_stay(params):
    tx = lrk.chain(lrk.quantization.nf4(block=4), lrk.lora(2))
    x = jnp.asarray(numbers(7, 5, 10))

    @jax.jit
    def run(key, params):
        state = tx.init(key, params)
        b = jnp.ones_like(state.trainable[1]["w"]["b"])
        state = state._replace(
            trainable=({}, {"w": {**state.trainable[1]["w"], "b": b}})
        )

        def loss(trainable, form):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            own = lrk.materialize(adapted) if form == "dense" else adapted
            return jnp.sum(jnp.tanh(lrk.lift(lambda p, x: x @ p["w"])(own, x)))

        both = [
            jax.value_and_grad(loss)(state.trainable, form)
            for form in ("dense", "lifted")
        ]
        frozen = jax.grad(lambda p: jnp.sum(tx.apply(p, state)["w"].w.dense()))(params)
        return both, frozen

    (dense, lifted), frozen = run(jax.random.key(0), params)
    assert_close(lifted, dense, "float32")
    assert float(jnp.abs(frozen["w"]).max()) == 0


def test_the_tree_of_codes_is_a_base_of_its_own(params):
    quantise = lrk.quantization.int8()
    base = quantise.apply(params, quantise.init(jax.random.key(0), params))
    adapted = jax.eval_shape(
        lambda base: lrk.lora(2).apply(base, lrk.lora(2).init(jax.random.key(1), base)),
        base,
    )
    assert isinstance(adapted["w"].w, Quantized)
    assert {x.dtype.name for x in jax.tree.leaves(base)} == {"int8", "float32"}


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_bytes_and_memory_are_those_of_the_codes(name):
    """Layers in a scan: the backward pass keeps codes, not the weights it formed."""
    layers, width = 6, 64
    params = {"w": jax.ShapeDtypeStruct((layers, width, width), jnp.float32)}
    axes = {"w": lrk.Axes((0,), (1,), (2,))}
    tx = getattr(lrk.quantization, name)(select=lambda *_: True, axes=axes)
    state = jax.eval_shape(tx.init, jax.random.key(0), params)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    bits = {"int8": 8 + 32 / 64, "nf4": 4 + (8 + 32 / 256) / 64 + 0.02}[name]
    assert held <= layers * width**2 * bits / 8

    def model(p, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    def gradient(form):
        def run(x, fixed, params):
            base = tx.apply(params, lrk.State({}, fixed))
            if form == "dense":
                base = lrk.materialize(base)
            return jax.grad(lambda x: lrk.lift(model)(base, x).sum())(x)

        x = jax.ShapeDtypeStruct((2, width), jnp.float32)
        compiled = jax.jit(run).lower(x, state.fixed, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    weights = 4 * layers * width**2
    assert gradient("dense") > weights
    assert gradient("lifted") < 0.6 * weights


def test_operator_refuses_parts_that_do_not_fit():
    axes = lrk.Axes((), (0,), (1,))
    code, scale = jnp.zeros((4, 3), jnp.int8), jnp.ones((2, 3))
    given = {"block": 2, "axes": axes, "dtype": jnp.float32}
    with pytest.raises(ValueError, match=r"scale \(2, 3\), expected \(1, 3\)"):
        Quantized(code, scale, shape=(4, 3), **{**given, "block": 4})
    with pytest.raises(ValueError, match=r"axes .* are not those of a weight"):
        Quantized(code, scale, shape=(4, 3, 1), **given)
    with pytest.raises(ValueError, match="even for NF4, got 3"):
        Quantized(code.astype("uint8"), scale, shape=(4, 3), **{**given, "block": 3})
    with pytest.raises(ValueError, match=r"middle None, expected \(\)"):
        Quantized(code, scale, jnp.ones(1), shape=(4, 3), **given)


def test_hyperparameters_are_checked():
    with pytest.raises(TypeError, match=r"int8: block must be an int, got True"):
        lrk.quantization.int8(block=True)
    with pytest.raises(ValueError, match="int8: block must be at least 1, got 0"):
        lrk.quantization.int8(block=0)
    with pytest.raises(ValueError, match="nf4: block must be a positive multiple of 2"):
        lrk.quantization.nf4(block=7)


def test_leaves_that_cannot_be_quantised_are_listed(params):
    key = jax.random.key(0)
    wrong = {"ids": jnp.zeros((2, 2), jnp.int32), "flags": jnp.zeros((2, 2), bool)}
    with pytest.raises(ValueError, match=r"'flags' .* not floating; 'ids'|'ids' .*"):
        lrk.quantization.int8(select=lambda *_: True).init(key, wrong)
    noisy = lrk.lora(2, dropout=0.5)
    adapted = noisy.apply(params, noisy.init(key, params), key=key)
    with pytest.raises(ValueError, match="nf4: cannot quantise 'w' .* DropoutLowRank"):
        lrk.quantization.nf4().init(key, adapted)


def test_a_state_of_another_tree_is_refused(params):
    tx = lrk.quantization.int8()
    state = tx.init(jax.random.key(0), params)
    with pytest.raises(ValueError, match="does not fit code"):
        tx.apply({"w": jnp.ones((5, 6))}, state)


def test_a_table_that_is_looked_up_is_refused(params):
    tx = lrk.quantization.int8()
    base = tx.apply(params, tx.init(jax.random.key(0), params))
    with pytest.raises(lrk.LiftError, match="'w'"):
        lrk.lift(lambda p: p["w"][jnp.array([1, 2])])(base)
