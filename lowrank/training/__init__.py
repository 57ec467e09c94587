"""Training: many adapters at once over one frozen base, devices, hosts, checkpoints.

Needs `pip install lowrank[training]`.
"""

from lowrank.training._checkpoint import Checkpoint
from lowrank.training._evaluate import evaluator
from lowrank.training._fingerprint import fingerprint
from lowrank.training._fit import Fitted, fit
from lowrank.training._gather import gather
from lowrank.training._loss_scale import LossScale, Scale
from lowrank.training._optimizers import leaf_names, lora_fa, lora_plus
from lowrank.training._report import Callback, JsonLines, Report, means
from lowrank.training._shard import fsdp, shard, state_shardings, tensor_parallel
from lowrank.training._step import Carry, Given, Step, step

__all__ = [
    "Callback",
    "Carry",
    "Checkpoint",
    "Fitted",
    "Given",
    "JsonLines",
    "LossScale",
    "Report",
    "Scale",
    "Step",
    "evaluator",
    "fingerprint",
    "fit",
    "fsdp",
    "gather",
    "leaf_names",
    "lora_fa",
    "lora_plus",
    "means",
    "shard",
    "state_shardings",
    "step",
    "tensor_parallel",
]
