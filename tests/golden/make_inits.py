"""Write `inits.npz`: LoRA layers as PEFT starts them, at init and once moved.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_inits.py`.
"""

from pathlib import Path

import numpy as np
import peft
import torch

IN, OUT, RANK, ALPHA, ROWS = 6, 5, 2, 3.0, 7
CASES = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rslora": {"use_rslora": True},
}


def case(linear: torch.nn.Linear, told: dict, x: torch.Tensor, g: torch.Tensor) -> dict:
    """Factors, results and gradients of one kind of LoRA over one layer."""
    own = torch.nn.Linear(IN, OUT, bias=False)
    own.load_state_dict(linear.state_dict())
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], **told)
    model = peft.get_peft_model(torch.nn.Sequential(own), config).double()
    named = dict(model.named_parameters())
    a, b = (next(p for n, p in named.items() if f"lora_{k}" in n) for k in "AB")
    out = {"a0": a.detach().numpy().copy(), "b0": b.detach().numpy().copy()}
    out["y0"] = model(x).detach().numpy()
    with torch.no_grad():
        for parameter in (a, b):
            parameter += 0.4 * torch.randn_like(parameter)
    y = model(x)
    (y * g).sum().backward()
    out |= {"a": a.detach().numpy(), "b": b.detach().numpy(), "y": y.detach().numpy()}
    out |= {"grad_a": a.grad.numpy(), "grad_b": b.grad.numpy()}
    out["merged"] = model.merge_and_unload()[0].weight.detach().numpy()
    return out


def main() -> None:
    """Run every case on one weight, one input and one cotangent."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    x, g = (torch.randn(ROWS, n, dtype=torch.float64) for n in (IN, OUT))
    arrays = {"w": linear.weight.detach().numpy(), "x": x.numpy(), "g": g.numpy()}
    for name, told in CASES.items():
        found = case(linear, told, x, g)
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_inits.py: "
        f"LoraConfig(r={RANK}, lora_alpha={ALPHA}, ...) on Linear({IN}, {OUT}), "
        "started in float32, run in float64, seed 0; layout of torch, [out, in]"
    )
    path = Path(__file__).with_name("inits.npz")
    np.savez(path, **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
