"""Write `vera.npz`: two layers that share VeRA's factors, as PEFT computes them.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_vera.py`.
"""

from pathlib import Path

import numpy as np
import peft
import torch

IN, HIDDEN, OUT, RANK, ROWS = 6, 5, 4, 3, 7


def main() -> None:
    """Two layers of different sizes: results, gradients, merged weights."""
    torch.manual_seed(0)
    sizes = ((IN, HIDDEN), (HIDDEN, OUT))
    one, two = (torch.nn.Linear(*size, bias=False) for size in sizes)
    config = peft.VeraConfig(r=RANK, target_modules=["0", "2"])
    net = torch.nn.Sequential(one, torch.nn.Tanh(), two)
    model = peft.get_peft_model(net, config).double()
    own = {name: p for name, p in model.named_parameters() if "vera_lambda" in name}
    x = torch.randn(ROWS, IN, dtype=torch.float64)
    g = torch.randn(ROWS, OUT, dtype=torch.float64)
    arrays = {"x": x.numpy(), "g": g.numpy(), "y0": model(x).detach().numpy()}
    arrays["d0"] = next(p for n, p in own.items() if "lambda_d" in n).detach().numpy()
    arrays["d0"] = arrays["d0"].copy()
    with torch.no_grad():
        for parameter in own.values():
            parameter += 0.4 * torch.randn_like(parameter)
    y = model(x)
    (y * g).sum().backward()
    arrays["y"] = y.detach().numpy()
    for name, parameter in own.items():
        layer = "v" if ".0." in name else "w"
        short = f"{layer}/{'lambda_d' if 'lambda_d' in name else 'lambda_b'}"
        arrays[short] = parameter.detach().numpy()
        arrays[f"grad_{short}"] = parameter.grad.numpy()
    buffers = dict(model.named_buffers())
    for short in ("vera_A", "vera_B"):
        found = next(p for name, p in buffers.items() if short in name)
        arrays[short] = found.numpy().copy()
    weights = {n: p for n, p in model.named_parameters() if "base_layer" in n}
    for layer, weight in zip("vw", weights.values(), strict=True):
        arrays[layer] = weight.detach().numpy().copy()
    merged = model.merge_and_unload()
    arrays["merged_v"] = merged[0].weight.detach().numpy()
    arrays["merged_w"] = merged[2].weight.detach().numpy()
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_vera.py: "
        f"VeraConfig(r={RANK}) on Linear({IN}, {HIDDEN}), tanh, Linear({HIDDEN}, "
        f"{OUT}), started in float32, run in float64, seed 0; layout of torch"
    )
    np.savez(Path(__file__).with_name("vera.npz"), **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
