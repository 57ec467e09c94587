"""Adapters: transforms that add trainable terms to frozen weights."""

from lowrank.adapters._conv_lora import locon_tucker, loralib_conv
from lowrank.adapters._dora import dora, magnitude
from lowrank.adapters._fourierft import fourierft
from lowrank.adapters._full import full
from lowrank.adapters._hira import hira
from lowrank.adapters._hydra import hydra
from lowrank.adapters._loha import loha
from lowrank.adapters._lokr import lokr
from lowrank.adapters._lora import lora
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_controls import random_mask, score_mask
from lowrank.adapters._lori_mask import lori_mask
from lowrank.adapters._lori_recipe import TwoStage, lori_two_stage
from lowrank.adapters._mtl_lora import mtl_lora
from lowrank.adapters._randlora import randlora
from lowrank.adapters._shira import shira
from lowrank.adapters._trainable_tokens import trainable_tokens

__all__ = [
    "TwoStage",
    "dora",
    "fourierft",
    "full",
    "hira",
    "hydra",
    "locon_tucker",
    "loha",
    "lokr",
    "lora",
    "loralib_conv",
    "lori",
    "lori_mask",
    "lori_two_stage",
    "magnitude",
    "mtl_lora",
    "randlora",
    "random_mask",
    "score_mask",
    "shira",
    "trainable_tokens",
]
