"""Adapters: transforms that add trainable terms to frozen weights."""

from lowrank.adapters._adalora import adalora, adalora_penalty
from lowrank.adapters._adalora_budget import (
    Importance,
    adalora_budget,
    adalora_freeze,
    adalora_importance,
    adalora_mask,
    adalora_prune,
)
from lowrank.adapters._dora import dora, magnitude
from lowrank.adapters._eva import eva
from lowrank.adapters._full import full
from lowrank.adapters._hydra import hydra
from lowrank.adapters._ia3 import ia3, rescale_inputs, rescale_outputs
from lowrank.adapters._initializers import gaussian, orthogonal_a, orthogonal_b
from lowrank.adapters._lora import lora
from lowrank.adapters._lora_xs import lora_xs
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_controls import random_mask, score_mask
from lowrank.adapters._lori_mask import lori_mask
from lowrank.adapters._lori_recipe import TwoStage, lori_two_stage
from lowrank.adapters._mtl_lora import mtl_lora
from lowrank.adapters._olora import olora
from lowrank.adapters._pissa import pissa
from lowrank.adapters._vera import vera

__all__ = [
    "Importance",
    "TwoStage",
    "adalora",
    "adalora_budget",
    "adalora_freeze",
    "adalora_importance",
    "adalora_mask",
    "adalora_penalty",
    "adalora_prune",
    "dora",
    "eva",
    "full",
    "gaussian",
    "hydra",
    "ia3",
    "lora",
    "lora_xs",
    "lori",
    "lori_mask",
    "lori_two_stage",
    "magnitude",
    "mtl_lora",
    "olora",
    "orthogonal_a",
    "orthogonal_b",
    "pissa",
    "random_mask",
    "rescale_inputs",
    "rescale_outputs",
    "score_mask",
    "vera",
]
