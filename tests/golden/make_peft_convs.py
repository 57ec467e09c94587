"""Write `peft_convs.npz`: convolutions under PEFT's methods, with their gradients.

Needs torch 2.13.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_peft_convs.py`. Names
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


def cases() -> dict[str, tuple[nn.Module, peft.PeftConfig, torch.Tensor]]:
    """A base layer, a configuration and an input for each case."""
    own, alpha = {"target_modules": ["0"]}, make_peft_layers.ALPHA
    form = {"kernel_size": 3, "stride": 2, "padding": 1}
    image, wide = torch.randn(2, 4, 5, 5), torch.randn(2, 10, 5, 5)
    dora = peft.LoraConfig(r=2, lora_alpha=alpha, use_dora=True, **own)
    lokr = peft.LoKrConfig(r=2, alpha=alpha, **own)
    outputs = peft.IA3Config(feedforward_modules=[], **own)
    inputs = peft.IA3Config(feedforward_modules=["0"], **own)
    return {
        "conv_loha": (
            nn.Conv2d(4, 6, **form),
            peft.LoHaConfig(r=2, alpha=alpha, **own),
            image,
        ),
        "conv_lokr": (nn.Conv2d(10, 12, **form), lokr, wide),
        "conv_dora": (nn.Conv2d(4, 6, **form), dora, image),
        "conv_outputs": (nn.Conv2d(4, 6, bias=False, **form), outputs, image),
        "conv_inputs": (nn.Conv2d(4, 6, **form), inputs, image),
    }


def main() -> None:
    """Run all cases and store what went in and out."""
    torch.manual_seed(0)
    arrays: dict = {}
    for name, case in cases().items():
        arrays |= make_peft_layers.run(name, *case)
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_peft_convs.py: "
        "one convolution for each method in float64, seed 0; layouts of torch"
    )
    path = Path(__file__).with_name("peft_convs.npz")
    np.savez_compressed(path, **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
