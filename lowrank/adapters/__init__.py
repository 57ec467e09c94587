"""Adapters: transforms that add trained parts to frozen weights."""

from lowrank.adapters._adalora import adalora, adalora_penalty
from lowrank.adapters._adalora_budget import (
    Importance,
    adalora_budget,
    adalora_freeze,
    adalora_importance,
    adalora_mask,
    adalora_prune,
)
from lowrank.adapters._bottleneck import bottleneck
from lowrank.adapters._conv_lora import locon_tucker, loralib_conv
from lowrank.adapters._dora import dora, magnitude
from lowrank.adapters._eva import eva
from lowrank.adapters._fact import fact_tk, fact_tt
from lowrank.adapters._fourierft import fourierft
from lowrank.adapters._full import full
from lowrank.adapters._gated import gated, learn_scale
from lowrank.adapters._hira import hira
from lowrank.adapters._hydra import hydra
from lowrank.adapters._ia3 import ia3, rescale_inputs, rescale_outputs
from lowrank.adapters._initializers import gaussian, orthogonal_a, orthogonal_b
from lowrank.adapters._loha import loha
from lowrank.adapters._lokr import lokr
from lowrank.adapters._lora import lora
from lowrank.adapters._lora_xs import lora_xs
from lowrank.adapters._loretta import loretta
from lowrank.adapters._lori import lori
from lowrank.adapters._lori_controls import random_mask, score_mask
from lowrank.adapters._lori_mask import lori_mask
from lowrank.adapters._lori_recipe import TwoStage, lori_two_stage
from lowrank.adapters._lorta import lorta
from lowrank.adapters._metatt import metatt
from lowrank.adapters._mtl_lora import mtl_lora
from lowrank.adapters._olora import olora
from lowrank.adapters._parallel import parallel
from lowrank.adapters._pissa import pissa
from lowrank.adapters._prefix import prefix, prefix_mlp
from lowrank.adapters._prompt import prompt
from lowrank.adapters._randlora import randlora
from lowrank.adapters._shira import shira
from lowrank.adapters._trainable_tokens import trainable_tokens
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
    "bottleneck",
    "dora",
    "eva",
    "fact_tk",
    "fact_tt",
    "fourierft",
    "full",
    "gated",
    "gaussian",
    "hira",
    "hydra",
    "ia3",
    "learn_scale",
    "locon_tucker",
    "loha",
    "lokr",
    "lora",
    "lora_xs",
    "loralib_conv",
    "loretta",
    "lori",
    "lori_mask",
    "lori_two_stage",
    "lorta",
    "magnitude",
    "metatt",
    "mtl_lora",
    "olora",
    "orthogonal_a",
    "orthogonal_b",
    "parallel",
    "pissa",
    "prefix",
    "prefix_mlp",
    "prompt",
    "randlora",
    "random_mask",
    "rescale_inputs",
    "rescale_outputs",
    "score_mask",
    "shira",
    "trainable_tokens",
    "vera",
]
