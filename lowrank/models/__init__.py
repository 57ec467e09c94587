"""Reference models in Flax nnx whose parameter names mirror public checkpoints.

Needs `pip install lowrank[models]`.
"""

from lowrank.models._bert import Bert, mean_pool
from lowrank.models._bert_config import BertConfig
from lowrank.models._chat import load_chat_template, render_chat
from lowrank.models._efficientnet import EfficientNet
from lowrank.models._efficientnet_config import EfficientNetConfig, Stage
from lowrank.models._functional import functional
from lowrank.models._generate import Generated, generate
from lowrank.models._gguf_llama import (
    gguf_metadata,
    load_gguf,
    load_gguf_tokenizer,
)
from lowrank.models._gpt2 import GPT2, GPT2Config
from lowrank.models._lenet import LeNet5
from lowrank.models._llama import Llama
from lowrank.models._llama_config import LlamaConfig
from lowrank.models._load import (
    load,
    load_bert,
    load_gpt2,
    load_llama,
    load_roberta,
    load_vit,
)
from lowrank.models._load_efficientnet import efficientnet_from_torch
from lowrank.models._m5 import M5, M5Config
from lowrank.models._mlp import MLP
from lowrank.models._neumf import NeuMF, NeuMFConfig
from lowrank.models._recurrent import GRU, LSTM, RecurrentConfig
from lowrank.models._roberta import Roberta, RobertaConfig
from lowrank.models._rope import RopeScaling
from lowrank.models._save import save, save_bert
from lowrank.models._stack import stack_layers, unstack_layers
from lowrank.models._tokenizer import encode, load_tokenizer
from lowrank.models._vit import ViT, ViTConfig

__all__ = [
    "GPT2",
    "GRU",
    "LSTM",
    "M5",
    "MLP",
    "Bert",
    "BertConfig",
    "EfficientNet",
    "EfficientNetConfig",
    "GPT2Config",
    "Generated",
    "LeNet5",
    "Llama",
    "LlamaConfig",
    "M5Config",
    "NeuMF",
    "NeuMFConfig",
    "RecurrentConfig",
    "Roberta",
    "RobertaConfig",
    "RopeScaling",
    "Stage",
    "ViT",
    "ViTConfig",
    "efficientnet_from_torch",
    "encode",
    "functional",
    "generate",
    "gguf_metadata",
    "load",
    "load_bert",
    "load_chat_template",
    "load_gguf",
    "load_gguf_tokenizer",
    "load_gpt2",
    "load_llama",
    "load_roberta",
    "load_tokenizer",
    "load_vit",
    "mean_pool",
    "render_chat",
    "save",
    "save_bert",
    "stack_layers",
    "unstack_layers",
]
