"""A suited adapter trains on each model for other data than text, and it alone.

The state at init is the identity, so that the first loss is that of the frozen model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lowrank as lrk
from benchmarks.data import synthetic
from lowrank.models import (
    GRU,
    LSTM,
    M5,
    EfficientNet,
    EfficientNetConfig,
    M5Config,
    NeuMF,
    NeuMFConfig,
    RecurrentConfig,
    Stage,
    ViT,
    ViTConfig,
    functional,
)

STEPS = 40
KEY = jax.random.key(0)


def train(apply, params, tx, args, labels, rate=0.03):
    """Losses of Adam on the state alone; outputs, lifted and merged, at its end."""
    optimizer = optax.adam(rate)

    @jax.jit
    def run(params):
        state = tx.init(KEY, params)

        def outputs(trainable, form):
            return form(tx.apply(params, state._replace(trainable=trainable)))

        def loss(trainable):
            out = outputs(trainable, lambda adapted: lrk.lift(apply)(adapted, *args))
            if out.ndim == 1:
                return optax.sigmoid_binary_cross_entropy(out, labels).mean()
            cost = optax.softmax_cross_entropy_with_integer_labels(out, labels)
            return cost.mean()

        def step(carry, _):
            trainable, memory = carry
            value, slope = jax.value_and_grad(loss)(trainable)
            update, memory = optimizer.update(slope, memory)
            return (optax.apply_updates(trainable, update), memory), value

        start = (state.trainable, optimizer.init(state.trainable))
        (end, _), losses = jax.lax.scan(step, start, length=STEPS)
        lifted = outputs(end, lambda adapted: lrk.lift(apply)(adapted, *args))
        merged = outputs(end, lambda adapted: apply(lrk.materialize(adapted), *args))
        return losses, lifted, merged

    return run(params)


def check(losses, lifted, merged):
    """The loss is well below the frozen model's; merged is unmerged."""
    assert losses[-1] < 0.6 * losses[0]
    np.testing.assert_allclose(lifted, merged, rtol=1e-4, atol=1e-4)


def everywhere(apply, params, *args):
    """The axes of all kernels of a network with convolutions."""
    return {"axes": lrk.trace_axes(apply, params, *args)}


CONVS = lrk.matching("conv/kernel$")
FORMS = {
    "two convolutions": lambda axes: lrk.lora(2, select=CONVS, **axes),
    "reshaped matrix": lambda _: lrk.loralib_conv(1, select=CONVS),
    "tucker": lambda _: lrk.locon_tucker(1, select=CONVS),
}


def pictures():
    """Twelve made-up images of three classes."""
    split = synthetic.images("fashion", ("a", "b", "c"), 0).train
    images = jnp.asarray(split.x[:12, ::3, ::3, None] / 255 - 0.5, jnp.float32)
    return images, split.y[:12]


@pytest.mark.parametrize("form", FORMS)
def test_three_forms_on_stem_depthwise_and_pointwise_kernels(form):
    config = EfficientNetConfig(
        stages=(Stage(1, 3, 1, 2, 4),),
        num_channels=1,
        stem_width=6,
        head_width=8,
        num_labels=3,
    )
    apply, params = functional(EfficientNet(config, rngs=nnx.Rngs(0)))
    params["classifier"]["kernel"] *= 100
    images, labels = pictures()
    tx = FORMS[form](everywhere(apply, params, images))
    assert [path.rpartition("/")[0] for path in lrk.select_paths(tx, params)] == [
        *(f"blocks/0/{name}_conv" for name in ("depthwise", "expand", "project")),
        "head_conv",
        "stem_conv",
    ]
    check(*train(apply, params, tx, (images,), labels))


def test_lora_on_patches_and_attention_of_a_vision_transformer():
    config = ViTConfig(
        image_size=10,
        patch_size=5,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
        initializer_range=0.4,
    )
    apply, params = functional(ViT(config, rngs=nnx.Rngs(0)), ViT.logits)
    images, labels = pictures()
    select = lrk.matching("(query|value|projection)/kernel$")
    tx = lrk.lora(2, select=select, **everywhere(apply, params, images))
    assert len(lrk.select_paths(tx, params)) == 3
    check(*train(apply, params, tx, (images,), labels))


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_lora_trains_through_the_loop_of_a_recurrent_net(kind):
    config = RecurrentConfig(input_size=2, hidden_size=8, num_labels=2)
    apply, params = functional(kind(config, rngs=nnx.Rngs(0)), kind.logits)
    x = jax.random.normal(KEY, (32, 5, 2))
    tx = lrk.lora(2, select=lrk.matching("^layers.*kernel$"))
    assert lrk.select_paths(tx, params) == (
        "layers/0/input/kernel",
        "layers/0/state/kernel",
    )
    labels = (x[:, 0, 0] > 0).astype(int)  # what came first is to be remembered
    check(*train(apply, params, tx, (x,), labels))


def pairs():
    """Every user with every item: who likes what follows from their numbers."""
    users, items = (x.ravel() for x in np.meshgrid(np.arange(6), np.arange(8)))
    return (users, items), ((users + items) % 2).astype(np.float32)


def test_lora_on_the_tables_of_a_recommender():
    config = NeuMFConfig(num_users=6, num_items=8, mf_size=3, mlp_sizes=(8, 6))
    apply, params = functional(NeuMF(config, rngs=nnx.Rngs(0)))
    init = jax.nn.initializers
    tx = lrk.lora(
        2,
        select=lrk.matching("embedding$"),
        init=init.zeros,
        init_b=init.normal(1.0),
    )
    assert len(lrk.select_paths(tx, params)) == 4
    check(*train(apply, params, tx, *pairs()))


def test_rows_of_new_users_alone():
    config = NeuMFConfig(num_users=6, num_items=8, mf_size=3, mlp_sizes=(8, 6))
    apply, params = functional(NeuMF(config, rngs=nnx.Rngs(0)))
    for table in ("mf_item", "mlp_item"):  # rows that tell items apart
        params[table]["embedding"] *= 100
    args, labels = pairs()
    new = args[0] >= 4
    tx = lrk.trainable_tokens([4, 5], select=lrk.matching("user/embedding$"))
    own = tuple(ids[new] for ids in args)
    check(*train(apply, params, tx, own, labels[new], rate=0.1))


def test_lora_on_the_convolutions_of_a_net_for_waves():
    config = M5Config(
        widths=(6, 6), first_window=9, first_stride=2, pool=2, num_labels=2
    )
    apply, params = functional(M5(config, rngs=nnx.Rngs(0)))
    params["classifier"]["kernel"] *= 100
    phase = 2 * jnp.pi * jax.random.uniform(KEY, (16, 1))
    labels = np.arange(16) % 2
    pitch = jnp.where(labels == 0, 0.05, 0.2)[:, None]
    time = jnp.arange(48)[None]
    waves = jnp.sin(2 * jnp.pi * pitch * time + phase)[..., None]
    axes = everywhere(apply, params, waves)
    assert axes["axes"]["blocks/0/conv/kernel"].inputs == (0, 1)
    tx = lrk.lora(2, select=CONVS, **axes)
    check(*train(apply, params, tx, (waves,), labels))
