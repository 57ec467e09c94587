"""Write `prompts.npz`: a tiny BERT with a soft prompt, and with prefixes, in PEFT.

Needs torch 2.13.0, transformers 5.24.0 and peft 0.21.2, which the tests do without:
they read the arrays. Run from the root of the repository:
`python tests/golden/make_prompts.py`.
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
}
LENGTH = 3
IDS = [[1, 2, 3, 4], [5, 6, 0, 0]]
MASK = [[1, 1, 1, 1], [1, 1, 0, 0]]


def bert() -> torch.nn.Module:
    """The encoder, without dropout, all its numbers moved off their init."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **SIZES,
        layer_norm_eps=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def run(config: peft.PeftConfig) -> dict[str, np.ndarray]:
    """What PEFT trains, what the encoder gives, and the gradient."""
    model = peft.get_peft_model(bert(), config)
    own = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        own += 0.5 * torch.randn(own.shape, generator=torch.manual_seed(1))
    ids, mask = torch.tensor(IDS), torch.tensor(MASK)
    out = model(input_ids=ids, attention_mask=mask)  # PEFT ignores token types
    hidden = out.last_hidden_state[:, -ids.shape[1] :]
    torch.sin(hidden[:, :2]).sum().backward()
    arrays = {"rows": own, "hidden": hidden, "grad": own.grad}
    return {name: value.detach().numpy().copy() for name, value in arrays.items()}


def main() -> None:
    """Store the encoder, and both methods."""
    task = peft.TaskType.FEATURE_EXTRACTION
    configs = {
        "prompt": peft.PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH),
        "prefix": peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=LENGTH),
    }
    weights = {name: p.detach().numpy() for name, p in bert().named_parameters()}
    arrays = {f"bert.{name}": value for name, value in weights.items()}
    for name, config in configs.items():
        arrays |= {f"{name}.{k}": value for k, value in run(config).items()}
    arrays |= {"ids": np.array(IDS), "mask": np.array(MASK)}
    provenance = (
        f"peft {peft.__version__}, transformers {transformers.__version__}, torch "
        f"{torch.__version__}, make_prompts.py: PromptTuningConfig and "
        f"PrefixTuningConfig, {LENGTH} virtual tokens, on BertModel({SIZES}), float32, "
        "seed 0; hidden: last states of the tokens; grad: of sum sin of the first two; "
        "prefix.rows: [token, layer, key or value, width]"
    )
    np.savez_compressed(
        Path(__file__).with_name("prompts.npz"), **arrays, provenance=provenance
    )


if __name__ == "__main__":
    main()
