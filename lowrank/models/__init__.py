"""Reference models in Flax nnx whose parameter names mirror public checkpoints.

Needs `pip install lowrank[models]`.
"""

from lowrank.models._bert import Bert, mean_pool
from lowrank.models._bert_config import BertConfig
from lowrank.models._checkpoint import load_bert, save_bert
from lowrank.models._functional import functional
from lowrank.models._lenet import LeNet5
from lowrank.models._mlp import MLP
from lowrank.models._tokenizer import encode, load_tokenizer

__all__ = [
    "MLP",
    "Bert",
    "BertConfig",
    "LeNet5",
    "encode",
    "functional",
    "load_bert",
    "load_tokenizer",
    "mean_pool",
    "save_bert",
]
