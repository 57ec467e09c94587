"""Write `models_*.npz`: tiny language and vision models as `transformers` runs them.

Each file holds the tensors under their keys of the checkpoint, `config` (its
config.json), the inputs `in_*` and the outputs `out_*`. Needs torch 2.13.0 and
transformers 5.24.0, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_models.py`.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file

IDS = [[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
DECODER = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-2,
    "initializer_range": 0.4,
}
ENCODER = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-2,
    "initializer_range": 0.4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 8,
}


def models() -> dict[str, hf.PreTrainedModel]:
    """The models, with all their options in use."""
    gpt2 = hf.GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        layer_norm_epsilon=1e-2,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    roberta = hf.RobertaConfig(
        vocab_size=11,
        max_position_embeddings=9,
        type_vocab_size=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **ENCODER,
    )
    vit = hf.ViTConfig(image_size=4, patch_size=2, num_labels=3, **ENCODER)
    linear = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
    # Heads that do not fill the width, biases everywhere, an untied head.
    wide = {"attention_bias": True, "head_dim": 6, "rope_parameters": LLAMA3}
    tied = {"tie_word_embeddings": True, "rope_parameters": linear}
    return {
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, **wide)),
        "qwen2": hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER, **tied)),
        "gpt2": hf.GPT2LMHeadModel(gpt2),
        "roberta": hf.RobertaModel(roberta),
        "vit": hf.ViTForImageClassification(vit),
    }


def run_text(model: hf.PreTrainedModel) -> dict[str, np.ndarray]:
    """Logits, or hidden states and pooled ones, of padded ids."""
    ids, mask = torch.tensor(IDS), torch.tensor(MASK)
    out = model(input_ids=ids, attention_mask=mask)
    arrays = {"in_ids": ids.numpy(), "in_mask": mask.numpy()}
    if "logits" in out:
        return arrays | {"out_logits": out.logits.numpy()}
    hidden, pooled = out.last_hidden_state.numpy(), out.pooler_output.numpy()
    return arrays | {"out_hidden": hidden, "out_pooled": pooled}


def run_decoder(model: hf.PreTrainedModel) -> dict[str, np.ndarray]:
    """Logits, and the greedy continuation of each row alone."""
    rows = [row[: sum(kept)] for row, kept in zip(IDS, MASK, strict=True)]
    new = [
        model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            max_new_tokens=3,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(row) :].numpy()
        for row in rows
    ]
    return run_text(model) | {"out_greedy": np.stack(new)}


def run_vit(model: hf.PreTrainedModel) -> dict[str, np.ndarray]:
    """Logits and hidden states of images, channels first."""
    images = torch.randn(2, 3, 4, 4)
    logits = model(images).logits.numpy()
    hidden = model.vit(images).last_hidden_state.numpy()
    return {"in_images": images.numpy(), "out_logits": logits, "out_hidden": hidden}


RUNS: dict[str, Callable[[hf.PreTrainedModel], dict[str, np.ndarray]]] = {
    "roberta": run_text,
    "vit": run_vit,
}


def main() -> None:
    """Move all parameters off their init, run and store each model."""
    torch.manual_seed(0)
    for name, model in models().items():
        model.eval()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
            arrays = RUNS.get(name, run_decoder)(model)
            model.save_pretrained(folder)
            arrays |= load_file(f"{folder}/model.safetensors")
            config = json.loads(Path(folder, "config.json").read_text())
        provenance = (
            f"transformers {hf.__version__}, torch {torch.__version__}, "
            f"make_models.py: {type(model).__name__} in float32, seed 0"
        )
        path = Path(__file__).with_name(f"models_{name}.npz")
        np.savez_compressed(
            path, config=json.dumps(config), provenance=provenance, **arrays
        )


if __name__ == "__main__":
    main()
