"""Write `smollm2.npz`: what `transformers` says of a text with SmolLM2's 4-bit weights.

The weights are decoded by the `gguf` package. Needs torch 2.13.0, transformers 5.24.0
and gguf 0.19.0, which the tests do without: they read the arrays.
Run from the root of the repository, with the path of the file:
`python tests/golden/make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf`.
"""

import re
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as hf

from lowrank.models import load_gguf_tokenizer

TEXT = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp. "
    "In winter, when storms rolled in from the north, he would stay awake all night, "
    "listening to the waves and writing letters to his daughter, who had left the "
    "island in 1984."
)
HEADS = {"attn_q": 9, "attn_k": 3}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def model(file: str) -> hf.LlamaForCausalLM:
    """The model of the file, its weights decoded to float32."""
    weights = {}
    for tensor in gguf.GGUFReader(file).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        w = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        layer, name = re.fullmatch(
            r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name
        ).groups()
        if heads := HEADS.get(name):
            w = w.reshape(heads, shape[0] // heads // 2, 2, shape[1])
            w = w.swapaxes(1, 2).reshape(shape)
        prefix = "" if layer is None else f"model.layers.{layer}."
        weights[f"{prefix}{NAMES[name]}.weight"] = torch.tensor(np.array(w))
    config = hf.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    out = hf.LlamaForCausalLM(config)
    missing, unexpected = out.load_state_dict(weights, strict=False)
    if missing != ["lm_head.weight"] or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    out.tie_weights()
    return out.eval()


def main(file: str) -> None:
    """Store the text, its ids and the negative log-likelihood of each but the first."""
    ids = load_gguf_tokenizer(file).encode(TEXT).ids
    with torch.no_grad():
        logits = model(file)(torch.tensor([ids])).logits[0]
    nll = torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(ids[1:]), reduction="none"
    ).numpy()
    provenance = (
        f"transformers {hf.__version__}, torch {torch.__version__}, gguf 0.19.0, "
        "make_smollm2.py: LlamaForCausalLM in float32"
    )
    path = Path(__file__).with_name("smollm2.npz")
    np.savez_compressed(path, text=TEXT, ids=ids, nll=nll, provenance=provenance)


if __name__ == "__main__":
    main(sys.argv[1])
