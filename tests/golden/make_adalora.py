"""Write `adalora.npz`: some steps of AdaLoRA as PEFT makes them, with its allocation.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_adalora.py`.
"""

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import peft
import torch

SIZES, RANK, TARGET, ALPHA, ROWS = (5, 4, 3), 3, 1, 6.0, 7
TOTAL, WARMUP, COOLDOWN = 7, 1, 1
PARTS = {"lora_A": "a", "lora_B": "b", "lora_E": "lambda"}


def main() -> None:
    """At each step numbers, gradients, the budget, and what the allocator zeroes."""
    torch.manual_seed(0)
    one, two = (torch.nn.Linear(*s, bias=False) for s in pairwise(SIZES))
    config = peft.AdaLoraConfig(
        init_r=RANK,
        target_r=TARGET,
        lora_alpha=ALPHA,
        tinit=WARMUP,
        tfinal=COOLDOWN,
        deltaT=1,
        total_step=TOTAL,
        target_modules=["0", "2"],
    )
    net = torch.nn.Sequential(one, torch.nn.Tanh(), two)
    model = peft.get_peft_model(net, config).double()
    own = {
        f"{'v' if '.0.' in name else 'w'}/{short}": p
        for name, p in model.named_parameters()
        for part, short in PARTS.items()
        if part in name
    }
    arrays = {
        layer: p.detach().numpy().copy()
        for layer, part in (("v", ".0.base_layer"), ("w", ".2.base_layer"))
        for name, p in model.named_parameters()
        if part in name
    }
    x = torch.randn(ROWS, SIZES[0], dtype=torch.float64)
    g = torch.randn(ROWS, SIZES[-1], dtype=torch.float64)
    arrays |= {"x": x.numpy(), "g": g.numpy()}
    for step in range(TOTAL - COOLDOWN):
        with torch.no_grad():
            for parameter in own.values():
                parameter += 0.3 * torch.randn_like(parameter)
        model.zero_grad()
        y = model(x)
        (y * g).sum().backward()
        found = {"y": y.detach().numpy()}
        for name, parameter in own.items():
            found[name] = parameter.detach().numpy().copy()
            found[f"grad_{name}"] = parameter.grad.numpy().copy()
        whole = copy.deepcopy(model).merge_and_unload()
        for layer, place in (("v", 0), ("w", 2)):
            found[f"{layer}/merged"] = whole[place].weight.detach().numpy()
        allocator = model.base_model.rankallocator
        budget, _ = allocator.update_and_allocate(model.base_model.model, step)
        found["budget"] = np.int64(budget)
        for layer in "vw":
            after = own[f"{layer}/lambda"].detach().numpy()
            found[f"{layer}/pruned"] = after.ravel().copy()
        arrays |= {f"{step}/{name}": value for name, value in found.items()}
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_adalora.py: "
        f"AdaLoraConfig(init_r={RANK}, target_r={TARGET}, lora_alpha={ALPHA}, tinit="
        f"{WARMUP}, tfinal={COOLDOWN}, deltaT=1, total_step={TOTAL}) on two layers of "
        f"sizes {SIZES} with a tanh between, in float64, seed 0; layout of torch"
    )
    np.savez_compressed(
        Path(__file__).with_name("adalora.npz"), **arrays, provenance=provenance
    )


if __name__ == "__main__":
    main()
