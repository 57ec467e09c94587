"""Low-rank adaptation and its kin as pure transforms of parameter trees."""

import importlib
from typing import Any

from lowrank import (
    adapters,
    analysis,
    lifting,
    linalg,
    merging,
    operators,
    rram,
    subspace,
)
from lowrank._adapted import Summary, base, materialize, split, summary
from lowrank._axes import Axes
from lowrank._base import Operator, State, Transform
from lowrank._combine import chain, count, identity, select_paths
from lowrank._many import in_axes, map_tasks, stack, unstack
from lowrank._partition import combine, partition
from lowrank._select import both, either, is_matrix, masked, matching, neither
from lowrank.adapters import (
    TwoStage,
    dora,
    fourierft,
    full,
    hira,
    hydra,
    locon_tucker,
    loha,
    lokr,
    lora,
    loralib_conv,
    lori,
    lori_mask,
    lori_two_stage,
    magnitude,
    mtl_lora,
    randlora,
    random_mask,
    score_mask,
    shira,
    trainable_tokens,
)
from lowrank.lifting import Explanation, LiftError, explain, lift, trace_axes
from lowrank.operators import Delta, LowRank

__all__ = [
    "Axes",
    "Delta",
    "Explanation",
    "LiftError",
    "LowRank",
    "Operator",
    "State",
    "Summary",
    "Transform",
    "TwoStage",
    "adapters",
    "analysis",
    "base",
    "both",
    "chain",
    "combine",
    "count",
    "dora",
    "either",
    "explain",
    "fourierft",
    "full",
    "hira",
    "hydra",
    "identity",
    "in_axes",
    "is_matrix",
    "lift",
    "lifting",
    "linalg",
    "locon_tucker",
    "loha",
    "lokr",
    "lora",
    "loralib_conv",
    "lori",
    "lori_mask",
    "lori_two_stage",
    "magnitude",
    "map_tasks",
    "masked",
    "matching",
    "materialize",
    "merging",
    "mtl_lora",
    "neither",
    "operators",
    "partition",
    "randlora",
    "random_mask",
    "rram",
    "score_mask",
    "select_paths",
    "shira",
    "split",
    "stack",
    "subspace",
    "summary",
    "trace_axes",
    "trainable_tokens",
    "unstack",
]

_LAZY = ("models",)  # they import Flax, which the core does without


def __getattr__(name: str) -> Any:
    """Import the parts that need an extra when they are first asked for."""
    if name in _LAZY:
        return importlib.import_module(f"lowrank.{name}")
    raise AttributeError(f"module 'lowrank' has no attribute {name!r}")
