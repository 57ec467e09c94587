"""The three LoRAs for convolutions: equations, PEFT's numbers, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowrank as lrk
from lowrank.operators import Factored
from tests.adapters.peft_layers import assert_agrees, conv, kernel, layer
from tests.network import numbers
from tests.reference import conv_lora as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
SELECT = lrk.matching("w")


def moved(state, seed=9):
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [numbers(seed + i, *x.shape) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, map(jnp.asarray, new)))


def lora(rank, shape):
    """LoRA as `trace_axes` has it: places and inputs are summed."""
    axes = {"w": lrk.Axes((), tuple(range(len(shape) - 1)), (len(shape) - 1,))}
    return lrk.lora(rank, alpha=3, select=SELECT, axes=axes)


# --- the equations -------------------------------------------------------------------

FORMS = {
    "lora": (lora(2, (3, 3, 2, 4)), (3, 3, 2, 4)),
    "reshaped": (lrk.loralib_conv(2, alpha=3, select=SELECT), (2, 2, 4, 4)),
    "reshaped, formed": (lrk.loralib_conv(1, alpha=1.5, select=SELECT), (2, 2, 1, 4)),
    "tucker": (lrk.locon_tucker(2, alpha=3, select=SELECT), (3, 2, 2, 4)),
}


def expected(name, leaf, shape):
    own = {n: np.asarray(v) for n, v in leaf.items()}
    if name == "lora":
        change = reference.two_convolutions(kernel_to_torch(own["a"]), own["b"].T)
    elif name == "tucker":
        own["core"] = kernel_to_torch(own["core"])
        change = reference.tucker(own["a"].T, own["core"], own["b"].T)
    else:
        change = reference.reshaped(own["a"].T, own["b"].T, shape[0])
    return 1.5 * change


def kernel_to_torch(array):
    """`[*places, in, out]` as `[out, in, *places]`."""
    return np.transpose(
        array, (-1 % array.ndim, -2 % array.ndim, *range(array.ndim - 2))
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_weight_and_product_follow_the_equations(name, groups):
    tx, shape = FORMS[name]
    w = jnp.asarray(numbers(1, *shape))
    state = moved(tx.init(KEY, {"w": w}))
    change = expected(name, state.trainable["w"], shape)
    x = numbers(2, 2, groups * shape[2], 4, 5)
    torch = np.asarray(kernel_to_torch(w), np.float64) + change

    @jax.jit
    def run(state, x):
        adapted = tx.apply({"w": w}, state)
        y = lrk.lift(conv, on_dense="raise")(x, adapted["w"], groups, 2, 0)
        return y, lrk.materialize(adapted)["w"]

    y, formed = run(state, x)
    assert_close(formed, kernel(torch).astype("f4"))
    assert_close(y, reference.convolve(x, torch, 2, groups).astype("f4"))


def test_which_forms_run_as_small_convolutions():
    made = {}
    for name, (tx, shape) in FORMS.items():
        shapes = jax.eval_shape(lambda s=shape: {"w": jnp.zeros(s)})
        state = jax.eval_shape(tx.init, KEY, shapes)
        made[name] = type(jax.eval_shape(tx.apply, shapes, state)["w"])
    assert list(made.values()) == [lrk.LowRank, Factored, lrk.Delta, Factored]


@pytest.mark.parametrize("name", ["lora", "tucker"])
def test_depthwise_and_1_d(name):
    shape = (3, 1, 4)  # one input for each of four groups
    made = {"lora": lora(1, shape), "tucker": lrk.locon_tucker(1, select=SELECT)}
    tx = made[name]
    params = {"w": jnp.asarray(numbers(1, *shape))}
    state, x = moved(tx.init(KEY, params)), jnp.asarray(numbers(2, 2, 4, 6))

    @jax.jit
    def both(state):
        adapted = tx.apply(params, state)["w"]
        return lrk.lift(conv)(x, adapted, 4), conv(x, lrk.materialize(adapted), 4)

    assert_close(*both(state))


@pytest.mark.parametrize("layout", ["NCH", "HCN", "CHN"])
@pytest.mark.parametrize(("rank", "outs"), [(3, 4), (1, 8)])
def test_groups_share_one_small_kernel(rank, outs, layout):
    """Only the base is a grouped kernel, whose gradient is slow on CPUs."""
    params = {"w": jnp.asarray(numbers(1, 3, 1, outs))}
    tx, x = lora(rank, (3, 1, outs)), jnp.asarray(numbers(2, 2, 4, 16))
    adapted = tx.apply(params, moved(tx.init(KEY, params)))["w"]

    def run(x, w):
        turned = jnp.transpose(x, ["NCH".index(n) for n in layout])
        numbers = (layout, "HIO", layout[::-1])
        return lax.conv_general_dilated(
            turned, w, (2,), "SAME", dimension_numbers=numbers, feature_group_count=4
        )

    program = jax.make_jaxpr(lrk.lift(run))(x, adapted)
    found = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
    assert [e.params["feature_group_count"] for e in found] == [4, 1]
    assert_close(lrk.lift(run)(x, adapted), run(x, lrk.materialize(adapted)))


# --- PEFT ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv2d", "conv1d"])
def test_lora_agrees_with_peft(name):
    own = layer(name)
    tx = lora(2, own["w"].shape)
    a, b = kernel(own["lora_A"]), own["lora_B"].reshape(6, 2).T
    state = tx.init(KEY, {"w": kernel(own["w"])})
    state = state._replace(trainable={"w": {"a": jnp.asarray(a), "b": jnp.asarray(b)}})
    grads = {
        "a": jnp.asarray(kernel(own["grad_lora_A"])),
        "b": jnp.asarray(own["grad_lora_B"].reshape(6, 2).T),
    }
    assert_agrees(tx, state, own, grads, conv)


def test_lora_agrees_with_peft_in_groups():
    """Where each of PEFT's ranks sees one group alone, it is a change of the kernel."""
    own, blocks = layer("grouped"), [slice(0, 2), slice(2, 4)]
    axes = {"w": lrk.Axes((), (0, 1, 2), (3,))}
    tx = lrk.lora(4, alpha=3, select=SELECT, axes=axes)  # PEFT divides by 4 too

    def ours(prefix):
        a = [kernel(own[prefix + "lora_A"][g, g]) for g in blocks]
        b = np.zeros((4, 6), "f4")
        for g, part in enumerate(np.split(own[prefix + "lora_B"][..., 0, 0], 2)):
            b[blocks[g], 3 * g : 3 * g + 3] = part.T
        return {"a": np.concatenate(a, axis=-1), "b": b}

    state = tx.init(KEY, {"w": kernel(own["w"])})
    state = state._replace(trainable={"w": jax.tree.map(jnp.asarray, ours(""))})
    adapted = tx.apply({"w": jnp.asarray(kernel(own["w"]))}, state)

    @jax.jit
    def run(adapted, x):
        y, pull = jax.vjp(lambda x: lrk.lift(conv)(x, adapted["w"], 2), x)
        return y, pull(own["g"])[0]

    y, of_x = run(adapted, own["x"])
    assert_close(y + own["bias"].reshape(1, -1, 1, 1), jnp.asarray(own["y"]))
    assert_close(of_x, jnp.asarray(own["grad_x"]))


# --- messages ------------------------------------------------------------------------


def test_names_every_leaf_that_does_not_fit():
    params = {"w": jnp.ones((3, 2, 4, 4)), "w1": jnp.ones((3, 4, 4)), "v": jnp.ones(2)}
    message = (
        r"loralib_conv: cannot adapt 'w' of .* square kernel HWIO; 'w1' of .*\. Use "
        r"lora with axes= for other forms, or leave these out with select=\."
    )
    with pytest.raises(ValueError, match=message):
        lrk.loralib_conv(1, select=SELECT).init(KEY, params)
    with pytest.raises(ValueError, match=r"locon_tucker: .*'w1' of .*rank 5 exceeds 4"):
        lrk.locon_tucker(5, select=lrk.matching("w1")).init(KEY, params)
    grey = {"k": jnp.ones((3, 3, 1, 4)), "l": jnp.ones((3, 3, 2, 2))}
    message = (
        r"locon_tucker: cannot adapt 'k' of .*rank 3 exceeds 1; 'l' of .*exceeds 2\. "
        r"Lower the rank to 1, or leave these out with select=\."
    )
    with pytest.raises(ValueError, match=message):
        lrk.locon_tucker(3, select=lrk.matching("k|l")).init(KEY, grey)
    order = {"w": jnp.ones((3, 2, 2), jnp.int32)}
    with pytest.raises(
        ValueError, match=r"'w' of .*: not floating\. Leave these out with"
    ):
        lrk.locon_tucker(1, select=SELECT).init(KEY, order)
    axes = {"w": lrk.Axes((), (0,), (1, 2, 3))}
    with pytest.raises(ValueError, match=r"one axis of outputs\. Name them in axes="):
        lrk.locon_tucker(1, select=lrk.matching("w$"), axes=axes).init(KEY, params)
