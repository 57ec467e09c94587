"""The layouts of public checkpoints: what `config.json` says, how keys are named."""

import dataclasses
from typing import Any

from lowrank._files import shortened
from lowrank.models._bert import Bert
from lowrank.models._bert_config import BertConfig
from lowrank.models._checkpoint import Layout
from lowrank.models._config import is_number
from lowrank.models._gpt2 import GPT2, GPT2Config
from lowrank.models._llama import Llama
from lowrank.models._llama_config import LlamaConfig
from lowrank.models._roberta import Roberta, RobertaConfig
from lowrank.models._rope import RopeScaling
from lowrank.models._vit import ViT, ViTConfig

_WIDTHS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
_ENCODER_SIZES = (*_WIDTHS, "vocab_size", "max_position_embeddings", "type_vocab_size")
_ENCODER: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
# A buffer 0, 1, 2, ... that older writers store: it is no parameter.
_POSITION_IDS = r"^embeddings\.position_ids$"

BERT = Layout(
    kind="BERT encoder",
    model=Bert,
    config=BertConfig,
    required=_ENCODER_SIZES,
    supported={"model_type": ("bert",), **_ENCODER},
    written=lambda _: {"architectures": ["BertModel"]},
    prefix="bert.",
    buffers=_POSITION_IDS,
)


def _wrong(name: str, expected: str, value: Any) -> str:
    """A complaint about an entry."""
    return f"'{name}': expected {expected}, got {shortened(repr(value))}"


def _architectures(raw: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The names of the architectures; what is no list of them is complained of."""
    names = raw.get("architectures") or []
    if isinstance(names, list):
        return names, []
    return [], [_wrong("architectures", "a list of names", names)]


def _pooler(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Whether the architecture is one with a pooler: the bare model."""
    names, wrong = _architectures(raw)
    return {"pooler": not names or "RobertaModel" in names}, wrong


ROBERTA = Layout(
    kind="RoBERTa encoder",
    model=Roberta,
    config=RobertaConfig,
    required=_ENCODER_SIZES,
    supported={"model_type": ("roberta",), **_ENCODER},
    extra=_pooler,
    written=lambda config: {
        "architectures": ["RobertaModel" if config.pooler else "RobertaForMaskedLM"]
    },
    prefix="roberta.",
    unwritten=("pooler",),
    written_prefix=lambda config: "" if config.pooler else "roberta.",
    buffers=_POSITION_IDS,
)


def _llama(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rotary embeddings in their two spellings, and which products have biases."""
    place = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope, wrong, scaling = raw.get(place) or {}, [], None
    if not isinstance(rope, dict):
        rope, wrong = {}, [_wrong(place, "an object", rope)]
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not is_number(theta):
        theta, wrong = 1.0, [*wrong, _wrong("rope_theta", "a number", theta)]
    stated = {
        field.name: rope[field.name]
        for field in dataclasses.fields(RopeScaling)
        if field.name in rope
    }
    needed = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {field.name for field in dataclasses.fields(RopeScaling)},
    }
    whole = {"original_max_position_embeddings": int}
    odd = [
        _wrong(name, "a number", value)
        for name, value in stated.items()
        if not (is_number(value) and isinstance(value, whole.get(name, int | float)))
    ]
    wrong += odd
    known = isinstance(kind, str) and kind in needed
    if not known or not needed[kind] <= stated.keys():
        expected = f"one of {sorted(needed)} with its factors"
        wrong.append(_wrong("rope_type", expected, rope))
    elif kind != "default" and not odd:
        own: dict[str, Any] = {
            name: whole.get(name, float)(stated[name]) for name in needed[kind]
        }
        scaling = RopeScaling(**own)
    # Qwen2 does not state its biases: queries, keys and values always have them.
    qwen = raw.get("model_type") == "qwen2"
    bias = bool(raw.get("attention_bias", False))
    found = {
        "rope_theta": float(theta),
        "rope_scaling": scaling,
        "attention_bias": bias or qwen,
        "attention_output_bias": bias and not qwen,
    }
    return found, wrong


def _written_llama(config: LlamaConfig) -> dict[str, Any]:
    """The older spelling, which all readers know."""
    qwen = config.attention_bias and not config.attention_output_bias
    scaling = config.rope_scaling
    rope: dict[str, Any] | None = None
    if scaling is not None:
        rope = {"rope_type": "linear", "factor": scaling.factor}
        if scaling.high_freq_factor < float("inf"):
            rope = {"rope_type": "llama3", **dataclasses.asdict(scaling)}
    # Qwen2's readers take the width by the heads where it is absent, but not at null.
    size = {} if config.head_dim is None else {"head_dim": config.head_dim}
    return {
        **size,
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "num_key_value_heads": config.key_value_heads,
        "attention_bias": config.attention_output_bias,
        "rope_scaling": rope,
    }


LLAMA = Layout(
    kind="Llama or Qwen2 decoder",
    model=Llama,
    config=LlamaConfig,
    required=(*_WIDTHS, "vocab_size", "max_position_embeddings", "rms_norm_eps"),
    supported={
        "model_type": ("llama", "qwen2"),
        "hidden_act": ("silu",),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "quantization_config": (None,),
    },
    extra=_llama,
    written=_written_llama,
    unwritten=("attention_output_bias", "head_dim"),
    # Rotary frequencies that older writers store.
    buffers=r"\.rotary_emb\.inv_freq$",
    layers="model/layers",
)

GPT_2 = Layout(
    kind="GPT-2 decoder",
    model=GPT2,
    config=GPT2Config,
    required=("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
    supported={
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    written=lambda _: {"architectures": ["GPT2LMHeadModel"]},
    prefix="transformer.",
    written_prefix=lambda _: "transformer.",
    # The causal mask and the number put at its zeros.
    buffers=r"^h\.\d+\.attn\.(bias|masked_bias)$",
    transposed=False,
    layers="h",
)


def _labels(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """As many outputs as labels, where the architecture is a classifier."""
    names, wrong = _architectures(raw)
    classifies = "ViTForImageClassification" in names
    # Without labels in the file there are two, which writers leave out.
    labels = raw.get("id2label") or {"0": "", "1": ""}
    if not isinstance(labels, dict | list):
        labels, wrong = {}, [*wrong, _wrong("id2label", "an object", labels)]
    count = raw.get("num_labels", len(labels))
    if type(count) is not int:
        count, wrong = 0, [*wrong, _wrong("num_labels", "a number", count)]
    return {"num_labels": count if classifies else 0}, wrong


def _written_vit(config: ViTConfig) -> dict[str, Any]:
    """The labels, if there are any."""
    if not config.num_labels:
        return {"architectures": ["ViTModel"]}
    labels = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
    return {"architectures": ["ViTForImageClassification"], "id2label": labels}


VIT = Layout(
    kind="vision transformer",
    model=ViT,
    config=ViTConfig,
    required=(*_WIDTHS, "image_size", "patch_size", "num_channels"),
    supported={
        "model_type": ("vit",),
        "hidden_act": ("gelu", "gelu_python"),
        "qkv_bias": (True,),
    },
    extra=_labels,
    written=_written_vit,
    unwritten=("num_labels",),
    prefix="vit.",
    written_prefix=lambda config: "vit." if config.num_labels else "",
    heads=("classifier",),
)

LAYOUTS = (BERT, ROBERTA, LLAMA, GPT_2, VIT)
