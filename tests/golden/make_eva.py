"""Write `eva.npz`: EVA's ranks, factors and scales as PEFT finds them from one batch.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_eva.py`.
"""

from pathlib import Path

import numpy as np
import peft
import torch

RANK, ALPHA, ROWS = 2, 3.0, 40
SPREADS = {"one": (4.0, 1.0, 1.1, 0.9, 0.8, 1.2), "two": (3.0, 2.9, 2.8, 0.2, 0.1)}


class Net(torch.nn.Module):
    """Two layers side by side, each with a part of the input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both results side by side."""
        return torch.cat([self.one(x[:, :6].clone()), self.two(x[:, 6:].clone())], -1)


def started(model: peft.PeftModel, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Gradients at EVA's start; results, gradients and merged weights behind it."""
    model = model.double()
    layers = {name: getattr(model.base_model.model, name) for name in SPREADS}
    factors = {
        f"{name}/{short}": getattr(layer, f"lora_{short.upper()}")["default"].weight
        for name, layer in layers.items()
        for short in "ab"
    }
    own = {f"{n}/w": layer.base_layer.weight for n, layer in layers.items()}
    own |= {f"{n}/bias": layer.base_layer.bias for n, layer in layers.items()}
    arrays = {n: p.detach().numpy().copy() for n, p in own.items()}
    x = x.double().requires_grad_()
    g = torch.randn_like(model(x))
    (model(x) * g).sum().backward()
    arrays |= {f"{n}/start_grad_b": factors[f"{n}/b"].grad.numpy() for n in SPREADS}
    with torch.no_grad():
        for name in SPREADS:
            factors[f"{name}/b"] += 0.4 * torch.randn_like(factors[f"{name}/b"])
    model.zero_grad()
    x.grad = None
    y = model(x)
    (y * g).sum().backward()
    arrays |= {"g": g.numpy(), "y": y.detach().numpy(), "grad_x": x.grad.numpy()}
    arrays |= {f"{n}/b": factors[f"{n}/b"].detach().numpy() for n in SPREADS}
    for name, factor in factors.items():
        arrays[name.replace("/", "/grad_")] = factor.grad.numpy()
    arrays = {n: v.copy() for n, v in arrays.items()}
    merged = model.merge_and_unload()
    for name in SPREADS:
        arrays[f"{name}/merged"] = getattr(merged, name).weight.detach().numpy()
    return arrays


def main() -> None:
    """PEFT centres what it sees, so the inputs have a mean of zero."""
    torch.manual_seed(0)
    spread = torch.tensor(sum(SPREADS.values(), ()))
    x = torch.randn(ROWS, spread.numel()) * spread
    x = x - x.mean(dim=0, keepdim=True)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(SPREADS),
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0),
    )
    model = peft.get_peft_model(Net(), config)
    peft.initialize_lora_eva_weights(
        model,
        dataloader=[x],
        forward_fn=lambda net, batch: net(batch),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    arrays = {"x": x.numpy()}
    for name in SPREADS:
        layer = getattr(model.base_model.model, name)
        arrays[f"{name}/a"] = layer.lora_A["default"].weight.detach().numpy()
        arrays[f"{name}/scale"] = np.float64(layer.scaling["default"])
    arrays |= started(model, x)
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_eva.py: "
        f"LoraConfig(r={RANK}, lora_alpha={ALPHA}, eva_config=EvaConfig(rho=2)) on "
        "Linear(6, 5) and Linear(5, 4), seed 0; layout of torch, [rank, in]"
    )
    np.savez(Path(__file__).with_name("eva.npz"), **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
