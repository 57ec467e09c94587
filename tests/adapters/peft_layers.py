"""One layer as PEFT computed it, and the comparison.

The arrays are those of `golden/peft_layers.npz`, `golden/peft_convs.npz` and
`golden/peft_tables.npz`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lowrank as lrk
from tests.tolerances import assert_close

_GOLDEN = Path(__file__).parent.parent / "golden"
_NAMES = ("peft_layers", "peft_convs", "peft_tables")
_FILES = [np.load(_GOLDEN / f"{name}.npz") for name in _NAMES]


def layer(name):
    """The arrays of one case, in float32 and torch's layouts."""
    prefix = f"{name}/"
    stored = next(file for file in _FILES if f"{prefix}x" in file)
    assert str(stored["provenance"]).startswith("peft 0.21.2")
    own = {n.removeprefix(prefix): stored[n] for n in stored if n.startswith(prefix)}
    return {n: v.astype("f4") if v.dtype == "f8" else v for n, v in own.items()}


def kernel(weight):
    """A torch weight as Flax has it: the outputs last."""
    return np.transpose(weight, (*range(2, weight.ndim), 1, 0))


def conv(x, w, groups=1, stride=2, padding=1):
    """Torch's convolution, features second in `x`, with a kernel of Flax."""
    places = "HW"[: x.ndim - 2]
    layout = ("NC" + places, places + "IO", "NC" + places)
    sizes = (stride,) * len(places), ((padding, padding),) * len(places)
    return lax.conv_general_dilated(
        x, w, *sizes, dimension_numbers=layout, feature_group_count=groups
    )


def assert_agrees(tx, state, own, grads, forward=jnp.matmul, w=None):
    """Forward, gradients and merged weight are those that PEFT computed.

    Args:
        tx: The transform, of one leaf `w`.
        state: Its state, with PEFT's numbers.
        own: The arrays of `layer`.
        grads: The gradients, by name, in our layouts; for a chain one mapping for each
            member.
        forward: `forward(x, w)`, without a bias.
        w: The base weight in our layout.
    """
    params = {"w": jnp.asarray(kernel(own["w"]) if w is None else w)}
    bias = own.get("bias", np.zeros(1, "f4"))
    channel = bias.reshape(1, -1, *(1,) * (own["y"].ndim - 2))

    @jax.jit
    def run(state, x):
        def objective(trainable, x):
            adapted = tx.apply(params, state._replace(trainable=trainable))
            y = lrk.lift(lambda w, x: forward(x, w))(adapted["w"], x)
            return jnp.sum((y + channel) * own["g"]), y + channel

        floating = jnp.issubdtype(x.dtype, jnp.floating)
        slope = jax.grad(objective, (0, 1) if floating else (0,), has_aux=True)
        return *slope(state.trainable, x), lrk.materialize(tx.apply(params, state))

    slopes, y, merged = run(state, own["x"])
    assert_close(y, jnp.asarray(own["y"]))
    members = isinstance(grads, tuple)
    wanted = tuple({"w": own} for own in grads) if members else {"w": grads}
    assert_close(slopes[0], wanted)
    if len(slopes) > 1:
        assert_close(slopes[1], jnp.asarray(own["grad_x"]))
    if "merged" in own:
        assert_close(
            merged["w"],
            jnp.asarray(own["merged"] if w is not None else kernel(own["merged"])),
        )
