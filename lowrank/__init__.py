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
    quantization,
    rram,
    subspace,
)
from lowrank._adapted import Summary, base, materialize, split, summary
from lowrank._axes import Axes
from lowrank._base import Operator, State, Transform
from lowrank._combine import chain, count, identity, select_paths
from lowrank._kinds import is_bias, is_norm
from lowrank._many import in_axes, map_tasks, stack, unstack
from lowrank._partition import combine, partition
from lowrank._ranks import pad_ranks
from lowrank._route import Bank, bank, route
from lowrank._select import both, either, is_matrix, masked, matching, neither
from lowrank.adapters import (
    TwoStage,
    adalora,
    bottleneck,
    dora,
    eva,
    fact_tk,
    fact_tt,
    fourierft,
    full,
    gated,
    hira,
    hydra,
    ia3,
    learn_scale,
    locon_tucker,
    loha,
    lokr,
    lora,
    lora_xs,
    loralib_conv,
    loretta,
    lori,
    lori_mask,
    lori_two_stage,
    lorta,
    magnitude,
    metatt,
    mtl_lora,
    olora,
    parallel,
    pissa,
    prefix,
    prefix_mlp,
    prompt,
    randlora,
    random_mask,
    rescale_inputs,
    rescale_outputs,
    score_mask,
    shira,
    trainable_tokens,
    vera,
)
from lowrank.lifting import Explanation, LiftError, explain, lift, trace_axes
from lowrank.operators import Delta, LowRank

__all__ = [
    "Axes",
    "Bank",
    "Delta",
    "Explanation",
    "LiftError",
    "LowRank",
    "Operator",
    "State",
    "Summary",
    "Transform",
    "TwoStage",
    "adalora",
    "adapters",
    "analysis",
    "bank",
    "base",
    "both",
    "bottleneck",
    "chain",
    "combine",
    "count",
    "dora",
    "either",
    "eva",
    "explain",
    "fact_tk",
    "fact_tt",
    "fourierft",
    "full",
    "gated",
    "hira",
    "hydra",
    "ia3",
    "identity",
    "in_axes",
    "is_bias",
    "is_matrix",
    "is_norm",
    "learn_scale",
    "lift",
    "lifting",
    "linalg",
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
    "map_tasks",
    "masked",
    "matching",
    "materialize",
    "merging",
    "metatt",
    "mtl_lora",
    "neither",
    "olora",
    "operators",
    "pad_ranks",
    "parallel",
    "partition",
    "pissa",
    "prefix",
    "prefix_mlp",
    "prompt",
    "quantization",
    "randlora",
    "random_mask",
    "rescale_inputs",
    "rescale_outputs",
    "route",
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
    "vera",
]

# They import what the core does without.
_LAZY = ("interop", "models", "training")


def __getattr__(name: str) -> Any:
    """Import the parts that need an extra when they are first asked for."""
    if name in _LAZY:
        return importlib.import_module(f"lowrank.{name}")
    raise AttributeError(f"module 'lowrank' has no attribute {name!r}")
