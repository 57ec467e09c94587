"""Convolutions, and lengths on Conv1D: adapters of PEFT itself, both ways."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.interop import load_peft, save_peft

pytestmark = pytest.mark.slow
# PEFT knows no lengths on grouped convolutions.
CASES = [(k, d) for k in ("conv", "line", "turned") for d in (False, True)]
CASES.append(("grouped", False))


def build(kind):
    """A tiny model with one layer `x`, of the same random weights at every call."""
    import torch
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layers = {
        "conv": lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
        "grouped": lambda: torch.nn.Conv2d(4, 6, 3, padding=1, groups=2),
        "line": lambda: torch.nn.Conv1d(4, 6, 3),
        "turned": lambda: Conv1D(6, 4),
    }
    model = torch.nn.ModuleDict({"x": layers[kind]()})
    model.forward = lambda x: model["x"](x)
    return model.eval()


def outputs(model, kind):
    import torch

    shape = {"line": (2, 4, 7), "turned": (2, 5, 4)}.get(kind, (2, 4, 5, 5))
    x = torch.cos(torch.arange(float(np.prod(shape))) ** 2).reshape(shape)
    with torch.no_grad():
        return model(x).numpy()


def params_of(model, kind):
    weight = model["x"].weight.detach().numpy()
    turned = weight if kind == "turned" else np.moveaxis(weight, (0, 1), (-1, -2))
    return {"x": {"kernel": jnp.asarray(turned)}}


def with_weight(tree, kind):
    """The model with the dense weight of a tree in place of its own."""
    import torch

    model, dense = build(kind), np.asarray(lrk.materialize(tree)["x"]["kernel"])
    turned = dense if kind == "turned" else np.moveaxis(dense, (-1, -2), (0, 1))
    with torch.no_grad():
        model["x"].weight.copy_(torch.tensor(turned.copy()))
    return model


def filled(shape):
    return jnp.cos(jnp.arange(np.prod(shape), dtype=jnp.float32) ** 2).reshape(shape)


@pytest.mark.parametrize(("kind", "dora"), CASES)
def test_peft_gives_the_outputs_of_the_tree_that_was_written(
    peft, kind, dora, tmp_path
):
    params = params_of(build(kind), kind)
    last = params["x"]["kernel"].ndim - 1
    axes = {"x/kernel": lrk.Axes((), tuple(range(last)), (last,))}
    tx = (lrk.dora if dora else lrk.lora)(2, axes=axes, select=lrk.matching("kernel"))
    state = jax.eval_shape(tx.init, jax.random.key(0), params)
    state = jax.tree.map(lambda x: 1.5 + 0.3 * filled(x.shape), state)
    tree = tx.apply(params, state)
    groups = {"x/kernel": 2} if kind == "grouped" else None
    config = {"fan_in_fan_out": kind == "turned"}
    save_peft(tmp_path, tree, groups=groups, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*groups > 1")
        wrapped = peft.PeftModel.from_pretrained(build(kind), tmp_path).eval()
    want = outputs(with_weight(tree, kind), kind)
    np.testing.assert_allclose(outputs(wrapped, kind), want, rtol=1e-4, atol=1e-4)
    assert np.abs(want - outputs(build(kind), kind)).max() > 1e-2


@pytest.mark.parametrize(("kind", "dora"), CASES[:-1])
def test_what_peft_trained_gives_the_same_outputs(peft, kind, dora, tmp_path):
    import torch

    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["x"],
        use_dora=dora,
        fan_in_fan_out=kind == "turned",
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(build(kind), config).eval()
        for name, own in wrapped.named_parameters():
            if "magnitude" in name:
                own.data.add_(torch.arange(6.0).reshape(own.shape))
        wrapped.save_pretrained(tmp_path)
    found = load_peft(tmp_path, params_of(build(kind), kind))
    got = outputs(with_weight(found.adapted, kind), kind)
    want = outputs(wrapped, kind)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want - outputs(build(kind), kind)).max() > 1e-2


def test_a_grouped_convolution_that_peft_trained_is_refused_by_name(peft, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["x"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(build("grouped"), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="x.lora_A.weight': a convolution of 2 groups"):
        load_peft(tmp_path, params_of(build("grouped"), "grouped"))
