"""Training: many adapters at once over one frozen base."""

from lowrank.training._evaluate import evaluator
from lowrank.training._fit import Fitted, fit
from lowrank.training._loss_scale import LossScale, Scale
from lowrank.training._optimizers import leaf_names, lora_fa, lora_plus
from lowrank.training._report import Callback, Checkpoint, JsonLines, Report, means
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
    "fit",
    "leaf_names",
    "lora_fa",
    "lora_plus",
    "means",
    "step",
]
