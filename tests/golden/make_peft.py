"""Write `peft/`: adapters as PEFT saves them, with their bases and merged weights.

Needs torch 2.13.0, transformers 5.24.0 and peft 0.21.2, which the tests that read
these files do without. Run from the root: `python tests/golden/make_peft.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers

FOLDER = Path(__file__).with_name("peft")
TINY = {"vocab_size": 11, "num_attention_heads": 2}


class Case(NamedTuple):
    """A base model, what PEFT adapts of it, and an input."""

    build: Callable[[], torch.nn.Module]
    config: dict[str, Any]
    image: bool = False


def bert() -> torch.nn.Module:
    """A classifier on a BERT encoder."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 6}
    config = transformers.BertConfig(**TINY, **sizes, num_hidden_layers=1, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def gpt2() -> torch.nn.Module:
    """A GPT-2 whose projections are Conv1D, kernels of [in, out]."""
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, n_inner=12
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> torch.nn.Module:
    """A Llama with fewer key heads than query heads."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        **TINY, **sizes, num_hidden_layers=1, max_position_embeddings=6, pad_token_id=0
    )
    return transformers.LlamaForCausalLM(config)


def convolutions() -> torch.nn.Module:
    """Two convolutions and a head."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 5, 3),
        torch.nn.Conv2d(5, 4, (2, 1)),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 3),
    )


CASES = {
    "bert": Case(
        bert,
        {
            "task_type": "SEQ_CLS",
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["query", "value", "word_embeddings"],
            "rank_pattern": {"layer.0.attention.self.query": 3},
            "alpha_pattern": {r".*\.value": 5},
            "use_rslora": True,
        },
    ),
    "gpt2": Case(
        gpt2,
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["c_attn", "attn.c_proj"],
            "fan_in_fan_out": True,
            "bias": "all",
        },
    ),
    "llama": Case(
        llama,
        {
            "r": 2,
            "target_modules": r"(.*\.)?(embed_tokens|k_proj)",
            "use_dora": True,
        },
    ),
    "all_linear": Case(bert, {"r": 2, "target_modules": "all-linear"}),
    "conv": Case(
        convolutions,
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["0"],
            "use_dora": True,
        },
        image=True,
    ),
}


def moved(model: torch.nn.Module, trained_only: bool) -> torch.nn.Module:
    """The model with its numbers moved off their init, so that none are alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not trained_only:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def main() -> None:
    """Train by chance, save, merge; store weights and outputs by torch name."""
    for seed, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        base = moved(case.build().eval(), trained_only=False)
        arrays = {f"base:{k}": v.numpy().copy() for k, v in base.state_dict().items()}
        model = peft.get_peft_model(base, peft.LoraConfig(**case.config))
        model = moved(model, trained_only=True).eval()
        folder = FOLDER / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        x = torch.randn(2, 2, 6, 3) if case.image else torch.randint(0, 11, (2, 5))
        with torch.no_grad():
            y = model(x)
        arrays |= {"x": x.numpy(), "y": getattr(y, "logits", y).numpy()}
        merged = model.merge_and_unload().state_dict()
        arrays |= {
            f"merged:{k}": v.numpy()
            for k, v in merged.items()
            if not np.array_equal(v.numpy(), arrays[f"base:{k}"])
        }
        config = json.dumps(case.config, sort_keys=True)
        provenance = (
            f"peft {peft.__version__}, torch {torch.__version__}, transformers "
            f"{transformers.__version__}, make_peft.py: LoraConfig of {config}, "
            f"seed {seed}; layout of torch"
        )
        np.savez_compressed(folder / "arrays.npz", **arrays, provenance=provenance)


if __name__ == "__main__":
    main()
