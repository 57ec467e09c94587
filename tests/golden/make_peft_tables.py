"""Write `peft_tables.npz`: PEFT's LoRA of an embedding, its norms and its biases.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_peft_tables.py`. Names
are `<case>/<array>`; layouts are torch's.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import make_peft_layers


def biases() -> dict[str, np.ndarray]:
    """LoRA with `bias="all"`: the biases of three layers train beside it."""
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    alpha = make_peft_layers.ALPHA
    config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["0"], bias="all")
    model = peft.get_peft_model(net, config).double()
    trained = {
        n.removeprefix("base_model.model.").replace(".default.weight", ""): p
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.4 * torch.randn_like(parameter)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    y = model(x)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    arrays = {f"before_{n}": p for n, p in before.items()}
    arrays |= {n.replace("base_layer.", ""): p.clone() for n, p in trained.items()}
    arrays |= {
        f"grad_{n.replace('base_layer.', '')}": p.grad for n, p in trained.items()
    }
    arrays |= {"x": x, "g": g, "y": y, "grad_x": x.grad}
    merged = model.merge_and_unload()
    arrays |= {f"merged_{n}": p for n, p in merged.named_parameters()}
    return {f"biases/{n}": v.detach().numpy() for n, v in arrays.items()}


def main() -> None:
    """Run all cases and store what went in and out."""
    torch.manual_seed(0)
    own = {"target_modules": ["0"]}
    lora = peft.LoraConfig(r=2, lora_alpha=make_peft_layers.ALPHA, **own)
    tokens = torch.tensor([0, 1, 4, 4, 5])
    norm = nn.LayerNorm(6), peft.LNTuningConfig(**own), torch.randn(7, 6)
    cases = {"embedding": (nn.Embedding(6, 4), lora, tokens), "norm": norm}
    arrays: dict = {}
    for name, case in cases.items():
        arrays |= make_peft_layers.run(name, *case)
    arrays |= biases()
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_peft_tables.py: "
        "one layer for each method in float64, seed 0; layouts of torch"
    )
    path = Path(__file__).with_name("peft_tables.npz")
    np.savez_compressed(path, **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
