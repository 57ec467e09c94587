"""Write `ia3.npz`: two layers with (IA)^3 as PEFT computes them, with their gradients.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_ia3.py`.
"""

from pathlib import Path

import numpy as np
import peft
import torch

IN, HIDDEN, OUT, ROWS = 6, 5, 4, 7


def main() -> None:
    """A value layer and a feed-forward layer: results, gradients, merged weights."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(IN, HIDDEN, bias=False), torch.nn.Tanh())
    layers += (torch.nn.Linear(HIDDEN, OUT, bias=True),)
    config = peft.IA3Config(target_modules=["0", "2"], feedforward_modules=["2"])
    model = peft.get_peft_model(torch.nn.Sequential(*layers), config).double()
    own = {name: p for name, p in model.named_parameters() if "ia3" in name}
    with torch.no_grad():
        for parameter in own.values():
            parameter += 0.4 * torch.randn_like(parameter)
    value, feedforward = own.values()
    base = {
        short: next(p for name, p in model.named_parameters() if part in name)
        for short, part in (
            ("v", "0.base_layer.weight"),
            ("w", "2.base_layer.weight"),
            ("bias", "2.base_layer.bias"),
        )
    }
    arrays = {name: p.detach().numpy().copy() for name, p in base.items()}
    arrays["l_v"] = value.detach().numpy().ravel()
    arrays["l_w"] = feedforward.detach().numpy().ravel()
    x = torch.randn(ROWS, IN, dtype=torch.float64, requires_grad=True)
    g = torch.randn(ROWS, OUT, dtype=torch.float64)
    y = model(x)
    (y * g).sum().backward()
    arrays |= {"x": x.detach().numpy(), "g": g.numpy(), "y": y.detach().numpy()}
    arrays |= {"grad_x": x.grad.numpy(), "grad_v": value.grad.numpy().ravel()}
    arrays["grad_w"] = feedforward.grad.numpy().ravel()
    merged = model.merge_and_unload()
    arrays["merged_v"] = merged[0].weight.detach().numpy()
    arrays["merged_w"] = merged[2].weight.detach().numpy()
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_ia3.py: IA3Config "
        f"on Linear({IN}, {HIDDEN}), tanh, Linear({HIDDEN}, {OUT}), the second as "
        "feed-forward, in float64, seed 0; layout of torch, [out, in]"
    )
    np.savez(Path(__file__).with_name("ia3.npz"), **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
