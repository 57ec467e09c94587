"""Write `prompts_decoders.npz`: tiny decoders with prompts and prefixes, in PEFT.

The decoders are those of `models_gpt2.npz` and `models_llama.npz`. Needs torch 2.13.0,
transformers 5.24.0 and peft 0.21.2, which the tests do without: they read the arrays.
Run from the root of the repository: `python tests/golden/make_prompts_decoders.py`.
"""

import json
from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf

LENGTH = 3
KINDS = {"gpt2": hf.GPT2LMHeadModel, "llama": hf.LlamaForCausalLM}


def decoder(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The decoder, and all that its file holds."""
    with np.load(Path(__file__).with_name(f"models_{name}.npz")) as file:
        stored = dict(file)
    kind = KINDS[name]
    config = kind.config_class.from_dict(json.loads(str(stored["config"])))
    config._attn_implementation = "eager"
    model = kind(config)
    numbers = {k: torch.tensor(x) for k, x in stored.items() if x.dtype.kind in "fi"}
    known = model.state_dict()
    weights = {k: x for k, x in numbers.items() if k in known}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval(), numbers


def run(name: str, config: peft.PeftConfig) -> dict[str, np.ndarray]:
    """What PEFT trains, the logits of the tokens, and a gradient."""
    plain, numbers = decoder(name)
    model = peft.get_peft_model(plain, config).eval()
    own = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        own += 0.5 * torch.randn(own.shape, generator=torch.manual_seed(1))
    ids, mask = numbers["in_ids"], numbers["in_mask"]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
    torch.sin(logits[:, :3]).sum().backward()
    arrays = {"rows": own, "logits": logits, "grad": own.grad}
    return {key: value.detach().numpy().copy() for key, value in arrays.items()}


def main() -> None:
    """Store both methods for both decoders."""
    task, arrays = peft.TaskType.CAUSAL_LM, {}
    for name in KINDS:
        for method, make in (
            ("prompt", peft.PromptTuningConfig),
            ("prefix", peft.PrefixTuningConfig),
        ):
            own = run(name, make(task_type=task, num_virtual_tokens=LENGTH))
            arrays |= {f"{name}.{method}.{key}": value for key, value in own.items()}
    provenance = (
        f"peft {peft.__version__}, transformers {hf.__version__}, torch "
        f"{torch.__version__}, make_prompts_decoders.py: PromptTuningConfig and "
        f"PrefixTuningConfig, {LENGTH} virtual tokens, on the decoders and inputs of "
        "models_gpt2.npz and models_llama.npz, float32; logits: of the tokens; "
        "grad: of sum sin of the first three tokens' logits; "
        "prefix.rows: [token, layer, key or value, heads, channels]"
    )
    np.savez_compressed(
        Path(__file__).with_name("prompts_decoders.npz"),
        **arrays,
        provenance=provenance,
    )


if __name__ == "__main__":
    main()
