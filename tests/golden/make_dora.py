"""Write `dora.npz`: one DoRA layer as PEFT computes it, with its gradients.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_dora.py`.
"""

from pathlib import Path

import numpy as np
import peft
import torch

IN, OUT, RANK, ALPHA, ROWS = 6, 5, 2, 3.0, 7


def layer() -> torch.nn.Module:
    """A linear layer of PEFT with DoRA, all its numbers moved off their init."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_dora=True
    )
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(IN, OUT)), config)
    model = model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.4 * torch.randn_like(parameter)
    return model


def main() -> None:
    """Run the layer forward, backward and merged, and store what went in and out."""
    torch.manual_seed(0)
    model = layer()
    own = dict(model.named_parameters())
    found = {
        short: next(p for name, p in own.items() if part in name)
        for short, part in (
            ("a", "lora_A"),
            ("b", "lora_B"),
            ("m", "magnitude"),
            ("w", "base_layer.weight"),
            ("bias", "base_layer.bias"),
        )
    }
    arrays = {name: p.detach().numpy().copy() for name, p in found.items()}
    x = torch.randn(ROWS, IN, dtype=torch.float64, requires_grad=True)
    g = torch.randn(ROWS, OUT, dtype=torch.float64)
    y = model(x)
    (y * g).sum().backward()
    arrays |= {"x": x.detach().numpy(), "g": g.numpy(), "y": y.detach().numpy()}
    arrays |= {f"grad_{n}": found[n].grad.numpy().copy() for n in ("a", "b", "m")}
    arrays["grad_x"] = x.grad.numpy().copy()
    merged = model.merge_and_unload()
    arrays["merged"] = merged[0].weight.detach().numpy()
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_dora.py: "
        f"LoraConfig(r={RANK}, lora_alpha={ALPHA}, use_dora=True) on Linear({IN}, "
        f"{OUT}) in float64, seed 0; layout of torch, [out, in]"
    )
    path = Path(__file__).with_name("dora.npz")
    np.savez(path, **arrays, scale=ALPHA / RANK, provenance=provenance)


if __name__ == "__main__":
    main()
