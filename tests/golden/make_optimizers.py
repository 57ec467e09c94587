"""Write `optimizers.npz`: steps of PEFT's LoRA+ and LoRA-FA on one layer.

Needs torch 2.13.0, peft 0.21.2 and transformers, which the tests do without: they read
the arrays. Run from the root of the repository: `python
tests/golden/make_optimizers.py`. Names are `<recipe>/<array>`; layouts are torch's.
"""

from pathlib import Path

import numpy as np
import peft
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch import nn

IN, OUT, RANK, ALPHA, ROWS, STEPS = 6, 4, 2, 3.0, 7, 5
RATE, RATIO, DECAY = 0.01, 8.0, 0.1


def optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """PEFT's optimiser for a recipe."""
    if name == "lora_plus":
        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=RATE,
            loraplus_lr_ratio=RATIO,
            loraplus_weight_decay=DECAY,
        )
    decay = DECAY if name == "lora_fa_decayed" else 0.0
    return create_lorafa_optimizer(
        model, r=RANK, lora_alpha=ALPHA, lr=RATE, weight_decay=decay
    )


def run(name: str) -> dict[str, np.ndarray]:
    """Steps on `|y - t|^2 / 2`, from a `B` that is not zero."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    base = nn.Linear(IN, OUT, bias=False)
    model = peft.get_peft_model(nn.Sequential(base), config).double()
    own = dict(model.named_parameters())
    a, b = (next(p for n, p in own.items() if f"lora_{x}" in n) for x in "AB")
    x, t = torch.randn(ROWS, IN).double(), torch.randn(ROWS, OUT).double()
    with torch.no_grad():
        b += 0.4 * torch.randn_like(b)
    start = {"w": base.weight, "x": x, "t": t, "a": a, "b": b}
    arrays = {n: v.detach().numpy().copy() for n, v in start.items()}
    after: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    stepper = optimizer(name, model)
    for _ in range(STEPS):
        model.zero_grad()
        (0.5 * (model(x) - t) ** 2).sum().backward()
        stepper.step()
        for factor, found in (("a", a), ("b", b)):
            after[factor].append(found.detach().numpy().copy())
    arrays |= {f"after_{n}": np.stack(v) for n, v in after.items()}
    return {f"{name}/{n}": v for n, v in arrays.items()}


def main() -> None:
    """Run the recipes and store what went in and out."""
    arrays: dict = {}
    for name in ("lora_plus", "lora_fa", "lora_fa_decayed"):
        arrays |= run(name)
    numbers = {"rate": RATE, "ratio": RATIO, "decay": DECAY, "alpha": ALPHA}
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_optimizers.py: "
        f"{STEPS} steps of one layer in float64, seed 0; layouts of torch"
    )
    path = Path(__file__).with_name("optimizers.npz")
    np.savez_compressed(path, **arrays, **numbers, provenance=provenance)


if __name__ == "__main__":
    main()
