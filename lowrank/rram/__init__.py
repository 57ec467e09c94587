"""RRAM crossbars: devices, sampled chips, and training around their defects."""

from lowrank.rram._assign import Assignment, assign
from lowrank.rram._chip import HRS, LRS, OK, OPEN, sample
from lowrank.rram._compensate import compensated, reduced
from lowrank.rram._corrections import patch, patch_bytes, svd_correction
from lowrank.rram._cost import Cost, CostCard, cost_card, published_energies
from lowrank.rram._crossbar import crossbar
from lowrank.rram._device import Device
from lowrank.rram._effects import (
    Additive,
    Clusters,
    Converter,
    Lognormal,
    Polynomial,
    PowerDrift,
    Proportional,
    Relaxation,
)
from lowrank.rram._factors import factors
from lowrank.rram._flip import choose_flips, choose_row_flips, flip
from lowrank.rram._freeze import afflicted, freeze_order, frozen
from lowrank.rram._halora import adapter_norm_penalty, chip_key
from lowrank.rram._importance import fisher_importance, importance
from lowrank.rram._itt import Healed, itt
from lowrank.rram._itt_train import Trained, itt_train, loss_importance
from lowrank.rram._on_device import OnDevice, on_device, programmed
from lowrank.rram._penalty import defect_penalty
from lowrank.rram._permute import permute, unpermute
from lowrank.rram._placed import Placed, placed
from lowrank.rram._presets import (
    chen2015_a,
    chen2015_b,
    cmo_hfox,
    liu2017,
    milo2021,
    wan2022,
    yousuf2025,
)
from lowrank.rram._program import deploy, program
from lowrank.rram._prune import fault_free, fault_pruned
from lowrank.rram._retrain import Retrained, retrain
from lowrank.rram._scheme import HighZero, Offset, OneSided, TwoSided
from lowrank.rram._with_faults import with_faults

__all__ = [
    "HRS",
    "LRS",
    "OK",
    "OPEN",
    "Additive",
    "Assignment",
    "Clusters",
    "Converter",
    "Cost",
    "CostCard",
    "Device",
    "Healed",
    "HighZero",
    "Lognormal",
    "Offset",
    "OnDevice",
    "OneSided",
    "Placed",
    "Polynomial",
    "PowerDrift",
    "Proportional",
    "Relaxation",
    "Retrained",
    "Trained",
    "TwoSided",
    "adapter_norm_penalty",
    "afflicted",
    "assign",
    "chen2015_a",
    "chen2015_b",
    "chip_key",
    "choose_flips",
    "choose_row_flips",
    "cmo_hfox",
    "compensated",
    "cost_card",
    "crossbar",
    "defect_penalty",
    "deploy",
    "factors",
    "fault_free",
    "fault_pruned",
    "fisher_importance",
    "flip",
    "freeze_order",
    "frozen",
    "importance",
    "itt",
    "itt_train",
    "liu2017",
    "loss_importance",
    "milo2021",
    "on_device",
    "patch",
    "patch_bytes",
    "permute",
    "placed",
    "program",
    "programmed",
    "published_energies",
    "reduced",
    "retrain",
    "sample",
    "svd_correction",
    "unpermute",
    "wan2022",
    "with_faults",
    "yousuf2025",
]
