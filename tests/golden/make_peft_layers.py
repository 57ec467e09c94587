"""Write `peft_layers.npz`: one layer for each of PEFT's methods, with its gradients.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_peft_layers.py`. Names
are `<case>/<array>`; layouts are torch's.
"""

from pathlib import Path

import numpy as np
import peft
import torch
from torch import nn

ALPHA = 3.0


def conv_lora(rank: int, groups: int = 1) -> peft.LoraConfig:
    """PEFT's LoRA, whose two convolutions need a rank that the groups divide."""
    return peft.LoraConfig(r=rank * groups, lora_alpha=ALPHA, target_modules=["0"])


def cases() -> dict[str, tuple[nn.Module, peft.PeftConfig, torch.Tensor]]:
    """A base layer, a configuration and an input for each case."""
    own = {"target_modules": ["0"]}
    image, row = torch.randn(2, 4, 5, 5), torch.randn(7, 6)
    conv = {"stride": 2, "padding": 1}
    randlora = peft.RandLoraConfig(r=2, randlora_alpha=ALPHA, **own)
    fourier = peft.FourierFTConfig(n_frequency=7, scaling=30.0, **own)
    tokens = peft.TrainableTokensConfig(token_indices=[4, 1, 2], **own)
    return {
        "conv2d": (nn.Conv2d(4, 6, 3, **conv), conv_lora(2), image),
        "conv1d": (nn.Conv1d(4, 6, 3, **conv), conv_lora(2), torch.randn(2, 4, 5)),
        "grouped": (nn.Conv2d(4, 6, 3, groups=2, **conv), conv_lora(2, 2), image),
        "loha": (nn.Linear(6, 5), peft.LoHaConfig(r=2, alpha=ALPHA, **own), row),
        "lokr": (
            nn.Linear(12, 10),
            peft.LoKrConfig(r=2, alpha=ALPHA, **own),
            torch.randn(7, 12),
        ),
        "hira": (nn.Linear(6, 5), peft.HiraConfig(r=2, **own), row),
        "randlora": (nn.Linear(6, 5), randlora, row),
        "randlora_wide": (nn.Linear(6, 9), randlora, row),
        "fourierft": (nn.Linear(6, 5), fourier, row),
        "shira": (nn.Linear(6, 5), peft.ShiraConfig(r=1, random_seed=3, **own), row),
        "tokens": (nn.Embedding(6, 4), tokens, torch.tensor([0, 1, 4, 4, 5])),
    }


def block_diagonal(model: nn.Module, groups: int) -> None:
    """Let each rank of PEFT's ungrouped first convolution see one group alone.

    Only then is what it adds a change of the grouped kernel.
    """
    a = next(p for n, p in model.named_parameters() if "lora_A" in n)
    rank, width = a.shape[0] // groups, a.shape[1] // groups
    keep = torch.zeros_like(a)
    for g in range(groups):
        keep[g * rank : (g + 1) * rank, g * width : (g + 1) * width] = 1
    with torch.no_grad():
        a *= keep


def extras(name: str, layer: nn.Module) -> dict[str, np.ndarray]:
    """What is fixed: places, bases."""
    if name == "fourierft":
        return {"index": layer.indices["default"].numpy()}
    if name == "shira":
        return {"index": layer.shira_indices["default"].numpy()}
    if name.startswith("randlora"):
        bases = {"base_a": layer.randlora_A, "base_b": layer.randlora_B}
        return {n: v["default"].detach().numpy() for n, v in bases.items()}
    return {"index": np.array([4, 1, 2])} if name == "tokens" else {}


def run(name: str, base: nn.Module, config: peft.PeftConfig, x: torch.Tensor) -> dict:
    """One layer forward, backward and merged."""
    model = peft.get_peft_model(nn.Sequential(base), config).double()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.4 * torch.randn_like(parameter)
    if name == "grouped":
        block_diagonal(model, 2)
    layer = model.base_model.model[0]
    arrays = {"w": layer.base_layer.weight, **extras(name, layer)}
    bias = getattr(layer.base_layer, "bias", None)
    if bias is not None:
        arrays["bias"] = bias
    if x.is_floating_point():
        x = x.double().requires_grad_()
    y = model(x)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    arrays |= {"x": x, "g": g, "y": y}
    if x.is_floating_point():
        arrays["grad_x"] = x.grad
    for full, parameter in trained.items():
        short = full.split("base_model.model.0.")[1].replace(".default", "")
        arrays[short.removesuffix(".weight")] = parameter
        arrays["grad_" + short.removesuffix(".weight")] = parameter.grad
    arrays = {
        n: v.detach().numpy().copy() if isinstance(v, torch.Tensor) else v
        for n, v in arrays.items()
    }
    if name != "grouped":  # PEFT cannot merge it
        merged = model.merge_and_unload()[0]
        arrays["merged"] = merged.weight.detach().numpy()
        if bias is not None and not np.array_equal(
            merged.bias.detach(), arrays["bias"]
        ):
            arrays["merged_bias"] = merged.bias.detach().numpy()
    return {f"{name}/{n}": v for n, v in arrays.items()}


def main() -> None:
    """Run all cases and store what went in and out."""
    torch.manual_seed(0)
    arrays: dict = {}
    for name, case in cases().items():
        arrays |= run(name, *case)
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_peft_layers.py: "
        "one layer for each method in float64, seed 0; layouts of torch"
    )
    path = Path(__file__).with_name("peft_layers.npz")
    np.savez_compressed(path, **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
