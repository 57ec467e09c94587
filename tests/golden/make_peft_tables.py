"""Write `peft_tables.npz`: PEFT's LoRA of an embedding, and its LayerNorm tuning.

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


def main() -> None:
    """Run both cases and store what went in and out."""
    torch.manual_seed(0)
    own = {"target_modules": ["0"]}
    lora = peft.LoraConfig(r=2, lora_alpha=make_peft_layers.ALPHA, **own)
    tokens = torch.tensor([0, 1, 4, 4, 5])
    norm = nn.LayerNorm(6), peft.LNTuningConfig(**own), torch.randn(7, 6)
    cases = {"embedding": (nn.Embedding(6, 4), lora, tokens), "norm": norm}
    arrays: dict = {}
    for name, case in cases.items():
        arrays |= make_peft_layers.run(name, *case)
    provenance = (
        f"peft {peft.__version__}, torch {torch.__version__}, make_peft_tables.py: "
        "one layer for each method in float64, seed 0; layouts of torch"
    )
    path = Path(__file__).with_name("peft_tables.npz")
    np.savez_compressed(path, **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
