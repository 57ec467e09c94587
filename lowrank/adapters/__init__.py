"""Adapters: transforms that add trained parts to frozen weights."""

from lowrank.adapters._bottleneck import bottleneck
from lowrank.adapters._dora import dora, magnitude
from lowrank.adapters._full import full
from lowrank.adapters._gated import gated, learn_scale
from lowrank.adapters._hydra import hydra
from lowrank.adapters._lora import lora
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_controls import random_mask, score_mask
from lowrank.adapters._lori_mask import lori_mask
from lowrank.adapters._lori_recipe import TwoStage, lori_two_stage
from lowrank.adapters._mtl_lora import mtl_lora
from lowrank.adapters._parallel import parallel
from lowrank.adapters._prefix import prefix, prefix_mlp
from lowrank.adapters._prompt import prompt

__all__ = [
    "TwoStage",
    "bottleneck",
    "dora",
    "full",
    "gated",
    "hydra",
    "learn_scale",
    "lora",
    "lori",
    "lori_mask",
    "lori_two_stage",
    "magnitude",
    "mtl_lora",
    "parallel",
    "prefix",
    "prefix_mlp",
    "prompt",
    "random_mask",
    "score_mask",
]
