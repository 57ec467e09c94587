"""Makes `merging_linear.npz` by PEFT: `python -m tests.golden.make_merging_linear`.

Needs `torch` and `peft`; the tests need only the stored file.
"""

from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("merging_linear.npz")
SIZES = {"first": (6, 5), "second": (5, 4)}
ALPHAS = {"one": 3, "two": 4, "three": 2}
RANK, NEW_RANK = 2, 3
WEIGHTS = {"plain": (0.7, 0.4, 1.2), "negative": (0.7, -0.4, 1.2)}
KINDS = ("cat", "linear", "svd")


def adapters() -> Any:
    """Two layers with three trained adapters of one rank, each with its own alpha."""
    import peft
    import torch

    torch.manual_seed(0)
    layers = {name: torch.nn.Linear(*s, bias=False) for name, s in SIZES.items()}
    model = torch.nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    for number, (name, alpha) in enumerate(ALPHAS.items()):
        config = peft.LoraConfig(r=RANK, lora_alpha=alpha, target_modules=list(SIZES))
        if number == 0:
            model = peft.get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model


def layer_of(model: Any, name: str) -> Any:
    return getattr(model.base_model.model, name)


def arrays(layer: Any, adapter: str) -> dict[str, np.ndarray]:
    """Factors in PEFT's layout, `a: [r, in]` and `b: [out, r]`, and their scale."""
    return {
        "a": layer.lora_A[adapter].weight.detach().numpy(),
        "b": layer.lora_B[adapter].weight.detach().numpy(),
        "scale": np.float32(layer.scaling[adapter]),
    }


def main() -> None:
    import peft
    import torch

    model = adapters()
    stored = {}
    for name in SIZES:
        layer = layer_of(model, name)
        stored[f"{name}/base"] = layer.base_layer.weight.detach().numpy()
        for adapter in ALPHAS:
            for field, value in arrays(layer, adapter).items():
                stored[f"{name}/{adapter}/{field}"] = value
    for case, weights in WEIGHTS.items():
        stored[f"weights/{case}"] = np.array(weights, np.float32)
        for kind in KINDS:
            new = f"{kind}_{case}"
            options = {"svd_rank": NEW_RANK} if kind == "svd" else {}
            model.add_weighted_adapter(
                list(ALPHAS), list(weights), new, combination_type=kind, **options
            )
            for name in SIZES:
                for field, value in arrays(layer_of(model, name), new).items():
                    stored[f"{name}/{new}/{field}"] = value
    versions = f"peft {peft.__version__}, torch {torch.__version__}"
    stored["provenance"] = np.array(
        f"{versions}: add_weighted_adapter of {', '.join(KINDS)}, svd_rank {NEW_RANK}; "
        "made by tests/golden/make_merging_linear.py, torch.manual_seed(0)"
    )
    np.savez(FILE, **stored)


if __name__ == "__main__":
    main()
