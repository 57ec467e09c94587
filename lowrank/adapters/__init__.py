"""Adapters: transforms that add trainable terms to frozen weights."""

from lowrank.adapters._dora import dora, magnitude
from lowrank.adapters._fact import fact_tk, fact_tt
from lowrank.adapters._full import full
from lowrank.adapters._hydra import hydra
from lowrank.adapters._lora import lora
from lowrank.adapters._loretta import loretta
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_controls import random_mask, score_mask
from lowrank.adapters._lori_mask import lori_mask
from lowrank.adapters._lori_recipe import TwoStage, lori_two_stage
from lowrank.adapters._lorta import lorta
from lowrank.adapters._metatt import metatt
from lowrank.adapters._mtl_lora import mtl_lora

__all__ = [
    "TwoStage",
    "dora",
    "fact_tk",
    "fact_tt",
    "full",
    "hydra",
    "lora",
    "loretta",
    "lori",
    "lori_mask",
    "lori_two_stage",
    "lorta",
    "magnitude",
    "metatt",
    "mtl_lora",
    "random_mask",
    "score_mask",
]
